"""Correctness and speed on a GPU: one command, at most eight minutes.

    python examples/benchmarks/gpu.py [--device cuda] [--tiny] [--out gpu.json]

Each part runs in a process of its own with a time limit, so that a crash or a hang of one is reported and does not stop
the others; what a part found before is kept. First the tests marked gpu, then speeds. Prints a Markdown table, and
writes it and the same numbers to OUT.md and OUT. Exit status 1 if a part failed. `--device cpu --tiny` runs the same
code where there is no GPU; its numbers mean nothing.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

LIMITS = {"tests": 200, "training": 90, "compiled": 70, "loader": 30, "capture": 60, "profile": 30}
"""Most seconds of each part, eight minutes in all; order of running."""

Row = tuple[str, Any, str]
"""What was measured, the value, and its unit or goal."""


def tests(device: str, tiny: bool) -> Iterator[Row]:
    """The tests marked gpu; a row for each that does not pass, and their numbers."""
    import pytest

    marked = [str(path) for path in ROOT.glob("tests/**/test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    outcomes: Counter[str] = Counter()

    class Notes:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.outcome] += 1
            if report.outcome != "passed":
                emit((report.nodeid, report.outcome, str(report.longreprtext).strip().splitlines()[-1:]))

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                outcomes["failed"] += 1
                emit((report.nodeid, "not collected", str(report.longrepr).strip().splitlines()[-1:]))

    os.environ["ATTNPROBE_TEST_DEVICE"] = device
    chosen = ["-k", "not refiner and not richvit and not torchrun and not siglip"] if tiny else []
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=line"]
    options += ["-W", "default"]  # what a driver or a newer library warns of is no failure of ours
    os.chdir(ROOT)
    pytest.main([*options, *chosen, f"--rootdir={ROOT}", *sorted(marked)], plugins=[Notes()])
    for outcome in ("passed", "failed", "skipped"):
        yield f"tests {outcome}", outcomes[outcome], ""
    if outcomes["failed"] or not outcomes["passed"]:
        raise SystemExit(1)


def training(device: str, tiny: bool, compile: bool = False) -> Iterator[Row]:
    """Steps in bfloat16 at 224 px: images/s, TFLOP/s, peak memory, and time in units of the plain ViT's.

    A batch that does not fit into memory is halved.
    """
    import torch
    from timing import seconds
    from torch.utils.flop_counter import FlopCounterMode
    from training import step_of

    from attnprobe.core.memory import free_memory
    from attnprobe.models import build_model

    here, most = torch.device(device), 2 if tiny else 64
    names = ("vit_16", "deepvit_16") if compile else ("vit_16", "deepvit_16", "deepvit_32", "refiner_s")

    def timed(name: str, batch: int) -> tuple[float, int, int]:
        """Seconds, floating-point operations and peak memory of a step."""
        torch.manual_seed(0)
        options: dict[str, Any] = {"img_size": 32, "depth": 2} if tiny else {}
        model = build_model(name, seed=0, num_classes=10, **options).to(here)
        pixels = torch.randn(batch, 3, *model.patch_embed.img_size, device=here)
        with FlopCounterMode(display=False) as counter:
            step_of(model, pixels, amp=True)()
        step = step_of(model, pixels, amp=True, compile=compile)
        for _ in range(1 if tiny else 3):
            step()
        if here.type == "cuda":
            torch.cuda.reset_peak_memory_stats(here)
        took = statistics.median(seconds(step, here) for _ in range(2 if tiny else 10))
        memory = torch.cuda.max_memory_allocated(here) if here.type == "cuda" else 0
        return took, counter.get_total_flops(), memory

    plain = None
    for name in names:
        batch, found = most, None
        while found is None and batch:
            try:
                found = timed(name, batch)
            except torch.OutOfMemoryError:
                batch //= 2
            free_memory()  # of the model before, and not while an error holds its tensors
        if found is None:
            yield name, "out of memory", "with one image"
            continue
        took, operations, memory = found
        plain = plain or took / batch
        yield f"{name}, batch {batch}", round(batch / took, 1), "images/s"
        yield f"{name}, arithmetic", round(operations / took / 1e12, 3), "TFLOP/s"
        yield f"{name}, step / step of vit_16, per image", round(took / batch / plain, 2), "times"
        if memory:
            yield f"{name}, peak memory", round(memory / 2**30, 2), "GiB"


def compiled(device: str, tiny: bool) -> Iterator[Row]:
    """The same with torch.compile."""
    import torch

    if tiny:  # its compiler needs a minute on a CPU
        torch.compile = partial(torch.compile, backend="eager")
    return training(device, tiny, compile=True)


def loader(device: str, tiny: bool) -> Iterator[Row]:
    """Small images, cropped and flipped: timm's loader against augmentation on the device."""
    import torch
    from training import loader_against_timms

    rounds, workers, images = (1, 0, 256) if tiny else (3, min(8, os.cpu_count() or 1), 4096)
    ratio = loader_against_timms(torch.device(device), rounds, workers, images, policy=None)
    yield f"timm's loader with {workers} workers / ours, 32 px", round(ratio, 2), "goal 5"


def capture(device: str, tiny: bool) -> Iterator[Row]:
    """Capturing in float32: handed on, measured on the device, and to disk."""
    import torch
    from pipeline import hand_on, plain_forward, store
    from timing import seconds

    from attnprobe.capturing import capture
    from attnprobe.metrics import measure
    from attnprobe.models import build_model

    here, batch, n, rounds = torch.device(device), *((2, 4, 1) if tiny else (32, 128, 3))
    model = build_model("vit_16", seed=0, **({"img_size": 32, "depth": 2} if tiny else {})).to(here).eval()
    pixels = torch.randn(n, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0)).to(here)
    capturing = capture(model, pixels, ("weights", "effective"), tokens=True, batch_size=batch)
    yield "layers certified", len(capturing.certificate.layers), f"{capturing.certificate.facts()['read at']}"

    def median(work: Callable[[], object]) -> float:
        work()
        return statistics.median(seconds(work, here) for _ in range(rounds))

    plain = median(lambda: plain_forward(model, pixels, batch))
    yield "forward with explicit softmax", round(n / plain, 1), "images/s"
    yield "plain forward / capture", round(plain / median(lambda: hand_on(capturing)), 3), "goal 0.9"
    measured = median(lambda: measure(capturing, bootstrap=0))
    yield "plain forward / capture with default metrics", round(plain / measured, 3), "goal 0.8"
    with tempfile.TemporaryDirectory() as folder:
        yield "capture to disk", round(n / median(lambda: store(capturing, Path(folder))), 1), "images/s"
    yield "images of one forward pass", capturing.batch_size, ""


def profile(device: str, tiny: bool) -> Iterator[Row]:
    """An epoch of the training loop on digits: share of copies, kernels and waiting in its elapsed time."""
    import torch
    from torch.profiler import ProfilerActivity
    from training import OPTIONS, digits_sets, ours

    from attnprobe.training import TrainConfig

    options = {"epochs": 1, "warmup_epochs": 0, "clip_grad": 1.0, "scale": (0.8, 1.0), "mixup": 0.2, "reprob": 0.2}
    config = TrainConfig(model="vit_16_digits", dataset="digits", device=device, **options)
    OPTIONS.update({"depth": 2} if tiny else {})
    sets = digits_sets(1)
    if not tiny:
        ours(sets, config)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    started = time.perf_counter()
    with torch.profiler.profile(activities=activities) as trace:
        ours(sets, config)
    elapsed = time.perf_counter() - started
    totals: Counter[str] = Counter()
    for event in trace.profiler.kineto_results.events():  # as recorded: averages of so many take minutes to make
        name, on_host = event.name(), event.device_type() == torch.autograd.DeviceType.CPU
        if on_host and "Synchronize" in name:
            totals["host waits for the device"] += event.duration_ns()
            totals["number of waits"] += 1
        elif not on_host and not event.is_user_annotation():  # these span kernels, which are counted themselves
            totals["copies" if name.startswith(("Memcpy", "Memset")) else "kernels"] += event.duration_ns()
    yield "elapsed", round(elapsed, 2), "s under the profiler"
    for name in ("kernels", "copies", "host waits for the device"):
        yield name, round(totals[name] / 1e9 / elapsed, 3), "of the time"
    yield "waits", totals["number of waits"], f"in {-(-len(sets[0]) // config.batch_size)} steps and a validation"


PARTS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "tests": tests, "training": training, "compiled": compiled, "loader": loader, "capture": capture,
    "profile": profile,
}  # fmt: skip


def emit(row: Row) -> None:
    """One result, as a line that `run` reads; at once, so that it survives a part that is stopped."""
    print("ROW " + json.dumps(row), flush=True)


def run(name: str, device: str, tiny: bool) -> dict[str, Any]:
    """The rows of a part, whether it ended well, and the end of its messages if not."""
    limit = LIMITS[name] * (
        1 if device.startswith("cuda") else 5
    )  # a CPU that others use, too, is slow and costs nothing
    command = [sys.executable, __file__, "--part", name, "--device", device, *(["--tiny"] if tiny else [])]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True, text=True
        )
        try:
            status = "ok" if child.wait(limit) == 0 else f"exit status {child.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its loader's workers, too
            child.wait()
            status = f"stopped after {limit} s"
        out.seek(0)
        lines = out.read().splitlines()
    rows = [json.loads(line[4:]) for line in lines if line.startswith("ROW ")]
    said = [line for line in lines if not line.startswith("ROW ")]
    result = {"status": status, "seconds": round(time.monotonic() - started, 1), "rows": rows}
    return result if status == "ok" else {**result, "messages": said[-25:]}


def machine(device: str) -> dict[str, str]:
    """Device, driver, versions and commit."""
    import torch

    def first_line(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")[0]
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    gpu = device.startswith("cuda") and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"{device}, {platform.machine()}",
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else "none",
        "cuda": torch.version.cuda or "none",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy")),
        "python": platform.python_version(),
        "commit": first_line("git", "rev-parse", "--short", "HEAD"),
    }


def markdown(facts: dict[str, str], parts: dict[str, dict[str, Any]]) -> str:
    """All results as one table."""
    lines = ["; ".join(f"{name}: {value}" for name, value in facts.items()), "", "| part | what | value | |"]
    lines.append("|---|---|---|---|")
    for name, part in parts.items():
        rows = part["rows"] or [["no result", "", ""]]
        lines += [f"| {name} | {what} | {value} | {unit if isinstance(unit, str) else ' '.join(unit)} |"
                  for what, value, unit in rows]  # fmt: skip
        lines.append(f"| {name} | **{part['status']}** | {part['seconds']} | s |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results; the table goes beside them")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        for row in PARTS[options.part](options.device, options.tiny):
            emit(row)
        return
    facts, parts = machine(options.device), {}
    for name in PARTS:
        parts[name] = run(name, options.device, options.tiny)
        print(f"{name}: {parts[name]['status']}, {parts[name]['seconds']} s", file=sys.stderr, flush=True)
        options.out.write_text(json.dumps({**facts, "parts": parts}, indent=1))
        options.out.with_suffix(".md").write_text(markdown(facts, parts))
    print(markdown(facts, parts))
    for name, part in parts.items():
        if part["status"] != "ok":
            print(f"{name}: {part['status']}", *part["messages"], sep="\n  ", file=sys.stderr)
    sys.exit(any(part["status"] != "ok" for part in parts.values()))


if __name__ == "__main__":
    main()
