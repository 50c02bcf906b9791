"""The probe sees what capture sees, leaves training alone, and keeps to its budget."""

import random
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import attnprobe as ap
from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.core.spec import CaptureSpec
from attnprobe.io.run import Run
from attnprobe.metrics import METRICS
from attnprobe.models.describe import config_json
from attnprobe.stats.alarms import Thresholds
from attnprobe.store.history import read_history
from attnprobe.training import TrainConfig, train
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.measure import examine
from attnprobe.workflows.probe import AttentionAlarm
from attnprobe.workflows.train import train as train_recipe

SPEC = InputSpec(size=(16, 16))
OPTIONS = {"depth": 3, "embed_dim": 24, "num_heads": 2, "img_size": 16, "patch_size": 4, "num_classes": 10}
QUIET = Thresholds(settle=1000)


class Clock:
    """Seconds that pass when told to; each look takes `tick`."""

    def __init__(self, tick=0.0):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


def build(name="deepvit_16_digits", seed=0, **options):
    return ap.build_model(name, seed=seed, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def images():
    return ap.load_images("digits", "val", spec=SPEC, limit=40)


@pytest.fixture
def probe(images):
    def make(out=None, **options):
        return ap.Probe(images, out, **{"budget": 1.0, "n_images": 8, "thresholds": QUIET, **options})

    return make


def state(model):
    """Everything about a model that a probe could change."""
    tensors = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [getattr(m, "fused_attn", None) for m in model.modules()]
    listening = [getattr(m, "listening", None) for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return tensors, modes, hooks, flags, listening, gradients


def same_state(one, other):
    assert one[0].keys() == other[0].keys() and all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1:5] == other[1:5]
    for a, b in zip(one[5], other[5], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


@pytest.mark.parametrize("name", ["vit_16_digits", "deepvit_16_digits", "refiner_16_digits", "sigmareparam_16_digits"])
def test_a_row_is_what_capture_and_measure_say(probe, images, name):
    model = build(name)
    watching = probe()
    watching(3, model)
    model.eval()
    order = np.linspace(0, 39, 8).round().astype(int).tolist()
    pixels = next(images.batches(8, order=order)).pixels
    expected = ap.measure(ap.capture(model, pixels, ("weights", "effective"), tokens=True), bootstrap=0)
    h = watching.history
    assert h.epochs.tolist() == [3] and h.image_ids == tuple(images.ids[i] for i in order)
    tau = expected["similar_blocks"].coords["threshold"].index(0.9)
    entropy, ratio = expected["row_entropy"].mean.mean(1), expected["similar_blocks"].mean[tau]
    np.testing.assert_allclose(h.blocks["row_entropy"][0], entropy, rtol=1e-5)
    np.testing.assert_allclose(h.blocks["similar_blocks"][0, 1:], ratio[1:], atol=1e-6)
    np.testing.assert_allclose(h.matrices["layer_similarity"][0], expected["layer_similarity"].mean, atol=1e-5)
    divergence = expected["head_divergence"].mean[:, 0, 1]  # two heads, one pair
    np.testing.assert_allclose(h.blocks["head_divergence"][0], divergence, atol=1e-6)
    np.testing.assert_allclose(h.uniform["row_entropy"], np.log(h_tokens(model)), rtol=1e-5)
    assert expected["similar_blocks"].is_effective


def h_tokens(model):
    return model.patch_embed.num_patches + model.num_prefix_tokens


class Rotated(nn.Module):
    """A patch embedding that computes a table in its first pass and keeps it, as rotary positions are."""

    def __init__(self, embed):
        super().__init__()
        self.embed, self.patch_size, self.table = embed, embed.patch_size, None

    def forward(self, pixels):
        tokens = self.embed(pixels)
        if self.table is None:
            self.table = torch.arange(tokens.shape[-1]).float().cos()
        return tokens * self.table


def test_a_table_that_the_model_keeps_from_the_probe_takes_part_in_training(probe):
    def trained(watching):
        model = build("vit_16_digits")
        model.patch_embed = Rotated(model.patch_embed)
        if watching is not None:
            watching(0, model)
            assert model.patch_embed.table is not None
        model(torch.ones(2, 3, 16, 16)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    assert all(map(torch.equal, trained(probe()), trained(None)))


def test_autocast_around_a_probe_changes_nothing(probe):
    plain, within = probe(), probe()
    plain(1, build())
    with torch.autocast("cpu", torch.bfloat16):
        within(1, build())
    for name, row in plain.history.blocks.items():
        np.testing.assert_array_equal(within.history.blocks[name], row)


def test_model_and_generators_are_left_as_they_were(probe):
    model = build(drop_path_rate=0.2)
    model.train()
    model.blocks[1].eval()  # one part is frozen, as some do
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    before, watching = state(model), probe()
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    watching(1, model)
    watching(2, model)
    same_state(before, state(model))
    assert torch.equal(generators[0], torch.get_rng_state())
    assert (generators[1] == np.random.get_state()[1]).all() and generators[2] == random.getstate()


def test_a_source_that_draws_random_numbers_changes_none_of_ours(images):
    class Drawing:
        spec, ids, class_names, name = images.spec, images.ids, images.class_names, "drawing"

        def __len__(self):
            return len(images)

        def batches(self, *args, **kwargs):
            torch.rand(3), np.random.rand(3), random.random()
            return images.batches(*args, **kwargs)

    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    ap.Probe(Drawing(), n_images=4)(1, build())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert (generators[1] == np.random.get_state()[1]).all() and generators[2] == random.getstate()


def test_a_failed_probe_leaves_the_model_and_the_generators_too(probe, monkeypatch):
    model, watching = build(), probe()
    before, generator = state(model), torch.get_rng_state()

    def draws_and_fails(*_args):
        torch.rand(3)
        raise RuntimeError("broken")

    handle = model.blocks[2].register_forward_hook(draws_and_fails)
    with pytest.raises(RuntimeError, match="broken"):
        watching(1, model)
    handle.remove()
    same_state(before, state(model))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same training without a probe, with one, and with one but stopped and resumed."""
    folder = tmp_path_factory.mktemp("trained")

    def run(name, watch, stop_after=None):
        config = TrainConfig(
            model="deepvit_16_digits", dataset="digits", epochs=4, warmup_epochs=1, clip_grad=1.0, scale=(0.8, 1.0),
            drop_path=0.1, device="cpu", batch_size=32,
        )  # fmt: skip
        model = build(config.model, config.seed, drop_path_rate=0.1)
        sets = [ap.load_images("digits", split, spec=SPEC, limit=96) for split in ("train", "val")]
        probe = ap.Probe(sets[1], folder / name / "probe", budget=1.0, n_images=8, thresholds=QUIET) if watch else None

        def watching(epoch, model, seconds):
            if epoch - 1 == stop_after:
                probe(epoch, model, seconds)  # killed between probe and checkpoint
                raise KeyboardInterrupt
            return probe(epoch, model, seconds)

        facts = config_json(config.model, model, OPTIONS)
        return train(model, *sets, config, Run(folder / name), config_json=facts, watch=watching if watch else None)

    result = {"without": run("without", False), "with": run("with", True)}
    with pytest.raises(KeyboardInterrupt):
        run("resumed", True, stop_after=2)
    result["stopped at"] = read_history(folder / "resumed" / "probe").epochs.tolist()
    result["resumed"] = run("resumed", True)
    return result


def test_training_with_the_probe_gives_the_same_bits_as_without(trained):
    without, watched, resumed = (
        ap.load_model(trained[name].run.path).state_dict() for name in ("without", "with", "resumed")
    )
    assert without.keys() == watched.keys()
    for name in without:
        assert torch.equal(without[name], watched[name]) and torch.equal(without[name], resumed[name]), name
    losses = [[row["train_loss"] for row in trained[name].log] for name in ("without", "with", "resumed")]
    assert losses[0] == losses[1] == losses[2]


def test_a_resumed_run_has_the_history_of_an_unbroken_one(trained):
    whole, resumed = (read_history(trained[name].run.probe) for name in ("with", "resumed"))
    assert trained["stopped at"] == [1, 2, 3], "the third epoch is run twice"
    assert whole.epochs.tolist() == resumed.epochs.tolist() == [1, 2, 3, 4]
    for part in ("blocks", "matrices"):
        for name, values in getattr(whole, part).items():
            np.testing.assert_array_equal(values, getattr(resumed, part)[name])
    assert whole.image_ids == resumed.image_ids


def test_pipeline_probes_when_the_recipe_says_so_and_the_report_shows_it(tmp_path):
    tiny = {"epochs": 3, "warmup_epochs": 1, "model_kwargs": {"depth": 3, "embed_dim": 24}, "probe_every": 2}
    result = train_recipe("digits_vit_16", tmp_path / "run", settings={**tiny, "probe_budget": 1.0})
    assert read_history(result.run.probe).epochs.tolist() == [1, 3]
    capture_file(CaptureSpec(result.run.path, images=20, untrained=0))
    examined = examine(result.run.path)
    assert examined.history.epochs.tolist() == [1, 3]
    elsewhere = tmp_path / "copy.h5"
    elsewhere.write_bytes(result.run.maps.read_bytes())
    assert examine(elsewhere).history is None


def epochs_probed(watching, model, epochs, seconds=None, clock=None):
    """Which of these epochs a probe looked at, and what it said."""
    words = {}
    for epoch in epochs:
        if clock is not None:
            clock.now += seconds
        words[epoch] = watching(epoch, model, None if clock else seconds)
    return watching.history.epochs.tolist(), words


def test_every_is_the_least_spacing_and_first_and_last_are_always_probed(probe):
    assert epochs_probed(probe(every=3, epochs=9), build(), range(1, 10), 1.0)[0] == [1, 4, 7, 9]
    assert epochs_probed(probe(every=3), build(), range(1, 10), 1.0)[0] == [1, 4, 7]
    assert epochs_probed(probe(every=2), build(), range(0, 6), 1.0)[0] == [0, 2, 4]


@pytest.mark.parametrize("own_timing", [True, False])
def test_it_skips_epochs_to_stay_within_its_budget(probe, own_timing):
    clock = Clock(tick=0.1)  # a few looks at it are what a probe costs
    watching = probe(epochs=60, budget=0.05, clock=clock)
    model, shares, n_probes = build(), [], []
    for epoch in range(1, 61):
        clock.now += 1.0
        words = watching(epoch, model, None if own_timing else 1.0)
        shares.append(watching.share)
        n_probes.append(len(watching.history))
    epochs = watching.history.epochs.tolist()
    assert epochs[0] == 1 and epochs[-1] == 60
    assert 3 <= len(epochs) < 30
    assert watching.share <= 0.05, "the last probe's cost was set aside"
    after_second = epochs[1]
    assert max(shares[after_second - 1 :]) <= 0.05
    assert "% of the time" not in words
    total = watching.probe_seconds + watching.training_seconds
    assert watching.share == pytest.approx(watching.probe_seconds / total)
    h = watching.history
    assert h.training_seconds.sum() == pytest.approx(watching.training_seconds)
    last_write = watching.probe_seconds - h.probe_seconds.sum()
    assert 0 <= last_write < 0.5 and f"{len(epochs)} probes took {h.probe_seconds.sum():.2f} s" in h.overhead()


def test_what_it_returns_tells_the_state_and_why_it_waits(probe):
    clock = Clock(tick=0.1)
    watching, model = probe(budget=0.05, clock=clock), build()
    first = watching(1, model, 1.0)
    assert first.startswith("similar ") and "/3, entropy " in first and "as of" not in first
    second = watching(2, model, 1.0)
    assert "as of epoch 1" in second and "% of the time, budget 5.0%" in second
    spaced = probe(every=5)
    spaced(1, model, 1.0)
    assert spaced(2, model, 1.0).endswith("as of epoch 1")


def test_costs_are_counted_on_after_a_restart(probe, tmp_path):
    clock = Clock(tick=0.1)
    first, model = probe(tmp_path, budget=0.05, clock=clock), build()
    epochs_probed(first, model, range(1, 21), 1.0)
    second = probe(tmp_path, budget=0.05, clock=Clock(tick=0.1))
    second(21, model, 1.0)
    kept = read_history(tmp_path).before(21)
    assert second.training_seconds == pytest.approx(kept.training_seconds.sum() + 1)
    assert second.probe_seconds >= kept.probe_seconds.sum()


def test_a_history_of_other_images_is_not_continued(probe, images, tmp_path):
    model = build()
    probe(tmp_path)(1, model)
    with pytest.raises(InputError, match="other images than epoch 2"):
        probe(tmp_path, n_images=5)(2, model)
    probe(tmp_path, n_images=5)(1, model)  # starting over
    assert read_history(tmp_path).epochs.tolist() == [1] and len(read_history(tmp_path).image_ids) == 5


def test_an_alarm_is_a_warning_once_a_line_in_the_run_and_a_word_in_the_text(probe, tmp_path):
    model, watching = build("vit_16_digits"), probe(tmp_path, thresholds=Thresholds())
    with torch.no_grad():
        watching(1, model)
        model.blocks[1].attn.qkv.weight.mul_(300)
    with pytest.warns(
        AttentionAlarm, match="epoch 2: entropy collapse: rows of block 2 attend to 1.. of 17 tokens"
    ) as told:
        words = watching(2, model)
    assert len(told) == 1 and words.endswith("1 alarm")
    watching(3, model)  # warnings are errors here
    assert (tmp_path / "alarms.txt").read_text().count("\n") == len(watching.history.alarms) == 1


def test_pixels_and_own_metrics_will_do(probe):
    pixels = torch.randn(6, 3, 16, 16)
    mine = replace(METRICS["row_entropy"], name="mine", function=lambda maps: maps.amax(-1).mean(-1))
    watching = ap.Probe(pixels, metrics=["token_similarity", mine], n_images=4)
    assert "alarm" not in watching(1, build())
    assert set(watching.history.blocks) == {"token_similarity", "mine"} and watching.history.image_ids[-1] == "5"
    top = ap.measure(ap.capture(build(), pixels[[0, 2, 3, 5]], "weights"), [mine], bootstrap=0)["mine"].mean.mean(1)
    np.testing.assert_allclose(watching.history.blocks["mine"][0], top, rtol=1e-5)


def test_every_metric_gives_a_number_per_block(probe):
    of_maps_and_tokens = [name for name, metric in METRICS.items() if "value_vectors" not in metric.parameters]
    watching = probe(metrics=of_maps_and_tokens)
    watching(1, build())
    for name, values in watching.history.blocks.items():
        assert values.shape == (1, 3), name
    assert set(watching.history.blocks) == set(of_maps_and_tokens)


def test_a_model_of_several_stages_is_probed_with_what_has_a_meaning_there(probe):
    import timm

    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=16, window_size=2, depths=(2, 2), embed_dim=12,
                              num_heads=(1, 2), num_classes=10)  # fmt: skip
    watching = probe()
    assert watching(1, model).startswith("similar ")
    blocks = watching.history.blocks
    assert len({name.rpartition("/")[0] for name in blocks}) == 2
    assert {values.shape for values in blocks.values()} == {(1, 2)}
    with pytest.raises(InputError, match="'prefix_mass' is not defined"):
        probe(metrics=["prefix_mass"])(1, model)


def test_an_epoch_that_is_probed_again_replaces_what_followed(probe):
    watching, model = probe(), build()
    for epoch in (1, 2, 3, 2, 3, 4):
        watching(epoch, model)
    assert watching.history.epochs.tolist() == [1, 2, 3, 4]
    watching(1, model)
    assert watching.history.epochs.tolist() == [1]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"budget": 0}, {"budget": 1.5}, {"n_images": 0}])
def test_options_out_of_range_are_refused(images, wrong):
    with pytest.raises(InputError, match="must be at least 1"):
        ap.Probe(images, **wrong)


def test_tensorboard_gets_every_number_if_it_is_there(probe, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            written.append("flushed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    watching = probe(tmp_path, tensorboard=True)
    watching(4, build())
    entropy = watching.history.blocks["row_entropy"][0]
    assert ("row_entropy/block 02", entropy[1], 4) in written and written[-1] == "flushed"
    with pytest.raises(InputError, match="give out"):
        probe(tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        probe(tmp_path, tensorboard=True)


def test_a_model_of_another_kind_is_refused_with_reasons(probe):
    from attnprobe.core.errors import CaptureError

    with pytest.raises(CaptureError):
        probe()(1, nn.Sequential(nn.Flatten(), nn.Linear(768, 3)))
