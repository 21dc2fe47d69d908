"""A reader of ``.pth`` files that runs no code from them and believes no size that they claim.

Such a file is a pickle and the bytes of storages, which tensors are views of. The pickle is read by
`weaktr.data.pickles`: plain values, tensors, the command line that training scripts leave
(`argparse.Namespace`), and what else they leave (`leftovers`). Storages may not have more bytes
than the file, tensors no elements outside of their storage.

Source: the two formats of ``torch.save`` (`torch.serialization`): a zip archive with ``data.pkl``
and ``data/KEY``, and the older one: five pickles, then the storages one after another.
"""

from __future__ import annotations

import argparse
import io
import math
import mmap
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weaktr.data.pickles import Built, Maker, Refused, Source, Unread, count_values, read_pickle
from weaktr.files import require_readable
from weaktr.messages import brief
from weaktr.models.released.leftovers import LEFTOVERS

#: Where publishers put the weights, beside other things, in the order in which they are looked for.
WRAPPERS = (
    "model", "module", "state_dict", "teacher", "model_state_dict", "model_state", "model_ema",
    "state_dict_ema", "ema", "student", "net", "network", "weights", "params",
)  # fmt: skip
#: What DistributedDataParallel, torch.compile and Lightning put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Tensors may share their numbers; together they show at most this many times the file's bytes.
OVERLAP = 16
#: The first bytes of a zip archive.
_ZIP = b"PK\x03\x04"
#: What the older format begins with, and its version.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
#: What to do with a file that holds more than can be read.
_SAVE = "load it where it was made and save {'model': model.state_dict()} alone"
#: What a damaged or foreign file makes `zipfile` and torch raise, beside ValueError.
_BROKEN = (
    OSError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class _Storage:
    """The memory that tensors are views of; it is filled after the pickle was read."""

    dtype: torch.dtype
    content: bytearray

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return len(self.content) // self.dtype.itemsize


class _Settings(argparse.Namespace, Built):
    """A command line."""

    def build(self, state: Any) -> None:
        self.__dict__ = state  # the dict itself: many command lines of one dict take no memory


class _Storages:
    """The storages of one file and the tensors in them.

    Args:
        size: of the file in bytes. The storages have as many at most, each tensor too, and all
            tensors together `OVERLAP` times as many.
    """

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.left_to_show = OVERLAP * size
        self.by_key: dict[str, _Storage] = {}

    def refer(self, identifier: Any) -> _Storage:
        """The storage of a persistent identifier.

        Raises:
            ValueError: not a storage, or one of more bytes than the file has.
        """
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
            raise ValueError("a reference to something else than a storage")
        kind, dtype, key, _, count, *view = identifier
        is_storage = kind == "storage" and isinstance(dtype, torch.dtype) and isinstance(key, str)
        if not is_storage or type(count) is not int or count < 0 or view not in ([], [None]):
            raise ValueError("a reference to something else than a storage")
        size = count * dtype.itemsize
        if key not in self.by_key:
            if size > self.left:
                raise ValueError(f"it claims {count} numbers, more than the file has")
            self.left -= size
            self.by_key[key] = _Storage(dtype, bytearray(size))
        content = self.by_key[key].content
        if len(content) != size:
            raise ValueError(f"two sizes of the storage {brief(key)}")
        return _Storage(dtype, content)

    def tensor(self, storage: _Storage, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """What torch's functions make of a storage.

        Raises:
            ValueError: the tensor would reach out of its storage, or be larger than the file.
        """
        if not (_are_whole([offset]) and _are_whole(size) and _are_whole(stride)):
            raise ValueError(f"a tensor of size {brief(size)} with something else than numbers")
        if len(size) != len(stride) or len(size) > 32:
            raise ValueError(f"a tensor of size {size!s:.60} and stride {stride!s:.60}")
        count = math.prod(size)
        if count == 0:
            return torch.empty(size, dtype=storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        shown = count * storage.dtype.itemsize
        self.left_to_show -= shown
        if last >= storage.count or shown > self.size or self.left_to_show < 0:
            raise ValueError(f"a tensor of size {size!r:.60} in {storage.count} numbers")
        flat = torch.frombuffer(storage.content, dtype=storage.dtype)
        return flat.as_strided(size, stride, offset)

    def table(self) -> dict[str, Any]:
        """What the pickle may name."""
        return _PLAIN | {
            "torch._utils._rebuild_tensor": Maker(self.tensor),
            "torch._utils._rebuild_tensor_v2": Maker(self.tensor),
        }


def _are_whole(numbers: Any) -> bool:
    """Whether these are a list or tuple of sizes, none of which is larger than any memory."""
    if not isinstance(numbers, list | tuple):
        return False
    return all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)


def _of_type(maker: Maker, _: Any, given: Any, __: Any) -> Any:
    """What torch's function for tensors with attributes makes of another function's arguments.

    Raises:
        ValueError: they are no tuple; a text counts as one value and would be as many arguments
            as it has characters.
    """
    if not isinstance(given, tuple):
        raise ValueError(f"expected the arguments of a function, got {brief(given)}")
    return maker.make(*given)


#: What a pickle may name beside the functions that make tensors.
_PLAIN: dict[str, Any] = {
    **LEFTOVERS,
    **{f"torch.{name}Storage": dtype for name, dtype in _TYPES.items()},
    **{str(dtype): dtype for dtype in _TYPES.values()},
    "torch.Size": Maker(lambda sides: sides),
    "torch.device": Maker(lambda kind, index=None: (kind, index)),
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch._tensor._rebuild_from_type_v2": Maker(_of_type),
    "torch._utils._rebuild_parameter": Maker(lambda tensor, _, __: tensor),
    "torch._utils._rebuild_parameter_with_state": Maker(lambda tensor, _, __, ___: tensor),
    "argparse.Namespace": Maker(_Settings),
}


def read_torch_file(path: Path) -> Any:
    """What a file written by ``torch.save`` holds, tensors on the CPU.

    Args:
        path: a ``.pth`` or ``.pt`` file, zipped or in torch's older format.

    Returns:
        Tensors, containers, numbers and strings, as they were saved.

    Raises:
        FileNotFoundError: no such file.
        OSError: it may not be read.
        ValueError: not a torch file, cut off, changed on the way (a checksum says so), claiming
            more than it holds, nested too deep, or one that asks for code; none of it was run.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    require_readable(path)
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
            size = file.seek(0, io.SEEK_END)
            if is_zip:
                with zipfile.ZipFile(file) as archive:
                    tree = _read_zip(archive, _Storages(size))
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    tree = _read_old(content, _Storages(size))
        count_values(tree, size)  # so that whoever uses it comes to an end
        return tree
    except Refused as error:
        raise ValueError(
            f"{path}: refused: beside its weights this file asks for {error.name}, which could run "
            f"code. Nothing was run. If you trust its author, {_SAVE}"
        ) from error
    except Unread as error:
        raise ValueError(
            f"{path}: refused: beside its weights this file holds what is not read ({error}); "
            f"{_SAVE}"
        ) from error
    except (*_BROKEN, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a whole file of torch.save ({reason:.200})") from error


def weights_in(tree: Any) -> dict[str, Any]:
    """The state dict in what a file holds: the whole, or below one or more of `WRAPPERS`.

    Args:
        tree: of `read_torch_file`.

    Returns:
        Its entries by name, without what all names begin with (`PREFIXES`), without the
        ``_orig_mod`` of compiled parts, and without the counter of a moving average.

    Raises:
        ValueError: there is none.
    """
    for _ in WRAPPERS:
        below = [tree[key] for key in WRAPPERS if isinstance(tree, dict) and key in tree]
        tree = next((inner for inner in below if isinstance(inner, dict)), tree)
    if not isinstance(tree, dict) or not any(isinstance(value, Tensor) for value in tree.values()):
        raise ValueError(
            "expected a state dict of tensors, or one under "
            f"{', '.join(WRAPPERS[:3])} or the like, got {type(tree).__name__}"
        )
    if wrong := [key for key in tree if not isinstance(key, str)]:
        raise ValueError(f"expected names of tensors, got {brief(wrong[0])}")
    state = {key.replace("._orig_mod.", "."): tree[key] for key in tree if key != "n_averaged"}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_zip(archive: zipfile.ZipFile, storages: _Storages) -> Any:
    """What an archive of ``torch.save`` holds.

    Raises:
        ValueError, zipfile.BadZipFile: see `read_torch_file`.
    """
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("a zip archive without one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if packed := [i.filename for i in members.values() if i.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(
            f"{packed[0]!r:.60} is compressed; torch.save compresses nothing: unpack the archive "
            "and zip it with -0"
        )
    if sum(info.file_size for info in members.values()) > storages.size:
        raise ValueError("a zip archive that claims to hold more than it has")
    order = f"{folder}byteorder"
    if order in members and archive.read(order).decode() != sys.byteorder:
        raise ValueError("written on a machine of another byte order")
    tree = read_pickle(io.BytesIO(archive.read(pickles[0])), storages.table(), storages.refer)
    for key, storage in storages.by_key.items():
        info = members[f"{folder}data/{key}"]
        if info.file_size != len(storage.content):
            raise ValueError(f"{info.file_size} bytes of {len(storage.content)} in data/{key}")
        with archive.open(info) as source:
            _fill(storage.content, source)
    return tree


def _read_old(content: mmap.mmap, storages: _Storages) -> Any:
    """What a file of torch's older format holds.

    Raises:
        ValueError: see `read_torch_file`.
    """
    if read_pickle(content, {}) != _MAGIC or read_pickle(content, {}) != _PROTOCOL:
        raise ValueError("expected what torch.save writes, got another pickle")
    read_pickle(content, {})  # of the machine that wrote it
    tree = read_pickle(content, storages.table(), storages.refer)
    keys = read_pickle(content, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("no list of its storages")
    if set(keys) != storages.by_key.keys():
        raise ValueError("other storages than its tensors have")
    for key in keys:
        storage = storages.by_key[key]
        (count,) = struct.unpack("<q", content.read(8))
        if count != storage.count:
            raise ValueError(f"a storage of {count} numbers, expected {storage.count}")
        _fill(storage.content, content)
    return tree


def _fill(target: bytearray, source: Source) -> None:
    """Read all of `target`.

    Raises:
        ValueError: the file ends before.
    """
    view, start = memoryview(target), 0
    while start < len(view):
        part = source.read(min(1 << 22, len(view) - start))
        if not part:
            raise ValueError("it is cut off")
        view[start : start + len(part)] = part
        start += len(part)
