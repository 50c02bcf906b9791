"""Images -> their attention maps, batch by batch, with proof.

Between two batches the process and the model are as their user left them: whoever asks for the next one may train
the model, run it, capture another or stop asking.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from attnprobe.capturing.buffers import BufferPool
from attnprobe.capturing.certificate import Certificate, certify
from attnprobe.capturing.layers import unwrap
from attnprobe.capturing.recording import Recording, evaluating
from attnprobe.capturing.selection import Selection
from attnprobe.core.errors import CaptureError, WorkError
from attnprobe.core.images import ImageBatch, ImageSource, as_seen, pixel_hashes
from attnprobe.core.maps import AttentionMaps, Outcome
from attnprobe.core.memory import free_memory, is_out_of_memory
from attnprobe.core.tap import Site

BATCH_BYTES = 640 << 20
"""Most bytes of maps in one forward pass: 20 images of 16 blocks, 12 heads, 197 tokens, or one of 1,374 tokens."""


def capture(
    model: nn.Module,
    images: ImageSource | Tensor,
    site: Site | Sequence[Site] = "effective",
    *,
    tokens: bool = False,
    values: bool = False,
    factors: bool = False,
    batch_size: int = 16,
    watch: bool | None = None,
    unwindow: bool = False,
    selection: Selection | None = None,
) -> "Capture":
    """Run `model` over `images` and yield the attention maps of each batch.

    Args:
        model: any vision transformer, on the device it should run on.
        images: an `ImageSource`, or pixels [image, 3, row, col] already normalised.
        site: "weights" (the softmax), "effective" (what multiplies V), "scores" (what the softmax is taken of), or
            several as a tuple.
        tokens: keep the output of each block, too, where that is [image, token, width]; `token_similarity` needs it.
        values: keep what each map multiplies, where maps are of the whole picture; `head_output_norm` needs it.
        factors: keep queries and keys, too, of which a map is the softmax; a writer then stores them in its place.
        batch_size: most images per forward pass; fewer where their maps are more than `BATCH_BYTES`, and half as many
            each time memory runs out. Results do not depend on it beyond rounding.
        watch, unwindow, selection: see `Recording`.

    Returns:
        An iterable of `AttentionMaps`, one per batch, stage and site. The first step proves, layer by layer, that the
        captured maps are what the model computed: see `.certificate`.

    Raises:
        CaptureError: (while iterating) no image, no attention layer, or a failed proof.
        WorkError: (while iterating) memory does not suffice for one image.
    """
    sites = (site,) if isinstance(site, str) else tuple(site)
    return Capture(model, images, sites, tokens, values, factors, batch_size, watch, unwindow, selection)


class Capture:
    """An iterable of `AttentionMaps`; made by `capture`. Memory does not grow with the number of images."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSource | Tensor,
        sites: Sequence[Site],
        tokens: bool,
        values: bool,
        factors: bool,
        batch_size: int,
        watch: bool | None = None,
        unwindow: bool = False,
        selection: Selection | None = None,
    ) -> None:
        self.model, self.images = unwrap(model), images
        self.sites, self.tokens, self.values, self.batch_size = tuple(sites), tokens, values, batch_size
        self.factors = factors
        self._watch, self._unwindow, self._selection = watch, unwindow, selection
        self._pool = BufferPool()
        parameter = next(self.model.parameters(), torch.empty(0))
        self._device, self._dtype = parameter.device, parameter.dtype

    def __repr__(self) -> str:
        return (
            f"<Capture of {type(self.model).__name__}: {len(self.images)} images, {' and '.join(self.sites)}; "
            "iterate over it, or hand it to measure; .certificate is the proof>"
        )

    def __iter__(self) -> Iterator[AttentionMaps]:
        for maps in self.batches():
            while maps:  # hold no batch while the next one is computed: its memory is then used again
                yield maps.pop(0)

    @cached_property
    def certificate(self) -> Certificate:
        """The proof, made on the first two images."""
        first = next(self._image_batches(2, range(min(2, len(self.images)))), None)
        if first is None:
            raise CaptureError("no image to capture; the source is empty.")
        for count in (2, 1):
            try:
                with evaluating(self.model.modules()):
                    pixels, kept = first.pixels[:count].to(self._dtype), {"factors": self.factors, "watch": self._watch}
                    return certify(self.model, pixels, scores="scores" in self.sites, **kept)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
        raise _too_large()

    def batches(self, order: Sequence[int] | None = None) -> Iterator[list[AttentionMaps]]:
        """All maps of one batch at a time, of the images at positions `order` (all if None)."""
        per_image = max(1, self.certificate.image_bytes)  # nothing is delivered unproved
        self.batch_size = max(1, min(self.batch_size, BATCH_BYTES // per_image))
        recording = Recording(
            self.model,
            self.sites,
            tokens=self.tokens,
            values=self.values,
            factors=self.factors,
            watch=self._watch,
            unwindow=self._unwindow,
            pool=self._pool,
            selection=self._selection,
        )
        for batch in self._image_batches(self.batch_size, order):
            yield from self._of_batch(recording, batch)

    def _is_of_other_classes(self, output: object) -> bool:
        """Whether the output is features (num_classes=0), or of another number of classes than the images have."""
        output = getattr(output, "logits", output)
        names = getattr(self.images, "class_names", ())
        told = output.shape[-1] if isinstance(output, Tensor) else 0
        return getattr(self.model, "num_classes", None) == 0 or bool(names and told != len(names))

    def _of_batch(self, recording: Recording, batch: ImageBatch) -> Iterator[list[AttentionMaps]]:
        """The maps of a batch, in as many parts as memory asks for."""
        n = len(batch.ids)
        if n > (step := self.batch_size):  # it may shrink meanwhile
            for start in range(0, n, step):
                yield from self._of_batch(recording, _cut(batch, start, start + step))
            return
        try:
            taken = self._computed(recording, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield taken
            return
        recording.recorder.forget()
        self._pool.clear()
        free_memory()
        if n == 1:
            raise _too_large()
        self.batch_size = n // 2
        warnings.warn(f"out of memory with {n} images at once; going on with {self.batch_size}.", stacklevel=2)
        yield from self._of_batch(recording, batch)

    @torch.no_grad()
    def _computed(self, recording: Recording, batch: ImageBatch) -> list[AttentionMaps]:
        """The maps of one forward pass, with what was seen and answered."""
        seen = as_seen(batch.pixels, getattr(self.images, "spec", None))
        output = recording.run(batch.pixels.to(self._dtype))
        outcome = _outcome(output, batch.labels, self._is_of_other_classes(output))
        taken = recording.recorder.take(batch.ids, outcome)
        hashes = pixel_hashes(seen)  # while a GPU is still at the forward pass
        return [replace(maps, pixels=hashes) for maps in taken]

    def _image_batches(self, batch_size: int, order: Sequence[int] | None) -> Iterator[ImageBatch]:
        if not isinstance(self.images, Tensor):
            yield from self.images.batches(batch_size, device=self._device, order=order)
            return
        chosen = range(len(self.images)) if order is None else order
        for start in range(0, len(chosen), batch_size):
            part = list(chosen[start : start + batch_size])
            pixels = self.images[part].to(self._device)
            yield ImageBatch(pixels, torch.full((len(part),), -1), tuple(str(i) for i in part))


def _cut(batch: ImageBatch, start: int, stop: int) -> ImageBatch:
    return ImageBatch(batch.pixels[start:stop], batch.labels[start:stop], batch.ids[start:stop])


def _too_large() -> WorkError:
    return WorkError("out of memory with one image; keep fewer layers, heads or queries, or a smaller --img-size.")


def _outcome(output: object, labels: Tensor, of_other_classes: bool) -> Outcome | None:
    """Predictions, if the model returns class logits, alone or by that name; unknown where its classes are others."""
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        return None
    if of_other_classes:
        prediction = torch.full((len(output),), -1, device=output.device)
        return Outcome(labels.to(output.device), prediction, prediction * float("nan"))
    probability, prediction = output.float().softmax(-1).max(-1)
    return Outcome(labels.to(prediction.device), prediction, probability)
