"""How do I read a maps file without attnprobe? It is plain HDF5: h5py is enough.

    python examples/read_maps.py runs/vit/maps.h5

Prints what is in it, the head of every block that looks most sharply, and how often the model was right.
"""

import argparse

import h5py
import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("file")
options = parser.parse_args()

with h5py.File(options.file) as file:
    for stage, group in file["stages"].items():
        weights = group["weights"]  # [image, layer, head, query, key]; bfloat16 in the file, float32 when read
        print(f"{stage}: {dict(zip(('images', 'layers', 'heads', 'queries', 'keys'), weights.shape, strict=True))}")
        for layer in range(weights.shape[1]):
            rows = np.asarray(weights[:16, layer], dtype=np.float32)  # only this part is read
            entropy = -(rows * np.log(np.maximum(rows, 1e-12))).sum(-1).mean((0, 2))
            print(f"  block {layer + 1}: head {entropy.argmin() + 1} is sharpest, {entropy.min():.2f} nats a row")
    label, prediction = file["images/label"][:], file["images/prediction"][:]
known = label >= 0
print(f"{len(label)} images; right: {(label == prediction)[known].mean():.1%} of {known.sum()} with a label")
