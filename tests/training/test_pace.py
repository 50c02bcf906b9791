"""Speed and estimate from a clock of the test's own."""

from types import SimpleNamespace

import torch

from attnprobe.training.pace import SAMPLE, WARM_UP, Pace

CPU = torch.device("cpu")


def paced(device=CPU, steps=100_000, seconds=1.0, per_step=64):
    now, said = [0.0], []
    pace = Pace(device, steps, per_step, said.append, lambda: now[0])

    def step(took=seconds):
        now[0] += took
        return pace.step()

    return pace, step, said


def test_the_estimate_is_said_once_and_leaves_the_first_steps_out():
    _, step, said = paced()
    assert [step(1000.0) for _ in range(WARM_UP)] == [""] * WARM_UP
    words = [step() for _ in range(3 * SAMPLE)]
    assert set(words) == {"64 images/s"}
    assert said == ["about 28 h at this speed"]  # 99,975 s


def test_a_short_training_has_no_estimate():
    _, step, said = paced(steps=60)
    for _ in range(60):
        step()
    assert said == []


def test_validation_between_epochs_is_not_counted():
    pace, step, _ = paced()
    for _ in range(30):
        step()
    step(500.0)  # a validation, as long as the clock knows
    pace.restart()
    assert step() == "64 images/s"


def test_a_gpus_memory_is_shown_beside_what_it_has(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 41.2e9)
    gpu = torch.device("cuda")
    _, step, said = paced(gpu)
    words = [step() for _ in range(50)]
    assert said == ["about 28 h at this speed; 41 GB of 80 GB"] and words[-1] == "64 images/s, 41 GB of 80 GB"
    assert waits == [gpu, gpu]
