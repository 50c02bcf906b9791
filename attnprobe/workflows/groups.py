"""Runs of one method, by a name and a pattern: `vit=runs/vit_s*`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.core.examined import Examined
from attnprobe.io.remote import matching, place
from attnprobe.io.run import maps_of
from attnprobe.store.reader import MapReader

Named = Mapping[str, Sequence[Path | str]]

UNTRAINED = ".untrained.h5"
"""Ending of the baselines of maps files, which a pattern such as *.h5 also matches."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a comparison: a method with several runs, or a single run."""

    name: str
    runs: tuple[Examined, ...]

    @property
    def is_method(self) -> bool:
        return len(self.runs) > 1

    def __str__(self) -> str:
        return f"{self.name} ({len(self.runs)} runs)" if self.is_method else self.name


def named_groups(texts: Sequence[Path | str]) -> dict[str, list[Path]] | None:
    """`["vit=runs/vit_s*", ...]` -> the paths of each name; None where no text names a group.

    A name may come several times, as a shell that expands `vit=runs/vit_s{0,1}` makes it. A path that is there is a
    path, whatever is in its name.

    Raises:
        InputError: single runs among groups, a pattern that matches nothing, no name, or what `check_paths` says.
    """
    parts = [(str(text), "", "") if Path(text).exists() else str(text).partition("=") for text in texts]
    # the = of a URL's key, or of a metric's setting, comes behind a colon
    parts = [(name + sign + rest, "", "") if ":" in name else (name, sign, rest) for name, sign, rest in parts]
    if not any(sign for _, sign, _ in parts):
        return None
    if alone := next((name for name, sign, _ in parts if not sign), None):
        raise InputError(f"{alone} is a single run among groups: give it runs like it, as in NAME={alone}*.")
    groups: dict[str, list[Path]] = {}
    for name, _, pattern in parts:
        if not name or not pattern:
            raise InputError(f"'{name}={pattern}' must be NAME=PATTERN, as in \"vit=runs/vit_s*\".")
        groups.setdefault(name, []).extend(_matched(name, pattern))
    check_paths(groups)
    return groups


def check_paths(groups: Named) -> None:
    """Raises InputError for a group of one run, or a run that is named twice."""
    owner: dict[Path, str] = {}
    for name, paths in groups.items():
        if len(paths) < 2:
            raise InputError(
                f"group {name} has {len(paths)} run{'' if len(paths) == 1 else 's'}: a method needs two or more, as "
                f"`attnprobe train RECIPE --seeds 0-4 -o runs/{name}` makes them."
            )
        for path in map(place, paths):
            if (real := maps_of(path).resolve()) in owner:
                both = f"groups {owner[real]} and {name}" if owner[real] != name else f"group {name} twice"
                raise InputError(f"{path} is in {both}: name every run once.")
            owner[real] = name


def check_runs(sides: Sequence[Side]) -> None:
    """Raises InputError where runs of one method differ in more than their seed, or one run is there twice."""
    owner: dict[str, tuple[str, str]] = {}
    for side in sides:
        first, *others = side.runs
        for other in others:
            if differing := _differing(_facts(first), _facts(other)):
                raise InputError(
                    f"group {side.name}: {first.name} and {other.name} differ in {differing}; runs of one method "
                    "differ in their seed alone, so make them groups of their own."
                )
        for run in side.runs:
            sha = run.info.get("checkpoint_sha256")
            if sha and sha in owner:
                name, earlier = owner[sha]
                raise InputError(
                    f"{run.name} of {side.name} and {earlier} of {name} are the same checkpoint: name every run once."
                )
            owner[sha or run.name] = side.name, run.name


def _matched(name: str, pattern: str) -> list[Path]:
    found = [path for path in matching(pattern) if not path.name.endswith(UNTRAINED)]
    if not found:
        raise InputError(
            f"{name}={pattern} matches no run and no maps file; quote the pattern, and look for its folder."
        )
    return found


def _facts(e: Examined) -> dict[str, Any]:
    """Facts that must be equal in all runs of a method."""
    from attnprobe.training import MAY_CHANGE  # late: runs that are no method need no trainer, which takes seconds

    config = e.maps.attrs.get("config", {}) if isinstance(e.maps, MapReader) else {}
    shapes = () if e.maps is None else e.maps.shapes()
    recipe = {name: value for name, value in (config.get("recipe") or {}).items() if name not in MAY_CHANGE | {"seed"}}
    return {
        "depth": len(e.layers),
        "heads": "/".join(str(len(shape.heads)) for shape in shapes),
        "tokens": e.grid.n_tokens,
        "model": e.info.get("model"),
        **recipe,
    }


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """`depth (16, 24), lr (0.001, 0.003)`: what differs, three at most."""
    names = [name for name in dict.fromkeys((*one, *two)) if one.get(name) != two.get(name)]
    listed = ", ".join(f"{name} ({one.get(name)}, {two.get(name)})" for name in names[:3])
    return listed + (f" and {len(names) - 3} more" if len(names) > 3 else "")
