"""Files that matter, and processes that share them: locks, claims, run folders, settings, progress."""
