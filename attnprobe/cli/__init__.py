"""The command line, one file per group of commands; no logic, and torch loads only when a command runs."""
