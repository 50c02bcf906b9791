"""How do I watch attention in my own training loop? One line an epoch.

    python examples/own_loop.py [--epochs 3] [-o own-loop]

A plain timm model, a plain PyTorch loop. The probe leaves weights, modes and random generators as they were.
"""

import argparse

import timm
import torch
import torch.nn.functional as F

import attnprobe as ap

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("-o", "--out", default="own-loop", help="folder for the probe's history, probe.csv and probe.h5")
options = parser.parse_args()

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=6, num_classes=10)
images, val_images = (ap.load_images("digits", split, spec=ap.input_spec(model)) for split in ("train", "val"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

probe = ap.Probe(val_images, options.out, epochs=options.epochs, budget=1.0)  # of a long training 0.01, the default
for epoch in range(options.epochs):
    model.train()
    for batch in images.batches(64, order=torch.randperm(len(images)).tolist()):
        F.cross_entropy(model(batch.pixels), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}:", probe(epoch + 1, model))  # alarms come as warnings
