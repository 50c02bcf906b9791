"""What does each variant cost against the plain ViT of equal size, and against the straightforward way to write it?

    python examples/benchmarks/variants.py [--variants deepvit refiner] [--rounds 5] [--batch 4] [--threads 1]
    python examples/benchmarks/variants.py --device cuda --batch 128 --amp [--compile]

16 blocks, width 384, 12 heads, 197 tokens, random weights and pixels. Every number is a ratio of two things run in turn
in one process: process CPU time on a CPU, elapsed time between synchronisations on a GPU, median over rounds. A
training step is forward, cross-entropy, backward and AdamW.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timing import seconds
from torch import Tensor, nn

from attnprobe.models import VARIANTS, build_model
from attnprobe.models.variants.deepvit import ReAttention
from attnprobe.models.variants.refiner import DLA


class ConvolvedReAttention(ReAttention):
    """Re-attention the straightforward way: a 1x1 convolution over the materialised maps."""

    def mix(self, weights: Tensor) -> Tensor:
        return self.var_norm(self.reatten_matrix(weights))


class ConvolvedDLA(DLA):
    """Refinement the straightforward way: 1x1 convolutions over the materialised maps."""

    def forward(self, maps: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.conv_exp(maps)))
        y = F.relu6(self.bn2(self.depth_sep_conv(y)))
        return maps + self.bn3(self.conv_pro(y))


def straightforward(model: nn.Module) -> nn.Module:
    """The same model with the convolutions a paper's figure suggests."""
    for module in model.modules():
        if type(module) is ReAttention:
            module.__class__ = ConvolvedReAttention
        elif type(module) is DLA:
            module.__class__ = ConvolvedDLA
    return model


def fused(model: nn.Module, on: bool) -> nn.Module:
    """Let the layers that can use PyTorch's fused kernel do so, or not."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = on
    return model


class Work:
    """A model with what one forward pass and one training step need."""

    def __init__(self, model: nn.Module, pixels: Tensor, *, amp: bool, compile: bool) -> None:
        model = model.to(pixels.device)
        self.model = torch.compile(model) if compile else model
        self.pixels = pixels
        self.labels = torch.arange(len(pixels), device=pixels.device) % 10
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.autocast = torch.autocast(pixels.device.type, torch.bfloat16) if amp else nullcontext()

    def forward(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast:
            self.model(self.pixels)

    def train(self) -> None:
        self.model.train()
        with self.autocast:
            loss = F.cross_entropy(self.model(self.pixels).float(), self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def ratio(rounds: int, device: torch.device, reference: Callable[[], None], work: Callable[[], None]) -> float:
    """Median time of `work` over that of `reference`, run in turn after a warm-up of each."""
    for _ in range(2):
        reference(), work()
    pairs = [(seconds(reference, device), seconds(work, device)) for _ in range(rounds)]
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def peak_mib(work: Callable[[], None]) -> float:
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the variants and the plain ViT alike")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {options.threads} threads"
    how = f"{'bfloat16' if options.amp else 'float32'}{', compiled' if options.compile else ''}"
    print(f"{where}, torch {torch.__version__}, batch {options.batch}, {how}, median of {options.rounds} rounds")
    print(f"{'':14}{'against the unfused ViT':>28}{'fused ViT':>24}{'straightforward':>22}")
    print(f"{'variant':14}{'forward':>14}{'training step':>14}{'training step':>24}{'training step':>22}")

    pixels = torch.randn(options.batch, 3, 224, 224, device=device)
    modes = {"amp": options.amp, "compile": options.compile}

    def work(
        name: str, change: Callable[[nn.Module], nn.Module] = lambda m: m, compile: bool = options.compile
    ) -> Work:
        model = build_model(f"{name}_16", num_classes=10, seed=0)
        return Work(change(model), pixels, **{**modes, "compile": compile})

    plain, plain_fused = work("vit", lambda m: fused(m, False)), work("vit")
    for name in options.variants:
        ours = work(name)
        line = f"{name:14}{ratio(options.rounds, device, plain.forward, ours.forward):14.2f}"
        line += f"{ratio(options.rounds, device, plain.train, ours.train):14.2f}"
        line += f"{ratio(options.rounds, device, plain_fused.train, ours.train):24.2f}"
        if name in ("deepvit", "refiner"):
            naive = work(name, straightforward, compile=False)
            line += f"{ratio(options.rounds, device, naive.train, ours.train):22.2f}"
        if device.type == "cuda":
            line += f"   peak {peak_mib(ours.train):.0f} MiB (fused ViT {peak_mib(plain_fused.train):.0f})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
