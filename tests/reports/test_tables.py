import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from attnprobe.reports import long_table, summary_table
from attnprobe.reports.tables import summary_metrics
from tests.reports.formulas import examined, measurement


@pytest.fixture
def runs():
    return [examined("plain", layers=4, heads=3, similar=(4,)), examined("changed", layers=3, effective_similar=(2,))]


def test_every_value_is_one_row_where_its_labels_say(runs):
    # as text, for pandas before 3 misreads the last bits of a number
    table = pd.read_csv(io.StringIO(long_table(runs).to_csv(index=False)), dtype=str)
    assert len(table) == sum(m.mean.size for e in runs for m in e.measurements.values())
    for e in runs:
        for m in e.measurements.values():
            rows = table[(table.run == e.name) & (table.metric == m.metric) & (table.site == m.site)]
            columns = [axis if axis not in m.axes[:i] else f"{axis}_2" for i, axis in enumerate(m.axes)]
            for values, column in ((m.mean, "mean"), (m.std, "std"), (m.ci[0], "low"), (m.ci[1], "high")):
                back = np.full(m.mean.shape, np.nan)
                for labels, value in zip(rows[columns].to_numpy(), rows[column], strict=True):
                    at = tuple(
                        [*map(str, m.coords[axis])].index(label) if axis in m.coords else int(float(label)) - 1
                        for axis, label in zip(m.axes, labels, strict=True)
                    )
                    back[at] = float(value)
                np.testing.assert_array_equal(back, values)


def test_baselines_stand_beside_their_values(runs):
    rows = long_table(runs[:1]).query("metric == 'layer_similarity'")
    m = runs[0].measurements["layer_similarity"]
    for name in ("untrained", "uniform"):
        np.testing.assert_array_equal(rows[name], m.baselines[name].mean.ravel())


def test_what_does_not_apply_is_empty(runs):
    rows = long_table(runs).query("metric == 'token_similarity'")
    assert rows[["layer_2", "head", "head_2", "threshold", "prefix", "uniform"]].isna().all(axis=None)


def test_the_summary_has_a_column_per_run_and_drops_rows_nobody_fills(runs):
    table = summary_table(runs)
    assert list(table.columns) == ["plain", "changed"]
    bare = [examined("bare", layers=3, info={})]
    assert "accuracy" not in summary_table(bare).index
    assert not (summary_table(bare) == "–").all(axis=1).any()


def test_the_summary_says_what_the_measurements_say(runs):
    table = summary_table(runs)
    assert table.loc["similar blocks, effective"].tolist() == ["1 of 4 (1–1)", "1 of 3 (1–1)"]
    assert table.loc["similar blocks, softmax"].tolist() == ["1 of 4 (1–1)", "0 of 3 (0–0)"]
    assert table.loc["similar from block, effective"].tolist() == ["4", "–"]
    assert table.loc["accuracy"].tolist() == ["95.0%", "95.0%"]
    cosine = [np.mean([m.mean[i, i + 1] for i in range(3)]) for m in [runs[0].measurements["layer_similarity"]]]
    assert table.loc["cosine of neighbours, softmax", "plain"].startswith(f"{cosine[0]:.3f} (")
    last = runs[0].measurements["token_similarity"].mean[-1]
    assert table.loc["token similarity, last block", "plain"].startswith(f"{last:.3f} (")


def test_one_matrix_needs_no_words_about_two():
    labels = summary_table([examined(layers=3)]).index
    assert "similar blocks" in labels
    assert not [label for label in labels if label.endswith((", effective", ", softmax"))]


def test_nothing_measured_is_an_empty_table():
    assert long_table([examined(layers=3, measurements={})]).empty


def test_metrics_without_a_row_of_their_own_get_one_and_every_row_names_its_metric(runs):
    gini = measurement("row_gini", np.full((3, 3), 0.25))
    dependence = measurement("head_dependence", np.broadcast_to(0.5 + 0.5 * np.eye(3), (3, 3, 3)))
    cka = measurement("map_cka", np.array([[1, 0.5, 0], [0.5, 1, 0.7], [0, 0.7, 1]]))
    flow = measurement("attention_flow", np.full((3, 17), 0.1))
    more = {m.metric: m for m in (gini, dependence, cka, flow)}
    e = replace(runs[0], measurements={**runs[0].measurements, **more})
    table = summary_table([e])
    for label, value in (("row gini", "0.250"), ("head dependence", "0.500"), ("map cka", "0.600")):
        assert table.loc[label, "plain"].startswith(value)
    assert "attention flow" not in table.index
    metrics = summary_metrics([e])
    assert set(table.index) <= set(metrics) and metrics["row gini"] == "row_gini" and metrics["accuracy"] == ""
    assert {metrics[label] for label in table.index if metrics[label]} <= set(e.measurements)
