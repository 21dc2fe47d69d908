"""All shards together: joined, verified, asked; and damage of every kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.shards.made import (
    failed,
    labelled,
    mask_of,
    results,
    three_shards,
    without,
    write_shard,
    write_tar,
)  # fmt: skip
from weaktr.data.masks import MaskFolder, png_of
from weaktr.data.problems import DataError, Problem
from weaktr.shards import index as index_module
from weaktr.shards.index import INDEX, STATS, is_current, join
from weaktr.shards.query import Query, count, label_of, select
from weaktr.shards.records import read_records, read_results, record_file, table_file
from weaktr.shards.rows import Row, read_table, rows_of, table_of, write_table
from weaktr.shards.statistics import statistics_of
from weaktr.shards.verify import verify
from weaktr.tars import members_of

NAMES = ["x", "y", "sub/z", "empty", "broken"]


def index_of(out):
    """`join` of a folder of results."""
    return join(read_results(out))


@pytest.fixture(params=["tar", "png"])
def out(request, tmp_path) -> Path:
    return three_shards(tmp_path / "out", request.param)


def kinds(out: Path) -> list[str]:
    return [problem.kind for problem in verify(out)]


def only_problem(out: Path) -> Problem:
    (problem,) = verify(out)
    return problem


# ---- records ------------------------------------------------------------------------------------


def test_records_stand_in_the_order_of_the_layout(out):
    records = read_records(out)
    assert [record.shard for record in records] == ["a/0", "a/1", "b"]
    assert [record.seconds for record in records] == [2.5, 2.5, 2.5]
    is_tar = (out / "masks/b.tar").exists()
    place = out / ("masks/b.tar/sub/z.png" if is_tar else "masks/sub/z.png")
    assert records[2].mask("sub/z") == place


def test_masks_may_lie_in_folders_of_their_shards(tmp_path):
    out = three_shards(tmp_path / "out", "png", in_folders=True)
    assert read_records(out)[0].mask("x") == out / "masks/a/0/x.png"
    assert (out / "masks/a/0/x.png").is_file()
    assert not kinds(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "weaktr-shard-9"}, "format: expected 'weaktr-shard-1', got 'weaktr-shard-9'"),
        ({"made_from": "e" * 32}, "belongs to other results: made_from: expected 'fff"),
        ({"shard": "c"}, "shard: expected 'b', got 'c'"),
        ({"statistics": None}, "damaged: expected statistics"),
        ({"seconds": "1"}, "damaged: expected statistics and seconds"),
        ({"outputs": []}, "damaged: expected outputs masks and index"),
        ({"outputs": {"masks": {}, "index": {}}}, "damaged: outputs: masks: expected a file or"),
        (
            {"outputs": {"masks": {"file": "../a.tar"}, "index": {"file": "b"}}},
            "damaged: outputs: masks: expected a file or folder here",
        ),
        (
            {"outputs": {"masks": {"file": "a.tar"}, "index": {"file": "b"}}},
            "damaged: outputs: index: expected its sha256",
        ),
    ],
)
def test_damaged_records_are_named_with_what_to_do(tmp_path, change, message):
    out = three_shards(tmp_path / "out")
    path = record_file(out, "b")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as caught:
        read_results(out)
    text = str(caught.value)
    assert text.startswith(f"{path}: {message}")
    assert text.endswith(
        f"remove {path} and start weaktr label again, which then makes this shard again"
    )
    assert kinds(out)[0] == "shard damaged"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1, "a": 2}', "\0"])
def test_a_record_that_is_no_json_is_named(tmp_path, content):
    out = three_shards(tmp_path / "out")
    record_file(out, "b").write_text(content)
    with pytest.raises(ValueError, match=r"index/b\.json: .*remove .*b\.json and start"):
        read_results(out)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "layout: expected shards"),
        ({"output": "png", "shards": [1]}, "layout: expected shards"),
        ({"output": "png", "shards": ["../a"]}, "layout: expected shards"),
        ({"output": "zip", "shards": ["a"]}, "layout: expected the output png or tar, got 'zip'"),
        ({"output": "png", "shards": ["a", "a"]}, "layout: expected each shard once, got a twice"),
    ],
)
def test_a_damaged_layout_is_refused(tmp_path, layout, message):
    (tmp_path / "inputs.json").write_text(json.dumps({"made_from": "x", "layout": layout}))
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected --out of weaktr label, inputs\.json is missing"
    ):
        read_results(tmp_path)
    (tmp_path / "inputs.json").write_text('{"made_from": "x"}')
    with pytest.raises(ValueError, match="expected masks of weaktr label, found none yet"):
        index_of(tmp_path)
    (tmp_path / "index.jsonl").write_text("")
    assert read_results(tmp_path).layout is None
    with pytest.raises(ValueError, match="expected results by shards"):
        read_records(tmp_path)


# ---- joined -------------------------------------------------------------------------------------


def test_the_index_has_all_rows_in_the_order_of_the_shards(out):
    stats = index_of(out)
    rows = list(rows_of(read_table(out / INDEX)))
    assert [row.name for row in rows] == NAMES
    assert rows == [row for r in read_records(out) for row in rows_of(read_table(r.table))]
    assert stats["statistics"] == statistics_of(table_of(rows))
    assert (stats["shards"], stats["seconds"]) == (3, 7.5)
    stored = json.loads((out / STATS).read_text())
    assert stored.pop("seal").startswith("weaktr ")
    assert stored == stats


def test_joined_again_nothing_is_written(out):
    first = index_of(out)
    before = [(out / name).stat().st_ino for name in (INDEX, STATS)]
    assert index_of(out) == first
    assert [(out / name).stat().st_ino for name in (INDEX, STATS)] == before


def test_the_same_rows_give_the_same_files(out):
    index_of(out)
    contents = [(out / name).read_bytes() for name in (INDEX, STATS)]
    for name in (INDEX, STATS):
        (out / name).unlink()
    index_of(out)
    assert [(out / name).read_bytes() for name in (INDEX, STATS)] == contents


def test_of_an_index_whose_statistics_are_gone_both_are_written(out):
    first = index_of(out)
    (out / STATS).unlink()
    assert index_of(out) == first and (out / STATS).is_file()


def test_several_at_once_write_the_same(tmp_path):
    out = three_shards(tmp_path / "out")
    stats: list[dict] = []
    threads = [threading.Thread(target=lambda: stats.append(index_of(out))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stats) == 6 and all(one == stats[0] for one in stats)
    assert read_table(out / INDEX).num_rows == 5
    assert not list(out.glob(".*.part"))


def test_a_shard_made_again_makes_the_index_again(out):
    index_of(out)
    place = json.loads(record_file(out, "a/1").read_text())["outputs"]["masks"]
    write_shard(out, "a/1", [failed("new", "a/1")], place)
    assert not is_current(out / INDEX, read_results(out).state())
    assert index_of(out)["statistics"]["images"] == 6
    assert read_table(out / INDEX)["name"].to_pylist() == [
        "x",
        "y",
        "new",
        "sub/z",
        "empty",
        "broken",
    ]


def test_many_shards_of_small_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "GROUP", 5)
    shards = {
        f"{i:03d}": [(failed(f"p{j}", f"{i:03d}"), None) for j in range(3)] for i in range(60)
    }
    out = results(tmp_path / "out", shards)
    assert index_of(out)["statistics"]["status"]["failed"] == 180
    with pq.ParquetFile(out / INDEX) as file:
        assert file.num_row_groups >= 30
        assert file.read()["shard"].to_pylist() == [s for s in shards for _ in range(3)]
    os.unlink(out / STATS)
    assert index_of(out)["shards"] == 60  # what weaktr wrote is known as such, and replaced


def test_missing_shards_are_named(tmp_path):
    out = three_shards(tmp_path / "out", missing=[f"c{i}" for i in range(7)])
    with pytest.raises(
        ValueError, match=r"7 of 10 shards are not whole: c0, c1, c2, c3, c4 and 2 m"
    ):
        index_of(out)
    assert not (out / INDEX).exists()


@pytest.mark.parametrize("name", [INDEX, STATS])
def test_files_of_others_stay(out, name):
    own = io.BytesIO()
    pq.write_table(pa.table({"name": ["mine"]}), own)
    content = own.getvalue() if name == INDEX else b'{"mine": 1}'
    (out / name).write_bytes(content)
    with pytest.raises(ValueError, match="weaktr did not write it"):
        index_of(out)
    assert (out / name).read_bytes() == content
    (out / name).unlink()
    (out / name).symlink_to(out / "inputs.json")
    with pytest.raises(ValueError, match="weaktr did not write it"):
        index_of(out)


def test_a_name_twice_in_a_shard_is_reported(tmp_path):
    out = three_shards(tmp_path / "out")
    write_shard(out, "a/1", [failed("p", "a/1"), failed("q", "a/1"), failed("p", "a/1")],
                {"file": "masks/a/1.tar"})  # fmt: skip
    message = r"a/1\.parquet: has 1 photograph of the shard a/1 more than once: p; remove"
    with pytest.raises(ValueError, match=message):
        index_of(out)
    assert "more than once" in only_problem(out).message


def test_rows_of_another_shard_are_reported(tmp_path):
    out = three_shards(tmp_path / "out")
    write_shard(out, "a/1", [failed("p", "a/0")], {"file": "masks/a/1.tar"})
    with pytest.raises(ValueError, match="has rows of the shard 'a/0'"):
        index_of(out)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(content[:40] + b"\0\1\2\3" + content[44:])


@pytest.mark.parametrize("how", ["gone", "cut off", "empty", "changed"])
def test_damaged_parquets_are_named(tmp_path, how):
    out = three_shards(tmp_path / "out")
    damage(table_file(out, "b"), how)
    with pytest.raises(ValueError, match=r"b\.parquet: .*remove .*b\.json and start weaktr label"):
        index_of(out)
    assert not (out / INDEX).exists() and not list(out.glob(".*.part"))
    assert kinds(out) == ["shard damaged"]
    with pytest.raises(ValueError, match=r"b\.parquet"):
        select(read_results(out), Query(label=1))


def test_a_damaged_index_does_not_count_as_current(out):
    index_of(out)
    damage(out / INDEX, "cut off")
    assert count(read_results(out), Query()) == 5


def test_an_index_that_is_damaged_within_is_named(tmp_path):
    out = three_shards(tmp_path / "out")
    index_of(out)
    damage(out / INDEX, "changed")
    with pytest.raises(ValueError, match=r"index\.parquet: damaged \(.*remove it"):
        select(read_results(out), Query())


def test_an_index_of_other_columns_does_not_count_as_current(out):
    index_of(out)
    with pq.ParquetFile(out / INDEX) as file:
        table = file.read()
    pq.write_table(table.drop_columns(["areas"]), out / INDEX)
    assert count(read_results(out), Query(label=1, min_area=0.0)) == 1
    index_of(out)
    assert read_table(out / INDEX).num_rows == 5


def test_other_columns_are_refused(tmp_path):
    out = three_shards(tmp_path / "out")
    pq.write_table(pa.table({"name": [1]}), table_file(out, "b"))
    with pytest.raises(ValueError, match=r"b\.parquet: expected the columns name, shard"):
        list(read_results(out).tables())


# ---- verified -----------------------------------------------------------------------------------


def test_nothing_is_wrong_with_what_was_just_made(out):
    assert not kinds(out)
    index_of(out)
    assert not kinds(out)


def test_missing_shards_are_a_problem(tmp_path):
    out = three_shards(tmp_path / "out", missing=["c"])
    (out / "masks/c.tar").write_bytes(b"half")
    assert "1 of 4 shards are not whole: c" in only_problem(out).message


def replace_mask(out: Path, content: bytes | None, name: str = "x", shard: str = "a/0") -> None:
    """Put another content in the place of a mask; None = remove it."""
    tar = out / f"masks/{shard}.tar"
    if not tar.exists():
        path = out / f"masks/{name}.png"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        return
    whole = tar.read_bytes()
    files = {m.name: whole[m.offset : m.offset + m.size] for m in members_of(tar)}
    if content is None:
        del files[f"{name}.png"]
    else:
        files[f"{name}.png"] = content
    write_tar(tar, files)


def by_hand(mask: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, "mask missing", "file is missing"),
        (b"", "mask damaged", "damaged: cannot be read as a mask"),
        (bytes(100), "mask damaged", "damaged: cannot be read as a mask"),
        (png_of(mask_of())[:-30], "mask damaged", "damaged: cannot be read as a mask"),
        (
            png_of(mask_of())[:-20] + bytes(4) + png_of(mask_of())[-16:],
            "mask damaged",
            "damaged: cannot be read as a mask: it is damaged: its pixels do not fit",
        ),
        (
            png_of(mask_of(3, 3)),
            "mask changed by hand",
            "put another mask of weaktr's in its place: expected the labels 0, 1, 2, got 0, 3",
        ),
        (by_hand(mask_of()), "mask changed by hand", "changed it, into the same labels"),
        (
            by_hand(mask_of(1, 3)),
            "mask changed by hand",
            "expected the labels 0, 1, 2, got 0, 1, 3",
        ),
        (by_hand(mask_of()[:3]), "mask changed by hand", "expected 5x4"),
        (by_hand(Image.new("RGB", (50, 40))), "mask changed by hand", "one channel"),
        (by_hand(mask_of(), "BMP"), "mask changed by hand", "cannot be read as a mask"),
        (by_hand(mask_of().astype(np.uint16) * 200), "mask changed by hand", "up to 255, got 400"),
        (b"my notes", "mask changed by hand", "cannot be read as a mask"),
    ],
)
def test_masks_are_held_against_their_rows(out, content, kind, message):
    replace_mask(out, content)
    problem = only_problem(out)
    assert problem.kind == kind and message in problem.message
    assert problem.level == ("warning" if kind == "mask changed by hand" else "error")
    assert problem.file.endswith("x.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (0, 1)}, "expected the labels 0, 1, got 0, 1, 2, in its row"),
        ({"labels": None}, "expected the labels , got 0, 1, 2"),
        ({"areas": {0: 0.5, 1: 0.3, 2: 0.2}}, "expected other areas"),
        ({"height": 5}, "mask and image differ in size: expected 5x5"),
        ({"width": None}, "differ in size"),
    ],
)
def test_rows_are_held_against_their_masks(tmp_path, change, message):
    row = labelled("x", "s", **change)
    out = results(tmp_path / "out", {"s": [(row, mask_of())]})
    problem = only_problem(out)
    assert problem.kind == "mask unlike its row" and message in problem.message


def test_a_mask_that_was_edited_before_is_as_its_row_says(tmp_path):
    content = by_hand(mask_of(3, 3))
    digest = hashlib.sha256(content).hexdigest()
    row = labelled("x", "s", mask_of(3, 3), status="edited", mask_digest=digest, confidence=None)
    out = results(tmp_path / "out", {"s": [(row, mask_of())]}, "png")
    (out / "masks/x.png").write_bytes(content)
    assert not kinds(out)


@pytest.mark.parametrize(
    "row", [labelled("x", "s", status="failed"), labelled("x", "s", mask_digest=None)]
)
def test_a_status_that_the_mask_denies_is_reported(tmp_path, row):
    out = results(tmp_path / "out", {"s": [(row, mask_of())]})
    assert kinds(out)[0] == "shard damaged"


@pytest.mark.parametrize("how", ["gone", "cut off", "empty"])
def test_damaged_tars_are_named_once(tmp_path, how):
    out = three_shards(tmp_path / "out")
    tar = out / "masks/a/0.tar"
    if how == "cut off":
        tar.write_bytes(tar.read_bytes()[:1500])
    else:
        damage(tar, how)
    problem = only_problem(out)
    assert problem.file == str(tar)
    assert problem.kind == ("mask missing" if how == "gone" else "mask damaged")


def test_what_no_row_lists_is_reported(tmp_path):
    out = three_shards(tmp_path / "tar")
    files = {"x.png": png_of(mask_of()), "y.png": png_of(mask_of(2, 255)), "more.txt": b""}
    write_tar(out / "masks/a/0.tar", files)
    (out / "masks/old.tar").write_bytes(b"")
    (out / "index/old.json").write_text("{}")
    assert sorted(Path(problem.file).name for problem in verify(out)) == [
        "more.txt", "old.json", "old.tar",
    ]  # fmt: skip
    out = three_shards(tmp_path / "png", "png")
    (out / "masks/other.png").write_bytes(png_of(mask_of()))
    (out / "masks/.hidden").write_bytes(b"")
    assert Path(only_problem(out).file).name == "other.png"


def test_masks_of_shards_that_are_not_whole_may_lie_there(tmp_path):
    out = three_shards(tmp_path / "out", "png", missing=["c"])
    (out / "masks/of_c.png").write_bytes(png_of(mask_of()))
    (out / "masks/mine.txt").write_bytes(b"mine")
    assert kinds(out) == ["shards missing", "file that no row lists"]


def test_further_outputs_are_held_against_their_digest(tmp_path):
    out = three_shards(tmp_path / "out")
    path = record_file(out, "b")
    record = json.loads(path.read_text())
    record["outputs"]["confidence"] = {"file": "confidence/b.tar", "bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(record))
    assert Path(only_problem(out).file).name == "b.tar"
    write_tar(out / "confidence/b.tar", {})
    assert "is not as the record" in only_problem(out).message


def test_an_index_of_other_rows_is_a_warning(tmp_path):
    out = three_shards(tmp_path / "out")
    index_of(out)
    write_shard(out, "a/1", [failed("new", "a/1")], {"file": "masks/a/1.tar"})
    assert only_problem(out).level == "warning"


# ---- asked --------------------------------------------------------------------------------------


def asked(tmp_path: Path) -> Path:
    """Rows with known areas and confidences."""
    rows = [
        labelled("a", "s", areas={0: 0.5, 1: 0.5}, labels=(0, 1), confidence={0: 0.1, 1: 0.9}),
        labelled("b", "s", areas={0: 0.9995, 1: 0.0005}, labels=(0, 1), confidence={1: 0.2}),
        labelled("c", "s", areas={1: 0.2, 3: 0.7, 255: 0.1}, labels=(1, 3, 255),
                 confidence={1: 0.4, 3: 0.3, 255: 0.01}),
        labelled("d", "s", areas=None, labels=(1, 254), confidence=None),
        labelled("e", "s", areas={254: 1.0}, labels=(254,), confidence={254: float("nan")}),
    ]  # fmt: skip
    more = [without("f", "t"), failed("g", "t", "Cut off"), failed("a", "t", "too large")]
    shards = {"s": [(row, None) for row in rows], "t": [(row, None) for row in more]}
    return results(tmp_path / "out", shards)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("query", "names"),
    [
        (Query(), "abcdefga"),
        (Query(label=1), "acd"),
        (Query(label=1, min_area=0.0), "abc"),
        (Query(label=1, max_area=0.2), "bc"),
        (Query(label=1, min_area=0.2, max_area=0.5), "ac"),
        (Query(label=254), "de"),
        (Query(label=255), "c"),
        (Query(label=0), "ab"),
        (Query(label=2), ""),
        (Query(label=1, min_confidence=0.4), "ac"),
        (Query(label=1, max_confidence=0.4), "c"),
        (Query(label=1, max_confidence=0.4, max_area=1.0), "bc"),
        (Query(label=254, max_confidence=1.0), ""),
        (Query(max_confidence=0.3), "c"),
        (Query(min_confidence=0.31), "a"),
        (Query(status="failed"), "ga"),
        (Query(status="no class"), "f"),
        (Query(status="edited"), ""),
        (Query(shard="t"), "fga"),
        (Query(shard="t", status="failed", error="LARGE"), "a"),
        (Query(error="cut"), "g"),
    ],
)
def test_a_query_finds(tmp_path, query, names, joined):
    out = asked(tmp_path)
    if joined:
        index_of(out)
    assert "".join(select(read_results(out), query)["name"].to_pylist()) == names
    assert count(read_results(out), query) == len(names)


def test_selected_rows_hold_what_the_class_has(tmp_path):
    results_ = read_results(asked(tmp_path))
    row = {"name": "a", "shard": "s", "status": "labelled", "error": None}
    assert select(results_, Query(label=1, min_confidence=0.5)).to_pylist() == [
        row | {"area": 0.5, "confidence": 0.9}
    ]
    (of_c,) = select(results_, Query(max_confidence=0.3)).to_pylist()
    assert (of_c["area"], of_c["confidence"]) == (None, 0.3)
    assert select(results_, Query(label=254)).to_pylist()[0]["confidence"] is None


def test_during_a_run_the_whole_shards_are_asked(tmp_path):
    out = three_shards(tmp_path / "out", missing=["c"])
    assert select(read_results(out), Query(label=2))["name"].to_pylist() == ["x", "y", "sub/z"]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"label": 256}, r"label: expected 0\.\.255, got 256"),
        ({"status": "bad"}, "status: expected one of labelled, no class, failed, edited"),
        ({"max_confidence": 1.5}, "confidence: expected a share from 0 to 1, got 1.5"),
        ({"min_confidence": float("nan")}, "confidence: expected a share"),
        (
            {"min_confidence": 0.5, "max_confidence": 0.4},
            "confidence: expected the least not above",
        ),
        ({"max_area": 0.5}, "area: expected a class"),
    ],
)
def test_wrong_conditions_are_refused(conditions, message):
    with pytest.raises(ValueError, match=message):
        Query(**conditions)


@pytest.mark.parametrize(
    ("text", "classes", "label"),
    [("cat", ("cat", "7"), 1), ("7", ("cat", "7"), 2), ("1", ("cat",), 1), ("background", None, 0),
     ("ignore", ("cat",), 255), ("255", ("cat",), 255), ("254", None, 254), ("0", ("cat",), 0)],
)  # fmt: skip
def test_a_class_is_known_by_name_or_number(text, classes, label):
    assert label_of(text, classes) == label


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("cta", ("cat", "dog"), "no class is called 'cta'; did you mean cat?"),
        ("zebra", ("cat", "dog"), "no class is called 'zebra'; there are cat, dog"),
        ("3", ("cat", "dog"), "no class is called '3'"),
        ("cat", None, r"expected a number in masks, 0\.\.255, got 'cat'"),
        ("²", None, "expected a number"),
    ],
)
def test_unknown_classes_are_refused(text, classes, message):
    with pytest.raises(ValueError, match=f"class: .*{message}"):
        label_of(text, classes)


# ---- names of any kind --------------------------------------------------------------------------

ODD = ["a,b", 'say "x"', "line\nfeed", "tab\t", " blank ", "caf\udce9", "ü/漢字", "\u2028", "'"]


@pytest.mark.parametrize("output", ["tar", "png"])
def test_names_of_any_kind(tmp_path, output):
    pairs = [(labelled(name, "s"), mask_of()) for name in ODD]
    out = results(tmp_path / "out", {"s": pairs}, output)
    assert not kinds(out)
    index_of(out)
    assert [row.name for row in rows_of(read_table(out / INDEX))] == ODD
    if output == "png":
        assert list(MaskFolder(out).entries) == ODD


def test_a_shard_with_a_name_of_any_kind_is_asked_for(tmp_path):
    pairs = [(labelled("a", "caf\udce9"), mask_of()), (failed("b", "caf\udce9", "caf\udce9"), None)]
    out = read_results(results(tmp_path / "out", {"caf\udce9": pairs}))
    assert count(out, Query(shard="caf\udce9")) == 2
    assert count(out, Query(error="f\udce9")) == 1


# ---- a folder with an index.jsonl ---------------------------------------------------------------


@pytest.fixture
def plain(tmp_path) -> Path:
    out = tmp_path / "plain"
    out.mkdir()
    (out / "inputs.json").write_text('{"made_from": "x", "about": {"classes": ["cat", "dog"]}}')
    masks = MaskFolder(out)
    masks.record(masks.write("a", mask_of(), confidence={1: 0.25}, inputs=("d" * 64,)))
    masks.record(masks.write("caf\udce9", mask_of(2, 2), working_size=(2, 2), given=(1,)))
    empty = masks.write("e", mask_of())
    masks.record(replace(empty, file=None, sha256=None, labels=(), areas=None))
    return out


def test_a_folder_of_loose_masks_is_joined_too(plain):
    stats = index_of(plain)
    assert stats["shards"] == 0 and stats["seconds"] is None
    assert stats["statistics"]["status"]["labelled"] == 2
    assert stats["statistics"]["status"]["no class"] == 1
    masks = MaskFolder(plain)
    size = sum(masks.path(name).stat().st_size for name in masks.entries)
    assert stats["statistics"]["bytes"] == size
    rows = list(rows_of(read_table(plain / INDEX)))
    assert [row.entry() for row in rows] == [*masks.entries.values(), *masks.without.values()]
    assert count(read_results(plain), Query(label=2)) == 2
    assert index_of(plain) == stats
    masks.add("b", mask_of())
    assert count(read_results(plain), Query(label=2)) == 3
    assert index_of(plain)["statistics"]["images"] == 4


def test_a_folder_of_loose_masks_is_verified_too(plain):
    assert not kinds(plain)
    (plain / "masks/a.png").write_bytes(by_hand(mask_of(3, 3)))
    (plain / "masks/mine.txt").write_bytes(b"mine")
    assert kinds(plain) == ["mask changed by hand", "file that no row lists"]
    (plain / "index.jsonl").write_text("{}\n")
    assert "damaged" in next(verify(plain)).message


# ---- MaskFolder ---------------------------------------------------------------------------------


def test_a_mask_folder_reads_shards(tmp_path):
    out = three_shards(tmp_path / "out", "png")
    masks = MaskFolder(out, verify=True)
    assert list(masks.entries) == ["x", "y", "sub/z"] and list(masks.without) == ["empty"]
    np.testing.assert_array_equal(masks.read("sub/z"), mask_of(2, 255))
    rows = [row for r in read_records(out) for row in rows_of(read_table(r.table))]
    there = masks.entries | masks.without
    assert [row.entry() for row in rows if row.status != "failed"] == [*there.values()]
    assert masks.entries["x"].areas == {0: 0.5, 1: 0.25, 2: 0.25}
    assert not masks.edited and not list(masks.others())
    masks.flush()
    with pytest.raises(ValueError, match="made a shard at a time, and none can be added singly"):
        masks.add("new", mask_of())
    assert not (out / "index.jsonl").exists()


def test_a_mask_folder_reads_shards_in_folders(tmp_path):
    masks = MaskFolder(three_shards(tmp_path / "out", "png", in_folders=True), verify=True)
    assert list(masks.entries) == ["a/0/x", "a/0/y", "b/sub/z"]
    np.testing.assert_array_equal(masks.read("a/0/y"), mask_of(2, 255))


def test_a_mask_folder_reads_whole_shards_alone_and_notices_edits(tmp_path):
    out = three_shards(tmp_path / "out", "png")
    record_file(out, "b").unlink()
    (out / "masks/y.png").write_bytes(by_hand(mask_of(3, 3)))
    (out / "masks/x.png").unlink()
    masks = MaskFolder(out, verify=True)
    assert list(masks.entries) == ["y"] and masks.edited == {"y"}
    assert masks.entries["y"].labels == (0, 3)


def test_masks_in_tars_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        DataError, match=r"0\.json: its masks are in 'masks/a/0\.tar'.*--output png"
    ):
        MaskFolder(three_shards(tmp_path / "out"))


@pytest.mark.parametrize("how", ["cut off", "empty", "changed"])
def test_a_mask_folder_names_damage(tmp_path, how):
    out = three_shards(tmp_path / "out", "png")
    damage(table_file(out, "b"), how)
    with pytest.raises(DataError, match=r"b\.parquet: damaged"):
        MaskFolder(out)
    record_file(out, "b").write_text("[]")
    with pytest.raises(DataError, match=r"b\.json: damaged"):
        MaskFolder(out)


@pytest.mark.parametrize("change", [{"name": "../x"}, {"labels": (0, 300)}])
def test_a_mask_folder_refuses_rows_that_lead_out(tmp_path, change):
    row: Row = replace(labelled("x", "s"), **change)
    out = results(tmp_path / "out", {"s": [(labelled("x", "s"), mask_of())]}, "png")
    write_table(table_file(out, "s"), table_of([row]))
    with pytest.raises(DataError, match=r"damaged \(the row"):
        MaskFolder(out)
