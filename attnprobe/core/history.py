"""Attention over the epochs of a training run, as a probe measured it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attnprobe.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Alarm:
    """Trouble in words with its numbers, and the number of epochs after which it was seen."""

    epoch: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Numbers per block after some of a run's epochs, always on the same images.

    Metrics are named by their keys in `Measurements`: those of effective attention where there are two sites.

    Attributes:
        epochs: [epoch], numbers of finished epochs, ascending.
        blocks: {metric: [epoch, block]}: means over heads; of similar blocks, the share of vectors above tau; of
            layer similarity, the cosine with the previous block. NaN where there is none.
        matrices: {metric: [epoch, block, block]}, of metrics that compare layers.
        uniform: {metric: [block]}, the value of uniform attention; ln K for the entropy of rows.
        settings: {metric: its settings}.
        image_ids: the images measured.
        training_seconds, probe_seconds: [epoch], time since the previous row; writing a row's files counts to the
            next.
        alarms: warnings, in order.
    """

    epochs: np.ndarray
    blocks: Mapping[str, np.ndarray]
    matrices: Mapping[str, np.ndarray]
    uniform: Mapping[str, np.ndarray]
    settings: Mapping[str, Mapping[str, Any]]
    image_ids: tuple[str, ...]
    training_seconds: np.ndarray
    probe_seconds: np.ndarray
    alarms: tuple[Alarm, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.epochs)

    def overhead(self) -> str:
        """Sentence on the time that the probe took."""
        probe, training = self.probe_seconds.sum(), self.training_seconds.sum()
        share = probe / max(probe + training, 1e-9)
        return f"{len(self)} probes took {probe:.2f} s beside {training:.1f} s of training: {share:.2%} of the time"

    def before(self, epoch: int) -> "History":
        """The history of earlier epochs only."""
        kept = self.epochs < epoch
        return replace(
            self,
            epochs=self.epochs[kept],
            blocks={name: values[kept] for name, values in self.blocks.items()},
            matrices={name: values[kept] for name, values in self.matrices.items()},
            training_seconds=self.training_seconds[kept],
            probe_seconds=self.probe_seconds[kept],
            alarms=tuple(alarm for alarm in self.alarms if alarm.epoch < epoch),
        )

    def then(self, later: "History") -> "History":
        """This history continued by a later one of the same images, blocks and metrics; without alarms.

        Raises:
            InputError: images, metrics or settings differ.
        """
        for what, one, other in (
            ("images", self.image_ids, later.image_ids),
            ("metrics", self._shape(), later._shape()),
            ("settings of metrics", self.settings, later.settings),
        ):
            if one != other:
                raise InputError(
                    f"the history up to epoch {self.epochs[-1]} has other {what} than epoch {later.epochs[0]}; "
                    "probe with the same options, or into another folder."
                )
        return replace(
            later,
            epochs=np.concatenate([self.epochs, later.epochs]),
            blocks={name: np.concatenate([values, later.blocks[name]]) for name, values in self.blocks.items()},
            matrices={name: np.concatenate([values, later.matrices[name]]) for name, values in self.matrices.items()},
            training_seconds=np.concatenate([self.training_seconds, later.training_seconds]),
            probe_seconds=np.concatenate([self.probe_seconds, later.probe_seconds]),
            alarms=(),
        )

    def _shape(self) -> dict[str, int]:
        """Number of blocks of every metric."""
        return {name: values.shape[1] for name, values in self.blocks.items()}
