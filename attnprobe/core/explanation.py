"""What is this metric? One text, made of the metric itself, for the terminal and for the report."""

import inspect

from attnprobe.core.measurement import Metric


def explanation(metric: Metric) -> str:
    """Definition, formula, source, our reading and caveats (the docstring), then axes, range, needs and settings."""
    text = inspect.getdoc(metric.function) or "No description."
    question = _question(metric)
    parts = [question, text] if question else [text]
    if metric.settings:
        parts.append("Here with " + ", ".join(f"{k}={v}" for k, v in metric.settings.items()) + ".")
    return "\n\n".join([*parts, "\n".join(_facts(metric))])


def _question(metric: Metric) -> str:
    """The question that the metric's file opens with."""
    module = inspect.getmodule(metric.function)
    first = (getattr(module, "__doc__", None) or "").strip().partition("\n")[0]
    return first if first.endswith("?") else ""


def _facts(metric: Metric) -> list[str]:
    low, high = ("unbounded" if bound is None else f"{bound:.4g}" for bound in metric.value_range)
    unit = f" {metric.unit}" if metric.unit else ""
    facts = [f"One number per image and {', '.join(metric.axes)}, from {low} to {high}{unit}."]
    if metric.from_mean is not None:
        facts = [f"One number per {', '.join(metric.axes)} from means over images, from {low} to {high}{unit}."]
    needs = {
        "rows that sum to 1 (or renormalize=True: shares of absolute values)": metric.needs_stochastic,
        "a class token or registers": metric.needs_prefix,
        "queries and keys that are the tokens of the picture": metric.needs_square or "grid" in metric.parameters,
        "the outputs of the blocks": "tokens" in metric.parameters,
        "the value vectors": "value_vectors" in metric.parameters,
    }
    if needed := [what for what, is_needed in needs.items() if is_needed]:
        facts.append(f"Needs {'; '.join(needed)}.")
    if metric.all_settings:
        facts.append("Settings: " + ", ".join(f"{k}={v}" for k, v in metric.all_settings.items()) + ".")
    return facts
