"""Do our variants reproduce the numbers recorded from the authors' own code? `python -m tests.parity FOLDER`."""
