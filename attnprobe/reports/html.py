"""One self-contained page: verdict, the figure that shows it, explorer, all figures, summary, and what they rest on."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnprobe.core.examined import Examined
from attnprobe.core.text import one_run_each, visible
from attnprobe.reports.drawing import as_uri
from attnprobe.reports.figures import WIDTH, sections
from attnprobe.reports.json_report import plain
from attnprobe.reports.kind_rows import kind_rows
from attnprobe.reports.numbers import NONE, accuracy_words, settings_text
from attnprobe.reports.removal import removal_rows
from attnprobe.reports.tables import by_question, summary_metrics, summary_table
from attnprobe.reports.verdict import verdict
from attnprobe.view import page
from attnprobe.view.described import Viewed, explorable, left_out
from attnprobe.view.embedded import Embedded, embed, viewer_command

PAGE_BYTES = 5_000_000
"""Size of the whole page: a mail takes it, and a phone opens it at once. The explorer gets what the rest leaves."""
KIND_WIDTH = 3.6
"""Width in inches of the figure of a kind of collapse: three fit side by side."""
OF_EXPLORER = 60_000
"""Size of the explorer's script, style and words."""


def to_html(runs: Sequence[Examined]) -> str:
    """The page; loads nothing, runs one script of ours, and shows text from outside as text."""
    environment = Environment(
        loader=PackageLoader("attnprobe.reports"),
        autoescape=True,  # for every template, whatever its name ends in
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [run for e in runs for run in (e, e.untrained) if run is not None]
    explained = {m.metric: m.explanation for e in runs for m in e.measurements.values() if m.explanation}
    anchors = {metric: f"explanation-{number}" for number, metric in enumerate(explained, 1)}
    judged = [(e, verdict(e)) for e in runs]
    kinds, labels = kind_rows(judged, KIND_WIDTH, 2 * WIDTH), summary_metrics(shown)
    summary = summary_table(shown)
    measured = {label: metric for label, metric in labels.items() if label in summary.index}
    parts = {
        "runs": [(e, found, _about(e)) for e, found in judged],
        "kinds": kinds,
        "deciding": next((row for row in kinds if row.drawing), None),
        "explained": explained,
        "anchors": anchors,
        "anchor_of": {label: anchors.get(metric) for label, metric in labels.items()},
        "summary": {label: cells for label, *cells in summary.itertuples(name=None)},
        "columns": list(summary.columns),
        "questions": by_question(measured),
        "scope": one_run_each(len(runs)) if len(runs) > 1 else "",
        "sections": sections(runs),
        "evidence": [(e.name, removal_rows(e.evidence)) for e in runs if e.evidence is not None and e.evidence.single],
        "metrics": [(e.name, m, settings_text(m)) for e in runs for m in e.measurements.values()],
        "provenance": _provenance(runs),
        "certificates": [(e, proof_of(e.certificate)) for e in runs],
        "without_images": [e.name for e in runs if e.maps is not None and not e.pictures],
        "with_images": with_images(runs),
    }
    template = environment.get_template("report.html")
    plain_page = template.render(parts, explorer=None, unexplored=[])
    explorer = explorer_of(runs, PAGE_BYTES - len(plain_page.encode("utf-8", "replace")) - OF_EXPLORER)
    if explorer is None:
        viewed = _viewed(runs)
        no_room = [f"No image's maps fit into this page; {viewer_command(viewed)} shows them all."]
        unexplored = no_room if any(explorable(run.maps) for run in viewed) else left_out(viewed)
        return template.render(parts, explorer=None, unexplored=unexplored)
    made = {
        "section": Markup(page.section(explorer.index, explorer.maps)),  # escaped there
        "style": Markup(page.template("explorer.css")),
        "policy": Markup(page.script_hash()),
    }
    return template.render(parts, explorer=made, unexplored=[])


def with_images(runs: Sequence[Examined]) -> str:
    """The command that makes this report with photographs."""
    paths = [str(getattr(e.maps, "path", None) or "MAPS") for e in runs]
    images = (runs[0].info.get("images") or {}).get("data") or "FOLDER"
    return shlex.join(["attnprobe", "report", *map(visible, paths), "--data", visible(str(images))])


def _about(e: Examined) -> str:
    """Line below a run's name: model, accuracy, images."""
    n = max((m.n_images for m in e.measurements.values()), default=0)
    facts = (_text(e.info.get("model", NONE)), accuracy_words(e), f"maps of {n} image{'s' if n != 1 else ''}")
    return " · ".join(fact for fact in facts if fact not in ("", NONE))


def _provenance(runs: Sequence[Examined]) -> list[tuple[str, list[str]]]:
    """(fact, its value for each run), in the order in which runs have them."""
    facts = dict.fromkeys(name for e in runs for name in e.info)
    rows = [(name, [_text(plain(e.info.get(name))) for e in runs]) for name in facts]
    rows.append(("blocks", [str(_n_blocks(e)) for e in runs]))
    rows.append(("tokens", [_tokens(e) for e in runs]))
    return rows


def _n_blocks(e: Examined) -> int:
    """Blocks of the network, of all stages that images pass one after the other."""
    numbered = (m for m in e.measurements.values() if (m.together or m.network) and m.n_blocks)
    together = map(e.measurements.in_network, numbered)
    return max((sum(its.n_blocks for its in stages) for stages in together), default=len(e.layers))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_text(inner) for inner in value)
    return "–" if value is None else str(value)


def _tokens(e: Examined) -> str:
    grid = e.grid
    prefix = f" + {', '.join(grid.prefix)}" if grid.prefix else ""
    return f"{grid.patches_in_words} of {grid.patch[0]} x {grid.patch[1]} px{prefix}"


def proof_of(certificate: Mapping[str, Any]) -> str:
    """Sentence on what was checked at capture."""
    layers = certificate.get("layers") or []
    if not layers:
        return "no certificate: it was not proved that the maps are what the model computed."
    rows = max((e for layer in layers if (e := layer["row_sum_error"]) is not None), default=0.0)
    values = [layer["value_error"] for layer in layers if layer["value_error"] is not None]
    proofs = [f"softmax rows of all {len(layers)} layers sum to 1 within {rows:.1e}"]
    if values:
        proofs.append(f"in {len(values)} of them map times V is what the layer passes on within {max(values):.1e}")
    if (equal := certificate.get("output_equal", False)) is None:
        proofs.append("the model's output was not compared, as it has no numbers")
    else:
        moved = certificate.get("fused_difference", 0)
        proofs.append(
            f"the model's output with hooks {'equals' if equal else 'is within rounding of'} the output without"
        )
        proofs.append(f"with an explicit instead of a fused softmax it moves by {moved:.1e}")
    return f"Checked on {certificate.get('n_images', '?')} images: {'; '.join(proofs)}."


MOST_IMAGES = 6


def _viewed(runs: Sequence[Examined]) -> list[Viewed]:
    return [Viewed(e.name, e.maps, e.class_names) for e in runs if e.maps is not None]


def explorer_of(runs: Sequence[Examined], budget: int) -> Embedded | None:
    """Maps of the report's images, in at most `budget` bytes; images that several runs share come first."""
    viewed = _viewed(runs)
    pictures = {picture.image_id: picture.pixels for e in runs for picture in e.pictures}
    ids = list(pictures)
    if not ids and viewed:  # a few of the first run's, evenly spread
        every = viewed[0].maps.image_ids
        ids = [every[int(i)] for i in np.linspace(0, len(every) - 1, min(MOST_IMAGES, len(every)))]
    ids.sort(key=lambda image_id: -sum(image_id in run.places for run in viewed))
    files = {i: page.as_file(pixels) for i, pixels in pictures.items()}
    uris = {i: str(as_uri(kind, data)) for i, (data, kind) in files.items()}
    return embed(viewed, ids[:MOST_IMAGES], uris, budget)
