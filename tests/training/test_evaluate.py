"""Validation leaves a model fit for training."""

import math
import sys

import torch
from torch import nn

from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.training.devices import peak_memory
from attnprobe.training.evaluate import evaluate


def test_peak_memory_is_unknown_where_the_system_has_no_such_module(monkeypatch):
    assert 0.01 < peak_memory(torch.device("cpu")) < 1000
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: importing it fails
    assert math.isnan(peak_memory(torch.device("cpu")))


class Cached(nn.Module):
    """A model that computes a table in its first pass and keeps it."""

    def __init__(self):
        super().__init__()
        self.head, self.table = nn.Linear(3 * 8 * 8, 10), None

    def forward(self, pixels):
        if self.table is None:
            self.table = torch.arange(10.0).cos()
        return self.head(pixels.flatten(1)) * self.table


def test_a_table_that_the_model_keeps_takes_part_in_training_afterwards():
    model = Cached()
    images = load_images("digits", "val", spec=InputSpec(size=(8, 8)), limit=4)
    loss = evaluate(model, images, batch_size=4, device=torch.device("cpu")).loss
    batch = next(images.batches(4))
    trained = nn.functional.cross_entropy(model(batch.pixels), batch.labels)
    trained.backward()
    assert trained.item() == loss and model.head.weight.grad.abs().sum() > 0
