"""How are block numbers written in a sentence, and how far does it reach?"""

from collections.abc import Sequence


def one_run_each(n: int) -> str:
    """What must stand beside a comparison of single runs: another seed of each recipe would give other numbers."""
    these = "these two checkpoints" if n == 2 else f"these {n} checkpoints"
    return f"One run each: about {these}, not about the methods."


def blocks_text(blocks: Sequence[int]) -> str:
    """[3, 4, 5, 9] -> `blocks 3–5 and 9`; at least one block, in order."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"block{'s' if len(blocks) > 1 else ''} {listed}"
