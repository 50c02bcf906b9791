#!/usr/bin/env bash
# How do several processes, GPUs or machines share one capture? torchrun starts them; each takes a part of the images.
#
#     examples/distributed_capture.sh runs/vit digits [PROCESSES]
#
# The file is the same whatever the number of processes. Where one dies, run the command again, with any number: what
# is there stays, what is missing is captured. On several machines with a common file system add torchrun's own
# --nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:29500, and run the same line on each.
set -euo pipefail

torchrun --nproc-per-node "${3:-2}" -m attnprobe capture "$1" --data "$2" -o shared-maps.h5 --untrained 0
attnprobe verify shared-maps.h5
