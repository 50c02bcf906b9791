"""verify-drops and prune act on models of other families, also without a head, and say what they measured."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from torchvision.models import VisionTransformer

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Evidence
from attnprobe.models import build_model, load_model
from attnprobe.models.describe import config_json
from attnprobe.reports.removal import advice, evidence_text
from attnprobe.workflows.ablate import verify_drops
from attnprobe.workflows.prune import prune
from tests.models.test_families import HF, SIZES, TIMM, perturbed, whole

WHERE = {"data": "digits", "images": 60, "device": "cpu"}


def saved(path, name, num_classes=10):
    architecture, options = TIMM[name]
    options = {**options, "num_classes": num_classes}
    model = perturbed(build_model(architecture, seed=0, **options))
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_json(architecture, model, options)))
    return path


@pytest.mark.parametrize("name", ["dinov3", "beit", "cait"])
def test_accuracies_of_attention_drops_are_those_of_models_without_it(name, tmp_path):
    path = saved(tmp_path / "whole", name)
    evidence = verify_drops(path, blocks=[2, 3], what="attention", tolerance=0.9, **WHERE)
    assert list(evidence.curves) == ["attention"]
    assert [tried.attention for tried in evidence.curves["attention"]][-1] == [2, 3]
    done = prune(path, tmp_path / "small", attention=[2, 3], **WHERE)
    np.testing.assert_array_equal(done.right[0], evidence.whole.right[~evidence.chooses])
    np.testing.assert_array_equal(done.right[1], evidence.curves["attention"][-1].right[~evidence.chooses])
    opened = timm.create_model(f"local-dir:{done.path}", pretrained=True)
    assert [block.attn.num_heads for block in opened.blocks][1:3] == [0, 0]
    assert "head_importance" in evidence.importance


def test_all_heads_of_blocks_that_lost_attention_have_no_importance(tmp_path):
    path = saved(tmp_path / "whole", "dinov3")
    small = prune(path, tmp_path / "small", attention=[2], **WHERE).path
    evidence = verify_drops(small, blocks="all", heads="all", what="attention", **{**WHERE, "images": 20})
    assert {tried.changes[0].block for tried in evidence.single if tried.attention} == {1, 3, 4}
    assert np.isnan(evidence.importance["head_importance"].mean[1]).all()
    with pytest.raises(InputError, match="no attention left"):
        prune(small, tmp_path / "none", attention=[2], **WHERE)


def test_blocks_of_swin_go_in_pairs_and_the_advice_is_what_prune_measures(tmp_path):
    path = saved(tmp_path / "whole", "swin")
    evidence = verify_drops(path, blocks="all", tolerance=0.99, **WHERE)
    assert [tried.blocks for tried in evidence.single if tried.blocks] == [[1, 2], [3, 4], [5, 6]]
    assert "without block 3, without block 4" in evidence_text(evidence)
    with pytest.raises(InputError, match="block 3 alternates"):
        verify_drops(path, blocks=[3], **WHERE)
    alone = verify_drops(path, blocks=[3], what="attention", **{**WHERE, "images": 20})
    assert [str(tried.changes[0]) for tried in alone.single] == ["block 3 without attention"]
    four = next(tried for tried in evidence.single if tried.blocks == [3, 4])
    done = prune(path, tmp_path / "small", blocks=[3, 4], **WHERE)
    np.testing.assert_array_equal(done.right[1], four.right[~evidence.chooses])


def test_what_a_library_cannot_describe_is_said_and_not_advised(tmp_path, monkeypatch):
    import transformers

    monkeypatch.setattr(Evidence, "near_chance", False)  # as this model is, of which nothing would be advised

    kind, config = (getattr(transformers, part) for part in HF["vit"])
    perturbed(kind(config(**SIZES, num_labels=10))).save_pretrained(tmp_path / "hf")
    evidence = verify_drops(f"hf:{tmp_path / 'hf'}", heads=[(1, 1)], tolerance=0.99, **WHERE)
    assert evidence.free("heads") is not None
    assert evidence.advised is None and "one number of heads for all blocks" in advice(evidence)
    with pytest.raises(InputError, match="no attention; drop whole blocks"):
        prune(f"hf:{tmp_path / 'hf'}", tmp_path / "none", attention=[1], **WHERE)
    assert not (tmp_path / "none").exists()
    done = prune(f"hf:{tmp_path / 'hf'}", tmp_path / "small", blocks=[2], **WHERE)
    assert transformers.AutoModelForImageClassification.from_pretrained(done.path).config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_a_backbone_is_judged_by_the_neighbours_of_its_features(kind, tmp_path):
    if kind == "timm":
        path = ref = saved(tmp_path / "whole", "dinov3", num_classes=0)
        opened = load_model(path).eval()
        features = opened
    else:
        import transformers

        kind, config = (getattr(transformers, part) for part in HF["dinov2"])
        perturbed(kind(config(**SIZES))).save_pretrained(tmp_path / "hf")
        ref = f"hf:{tmp_path / 'hf'}"
        opened = load_model(ref).eval()
        features = lambda pixels: opened(pixels).last_hidden_state[:, 0]  # noqa: E731
    evidence = verify_drops(ref, blocks=[2], **WHERE)
    assert "k-NN accuracy of features (3-NN among the images that choose)" in evidence_text(evidence)
    assert "head_importance" not in evidence.importance
    done = prune(ref, tmp_path / "small", blocks=[2], **WHERE)
    assert "k-NN accuracy of features (3-NN" in str(done) and "top-1" not in str(done)
    dropped = next(tried for tried in evidence.single if tried.blocks)
    np.testing.assert_array_equal(done.right[1], dropped.right[~evidence.chooses])
    from attnprobe.workflows.trial import open_trial

    trial = open_trial(ref, **WHERE)
    batches = list(trial.labelled())
    with torch.inference_mode():
        rows = torch.cat([features(pixels) for pixels, _ in batches]).numpy()
    votes_of, labels = trial.chooses, torch.cat([labels for _, labels in batches]).numpy()
    classifier = KNeighborsClassifier(3, metric="cosine").fit(rows[votes_of], labels[votes_of])
    np.testing.assert_array_equal(done.right[0], classifier.predict(rows[~votes_of]) == labels[~votes_of])


def test_a_model_of_other_classes_is_judged_by_its_features_and_never_by_classes_of_equal_number(tmp_path):
    path = saved(tmp_path / "whole", "vit", num_classes=1000)
    with pytest.warns(UserWarning, match="tells 1000 classes apart, not the 10 of digits/val: its features are judged"):
        evidence = verify_drops(path, blocks=[2], **WHERE)
    assert "k-NN accuracy of features" in evidence_text(evidence)
    backbone = load_model(path)
    backbone.reset_classifier(0)
    alone = verify_drops(backbone, blocks=[2], **WHERE)
    np.testing.assert_array_equal(evidence.whole.right, alone.whole.right)


def test_a_model_built_by_hand_is_pruned_too(tmp_path):
    model = perturbed(VisionTransformer(32, 8, 4, 3, 24, 48, num_classes=10))
    evidence = verify_drops(model, blocks=[2], heads=[(1, 2)], **WHERE)
    assert evidence.ref == "VisionTransformer"
    done = prune(model, tmp_path / "small", blocks=[2], heads={1: [2]}, **WHERE)
    assert len(timm.create_model(f"local-dir:{done.path}", pretrained=True).blocks) == 3
    with pytest.raises(InputError, match="a model alone has no maps"):
        verify_drops(model, **WHERE)
    with pytest.raises(InputError, match="no model and no file named|cannot be built|cannot lose"):
        prune(whole("vit"), tmp_path / "none", blocks=[1], data="fractals:5:20", device="cpu")
