#!/usr/bin/env bash
# How do I stop a pipeline when attention has collapsed? The report exits with 3 when a condition holds.
#
#     examples/ci_gate.sh runs/vit
#
# Conditions are of the numbers a report shows: METRIC, METRIC.KEY or either with @SITE, compared with a number; or of
# the kinds of collapse in its verdict, by the number of blocks.
set -euo pipefail

attnprobe report "$1" -o "${2:-report}" \
    --fail-on "similar_blocks>3" \
    --fail-on "repetition>3" \
    --fail-on "row_entropy.min<0.05" \
    --fail-on "accuracy<0.5"
