"""The check finds every fault at once; the commands print them."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.data.trees import write_csv, write_image, write_mask
from weaktr.cli.data import run_check, run_stats
from weaktr.data.check import check
from weaktr.data.classes import COCO90, Classes
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.problems import Problem
from weaktr.data.sources.folder import folder

CLASSES = Classes(("cat", "dog"))


@pytest.fixture
def good(tmp_path: Path) -> Manifest:
    samples = []
    for k, labels in enumerate([(0,), (1,), (0, 1)]):
        image = write_image(tmp_path / f"images/{k}.png", seed=k)
        mask = write_mask(tmp_path / f"masks/{k}.png", [label + 1 for label in labels] + [255])
        samples.append(Sample(str(k), image, labels, mask, f"list.csv:{k + 2}"))
    return Manifest("own", "train", CLASSES, tuple(samples))


def only(problems: list[Problem], level: str) -> Problem:
    (problem,) = problems
    assert problem.level == level
    return problem


def change(manifest: Manifest, **changes: object) -> Manifest:
    """The manifest with its second sample changed."""
    first, second, third = manifest.samples
    changed = replace(second, **changes)  # type: ignore[arg-type]
    return replace(manifest, samples=(first, changed, third))


def test_a_whole_data_set_has_no_problems(good: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    assert check(good, workers=2, progress=lambda count, total: seen.append((count, total))) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_missing_and_broken_files(good: Manifest) -> None:
    first, second, third = good.samples
    assert first.mask is not None and third.mask is not None
    first.image.unlink()
    second.image.write_bytes(second.image.read_bytes()[:100])
    third.mask.unlink()
    missing, broken, no_mask = check(good)
    assert (missing.file, missing.where) == (str(first.image), "list.csv:2")
    assert missing.message == "file is missing"
    assert (broken.file, broken.where) == (str(second.image), "list.csv:3")
    assert "cannot be read" in broken.message
    assert (no_mask.file, no_mask.where) == (str(third.mask), "list.csv:4")
    assert {problem.level for problem in (missing, broken, no_mask)} == {"error"}


def test_label_outside_the_class_list(good: Manifest) -> None:
    problem = only(check(change(good, labels=(1, 2))), "error")
    assert problem.message == "labels outside the class list: expected 0..1, got [2]"
    assert problem.where == "list.csv:3"


def test_mask_of_another_size(good: Manifest) -> None:
    mask = good.samples[1].mask
    assert mask is not None
    write_mask(mask, [2], size=(10, 12))
    problem = only(check(good), "error")
    assert "expected 32x24 (width x height), got 12x10" in problem.message
    assert problem.file == str(mask)


def test_mask_values_outside(good: Manifest) -> None:
    mask = good.samples[1].mask
    assert mask is not None
    write_mask(mask, [2, 3, 200])
    assert "got 3, 200" in only(check(good), "error").message


def test_mask_class_that_the_labels_do_not_have(good: Manifest) -> None:
    problem = only(check(change(good, labels=(0,))), "warning")
    assert problem.message == "mask shows dog, which the image's labels do not have"


def test_images_without_labels(good: Manifest) -> None:
    mask = good.samples[1].mask
    assert mask is not None
    write_mask(mask, [])
    problem = only(check(change(good, labels=())), "warning")
    assert "has no label" in problem.message
    assert problem.where == "list.csv:3"


def test_names_twice(good: Manifest) -> None:
    problem = only(check(change(good, name="0")), "error")
    assert problem.message == "name '0' was already declared at list.csv:2"


def test_turned_images(good: Manifest) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    path = good.samples[0].image
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=turned)
    assert "EXIF" in only(check(good), "warning").message


def test_what_only_the_whole_shows(good: Manifest) -> None:
    unseen = replace(good, classes=Classes(("cat", "dog", "cow", "emu")))
    assert only(check(unseen), "warning").message == "2 classes have no image: cow, emu"
    assert (
        "only 2 of 3 images have a mask" in only(check(change(good, mask=None)), "warning").message
    )
    partly = only(check(change(good, labels=None)), "warning").message
    assert partly == "only 2 of 3 images have image-level labels"
    assert only(check(replace(good, samples=())), "error").message == "holds no images"


def test_unlabelled_data_set_is_no_problem(good: Manifest) -> None:
    samples = tuple(replace(sample, labels=None, mask=None) for sample in good)
    assert check(replace(good, samples=samples)) == []


def test_unused_coco_ids_are_expected_to_be_empty(good: Manifest) -> None:
    message = only(check(replace(good, classes=COCO90)), "warning").message
    assert message.startswith("78 classes have no image: car, motorcycle")
    assert "street sign" not in message


def test_workers(good: Manifest) -> None:
    with pytest.raises(ValueError, match="workers"):
        check(good, workers=0)


def printed(width: int = 200) -> tuple[Console, StringIO]:
    stream = StringIO()
    return Console(file=stream, width=width), stream


def test_command_lists_faults_of_the_labels_and_of_the_files(tmp_path: Path) -> None:
    rows = [["image", "labels"], ["a.png", "cat"], ["b.png", "kat"], ["c.png", "dog"]]
    write_csv(tmp_path / "labels.csv", rows)
    for name in "ab":
        write_image(tmp_path / f"images/{name}.png")
    (tmp_path / "images/a.png").write_bytes(b"no image")
    problems: list[Problem] = []
    manifest = folder(tmp_path, classes=("cat", "dog"), problems=problems)
    console, stream = printed()
    assert run_check(manifest, console, problems=problems) == 1
    text = "".join(part.strip() for part in stream.getvalue().split("│"))
    for expected in (
        "'kat' of b.png",
        "labels.csv:3",
        "labels.csv:2",
        "cannot be read as an image",
    ):
        assert expected in text
    assert "3 errors, 1 warnings" in text
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("│ ")]
    levels = [line.split()[1] for line in lines if line.split()[1] in ("error", "warning")]
    assert levels == ["error"] * 3 + ["warning"]


def test_command_passes_a_good_set(good: Manifest) -> None:
    console, stream = printed()
    assert run_check(good, console) == 0
    assert stream.getvalue().strip() == "own train: 3 images, 0 errors, 0 warnings"
    console, stream = printed()
    assert run_check(change(good, mask=None), console) == 0
    assert "1 warnings" in stream.getvalue()


def test_statistics(good: Manifest) -> None:
    good.samples[2].image.unlink()
    console, stream = printed()
    run_stats(good, console)
    cells = {
        row[0]: row[1:]
        for line in stream.getvalue().splitlines()
        if len(row := [cell.strip() for cell in line.strip("│").split("│")]) > 1
    }
    assert cells["images"] == ["3"]
    assert cells["cannot be opened"] == ["1"]
    assert cells["labels an image"] == ["1: 2, 2: 1"]
    assert cells["height"] == ["24 … 24 … 24 (least, median, most)"]
    assert cells["width"][0].startswith("32")
    assert cells["1"] == ["1", "cat", "2", "66.7 %"]
    assert cells["2"] == ["2", "dog", "2", "66.7 %"]
    assert cells["fingerprint"] == [good.fingerprint()]


def test_statistics_without_labels(good: Manifest) -> None:
    console, stream = printed()
    run_stats(replace(good, samples=()), console)
    assert "images per class" not in stream.getvalue()
    assert "fingerprint" in stream.getvalue()
