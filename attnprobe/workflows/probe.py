"""A probe of attention while a model trains, in any training loop.

    probe = ap.Probe(val_images, out="runs/x/probe", epochs=100)
    for epoch in range(100):
        ...  # train
        print(probe(epoch + 1, model))

The same few images go through the model, in eval mode and without gradients, and the measurements of their attention
become a row of the history (`attnprobe.core.history`). Training is not affected: weights, buffers, modes, hooks and
random generators are as they were, so weights come out the same bit for bit. In Lightning or in Hugging Face's Trainer,
call it from `on_validation_epoch_end` or `on_epoch_end`.

Question: how often? Choice: as often as `every` and `budget` allow: the probe times itself, and skips epochs while it
has taken more than its share. The first epoch and the last are always probed.
"""

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnprobe.capturing import Capture
from attnprobe.capturing.stream import capture
from attnprobe.core.errors import InputError
from attnprobe.core.history import History
from attnprobe.core.images import ImageSource
from attnprobe.core.measurement import Key, Measurement
from attnprobe.core.metric import Metric
from attnprobe.core.sites import Site
from attnprobe.metrics import METRICS, measure
from attnprobe.stats.alarms import Thresholds, alarms
from attnprobe.stats.blocks import per_block
from attnprobe.store.history import read_history, write_history
from attnprobe.training.boards import summary_writer

CORE = ("similar_blocks", "layer_similarity", "row_entropy", "head_divergence", "token_similarity")
"""The default metrics, which together cost about as much as the forward pass of a small model."""


class AttentionAlarm(UserWarning):
    """A warning that attention degenerates in training; the message says how."""


@dataclass(eq=False, repr=False)
class Probe:
    """Measures a model's attention on a few fixed images; called after each epoch with the epochs done and the model.

        probe = ap.Probe(val_images, "runs/mine/probe")
        print(probe(epoch + 1, model))  # at the end of each epoch of your loop, or of timm's

    In a callback of Lightning: `probe(trainer.current_epoch + 1, module.model)`, of Hugging Face's Trainer:
    `probe(round(state.epoch), model)`. In processes started by torchrun, call it in the first one.

    Args:
        images: source of the fixed images, evenly spread; or pixels [image, 3, row, col] themselves.
        out: folder for probe.h5, probe.csv and alarms.txt, rewritten after each probe; a history that is there is
            continued, from the epoch that the first call names. Nothing is written if None.
        every: minimum number of epochs from one probe to the next.
        epochs: total number of epochs; the last is then always probed, and its cost is set aside.
        budget: fraction of the time, training and probe together, that the probe may take.
        metrics: names in `METRICS`, or metrics of your own; if None, those of `CORE` that accept the model's maps.
        n_images: number of images.
        batch_size: images per forward pass.
        thresholds: limits that raise an alarm.
        tensorboard: write curves into `out`/tensorboard, too.
        clock: a function that returns seconds.

    Attributes:
        history: everything so far, alarms included; None before the first probe.
        training_seconds, probe_seconds: duration of each, for what the history covers.

    Raises:
        InputError: an option out of range, an unknown metric or one without a value per block, or TensorBoard is not
            installed.
    """

    images: InitVar[ImageSource | Tensor]
    out: Path | str | None = None
    _: KW_ONLY
    every: int = 1
    epochs: int | None = None
    budget: float = 0.01
    metrics: InitVar[Sequence[str | Metric] | None] = None
    n_images: int = 32
    batch_size: int = 16
    thresholds: Thresholds = field(default_factory=Thresholds)
    tensorboard: InitVar[bool] = False
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(
        self, images: ImageSource | Tensor, metrics: Sequence[str | Metric] | None, tensorboard: bool
    ) -> None:
        if self.every < 1 or self.n_images < 1 or not 0 < self.budget <= 1:
            raise InputError(
                f"every={self.every} and n_images={self.n_images} must be at least 1, budget={self.budget} in (0, 1]."
            )
        self.out = None if self.out is None else Path(self.out)
        self._metrics = [_checked(metric) for metric in (CORE if metrics is None else metrics)]
        self._chosen = metrics is not None
        if tensorboard and self.out is None:
            raise InputError("tensorboard=True needs a folder to write to: give out.")
        self._board = summary_writer("tensorboard=True", Path(self.out or "") / "tensorboard") if tensorboard else None
        with _generators_kept():
            self._pixels, self._ids = _fixed(images, self.n_images)
        self._model: nn.Module | None = None
        self._capture: Capture | None = None
        self._resumed = False
        self.history: History | None = None
        self.training_seconds = self.probe_seconds = 0.0
        self._last_cost, self._left = 0.0, self.clock()

    def __call__(self, epoch: int, model: nn.Module, seconds: float | None = None) -> str:
        """Probe `model` if `every` and `budget` allow it.

        Args:
            epoch: number of epochs done; 0 for the model before training.
            model: any model that `attnprobe.capturing` reads, on its device.
            seconds: duration of the epoch; measured from the end of the last call if None.

        Returns:
            A short summary for a progress line.

        Raises:
            CaptureError: its attention cannot be captured.
            InputError: the history in `out` is of other images or metrics.
            WorkError: the disk is full or fails.
        """
        if (device := _device(model)).type != "cpu":
            torch.accelerator.synchronize(device)  # queued training is not a cost of the probe
        begun = self.clock()
        if self.history is not None and epoch <= self.history.epochs[-1]:
            self.history = self.history.before(epoch) if epoch > self.history.epochs[0] else None
        self.training_seconds += begun - self._left if seconds is None else seconds
        if not self._resumed:
            self._resume(epoch)
        waits = self._waits(epoch)
        if waits is None:
            with _generators_kept(device):
                found = self._measure(model)
            self._add(epoch, found, begun)
            self._last_cost = self.clock() - begun
            self.probe_seconds += self._last_cost
        self._left = self.clock()
        return self._text(epoch, waits)

    @property
    def share(self) -> float:
        """The probe's fraction of the whole time so far."""
        return self.probe_seconds / max(self.probe_seconds + self.training_seconds, 1e-9)

    def _resume(self, epoch: int) -> None:
        """Load the history in the folder, up to the epoch that comes next."""
        self._resumed = True
        past = read_history(Path(self.out)) if self.out else None
        if past is not None and len(past := past.before(epoch)):
            self.history = past
            self.training_seconds += float(past.training_seconds.sum())
            self.probe_seconds += float(past.probe_seconds.sum())
            self._last_cost = float(past.probe_seconds[-1])

    def _waits(self, epoch: int) -> str | None:
        """The reason why this epoch is not probed ("" if only because of `every`); None if it is."""
        last = self.epochs is not None and epoch >= self.epochs
        if self.history is None or last:
            return None
        if epoch - self.history.epochs[-1] < self.every:
            return ""
        cost = self._last_cost * (1 if self.epochs is None else 2)  # of this probe and of the one at the end
        share = (self.probe_seconds + cost) / (self.training_seconds + self.probe_seconds + cost)
        return None if share <= self.budget else f"next would take {share:.1%} of the time, budget {self.budget:.1%}"

    def _measure(self, model: nn.Module) -> dict[str, Measurement]:
        """The metrics of the fixed images, of effective attention where they accept it."""
        if self._capture is None or self._model is not model:  # a new model is certified, which costs three passes
            self._model = model
            sites: tuple[Site, ...] = ("weights", "effective")
            self._capture = capture(model, self._pixels, sites, tokens=True, batch_size=self.batch_size)
            if not self._chosen:
                kinds = next(self._capture.batches(order=[0]))
                self._metrics = [metric for metric in self._metrics if any(map(metric.accepts, kinds))]
        found = measure(self._capture, self._metrics, bootstrap=0)
        return {name: m for name, m in found.items() if not Key.parse(name).site}

    def _add(self, epoch: int, found: Mapping[str, Measurement], begun: float) -> None:
        """Add a row to the history, in memory and on disk, and raise its alarms."""
        booked = 0.0 if self.history is None else self.history.training_seconds.sum()
        charged = 0.0 if self.history is None else self.history.probe_seconds.sum()
        row = History(
            epochs=np.array([epoch]),
            blocks={name: per_block(m)[None] for name, m in found.items()},
            matrices={name: m.mean[None] for name, m in found.items() if m.axes == ("layer", "layer")},
            uniform={name: per_block(m.baselines["uniform"]) for name, m in found.items() if m.baselines},
            settings={name: m.metric_settings for name, m in found.items()},
            image_ids=self._ids,
            training_seconds=np.array([self.training_seconds - booked]),
            probe_seconds=np.array([self.probe_seconds - charged + self.clock() - begun]),
        )
        history = self.history.then(row) if self.history else row
        self.history = replace(history, alarms=alarms(history, self.thresholds))
        if self.out:
            write_history(Path(self.out), self.history)
        if self._board:
            _write_scalars(self._board, row)
        for alarm in self.history.alarms:
            if alarm.epoch == epoch:
                warnings.warn(f"epoch {epoch}: {alarm.text}.", AttentionAlarm, stacklevel=3)

    def _text(self, epoch: int, waits: str | None) -> str:
        """A summary of the last row, and the reason why there is no newer one."""
        assert self.history is not None, "the first epoch is always probed"
        words = []
        ratios = {
            name: values[-1]
            for name, values in self.history.blocks.items()
            if Key.parse(name).metric == "similar_blocks"
        }
        if ratios:
            similar = sum((ratio > self.history.settings[name]["rho"]).sum() for name, ratio in ratios.items())
            words.append(f"similar {similar}/{sum(map(len, ratios.values()))}")
        entropies = [
            values[-1] for name, values in self.history.blocks.items() if Key.parse(name).metric == "row_entropy"
        ]
        entropy = np.concatenate(entropies) if entropies else np.array([math.nan])
        if np.isfinite(entropy).any():
            lowest = int(np.nanargmin(entropy))
            words.append(f"entropy {entropy[lowest]:.2f} in block {lowest + 1}")
        if n := len(self.history.alarms):
            words.append(f"{n} alarm{'s' if n > 1 else ''}")
        if self.history.epochs[-1] != epoch:
            words.append(f"as of epoch {self.history.epochs[-1]}")
        return ", ".join([*words, *([waits] if waits else [])])


def _checked(metric: str | Metric) -> Metric:
    """A metric without its summary, which resamples images: 1.3 s for the clusters of 16 x 12 heads."""
    return replace(METRICS[metric] if isinstance(metric, str) else metric, summarise=None)


def _fixed(images: ImageSource | Tensor, n: int) -> tuple[Tensor, tuple[str, ...]]:
    """Pixels and ids of n images, evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int).tolist()
    if isinstance(images, Tensor):
        return images[chosen], tuple(str(i) for i in chosen)
    batches = list(images.batches(16, order=chosen))
    if not batches:
        raise InputError("no image to probe with; the source is empty.")
    return torch.cat([batch.pixels for batch in batches]), tuple(i for batch in batches for i in batch.ids)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def _generators_kept(device: torch.device = torch.device("cpu")) -> Iterator[None]:  # noqa: B008  immutable
    """Restore PyTorch's, NumPy's and Python's global generators at the end."""
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)


def _write_scalars(board: Any, row: History) -> None:
    for metric, values in row.blocks.items():
        for block, value in enumerate(values[0].tolist(), 1):
            board.add_scalar(f"{metric}/block {block:02d}", value, int(row.epochs[0]))
    board.flush()
