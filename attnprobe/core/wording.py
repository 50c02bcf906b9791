"""How are block numbers written in a sentence?"""

from collections.abc import Sequence


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
