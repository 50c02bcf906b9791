"""plan.json: the capture in all that changes its maps, by which a second run can tell whether it may resume it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, MapsFileError, option
from attnprobe.core.text import short
from attnprobe.io import fs
from attnprobe.io.config import from_mapping
from attnprobe.store.layout import SCHEMA_VERSION, Layout

MOST_BYTES = 1 << 30
"""Maximum size of plan.json, which names every image; a million take 100 MB."""


def canonical(data: Any) -> str:
    """JSON with one spelling only: sorted keys, no spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(data: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Subject of a capture; see `CapturePlan`."""

    model: str
    variant: str = ""
    checkpoint_sha256: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    seed: int | None = None
    device: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CapturePlan(Facts):
    """A capture that is about to begin; two captures with equal plans give the same maps.

    Attributes:
        image_ids: all images in the order they are stored; no id twice.
        labels: one class per image, -1 where unknown; empty if the labels come with the maps.
        model, variant, checkpoint_sha256, config: which network, with which weights.
        versions: of torch, timm, attnprobe.
        data: which images, such as "digits/val".
        settings: sites, dtype of the forward pass and all else that changes the numbers.

    Raises:
        InputError: no image, an id twice, or another number of labels than images.
    """

    image_ids: tuple[str, ...]
    labels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n, distinct = len(self.image_ids), len(set(self.image_ids))
        if n == 0:
            raise InputError("a capture needs at least one image, got none; check the folder or the data set's split.")
        if n != distinct:
            raise InputError(f"every image needs an id of its own, got {distinct} ids for {n} images.")
        if self.labels and len(self.labels) != n:
            raise InputError(f"a plan needs one label per image or none, got {len(self.labels)} for {n} images.")

    def facts(self) -> dict[str, Any]:
        """Everything as plain JSON, the lists of images replaced by their hashes."""
        facts = json.loads(canonical({f.name: getattr(self, f.name) for f in fields(self)}))
        ids, labels = facts.pop("image_ids"), facts.pop("labels")
        return {**facts, "n_images": len(ids), "image_ids_sha256": digest(ids), "labels_sha256": digest(labels)}


@dataclass(frozen=True, kw_only=True)
class _Pinned(Facts):
    """Types of the facts in a plan."""

    n_images: int
    batch_images: int | None = None

    def __post_init__(self) -> None:
        if self.n_images < 1 or (self.batch_images is not None and self.batch_images < 1):
            raise ValueError(f"{self.n_images} images in batches of {self.batch_images}")


@dataclass(frozen=True)
class _Config:
    """Types of those facts about a model that reports and figures use."""

    class_names: tuple[str, ...] | None = None
    images: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] | None = None
    model_args: Mapping[str, Any] | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Pinned:
    """A plan with all that was decided when it started; every shard names it by `plan_id`.

    Attributes:
        facts: `CapturePlan.facts` of the plan, and `batch_images` if that was pinned: images of one forward pass, which
            decides the last bits of what is computed. Among the facts, where attnprobe 0.1.0 reads it as one more.
        created: when it started; makes the id one of this run.
    """

    facts: Mapping[str, Any]
    layout: Layout
    created: str

    @property
    def batch_images(self) -> int | None:
        return self.facts.get("batch_images")

    @property
    def asked(self) -> dict[str, Any]:
        """The facts without what was decided when the capture started: as `CapturePlan.facts` gives them."""
        return {name: value for name, value in self.facts.items() if name != "batch_images"}

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "facts": dict(self.facts),
            "layout": asdict(self.layout, dict_factory=_without_none),
            "created": self.created,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Pinned":
        """The plan in a file, every value of the type that its readers expect.

        Raises:
            InputError: a value of another type, or out of bounds; the message names it.
        """
        pinned = from_mapping(cls, {name: data[name] for name in ("facts", "layout", "created")}, source="plan")
        from_mapping(_Pinned, {f.name: pinned.facts[f.name] for f in fields(_Pinned) if f.name in pinned.facts})
        config = pinned.facts.get("config", {})
        from_mapping(_Config, {f.name: config[f.name] for f in fields(_Config) if f.name in config})
        return pinned

    @property
    def plan_id(self) -> str:
        return digest(self.to_json())

    @property
    def n_images(self) -> int:
        return self.facts["n_images"]

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_images / self.layout.shard_images)

    def shard(self, k: int) -> range:
        """Positions of the images of shard k."""
        size = self.layout.shard_images
        return range(k * size, min(self.n_images, (k + 1) * size))

    def description(self, n_images: int) -> dict[str, Any]:
        """Facts about the capture for whoever reads `n_images` of its images, as plain Python."""
        facts = {name: value for name, value in self.facts.items() if name not in ("image_ids_sha256", "labels_sha256")}
        return {
            **facts,
            "format": "attnprobe",
            "schema_version": SCHEMA_VERSION,
            "created": self.created,
            "dtype": self.layout.dtype,
            "n_images": n_images,
            "complete": n_images == self.n_images,
        }


def _without_none(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}


@dataclass(frozen=True)
class _Images:
    """Types of the lists in plan.json."""

    image_ids: tuple[str, ...]
    labels: tuple[int, ...]


def write_plan(folder: Path, plan: CapturePlan, pinned: Pinned) -> None:
    """Write plan.json, once: FileExistsError if it is there."""
    data = {**pinned.to_json(), "image_ids": list(plan.image_ids), "labels": list(plan.labels)}
    fs.write_file(folder / "plan.json", canonical({**data, "plan_id": pinned.plan_id}).encode())


def read_plan(folder: Path) -> tuple[Pinned, tuple[str, ...], tuple[int, ...]]:
    """The plan of NAME.parts, its image ids and its labels.

    Raises:
        MapsFileError: there is no plan, it is damaged, or of a newer schema.
    """
    path = folder / "plan.json"
    try:
        text = fs.read_regular(path, MOST_BYTES).decode()
    except FileNotFoundError:
        raise MapsFileError(
            f"{folder} holds no maps: expected a run with maps.h5, or NAME.parts with plan.json. Make maps with "
            "`attnprobe capture`."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MapsFileError(f"{path} cannot be read: {error}. Capture it again.") from None
    damaged = MapsFileError(f"{path} is damaged: it does not match its own hash. Capture it again.")
    try:
        data = fs.parse_json(text)
        plan_id, ids, labels = data.pop("plan_id"), data.pop("image_ids"), data.pop("labels")
        require_known_schema(path, data["schema_version"])
        whole = canonical({**data, "plan_id": plan_id, "image_ids": ids, "labels": labels}) == text
        pinned = Pinned.from_json(data)
        lists = digest(ids), digest(labels)
        facts = pinned.facts["image_ids_sha256"], pinned.facts["labels_sha256"]
        from_mapping(_Images, {"image_ids": ids, "labels": labels})
        if len(ids) != pinned.n_images:  # before anything counts to a number that the file only says
            raise InputError(f"it names {len(ids)} of its {pinned.n_images} images")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, MapsFileError):
            raise
        if isinstance(error, InputError):
            raise MapsFileError(f"{path} is damaged: {error}. Capture it again.") from None
        raise damaged from None
    if not whole or digest(data) != plan_id or lists != facts:
        raise damaged
    return pinned, tuple(ids), tuple(labels)


def require_known_schema(path: Path, version: Any) -> None:
    """Refuse what a later attnprobe wrote."""
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise MapsFileError(
            f"{path} has schema {version}, this attnprobe reads 1 to {SCHEMA_VERSION}; upgrade attnprobe."
        )


def require_same_plan(folder: Path, plan: CapturePlan, dtype: str) -> Pinned:
    """The plan that began in NAME.parts, if it is the one that is wanted now.

    Raises:
        InputError: it is another; the message names the first field that differs.
    """
    pinned, ids, _ = read_plan(folder)
    then, now = pinned.asked, plan.facts()
    anew = option("overwrite", python="overwrite=True")
    remedy = f"Restore it to go on, choose another output, or start anew with {anew}."
    if then["image_ids_sha256"] != now["image_ids_sha256"]:
        gone, new = set(ids) - set(plan.image_ids), set(plan.image_ids) - set(ids)
        change = next((f"{min(s)!r} is {how}" for s, how in ((gone, "gone"), (new, "new")) if s), "in another order")
        raise InputError(
            f"{folder} was begun with other images: {len(ids)} then, {len(plan.image_ids)} now ({change}). {remedy}"
        )
    difference = _first_difference(then, now)
    if difference:
        name, before, after = difference
        raise InputError(f"{folder} was begun with another {name}: {before} then, {after} now. {remedy}")
    if pinned.layout.dtype != dtype:
        raise InputError(f"{folder} was begun with dtype {pinned.layout.dtype}, now it is {dtype}. {remedy}")
    return pinned


def _first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Name and both values of the first field that differs, dotted where it lies inside another."""
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            inner = _first_difference(before, after)
            assert inner is not None, "unequal dictionaries differ in some key"
            return f"{name}.{inner[0]}", *inner[1:]
        return name.removesuffix("_sha256"), short(canonical(before), 60), short(canonical(after), 60)
    return None
