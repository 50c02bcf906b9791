"""The table of families: a few rows here, all of them in `examples/benchmarks/families.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "examples" / "benchmarks" / "families.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("coverage_table", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "swin_t", "xcit_nano_12_p16_224", "sam2_hiera_tiny", "maxvit_t", "caformer_s18"]
)
def test_every_softmax_of_a_family_is_a_captured_layer_and_exact(coverage, model):
    family = next(f for f in (*coverage.TIMM, *coverage.TORCHVISION) if f.model == model)
    row = coverage.covered(family)
    assert row.whole and row.exact, row


@pytest.mark.parametrize("model", ["mobilevitv2_050", "efficientvit_b0"])
def test_attention_without_maps_is_refused_and_never_empty(coverage, model):
    family = next(f for f in coverage.TIMM if f.model == model)
    assert family.reason and "attention" in coverage.covered(family).trouble


def test_what_is_captured_in_part_says_why(coverage):
    family = next(f for f in coverage.TIMM if f.name == "convit")
    row = coverage.covered(family)
    assert row.exact and row.layers < row.softmaxes and "two softmaxes" in family.reason


def test_hugging_faces_models_are_whole_and_exact(coverage):
    for family in coverage.HUGGING_FACE:
        if family.name in ("ViTMAE", "Hiera", "Dinov2WithRegisters", "SamVision"):
            row = coverage.covered(family)
            assert row.whole and row.exact, (family.name, row)
