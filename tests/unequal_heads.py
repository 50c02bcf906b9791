"""Maps of a model whose blocks have unequal numbers of heads, as after pruning: a stage for each number."""

import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import CapturePlan, MapWriter

IDS = tuple(f"image{i}" for i in range(8))
GRID = TokenGrid(2, 3, prefix=("cls",))


def stages(heads=(3, 2, 3, 1), uniform=(2,)):
    """Maps of each stage; blocks of the numbers in `uniform` attend to all tokens alike, the others do not."""
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for number, n in enumerate(heads, 1):
        scores = torch.randn(len(IDS), n, 7, 7, generator=generator) * (0 if number in uniform else 3)
        blocks.append(scores.softmax(-1))
    made = []
    for n in dict.fromkeys(heads):
        its = [i for i, other in enumerate(heads) if other == n]
        name = f"trunk_{len(made) + 1}" if made else "trunk"
        layers = tuple(f"blocks.{i}.attn" for i in its)
        made.append(AttentionMaps(torch.stack([blocks[i] for i in its], 1), IDS, GRID, stage=name, layers=layers))
    return made


def write(path, **how):
    """A maps file of them."""
    plan = CapturePlan(image_ids=IDS, model="vit", variant="vit", checkpoint_sha256="", config={}, versions={},
                       data="random", seed=0, device="cpu")  # fmt: skip
    with MapWriter(path, plan, dtype="float32") as writer:
        for shard in writer.pending():
            writer.append([maps.images(shard[0], shard[-1] + 1) for maps in stages(**how)])
        writer.close()
    return path
