"""``weaktr index``: what it says, writes and refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.exchange.folders import photograph
from tests.shards.made import failed, labelled, mask_of, results, three_shards
from weaktr.cli import FAILED, WRONG_INPUT, main
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.data.names import read_names
from weaktr.progress import console


def index(out: Path, *options: str | Path) -> int:
    return main(["index", str(out), *map(str, options)])


@pytest.fixture
def out(tmp_path) -> Path:
    return three_shards(tmp_path / "out")


@pytest.fixture
def said(monkeypatch) -> io.StringIO:
    """What the console prints."""
    text = io.StringIO()
    monkeypatch.setattr(console, "_file", text)  # `file` is the stream of this test, and would stay
    return text


def lines(said: io.StringIO) -> list[str]:
    """Without the frames of tables; cells by single blanks."""
    bare = said.getvalue().replace("│", " ").replace("┃", " ")
    return [" ".join(line.split()) for line in bare.splitlines()]


def test_the_summary_counts_all_and_writes_the_index(out, said):
    assert index(out) == 0
    told = lines(said)
    assert {"labelled 2 40.0%", "no class 1 20.0%", "failed 1 20.0%", "edited 1 20.0%"} < {*told}
    assert {"dog 3 100.0% 25.0% 0.500", "ignore 2 66.7% 25.0%", "cat 1 33.3% 25.0% 0.500"} < {*told}
    assert "3 of 3 shards are whole" in told
    assert "8 s of all processes together, 0.7 photographs/s each" in told
    assert any(line.startswith("failed: 1: cannot be read as an image, such as:") for line in told)
    stats = json.loads((out / "stats.json").read_text())
    assert stats["statistics"]["images"] == 5
    assert (out / "index.parquet").is_file()


def test_while_shards_are_missing_the_others_are_counted(tmp_path, said):
    out = three_shards(tmp_path / "out", missing=["c"])
    assert index(out) == 0
    assert "3 of 4 shards are whole" in lines(said)
    assert "5 photographs" in lines(said)
    assert not (out / "index.parquet").exists() and not (out / "stats.json").exists()


def test_no_shard_is_whole_yet(tmp_path, said):
    assert index(results(tmp_path / "out", {}, missing=["a", "b"])) == 0
    assert "0 of 2 shards are whole" in lines(said)


def test_a_folder_of_loose_masks(tmp_path, said):
    (tmp_path / "inputs.json").write_text('{"made_from": "x"}')
    masks = MaskFolder(tmp_path)
    masks.add("a", mask_of())
    assert index(tmp_path) == 0
    assert "class 1 1 100.0% 25.0%" in lines(said)
    assert not any("shard" in line for line in lines(said))
    assert index(tmp_path, "--shard", "a") == WRONG_INPUT
    assert "has no shards" in said.getvalue()
    assert index(tmp_path, "--verify") == 0


@pytest.fixture
def loose(tmp_path) -> Path:
    """Masks of a cat each, of which b was made a dog, c another size, and d was removed."""
    out = tmp_path / "loose"
    out.mkdir()
    (out / "inputs.json").write_text(
        json.dumps({"made_from": "x", "about": {"classes": ["cat", "dog"]}})
    )
    masks = MaskFolder(out)
    for name in "abcd":
        masks.add(name, np.ones((2, 4), np.uint8))
    assert index(out) == 0
    write_mask(out / "masks/b.png", np.array([[0, 2, 2, 2], [2, 2, 2, 2]], np.uint8))
    write_mask(out / "masks/c.png", np.ones((3, 3), np.uint8))
    (out / "masks/d.png").unlink()
    return out


@pytest.mark.parametrize("is_joined", [False, True])
def test_loose_masks_that_were_changed_count_as_they_are_now(
    loose, tmp_path, said, caplog, is_joined
):
    if is_joined:
        assert index(loose) == 0
        assert {"labelled 1 33.3%", "edited 2 66.7%"} < {*lines(said)}
    assert index(loose, "--status", "edited") == 0
    assert lines(said)[-2:] == ["2 of 3 photographs", "b, c"]
    assert index(loose, "--class", "dog", "--csv", tmp_path / "dogs.csv") == 0
    assert (tmp_path / "dogs.csv").read_text().splitlines()[1] == "b,,edited,0.875,,"
    assert index(loose, "--class", "cat") == 0
    assert lines(said)[-1] == "a"
    assert "1 mask is no longer there, so not counted: d" in caplog.text


@pytest.mark.parametrize("question", [("--status", "failed"), ("--error", "cut off")])
def test_failures_of_loose_masks_are_not_answered_by_none(loose, said, question):
    assert index(loose, *question) == WRONG_INPUT
    told = f"{' '.join(question[:2]) if question[1] == 'failed' else question[0]}: {loose} has no"
    assert told in " ".join(said.getvalue().split())


def test_a_question_lists_the_first_names(out, said, tmp_path):
    assert index(out, "--class", "dog", "--max-area", "0.3", "--status", "labelled") == 0
    assert lines(said) == ["2 of 5 photographs", "x, y"]


def test_of_many_names_the_first_are_listed(tmp_path, said):
    rows = [(failed(f"p{i:02d}", "s", "too\nlarge"), None) for i in range(12)]
    out = results(tmp_path / "out", {"s": rows}, missing=["t"])
    assert index(out, "--error", "LARGE") == 0
    assert lines(said)[0] == "12 of 12 photographs"
    assert lines(said)[1].endswith("p08, p09 and 2 more")


def test_names_are_written_for_lists_of_names(out, tmp_path, said):
    file = tmp_path / "names.txt"
    for _ in range(2):  # the same again is no other file
        assert index(out, "--class", "2", "--names", file) == 0
    assert read_names(file) == ["x", "y", "sub/z"]
    assert index(out, "--class", "cat", "--names", file) == WRONG_INPUT
    assert "--names" in said.getvalue() and "is there already" in said.getvalue()
    assert read_names(file) == ["x", "y", "sub/z"]


def test_names_that_are_no_lines_are_left_out_and_told(tmp_path, caplog):
    names = ["a,b", "line\nfeed", " blank", "caf\udce9", "ok"]
    out = results(tmp_path / "out", {
        "s": [(failed(name, "s"), None) for name in names],
        "t": [(failed("ok", "t"), None)],
    })  # fmt: skip
    file = tmp_path / "names.txt"
    assert index(out, "--names", file) == FAILED
    assert read_names(file) == ["a,b", "ok"]
    assert "left out: 3 names that cannot stand in a line of text" in caplog.text
    assert "names: 1 further one of several shards stand once" in caplog.text


def test_rows_are_written_as_csv(tmp_path, said):
    names = ["a,b", 'say "x"', "line\nfeed", "carriage\rreturn", "caf\udce9"]
    rows = [(labelled(name, "s"), mask_of()) for name in names]
    out = results(tmp_path / "out", {"s": [*rows, (failed("f", "s", "bad, very"), None)]})
    file = tmp_path / "rows.csv"
    assert index(out, "--csv", file) == 0
    with open(file, newline="", encoding="utf-8") as text:
        head, *stored = csv.reader(text)
    assert head == ["name", "shard", "status", "area", "confidence", "error"]
    assert stored[0] == ["a,b", "s", "labelled", "", "0.5", ""]
    assert [row[0] for row in stored] == [*names[:4], "caf\\udce9", "f"]
    assert stored[-1] == ["f", "s", "failed", "", "", "bad, very"]
    assert index(out, "--class", "dog", "--csv", tmp_path / "dog.csv") == 0
    assert "0.25,0.5" in (tmp_path / "dog.csv").read_text()


def test_nothing_is_written_into_the_results(out, tmp_path, said):
    assert index(out, "--csv", out / "rows.csv") == WRONG_INPUT
    assert index(out, "--names", tmp_path / "a", "--csv", tmp_path / "a") == WRONG_INPUT
    assert not (out / "rows.csv").exists() and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "hotdog"], "--class: no class is called 'hotdog'; did you mean hot dog"),
        (["--class", "300"], "--class: no class is called '300'"),
        (["--min-area", "0.1"], "--min-area, --max-area: expected a class"),
        (["--class", "cat", "--min-area", "2"], "--min-area, --max-area: expected a share"),
        (["--max-confidence", "nan"], "--min-confidence, --max-confidence: expected a share"),
        (["--shard", "a/2"], "--shard: no shard is called 'a/2'; did you mean a/"),
        (["--verify", "--class", "cat"], "--verify: expected without conditions"),
        (["--verify", "--csv", "x.csv"], "--verify: expected without conditions"),
    ],
)
def test_wrong_conditions_are_refused(out, said, options, message):
    assert index(out, *options) == WRONG_INPUT
    assert message in said.getvalue()


def test_a_status_that_is_none_is_refused(out):
    with pytest.raises(SystemExit):
        index(out, "--status", "fine")


def test_another_folder_is_refused(tmp_path, said):
    assert index(tmp_path) == index(tmp_path / "nowhere") == WRONG_INPUT
    assert "inputs.json is missing" in said.getvalue()


def test_files_of_others_stay(out, said):
    (out / "index.parquet").write_bytes(b"mine")
    assert index(out) == WRONG_INPUT
    assert (out / "index.parquet").read_bytes() == b"mine"


def test_verified(out, said):
    assert index(out, "--verify") == 0
    assert lines(said)[-1].endswith("0 errors, 0 warnings")
    (out / "masks/b.tar").unlink()
    assert index(out, "--verify") == FAILED
    assert lines(said)[-1].endswith("1 errors, 0 warnings")
    assert "errors in all: mask missing: 1" in lines(said)


def test_missing_shards_are_errors_of_verify(tmp_path, said):
    assert index(three_shards(tmp_path / "out", missing=["c"]), "--verify") == FAILED
    assert "1 of 4 shards are not whole: c; start weaktr label again" in said.getvalue()


def test_masks_that_somebody_changed_are_warnings(tmp_path, said):
    out = three_shards(tmp_path / "out", "png")
    content = (out / "masks/x.png").read_bytes()
    (out / "masks/x.png").write_bytes(content.replace(b"tEXtSoftware", b"tEXtSoftwarf"))
    assert index(out, "--verify") == FAILED  # its check sum is wrong: damaged
    from PIL import Image

    Image.fromarray(mask_of(3, 3)).save(out / "masks/x.png")
    assert index(out, "--verify") == 0
    assert "warning: " in said.getvalue() and "somebody has changed it" in said.getvalue()


def test_other_commands_read_shards_of_loose_masks(tmp_path):
    out, photographs = tmp_path / "out", tmp_path / "photographs"
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 1:5] = 2
    names = {"0": ("a", "b"), "1": ("c",)}
    for name in (name for many in names.values() for name in many):
        photograph(photographs / f"{name}.png", (6, 8))
    results(
        out,
        {s: [(labelled(n, s, mask, given=(1,)), mask) for n in many] for s, many in names.items()},
        "png",
    )
    inputs = json.loads((out / "inputs.json").read_text())
    inputs["about"] |= {"photographs": str(photographs), "exif": "ignore"}
    (out / "inputs.json").write_text(json.dumps(inputs))
    assert main(["export-masks", str(out), "--to", "coco", "--out", str(tmp_path / "coco")]) == 0
    content = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [(one["file_name"], one["labels"]) for one in content["images"]] == [
        ("a.png", ["dog"]), ("b.png", ["dog"]), ("c.png", ["dog"]),
    ]  # fmt: skip
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["report", str(out)]) == 0
