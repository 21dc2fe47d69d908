"""Each form of labels: what is read of it, and what is said where it is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path, PurePath
from typing import Any

import pytest

from tests.data.trees import coco_json, write_image
from weaktr.data.own import look_at
from weaktr.data.problems import DataError
from weaktr.data.tags import read_tags, tags_below


def labels(path: Path, content: Any) -> dict[str, tuple[str, ...]]:
    """What a file of this content says; bytes and texts as they are, all else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return {row.image: row.labels for row in read_tags(path).rows}


EXPECTED = {"a b.jpg": ("cat", "big dog"), "d/É.JPG": ("cat",), "x.png": ()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'image,labels\na b.jpg,cat;big dog\n"d/É.JPG",cat\nx.png,\n'),
        ("a.csv", "\ufeffimage,labels\r\na b.jpg,cat|big dog\r\nd/É.JPG, cat \r\n\r\nx.png,\r\n"),
        ("a.csv", "image;labels\na b.jpg;cat|big dog\nd/É.JPG;cat\nx.png;\n"),
        ("a.csv", "filename,width,class\na b.jpg,9,cat;big dog\nd/É.JPG,9,cat\nx.png,9,\n"),
        ("a.csv", "id;Tags;File\n1;cat|big dog;a b.jpg\n2;cat;d/É.JPG\n3;;x.png\n"),
        ("a.csv", "image_id,File,category\n7,a b.jpg,cat;big dog\n8,d/É.JPG,cat\n9,x.png,\n"),
        ("a.csv", "image_id,file_name,cat,big dog\n7,a b.jpg,1,1\n8,d/É.JPG,1,\n9,x.png,,\n"),
        ("a.csv", "Image,Labels\na b.jpg,cat;big dog\nd/É.JPG,cat\nx.png,\n"),
        ("a.csv", "IMAGE,cat,big dog\na b.jpg,1,1\nd/É.JPG,1,0\nx.png,0,0\n"),
        ("a.csv", "sep=;\r\nimage;labels\r\na b.jpg;cat|big dog\r\nd/É.JPG;cat\r\nx.png;\r\n"),
        ("a.csv", "\n \nimage,labels\na b.jpg,cat;big dog\nd/É.JPG,cat\nx.png,\n"),
        ("a.csv", ",\nimage,labels\na b.jpg,cat;big dog\nd/É.JPG,cat\nx.png,\n"),
        ("a.csv", "\nsep=,\na b.jpg,cat;big dog\nd/É.JPG,cat\nx.png,\n"),
        ("a.csv", "filename,label,tags\na b.jpg,cat;big dog,\nd/É.JPG,cat\nx.png,,\n"),
        ("a.csv", "file,class,label,label_2\na b.jpg,,,cat;big dog\nd/É.JPG,,,cat\nx.png,,,\n"),
        ("a.tsv", "image\tlabels\na b.jpg\tcat;big dog\nd/É.JPG\tcat\nx.png\t\n"),
        ("a.csv", "File|Label\na b.jpg|cat;big dog\nd/É.JPG|cat\nx.png|\n"),
        ("a.csv", "a b.jpg,cat;big dog\nd/É.JPG,cat\nx.png,\n"),
        ("a.csv", "image,cat,big dog\na b.jpg,1,1\nd/É.JPG,1,0\nx.png,0,0\n"),
        ("a.csv", "path,cat,big dog\na b.jpg,1,yes\nd/É.JPG,true,\nx.png,0,0\n"),
        ("a.json", '{"a b.jpg": ["cat", "big dog"], "d/É.JPG": ["cat"], "x.png": []}'),
    ],
)
def test_tables_and_json(tmp_path, name, text):
    assert labels(tmp_path / name, text) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "expected at least one image"),
        ("a.csv", "image,labels\nä.jpg,cat\n".encode("latin-1"), "save it as UTF-8"),
        ("a.csv", "image,labels\na.jpg,cat\n".encode("utf-16"), "save it as UTF-8"),
        ("a.csv", "image,labels\na.jpg,cat,dog\n", r"a\.csv:2\): expected 2 columns, got 3"),
        ("a.csv", "sep=;\n", "expected at least one image"),
        ("a.csv", ",,\n", "expected at least one image"),
        (
            "a.csv",
            "\nsep=;\nfile;label\na.jpg\n",
            r"a\.csv:4\): expected at least 2 columns, got 1",
        ),
        ("a.csv", "filename,labels\na.jpg,cat,dog\n", r"a\.csv:2\): expected 2 columns, got 3"),
        (
            "a.csv",
            "filename,labels,\na.jpg,cat,dog\n",
            r"a\.csv:2\): expected 2 columns, got 3; .*, or give the column a heading",
        ),
        ("a.csv", "a.jpg,cat\nb.jpg,cat,dog\n", r"a\.csv:2\): expected 2 columns, got 3"),
        ("a.csv", "path,cat,dog\na.jpg,1,0,1\n", r"a\.csv:2\): expected 3 columns, got 4"),
        (
            "a.csv",
            "image,category,label\na.jpg,x,cat\n",
            "one column of labels, got category, label",
        ),
        ("a.csv", "image,label,label\na.jpg,cat,dog\n", "one column of labels, got label, label"),
        ("a.csv", "image,label,Label_2\na.jpg,cat,dog\n", "got label, Label_2: put labels"),
        ("a.csv", "what,ever\n1,2\n", "expected a column of paths"),
        (
            "a.csv",
            'image,labels\na.jpg,"cat\nb.jpg,dog\n',
            r"a\.csv:2\): .* a quote here not closed",
        ),
        ("a.csv", '\nfile,class\na.jpg,"cat\nb.jpg,dog', r"a\.csv:3\): .* a quote here not closed"),
        ("a.csv", 'file,label,x\na.jpg,cat,"big\nb.jpg,dog,\n', r"a\.csv:2\): .* not closed"),
        (
            "a.csv",
            'annotation_id,lead_time,image,choice\n1,2,"a.jpg,cat\n1,2,b.jpg,dog\n',
            r"a\.csv:2\): .* a quote here not closed",
        ),
        *(
            ("a.csv", f"{start}\n" + "b.jpg,dog\n" * 14_000, rf"a\.csv:{line}\): .* not closed")
            for start, line in (
                ('image,labels\na.jpg,"cat', 2),
                ('image,"labels', 1),
                ('a.jpg,cat\nb.jpg,"cat', 2),
                ('annotation_id,lead_time,image\n1,"2,a.jpg', 2),
                ('annotation_id,lead_time,"image', 1),
            )
        ),
        ("a.csv", "file,label\na.jpg\n", r"a\.csv:2\): expected at least 2 columns, got 1"),
        ("a.csv", "file,cat\na.jpg,maybe\n", "or columns of 0 and 1"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", "[1, 2]", "expected labels of one of the forms"),
        ("a.json", '{"a": [], "a": []}', "stands twice"),
        ("a.xml", "<annotation/>", "expected labels of one of the forms"),
        ("a.xml", "<annotations><meta/>", "expected XML"),
        ("a.txt", "a.jpg,cat", "expected .csv, .tsv, .json, .xml or a folder"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said):
        labels(tmp_path / name, content)


def test_every_line_of_a_table_that_is_too_long_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        labels(tmp_path / "a.csv", "file,label\na.jpg,cat,dog\nb.jpg,cat,\nc.jpg,cat,dog\n")
    assert [problem.where for problem in caught.value.problems] == [
        f"{tmp_path / 'a.csv'}:{line}" for line in (2, 4)
    ]
    assert "part several labels by ; or |" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("image,label,present\na.jpg,cat,0\n", "1 column is not read: present"),
        (",width,File,label\n0,9,a.jpg,cat\n", "2 columns are not read: column 1, width"),
        ("image_id,file_name,cat\n7,a.jpg,1\n", "1 column is not read: image_id"),
    ],
)
def test_columns_that_are_not_read_are_told(tmp_path, text, unread):
    assert labels(tmp_path / "a.csv", text) == {"a.jpg": ("cat",)}
    assert read_tags(tmp_path / "a.csv").doubts == (unread,)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('file,label,note\na.jpg,cat,"big\nb.jpg,dog,""no\nc.jpg,dog,"\nd.jpg,cat,\n', "a.csv:2"),
        ('file,cat\na.jpg,1\n"d.jpg,1\r\n\r\ne.jpg",1\n', "a.csv:3"),
        ('a.jpg,cat\n\n\n"x\nd.jpg",cat\n', "a.csv:4"),
    ],
)
def test_rows_that_may_have_swallowed_others_are_told(tmp_path, text, where):
    labels(tmp_path / "a.csv", text)
    assert (
        read_tags(tmp_path / "a.csv")
        .doubts[-1]
        .startswith(
            f"1 row has line breaks within a cell ({where}): see that no other rows are in it"
        )
    )


def test_what_is_told_of_the_labels_of_val_is_told_too(tmp_path):
    for name, rows in (("train", "a.jpg,cat,1"), ("val", "b.jpg,cat,2")):
        write_image(tmp_path / f"{rows[0]}.jpg")
        labels(tmp_path / f"{name}.csv", f"file,label,{name}ed\n{rows}\n")
    assert look_at(tmp_path, None, None).tags.doubts == (
        "1 column is not read: trained",
        "val.csv: 1 column is not read: valed",
    )


def test_a_long_table_has_several_lines_for_an_image(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("filename,width,class,xmin\na.jpg,9,cat,1\na.jpg,9,dog,2\n")
    rows = read_tags(path).rows
    assert [(row.image, row.labels) for row in rows] == [("a.jpg", ("cat",)), ("a.jpg", ("dog",))]
    assert rows[1].source == f"{path}:3"


def test_coco(tmp_path):
    tags = read_tags(coco_json(tmp_path / "instances.json"))
    assert [row.labels for row in tags.rows] == [("person", "bottle"), ("toothbrush",), ()]
    assert tags.classes == ("person", "stop sign", "bottle", "toothbrush")


def test_coco_with_faults_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no image"):
        read_tags(coco_json(tmp_path / "a.json", annotations=[{"image_id": 7, "category_id": 1}]))


def coco_labels(path: Path, names: list[str], *images: str) -> dict[str, tuple[str, ...]]:
    """What a COCO JSON says with an annotation of each category, 0 and so on, in each image."""
    coco_json(
        path,
        images=[{"id": k, "file_name": image} for k, image in enumerate(images)],
        annotations=[
            {"image_id": k, "category_id": n} for k in range(len(images)) for n in range(len(names))
        ],
        categories=[{"id": n, "name": name} for n, name in enumerate(names)],
    )
    return {row.image: row.labels for row in read_tags(path).rows}


def test_coco_of_another_computer(tmp_path):
    images = ["..\\..\\media\\upload\\1\\0.jpg", "/home/me/1.jpg", "C:\\2.jpg", "../3.jpg"]
    images.append(f"/{'x' * 300}/4.jpg")
    for number in range(5):
        write_image(tmp_path / f"{number}.jpg")
    found = coco_labels(tmp_path / "a.json", ["cat"], *images)
    assert found == {image: ("cat",) for image in images}
    expected = {f"{number}.jpg": ("cat",) for number in range(5)}
    assert look_at(tmp_path, None, None).labels == expected


def test_categories_of_one_name_are_one_class(tmp_path):
    path = tmp_path / "a.json"
    assert coco_labels(path, ["fruit", "leaf", "fruit "], "a.jpg") == {"a.jpg": ("fruit", "leaf")}
    tags = read_tags(path)
    assert tags.classes == ("fruit", "leaf")
    assert tags.doubts == ("the categories 0, 2 are called fruit and count as one class",)


def task(image: str, *results: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "data": {"image": image},
        "annotations": [{"result": [{"value": value} for value in results], **more}],
    }


def test_label_studio(tmp_path):
    content = [
        task("/data/upload/1/0a1b2c3d-a%20b.jpg", {"choices": ["cat", " dog "]}),
        task("/data/local-files/?d=set/é.jpg", {"x": 1, "rectanglelabels": ["cat"]}),
        task("s3://bucket/deep/c.png", {"format": "rle", "brushlabels": ["bird"], "rle": [1]}),
        task("https://host/d.jpg?token=x", {"choices": []}),
        task("skipped.jpg", {"choices": ["cat"]}, was_cancelled=True),
        {"id": 9, "data": {"image": "nobody.jpg"}, "annotations": []},
    ]
    assert labels(tmp_path / "a.json", content) == {
        "/data/upload/1/0a1b2c3d-a b.jpg": ("cat", "dog"),
        "set/é.jpg": ("cat",),
        "/deep/c.png": ("bird",),
        "/d.jpg": (),
    }
    (doubt,) = read_tags(tmp_path / "a.json").doubts
    assert doubt.startswith("2 tasks are not annotated or were skipped")


def test_a_taxonomy_of_label_studio_has_labels(tmp_path):
    paths = {"taxonomy": [["animal", "cat"], ["plant", "tree", "oak"]]}
    content = [task("a.jpg", paths), task("b.jpg", {"taxonomy": [["dog"]]})]
    expected = {"a.jpg": ("cat", "oak"), "b.jpg": ("dog",)}
    assert labels(tmp_path / "a.json", content) == expected
    for name in ("small.json", "table.csv"):
        path = small(
            tmp_path / name,
            {"image": "a.jpg", "what": [paths]},
            {"image": "b.jpg", "what": [{"taxonomy": [["dog"]]}]},
        )
        assert {row.image: row.labels for row in read_tags(path).rows} == expected


def test_results_that_are_not_read_make_no_photograph_without_classes(tmp_path):
    note = task("a.jpg", {"text": ["no class"]})
    note["annotations"][0]["result"][0]["type"] = "textarea"
    content = [note, task("b.jpg", {"rating": 3}, {"choices": ["cat"]}), task("c.jpg")]
    assert labels(tmp_path / "a.json", content) == {"b.jpg": ("cat",), "c.jpg": ()}
    assert read_tags(tmp_path / "a.json").doubts == (
        "results of these types are not read: rating, textarea",
        "1 task has nothing else and is left out",
    )
    with pytest.raises(DataError, match=r"expected choices or labels; .* textarea"):
        labels(tmp_path / "a.json", [note])
    for name in ("small.json", "table.csv"):
        path = small(
            tmp_path / name,
            {"image": "a.jpg", "best": {"ranker": [1]}, "choice": ""},
            {"image": "b.jpg", "best": {"ranker": [2]}, "choice": "cat"},
            {"image": "c.jpg", "best": None, "choice": ""},
        )
        tags = read_tags(path)
        assert [row.image for row in tags.rows] == ["b.jpg", "c.jpg"]
        assert tags.doubts[0].startswith("not taken as labels: best;")
        assert tags.doubts[1] == "1 task has nothing else and is left out"


def test_shapes_of_label_studio_that_another_result_labels_are_read(tmp_path):
    box = {"x": 1, "y": 1, "width": 2, "height": 2}
    content = [task("a.jpg", box, {**box, "labels": ["cat"]}), task("b.jpg", box)]
    for one in content:
        for result in one["annotations"][0]["result"]:
            result |= {"id": "r1", "type": "labels" if "labels" in result["value"] else "rectangle"}
    assert labels(tmp_path / "a.json", content[:1]) == {"a.jpg": ("cat",)}
    assert read_tags(tmp_path / "a.json").doubts == ()
    assert labels(tmp_path / "a.json", content) == {"a.jpg": ("cat",)}
    assert read_tags(tmp_path / "a.json").doubts[0].endswith("not read: rectangle")


@pytest.mark.parametrize("name", ["small.json", "table.csv"])
def test_objects_in_the_data_of_label_studio_are_no_results(tmp_path, name):
    path = small(
        tmp_path / name,
        {"image": "a.jpg", "meta": {"width": 9, "by": "me"}, "choice": "cat", "box": None},
        {"image": "b.jpg", "meta": {"width": 9, "by": "me"}, "choice": "", "box": None},
        {"image": "c.jpg", "meta": {"width": 9}, "choice": "", "box": [{"x": 1, "width": 2}]},
    )
    tags = read_tags(path)
    assert {row.image: row.labels for row in tags.rows} == {"a.jpg": ("cat",), "b.jpg": ()}
    assert tags.doubts[0].startswith("not taken as labels: box;")


def test_several_annotations_of_a_task_add_up(tmp_path):
    both = task("a.jpg", {"choices": ["cat"]})
    both["annotations"] += task("a.jpg", {"choices": ["dog"]})["annotations"]
    assert labels(tmp_path / "a.json", [both]) == {"a.jpg": ("cat", "dog")}
    assert "several annotations" in read_tags(tmp_path / "a.json").doubts[0]


@pytest.mark.parametrize("name", ["small.json", "table.csv"])
def test_label_studio_in_short(tmp_path, name):
    if name == "small.json":
        about = {"annotation_id": 5, "annotator": 1, "lead_time": 2.5}
        content: Any = [
            {"image": "/data/upload/0a1b2c3d-a.jpg", "id": 1, "choice": "cat", **about},
            {"image": "b.jpg", "id": 2, "choice": {"choices": ["cat", "dog"]}, **about},
            {"image": "c.jpg", "id": 3, "box": [{"x": 1, "rectanglelabels": ["bird"]}], **about},
            {"image": "d.jpg", "id": 4, **about},
        ]
    else:
        content = (
            "annotation_id,annotator,box,choice,created_at,id,image,lead_time\n"
            "5,1,,cat,2026-01-01,1,/data/upload/0a1b2c3d-a.jpg,2.5\n"
            '5,1,,"{""choices"":[""cat"",""dog""]}",2026-01-01,2,b.jpg,2.5\n'
            '5,1,"[{""x"":1,""rectanglelabels"":[""bird""]}]",,2026-01-01,3,c.jpg,2.5\n'
            "5,1,,,2026-01-01,4,d.jpg,2.5\n"
        )
    assert labels(tmp_path / name, content) == {
        "/data/upload/0a1b2c3d-a.jpg": ("cat",),
        "b.jpg": ("cat", "dog"),
        "c.jpg": ("bird",),
        "d.jpg": (),
    }


def small(path: Path, *entries: dict[str, Any]) -> Path:
    """Entries as Label Studio writes them: as JSON-MIN, or a CSV with texts or JSON in cells."""
    entries = tuple({"annotation_id": 5, "lead_time": 2.5, **entry} for entry in entries)
    if path.suffix == ".json":
        path.write_text(json.dumps(entries), "utf-8")
        return path
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list({key: 0 for entry in entries for key in entry}),
            delimiter=";" if path.stem == "semicolons" else ",",
        )  # fmt: skip
        writer.writeheader()
        for entry in entries:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in entry.items()}
            )
    return path


BRIEF = pytest.mark.parametrize("name", ["small.json", "table.csv", "semicolons.csv"])


@BRIEF
def test_only_choices_of_label_studio_are_labels(tmp_path, name):
    path = small(
        tmp_path / name,
        {"image": "a.jpg", "source": "camera1", "choice": "cat", "comment": "blurred, sorry"},
        {"image": "b.jpg", "source": "camera2", "choice": {"choices": ["cat", "dog"]}},
        {"image": "c.jpg", "source": "", "Animal_Class": "bird", "many labels": ["owl", "cat"]},
    )
    if name == "semicolons.csv":
        path.write_text("sep=;\n" + path.read_text("utf-8"), "utf-8")
    tags = read_tags(path)
    assert [own.labels for own in tags.rows] == [("cat",), ("cat", "dog"), ("bird", "owl", "cat")]
    assert name != "semicolons.csv" or tags.rows[0].source == f"{path}:3"
    assert tags.form.endswith(", with the columns choice, Animal_Class, many labels")
    assert tags.doubts[0].startswith("texts of the columns choice, Animal_Class, many labels count")
    assert tags.doubts[1].startswith("not taken as labels: comment, source; texts count where")


@BRIEF
def test_labels_that_came_with_the_photographs_are_told(tmp_path, name):
    """Beside the annotators' own."""
    path = small(
        tmp_path / name,
        {
            "image": "a.jpg",
            "label": "cat",
            "choice": "dog",
            "boxes": [{"rectanglelabels": ["owl"]}],
        },
    )
    assert read_tags(path).doubts == (
        "texts of the columns label, choice count together: rename those that are no labels",
    )
    path = small(
        tmp_path / name, {"image": "a.jpg", "choice": "dog", "what": [{"choices": ["owl"]}]}
    )
    tags = read_tags(path)
    assert (tags.form[-24:], tags.doubts) == (", with the column choice", ())


@BRIEF
def test_a_column_of_label_studio_with_lists_of_choices_has_choices(tmp_path, name):
    path = small(
        tmp_path / name,
        {"image": "a.jpg", "animal": "cat"},
        {"image": "b.jpg", "animal": {"choices": ["cat", "dog"]}},
    )
    assert [own.labels for own in read_tags(path).rows] == [("cat",), ("cat", "dog")]


@BRIEF
def test_texts_of_label_studio_that_may_be_choices_or_not_are_refused(tmp_path, name):
    path = small(tmp_path / name, {"image": "a.jpg", "animal": "cat"})
    with pytest.raises(DataError, match="expected a column of labels, not taken as labels: animal"):
        read_tags(path)


@pytest.mark.parametrize(
    "wrong",
    [
        [task("a.jpg") | {"annotations": 3}],
        [task("a.jpg") | {"annotations": [{}]}],
        [task("no image")],
        [task("a.jpg"), 7],
        [{"annotation_id": 1, "image": 3}],
        [{"annotation_id": 1, "image": "a.jpg"}, "b.jpg"],
    ],
)
def test_a_damaged_export_of_label_studio_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match=r"a\.json\["):
        labels(tmp_path / "a.json", wrong)


CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task>
</meta>
<image id="0" name="d/é.jpg" width="9" height="9"><tag label="cat"/><box label="dog"/></image>
<image id="1" name="b.jpg"><mask label="cat" rle="1"/><polygon label="cat" points="1,2"/></image>
<image id="2" name="c.jpg"/></annotations>"""


def test_cvat(tmp_path):
    found = labels(tmp_path / "a.xml", CVAT)
    assert found == {"d/é.jpg": ("cat", "dog"), "b.jpg": ("cat",), "c.jpg": ()}
    assert read_tags(tmp_path / "a.xml").classes == ("dog", "cat")


def test_attributes_of_cvat_are_told(tmp_path):
    tag = '<tag label="cat"><attribute name="breed">manx</attribute></tag>'
    labels(tmp_path / "a.xml", CVAT.replace('<tag label="cat"/>', tag))
    told = read_tags(tmp_path / "a.xml").doubts
    assert told[1:] == ("attributes are not read, labels alone: breed",)


def test_photographs_that_nobody_may_have_looked_at_are_told(tmp_path):
    """Where a form has nothing for those that show no class."""
    told = "1 photograph has no annotations ({}), taken to show no class; leave out"
    labels(tmp_path / "a.xml", CVAT)
    for path, name in {
        tmp_path / "a.xml": "c.jpg",
        coco_json(tmp_path / "i.json"): "COCO_train2014_000000000030.jpg",
    }.items():
        (doubt,) = read_tags(path).doubts
        assert doubt.startswith(told.format(name))


def test_cvat_of_a_video_or_without_names_is_refused(tmp_path):
    with pytest.raises(DataError, match="tracks of a video"):
        labels(tmp_path / "a.xml", CVAT.replace("</annotations>", "<track/></annotations>"))
    with pytest.raises(DataError, match=r"image 1.*with a name"):
        labels(tmp_path / "a.xml", CVAT.replace('name="b.jpg"', ""))


def test_entities_of_others_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    head = f'<!DOCTYPE a [<!ENTITY e SYSTEM "{secret.as_uri()}">]>'
    for whole in (CVAT.split("?>", 1)[1], voc("a.jpg", "dog")):
        text = whole.replace("<name>dog", "<name>&e;")
        with pytest.raises(DataError, match="expected XML") as caught:
            labels(tmp_path / "a.xml", head + text)
        assert "a secret" not in str(caught.value)


def labelme(image: str, flags: Any = None, *shapes: str) -> dict[str, Any]:
    return {
        "version": "5.4",
        "flags": flags or {},
        "shapes": [{"label": label, "points": []} for label in shapes],
        "imagePath": image,
        "imageData": None,
    }


def test_labelme(tmp_path):
    for name, content in {
        "a": labelme("..\\images\\a.jpg", {"cat": True, "dog": False, "owl": None}, "bird", "bird"),
        "deep/b": labelme("b.jpg", None, "cat"),
        "c": labelme("c.jpg"),
    }.items():
        path = tmp_path / f"tags/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (tmp_path / "tags/other.json").write_text("{}")
    rows = {row.image: row.labels for row in read_tags(tmp_path / "tags").rows}
    assert rows == {"..\\images\\a.jpg": ("cat", "bird"), "b.jpg": ("cat",), "c.jpg": ()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"shapes": [{}]},
        {"shapes": 3},
        {"flags": []},
        {"flags": 5},
        {"flags": {"cat": 1}},
        {"imagePath": None},
    ],
)
def test_a_damaged_json_of_labelme_is_named(tmp_path, wrong):
    if wrong == {"flags": []}:
        assert labels(tmp_path / "a.json", labelme("a.jpg") | wrong) == {"a.jpg": ()}
        return
    with pytest.raises(DataError, match=r"a\.json: expected flags, shapes"):
        labels(tmp_path / "a.json", labelme("a.jpg") | wrong)


def voc(file: str, *names: str, folder: str = "") -> str:
    """An XML of Pascal VOC as LabelImg writes it."""
    box = "<bndbox><xmin>1</xmin></bndbox><part><name>head</name></part>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
    place = f"<folder>{folder}</folder><filename>{file}</filename>"
    return f"<annotation>{place}<size><width>9</width></size>{objects}</annotation>"


def test_voc(tmp_path):
    for name, content in {
        "0.xml": voc("a.jpg", "cat", " dog ", "cat", folder="shop"),
        "deep/1.XML": voc("b.jpg", "cat"),
        "2.xml": voc("c.jpg"),
    }.items():
        path = tmp_path / "tags" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "tags/other.xml").write_text("<project/>")
    tags = read_tags(tmp_path / "tags")
    rows = {row.image: row.labels for row in tags.rows}
    assert rows == {"shop/a.jpg": ("cat", "dog"), "b.jpg": ("cat",), "c.jpg": ()}
    assert tags.doubts[0].startswith("1 photograph has no annotations (c.jpg)")
    assert read_tags(tmp_path / "tags/0.xml").rows[0].labels == ("cat", "dog")
    (tmp_path / "tags/cut.xml").write_text(voc("d.jpg", "cat")[:-9])
    with pytest.raises(DataError, match=r"cut\.xml: expected XML"):
        read_tags(tmp_path / "tags")


@pytest.mark.parametrize("where", ["", "images"])
def test_voc_means_the_photograph_beside_it_else_the_one_that_it_says(tmp_path, where):
    expected = {"x.jpg": ("cat",), "sub/x.jpg": ("dog",), "sub/deep/x.jpg": ("bird",)}
    for photograph, (label,) in expected.items():
        write_image(tmp_path / where / photograph)
        xml = (tmp_path / where / photograph).with_suffix(".xml")
        xml.write_text(voc("x.jpg", label, folder="somewhere"))
    assert look_at(tmp_path, None, None).labels == expected
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags/1.xml").write_text(voc("x.jpg", "owl", folder="deep"))
    found = look_at(tmp_path, tmp_path / "tags", None)
    assert found.labels == {"sub/deep/x.jpg": ("owl",)}


@pytest.mark.parametrize(
    "wrong", [voc("", "cat"), voc("a.jpg", "cat", ""), "<annotation><object/></annotation>"]
)
def test_a_damaged_xml_of_voc_is_named(tmp_path, wrong):
    with pytest.raises(DataError, match=r"a\.xml: expected the filename of a photograph, and"):
        labels(tmp_path / "a.xml", wrong)


def test_files_of_one_photograph_each_are_of_one_form(tmp_path):
    write_image(tmp_path / "a.jpg")
    labels(tmp_path / "a.json", labelme("a.jpg", None, "cat"))
    (tmp_path / "a.xml").write_text(voc("a.jpg", "dog"))
    for read in (lambda: read_tags(tmp_path), lambda: below(tmp_path, "a.jpg")):
        with pytest.raises(
            DataError, match=r"found LabelMe's .* and Pascal VOC's .*: move one kind"
        ):
            read()
    (tmp_path / "a.json").unlink()
    assert below(tmp_path, "a.jpg").form == "Pascal VOC's XML files"
    (tmp_path / "a.xml").unlink()
    with pytest.raises(DataError, match=r"LabelMe's JSON files; Pascal .*\), found none"):
        read_tags(tmp_path)


def below(root: Path, *photographs: str, own: tuple[Path, ...] = ()):
    return tags_below(root, root, photographs, own)


def test_folders_are_classes(tmp_path):
    tags = below(tmp_path, "cat/1.jpg", "dog/deep/2.jpg", "background/3.jpg", "4.jpg")
    assert {row.image: row.labels for row in tags.rows} == {
        "cat/1.jpg": ("cat",),
        "dog/deep/2.jpg": ("dog",),
        "background/3.jpg": (),
    }
    with pytest.raises(ValueError, match="found no labels; write"):
        below(tmp_path, "cat/1.jpg", "2.jpg")
    with pytest.raises(ValueError, match="train, val are called as splits are"):
        below(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("Training Testing", "Testing, Training"),
        ("train test classes cat", "test, train"),
        ("train2017 val2017", "train2017, val2017"),
        ("dev hold-out unlabeled", "dev, hold-out, unlabeled"),
    ],
)
def test_folders_called_as_splits_are_no_classes(tmp_path, folders, splits):
    with pytest.raises(ValueError, match=f"its folders {splits} are called as splits are"):
        below(tmp_path, *(f"{folder}/cat/1.jpg" for folder in folders.split()))


def test_one_folder_called_as_a_split_is_a_class(tmp_path):
    rows = below(tmp_path, "train/1.jpg", "bus/2.jpg").rows
    assert [row.labels for row in rows] == [("train",), ("bus",)]


def test_which_file_counts(tmp_path):
    first, second = tmp_path / "export.json", tmp_path / "annotations/a.csv"
    labels(first, {"a.jpg": ["cat"]})
    assert below(tmp_path, "a.jpg").path == first
    labels(second, "file,label\na.jpg,dog\n")
    with pytest.raises(ValueError, match=r"found .*a\.csv, .*export\.json; say which: --labels"):
        below(tmp_path, "a.jpg")
    assert below(tmp_path, "a.jpg", own=(second,)).path == first
    labels(tmp_path / "labels.csv", "image,labels\na.jpg,bird\n")
    tags = below(tmp_path, "a.jpg")
    assert tags.path.name == "labels.csv"
    assert tags.doubts[0].startswith("labels.csv counts before ")
    labels(tmp_path / "train.csv", "image,labels\na.jpg,bird\n")
    assert below(tmp_path, "a.jpg").path.name == "train.csv"
    labels(tmp_path / "val.csv", "image,labels\nb.jpg,bird\n")
    (doubt,) = below(tmp_path, "a.jpg", "b.jpg").doubts
    assert "labels.csv" in doubt and "val.csv" not in doubt


def test_labelme_beside_the_photographs(tmp_path):
    write_image(tmp_path / "a.jpg")
    labels(tmp_path / "a.json", labelme("a.jpg", None, "cat"))
    labels(tmp_path / "b/c.json", labelme("c.jpg", None, "dog"))
    assert [row.labels for row in below(tmp_path, "a.jpg", "b/c.jpg").rows] == [("cat",), ("dog",)]


@pytest.mark.parametrize("where", ["", "images"])
def test_labelme_means_the_photograph_beside_it(tmp_path, where):
    expected = {"x.jpg": ("cat",), "sub/x.jpg": ("dog",), "sub/deep/x.jpg": ("bird",)}
    images = tmp_path / where
    for photograph, (label,) in expected.items():
        write_image(images / photograph)
        labels((images / photograph).with_suffix(".json"), labelme("x.jpg", None, label))
    assert look_at(tmp_path, None, None).labels == expected
    assert look_at(tmp_path, images, None).labels == expected
    labels(tmp_path / "tags/sub/y.json", labelme("..\\..\\" + where + "/x.jpg", None, "owl"))
    found = look_at(tmp_path, tmp_path / "tags", None)
    assert (found.labels, found.found.otherwise) == ({"x.jpg": ("owl",)}, [])


def test_labelme_in_a_folder_like_that_of_the_photographs(tmp_path):
    for folder, label in (("a", "cat"), ("b", "dog")):
        write_image(tmp_path / f"photos/{folder}/x.jpg")
        labels(tmp_path / f"tags/{folder}/x.json", labelme("x.jpg", None, label))
    found = look_at(tmp_path / "photos", tmp_path / "tags", None)
    assert found.labels == {"a/x.jpg": ("cat",), "b/x.jpg": ("dog",)}


@pytest.mark.parametrize("name", ["labels.csv", "export.json"])
def test_paths_start_at_a_label_file_beside_all_its_photographs(tmp_path, name):
    for photograph in ("x.jpg", "sub/x.jpg", "sub/y.jpg"):
        write_image(tmp_path / photograph)
    content = {
        "labels.csv": "image,labels\nx.jpg,cat\ny.jpg,dog\n",
        "export.json": {"x.jpg": ["cat"], "y.jpg": ["dog"]},
    }[name]
    labels(tmp_path / "sub" / name, content)
    found = look_at(tmp_path, None, None)
    assert found.labels == {"sub/x.jpg": ("cat",), "sub/y.jpg": ("dog",)}
    (tmp_path / "sub/y.jpg").rename(tmp_path / "y.jpg")
    assert look_at(tmp_path, None, None).labels == {"x.jpg": ("cat",), "y.jpg": ("dog",)}


def test_many_files_of_labels_are_looked_at_once(tmp_path, monkeypatch):
    (tmp_path / "tags").mkdir()
    for number in range(60):
        (tmp_path / f"tags/{number}.xml").write_text(voc(f"{number}.jpg", "cat"))
    calls, hash_of = [], PurePath.__hash__
    monkeypatch.setattr(PurePath, "__hash__", lambda path: (calls.append(path), hash_of(path))[1])
    assert len(below(tmp_path, "a.jpg").rows) == 60
    assert len(calls) < 10 * 60
