"""Checked, frozen configurations from YAML files and `--set key=value`."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.io import fs

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str = "options") -> T:
    """Build a configuration dataclass from plain values.

    Raises:
        InputError: an unknown name (with the nearest known one), a value of another type, or one the class refuses.
    """
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise InputError(f"{source}: no option named {name!r}.{did_you_mean(str(name), hints)}")
    converted = {name: _convert(value, hints[name], f"{source}: {name}") for name, value in values.items()}
    try:
        return cls(**converted)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error


MOST_BYTES = 1 << 20
"""A recipe has some kilobytes."""


class _PlainLoader(yaml.SafeLoader):
    """Plain values without aliases, nine lines of which can stand for a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)


def read_yaml(path: Path, *, follow: bool = True) -> dict[str, Any]:
    """A YAML mapping as a dictionary.

    Args:
        follow: whether the file may be a symbolic link.

    Raises:
        InputError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.load(fs.read_regular(path, MOST_BYTES, follow=follow).decode(), Loader=_PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # digits without end, nesting without end
        raise InputError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `option: value` lines, got {type(values).__name__}.")
    return values


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["epochs=2", "lr=1e-3"]` -> `{"epochs": 2, "lr": 0.001}`; values are read as YAML.

    Raises:
        InputError: a setting without "=", or a value that is not YAML.
    """
    parsed = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise InputError(f"{setting!r}: expected NAME=VALUE, as in epochs=2.")
        try:
            parsed[name.strip().replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{setting!r}: the value is not YAML.") from error
    return parsed


def to_yaml(config: Any) -> str:
    """The configuration as YAML text that `from_mapping` reads back."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return yaml.safe_dump(values, sort_keys=False)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint`, without surprises: numbers widen, everything else must match."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, source=where)
    if origin is tuple:
        if not isinstance(value, list | tuple) or (Ellipsis not in arguments and len(value) != len(arguments)):
            raise InputError(f"{where}: expected a list of {len(arguments)} values, got {value!r}.")
        inner = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        return tuple(_convert(v, a, where) for v, a in zip(value, inner, strict=True))
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}.")
        return value
    plain: Any = origin or hint
    if plain is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    if plain is Any or (isinstance(value, plain) and not (plain is int and isinstance(value, bool))):
        return value
    raise InputError(f"{where}: expected {plain.__name__}, got {value!r}.")
