"""Pickles as plain data: tensors, numpy's arrays, strings and containers; nothing that a file names is run.

What the safe readers of Python and PyTorch leave open is closed here:

- A dictionary hashes its keys. A tuple that holds one tuple twice, which holds one twice, and so on, has 2^n leaves in
  n lines of a pickle; one that is nested 100,000 deep overflows the stack; keys may be chosen to have equal hashes.
  `require_bounded` follows a pickle without building anything.
- A place in the memo is memory: ten bytes can ask for 64 GB of it.
- Bytes are pickled as a text and its encoding. Two encodings take the square of the text's length: hours for 100 kB.
- A pickle can say how the bytes of a type of numpy's are understood, so that any address becomes an object.
  `SavedType` and `SavedArray` go by the type's name alone.
"""

import io
import math
import pickletools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from attnprobe.core.errors import InputError

MOST_NESTED = 100
"""Maximum depth of tuples in tuples."""

MOST_GIVEN = 10_000_000
"""Maximum size of all that is hashed or given to functions, beyond one for each byte of the file."""

MOST_ODD = 10_000
"""Maximum number of keys whose hashes can be chosen: tuples, and numbers of more than 64 bits."""

USUAL_ODD = 20
"""Tuples that what is given to a function usually holds: shapes, strides, the arguments themselves."""

SLOW = {"idna", "punycode"}
"""Encodings of text whose time grows with the square of its length."""

TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
HASHED = {"SETITEM", "SETITEMS", "DICT", "ADDITEMS", "FROZENSET"}
CALLED = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD", "BINPERSID"}
CHANGED = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
"""Operations of which the first operand holds the others afterwards."""


class _Part:
    """An object on a pickle's stack, of which only the size is known.

    Attributes:
        size: 1 and the size of all that it holds, counted as often as it is reached; of a text, by eight characters.
        depth: of tuples in tuples.
        odd: number of elements whose hashes can be chosen.
    """

    __slots__ = ("depth", "odd", "size")

    def __init__(self, literal: Any = None) -> None:
        long = literal.bit_length() // 64 if isinstance(literal, int) else 0
        self.size = 1 + (len(literal) // 8 if isinstance(literal, str | bytes | bytearray) else long)
        self.depth, self.odd = 0, min(long, 1)

    def hold(self, parts: Iterable["_Part"]) -> None:
        """Hold these, too. Sizes end at a bound, for they can double at every step."""
        for part in parts:
            self.size, self.odd = min(self.size + part.size, 1 << 50), min(self.odd + part.odd, 1 << 50)


def require_bounded(file: BinaryIO, pickles: int = 1) -> None:
    """Follow pickles, one behind the other, without building what they hold.

    Args:
        pickles: how many follow each other; the file may end before the last.

    Raises:
        InputError: more is hashed, nested or remembered than the limits above allow.
        ValueError: damaged.
    """
    for _ in range(pickles):
        start = file.tell()
        if not file.read(1):
            return
        file.seek(start)
        try:
            _follow(file)
        except (IndexError, KeyError, AttributeError):  # an operand that is not there
            raise ValueError("a pickle in it is damaged") from None


def _follow(file: BinaryIO) -> None:
    stack: list[Any] = []  # of parts; None is a mark
    memo: dict[int, _Part] = {}
    given = odd = 0
    encodes = slow = False
    for count, (opcode, argument, place) in enumerate(pickletools.genops(file)):
        name = opcode.name
        encodes |= name == "GLOBAL" and str(argument) == "_codecs encode"
        slow |= _is_slow(argument)
        if encodes and slow:
            raise InputError("it would encode text in a way that takes too long; refused")
        if name == "MARK":
            stack.append(None)
        elif name == "POP":
            stack.pop()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument or 0])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = len(memo) if name == "MEMOIZE" else argument or 0
            if key > count:
                raise InputError("a pickle in it remembers more than it holds; refused")
            memo[key] = stack[-1]
        else:
            held = _operands(stack, opcode)
            target = held.pop(0) if name in CHANGED else _Part(argument)
            used = held[::2] if name in ("SETITEM", "SETITEMS", "DICT") else held
            if name in HASHED or name in CALLED:
                given += sum(part.size for part in used)
                odd += max(sum(part.odd for part in used) - (USUAL_ODD if name in CALLED else 0), 0)
            target.hold(held)
            if name in TUPLES:
                target.odd += 1
                target.depth = 1 + max((part.depth for part in held), default=0)
            if given > MOST_GIVEN + (place or 0) or odd > MOST_ODD or target.depth > MOST_NESTED:
                raise InputError("its tuples or keys are too many, too long or nested too deeply; refused")
            stack += [target] * len(opcode.stack_after)


def _is_slow(argument: object) -> bool:
    """True if it is the name of an encoding that takes the square of the time, however it is spelt."""
    return isinstance(argument, str) and len(argument) < 40 and re.sub("[^a-z]", "", argument.lower()) in SLOW


def _operands(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[_Part]:
    """What an operation takes from the stack, the deepest first."""
    before, above = list(opcode.stack_before), []
    if pickletools.markobject in before:
        while (part := stack.pop()) is not None:
            above.append(part)
        before = before[: before.index(pickletools.markobject)]
    below = [stack.pop() for _ in before]
    return [*below[::-1], *above[::-1]]


# --- numpy's types and arrays ----------------------------------------------------------------------------------------


class SavedType:
    """A type of numpy's that a pickle names, such as "f4"; what the pickle says of its fields and size is left out.

    Raises:
        TypeError: no name of one simple type.
    """

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>=|]?[?a-zA-Z]\d{0,9}", name):
            raise TypeError("an array has a type of numpy's that is not simple")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take over the order of the bytes, which is the second entry."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class SavedArray(np.ndarray):
    """An array whose content comes after it in a pickle: shape, type and as many bytes as they need."""

    def __new__(cls) -> "SavedArray":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        """Fill it.

        Raises:
            TypeError: the entries are of other types.
            ValueError: they do not belong together.
        """
        _, shape, kind, by_column, data = state
        simple = isinstance(kind, SavedType) and all(type(n) is int and n >= 0 for n in shape)
        if not simple or not isinstance(data, list if kind.dtype.hasobject else bytes):
            raise TypeError("an array is not described as numpy describes it")
        size = math.prod(shape) * (1 if kind.dtype.hasobject else kind.dtype.itemsize)
        if len(data) != size:
            raise ValueError(f"an array of {size} bytes has {len(data)}")
        super().__setstate__((1, tuple(shape), kind.dtype, bool(by_column), data))  # pyright: ignore[reportArgumentType]


def saved_scalar(kind: SavedType, data: bytes = b"") -> Any:
    """The number that a pickle of a scalar of numpy's holds.

    Raises:
        TypeError: it is none, but an object.
    """
    if not isinstance(kind, SavedType) or kind.dtype.hasobject or not isinstance(data, bytes):
        raise TypeError("a number is not described as numpy describes it")
    return np.frombuffer(data, kind.dtype, 1)[0]


NUMPY: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: SavedArray() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): saved_scalar for core in ("core", "_core")},
    ("numpy", "ndarray"): SavedArray,
    ("numpy", "dtype"): SavedType,
}
"""Names of numpy's in pickles, and what is called for them."""


def load_tensors(file: BinaryIO, more: Sequence[Any] = ()) -> Any:
    """The content of a file of `torch.save`, read by PyTorch's safe reader; numpy's arrays and numbers among it.

    Args:
        more: what a file may build besides, as `torch.serialization.safe_globals` takes it.

    Raises:
        InputError: it would take too long or too much memory.
        Exception: another kind of file, a damaged one, or one that would run something; of any of a dozen types.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":  # as PyTorch decides it
        with torch.serialization._open_zipfile_reader(file) as archive:  # pyright: ignore
            require_bounded(io.BytesIO(archive.get_record("data.pkl")))
    else:
        require_bounded(file, 5)  # a magic number, a version, the machine, the content, the names of its storages
    file.seek(0)
    numpy = [(made, ".".join(name)) for name, made in NUMPY.items()]
    with torch.serialization.safe_globals([*numpy, *more]):
        return torch.load(file, map_location="cpu", weights_only=True)
