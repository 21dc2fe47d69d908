"""What README and the pages of docs say to type runs as it is written there.

In a folder with some photographs and tiny models; `SKIPPED` says what is not run, and why.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.stages import tiny
from weaktr import cli
from weaktr.config import Recipe
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.export import ONNX_PACKAGES
from weaktr.recipes import dump_recipe, load_recipe, make

ROOT = Path(__file__).parents[1]
PAGES = ("README", "docs/own_data", "docs/labelling", "docs/crf", "docs/evaluation",
         "docs/checkpoints", "docs/report")  # fmt: skip
#: How a line begins that is not run -> why.
SKIPPED = {
    "make ": "installs, and trains for minutes",
    "pip install ": "installs",
    "weaktr-train own_dinov2_s": "needs weights of timm's hub",
    "weaktr-train photos/recipe.yaml": "needs weights of timm's hub",
    "weaktr show runs/own_dinov2_s": "shows that run",
    "weaktr data check coco14": "needs MS COCO",
    "weaktr data masks coco14": "needs MS COCO",
    "weaktr label model.safetensors data/coco": "needs MS COCO",
    "weaktr label model.safetensors 's3://": "needs photographs of another place",
    "weaktr predict model.safetensors VOC2012": "needs PASCAL VOC",
    "weaktr eval val/ VOC2012": "needs PASCAL VOC",
    "weaktr label model.safetensors photos/ --set 'refiners=[{propagation": "needs masks of SAM",
    "weaktr import ": "needs checkpoints of the published code; see tests/cli/test_import.py",
    "weaktr eval masks/ truth/ --classes voc12": "needs models of VOC's classes",
}
FRUIT = ("apple", "banana")


def blocks(page: str, *kinds: str) -> list[str]:
    """The code blocks of a page of these kinds, "" = of none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / f"{page}.md").read_text(), re.M | re.S)
    return [text for kind, text in found if kind in kinds]


def commands(page: str) -> list[str]:
    """The lines of a page that are typed into a shell."""
    first = ("weaktr ", "weaktr-train ", "make ", "pip install ")
    lines = [line for text in blocks(page, "sh", "") for line in text.splitlines()]
    return [line for line in lines if line.startswith(first)]


def reason(line: str) -> str | None:
    """How a line begins that is skipped."""
    return next((start for start in SKIPPED if line.startswith(start)), None)


def draw(photograph: Path, seed: int, mask: Path | None = None) -> None:
    """A noisy photograph with a square, red or yellow, and its mask."""
    pixels = np.random.default_rng(seed).integers(90, 140, (40, 48, 3)).astype(np.uint8)
    pixels[8:24, 10:30] = ((230, 40, 40), (230, 230, 40))[seed % 2]
    photograph.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(photograph)
    if mask is not None:
        labels = np.zeros((40, 48), np.uint8)
        labels[8:24, 10:30] = seed % 2 + 1
        write_mask(mask, labels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages take for granted."""
    root = tmp_path_factory.mktemp("place")
    names = [f"shop/{number:04}" for number in range(1, 25)]
    for seed, name in enumerate(names):
        draw(root / f"photos/images/{name}.jpg", seed, root / f"photos/masks/{name}.png")
    for seed in range(4):
        draw(root / f"more_photos/{seed}.jpg", 100 + seed)
        draw(root / f"new_photos/{seed}.jpg", 200 + seed)
    draw(root / "photo.jpg", 0)
    rows = [f"{name}.jpg,{FRUIT[seed % 2]}" for seed, name in enumerate(names)]
    for split, part in {"labels": rows, "train": rows[:20], "val": rows[20:]}.items():
        (root / f"photos/{split}.csv").write_text("\n".join(["image,labels", *part]) + "\n")
    (root / "photos/classes.txt").write_text("\n".join(FRUIT))
    tree = tiny.tree(Path("photos"))
    for name in ("my_recipe", "my", "fruit"):
        recipe = dump_recipe(make(Recipe, tree | {"name": name}))
        (root / f"{name}.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.train_main(["my_recipe.yaml", "--out", "runs/mine"]) == 0
    for name in ("fruit", "photos"):
        shutil.copytree(root / "runs/mine", root / "runs" / name)
    for stage, name in (("cam", "train_cam"), ("seg", "train_seg")):
        shutil.copytree(root / "runs/mine" / name, root / "released" / stage)
    shutil.copy(root / "released/cam/model.safetensors", root)
    return root


@pytest.fixture(scope="module")
def typed():
    """The commands that were run already, which also another page may have."""
    return set()


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


#: Exporting takes longer than all other commands together; `tests/export` does it too.
RARE = {"docs/checkpoints": [pytest.mark.rare]}


@pytest.mark.parametrize("page", [pytest.param(page, marks=RARE.get(page, [])) for page in PAGES])
def test_commands_run_as_they_are_written(page, here, typed):
    for line in commands(page):
        if reason(line):
            continue
        if "--onnx" in line:
            for name in ONNX_PACKAGES:
                pytest.importorskip(name)
        program, *arguments = shlex.split(line, comments=True)
        if (program, *arguments) in typed:
            continue
        typed.add((program, *arguments))
        if arguments[0] in ("label", "predict"):
            default = {"label": "labels", "predict": "predictions"}[arguments[0]]
            out = Path(arguments[arguments.index("--out") + 1] if "--out" in arguments else default)
            shutil.rmtree(out, ignore_errors=True)  # as if it were the first command
        code = (cli.train_main if program == "weaktr-train" else cli.main)(arguments)
        assert code == 0, line
        if arguments[0] in ("label", "predict"):
            every = len(list(Path(arguments[2]).rglob("*.jpg")))
            assert len(MaskFolder(out, verify=True)) == every, line


def test_skipped_lines_are_those_of_the_pages():
    every = [line for page in PAGES for line in commands(page)]
    assert {reason(line) for line in every} == {None, *SKIPPED}


def run_python(page: str, **names: object) -> dict[str, object]:
    """What the names of a page's Python stand for after it ran, given those it leaves open."""
    for text in blocks(page, "python"):
        exec(compile(text, page, "exec"), names)
    return names


def test_python_of_the_readme(here):
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    names = run_python("README", image=image, unary=np.ones((4, 24, 30), np.float32))
    assert load_recipe(names["run"] / "recipe.yaml").label.threshold == 0.4
    assert names["model"].classes == FRUIT
    assert names["cams"].shape == (2, 40, 48) and names["cams"].dtype == np.float32
    assert (names["mask"].shape, names["mask"].dtype) == ((24, 30), np.uint8)
    assert sum(names["mask"].labels().values()) == pytest.approx(1)
    assert len(names["masks"]) == len(MaskFolder(here / "plain", verify=True)) == 4
    assert len(MaskFolder(here / "labels_04", verify=True)) == 24
    assert names["marginals"].shape == (4, 24, 30) and names["refined"].shape == (24, 30)


def test_python_of_own_data(here):
    names = run_python("docs/own_data")
    assert len(names["manifest"]) == 20 and (here / "train.json").is_file()


def test_python_of_crf(here):
    rng = np.random.default_rng(0)
    image, other = (rng.integers(0, 256, (h, 20, 3), np.uint8) for h in (16, 12))
    label_map, other_map = (rng.integers(0, 2, (h, 20)).astype(np.uint8) for h in (16, 12))
    probabilities = np.full((3, 16, 20), 1 / 3, np.float32)
    names = run_python(
        "docs/crf", image=image, other=other, label_map=label_map, other_map=other_map,
        probabilities=probabilities, unary=-np.log(probabilities),
        volume=rng.random((5, 6, 7), np.float32), volume_unary=np.ones((2, 5, 6, 7), np.float32),
    )  # fmt: skip
    assert names["labels"].shape == (16, 20) and len(names["masks"]) == 2
    assert names["marginals"].shape == (3, 16, 20)
    np.testing.assert_allclose(names["marginals"].sum(0), 1, atol=1e-5)


@pytest.mark.rare
def test_python_of_checkpoints(here, capsys):
    for name in ONNX_PACKAGES:
        pytest.importorskip(name)
    if not (here / "weaktr.onnx").exists():  # the page's commands have made it, where they were run
        assert cli.main(["export", "released/seg/model.safetensors", "--onnx", "weaktr.onnx"]) == 0
    capsys.readouterr()
    names = run_python("docs/checkpoints")
    assert names["mask"].shape == (40, 48)
    assert set(eval(capsys.readouterr().out)) <= {"background", *FRUIT}
