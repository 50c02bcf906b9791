"""Examined models made of formulas: what a report gets, without a model, with every number known."""

import math
from dataclasses import replace

import numpy as np

from attnprobe.core.examined import AttendedImage, Examined, Precision
from attnprobe.core.maps import TokenGrid
from attnprobe.core.measurement import Measurement
from attnprobe.metrics import METRICS
from attnprobe.metrics.head_types import TYPES


def measurement(name, values, *, site="weights", is_effective=True, settings=None, coords=None, images=40, spread=0.01):
    """`values` [*axes] seen on `images` images that scatter a little around them; summarised by the metric itself."""
    metric = METRICS[name].with_settings(**(settings or {}))
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(len(name))
    noise = spread * rng.standard_normal((images, *[1] * values.ndim))
    per_image = values + (noise - noise.mean() if images > 1 else 0)
    std = per_image.std(0, ddof=1) if images > 1 else np.full_like(values, np.nan)
    half = 1.96 * std / math.sqrt(images)
    grid = TokenGrid(4, 4)
    value_range = metric.value_range
    if metric.narrow_range:
        value_range = metric.narrow_range(stochastic=site == "weights", **metric.all_settings)
    m = Measurement(
        metric=name,
        site=site,
        stage="trunk",
        is_effective=is_effective,
        axes=metric.axes,
        value_range=value_range,
        unit=metric.unit,
        mean=values,
        std=std,
        ci=np.stack([values - half, values + half]),
        n_images=images,
        n_excluded=0,
        settings={**metric.all_settings, "interval": "bootstrap", "bootstrap": 20, "bootstrap_seed": 0},
        coords=coords or (metric.coords(grid=grid, **metric.all_settings) if metric.coords else {}),
        per_image=per_image,
        image_ids=tuple(f"image{i}" for i in range(images)),
        explanation=metric.explanation,
    )
    return replace(m, summary=metric.summarise(m)) if metric.summarise else m


def similar_blocks(layers, similar, *, images=40, **place):
    """Similar at every threshold up to 0.95: the blocks `similar`, numbered from 1; the others are half alike."""
    thresholds = METRICS["similar_blocks"].coords(grid=None, tau=0.9)["threshold"]
    ratio = np.array([[0.97 if block + 1 in similar else 0.5 for block in range(layers)] for _ in thresholds])
    ratio *= (np.array(thresholds) <= 0.95)[:, None] * 0.9 + 0.1
    ratio[:, 0] = 0
    return measurement("similar_blocks", ratio, images=images, **place)


def layer_cosine(layers, far):
    """1 on the diagonal, falling to `far` between the first and the last block."""
    block = np.arange(layers)
    return 1 - (1 - far) * abs(block[:, None] - block) / max(1, layers - 1)


def overlap(layers, similar):
    """Neighbours share 0.97 where the later one is similar, else 0.5; others 0.4."""
    values = np.full((layers, layers), 0.4)
    for block in range(1, layers):
        values[block, block - 1] = values[block - 1, block] = 0.97 if block + 1 in similar else 0.5
    np.fill_diagonal(values, 1)
    return values


def head_distance(layers, heads, twins):
    """Jensen-Shannon divergence 0.3 between heads; the first `twins` heads of the deeper half are the same."""
    distance = np.full((layers, heads, heads), 0.3)
    distance[layers // 2 :, :twins, :twins] = 0.001
    distance[:, range(heads), range(heads)] = 0
    return distance


def all_metrics(layers, heads, *, similar=(), far=0.2, twins=3, images=40, site="weights", is_effective=True):
    """One measurement of each metric, at one site."""
    here = {"site": site, "is_effective": is_effective, "images": images}
    depth, head = np.linspace(0, 1, layers)[:, None], np.linspace(0, 1, heads)
    result = {
        "layer_similarity": measurement("layer_similarity", layer_cosine(layers, far), **here),
        "layer_similarity_centred": measurement(
            "layer_similarity_centred", layer_cosine(layers, far - 0.4), settings={"center": "mean"}, **here
        ),
        "similar_blocks": similar_blocks(layers, similar, **here),
        "head_similarity": measurement("head_similarity", 1 - 0.9 * head_distance(layers, heads, twins), **here),
        "map_overlap": measurement("map_overlap", overlap(layers, similar), **here),
        "map_overlap_matched": measurement(
            "map_overlap_matched", [0.0, *overlap(layers, similar).diagonal(-1)], **here
        ),
        "rank_residual": measurement("rank_residual", 0.8 - 0.3 * depth - 0.2 * head, **here),
        "effective_rank": measurement("effective_rank", 1 + 8 * (1 - depth) * (1 - 0.5 * head), **here),
    }
    if site == "weights":
        result |= {
            "head_divergence": measurement("head_divergence", head_distance(layers, heads, twins), **here),
            "row_entropy": measurement("row_entropy", math.log(17) * (0.6 + 0.4 * depth - 0.2 * head), **here),
            "attention_distance": measurement("attention_distance", 8 + 6 * depth - 4 * head, **here),
            "prefix_mass": measurement("prefix_mass", (0.05 + 0.4 * depth * (1 - head))[..., None], **here),
            "content_overlap": measurement("content_overlap", 0.8 * overlap(layers, similar), **here),
            "sink_mass": measurement("sink_mass", 0.1 + 0.2 * depth * head, **here),
            "token_similarity": measurement("token_similarity", 0.1 + 0.7 * depth[:, 0], **here),
            "token_rank": measurement("token_rank", 9 - 4 * depth[:, 0], **here),
            "image_similarity": measurement("image_similarity", 0.9 - 0.7 * depth[:, 0], **here),
            "largest_activation": measurement("largest_activation", 9 + depth[:, 0], **here),
        }
    return result


def types(layers, heads):
    """`head_types`: dead and uniform heads in turn, the first of them not surely so."""
    share = np.zeros((layers, heads, len(TYPES)))
    kinds = np.indices((layers, heads)).sum(0) % 2
    for kind in (0, 1):
        share[..., kind] = kinds == kind
    share[0, 0, :2] = 0.6, 0.4
    names = [[TYPES[kind] for kind in row] for row in kinds]
    m = measurement("row_entropy", kinds)
    counts = {name: sum(row.count(name) for row in names) for name in TYPES}
    unknown = np.full(share.shape, math.nan)
    return replace(
        m, metric="head_types", axes=("layer", "head", "type"), mean=share, std=unknown, unit="", value_range=(0.0, 1),
        ci=np.stack([unknown, unknown]), coords={"type": list(TYPES)}, per_image=None, image_ids=(),
        summary={"types": names, "counts": counts, "of": layers * heads, "n_images": 40},
    )  # fmt: skip


def precision():
    """A number of 0.5 that is surer on more images; there are 40."""
    sizes = (8, 16, 32, 40, 64, 128)
    half = np.array([0.4, 0.3, 0.2, 0.1, 0.1, 0.05])
    return Precision(sizes, 0.5 - half, 0.5 + half, 0.5, 40, "a number")


def picture(layers, heads, *, image_id="val/7", label="seven", prediction="one", probability=0.83, side=32, grid=4):
    """A light disc on a dark ground, and attention that moves over it with depth."""
    y, x = np.mgrid[:side, :side] / side
    disc = (255 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)).astype(np.uint8)
    i = np.arange(grid * grid)
    attention = np.exp(-((i - np.arange(layers)[:, None]) ** 2) / 8)
    attention = (attention / attention.sum(1, keepdims=True)).reshape(layers, 1, grid, grid)
    return AttendedImage(
        image_id=image_id,
        pixels=np.stack([disc, disc // 2 + 60, 255 - disc], -1),
        label=label,
        prediction=prediction,
        probability=probability,
        attention=np.repeat(attention, heads, 1),
    )


def examined(
    name="vit_16",
    *,
    layers=16,
    heads=6,
    similar=(),
    untrained=(),
    effective_similar=None,
    images=40,
    pictures=1,
    **fields,
):
    """A model whose blocks `similar` are similar at the softmax; with `effective_similar`, another answer after it.

    `untrained`: similar blocks of the untrained baseline; None for no such baseline.
    """
    far = 0.9 if similar else 0.2
    measurements = all_metrics(layers, heads, similar=similar, far=far, images=images)
    uniform = all_metrics(layers, heads, similar=range(2, layers + 1), far=1.0, twins=heads, images=1)
    uniform["row_entropy"] = measurement("row_entropy", np.full((layers, heads), math.log(17)), images=1)
    baselines = {key: {"uniform": uniform[key]} for key in measurements if not key.startswith("token_")}
    if untrained is not None:
        fresh = all_metrics(layers, heads, similar=untrained, far=0.95 if untrained else 0.1, images=16)
        for key in measurements:
            baselines.setdefault(key, {})["untrained"] = fresh[key]
    measurements = {key: replace(m, baselines=baselines.get(key, {})) for key, m in measurements.items()}
    if effective_similar is not None:
        changed = all_metrics(layers, heads, similar=effective_similar, images=images, site="effective")
        measurements = {
            f"{key}@weights" if key in changed else key: replace(m, is_effective=False)
            for key, m in measurements.items()
        }
        measurements |= {key: replace(m, baselines=baselines.get(key, {})) for key, m in changed.items()}
    info = {
        "model": f"{name}_digits",
        "variant": "vit",
        "data": {"name": "digits", "split": "val"},
        "n_images": images,
        "n_classes": 10,
        "accuracy": 0.95,
        "seed": 0,
        "device": "cpu",
        "checkpoint_sha256": "ab" * 32,
        "versions": {"torch": "2.13.0", "timm": "1.0.31"},
    }
    names = tuple(f"blocks.{i}.attn" for i in range(layers))
    proofs = [{"layer": n, "route": "hook", "row_sum_error": 1e-7, "value_error": 2e-7} for n in names]
    given = {
        "info": info,
        "layers": names,
        "grid": TokenGrid(4, 4, patch=(8, 8)),
        "certificate": {"layers": proofs, "output_equal": True, "fused_difference": 3e-7, "n_images": 2},
        "pictures": tuple(picture(layers, heads, image_id=f"val/{i}") for i in range(pictures)),
    }
    return Examined(**{"name": name, "measurements": measurements, **given, **fields})
