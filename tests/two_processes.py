"""Programs in two processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path


def under_torchrun(*arguments, timeout=None):
    """What `torchrun --nproc-per-node 2` came to, with a thread each: of a script, or of `-m attnprobe ...`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command += arguments if arguments[0].endswith(".py") else ("-m", "attnprobe", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
