"""bfloat16 values as bit patterns, in which they pass through numpy and h5py, which have no such type."""

import h5py
import numpy as np
import torch
from torch import Tensor

_SIGNED = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32)}
_UNSIGNED = {2: np.uint16, 4: np.uint32}


def words(values: Tensor) -> np.ndarray:
    """The bit patterns of a tensor as unsigned integers of the same size, on the CPU, without a copy there."""
    size = values.element_size()
    return values.detach().cpu().contiguous().view(_SIGNED[size][0]).numpy().view(_UNSIGNED[size])


def read(dataset: h5py.Dataset, images: slice, dtype: torch.dtype) -> Tensor:
    """Images start..stop-1 of a dataset in the file's type: raw bits from HDF5, their meaning from torch."""
    shape = (images.stop - images.start, *dataset.shape[1:])
    bits = np.empty(shape, _SIGNED[dtype.itemsize][1])
    space = dataset.id.get_space()
    space.select_hyperslab((images.start, *(0,) * (len(shape) - 1)), shape)
    dataset.id.read(h5py.h5s.create_simple(shape), space, bits, mtype=dataset.id.get_type())
    return torch.from_numpy(bits).view(dtype)
