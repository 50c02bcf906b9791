"""Parts of the pages that the package itself says: kinds, metrics, variants, recipes, commands."""

import re
from collections.abc import Callable, Iterator
from typing import Any


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def kinds() -> str:
    """A table of the kinds of collapse."""
    from attnprobe.reports.kinds import KINDS

    rows = (
        (f"**{kind.words}**<br>`{kind.name}`<br>{kind.meaning}", f"{kind.quantity}<br>`{kind.metric}`",
         f"{'below' if kind.below else 'above'} {kind.bar:.3g}", _linked(kind.why), _linked(kind.source))
        for kind in KINDS
    )  # fmt: skip
    return _table(("kind", "number, and its metric", "found", "why there", "source"), rows)


def metrics() -> str:
    """What `attnprobe explain` says of every metric."""
    import inspect

    from attnprobe.metrics import DERIVED, METRICS

    texts = {name: metric.explanation for name, metric in METRICS.items()}
    texts |= {name: inspect.getdoc(function) or "" for name, function in DERIVED.items()}
    return "\n\n".join(f"### {name}\n\n```text\n{text}\n```" for name, text in texts.items())


def variants() -> str:
    """A table of the variants."""
    from attnprobe.models.describe import variant_table

    head, *rows = variant_table()
    return _table(tuple(head), (tuple(map(_linked, row)) for row in rows))


def recipes() -> str:
    """A table of the recipes: name, model, images."""
    from attnprobe.training import RECIPES, read_recipe

    found = ((name, read_recipe(name)) for name in RECIPES)
    return _table(
        ("recipe", "model", "images", "epochs"),
        ((f"`{name}`", f"`{r['model']}`", f"`{r['dataset']}`", str(r.get("epochs", ""))) for name, r in found),
    )


def commands() -> str:
    """The whole help of every command."""
    from attnprobe.cli.app import COMMANDS
    from attnprobe.cli.help import command_help

    pages = ((name, command_help(name, command, everything=True)) for name, command in COMMANDS.items())
    return "\n\n".join(f"## attnprobe {name}\n\n```text\n{page}\n```" for name, page in pages)


MADE: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (kinds, metrics, variants, recipes, commands)
}  # fmt: skip


def on_page_markdown(markdown: str, **_more: Any) -> str:
    """A page with every `<!-- name -->` of `MADE` replaced by what that makes."""
    return re.sub(r"<!-- (\w+) -->", lambda match: MADE[match[1]](), markdown)
