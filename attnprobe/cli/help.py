"""Help of a command: its examples, its first options, all others in a line each; everything with --help-all.

Question: how does help stay short when a command has thirty options? Choice: one page made from what tyro parses too
(signatures, dataclasses, their docstrings), in which every option stands with the first sentence of its text, those
marked `FIRST` before the others; --help-all prints whole texts. tyro's own page has neither an order nor a brief form.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from attnprobe.core.spec import FIRST

WIDTH = 80
COLUMN = 24
"""Widest flags that share a line with their text; wider ones stand above it."""

FULL_STOP = r"(?<=[^.])\. "
"""End of a sentence that another one follows; `...` ends none."""

VALUES = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}
"""Placeholder of a value whose option names none."""


@dataclass(frozen=True, slots=True)
class Option:
    """One argument of a command.

    Attributes:
        flags: such as `-o`, `--out`; none for a positional argument.
        value: placeholder of its value; empty for a switch.
        text: the help, whose first sentence is its short form.
        default: `MISSING` for one that must be given.
        first: people use it first.
    """

    flags: tuple[str, ...]
    value: str
    text: str
    default: object
    first: bool

    @property
    def call(self) -> str:
        """Its spelling on a command line: `-o, --out PATH`."""
        return " ".join(filter(None, (", ".join(self.flags), self.value)))

    @property
    def preset(self) -> str:
        """The default in brackets; empty where it is nothing, and the text says what that means."""
        if self.default is MISSING or not (self.default or type(self.default) is int):
            return ""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return f"[{' '.join(map(str, values))}]"

    @property
    def brief(self) -> str:
        """The first sentence, and the default."""
        return f"{re.split(FULL_STOP, self.text)[0].removesuffix('.')} {self.preset}".strip()

    @property
    def full(self) -> str:
        """The whole text, and the default."""
        return f"{self.text} {self.preset}".strip()


def options(thing: Any, given: object = None) -> Iterator[Option]:
    """The arguments of a command, or of a dataclass with the values of an instance, in order."""
    hints, texts = get_type_hints(thing, include_extras=True), _texts(thing)
    for name, default in _defaults(thing, given).items():
        kind, *marks = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if is_dataclass(kind):
            yield from options(kind, None if default is MISSING else default)
        elif tyro.conf.Suppress not in marks:
            spelling: Any = next((mark for mark in marks if hasattr(mark, "metavar")), tyro.conf.arg())
            flags = (*(spelling.aliases or ()), f"--{(spelling.name or name).replace('_', '-')}")
            flags = () if tyro.conf.Positional in marks else flags
            many = " ..." if get_origin(kind) is tuple and tyro.conf.UseAppendAction not in marks else ""
            yield Option(flags, (spelling.metavar or _value(kind)) + many, texts[name], default, FIRST in marks)


def command_help(name: str, command: Callable[..., Any], *, everything: bool = False) -> str:
    """The page of `attnprobe NAME --help`, or of --help-all."""
    every = list(options(command))
    placed, named = ([o for o in every if bool(o.flags) is flagged] for flagged in (False, True))
    first = [o for o in named if o.default is MISSING or o.first]
    rest = [o for o in named if o not in first]
    sections = {"": placed, "Options [default]:": [*first, *rest]}
    if any(o.first for o in named):
        sections |= {"Options [default]:": first, "Advanced:": rest}
    usage = [o.call if o.default is MISSING else f"[{o.call}]" for o in placed]
    usage += [f"{o.flags[0]} {o.value}" for o in named if o.default is MISSING]
    usage += ["[OPTIONS]"] if named else []
    column = min(COLUMN, max((len(o.call) for o in every), default=0)) + 4
    parts = [" ".join(["usage: attnprobe", name, *usage]), _description(command)]
    for title, chosen in sections.items():
        rows = [_row(o, column, everything=everything) for o in chosen]
        parts += ["\n".join([title, *rows] if title else rows)] if rows else []
    if not everything and any(re.search(FULL_STOP, o.text) for o in every):
        parts.append(f"attnprobe {name} --help-all says more about each option.")
    return "\n\n".join(parts)


def paragraphs(command: Callable[..., Any]) -> list[str]:
    """The docstring up to the arguments."""
    text, _, _ = (inspect.getdoc(command) or "?").partition("\nArgs:")
    return [part if part[0] == "$" else " ".join(part.split()) for part in text.strip().split("\n\n")]


def _description(command: Callable[..., Any]) -> str:
    """The opening of a command's help; examples stand under their title without an empty line."""
    lines: list[str] = []
    for part in paragraphs(command):
        if part[0] == "$":
            for example in part.splitlines():
                lines.append("  " + " \\\n      ".join(textwrap.wrap(example, 76, break_on_hyphens=False)))
        else:
            lines += ["", textwrap.fill(part, WIDTH)]
    return "\n".join(lines[1:])


def _row(option: Option, column: int, *, everything: bool) -> str:
    """The option and, in the column beside it, its text."""
    call, margin = f"  {option.call}", " " * column
    text = textwrap.fill(
        option.full if everything else option.brief, WIDTH, initial_indent=margin, subsequent_indent=margin
    )
    return f"{call}\n{text}" if len(call) > column - 2 else call + text[len(call) :]


def _texts(thing: Any) -> dict[str, str]:
    """Argument or field -> what its docstring says of it, on one line."""
    found: dict[str, str] = {}
    for owner in reversed(thing.__mro__[:-1]) if isinstance(thing, type) else (thing,):
        for said in docstring_parser.parse_from_object(owner).params:
            found[said.arg_name] = " ".join((said.description or "").split())
    return found


def _defaults(thing: Any, given: object) -> dict[str, object]:
    """Argument or field -> its default, or the value of the instance that is given; `MISSING` without one."""
    if isinstance(thing, type):
        found = {f.name: getattr(given, f.name, f.default) for f in fields(thing)}
    else:
        found = {name: each.default for name, each in inspect.signature(thing).parameters.items()}
    absent = (inspect.Parameter.empty, tyro.MISSING)
    return {name: MISSING if any(value is a for a in absent) else value for name, value in found.items()}


def _value(kind: Any) -> str:
    """Placeholder of a value: `a|b` for choices, `N` for an integer."""
    inner = [part for part in get_args(kind) if part not in (NoneType, ...)]
    if get_origin(kind) is Literal:
        return "|".join(map(str, inner))
    if get_origin(kind) in (Union, UnionType, tuple):
        return "|".join(dict.fromkeys(map(_value, inner)))
    return VALUES[kind]
