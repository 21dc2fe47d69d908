"""Own photographs: CSV, 0/1 columns, JSON, class lists, faults with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.trees import write_csv, write_image, write_list, write_mask
from weaktr.data import load_manifest
from weaktr.data.check import check
from weaktr.data.listing import BESIDE
from weaktr.data.names import HINTS
from weaktr.data.problems import DataError, Problem
from weaktr.data.sources.folder import folder, unlabelled
from weaktr.outputs import require_outside_results

ROWS = [["image", "labels"], ["cats/1.jpg", "sofa; cat"], ["dogs/1.png", "dog"], ["x.jpg", ""]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for row in ROWS[1:]:
        write_image(tmp_path / "images" / row[0])
    return tmp_path


def test_csv(root: Path) -> None:
    path = write_csv(root / "labels.csv", ROWS)
    manifest = folder(root)
    assert manifest.classes.names == ("cat", "dog", "sofa")
    assert [sample.name for sample in manifest] == ["cats/1", "dogs/1", "x"]
    assert [sample.labels for sample in manifest] == [(0, 2), (1,), ()]
    assert manifest.samples[1].image == root / "images/dogs/1.png"
    assert manifest.samples[1].source == f"{path}:3"
    assert manifest.mask_ids is None


@pytest.mark.parametrize("cell", ["sofa|cat", "sofa;cat", " cat ; sofa ;", "cat|sofa;cat"])
def test_separators(root: Path, cell: str) -> None:
    write_csv(root / "labels.csv", [ROWS[0], ["x.jpg", cell]])
    manifest = folder(root)
    assert manifest.classes.names == ("cat", "sofa")
    assert manifest.samples[0].labels == (0, 1)


def test_byte_order_mark_blank_lines_and_quotes(root: Path) -> None:
    text = '\ufeffimage,labels\n\n"cats/1.jpg","big cat;sofa"\n,\nx.jpg, dog\n'
    (root / "labels.csv").write_text(text, encoding="utf-8")
    manifest = folder(root)
    assert manifest.classes.names == ("big cat", "dog", "sofa")
    assert [sample.source[-2:] for sample in manifest] == [":3", ":5"]


def test_columns_of_0_and_1(root: Path) -> None:
    rows = [["image", "sofa", "dog"], ["x.jpg", "1", "0"], ["cats/1.jpg", "True", "1.0"]]
    write_csv(root / "labels.csv", [*rows, ["dogs/1.png", "", "false"]])
    manifest = folder(root)
    assert manifest.classes.names == ("sofa", "dog")
    assert [sample.labels for sample in manifest] == [(0,), (0, 1), ()]


def test_json(root: Path) -> None:
    path = root / "train.json"
    path.write_text(json.dumps({"cats/1.jpg": ["sofa", "cat"], "x.jpg": []}))
    manifest = folder(root, split="train")
    assert manifest.classes.names == ("cat", "sofa")
    assert [sample.labels for sample in manifest] == [(0, 1), ()]
    assert manifest.samples[0].source == f'{path}["cats/1.jpg"]'


def test_class_lists(root: Path) -> None:
    write_csv(root / "labels.csv", ROWS)
    given = ("dog", "cat", "sofa", "bird")
    assert folder(root, classes=given).samples[0].labels == (1, 2)
    listed = write_list(root / "names.txt", ["sofa", "", "dog", "cat"])
    assert folder(root, classes=listed).samples[0].labels == (0, 2)
    listed.rename(root / "classes.txt")
    assert folder(root).classes.names == ("sofa", "dog", "cat")


def test_splits_share_their_classes(root: Path) -> None:
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "sofa"], ["cats/1.jpg", "bird"]])
    write_csv(root / "val.csv", [ROWS[0], ["dogs/1.png", "dog;sofa"]])
    train, val = folder(root, split="train"), folder(root, split="val")
    assert train.classes.names == val.classes.names == ("bird", "dog", "sofa")
    assert val.samples[0].labels == (1, 2)
    alone = folder(root, root / "val.csv", split="val")
    assert alone.classes.names == ("dog", "sofa")


def test_masks_and_other_folders(root: Path) -> None:
    write_csv(root / "labels.csv", ROWS)
    mask = write_mask(root / "masks/cats/1.png", [1])
    assert [sample.mask for sample in folder(root)] == [mask, None, None]
    (root / "images").rename(root / "photos")
    moved = folder(root, root / "labels.csv", images=root / "photos", masks=root / "none")
    assert moved.samples[0].image == root / "photos/cats/1.jpg"
    assert moved.samples[0].mask is None


def test_a_class_called_as_the_column_of_names(root: Path) -> None:
    write_csv(root / "labels.csv", [["image", "Labels"], ["x.jpg", "1"], ["cats/1.jpg", ""]])
    assert folder(root).classes.names == ("Labels",)


def test_a_fault_behind_a_preface_has_its_line(root: Path) -> None:
    (root / "labels.csv").write_text("sep=;\nimage;labels\nx.jpg;cat;dog\n")
    with pytest.raises(DataError, match=r"labels\.csv:3\): expected 2 columns, got 3"):
        folder(root)


@pytest.mark.parametrize("path", ["images/cats/1.jpg", "images/cats/1", "./images/cats/1.jpg"])
def test_paths_from_the_root(root: Path, path: str) -> None:
    """They keep their names, under which finished runs have their masks."""
    write_csv(root / "train.csv", [ROWS[0], [path, "cat"]])
    write_csv(root / "val.csv", [ROWS[0], ["images/dogs/1.png", "cat"], ["images/x.jpg", ""]])
    masks = [write_mask(root / f"masks/{name}.png", [1]) for name in ("cats/1", "dogs/1")]
    problems: list[Problem] = []
    (sample,) = folder(root, problems=problems)
    assert (sample.name, sample.image) == ("images/cats/1", root / "images/cats/1.jpg")
    assert sample.mask == masks[0]
    assert problems == []
    exact = write_mask(root / "masks/images/cats/1.png", [1])
    assert folder(root).samples[0].mask == exact


def test_two_spellings_of_a_path_have_the_same_labels(root: Path) -> None:
    path = write_csv(root / "labels.csv", [ROWS[0], ["images/x.jpg", "dog;cat"], ["x", "cat"]])
    with pytest.raises(DataError) as caught:
        folder(root)
    told = f"'x.jpg' was already declared as 'images/x.jpg' at {path}:2, with other labels"
    assert f"{path}:3): {told}: correct one of them" in str(caught.value)
    write_csv(path, [ROWS[0], ["images/x.jpg", "dog;cat"], ["x.jpg", "cat;dog"]])
    manifest = folder(root)
    assert [sample.name for sample in manifest] == ["images/x", "x"]
    (problem,) = (one for one in check(manifest) if "two names" in one.kind)
    assert (problem.level, problem.where) == ("warning", f"{path}:3")
    assert problem.message == f"is the image of 'images/x' too, declared at {path}:2"


def test_all_faults_at_once(root: Path) -> None:
    rows = [
        ROWS[0],
        ["cats/1.jpg", "cat;soffa"],
        ["none.jpg", "dog"],
        ["x.jpg", "cat"],
        ["x.jpg", "dog"],
        ["dogs/1.png", "dog", "cat"],
        ["../x.jpg", "cat"],
        ["x.png", "cat"],
    ]
    path = write_csv(root / "labels.csv", rows)
    with pytest.raises(DataError) as caught:
        folder(root, classes=("cat", "dog", "sofa"))
    text = str(caught.value)
    assert "6 problems" in text
    assert f"{path}:2): label 'soffa' of cats/1.jpg is none of the 3 classes" in text
    assert "did you mean 'sofa'?" in text
    assert f"none.jpg ({path}:3): file is missing" in text
    assert f"{path}:5): 'x.jpg' was already declared as 'x.jpg' at {path}:4" in text
    assert f"{path}:6): expected 2 columns, got 3; part several labels by ; or |" in text
    assert f"{path}:7): expected an image path below the image folder, got '../x.jpg'" in text
    assert f"{path}:8): 'x.png' was already declared as 'x.jpg'" in text
    problems: list[Problem] = []
    manifest = folder(root, classes=("cat", "dog", "sofa"), problems=problems)
    assert [sample.labels for sample in manifest] == [(0,), (1,), (0,)]
    errors = [problem for problem in problems if problem.level == "error"]
    assert len(errors) == 5  # the missing file is left to check()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "cats/1.jpg,cat\n", r"labels\.csv:1\): expected the header image,labels"),
        ("labels.csv", "image|labels\nx.jpg|cat\n", r"parted by \|: expected a comma, a semicolon"),
        ("labels.csv", "image labels\nx.jpg cat\n", "parted by a blank: expected a comma"),
        ("labels.csv", "image,labels\nx.jpg;cat\n", "a semicolon parts them here, a comma in the"),
        ("labels.csv", "image\tlabels\nx.jpg,cat\n", "a comma parts them here, a tab in the"),
        ("labels.csv", "", r"labels\.csv:1\): expected the header"),
        ("labels.csv", "image,labels,more\nx.jpg,a,b\n", "expected the header"),
        ("labels.csv", "image,cat,cat\nx.jpg,1,1\n", "twice"),
        ("labels.csv", "image,cat,dog\nx.jpg,1,2\n", r"labels\.csv:2\): expected 0 or 1 .* '2'"),
        ("labels.json", '{"x.jpg": ["cat"],\n}', r"labels\.json:2"),
        ("labels.json", '["x.jpg"]', "got a list"),
        ("labels.json", '{"x.jpg": "cat"}', r'labels\.json\["x\.jpg"\]\): expected a list'),
        ("labels.json", '{"x.jpg": {"cat": 1}}', "expected a list"),
        ("labels.json", '{"x.jpg": ["cat"], "x.jpg": []}', "already declared"),
        ("labels.json", '{"x.jpg": [true]}', r"expected a list of class names, got \[True\]"),
        ("labels.json", '{"x.jpg": [" "]}', "expected a list of class names"),
        ("labels.json", '{"x.jpg": ' + "[" * 100_000, "expected JSON, got: maximum recursion"),
        ("labels.json", '{"x.jpg": 1' + 5000 * "0" + "}", "expected JSON, got: .*4300 digits"),
        ("labels.json", "{}", "at least one image, found none"),
        ("labels.csv", "image,labels\n", "at least one image, found none"),
        ("labels.csv", "image\nx.jpg\n", r"labels\.csv:1\): expected the header"),
        ("labels.csv", "image,labels\nx.jpg\n", r"csv:2\): expected 2 columns, got 1"),
        (
            "labels.csv",
            "image;labels\nx.jpg;cat;dog\n",
            r"csv:2\): expected 2 .* in quotes, since ';'",
        ),
        ("labels.csv", "image,labels\nx.jpg,cat\nimage,labels\n", r"csv:3\): the header .* second"),
        ("labels.csv", "image,cat,\nx.jpg,1,0\n", "got none for column 3"),
        ("labels.csv", "image,cat,cat \nx.jpg,1,0\n", "twice"),
        (
            "labels.csv",
            "image,labels\n\nx.jpg," + "c" * 131_073,
            r"csv:3\): expected CSV, got: field",
        ),
        ("labels.csv", "image,labels\n" + 300 * "a" + ".jpg,cat\n", r"csv:2\): file is missing"),
    ],
)
def test_malformed_files(root: Path, name: str, text: str, message: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(DataError, match=message):
        folder(root)


@pytest.mark.parametrize("heading", ["label", "Label", "class", "tags"])
def test_a_column_called_as_headings_are(
    root: Path, heading: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "weaktr")
    path = write_csv(root / "labels.csv", [["image", heading], ["x.jpg", "1"], ["cats/1.jpg", "0"]])
    manifest = folder(root)
    assert manifest.classes.names == (heading,)
    assert [sample.labels for sample in manifest] == [(0,), ()]
    (said,) = caplog.messages
    assert said.startswith(f"{path}: read as a column of 0 and 1 for one class, which is called ")
    for cell, advice in (("3", "labels and write names in place of numbers"), ("cat", "labels")):
        write_csv(path, [["image", heading], ["x.jpg", "1"], ["cats/1.jpg", cell]])
        with pytest.raises(DataError) as caught:
            folder(root, problems=[])
        assert str(caught.value) == (
            f"{path} ({path}:3): expected the header image,labels before names of classes, got "
            f"image,{heading} and then '{cell}': call the column {advice}"
        )


@pytest.mark.parametrize(
    "text",
    [
        "image;labels\nx.jpg;cat|dog\n",
        'image;labels\nx.jpg;"cat;dog"\n',
        "image\tlabels\nx.jpg\tcat;dog\n",
        '\ufeff"image"\t"labels"\n"x.jpg"\tcat;dog\n',
        "image,labels\r\nx.jpg,cat;dog\r\n",
        "image,labels\rx.jpg,cat;dog\r",
        " image , labels \n x.jpg , cat ; dog \n",
        "Image,LABELS\nx.jpg,cat;dog\n",
        "sep=;\r\nimage;labels\r\nx.jpg;cat|dog\r\n",
        "\n \nIMAGE;Labels\nx.jpg;cat|dog\n",
        "sep=,\nImage,cat,dog\nx.jpg,1,1\n",
        "image;cat;dog\nx.jpg;1;TRUE\n",
    ],
)
def test_how_columns_and_lines_are_parted(root: Path, text: str) -> None:
    (root / "labels.csv").write_bytes(text.encode())
    manifest = folder(root)
    assert manifest.classes.names == ("cat", "dog")
    assert [(sample.name, sample.labels) for sample in manifest] == [("x", (0, 1))]


@pytest.mark.parametrize(
    "name", ["a\u2028b", "a\x85b", "a\x1cb", " a", "a ", "a\rb", "a\nb", "a\\b"]
)
def test_names_are_taken_as_they_are(root: Path, name: str) -> None:
    for other in ("a", "ab", "a/b"):
        write_image(root / f"images/{other}.jpg")
    image = write_image(root / f"images/{name}.jpg")
    (root / "labels.csv").write_bytes(f'image,labels\n"{name}.jpg",cat\n'.encode())
    (sample,) = folder(root)
    assert (sample.name, sample.image) == (name, image)


def test_paths_of_other_spelling(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "weaktr")
    rows = [ROWS[0], ["cats\\1.jpg", "cat"], ["dogs\\1.png", "dog"], ["x.jpg ", "cat"]]
    write_csv(root / "labels.csv", rows)
    assert [sample.name for sample in folder(root)] == ["cats/1", "dogs/1", "x"]
    (said,) = caplog.messages
    assert said.endswith(
        r"2 paths are spelled otherwise than their files, such as 'cats\\1.jpg' for 'cats/1.jpg'"
    )
    write_csv(root / "labels.csv", [*rows, ["cats/1.jpg", "dog"]])
    with pytest.raises(
        DataError, match=r"csv:5\): 'cats/1.jpg' was already declared as 'cats/1.jpg'"
    ):
        folder(root)


def test_columns_of_the_splits_in_another_order(root: Path) -> None:
    write_csv(root / "train.csv", [["image", "sofa", "cat"], ["x.jpg", "1", "0"]])
    write_csv(root / "val.csv", [["image", "dog", "cat", "sofa"], ["cats/1.jpg", "1", "0", "1"]])
    train, val = folder(root, split="train"), folder(root, split="val")
    assert train.classes.names == val.classes.names == ("sofa", "cat", "dog")
    assert (train.samples[0].labels, val.samples[0].labels) == ((0,), (0, 2))


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (
            [False, True, 1.0],
            "classes: expected a list of names .*in quotes.* got .False, True, 1.0",
        ),
        (["cat", None], "classes: expected a list of names"),
        (["cat", "cat "], "expected each class once, got .'cat'. more than once"),
        (["cat", " "], "expected text that is not blank"),
        (5, "classes: expected a list of names"),
    ],
)
def test_class_names_that_are_none(root: Path, classes: object, told: str) -> None:
    write_csv(root / "labels.csv", ROWS)
    with pytest.raises(ValueError, match=told):
        load_manifest("folder", root, classes=classes)


def test_masks_that_are_called_otherwise(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "weaktr")
    write_csv(root / "labels.csv", ROWS)
    capital = write_mask(root / "masks/cats/1.PNG", [1])
    assert [sample.mask for sample in folder(root)] == [capital, None, None]
    assert not caplog.messages
    mask = write_mask(root / "masks/cats/1.png", [1])
    for name in ("x.jpg", "dogs/1.gif"):
        write_image(root / f"masks/{name}")
    for split in ("train", "val"):
        assert [sample.mask for sample in folder(root, split=split)] == [mask, None, None]
    assert caplog.messages == [
        f"{root / 'masks'}: 3 files (1 .png, 1 .gif, 1 .jpg) are not read: masks are PNGs, one an "
        "image; other formats lose or change labels"
    ]
    problems: list[Problem] = []
    folder(root, problems=problems)
    assert [(Path(problem.file).name, problem.level) for problem in problems] == [
        (name, "warning") for name in ("1.PNG", "1.gif", "x.jpg")
    ]


def test_paths_without_suffix(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "weaktr")
    write_image(root / "images/v1.0.PNG")
    rows = [ROWS[0], ["cats\\1", "cat"], ["dogs/1", "dog"], ["v1.0", "cat"], ["gone", "cat"]]
    path = write_csv(root / "labels.csv", rows)
    problems: list[Problem] = []
    samples = folder(root, problems=problems).samples
    assert [sample.name for sample in samples] == ["cats/1", "dogs/1", "v1.0", "gone"]
    assert [sample.image.name for sample in samples] == ["1.jpg", "1.png", "v1.0.PNG", "gone"]
    assert "3 paths are spelled otherwise than their files, such as " in caplog.text
    assert [Path(problem.file).name for problem in problems] == ["x.jpg"]
    write_image(root / "images/dogs/1.webp")
    with pytest.raises(DataError, match=r"csv:3\): 'dogs/1' may be dogs/1\.png, dogs/1\.webp: wr"):
        folder(root)
    write_csv(path, [ROWS[0], ["x", "cat"], ["x.jpg", "cat"], ["cats/1.png", "cat"]])
    with pytest.raises(DataError) as caught:
        folder(root)
    assert f"{path}:3): 'x.jpg' was already declared as 'x.jpg' at {path}:2" in str(caught.value)
    assert f"images/cats/1.png ({path}:4): file is missing" in str(caught.value)


def test_photographs_of_other_formats_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "weaktr")
    for name in ("a.heic", "cats/b.HEIC", "c.gif", "d.txt", "._e.heic"):
        (root / "images" / name).write_bytes(b"a photograph")
    assert len(unlabelled(root / "images")) == 3
    advice = "of a format that is not looked for: convert to JPEG or PNG"
    assert caplog.messages == [f"{root / 'images'}: left out: 3 files (2 .heic, 1 .gif) {advice}"]
    problems: list[Problem] = []
    unlabelled(root / "images", problems=problems)
    assert [(Path(problem.file).name, problem.message, problem.level) for problem in problems] == [
        (name, advice, "warning") for name in ("a.heic", "c.gif", "b.HEIC")
    ]
    write_csv(root / "labels.csv", ROWS)
    problems.clear()
    folder(root, problems=problems)
    assert [Path(problem.file).name for problem in problems] == ["a.heic", "c.gif", "b.HEIC"]
    for image in root.glob("images/**/*.[jp][pn]g"):
        image.unlink()
    with pytest.raises(ValueError, match=r"found none, but 3 files \(2 \.heic, 1 \.gif\) of a fo"):
        unlabelled(root / "images")


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_of_the_other_split_are_listed(root: Path, split: str) -> None:
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "cat"], ["cats/1", "cat"]])
    write_csv(root / "val.csv", [ROWS[0], ["dogs/1.png", "cat"]])
    for name in ("train", "val"):  # a blank in front, which counts within quotes
        write_image(root / f"images/ {name}.jpg")
        with open(root / f"{name}.csv", "a") as file:
            file.write(f'" {name}.jpg",cat\n')
    problems: list[Problem] = []
    folder(root, split=split, problems=problems)
    assert problems == []


def test_what_no_line_speaks_of(root: Path) -> None:
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "cat"]])
    write_csv(root / "val.csv", [ROWS[0], ["cats\\\\1.jpg", "cat"]])
    for name in ("x", "cats/1", "dogs/1", "gone"):
        write_mask(root / f"masks/{name}.png", [1])
    (root / "images/._x.jpg").write_bytes(b"of a Mac")
    problems: list[Problem] = []
    folder(root, split="train", problems=problems)
    assert [(problem.file, problem.message, problem.level) for problem in problems] == [
        (f"{root}/{file}", f"no line of train.csv, val.csv lists {what}", "warning")
        for file, what in (
            ("images/dogs/1.png", "this image"),
            ("masks/dogs/1.png", "the image of this mask"),
            ("masks/gone.png", "the image of this mask"),
        )
    ]


def test_photographs_beside_their_folder_are_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "weaktr")
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "cat"], ["cats/1", "cat"], ["p.jpg", "cat"]])
    for name in ("p.jpg", "more/q.png", "masks/x.png", "out/x.png"):
        write_image(root / name)
    (root / "out/.weaktr-lock").touch()
    assert len(unlabelled(root)) == 3
    told = "2 photographs outside of images/ (more/q.png, p.jpg) are left out: move them into it"
    assert caplog.messages == [f"{root}: {told}"]
    problems: list[Problem] = []
    unlabelled(root, problems=problems)
    assert [(p.file, p.message, p.level) for p in problems] == [(str(root), told, "warning")]
    problems.clear()
    assert len(folder(root, problems=problems)) == 3
    assert [(p.file, p.message, p.level) for p in problems if p.file == str(root)] == [
        (
            str(root),
            "1 photograph outside of images/ (more/q.png) is in no line of train.csv",
            "warning",
        )
    ]
    caplog.clear()
    unlabelled(root / "images")
    assert not caplog.messages


def test_masks_in_any_folder_are_no_photographs_beside(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "weaktr")
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "cat"]])
    for name in ("annotations/x.png", "labels/cats/1.PNG"):
        write_image(root / name)
    assert len(unlabelled(root)) == 3
    problems: list[Problem] = []
    folder(root, problems=problems)
    assert not caplog.messages and not [p for p in problems if p.kind == BESIDE]
    write_image(root / "more/new.png")
    unlabelled(root)
    told = "1 photograph outside of images/ (more/new.png) is left out: move them into it"
    assert caplog.messages == [f"{root}: {told}"]


def test_a_photograph_beside_is_not_the_listed_one_of_its_name(root: Path) -> None:
    write_csv(root / "train.csv", [ROWS[0], ["x.jpg", "cat"]])
    write_csv(root / "val.csv", [ROWS[0], ["p.jpg", "cat"], ["q", "cat"]])
    for name in ("x.jpg", "p.jpg", "q.jpg"):
        write_image(root / name)
    problems: list[Problem] = []
    folder(root, problems=problems)
    told = "1 photograph outside of images/ (x.jpg) is in no line of train.csv, val.csv"
    assert [p.message for p in problems if p.kind == BESIDE] == [told]


@pytest.mark.parametrize(
    ("content", "is_own"), [('{"camera": 1}', False), ("[", True), ('{"made_from": "1"}', True)]
)
def test_only_a_file_of_weaktrs_makes_a_folder_one_of_results(
    root: Path, content: str, is_own: bool
) -> None:
    (root / "images/cats/inputs.json").write_text(content)
    assert [sample.name for sample in unlabelled(root / "images")] == [
        *([] if is_own else ["cats/1"]), "dogs/1", "x",
    ]  # fmt: skip
    place = root / "images/cats/out"
    if is_own:
        with pytest.raises(ValueError, match="a folder of other results"):
            require_outside_results(place, "--out")
    else:
        require_outside_results(place, "--out")


def test_what_is_taken_in_place_of_a_split_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "weaktr")
    write_csv(root / "labels.csv", ROWS)
    folder(root, split="train")
    assert not caplog.messages
    folder(root, split="val", masks=root / "nowhere")
    assert "there is no val.csv, so split val has all images of it" in caplog.messages[0]
    assert (
        caplog.messages[1]
        == f"masks: there is no folder {root / 'nowhere'}, so no image has a mask"
    )
    folder(root, split="val")
    folder(root, split="labels")
    assert len(caplog.messages) == 2


def test_blanks_around_class_names_do_not_count(root: Path) -> None:
    (root / "labels.json").write_text('{"x.jpg": ["cat "]}')
    assert load_manifest("folder", root, classes=[" cat", "dog"]).samples[0].labels == (0,)
    (root / "twice.txt").write_text("cat\n cat\n")
    with pytest.raises(DataError, match=r"twice\.txt: names: expected each class once"):
        folder(root, classes=root / "twice.txt")


def test_the_nearest_class_is_looked_for_only_so_often(root: Path) -> None:
    labels = ";".join(f"cat{k}" for k in range(HINTS + 50))
    write_csv(root / "labels.csv", [ROWS[0], ["x.jpg", labels], ["cats/1.jpg", "cat0"]])
    problems: list[Problem] = []
    folder(root, classes=["cat"], problems=problems)
    hinted = ["did you mean 'cat'?" in problem.message for problem in problems]
    assert hinted[: HINTS + 51] == [True] * HINTS + [False] * 50 + [True]


def test_names_of_classes_that_are_none(root: Path) -> None:
    (root / "labels.csv").write_text('image,labels\na.png,"cat\nb.png,"\n')
    with pytest.raises(DataError, match=r"labels\.csv: names: expected names without control"):
        folder(root)


def test_half_a_byte_order_mark(root: Path) -> None:
    (root / "labels.csv").write_bytes(b"\xef\xbb")
    with pytest.raises(DataError, match=r"labels\.csv: expected text in UTF-8"):
        folder(root)


def test_not_utf8(root: Path) -> None:
    (root / "labels.csv").write_bytes("image,labels\nx.jpg,b\xe4r\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        folder(root)


def test_two_label_files_of_one_split(root: Path) -> None:
    write_csv(root / "labels.csv", ROWS)
    (root / "labels.json").write_text('{"x.jpg": []}')
    with pytest.raises(ValueError, match=r"labels\.csv: .* there is labels\.json as well"):
        folder(root)


def test_no_label_file(root: Path) -> None:
    with pytest.raises(ValueError, match=r"labels_file: expected val\.csv"):
        folder(root, split="val")
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        folder(root, root / "labels.xls")
    with pytest.raises(DataError, match=r"none\.csv: file is missing"):
        folder(root, root / "none.csv")


def test_images_without_labels(root: Path) -> None:
    manifest = unlabelled(root / "images", ("cat",))
    assert [sample.name for sample in manifest] == ["cats/1", "dogs/1", "x"]
    assert all(sample.labels is None and sample.mask is None for sample in manifest)
    assert manifest.classes.names == ("cat",)
    write_image(root / "images/x.png")
    with pytest.raises(DataError, match="already declared"):
        unlabelled(root / "images")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="found none"):
        unlabelled(root / "empty")
