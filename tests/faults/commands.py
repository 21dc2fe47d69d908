"""The commands that the faults are tried on, and their data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.faults.sweep import Command
from tests.models import small
from tests.shards import work
from tests.stages import tiny
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.models import checkpoints
from weaktr.outputs import begin
from weaktr.recipes import dump_recipe

DRAWN = "COCO_val2014_000000000001"
VIT = {"image_size": 32, "patch_size": 16}
QUICK = [
    "short_side=32", "window=32", "stride=32", "ratios=[1.0]", "flip=false", "ensemble=plain",
]  # fmt: skip


def prepare(home: Path) -> None:
    """Draw photographs, and make models and a recipe."""
    torch.manual_seed(0)
    (home / "photos").mkdir(parents=True)
    for name in "abc":
        noise = np.random.default_rng(ord(name)).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(home / "photos" / f"{name}.png")
    for number, pair in enumerate(("ab", "cd")):
        files: dict[str, bytes] = {}
        for name in pair:
            files |= {f"{name}.png": work.photograph(ord(name)), f"{name}.cls": b"cat"}
        work.write_tar(home / "tars" / f"{number}.tar", files)
    rows = "".join(f"{name}.png,cat\n" for name in "abc")
    (home / "photos" / "labels.csv").write_text("image,labels\n" + rows)
    known = {"classes": {"names": ["cat", "dog"]}}
    checkpoints.save(small.tiny_cam_model(), home / "cam.safetensors", **known)
    segmenter = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", **VIT,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    checkpoints.save(segmenter, home / "seg.safetensors", **known)
    tiny.squares(home / "squares", count=4)
    image = {"id": 1, "file_name": f"{DRAWN}.jpg", "height": 4, "width": 5}
    triangle = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 9}
    triangle |= {"bbox": [0, 0, 3, 3], "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    category = {"id": 1, "name": "person"}
    annotations = {"images": [image], "categories": [category], "annotations": [triangle]}
    (home / "instances").mkdir()
    (home / "instances" / "val.json").write_text(json.dumps(annotations))


def _masks(*folders: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for folder in map(Path, folders):
        masks = MaskFolder(folder, verify=True)
        digests = {name: (e.sha256, e.given, e.inputs) for name, e in masks.entries.items()}
        found[folder.name] = (digests, sorted(masks.without))
        found[f"files of {folder.name}"] = sorted(p.name for p in (folder / "masks").iterdir())
    return found


def _of_out(home: Path) -> dict[str, object]:
    out = home / "out"
    found = _masks(str(out), str(out / "before_refinement"))
    extra = [p for name in ("cams", "confidence", "scores") for p in sorted((out / name).glob("*"))]
    found |= {str(path.relative_to(home)): path.read_bytes() for path in extra}
    return found


def _of_shards(home: Path) -> dict[str, object]:
    out = home / "out"
    found: dict[str, object] = {**work.files_in(out)}
    for record in sorted((out / "index").glob("*.json")):
        content = json.loads(record.read_text())
        kept = "format", "shard", "made_from", "outputs", "statistics"
        found[record.name] = [content[key] for key in kept]
    found["rest"] = sorted(path.name for path in out.iterdir() if path.name[0] != ".")
    return found


def _of_run(home: Path) -> dict[str, object]:
    run = home / "run"
    found = _masks(str(run / "label"), str(run / "predict"))
    for stage in ("train_cam", "train_seg"):
        state = load_file(run / stage / "model.safetensors")
        found[stage] = {name: tensor.numpy().tobytes() for name, tensor in state.items()}
        log = (run / stage / "metrics.jsonl").read_text().splitlines()
        found[f"losses of {stage}"] = [json.loads(line)["loss"] for line in log]
    found["metrics"] = json.loads((run / "metrics.json").read_text())
    found["rest"] = sorted(path.name for path in run.iterdir() if path.name[0] != ".")
    return found


def _of_file(name: str) -> Callable[[Path], dict[str, object]]:
    return lambda home: {name: (home / name).read_bytes()}


def _label(home: Path) -> list[str]:
    return [
        "label", str(home / "cam.safetensors"), str(home / "photos"), "--out", str(home / "out"),
        "--emit", "confidence,cam", "--set", "scales=[1.0]", "--set", "flip=false",
    ]  # fmt: skip


def _label_in_shards(home: Path) -> list[str]:
    return [*_label(home), "--shard-size", "2"]


def _label_tars(home: Path) -> list[str]:
    return [str(home / "tars") if part == str(home / "photos") else part for part in _label(home)]


def _predict(home: Path) -> list[str]:
    settings = [part for setting in QUICK for part in ("--set", setting)]
    return [
        "predict", str(home / "seg.safetensors"), str(home / "photos"), "--out", str(home / "out"),
        "--dump-scores", *settings,
    ]  # fmt: skip


def _train(home: Path) -> list[str]:
    recipe = home / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(dump_recipe(tiny.recipe(home / "squares")))
    return [str(recipe), "--out", str(home / "run"), "--set", "checkpoint_steps=1"]


def _draw(home: Path) -> list[str]:
    instances = home / "instances" / "val.json"
    return ["data", "masks", "coco14", str(instances), "--out", str(home / "drawn")]


def _write(home: Path) -> list[str]:
    return ["data", "write", "folder", str(home / "photos"), "--out", str(home / "manifest.json")]


def _export(home: Path) -> list[str]:
    """An export of masks that were exported before, and have been changed since."""
    labelled, out = home / "labelled", home / "out"
    command = ["export-masks", str(labelled), "--to", "coco", "--out", str(out)]
    if not labelled.exists():
        about = {"command": "label", "photographs": str(home / "photos"), "classes": ["cat", "dog"]}
        labelled.mkdir()
        begin(labelled, "x", about=about)
        masks = MaskFolder(labelled)
        for name in "abc":
            masks.add(name, np.ones((40, 50), np.uint8))
        if cli.main(command) != 0:
            raise RuntimeError("no export")
        masks.add("a", np.full((40, 50), 2, np.uint8))
    return command


def _of_export(home: Path) -> dict[str, object]:
    files = [path for path in sorted((home / "out").rglob("*")) if path.is_file()]
    kept = [path for path in files if path.name[0] != "." and path.name != "inputs.json"]
    found: dict[str, object] = {str(path.relative_to(home)): path.read_bytes() for path in kept}
    hidden = {path.name for path in (home / "out").glob(".*")} - {".weaktr-lock", ".contents.json"}
    found["rest"] = sorted([*hidden, *(path.name for path in home.glob("out.old-*"))])
    return found


PHOTOS = ("photos", "tars", "cam.safetensors", "seg.safetensors")
COMMANDS = {
    "label": Command("weaktr", _label, _of_out, PHOTOS),
    "label in shards": Command("weaktr", _label_in_shards, _of_shards, PHOTOS),
    "label tars": Command("weaktr", _label_tars, _of_shards, PHOTOS),
    "predict": Command("weaktr", _predict, _of_out, PHOTOS),
    "train": Command("weaktr-train", _train, _of_run, ("squares",)),
    "export": Command("weaktr", _export, _of_export, PHOTOS),
    "draw": Command("weaktr", _draw, _of_file(f"drawn/{DRAWN}.png"), ("instances",)),
    "write": Command("weaktr", _write, _of_file("manifest.json"), PHOTOS),
}
