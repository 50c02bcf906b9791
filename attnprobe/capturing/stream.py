"""Images -> their attention maps, batch by batch, with proof.

Between two batches the process and the model are as their user left them: whoever asks for the next one may train
the model, run it, capture another or stop asking.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capturing.certificate import Certificate, certify
from attnprobe.capturing.inputs import as_images
from attnprobe.capturing.recording import Recording, evaluating, feeding
from attnprobe.core.devices import float_type
from attnprobe.core.errors import CaptureError, InputError, WorkError, did_you_mean
from attnprobe.core.images import ImageBatch, Order, as_seen, pixel_hashes
from attnprobe.core.maps import AttentionMaps, Outcome
from attnprobe.core.memory import available, free_memory, is_out_of_memory
from attnprobe.core.outputs import class_logits
from attnprobe.core.sites import Site
from attnprobe.core.text import Shown

BATCH_BYTES = 256 << 20
"""Most bytes of maps in one forward pass where the device does not tell how much memory it has: 8 images of 16 blocks,
12 heads, 197 tokens. On CPU cores, more images at once are no faster, and only take memory."""

MEMORY_SHARE = 4
"""A batch's maps may take this fraction of a device's free memory. There are three of it at most, the one that is
computed and two that are being copied off; the rest is for the pass itself."""


def capture(
    model: nn.Module,
    images: Any,
    site: Site | Sequence[Site] = "effective",
    *,
    tokens: bool = False,
    values: bool = False,
    batch_size: int = 16,
    inputs: Mapping[str, Any] | None = None,
    **options: Any,
) -> "Capture":
    """Run `model` over `images` and yield the attention maps of each batch.

    Args:
        model: any vision transformer, on the device it should run on.
        images: an `ImageSource`, or pixels [image, channel, row, col] already normalised, in any form that `as_images`
            takes: tensors, arrays, lists, data loaders, a processor's dictionary.
        site: "weights" (the softmax), "effective" (multiplied with V), "scores" (logits of the softmax), or several as
            a tuple.
        tokens: keep the output of each block, too, where that is [image, token, width]; `token_similarity` needs it.
        values: keep V, too, where maps are of the whole image; `head_output_norm` needs it.
        batch_size: most images per forward pass; fewer where their maps do not fit, and half as many each time memory
            runs out. Results do not depend on it beyond rounding.
        inputs: further keyword arguments of the model's forward pass; a function is called with the pixels of each
            batch.
        options: as of `Recording`; `selection` chooses layers, heads and queries, `watch` traces every call,
            `allow_missing` goes on where blocks show no map although their siblings do, and `amp` is the type of
            autocast.

    Returns:
        An iterable of `AttentionMaps`, one per batch, stage and site. The first step proves, layer by layer, that the
        captured maps are what the model computed: see `.certificate`.

    Raises:
        CaptureError: (while iterating) no image, no attention layer, or a failed proof.
        WorkError: (while iterating) memory does not suffice for one image.
        InputError: an unknown option.
    """
    known = {field.name for field in fields(Recording)} - {"model", "sites"}
    if unknown := sorted(options.keys() - known):
        raise InputError(f"capture has no option {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    recording = Recording(model, site, tokens=tokens, values=values, inputs=inputs or {}, **options)
    return Capture(recording, images, batch_size)


@dataclass(eq=False, repr=False)
class Capture(Shown):
    """An iterable of `AttentionMaps`; made by `capture`. Memory does not grow with the number of images.

    Attributes:
        recording: of the model, and of what is kept of its forward passes.
        images: what was given, as a source of batches; see `as_images`.
        batch_size: most images per forward pass; halved when memory runs out.
        alone: False where other processes run the same passes, which one cannot cut into two by itself.
    """

    recording: Recording
    images: Any
    batch_size: int = 16
    alone: bool = True

    def __post_init__(self) -> None:
        self._model = self.recording.model
        self.images = as_images(self.images)
        self._device, self._dtype = _device_of(self._model), float_type(self._model)

    def facts(self) -> dict[str, object]:
        """Images and what is captured, for notebook and terminal."""
        recording, source = self.recording, getattr(self.images, "name", "")
        extras = {"block outputs": recording.tokens, "values": recording.values, "queries and keys": recording.factors}
        is_proved = "certificate" in self.__dict__  # to show itself, a capture runs nothing
        return {
            "images": f"{self._count('a stream')}{f' of {source}' if source else ''}",
            "captured": ", ".join([*recording.sites, *(name for name, kept in extras.items() if kept)]),
            "proof": f"of {len(self.certificate.layers)} layers, in .certificate" if is_proved else "at first use",
            "next": "iterate over it, or pass it to measure",
        }

    @property
    def _title(self) -> str:
        return f"Capture of {type(self._model).__name__}"

    def _count(self, unknown: Any) -> Any:
        """The number of images, or `unknown`."""
        return len(self.images) if hasattr(self.images, "__len__") else unknown

    def __iter__(self) -> Iterator[AttentionMaps]:
        for maps in self.batches():
            while maps:  # hold no batch while the next one is computed: its memory is then used again
                yield maps.pop(0)

    @cached_property
    def certificate(self) -> Certificate:
        """The proof, made on the first two images."""
        recording, first = self.recording, self._first
        for count in (2, 1):
            try:
                with evaluating(self._model.modules()), feeding(self._model, recording.inputs):
                    proof = certify(
                        self._model,
                        first.pixels[:count].to(self._dtype),
                        watch=recording.watch,
                        scores="scores" in recording.sites,
                        factors=recording.factors,
                        allow_missing=recording.allow_missing,
                        amp=recording.amp,
                        many=min(self.batch_size, self._count(self.batch_size)) > 2,
                    )
                recording.recorder.located = proof.located
                if parallel := proof.located.parallel:
                    warnings.warn(
                        f"{', '.join(parallel[:3])}{' ...' if len(parallel) > 3 else ''} and the layer before run side "
                        "by side in one block, each as a layer of its own: what compares a layer with the previous one "
                        "compares these two as well.",
                        stacklevel=2,
                    )
                return proof
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
        raise _too_large()

    @property
    def fitting(self) -> int:
        """Images of one forward pass: `batch_size`, or the largest power of two whose maps fit into memory."""
        free = available(self._device)
        most = (BATCH_BYTES if free is None else free // MEMORY_SHARE) // max(1, self.certificate.image_bytes)
        return self.batch_size if self.batch_size <= most else 1 << max(0, most.bit_length() - 1)

    def sample(self) -> list[AttentionMaps]:
        """The maps of the first one or two images, from which a store learns their shapes."""
        return next(self._maps_of(_cut(self._first, 0, min(2, self.fitting))))

    def batches(self, order: Order | None = None, batch_size: int | None = None) -> Iterator[list[AttentionMaps]]:
        """All maps of one batch at a time, of the images at positions `order` (all if None).

        Args:
            order: positions, or runs of them, none of which shares a batch with another: as in `ImageSource.batches`.
            batch_size: images of one forward pass, whatever fits; `fitting` if None.
        """
        self.batch_size = batch_size or self.fitting  # it proves the maps: nothing is delivered unproved
        for batch in self._image_batches(self.batch_size, order):
            yield from self._maps_of(batch)

    @cached_property
    def _first(self) -> ImageBatch:
        """The first two images that can be read."""
        n = self._count(2)
        first = next(self._image_batches(2, range(min(2, n))), None)
        skips = hasattr(self.images, "bad")  # such a source leaves out what cannot be read
        if skips and n > 2 and (first is None or len(first.ids) < 2):
            others = self._image_batches(1, ([i] for i in range(2, n)))
            first = _joined([*filter(None, [first]), *islice(others, 2 - (len(first.ids) if first else 0))])
        if first is None:
            raise CaptureError("no image to capture; the source is empty, or none of its images can be read.")
        if not hasattr(self.images, "spec") and (doubt := _doubt_of_pixels(first.pixels, self._model)):
            warnings.warn(doubt, stacklevel=2)
        return first

    def _outcome(self, output: object, labels: Tensor) -> Outcome | None:
        """Labels and predictions, if the model returns class logits.

        Predictions are unknown where the output is features (num_classes=0), one number per image, which is no class,
        or of another number of classes than the images have.
        """
        names, stated = getattr(self.images, "class_names", ()), getattr(self._model, "num_classes", None)
        logits = class_logits(output, len(labels), (stated if isinstance(stated, int) else None, len(names) or None))
        if logits is None:
            return None
        n_classes = logits.shape[-1]
        if stated == 0 or n_classes < 2 or (names and n_classes != len(names)):
            unknown = torch.full((len(logits),), -1, device=logits.device)
            return Outcome(labels.to(logits.device), unknown, unknown * float("nan"))
        probability, prediction = logits.float().softmax(-1).max(-1)
        return Outcome(labels.to(prediction.device), prediction, probability, n_classes)

    def _maps_of(self, batch: ImageBatch) -> Iterator[list[AttentionMaps]]:
        """The maps of a batch, in as many parts as memory asks for."""
        n = len(batch.ids)
        if n > (step := self.batch_size):  # it may shrink meanwhile
            for start in range(0, n, step):
                yield from self._maps_of(_cut(batch, start, start + step))
            return
        try:
            taken = self._computed(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield taken
            return
        # Outside of `except`, whose traceback holds the tensors of the pass that failed.
        self.recording.pool.clear()
        free_memory()
        if n == 1:
            raise _too_large()
        if not self.alone:
            raise WorkError(f"out of memory with {n} images at once; start again, into a new output, with fewer.")
        self.batch_size = n // 2
        warnings.warn(f"out of memory with {n} images at once; going on with {self.batch_size}.", stacklevel=2)
        yield from self._maps_of(batch)

    @torch.no_grad()
    def _computed(self, batch: ImageBatch) -> list[AttentionMaps]:
        """The maps of one forward pass, with what was seen and answered."""
        seen = as_seen(batch.pixels, getattr(self.images, "spec", None))
        try:
            output = self.recording.run(batch.pixels.to(self._dtype))
            outcome = self._outcome(output, batch.labels)
            taken = self.recording.recorder.take(batch.ids, outcome)
        except BaseException:
            self.recording.recorder.forget()
            raise
        hashes = pixel_hashes(seen)  # while a GPU is still at the forward pass
        return [replace(maps, pixels=hashes) for maps in taken]

    def _image_batches(self, batch_size: int, order: Order | None) -> Iterator[ImageBatch]:
        return self.images.batches(batch_size, device=self._device, order=order)


def _device_of(model: nn.Module) -> torch.device:
    """The device that a model runs on: that of its weights, or to which accelerate's hooks bring offloaded ones.

    Raises:
        CaptureError: it has no weights, or not all of them.
    """
    parameters = list(model.parameters())
    if not any(parameter.is_meta for parameter in parameters):
        return parameters[0].device if parameters else torch.device("cpu")
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    device = next((device for device in devices if device is not None), None)
    if device is None:
        raise CaptureError(f"{type(model).__name__} lacks weights (device meta); load or initialise them.")
    return torch.device(device)


def _doubt_of_pixels(pixels: Tensor, model: nn.Module) -> str:
    """Why pixels of a float type look as if nobody had normalised them, and what to do; empty if they do not.

    Values from 0 to 1 are what many a model was trained on, so they are doubted only if the model, as those of timm do,
    says that it wants others.
    """
    low, high = (x.item() for x in pixels.aminmax())
    if low >= 0 and 32 < high <= 255:
        whole = "whole numbers" if bool((pixels == pixels.round()).all()) else "numbers"
        return (
            f"pixels are {whole} up to {high:.0f}, as if they were not normalised: unless the model does that "
            "itself, divide by 255, subtract the mean and divide by the standard deviation that it was trained with."
        )
    stated = getattr(model, "pretrained_cfg", None) or {}
    mean, std = stated.get("mean") or (), stated.get("std") or ()
    plain = not any(mean) and all(x == 1 for x in std)
    if plain or not (low >= 0 and 0.5 < high <= 1):
        return ""
    return (
        f"pixels are from {low:.2g} to {high:.2g}, as if they were not normalised, but the model states mean "
        f"{_numbers(mean)} and std {_numbers(std)}: subtract the one and divide by the other, unless that is done."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _joined(batches: list[ImageBatch]) -> ImageBatch | None:
    """One batch of several; None of none."""
    if not batches:
        return None
    pixels, labels = (torch.cat(parts) for parts in zip(*((b.pixels, b.labels) for b in batches), strict=True))
    return ImageBatch(pixels, labels, tuple(name for batch in batches for name in batch.ids))


def _cut(batch: ImageBatch, start: int, stop: int) -> ImageBatch:
    return ImageBatch(batch.pixels[start:stop], batch.labels[start:stop], batch.ids[start:stop])


def _too_large() -> WorkError:
    return WorkError("out of memory with one image; keep fewer layers, heads or queries, or a smaller image size.")
