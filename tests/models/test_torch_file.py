"""``.pth`` files of strangers: no size that they claim is believed, nothing in them is run."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from weaktr.models.pretrained import read_state
from weaktr.models.released.torch_file import read_torch_file, weights_in

TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.fixture(params=["zip", "old"])
def save(request, tmp_path):
    """Writes a file in one of torch's formats and returns its path."""

    def write(value):
        path = tmp_path / "x.pth"
        torch.save(value, path, _use_new_zipfile_serialization=request.param == "zip")
        return path

    return write


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_tensors_come_back(save, dtype):
    whole = torch.arange(24).reshape(2, 3, 4).to(dtype)
    parts = {
        "whole": whole,
        "turned": whole.permute(2, 0, 1),
        "part": whole[1:, ::2, 1],
        "number": whole[1, 2, 3],
        "empty": whole[:0],
        "wide": whole[:1, :1, :1].expand(2, 2, 2),
    }
    read = read_torch_file(save(parts))
    assert list(read) == list(parts)
    for name, tensor in parts.items():
        assert read[name].dtype == dtype and torch.equal(read[name], tensor)
    assert read["whole"].data_ptr() == read["turned"].data_ptr()  # still one storage


def test_what_training_scripts_leave(save):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.state_dict(),  # an OrderedDict with attributes
        "parameter": nn.Parameter(torch.ones(3)),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "miou": np.float64(74.02),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "milestones": Counter([3, 3, 5]),
        "order": OrderedDict(a=1),
        "nothing": None,
    }
    read = read_torch_file(save(saved))
    assert read.keys() == saved.keys()
    assert torch.equal(read["model"]["weight"], model.weight)
    assert torch.equal(read["parameter"], torch.ones(3))
    assert torch.equal(
        read["optimizer"]["state"][0]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    )
    assert vars(read["args"]) == {"lr": 0.1, "names": ["a"]}
    plain = ("miou", "size", "dtype", "milestones", "order", "nothing")
    assert {key: read[key] for key in plain} == {key: saved[key] for key in plain}


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, dtype=torch.complex64),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: nn.Linear(2, 3),
        lambda: os.getcwd,
        lambda: {(1, 2): 3},
        lambda: np.ones(3, "c16"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, of kinds of tensors that it will drop
def test_other_kinds_of_values_are_refused(save, make):
    with pytest.raises(ValueError, match=r"x\.pth: (refused|not a whole file)") as caught:
        read_torch_file(save({"x": make()}))
    assert "\n" not in str(caught.value)


class Settings(Enum):
    NONE = 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "left",
    [
        {1, 2}, frozenset({(1, 2)}), 1 + 2j, bytearray(b"a"), slice(1, 2), range(3), int,
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2),
        datetime.timedelta(1), datetime.time(1), Path("a/b"), PurePosixPath("a"),
        PureWindowsPath("a"), torch.strided, np.ones((2, 3)), np.array(["a"]), np.float32(1),
        np.array([{}, 1], object), np.random.get_state(), random.getstate(),
        Fraction(1, 2), Decimal("0.1"), SimpleNamespace(a=1), uuid.UUID(int=3), torch.__version__,
    ],
    ids=lambda left: type(left).__name__,
)  # fmt: skip
def test_harmless_values_beside_the_weights(tmp_path, left, protocol):
    """They are read over, whatever the protocol; the weights beside them are what they were."""
    saved = {"left": [left, argparse.Namespace(left=left)], "model": {"a": torch.arange(3)}}
    torch.save(saved, tmp_path / "x.pth", pickle_protocol=protocol)
    read = read_torch_file(tmp_path / "x.pth")
    assert torch.equal(weights_in(read)["a"], torch.arange(3))


def test_deques_and_defaultdicts_are_lists_and_dicts(save):
    counts = defaultdict(int, a=1)
    read = read_torch_file(save([deque([1, 2], 5), deque([3]), counts, defaultdict(list)]))
    assert read == [[1, 2], [3], {"a": 1}, {}]


@pytest.mark.parametrize(
    "value", [os.system, eval, Settings.NONE, np.random.default_rng, subprocess.run]
)
def test_what_is_not_harmless(save, value):
    with pytest.raises(ValueError, match=r"x\.pth: refused: .* could run code\. Nothing was run"):
        read_torch_file(save({"model": {"a": WEIGHT}, "x": value}))


@pytest.mark.parametrize("content", [b"cbuiltins\neval\n(S'1'\ntR.", b"cbuiltins\nint\n)R."])
def test_names_of_types_are_not_called(tmp_path, content):
    with pytest.raises(ValueError, match=r"could run code|calls something that is no function"):
        read_torch_file(write_zip(tmp_path / "x.pth", content))


def test_what_is_not_read_is_told(write):
    with pytest.raises(ValueError, match=r"refused: .*a key of type tuple\); load it where"):
        read_torch_file(write({(1, 2): 3}))
    tree: list = []
    tree.append(tree)
    with pytest.raises(ValueError, match=r"refused: .*levels deep, or in itself\); load it where"):
        read_torch_file(write([tree, Claim((1,), (1,))]))


class Claim:
    """Pickled as a tensor of this size, stride and offset in a storage that claims `count`."""

    def __init__(self, size, stride, offset=0, count=4):
        self.size, self.stride, self.offset, self.count = size, stride, offset, count

    def __reduce__(self):
        storage = Reference(("storage", torch.FloatStorage, "0", "cpu", self.count))
        arguments = (storage, self.offset, self.size, self.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class Reference:
    def __init__(self, identifier):
        self.identifier = identifier


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Reference) else None


def pickled(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def write_zip(path, value, content=bytes(16), compression=zipfile.ZIP_STORED, **others):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", value if isinstance(value, bytes) else pickled(value))
        archive.writestr("x/data/0", content)
        for name, data in others.items():
            archive.writestr(f"x/{name}", data)
    return path


def write_old(path, value, content=bytes(16), count=4, keys=("0",)):
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [*(pickle.dumps(part, 2) for part in head), pickled(value), pickle.dumps(list(keys), 2)]
    path.write_bytes(b"".join(parts) + struct.pack("<q", count) + content)
    return path


@pytest.fixture(params=[write_zip, write_old])
def write(request, tmp_path):
    return lambda value, *given, **named: request.param(tmp_path / "x.pth", value, *given, **named)


def test_the_files_of_these_tests_are_whole(write):
    assert torch.equal(read_torch_file(write([Claim((2, 2), (2, 1))]))[0], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (Claim((10**12,), (0,)), "a tensor of size"),
        (Claim((10**6, 10**6), (0, 0)), "a tensor of size"),
        (Claim((2, 3), (3, 1)), "in 4 numbers"),
        (Claim((2, 2), (2, 1), offset=1), "in 4 numbers"),
        (Claim((2,), (2**62,)), "a tensor of size"),
        (Claim((2**32, 2**32), (1, 1)), "a tensor of size"),
        (Claim((2,), (-1,), offset=3), "a tensor of size"),
        (Claim((-2,), (1,)), "a tensor of size"),
        (Claim((2,), (1,), offset=-1), "a tensor of size"),
        (Claim((2, 2), (1,)), "a tensor of size"),
        (Claim((1,) * 200, (1,) * 200), "a tensor of size"),
        (Claim((0, 10**30), (1, 1)), "a tensor of size"),
        (Claim((2.0,), (1,)), "a tensor of size"),
        (Claim(2, 1), "not a whole file"),
        (Claim((1,), (1,), count=10**12), "claims 1000000000000 numbers"),
        (Claim((1,), (1,), count=-1), "something else than a storage"),
        (Claim((1,), (1,), count=10**30), "claims 1000"),
        (Reference(("storage", torch.FloatStorage, "0", "cpu", 4, ("1", 0, 2))), "something else"),
        (Reference(("module", torch.FloatStorage, "0", "cpu", 4)), "something else"),
        (Reference(("storage", "FloatStorage", "0", "cpu", 4)), "something else"),
        (Reference("0"), "something else"),
        (Reference("storage" * 9), "something else"),
        ([Claim((1,), (1,)), Claim((1,), (1,), count=3)], "two sizes of the storage"),
    ],
)
def test_claims_of_tensors(write, claim, reason):
    path = write([claim])
    with pytest.raises(ValueError, match=f"{path}: .*{reason}"):
        read_torch_file(path)


def test_many_large_views_of_one_storage(write):
    """Each is as large as the file; a thousand of them would take a thousand times as long."""
    with pytest.raises(ValueError, match="a tensor of size"):
        read_torch_file(write([Claim((400,), (0,)) for _ in range(1000)]))


@pytest.mark.parametrize("content", [b"", bytes(15), bytes(17)])
def test_storages_of_another_size(tmp_path, content):
    with pytest.raises(ValueError, match="bytes of 16 in data/0"):
        read_torch_file(write_zip(tmp_path / "x.pth", [Claim((4,), (1,))], content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"content": bytes(15)}, "cut off"),
        ({"count": 5}, "a storage of 5 numbers"),
        ({"count": -1}, "a storage of -1 numbers"),
        ({"keys": ()}, "other storages"),
        ({"keys": ("1",)}, "other storages"),
        ({"keys": ([],)}, "no list of its storages"),
    ],
)
def test_storages_of_the_older_format(tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        read_torch_file(write_old(tmp_path / "x.pth", [Claim((4,), (1,))], **change))


def test_a_compressed_file_is_no_bomb(tmp_path):
    claim = Claim((2**28,), (1,), count=2**28)
    path = write_zip(tmp_path / "x.pth", [claim], bytes(1 << 24), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_torch_file(path)


def test_a_bit_that_changed_is_noticed(tmp_path):
    """The archive has checksums, which torch.load does not compare."""
    path = tmp_path / "x.pth"
    torch.save({"x": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    start = content.index(bytes(4000))
    content[start + 2000] = 64
    path.write_bytes(content)
    assert torch.load(path)["x"].any()
    with pytest.raises(ValueError, match=r"not a whole file .*CRC"):
        read_torch_file(path)


def test_other_archives(tmp_path):
    path = tmp_path / "x.pth"
    write_zip(path, [Claim((4,), (1,))], byteorder="big")
    with pytest.raises(ValueError, match="another byte order"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(ValueError, match=r"without one data\.pkl"):
        read_torch_file(path)
    with tarfile.open(path, "w") as archive:  # torch's first format
        archive.addfile(tarfile.TarInfo("tensors"))
    with pytest.raises(ValueError, match="not a whole file"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="expected a file, got a folder"):
        read_torch_file(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole file"):
        read_torch_file(path)


def test_pickles_that_never_end(write):
    nested = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    path = write([1])
    if path.read_bytes()[:2] == b"PK":
        write_zip(path, nested)
        with pytest.raises(ValueError, match="nested more than 100 levels"):
            read_torch_file(path)
    tree: dict = {}
    tree["model"] = tree
    path = write(tree, b"") if path.read_bytes()[:2] == b"PK" else write(tree, keys=())
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        read_state(path)


#: A tuple of 2^60 values, and one of many levels.
WIDE, DEEP = b")" + b"q\x00h\x00\x86" * 60, b")" + b"\x85" * 10_000
FILE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"


@pytest.mark.parametrize("value", [WIDE, DEEP], ids=["wide", "deep"])
@pytest.mark.parametrize(
    "around",
    [
        b"cnumpy\ndtype\n%b\x85R.",
        b"c_codecs\nencode\n(X\1\0\0\x00a%btR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + FILE + b"K\x00%b(K\1tI00\n}tR.",
        b"ctorch\ndevice\n%b\x85R.",
        b"(X\7\0\0\0storage%btQ.",
        b"cargparse\nNamespace\n)R}X\1\0\0\x00a%bsb.",
        b"%b.",
        b"](%be.",
        b"}X\1\0\0\x00a%bs.",
    ],
)
def test_tuples_that_no_hash_comes_to_the_end_of(tmp_path, around, value):
    path = write_zip(tmp_path / "x.pth", around.replace(b"%b", value))
    with pytest.raises(ValueError, match=r"x\.pth: (not a whole|refused).*(values than|levels)"):
        read_torch_file(path)


def test_many_tuples_of_one(tmp_path):
    """The calls take six bytes each and get a tuple of a thousand values each."""
    calls = b"(" + b"N" * 1000 + b"tq\0ctorch\nSize\nq\1(" + b"h\1h\0\x85R" * 1000 + b"l."
    with pytest.raises(ValueError, match="more values than its bytes"):
        read_torch_file(write_zip(tmp_path / "x.pth", calls))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (b"X\x03\0\0\0abc", "expected the arguments of a function, got 'abc'"),
        (b"]q\x05", "expected the arguments of a function, got a list"),
        (b"(K\1K\2K\3t", "damaged pickle"),
    ],
)
def test_arguments_of_a_tensor_with_attributes(tmp_path, given, reason):
    """A text that a call takes apart is as many values as it has characters."""
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\ndevice\nN" + given + b"NtR."
    with pytest.raises(ValueError, match=reason):
        read_torch_file(write_zip(tmp_path / "x.pth", call))


@pytest.mark.parametrize("value", [WIDE, DEEP], ids=["wide", "deep"])
def test_tuples_for_the_names_of_storages(tmp_path, value):
    path = write_old(tmp_path / "x.pth", [], b"", keys=())
    content = path.read_bytes()
    end = content.rindex(pickle.dumps([], 2))
    path.write_bytes(content[:end] + b"]" + value + b"a.")
    with pytest.raises(ValueError, match="no list of its storages"):
        read_torch_file(path)


WEIGHT = torch.ones(2)


@pytest.mark.parametrize(
    "saved",
    [
        {"a.b": WEIGHT},
        {"model": {"a.b": WEIGHT}},
        {"state_dict": {"model.a.b": WEIGHT}, "epoch": 3},
        {"model_ema": {"module.a.b": WEIGHT}, "args": argparse.Namespace()},
        {"checkpoint": None, "model": {"state_dict": {"a.b": WEIGHT}}},
        {"teacher": {"module.a.b": WEIGHT}, "student": {"module.a.b": -WEIGHT}},
        {"module._orig_mod.a.b": WEIGHT},
        {"_orig_mod.module.a.b": WEIGHT},
        {"a._orig_mod.b": WEIGHT},
        {"n_averaged": torch.tensor(3), "module.a.b": WEIGHT},
        {"model": 3, "state_dict": {"a.b": WEIGHT}},
    ],
)
def test_weights_as_publishers_wrap_them(save, saved):
    state = weights_in(read_torch_file(save(saved)))
    assert list(state) == ["a.b"] and torch.equal(state["a.b"], WEIGHT)


@pytest.mark.parametrize("tree", [[WEIGHT], {}, {"model": {}}, {"epoch": 3}, WEIGHT, {3: WEIGHT}])
def test_no_weights(tree):
    with pytest.raises(ValueError, match=r"expected a state dict of tensors|names of tensors"):
        weights_in(tree)
