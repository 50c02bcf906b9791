"""The command line in two processes, as torchrun starts them."""

import os
import subprocess
import sys


def under_torchrun(*arguments):
    """What `torchrun --nproc-per-node 2 -m attnprobe ...` came to, with a thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "attnprobe", *arguments], env=environment, capture_output=True, text=True, check=False
    )
