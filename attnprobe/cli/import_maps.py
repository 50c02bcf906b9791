"""The command that imports maps other programs saved."""

from pathlib import Path
from typing import Annotated

import tyro

from attnprobe.cli.options import Positional, Short
from attnprobe.core.import_options import ImportOptions

AS_THEY_ARE = ImportOptions()


def import_(
    file: Positional[Annotated[Path, Short(metavar="FILE")]],
    out: Annotated[Path, Short(aliases=["-o"])],
    options: tyro.conf.OmitArgPrefixes[ImportOptions] = AS_THEY_ARE,
    overwrite: bool = False,
) -> None:
    """Turn maps that another program saved into a maps file; nothing in the file is run.

    For example:

    $ attnprobe import attention.npz -o maps.h5
    $ attnprobe import attention.npy --axes layer,image,head,query,key --grid 14x14 --prefix cls -o maps.h5
    $ attnprobe import deepvit.pkl --grid 14x14 -o maps.h5

    Args:
        file: .npy, .npz, .pt, .safetensors, or a pickle of nested lists of arrays.
        out: the maps file.
        overwrite: replace an existing file.
    """
    from attnprobe.workflows.import_maps import import_maps

    print(import_maps(file, out, options, overwrite=overwrite))
