"""Every reader of files that users give or that processes leave: a row each.

A row has whole files, small and made in code, and what reads them. A damaged file must be read, or
refused by an exception of `ALLOWED` in one line that names the file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.data import trees
from tests.data.prepare import official_archives as little
from tests.data.proposals import proposal
from tests.published import save_variant
from tests.stages import tiny
from weaktr.contents import Contents, FileState
from weaktr.data import Manifest, Sample, coco14, folder, read_names, render_masks, voc12
from weaktr.data.array_cache import ArrayCache
from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.io import image_size, read_labels, read_rgb
from weaktr.data.masks import MaskFolder
from weaktr.data.photographs import read_photograph
from weaktr.data.prepare.archives import Ledger
from weaktr.data.prepare.matlab import read_mat
from weaktr.data.prepare.sources import Sources
from weaktr.data.prepare.unpack import unpack
from weaktr.data.proposals import read_proposals
from weaktr.data.sources.scenes import scenes
from weaktr.data.sources.tar import tar
from weaktr.data.stored_maps import (
    SoftLabels,
    npz_of_cams,
    npz_of_soft_labels,
    read_cams,
    read_soft_labels,
)
from weaktr.evaluation.folders import written_conditions
from weaktr.files import write_bytes
from weaktr.inference.threshold import Choice, read_choice, write_choice
from weaktr.models import CamModel, checkpoints
from weaktr.models.pretrained import read_state
from weaktr.models.released.torch_file import read_torch_file
from weaktr.models.released.variant import read_variant
from weaktr.outputs import read_inputs
from weaktr.recipes import dump_recipe, load_recipe
from weaktr.refine.proposals import checked_runs
from weaktr.seals import BLANK, SEAL, sealed
from weaktr.training.metrics import entries_in
from weaktr.training.state import load_state

#: Relative path -> content.
Files = dict[str, bytes]
#: What a reader may raise: wrong content, or a file that cannot be opened.
ALLOWED = (ValueError, OSError)
GIB = 1 << 30


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Args:
        name: in tables and of the cases.
        file: the one that is damaged.
        kind: of `mutate.FORMATS`.
        whole: gives the whole files.
        read: reads them, given their folder.
        others: gives further whole contents of `file`, to mix with.
        allowed: the exceptions of a refusal.
        names_the_file: whether the message of a refusal contains the name of `file`.
        memory: bytes beside those of the imports that reading may take.
        share: of the cases, in proportion to the others'.
    """

    name: str
    file: str
    kind: str
    whole: Callable[[], Files]
    read: Callable[[Path], object]
    others: Callable[[], list[bytes]] = field(default=list)
    allowed: tuple[type[Exception], ...] = ALLOWED
    names_the_file: bool = True
    memory: int = GIB
    share: float = 1.0


def files_of(build: Callable[[Path], object]) -> Callable[[], Files]:
    """The files that `build` writes into a folder, made once; the same whenever they are made."""

    @cache
    def made() -> Files:
        with tempfile.TemporaryDirectory() as place:
            build(Path(place))
            paths = [path for path in Path(place).rglob("*") if path.is_file()]
            files = {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}
        return {
            name: _timeless(content.replace(place.encode(), b"/data"))
            for name, content in files.items()
        }

    return made


def _timeless(content: bytes) -> bytes:
    """A zip without the time at which it was made; any other file as it is."""
    if not content.startswith(b"PK"):
        return content
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            member = zipfile.ZipInfo(info.filename)
            member.compress_type = info.compress_type
            new.writestr(member, old.read(info))
    return buffer.getvalue()


# ---- label files --------------------------------------------------------------------------------


def _photographs(root: Path) -> None:
    for seed, name in enumerate(("a", "b/c")):
        trees.write_image(root / f"images/{name}.png", (4, 5), seed)


def _csv(root: Path) -> None:
    _photographs(root)
    trees.write_csv(
        root / "labels.csv", [["image", "labels"], ["a.png", "cat;dog"], ["b/c.png", ""]]
    )


def _columns(root: Path) -> None:
    _photographs(root)
    rows = [["image", "cat", "dog"], ["a.png", "1", "0"], ["b/c.png", "0", "1"]]
    trees.write_csv(root / "labels.csv", rows)


def _label_json(root: Path) -> None:
    _photographs(root)
    (root / "labels.json").write_text('{"a.png": ["cat", "dog"], "b/c.png": []}')


def _classes(root: Path) -> None:
    _csv(root)
    trees.write_list(root / "classes.txt", ["cat", "dog"])


def _coco(root: Path) -> None:
    path = trees.coco_json(root / "annotations/instances_train2014.json")
    content = json.loads(path.read_text())
    text = {"size": list(trees.SIZE), "counts": "P1X45J"}
    runs = {"size": list(trees.SIZE), "counts": [0, 48, 720]}
    for entry, outline in zip(content["annotations"], (text, runs), strict=False):
        entry |= {"segmentation": outline, "iscrowd": 1}
    path.write_text(json.dumps(content))
    trees.write_image(root / "images/COCO_train2014_000000000009.jpg")


def _read_coco(root: Path) -> None:
    path = root / "annotations/instances_train2014.json"
    coco14(root, problems=[])
    for ids in (90, "json"):
        render_masks(path, root / "masks", ids=ids, problems=[])  # type: ignore[arg-type]


def _shard(root: Path) -> None:
    trees.write_image(root / "a.png", (6, 8))
    image = (root / "a.png").read_bytes()
    (root / "a.png").unlink()
    files = {"a.png": image, "a.cls": b"dog cat", "b/c.png": image, "b/c.json": b'{"labels": []}'}
    content = little.tar(files | {"b/c.mask.png": image, "b/c.txt": b"1"})
    (root / "train-0.tar").write_bytes(content)


def _read_shard(root: Path) -> None:
    contents = Contents()
    for sample in tar(root):
        contents.digest(sample.image)
        read_rgb(sample.image, sample.source)


def _manifest(root: Path) -> None:
    _csv(root)
    path = root / "manifest.json"
    folder(root).save(path)  # its seal depends on `root`, which is said of each sample
    path.write_bytes(SEAL.sub(BLANK.encode(), path.read_bytes()))


def _read_manifest(root: Path) -> None:
    Manifest.load(root / "manifest.json").fingerprint()


def _npy_of(content: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _cls_labels() -> Files:
    vector = np.zeros(20, np.float32)
    return {"cls_labels.npy": _npy_of({"2007_000032": vector, "2007_000039": vector + 1})}


# ---- images -------------------------------------------------------------------------------------


def _image_file(suffix: str, mode: str = "RGB") -> bytes:
    """A small image with EXIF where the format has it."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA").convert(mode)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    has_exif = suffix in (".jpg", ".png", ".webp", ".tif", ".avif")
    file_format = Image.registered_extensions()[suffix]
    picture.save(buffer, file_format, **({"exif": exif} if has_exif else {}))
    return buffer.getvalue()


def _read_image(name: str) -> Callable[[Path], object]:
    def read(root: Path) -> None:
        path = root / name
        size = image_size(path)
        pixels = read_rgb(path, exif="apply")
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
        assert sorted(pixels.shape[:2]) == sorted(size)
        sample = Sample("a", path, None, None, "list:1", exif="apply")
        assert max(read_photograph(sample, 8).pixels.shape[:2]) <= 8

    return read


def _image(suffix: str, kind: str = "bytes", modes: tuple[str, ...] = ()) -> Reader:
    """The row of a format; `modes`: of further images, beside RGB and grey."""
    name = f"a{suffix}"
    return Reader(
        f"image {suffix[1:]}",
        name,
        kind,
        lambda: {name: _image_file(suffix)},
        _read_image(name),
        others=lambda: [_image_file(suffix, mode) for mode in ("L", *modes)],
        memory=4 * GIB,
    )


def _mask(mode: str) -> bytes:
    values = np.zeros((6, 7), np.uint16 if mode == "I;16" else np.uint8)
    values[2:4, 1:5] = 2
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _read_mask(root: Path) -> None:
    labels = read_labels(root / "mask.png", 3)
    assert labels.dtype == np.uint8 and np.isin(labels, (0, 1, 2, 255)).all()


# ---- archives and what a preparation notes ------------------------------------------------------


def _members() -> Files:
    return {f"top/JPEGImages/{name}.jpg": name.encode() * 50 for name in ("a", "b", "c")}


def _unpack(name: str) -> Callable[[Path], object]:
    def read(root: Path) -> None:
        unpack(root / name, root / "unpacked/deep", lambda member: member)
        assert {path.name for path in root.iterdir()} == {name, "unpacked"}
        assert [path.name for path in (root / "unpacked").iterdir()] == ["deep"]

    return read


def _ledger(root: Path) -> None:
    (root / "a.zip").write_bytes(b"x")
    os.utime(root / "a.zip", (0, 0))
    Ledger(root).add(root / "a.zip", "verified", "0" * 32)


def _origins(root: Path) -> None:
    Sources(root, fetch=True).origin("masks", "drawn")


# ---- models and runs ----------------------------------------------------------------------------


def _checkpoint(root: Path) -> None:
    torch.manual_seed(0)
    checkpoints.save(
        CamModel(tiny.recipe(root).cam_model, 3), root / "model", classes={"names": tiny.NAMES}
    )


def _read_checkpoint(root: Path) -> None:
    checkpoints.load(root / "model.safetensors")


def _torch_file(root: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
    torch.save({"model": state, "epoch": 3, "miou": np.float64(0.5)}, root / "a.pth")


def _legacy_torch_file(root: Path) -> None:
    buffer = io.BytesIO()
    state = {"model": {"a.weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    address = rb"X.\0\0\0\d{9,}"  # torch takes it as the name of the numbers
    (root / "a.pth").write_bytes(re.sub(address, b"X\1\0\0\0001", buffer.getvalue()))


def _read_torch_file(root: Path) -> None:
    read_torch_file(root / "a.pth")
    read_state(root / "a.pth")


def _weights(root: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, root / "a.safetensors")


def _augreg(root: Path) -> None:
    base = "Transformer/encoderblock_0/"
    attention = base + "MultiHeadDotProductAttention_1/"
    arrays = {
        "cls": np.zeros((1, 1, 4)),
        "Transformer/posembed_input/pos_embedding": np.zeros((1, 5, 4)),
        "embedding/kernel": np.zeros((2, 2, 3, 4)),
        "embedding/bias": np.zeros(4),
        "Transformer/encoder_norm/scale": np.ones(4),
        "Transformer/encoder_norm/bias": np.zeros(4),
        **{f"{attention}{n}/kernel": np.zeros((4, 2, 2)) for n in ("query", "key", "value")},
        **{f"{attention}{n}/bias": np.zeros((2, 2)) for n in ("query", "key", "value")},
        f"{attention}out/kernel": np.zeros((2, 2, 4)),
        f"{attention}out/bias": np.zeros(4),
    }
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        arrays |= {f"{base}{norm}/scale": np.ones(4), f"{base}{norm}/bias": np.zeros(4)}
    for k, (rows, columns) in enumerate(((4, 8), (8, 4))):
        arrays[f"{base}MlpBlock_3/Dense_{k}/kernel"] = np.zeros((rows, columns))
        arrays[f"{base}MlpBlock_3/Dense_{k}/bias"] = np.zeros(columns)
    np.savez(root / "a.npz", **arrays)  # type: ignore[arg-type]


def _state(root: Path) -> None:
    tensors = {"model": {"w": torch.ones(3)}, "optimizer": {"state": {0: torch.zeros(3)}}}
    buffer = io.BytesIO()  # as `save_state`, whose files also hold their first name
    torch.save(
        tensors | {"step": 7, "random": {"torch": torch.zeros(5000, dtype=torch.uint8)}}, buffer
    )
    (root / "state.pt").write_bytes(buffer.getvalue())


def _masks(root: Path) -> None:
    masks = MaskFolder(root)
    for name in ("a", "b/c"):
        masks.add(name, np.ones((2, 3), np.uint8))
    entry = masks.write("d", np.zeros((2, 3), np.uint8), predicted={1: 0.5}, working_size=(1, 2))
    masks.record(entry)
    settings = {"attention_type": "fused", "threshold": 0.5, "scales": [1.0]}
    (root / "inputs.json").write_text(json.dumps({"made_from": "0" * 32, "settings": settings}))


def _read_index(root: Path) -> None:
    masks = MaskFolder(root, verify=True)
    for name in masks.entries:
        masks.read(name)


def _read_inputs(root: Path) -> None:
    read_inputs(root)
    written_conditions(root, "val")


def _choice(root: Path) -> None:
    write_choice(Choice(0.3, "auto", "variance", ("a", "b/c"), ((0.3, 0.5), (0.4, 0.2))), root)


def _read_choice(root: Path) -> None:
    path = root / "threshold.json"
    content = path.read_bytes() if path.is_file() else b""
    if (seal := SEAL.search(content)) is not None:  # so that more than the seal is looked at
        path.write_bytes(sealed(content.replace(seal[0], BLANK.encode(), 1)))
    read_choice(root)


def _metrics(root: Path) -> None:
    entries = [{"epoch": 0, "step": 3, "loss": 0.5}, {"epoch": 0, "step": 3, "fisher": 0.25}]
    (root / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _contents(root: Path) -> None:
    (root / "a.png").write_bytes(b"a")
    state = FileState("0" * 64, 1, 2, 3, 4)
    (root / ".contents.json").write_text(json.dumps({"/data/a.png": state, "/data/b.png": state}))


def _read_contents(root: Path) -> None:
    contents = Contents(root / ".contents.json")
    assert contents.digest(root / "a.png") == hashlib.sha256(b"a").hexdigest()
    contents.save()


def _recipe(root: Path) -> None:
    (root / "mine.yaml").write_text(dump_recipe(tiny.recipe(root)))


def _stage1_variant(root: Path) -> None:
    (root / "variant.yml").write_text("pool_type: gmp\nreduction: 16\nepochs: 60\n")


def _stage2_variant(root: Path) -> None:
    save_variant(root / "variant.yml")


def _cams(root: Path) -> None:
    write_bytes(
        root / "a.npz", npz_of_cams(np.random.default_rng(0).random((2, 3, 4), np.float32), (0, 5))
    )


def _cached(root: Path) -> None:
    ArrayCache(root).put(32 * "a", {"patches": np.ones((2, 3, 4), np.float16)})


def _read_cached(root: Path) -> None:
    ArrayCache(root).get(32 * "a")


def _soft_labels(root: Path) -> None:
    shares = np.random.default_rng(0).integers(1, 256, (2, 3, 4), np.uint8)
    write_bytes(root / "a.npz", npz_of_soft_labels(SoftLabels(shares, (0, 5)), (12, 16)))


def _proposals(root: Path) -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:, 2:] = True
    entries = [proposal(mask, image_id="a"), proposal(~mask, image="b/c.png")]
    entries[1]["segmentation"]["counts"] = "093H000"  # the same, compressed
    (root / "proposals.json").write_text(json.dumps(entries))


def _read_proposals(root: Path) -> None:
    there = read_proposals(root / "proposals.json")
    for name in ("a", "b/c"):
        for entry in there.of(name):
            checked_runs(entry, (4, 5))


def _published_cams() -> Files:
    return {"a.npy": _npy_of({0: np.ones((3, 4), np.float32), 7: np.zeros((3, 4), np.float32)})}


def _scenes(root: Path) -> None:
    scenes(root, 2, size=16)


def _read_scenes(root: Path) -> None:
    scenes(root, 2, size=16)


def _rows() -> tuple[Reader, ...]:
    voc = "VOCdevkit/VOC2012"
    voc_files = files_of(trees.voc_tree)
    segmentation = np.zeros((4, 5), np.uint8)
    mats = [little.sbd_mat(segmentation, compressed=flag) for flag in (False, True)]
    zips = [_timeless(little.zipped(_members()))]
    tars = [little.tar(_members()), gzip.compress(little.tar(_members()), mtime=0)]
    return (
        Reader("labels.csv", "labels.csv", "cells", files_of(_csv), folder),
        Reader("labels.csv columns", "labels.csv", "cells", files_of(_columns), folder),
        Reader("labels.json", "labels.json", "json", files_of(_label_json), folder),
        Reader("classes.txt", "classes.txt", "cells", files_of(_classes), folder),
        Reader(
            "names", "names.txt", "cells", lambda: {"names.txt": b"2007_000032\nb/c\nd 1\n"},
            lambda root: read_names(root / "names.txt"),
        ),
        Reader(
            "VOC xml", f"{voc}/Annotations/2007_000001.xml", "xml", voc_files,
            lambda root: voc12(root / voc), share=0.3,
        ),
        Reader(
            "VOC list", f"{voc}/ImageSets/Segmentation/train.txt", "cells", voc_files,
            lambda root: voc12(root / voc),
        ),
        Reader(
            "COCO instances", "annotations/instances_train2014.json", "json", files_of(_coco),
            _read_coco, share=4,
        ),
        Reader("shard", "train-0.tar", "tar", files_of(_shard), _read_shard, share=2),
        Reader("manifest", "manifest.json", "json", files_of(_manifest), _read_manifest),
        Reader(
            "cls_labels.npy", "cls_labels.npy", "npy", _cls_labels,
            lambda root: read_cls_labels(root / "cls_labels.npy"), share=2,
        ),
        Reader(
            "scenes stamp", "train/scenes.json", "json", files_of(_scenes), _read_scenes, share=0.3
        ),
        Reader(
            "scenes labels", "train/labels.csv", "cells", files_of(_scenes), _read_scenes, share=0.3
        ),
        _image(".png", "png", modes=("P", "LA", "1")),
        _image(".jpg", modes=("CMYK",)),
        _image(".bmp", modes=("P", "1")),
        _image(".webp", modes=("RGBA",)),
        _image(".tif", modes=("P", "CMYK", "1")),
        _image(".gif", modes=("P",)),
        _image(".avif"),
        Reader(
            "mask", "mask.png", "png", lambda: {"mask.png": _mask("P")}, _read_mask,
            others=lambda: [_mask("L"), _mask("I;16")], memory=4 * GIB,
        ),
        Reader(
            "mat", "a.mat", "mat", lambda: {"a.mat": mats[1]},
            lambda root: read_mat((root / "a.mat").read_bytes()), others=lambda: mats,
            names_the_file=False,
        ),
        Reader("zip", "a.zip", "zip", lambda: {"a.zip": zips[0]}, _unpack("a.zip")),
        Reader("tar", "a.tar", "tar", lambda: {"a.tar": tars[0]}, _unpack("a.tar")),
        Reader("tar.gz", "a.tgz", "tar", lambda: {"a.tgz": tars[1]}, _unpack("a.tgz")),
        Reader(
            "ledger", ".prepared/a.zip.json", "json", files_of(_ledger),
            lambda root: Ledger(root).has(root / "a.zip", "verified"),
        ),
        Reader(
            "origins", ".prepared/origins.json", "json", files_of(_origins),
            lambda root: Sources(root, fetch=False).origin("masks"),
        ),
        Reader(
            "checkpoint", "model.safetensors", "safetensors", files_of(_checkpoint),
            _read_checkpoint, share=0.5,
        ),
        Reader(
            "weights safetensors", "a.safetensors", "safetensors", files_of(_weights),
            lambda root: read_state(root / "a.safetensors"),
        ),
        Reader(
            "weights npz", "a.npz", "zip", files_of(_augreg),
            lambda root: read_state(root / "a.npz"),
        ),
        Reader("pth", "a.pth", "zip", files_of(_torch_file), _read_torch_file, share=2),
        Reader("pth, older", "a.pth", "bytes", files_of(_legacy_torch_file), _read_torch_file),
        Reader(
            "state.pt", "state.pt", "zip", files_of(_state),
            lambda root: load_state(root / "state.pt"),
        ),
        Reader(
            "variant.yml", "variant.yml", "yaml", files_of(_stage2_variant),
            lambda root: read_variant(root / "variant.yml"), memory=GIB // 8, share=0.4,
        ),
        Reader(
            "variant.yml stage 1", "variant.yml", "yaml", files_of(_stage1_variant),
            lambda root: read_variant(root / "variant.yml"), memory=GIB // 8, share=0.4,
        ),
        Reader(
            "recipe", "mine.yaml", "yaml", files_of(_recipe),
            lambda root: load_recipe(root / "mine.yaml"), memory=GIB // 8, share=0.4,
        ),
        Reader("index.jsonl", "index.jsonl", "json lines", files_of(_masks), _read_index),
        Reader("inputs.json", "inputs.json", "json", files_of(_masks), _read_inputs),
        Reader("threshold.json", "threshold.json", "json", files_of(_choice), _read_choice),
        Reader(
            "metrics.jsonl", "metrics.jsonl", "json lines", files_of(_metrics),
            lambda root: entries_in(root / "metrics.jsonl"),
        ),
        Reader("contents", ".contents.json", "json", files_of(_contents), _read_contents),
        Reader("proposals", "proposals.json", "json", files_of(_proposals), _read_proposals),
        Reader(
            "CAMs npz", "a.npz", "zip", files_of(_cams), lambda root: read_cams(root / "a.npz")
        ),
        Reader("cache", f"{32 * 'a'}.npz", "zip", files_of(_cached), _read_cached),
        Reader(
            "soft labels", "a.npz", "zip", files_of(_soft_labels),
            lambda root: read_soft_labels(root / "a.npz", 6, (12, 16)),
        ),
        Reader(
            "CAMs npy", "a.npy", "npy", _published_cams, lambda root: read_cams(root / "a.npy"),
            share=2,
        ),
    )  # fmt: skip


READERS = {reader.name: reader for reader in _rows()}
