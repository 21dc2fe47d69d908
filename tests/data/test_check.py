"""The check finds every fault at once; the commands print them."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train import said
from tests.data.trees import voc_tree, write_csv, write_image, write_list, write_mask
from weaktr import cli
from weaktr.cli.data import run_check, run_stats
from weaktr.data import load_manifest
from weaktr.data.check import check, near_names
from weaktr.data.classes import COCO90, VOC, Classes, palette
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.problems import KINDS, LISTED, Findings, Problem
from weaktr.data.sources.folder import folder
from weaktr.data.sources.scenes import NAMES
from weaktr.progress import PlainConsole

CLASSES = Classes(("cat", "dog"))


@pytest.fixture
def good(tmp_path: Path) -> Manifest:
    samples = []
    for k, labels in enumerate([(0,), (1,), (0, 1), (0,), (1,)]):
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
    first, second, *others = manifest.samples
    changed = replace(second, **changes)  # type: ignore[arg-type]
    return replace(manifest, samples=(first, changed, *others))


def test_a_whole_data_set_has_no_problems(good: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    assert check(good, workers=2, progress=lambda count, total: seen.append((count, total))) == []
    assert seen == [(number, 5) for number in range(1, 6)]


def test_missing_and_broken_files(good: Manifest) -> None:
    first, second, third, *_ = good.samples
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


def test_an_image_under_two_names(good: Manifest) -> None:
    image = good.samples[0].image
    same = change(good, image=image, mask=None, labels=good.samples[0].labels)
    told = "is the image of '0' too, declared at list.csv:2"
    problem = only([p for p in check(same) if "two names" in p.kind], "warning")
    assert (problem.message, problem.where) == (told, "list.csv:3")
    other = change(good, image=image, mask=None, labels=())
    problem = only([p for p in check(other) if "two names" in p.kind], "error")
    assert problem.message == f"{told}, with other labels: correct one of them"


def test_turned_images(good: Manifest) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    path = good.samples[0].image
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=turned)
    assert "EXIF" in only(check(good), "warning").message


def test_further_pages_of_a_file(good: Manifest, tmp_path: Path) -> None:
    with Image.open(good.samples[0].image) as image:
        image.save(tmp_path / "pages.tif", save_all=True, append_images=[image])
        image.save(tmp_path / "one.tif")
    pages, one = (change(good, image=tmp_path / name) for name in ("pages.tif", "one.tif"))
    problem = only(check(pages), "warning")
    assert (problem.file, problem.where) == (str(tmp_path / "pages.tif"), "list.csv:3")
    assert "of which the first alone is used" in problem.message
    assert check(one) == check(good)


def zeros_told(manifest: Manifest) -> list[str]:
    return [p.message for p in check(manifest) if p.kind == "zeros at the end"]


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_photographs_that_end_in_zeros(good: Manifest, format: str) -> None:
    path = good.samples[1].image
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(
        path, format=format
    )
    content = path.read_bytes()
    manifest = change(good, mask=None)
    assert zeros_told(manifest) == []
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    (message,) = zeros_told(manifest)
    assert message.startswith(f"the file ends in {len(content) - half} zeros, as a broken copy")


@pytest.mark.parametrize("after", [bytes(4096), b"a film of the telephone's" + bytes(12)])
def test_what_cameras_write_behind_a_photograph(good: Manifest, after: bytes) -> None:
    path = write_image(good.samples[1].image.with_suffix(".jpg"))
    path.write_bytes(path.read_bytes() + after)
    assert zeros_told(change(good, image=path, mask=None)) == []


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".png"])
def test_black_photographs_may_end_in_zeros(good: Manifest, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"night{suffix}"
    Image.new("RGB", (60, 80)).save(path)
    assert zeros_told(change(good, image=path, mask=None)) == []


def test_what_only_the_whole_shows(good: Manifest) -> None:
    unseen = replace(good, classes=Classes(("cat", "dog", "cow", "emu")))
    assert only(check(unseen), "warning").message == "2 classes have no image: cow, emu"
    assert (
        "only 4 of 5 images have a mask" in only(check(change(good, mask=None)), "warning").message
    )
    partly = only(check(change(good, labels=None)), "warning").message
    assert partly == "only 4 of 5 images have image-level labels"
    assert only(check(replace(good, samples=())), "error").message == "holds no images"


def told(problems: list[Problem], level: str = "warning") -> list[str]:
    return [problem.message for problem in problems if problem.level == level]


def test_classes_that_teach_little(good: Manifest) -> None:
    samples = tuple(
        replace(sample, labels=(0, 1) if k == 1 else (0,), mask=None)
        for k, sample in enumerate(good)
    )
    assert told(check(replace(good, samples=samples))) == [
        "1 class has only one image: dog",
        "1 class is in every image, so that nothing shows what they are not: cat",
    ]


def test_class_names_that_may_be_meant_otherwise(good: Manifest) -> None:
    names = ("cat", "Cat", "background", "giraffe", "girafe", "traffic light", "traffic_light")
    messages = told(check(replace(good, classes=Classes(names))))
    for first, second in (("cat", "Cat"), ("giraffe", "girafe"), names[-2:]):
        assert f"two classes that may be meant as one: {first!r} and {second!r}" in messages
    assert any(message.startswith("a class called 'background'") for message in messages)
    assert len(messages) == 5  # with the classes that no image has


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cafe\u0301", "caf\u00e9"), "characters differ, 'cafe\\u0301' and 'caf\\xe9': keep one"),
        (("Ｄog", "dog"), "characters differ, '\\uff24og' and 'dog': keep one"),
        (("a\u200bb", "ab"), "meant as one: 'a\\u200bb' and 'ab'; their characters differ"),
        (("['cat', 'dog']",), "may be meant as several: ['cat', 'dog']: part the labels of an"),
        (("cat, dog", "cow;emu", "fox", "tie (bow)"), "as several: cat, dog / cow;emu: part"),
        (("Label", "cat"), "meant as headings of columns: Label: the header is image,labels"),
        (("None ", "cat"), "a class called 'None ': label 0 is the background already, and is in"),
        (("10", "3"), "labels of pixels: 10, 3: the place in the list of classes counts, so that "
         "class '10' is label 1 in masks"),
    ],
)  # fmt: skip
def test_class_names_that_are_lists_headings_or_numbers(
    good: Manifest, names: tuple[str, ...], expected: str
) -> None:
    labels = tuple(range(len(names)))
    samples = [replace(sample, labels=labels, mask=None) for sample in good]
    samples[0] = replace(samples[0], labels=())
    messages = told(check(Manifest("own", "train", Classes(names), tuple(samples))))
    assert len(messages) == 2 and "has no label" in messages[0] and expected in messages[1]


@pytest.mark.parametrize("names", [VOC.names, COCO90.names, NAMES, ("1", "2"), ("labelled",)])
def test_class_names_that_are_as_they_should_be(good: Manifest, names: tuple[str, ...]) -> None:
    samples = tuple(replace(sample, labels=None, mask=None) for sample in good)
    assert check(Manifest("own", "train", Classes(names), samples)) == []


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (VOC.names, []),
        (COCO90.names, []),
        (NAMES, []),
        (tuple(f"class {k}" for k in range(1, 255)), []),
        (("dog", "dogs"), [("dog", "dogs")]),
        (("cat", "car", "bat"), []),
        (("boat", "goat", "coat"), []),
        (("umbrella", "umbrela", "unbrella"), [(0, 1), (0, 2)]),
        (("zebra", "zerba"), [("zebra", "zerba")]),
        (("apple", "appel", "grape"), [("apple", "appel")]),
        (("Straße", "STRASSE"), [("Straße", "STRASSE")]),
        (("a1", "a2"), []),
        (("C", "C++", "c#", "+", "-", "?", "😀", "🐶"), []),
        (("traffic light", "traffic-light", "traffic_light"), [(0, 1), (0, 2), (1, 2)]),
        (("कि", "की"), []),
    ],
)
def test_near_names(names: tuple[str, ...], pairs: list[tuple[str, str]]) -> None:
    expected = [tuple(n if isinstance(n, str) else names[n] for n in pair) for pair in pairs]
    assert near_names(names) == expected


def test_masks_that_show_no_class(good: Manifest) -> None:
    mask = good.samples[1].mask
    assert mask is not None
    write_mask(mask, [255])
    assert only(check(good), "warning").message == (
        "mask shows none of the image's labels, its values are 0, 255 (255 = ignored; a class has "
        "its number from 1 on)"
    )
    write_mask(mask, [255] * (24 * 32))
    for labels in ((1,), None):
        (problem,) = (p for p in check(change(good, labels=labels)) if p.file == str(mask))
        assert problem.message.startswith("mask holds only 255, which is not counted")
        assert problem.level == "warning"


def test_palettes_that_were_shortened(good: Manifest) -> None:
    """Label 2 saved as number 1 with the colour of 2; other colours say nothing."""
    mask = good.samples[0].mask
    assert mask is not None
    picture = Image.fromarray(np.ones((24, 32), np.uint8))
    picture.putpalette([0, 0, 0, *palette()[2].tolist()])
    picture.save(mask)
    message = only(check(good), "warning").message
    assert message.startswith("the pixels 1 have the VOC colour of label 2: the number counts")
    picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.save(mask)
    assert check(good) == []
    picture.putpalette(palette().tobytes())
    picture.save(mask)
    assert check(good) == []


def test_images_that_differ_in_suffix_alone_are_listed(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg"):
        write_image(tmp_path / name)
    code, text = said(cli.main, "data", "check", "images", tmp_path)
    assert code == 1
    assert "'a.png' was already declared as 'a.jpg'" in " ".join(text.split())
    assert "2 images, 1 errors, 0 warnings" in text


@pytest.mark.parametrize(
    ("name", "level", "told"),
    [
        ("a" * 244, "error", "name: expected at most 243 bytes"),
        ("a\nb", "warning", "the name has characters that are not to be seen: 'a\\nb'"),
        ("b\udcff", "warning", "the name has characters that are not to be seen"),
    ],
)
def test_names_of_masks(good: Manifest, name: str, level: str, told: str) -> None:
    problem = only(check(change(good, name=name)), level)
    assert problem.message.startswith(told)
    assert str(problem).isprintable()


def test_names_that_differ_in_case(good: Manifest) -> None:
    upper, lower = (replace(good.samples[k], name=name) for k, name in enumerate(("A", "a")))
    manifest = replace(good, samples=(upper, lower, *good.samples[2:]))
    assert "the names 'A' and 'a' differ in case alone" in only(check(manifest), "warning").message


def test_splits_that_do_not_go_together(good: Manifest) -> None:
    second = good.samples[1]
    val = replace(good, split="val", samples=(second,), classes=Classes(("dog", "cat")))
    classes, image = check(good, others=[val])
    assert "other classes than those of split val: cat, dog; there dog, cat" in str(classes)
    assert (image.file, image.level) == (str(second.image), "error")
    assert image.message == "also in split val: declared at list.csv:3"
    train = replace(good, split="train_aug")
    assert check(good, others=[train]) == []


def test_command_compares_the_splits_of_a_folder(tmp_path: Path) -> None:
    for name in "abcd":
        write_image(tmp_path / f"images/{name}.png")
    rows = [["image", "labels"], ["a.png", "cat"], ["b.png", "cat"], ["c.png", "dog"]]
    write_csv(tmp_path / "train.csv", [*rows, ["d.png", "dog"]])
    write_csv(tmp_path / "val.csv", rows[:2])
    code, text = said(cli.main, "data", "check", "folder", tmp_path)
    assert code == 1
    assert "also in split val" in " ".join(text.split())
    write_csv(tmp_path / "val.csv", [rows[0], ["gone.png", "cat"]])
    code, text = said(cli.main, "data", "check", "folder", tmp_path)
    assert (code, "0 errors, 0 warnings" in text) == (0, True)


def test_command_compares_the_splits_of_voc(tmp_path: Path) -> None:
    voc = voc_tree(tmp_path)
    write_list(voc / "ImageSets/Segmentation/train_aug.txt", ["2007_000001", "2007_000003"])
    for split, other in (("val", "train_aug"), ("train_aug", "val")):
        _, text = said(cli.main, "data", "check", "voc12", tmp_path, "--split", split)
        assert f"also in split {other}" in " ".join(text.split())
        assert "1 errors" in text


def test_command_compares_manifests_side_by_side(good: Manifest, tmp_path: Path) -> None:
    good.save(tmp_path / "train.json")
    replace(good, split="val", samples=good.samples[:1]).save(tmp_path / "val.json")
    (tmp_path / "test.json").write_text('{"a.jpg": ["cat"]}')
    code, text = said(cli.main, "data", "check", "manifest", tmp_path / "train.json")
    assert (code, "1 errors, 0 warnings" in text) == (1, True)
    assert "also in split val" in " ".join(text.split())


def test_many_faults_are_counted_by_kind(tmp_path: Path) -> None:
    many = 3000
    rows = [[f"{k}.png", f"label {k}"] for k in range(many)]
    write_csv(tmp_path / "labels.csv", [["image", "labels"], *rows])
    (tmp_path / "classes.txt").write_text("cat\n")
    found = Findings()
    manifest = load_manifest("folder", tmp_path, problems=found)
    console, stream = printed()
    assert run_check(manifest, console, problems=found) == 1
    text = stream.getvalue()
    assert f"{2 * many} errors" in text
    assert "unknown label: 2,980 more, 3,000 in all" in text
    assert "file is missing: 2,980 more, 3,000 in all" in text
    assert len(found) == 3 * LISTED + 1 and len(text.splitlines()) < 400


def test_kinds_beyond_the_first_are_counted_together() -> None:
    found = Findings()
    found += [Problem("a", "", f"fault {k}: of its own kind") for k in range(KINDS + 50)]
    assert len(found.counts) == KINDS + 1
    assert found.counts["error", "other"] == 50
    assert found.count("error") == KINDS + 50 and len(found) == KINDS + LISTED


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


def printed(width: int = 200) -> tuple[PlainConsole, StringIO]:
    stream = StringIO()
    return PlainConsole(file=stream, width=width), stream


def test_command_lists_faults_of_the_labels_and_of_the_files(tmp_path: Path) -> None:
    rows = [["image", "labels"], ["a.png", "cat"], ["b.png", "kat"], ["c.png", "dog"]]
    write_csv(tmp_path / "labels.csv", rows)
    for name in "ab":
        write_image(tmp_path / f"images/{name}.png")
    (tmp_path / "images/a.png").write_bytes(b"no image")
    problems = Findings()
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
    assert "3 errors, 2 warnings" in text
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("│ ")]
    levels = [line.split()[1] for line in lines if line.split()[1] in ("error", "warning")]
    assert levels == ["error"] * 3 + ["warning"] * 2


def test_command_passes_a_good_set(good: Manifest) -> None:
    console, stream = printed()
    assert run_check(good, console) == 0
    assert stream.getvalue().strip() == "own train: 5 images, 0 errors, 0 warnings"
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
    assert cells["images"] == ["5"]
    assert cells["cannot be opened"] == ["1"]
    assert cells["labels an image"] == ["1: 4, 2: 1"]
    assert cells["height"] == ["24 … 24 … 24 (least, median, most)"]
    assert cells["width"][0].startswith("32")
    assert cells["1"] == ["1", "cat", "3", "60.0 %"]
    assert cells["2"] == ["2", "dog", "3", "60.0 %"]
    assert cells["fingerprint"] == [good.fingerprint()]


def test_statistics_without_labels(good: Manifest) -> None:
    console, stream = printed()
    run_stats(replace(good, samples=()), console)
    assert "images per class" not in stream.getvalue()
    assert "fingerprint" in stream.getvalue()
