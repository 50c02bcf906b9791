"""Runs of one method, by a name and a pattern; and what is no group says so in one line."""

from dataclasses import replace

import pytest

from attnprobe.core.errors import InputError
from attnprobe.workflows.groups import Side, check_paths, check_runs, named_groups
from tests.reports.formulas import examined


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit_s0", "vit_s1", "deep_s0", "deep_s1", "a=b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("x0.h5", "x1.h5", "x0.untrained.h5"):
        (tmp_path / name).touch()
    return tmp_path


def names(groups):
    return {name: [path.name for path in paths] for name, paths in groups.items()}


def test_a_pattern_names_its_runs_and_no_baselines(runs):
    found = named_groups(["vit=runs/vit_s*", "deep=runs/deep_s*"])
    assert names(found) == {"vit": ["vit_s0", "vit_s1"], "deep": ["deep_s0", "deep_s1"]}
    assert names(named_groups(["x=*.h5"])) == {"x": ["x0.h5", "x1.h5"]}


def test_what_a_shell_has_expanded_is_the_same_group(runs):
    assert names(named_groups(["vit=runs/vit_s0", "vit=runs/vit_s1"])) == {"vit": ["vit_s0", "vit_s1"]}


@pytest.mark.parametrize("text", ["row_entropy:order=2", "s3://bucket/key=value/maps.h5"])
def test_what_has_a_colon_before_its_sign_is_no_group(text):
    assert named_groups([text]) is None


def test_texts_without_a_name_stay_single_runs(runs):
    assert named_groups(["runs/vit_s0", "runs/vit_s1"]) is None
    assert named_groups(["runs/a=b", "runs/vit_s1"]) is None  # it is there, so it is a path


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["vit=runs/vit_s*", "runs/deep_s0"], "single run among groups"),
        (["vit=runs/nothing*"], "matches no run"),
        (["=runs/vit_s*"], "must be NAME=PATTERN"),
        (["vit=runs/vit_s0", "deep=runs/deep_s*"], "group vit has 1 run: a method needs two or more"),
        (["vit=runs/vit_s*", "deep=runs/vit_s1", "deep=runs/deep_s0"], "is in groups vit and deep"),
        (["vit=runs/vit_s0", "vit=runs/vit_s0"], "is in group vit twice"),
    ],
)
def test_what_is_no_group_is_refused_in_one_line(runs, texts, said):
    with pytest.raises(InputError, match=said) as refused:
        named_groups(texts)
    assert "\n" not in str(refused.value)


def test_paths_in_python_are_held_to_the_same(runs):
    with pytest.raises(InputError, match="group vit has 1 run"):
        check_paths({"vit": ["runs/vit_s0"]})


def test_runs_of_one_method_differ_in_their_seed_alone():
    one, two, deep = (
        replace(e, info={**e.info, "model": "vit", "checkpoint_sha256": e.name})
        for e in (examined(name, layers=n) for name, n in (("a", 4), ("b", 4), ("c", 6)))
    )
    check_runs([Side("vit", (one, two))])
    with pytest.raises(InputError, match=r"group vit: a and c differ in depth \(4, 6\)"):
        check_runs([Side("vit", (one, deep))])
    same = replace(two, info={**two.info, "checkpoint_sha256": "a"})
    with pytest.raises(InputError, match="b of other and a of vit are the same checkpoint"):
        check_runs([Side("vit", (one,)), Side("other", (same,))])
