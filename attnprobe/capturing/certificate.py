"""The proof that captured maps are what the model computed.

Question: trust the hooks, or prove them? Choice: prove them once per capture on the first images, per layer:
the rows of the softmax sum to 1, A times V is what the layer passes on, and the model's output is what it
is without us. A fused kernel that a hook missed, or a changed layer, fails here and not in a figure.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capturing.axes import softmax_of
from attnprobe.capturing.hooks import unfused, unwrap
from attnprobe.capturing.perturbation import locate
from attnprobe.capturing.places import Located
from attnprobe.capturing.product import Product
from attnprobe.capturing.recorder import Recorder, factors_of
from attnprobe.capturing.recording import Recording, computing, layers_to_hook
from attnprobe.capturing.siblings import missing_siblings, refuse_missing
from attnprobe.capturing.softmax_trails import untraced
from attnprobe.capturing.tracing import Tracing
from attnprobe.core.devices import exact_products
from attnprobe.core.errors import CaptureError, InputError, option
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.memory import is_out_of_memory
from attnprobe.core.outputs import difference, equal, tensors_of
from attnprobe.core.sites import MAPS
from attnprobe.core.text import Shown

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Largest allowed deviation, relative to the largest value compared; a wrong matrix is off by 0.1 and more."""

OF_SHAPES = re.compile(r"shape|size|channel|dimension|height|width|match|Guard", re.IGNORECASE)
"""What the message of a model says that refuses images of another size or number of channels."""

OF_CHANNELS = re.compile(r"to have (\d+) channels")
"""What a convolution over pixels says of the number it has weights for."""

AT_ONCE = 96 << 20
"""Bytes of maps in one pass; longer sequences take several passes, a few layers each."""


OUTPUT = {True: "bit for bit", False: "within rounding", None: "not compared, it has no numbers"}
"""`Certificate.output_equal` in words."""


@dataclass(frozen=True, slots=True)
class LayerProof:
    """Proof of one layer: the numbers that were checked.

    Attributes:
        layer, route: which layer, read how.
        row_sum_error: largest |row sum - 1| of its softmax; None where one map is made of several softmaxes.
        value_error: largest |A V - what the layer computed| relative to the largest value; None where that does not
            show.
        rebuilt_error: largest |softmax of its scores, or of its queries times keys, - its softmax|; None where neither
            was to be kept.
    """

    layer: str
    route: str
    row_sum_error: float | None
    value_error: float | None
    rebuilt_error: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Certificate(Shown):
    """Proofs of a capture; they go into the file and the report.

    Attributes:
        layers: one `LayerProof` each.
        output_equal: the model's output with hooks equals the output without, bit for bit; None where it has no
            numbers, so that A V alone is proved.
        fused_difference: largest |output with the explicit softmax - output as the user runs it|, relative.
        n_images: how many images it was checked on.
        image_bytes: of the maps of one image, as the model computes them.
        missing: modules without a map whose siblings have one; captured without them on request.
        located: which rows are which image's, and where tokens are, by perturbation.
    """

    layers: tuple[LayerProof, ...]
    output_equal: bool | None
    fused_difference: float
    n_images: int
    image_bytes: int = 0
    located: Located = field(default_factory=Located)
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def facts(self) -> dict[str, object]:
        """The facts that a reader wants first, in words."""
        routes = Counter(layer.route for layer in self.layers)
        sums = [layer.row_sum_error for layer in self.layers if layer.row_sum_error is not None]
        products = [layer.value_error for layer in self.layers if layer.value_error is not None]
        rebuilt = [layer.rebuilt_error for layer in self.layers if layer.rebuilt_error is not None]
        return {
            "layers": len(self.layers),
            "read at": ", ".join(f"{route} {count}" for route, count in routes.items()),
            "rows of a softmax sum to 1 within": f"{max(sums):.0e}" if sums else "not checked",
            "map times V is off by at most": f"{max(products):.0e}" if products else "not checked",
            **({"softmax made again is off by at most": f"{max(rebuilt):.0e}"} if rebuilt else {}),
            "output of the model as without hooks": OUTPUT[self.output_equal],
            "each map is of its image": "proved" if self.located.images_proved else "assumed",
            "places of tokens": self.places_in_words(),
            **(
                {"layers parallel to the one before": ", ".join(self.located.parallel)} if self.located.parallel else {}
            ),
            **({"blocks without a map": ", ".join(self.missing)} if self.missing else {}),
            "images checked": self.n_images,
        }

    def places_in_words(self) -> str:
        """`proved 12 layers; assumed 2 (reason)`."""
        known = Counter((place.status, place.reason) for place in self.located.places.values())
        parts = [f"{status} {n}" + (f" ({why})" if why else "") for (status, why), n in known.items()]
        return "; ".join(parts) or "unknown"


def certify(
    model: nn.Module,
    pixels: Tensor,
    *,
    watch: bool | None = None,
    scores: bool = False,
    factors: bool = False,
    allow_missing: bool = False,
    amp: torch.dtype | None = None,
    many: bool = False,
) -> Certificate:
    """Run the checks on `pixels` ([image, 3, row, col], two images are enough).

    The model is traced besides: what was captured must be the factor of each product with V, and there must be no
    product that was not captured.

    Args:
        watch: as in `Recording`.
        scores, factors: these are to be captured, too, and the softmax must follow from them.
        allow_missing: name blocks without a map whose siblings have one, and go on.
        amp: type of autocast, as in `Recording`.
        many: more than two images will be captured at once.

    Raises:
        CaptureError: what would be captured is not what the model computes; names the layer.
    """
    inner = unwrap(model)
    watch = True if scores or factors else watch
    layers, watched = layers_to_hook(inner, watch)
    asked = {"error_of": True, "scores": scores, "factors": factors}
    extras = [name for name, wanted in asked.items() if wanted]
    with computing(pixels.device, amp), exact_products():
        # First as the user runs it, since what follows differs from it step by step, and each step is compared: the
        # explicit softmax without hooks, then the same with hooks.
        as_run = tensors_of(_run(inner, pixels))
        with unfused(inner.modules(), layers), untraced() if watched else nullcontext():
            unhooked = tensors_of(inner(pixels))
        fused_difference = difference(as_run, unhooked)
        dtype = _precision(inner, as_run)
        if fused_difference > TOLERANCE[dtype]:  # it may compute in less than its output shows, under autocast
            dtype = _lowest_inside(inner, pixels, dtype)
        if not (fused_difference <= TOLERANCE[dtype] or _is_rounding(inner, pixels, watch)):
            raise _off("an explicit softmax", fused_difference, dtype)
        found = _of_layers(inner, pixels, unhooked, dtype, watch=watch, extras=extras, allow_missing=allow_missing)
    with computing(pixels.device, amp), exact_products(), unfused(inner.modules(), ()):
        located = locate(inner, pixels, many)
    same = equal(found.output, unhooked) if unhooked else None
    image_bytes = found.n_bytes // len(pixels)
    return Certificate(tuple(found.proofs), same, fused_difference, len(pixels), image_bytes, located, found.missing)


@dataclass(frozen=True, slots=True)
class _Layers:
    """Proofs of all layers, the model's last output with hooks, bytes of all maps, and modules without a map."""

    proofs: list[LayerProof]
    output: list[Tensor]
    n_bytes: int
    missing: tuple[str, ...]


def _of_layers(
    model: nn.Module,
    pixels: Tensor,
    unhooked: list[Tensor],
    dtype: torch.dtype,
    *,
    watch: bool | None,
    extras: Sequence[str],
    allow_missing: bool,
) -> _Layers:
    """Capture and check every layer, as many in one pass as fit; no map outlives it.

    Args:
        unhooked: the model's output without hooks, which must not change, and `dtype`, its precision.
        extras: what the tracing tells of products; see `Tracing`.
    """
    layers, _ = layers_to_hook(model, watch)
    routes = {layer.name: layer.route for layer in layers}
    recording = Recording(model, MAPS, watch=watch, budget=AT_ONCE, allow_missing=allow_missing)
    proofs: list[LayerProof] = []
    around: set[str] = set()
    n_bytes = 0
    with recording as recorder:
        while not proofs or recorder.first:
            products: dict[str, Product] = {}
            noting = partial(_note, recorder, products)
            with Tracing(model, noting, extras=extras, allow_missing=allow_missing) as tracing:
                hooked = tensors_of(model(pixels))
            error = difference(hooked, unhooked)
            if not error <= TOLERANCE[dtype]:
                raise _off("hooks", error, dtype)
            fired = recorder.fired
            around |= {call.name for product in products.values() for call in product.calls}
            taken = recorder.take()
            n_bytes += sum(maps.values.nbytes for maps in taken)
            proofs += _proofs(taken, products, routes, "factors" in extras)
            taken = []
    tracing.ran.modules |= tracing.calls.scripted
    missing = missing_siblings(tracing.ran, fired, around)
    if not allow_missing:
        refuse_missing(missing, tracing.ran)
    return _Layers(proofs, hooked, n_bytes, tuple(missing))


def _note(recorder: Recorder, products: dict[str, Product], product: Product) -> None:
    """Keep the first product of a layer whose maps are kept in this pass."""
    if not recorder.knows(product.layer):
        raise CaptureError(f"{product.layer} computes attention that no hook reads; capture with watch=True.")
    if recorder.keeps(product.layer):
        products.setdefault(product.layer, product)


def _off(cause: str, error: float, dtype: torch.dtype) -> CaptureError:
    return CaptureError(
        f"the model's output with {cause} is off by {error:.1e} of its size (allowed {TOLERANCE[dtype]:.0e}); "
        "is the model in eval mode, and deterministic?"
    )


def _is_rounding(model: nn.Module, pixels: Tensor, watch: bool | None) -> bool:
    """True if the fused and the explicit softmax of this model are one function, by computing both in float64.

    Scores in the hundreds, such as those of nearly one-hot rows, make float32's rounding grow from layer to layer.
    """
    try:
        model, pixels = copy.deepcopy(model).cpu().double(), pixels.cpu().double()
        fused = tensors_of(model(pixels))
        layers, watched = layers_to_hook(model, watch)
        with unfused(model.modules(), layers), untraced() if watched else nullcontext():
            explicit = tensors_of(model(pixels))
    except (RuntimeError, TypeError):  # a model that insists on its own precision
        return False
    precise = bool(fused) and all(tensor.dtype == torch.float64 for tensor in fused)
    return precise and difference(fused, explicit) <= TOLERANCE[torch.float64]


def _run(model: nn.Module, pixels: Tensor) -> Any:
    """The model's output as its user runs it.

    Raises:
        InputError: the model refuses pixels of this shape, or needs further arguments.
    """
    try:
        return model(pixels)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        lacks = isinstance(error, TypeError) and "required" in str(error)
        keyword = isinstance(error, TypeError) and not _takes_pixels_first(model)
        if is_out_of_memory(error) or not (lacks or keyword or OF_SHAPES.search(str(error))):
            raise
        wanted = getattr(getattr(model, "patch_embed", None), "img_size", None)
        size = f"; it was built for {wanted[0]} x {wanted[1]} pixels" if wanted else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if keyword:
            advice = "Pixels must be its first argument: wrap it in a module whose forward(x) hands x on by name."
        elif lacks:
            advice = "Give further arguments of its forward pass as inputs={name: value}."
        elif (channels := OF_CHANNELS.search(str(error))) and channels[1] == "1":
            grey = option("mean", 0.5, python="spec=ap.input_spec(model).grey() of ap.load_images")
            advice = f"It takes grey images: give one mean and one std, as in {grey}."
        elif channels and channels[1] != "3":
            advice = f"Files are read as 3 channels: pass pixels [image, {channels[1]}, row, col], already normalised."
        elif isinstance(model, torch.fx.GraphModule) and "Guard" in reason:
            advice = "It was exported for images of another number or size; export it with dynamic_shapes."
        else:
            advice = (
                "ap.load_images(..., spec=ap.input_spec(model)) makes images for it; where its size is not known, "
                "spec=ap.InputSpec(size=(ROWS, COLS))."
            )
        failed = f"{type(model).__name__} cannot run on pixels {tuple(pixels.shape)}"
        raise InputError(f"{failed}: {reason.rstrip('.'):.160}{size}. {advice}") from error


def _takes_pixels_first(model: nn.Module) -> bool:
    """False if every argument of the model's forward pass is given by name alone."""
    kinds = {parameter.kind for parameter in signature(model.forward).parameters.values()}
    return bool(kinds & {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL})


def _precision(model: nn.Module, output: Sequence[Tensor]) -> torch.dtype:
    """The least precise floating-point type of a model's parameters and output."""
    types = [x.dtype for x in (*model.parameters(), *output) if x.dtype in TOLERANCE]
    return max(types, key=TOLERANCE.__getitem__, default=torch.float32)


def _lowest_inside(model: nn.Module, pixels: Tensor, known: torch.dtype) -> torch.dtype:
    """The least precise type of any module's output in one forward pass."""
    types = {known}

    def note(_module: nn.Module, _args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.dtype in TOLERANCE:
            types.add(out.dtype)

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(note).remove)
        model(pixels)
    return max(types, key=TOLERANCE.__getitem__)


def _proofs(
    taken: Sequence[AttentionMaps],
    products: Mapping[str, Product],
    routes: Mapping[str, str],
    factors: bool,
) -> Iterator[LayerProof]:
    """The proof of every layer, in the order they ran as far as that is known."""
    captured: dict[str, dict[str, Tensor]] = {}
    for maps in taken:
        for i, layer in enumerate(maps.layers):
            captured.setdefault(layer, {})[maps.site] = maps.values[:, i]
    for layer in [*products, *(name for name in captured if name not in products)]:
        sites, product = captured[layer], products.get(layer)
        types = [values.dtype for values in sites.values()]
        types += [product.value.dtype] if product is not None and product.value is not None else []
        tolerance = max(TOLERANCE[dtype] for dtype in types)
        row_sum_error = None
        if "weights" in sites:
            row_sum_error = _row_sum_error(layer, sites["weights"], max(tolerance, 1e-3))
        value_error = None
        if product is not None and product.error_of is not None:
            used = sites["effective" if "effective" in sites else "weights"]
            windows, _, n_queries = product.effective.shape[1:4]  # which a captured map has one after the other
            value_error = product.error_of(used.unflatten(2, (windows, n_queries)).transpose(1, 2))
            if not value_error <= tolerance:
                raise CaptureError(
                    f"{layer}: the captured map times V is off by {value_error:.1e} from what the layer computed "
                    f"(allowed {tolerance:.0e}); its attention is not the captured matrix."
                )
        route = routes.get(layer) or (product.route if product else "functional")
        rebuilt_error = None if product is None else _rebuilt_error(product, factors, tolerance)
        yield LayerProof(layer, route, row_sum_error, value_error, rebuilt_error)


def _row_sum_error(layer: str, weights: Tensor, tolerance: float) -> float:
    """Largest |row sum - 1|; rows of zeros belong to queries that may attend nowhere.

    Rows that are not finite prove nothing and refute nothing; measurements count and name them.
    """
    sums = weights.float().sum(-1)
    error = torch.where((sums == 0) | ~sums.isfinite(), 0, (sums - 1).abs()).max().item()
    if not error <= tolerance:
        raise CaptureError(
            f"{layer}: rows of its softmax sum to 1 only within {error:.1e}; this layer is not a softmax."
        )
    return error


def _rebuilt_error(product: Product, factors: bool, tolerance: float) -> float | None:
    """Largest difference between a softmax and that of its scores, or of its queries times keys, where kept."""
    weights, rebuilt = product.weights, []
    if product.scores is not None:
        rebuilt.append(softmax_of(product.scores))
    if factors:
        queries, keys = factors_of(product)
        rebuilt.append(softmax_of(queries @ keys.mT).unsqueeze(1))
    if weights is None or not rebuilt:
        return None
    error = max((again - weights).nan_to_num(nan=0.0).abs().max().item() for again in rebuilt)
    if not error <= tolerance:
        raise CaptureError(
            f"{product.layer}: the softmax of what was captured is off by {error:.1e} from the layer's own (allowed "
            f"{tolerance:.0e}); keep maps."
        )
    return error
