"""`python -m attnprobe`, as `torchrun -m attnprobe train ...` needs it."""

from attnprobe.cli import main

main()
