"""Counts and losses are those of a loop of timm's own parts, and what cannot be evaluated is refused."""

import json
import os
import pickle
import shlex
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import accuracy
from torch import nn

import attnprobe as ap
from attnprobe.core.accuracy import accuracy_interval
from attnprobe.core.errors import InputError
from attnprobe.core.spec import CaptureSpec
from attnprobe.data import load_images
from attnprobe.data.order import one_half
from attnprobe.models import build_model, input_spec, load_model
from attnprobe.models.describe import config_json
from attnprobe.reports.removal import verify_command
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.train import train
from attnprobe.workflows.trial import open_trial

MODELS = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}, {"crop_pct": 0.8}),
    "eva": ("vit_small_patch16_dinov3", {"depth": 2, "embed_dim": 32, "num_heads": 2}, {"interpolation": "bilinear"}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 1), "embed_dim": 16, "num_heads": (2, 4),
                                              "window_size": 4}, {"crop_mode": "squash"}),
}  # fmt: skip
CLASSES = 7
pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning", "ignore:Exception ignored.*")
"""timm's reader leaves files to the garbage collector."""


def saved(path, name, num_classes=CLASSES, **cfg):
    """A folder of timm's layout with weights that tell images apart."""
    architecture, options, own = MODELS[name]
    options = {**options, "img_size": 32, "num_classes": num_classes}
    model = build_model(architecture, seed=0, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32), **own, **cfg}
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_json(architecture, model, options)))
    return path


def pictures(n, seed=0):
    """[image, row, col, 3]: blobs of colour, which depend on the class n % CLASSES, with noise."""
    random = np.random.default_rng(seed)
    for k in range(n):
        rows, cols = random.integers(33, 60, 2)
        base = np.random.default_rng(k % CLASSES).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(base).resize((int(cols), int(rows)))).astype(int)
        yield np.clip(image + random.normal(0, 40, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for k, image in enumerate(pictures(70)):
        (path / "val" / f"class{k % CLASSES}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / "val" / f"class{k % CLASSES}" / f"{k}.png")
    return path


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 in its true format, 60 images; torchvision checks MD5, but not here."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    home = tmp_path / "data" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    images = [np.asarray(Image.fromarray(image).resize((32, 32))) for image in pictures(60, seed=1)]
    data = np.stack(images).transpose(0, 3, 1, 2).reshape(60, -1)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        (home / name).write_bytes(pickle.dumps({"data": data, "labels": [k % CLASSES for k in range(60)]}))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{c}" for c in range(10)]}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*align should be passed.*")
        yield tmp_path / "data"


@torch.inference_mode()
def by_timm(model_path, dataset):
    """(images, top-1, top-5, loss) as validate.py computes them."""
    model = timm.create_model(f"local-dir:{model_path}", pretrained=True).eval()
    config = resolve_data_config({}, model=model)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    loader = create_loader(
        dataset, batch_size=16, use_prefetcher=False, num_workers=0, **{name: config[name] for name in names}
    )
    n, top1, top5, losses = 0, 0.0, 0.0, 0.0
    for pixels, labels in loader:
        logits = model(pixels)
        one, five = accuracy(logits, labels, topk=(1, 5))
        n, top1, top5 = n + len(labels), top1 + one.item() * len(labels) / 100, top5 + five.item() * len(labels) / 100
        losses += nn.functional.cross_entropy(logits, labels).item() * len(labels)
    return n, round(top1), round(top5), losses / n


@pytest.mark.parametrize("data", ["folder", "cifar"])
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_timms_parts(name, data, tmp_path, folder, request):
    path = saved(tmp_path / name, name, 10 if data == "cifar" else CLASSES)
    if data == "folder":
        where, dataset = {"data": str(folder)}, create_dataset("", root=str(folder), split="validation")
    else:
        root = request.getfixturevalue("cifar")
        where = {"data": "torch/cifar10", "data_dir": root}
        dataset = create_dataset("torch/cifar10", root=str(root), split="validation")
    done = ap.evaluate(path, batch_size=13, device="cpu", **where)
    n, top1, top5, loss = by_timm(path, dataset)
    assert tuple(done.counts.sum(0)) == (n, top1, top5) and done.k == 5
    assert 0 < top1 < top5 < n, "or nothing is shown"
    assert done.loss == pytest.approx(loss, abs=1e-5)
    assert done.shares["top-1"] == pytest.approx((top1 / n, *accuracy_interval(top1, n)))


def test_classes_add_up_and_few_classes_have_a_smaller_top_k(tmp_path, folder):
    done = ap.evaluate(saved(tmp_path / "vit", "vit"), data=str(folder), device="cpu")
    assert list(done.per_class) == [f"class{c}" for c in range(CLASSES)]
    assert sum(n for n, *_ in done.per_class.values()) == 70
    assert sum(n * share for n, share, *_ in done.per_class.values()) == pytest.approx(70 * done.shares["top-1"][0])
    text = done.text(per_class=True)
    assert all(f"class{c} " in text for c in range(CLASSES)) and "class0 " not in done.text()
    three = tmp_path / "three"
    for c in range(3):
        (three / f"c{c}").mkdir(parents=True)
        Image.fromarray(next(pictures(1))).save(three / f"c{c}" / "a.png")
    assert list(ap.evaluate(saved(tmp_path / "few", "vit", 3), data=str(three)).shares) == ["top-1", "top-3"]


def test_a_model_in_memory_on_opened_images_has_the_accuracy_of_its_file(tmp_path, folder):
    path = saved(tmp_path / "vit", "vit")
    model = ap.load_model(path)
    images = ap.load_images(str(folder), spec=ap.input_spec(model))
    done, named = ap.evaluate(model, images, device="cpu"), ap.evaluate(path, data=str(folder), device="cpu")
    assert done.shares == named.shares and done.loss == named.loss and done.model == "VisionTransformer"
    assert ap.evaluate(model, data=str(folder), device="cpu").loss == named.loss
    with pytest.raises(InputError, match=r"labelled images, got Tensor; ap.load_images"):
        ap.evaluate(model, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("knn", [False, True])
def test_a_model_of_another_precision_is_given_pixels_of_its_own(precision, knn, tmp_path, folder):
    model = ap.load_model(saved(tmp_path / "vit", "vit"))
    known = ap.evaluate(model, data=str(folder), device="cpu", knn=knn)
    found = ap.evaluate(model.to(precision), data=str(folder), device="cpu", knn=knn)
    assert found.n_images == known.n_images
    if precision is torch.float64 and not knn:
        assert found.loss == pytest.approx(known.loss, rel=1e-5)


ASKED = {"crop_pct": 1.0, "interpolation": "nearest", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}


def trained_as_asked(path):
    """The model of `saved`, whose file says that it was trained on pixels prepared so."""
    saved(path, "vit")
    config = json.loads((path / "config.json").read_text())
    config["pretrained_cfg"] |= {**ASKED, "mean": list(ASKED["mean"]), "std": list(ASKED["std"])}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_maps_and_ablations_are_of_pixels_prepared_as_the_user_says_and_so_are_the_commands_advised(tmp_path, folder):
    models = {"plain": saved(tmp_path / "plain", "vit"), "other": trained_as_asked(tmp_path / "other")}
    data = {"data": str(folder), "device": "cpu", "images": 14}
    weights, losses = {}, {}
    for name, model, asked in (("plain", "plain", {}), ("asked", "plain", ASKED), ("trained", "other", {})):
        spec = CaptureSpec(models[model], **data, **asked, untrained=0, dtype="float32")
        maps = capture_file(spec, out=tmp_path / f"{name}.h5")
        with ap.open_maps(maps) as reader:
            weights[name] = torch.cat([batch.values.clone() for batch in reader])
            config = reader.attrs["config"]
        evidence = ap.verify_drops(models[model], blocks=[2], **data, **asked)
        losses[name] = evidence.whole.loss
        words = "--crop-pct 1.0 --interpolation nearest --mean 0.1 0.2 0.3 --std 0.4 0.5 0.6"
        commands = [spec.command, shlex.join(evidence.options), verify_command(maps, config)]
        assert all((words in command) is (name == "asked") for command in commands)
    assert torch.equal(weights["asked"], weights["trained"]) and not torch.equal(weights["asked"], weights["plain"])
    assert np.array_equal(losses["asked"], losses["trained"]) and not np.array_equal(losses["asked"], losses["plain"])


def test_what_the_user_sets_takes_the_place_of_what_the_model_was_trained_with(tmp_path, folder):
    path = saved(tmp_path / "vit", "vit")
    asked = ASKED
    done = ap.evaluate(path, data=str(folder), device="cpu", **asked)
    assert {name: getattr(done.spec, name) for name in asked} == asked
    other = trained_as_asked(tmp_path / "other")
    assert ap.evaluate(other, data=str(folder), device="cpu").loss == done.loss
    assert ap.evaluate(path, data=str(folder), device="cpu").loss != done.loss
    with pytest.warns(UserWarning, match="resized from 4 x 4 to 6 x 6"):
        assert ap.evaluate(path, data=str(folder), device="cpu", img_size=48).spec.size == (48, 48)
    half = ap.evaluate(path, data=str(folder), device="cpu", amp="bf16")
    plain = ap.evaluate(path, data=str(folder), device="cpu")
    assert half.loss == pytest.approx(plain.loss, rel=0.05) and half.loss != plain.loss


def test_two_processes_count_as_one(tmp_path, folder):
    path = saved(tmp_path / "vit", "vit")
    for options in ([], ["--knn"]):
        command = ["-m", "attnprobe", "evaluate", str(path), "--data", str(folder), "--batch-size", "8", *options]
        env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run = subprocess.run(
            [sys.executable, *start, *command, "--device", "cpu", "--json", str(tmp_path / "two.json")],
            env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        one = ap.evaluate(path, data=str(folder), device="cpu", batch_size=8, knn=bool(options))
        assert run.stdout.strip() == f"{one}\n{tmp_path / 'two.json'}"
        document = json.loads((tmp_path / "two.json").read_text())
        assert document["classes"] == one.document()["classes"] and document["accuracy"] == one.document()["accuracy"]


def test_neighbours_of_the_other_half_judge_features(tmp_path, folder):
    path = saved(tmp_path / "vit", "vit", num_classes=0)
    done = ap.evaluate(path, data=str(folder), device="cpu", knn=True)
    model = load_model(path).eval()
    images = load_images(str(folder), "val", spec=input_spec(model))
    with torch.inference_mode():
        batch = next(iter(images.batches(70)))
        rows, labels = model(batch.pixels).numpy(), batch.labels.numpy()
    half = one_half(images.ids, labels.tolist())
    expected = KNeighborsClassifier(5, metric="cosine").fit(rows[half], labels[half]).predict(rows[~half])
    assert done.neighbours == 5 and done.n_images == 35  # five images of each class vote
    assert done.shares["5-NN"][0] == (expected == labels[~half]).mean()
    assert "k-NN accuracy, not that of a head" in str(done) and "loss" not in str(done)


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_a_model_without_a_head_or_of_other_classes_is_refused_in_a_line(kind, tmp_path, folder, call_command):
    if kind == "timm":
        ref = str(saved(tmp_path / "vit", "vit", num_classes=0))
        with pytest.raises(InputError, match=r"7 classes and .* tells 9 apart"):
            ap.evaluate(saved(tmp_path / "nine", "vit", 9), data=str(folder))
    else:
        import transformers

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
        transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "hf")
        ref = f"hf:{tmp_path / 'hf'}"
    code, _, err = call_command("evaluate", ref, "--data", str(folder))
    line = err.splitlines()[-1]  # below transformers' own progress bar of saving
    assert code == 2 and line.startswith("attnprobe: ") and "no head" in line and "--knn" in line
    code, out, _ = call_command("evaluate", ref, "--data", str(folder), "--knn")
    assert code == 0 and "5-NN" in out


class Giving(nn.Module):
    """A model that gives its logits in another form."""

    def __init__(self, path, form):
        super().__init__()
        self.model, self.form = load_model(path), form
        self.input_spec = input_spec(self.model)

    def forward(self, x):
        return self.form(self.model(x))


def test_probabilities_and_logits_beside_features_are_evaluated_as_the_logits_are(tmp_path, folder):
    path = saved(tmp_path / "vit", "vit")
    forms = (lambda y: y, lambda y: y.softmax(-1), lambda y: (y.new_zeros(len(y), 20), y))
    plain, *others = (ap.evaluate(Giving(path, form), data=str(folder)) for form in forms)
    for other in others:
        assert (other.counts == plain.counts).all() and other.loss == pytest.approx(plain.loss, rel=1e-4)
    with pytest.raises(InputError, match="one number per image"):
        ap.evaluate(Giving(path, lambda y: y[:, :1]), data=str(folder))
    trials = [open_trial(Giving(path, form), data=str(folder)) for form in forms]
    answers = [trial.answers(trial.model) for trial in trials]
    for right, loss in answers[1:]:
        assert (right == answers[0][0]).all() and np.allclose(loss, answers[0][1], rtol=1e-4)


def test_models_of_transformers_are_evaluated_by_their_logits(tmp_path, folder):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(**sizes, num_labels=CLASSES)
    model = transformers.ViTForImageClassification(config).eval()
    nn.init.normal_(model.classifier.weight, std=3)
    model.save_pretrained(tmp_path / "hf")
    done = ap.evaluate(f"hf:{tmp_path / 'hf'}", data=str(folder), device="cpu")
    batch = next(iter(load_images(str(folder), "val", spec=done.spec).batches(70)))
    with torch.inference_mode():
        logits = model(batch.pixels).logits
    assert done.counts[:, 1].sum() == (logits.argmax(-1) == batch.labels).sum()
    assert done.loss == pytest.approx(nn.functional.cross_entropy(logits, batch.labels).item(), abs=1e-5)


def test_a_run_is_evaluated_on_its_own_images_as_in_training(tmp_path):
    settings = {"epochs": 2, "warmup_epochs": 1, "model_kwargs": {"depth": 2, "embed_dim": 24, "num_heads": 3}}
    result = train("digits_vit_16", tmp_path / "run", settings=settings)
    done = ap.evaluate(result.run.path, device="cpu")
    assert done.shares["top-1"][0] == pytest.approx(result.top1)
    assert done.loss == pytest.approx(result.log[-1]["val_loss"], abs=1e-5)
    assert done.class_names == tuple("0123456789") and done.data == "digits/val"
