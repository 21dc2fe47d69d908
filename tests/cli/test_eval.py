"""``weaktr eval`` as a user calls it, on files made from the stored outputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train import said
from tests.stored import FACTS, arrays
from weaktr import cli
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data.classes import COCO80, COCO90, VOC
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import write_mask
from weaktr.data.stored_maps import npz_of_cams
from weaktr.evaluation.folders import written_conditions
from weaktr.files import write_bytes
from weaktr.recipes import as_tree

C = arrays("C_labels_miou")
CLASSES = {"voc": "voc12", "coco": "coco14", "vocnoise": "voc12"}
SAMPLES = range(6)
MADE = ("--made-with", "scales=1", "flip=no", "crf=none", "ensemble=-")


def stored(dataset, index, what):
    return C.get(f"{dataset}.{index}.{what}", C.get(f"voc.{index}.{what}"))


def write_stored(root, dataset, threshold=None):
    """Truth, and masks at a threshold or else CAMs as the published code writes them."""
    for index in SAMPLES:
        write_mask(root / "truth" / f"{index}.png", stored(dataset, index, "gt"))
        if threshold is not None:
            labels = C[f"{dataset}.{index}.label_t{threshold}"]
            write_mask(root / "masks" / f"{index}.png", labels)
            continue
        (root / "cams").mkdir(exist_ok=True)
        keys, cams = stored(dataset, index, "keys"), stored(dataset, index, "cam")
        cam_dict = dict(zip(map(int, keys), cams, strict=True))
        np.save(root / "cams" / f"{index}.npy", cam_dict, allow_pickle=True)


def evaluated(root, *arguments, masks="masks"):
    """metrics.json of ``weaktr eval``."""
    out = root / "out"
    code, text = said(cli.main, "eval", root / masks, root / "truth", "--out", out, *arguments)
    assert code == 0, text
    return json.loads((out / "metrics.json").read_text()), text


def refused(root, *arguments, masks="masks", truth="truth"):
    """What ``weaktr eval`` says to a mistake."""
    code, text = said(cli.main, "eval", root / masks, root / truth, "--out", root / "o", *arguments)
    assert code == cli.WRONG_INPUT
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("threshold", [0.3, 0.42, 0.43, 0.45, 0.6])
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_published_numbers_of_labels(tmp_path, dataset, threshold):
    write_stored(tmp_path, dataset, threshold)
    metrics, _ = evaluated(tmp_path, "--classes", CLASSES[dataset], *MADE)
    (row,) = metrics["rows"]
    scores = row["scores"]
    iou = [np.nan if c["iou"] is None else c["iou"] for c in scores["classes"].values()]
    np.testing.assert_allclose(iou, C[f"{dataset}.iou_t{threshold}"], rtol=1e-12)
    summary = [
        scores[k] for k in ("miou", "false_positive", "false_negative", "precision", "recall")
    ]
    np.testing.assert_allclose(summary, C[f"{dataset}.summary_t{threshold}"], rtol=1e-12)
    if threshold == 0.43:
        np.testing.assert_allclose(
            [scores[k] for k in ("pixel_accuracy", "recall", "miou")],
            C[f"{dataset}.mmseg_paccmacc_miou"],
            atol=0.0101,
        )
        np.testing.assert_allclose(np.array(iou) / 100, C[f"{dataset}.mmseg_cat_iou"], rtol=1e-6)


@pytest.mark.parametrize("dataset", CLASSES)
def test_published_cams_over_thresholds(tmp_path, dataset):
    name = "curve_0_60" if dataset == "vocnoise" else "curve_0_80"
    expected = C[f"{dataset}.{name}"]
    write_stored(tmp_path, dataset)
    span = f"0:{(len(expected) - 1) / 100}:0.01"
    metrics, _ = evaluated(
        tmp_path, "--classes", CLASSES[dataset], "--thresholds", span, masks="cams"
    )
    curve = [point["miou"] for point in metrics["threshold_curve"]]
    np.testing.assert_allclose(curve, expected, rtol=1e-9)
    best, threshold = FACTS["C_labels_miou"]["datasets"][dataset]["exhaustive_best_of_0_60"]
    if max(expected) == pytest.approx(best):
        (row,) = metrics["rows"]
        assert (
            row["conditions"]["note"] == f"threshold {threshold:g}, best, chosen with these masks"
        )
        assert row["scores"]["miou"] == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("threshold", [0.3, 0.42, 0.43, 0.45, 0.6])
def test_one_threshold_is_used_as_given(tmp_path, threshold):
    write_stored(tmp_path, "voc")
    metrics, _ = evaluated(tmp_path, "--classes", "voc12", "--thresholds", threshold, masks="cams")
    (row,) = metrics["rows"]
    assert row["scores"]["miou"] == pytest.approx(C[f"voc.summary_t{threshold}"][0], rel=1e-12)
    assert row["conditions"]["note"] == f"threshold {threshold:g}, given"


def test_dumped_cams_are_read(tmp_path):
    write_stored(tmp_path, "voc")
    for index in SAMPLES:
        classes = [int(key) for key in stored("voc", index, "keys")]
        write_bytes(
            tmp_path / "dumped" / f"{index}.npz", npz_of_cams(stored("voc", index, "cam"), classes)
        )
    arguments = ("--classes", "voc12", "--thresholds", "0.43")
    theirs, _ = evaluated(tmp_path, *arguments, masks="cams")
    ours, _ = evaluated(tmp_path, *arguments, masks="dumped")
    assert ours["rows"] == theirs["rows"]


def predicted(root, split="val"):
    """A folder as `weaktr predict` writes it: everything shifted before the CRF."""
    write_stored(root, "voc", 0.43)
    (root / "masks").rename(root / "right")
    for index in SAMPLES:
        labels = C[f"voc.{index}.label_t0.43"]
        write_mask(root / "run" / "masks" / f"{index}.png", labels)
        shifted = np.roll(labels, 3, 1)
        write_mask(root / "run" / "before_crf" / "masks" / f"{index}.png", shifted)
    settings = as_tree(PredictConfig(ratios=(0.5, 1.0), crf="voc_seg"))
    (root / "run" / "inputs.json").write_text(json.dumps({"settings": settings}))
    (root / f"{split}.txt").write_text("".join(f"{index}\n" for index in SAMPLES))


@pytest.mark.parametrize("masks", ["run", "run/masks"])
def test_with_and_without_crf_in_one_run(tmp_path, masks):
    predicted(tmp_path)
    metrics, text = evaluated(
        tmp_path, "--classes", "voc12", "--names", tmp_path / "val.txt", masks=masks
    )
    without, with_crf = metrics["rows"]
    assert (without["what"], with_crf["what"]) == ("without CRF", "with CRF")
    shared = {"split": "val", "scales": "0.5, 1", "flip": "yes", "ensemble": "published",
              "images": 6}  # fmt: skip
    assert without["conditions"] == shared | {"crf": "none"}
    assert with_crf["conditions"] == shared | {"crf": "voc_seg"}
    gain = metrics["crf_gain"]
    assert gain["miou"] == pytest.approx(with_crf["scores"]["miou"] - without["scores"]["miou"])
    assert gain["low"] <= gain["miou"] <= gain["high"]
    caption = "with CRF; val, 6 images; scales 0.5, 1; flip yes; CRF voc_seg; ensemble published"
    assert with_crf["caption"] == caption
    assert caption in " ".join(text.split())
    for row in metrics["rows"]:
        assert 0 <= row["scores"]["boundary_f"] <= 100
        bounds = row["scores"]["miou_interval"]
        assert bounds["low"] < bounds["high"]
        assert row["scores"]["confused"][0].keys() == {
            "truth", "predicted", "pixels", "percent_of_truth"
        }  # fmt: skip
    for column in ("mIoU", "95 %", "FP", "FN", "prec.", "recall", "bound. F", "the CRF adds"):
        assert column in text
    with Image.open(tmp_path / "out" / "classes.png") as chart:
        assert chart.width > 600


def test_other_refiners_are_not_called_crf(tmp_path):
    predicted(tmp_path)
    settings = as_tree(PredictConfig(ratios=(1.0,), refiners=("propagation", "crf"), crf="voc_seg"))
    (tmp_path / "run" / "inputs.json").write_text(json.dumps({"settings": settings}))
    metrics, text = evaluated(tmp_path, "--classes", "voc12", masks="run")
    assert [row["what"] for row in metrics["rows"]] == ["before refinement", "refined"]
    assert "; refinement propagation + voc_seg; " in metrics["rows"][1]["caption"]
    assert "the refinement adds" in text


def entry(name, **facts):
    return MaskEntry(name, f"masks/{name}.png", "0", (4, 4), (1,), inputs=("1",), **facts)


OF_LABEL, OF_PREDICT = as_tree(LabelConfig(threshold=0.43)), as_tree(PredictConfig())
AFTER = {key: OF_LABEL[key] for key in ("threshold", "crf", "refiners")}
BY_MODEL, BOTH = "classes predicted by the model", "classes given for 1 of 2 photographs, else"


@pytest.mark.parametrize(
    ("command", "settings", "entries", "note"),
    [
        ("label", OF_LABEL, [{"given": (0,)}], "threshold 0.43; classes given"),
        ("label", OF_LABEL, [{"predicted": {1: 0.9}}], f"threshold 0.43; {BY_MODEL}"),
        (
            "label",
            OF_LABEL,
            [{"given": (0,)}, {"predicted": {1: 0.9}}],
            f"; {BOTH} predicted by the model",
        ),
        ("label", OF_PREDICT, [{"given": (0,)}], "classes given"),
        ("label", OF_PREDICT, [{}], BY_MODEL),
        ("label", OF_PREDICT | {"exif": "apply"}, [{"given": (0,)}], "classes given"),
        ("label", AFTER, [{}], "threshold 0.43"),
        ("predict", OF_PREDICT, [{}], ""),
        (None, {"label": OF_LABEL}, [{"given": (0,)}], "0.43 of the recipe; classes given"),
    ],
)
def test_whether_classes_were_given_is_a_condition(tmp_path, command, settings, entries, note):
    """It raises scores: masks of a segmenter with given classes are no predictions."""
    content = {"made_from": "x", "settings": settings, "about": {"command": command}}
    (tmp_path / "inputs.json").write_text(json.dumps(content))
    lines = [entry(str(index), **facts).line() for index, facts in enumerate(entries)]
    (tmp_path / "index.jsonl").write_text("".join(lines))
    conditions = written_conditions(tmp_path, "val")
    assert conditions.note == note or (note[:1] in ";0" and conditions.note.endswith(note))
    assert (conditions.scales == "not known") == (settings is AFTER)
    assert conditions.crf != "not known"
    of_cams = written_conditions(tmp_path, "val", of_cams=True)
    assert (of_cams.crf, of_cams.ensemble) == ("none", "-")
    assert "threshold" not in of_cams.note and conditions.note.endswith(of_cams.note)


def test_what_is_said_of_cams_is_kept_or_refused(tmp_path):
    write_stored(tmp_path, "voc")
    given = ("--classes", "voc12", "--thresholds", "0.43", "--made-with")
    metrics, _ = evaluated(tmp_path, *given, "note=mine", "crf=none", masks="cams")
    assert metrics["rows"][0]["conditions"]["note"] == "threshold 0.43, given; mine"
    text = " ".join(refused(tmp_path, *given, "crf=voc_cam", masks="cams").split())
    assert "--made-with: expected crf=none of CAMs" in text
    assert "expected note once" in refused(tmp_path, *given, "note=a", "note=b", masks="cams")


def test_cams_of_no_class_are_background(tmp_path):
    write_bytes(tmp_path / "cams/a.npz", npz_of_cams(np.zeros((0, 5, 6), np.float32), []))
    write_mask(tmp_path / "truth/a.png", np.zeros((5, 6), np.uint8))
    metrics, _ = evaluated(tmp_path, "--num-labels", 3, masks="cams")
    assert metrics["rows"][0]["scores"]["miou"] == 100
    write_mask(tmp_path / "truth/a.png", np.zeros((6, 6), np.uint8))
    text = " ".join(refused(tmp_path, "--num-labels", 3, masks="cams").split())
    assert "CAMs and image differ in size: expected 6x6 (width x height), got 6x5" in text


def test_masks_without_crf_from_elsewhere(tmp_path):
    predicted(tmp_path)
    metrics, _ = evaluated(
        tmp_path, "--classes", "voc12", "--without-crf", tmp_path / "run/before_crf/masks",
        "--made-with", "scales=1", "flip=no", "crf=theirs", "ensemble=-", masks="right",
    )  # fmt: skip
    assert [row["conditions"]["crf"] for row in metrics["rows"]] == ["none", "theirs"]


def test_the_crf_adds_what_it_does_to_the_same_images(tmp_path):
    predicted(tmp_path)
    before = tmp_path / "run/before_crf/masks"
    options = ("--classes", "voc12", "--names", tmp_path / "val.txt")
    for index in SAMPLES[1:3]:
        (tmp_path / f"run/masks/{index}.png").unlink()
    metrics, _ = evaluated(tmp_path, *options[:2], masks="run")
    assert [row["conditions"]["images"] for row in metrics["rows"]] == [len(SAMPLES) - 2] * 2
    (before / f"{SAMPLES[0]}.png").unlink()
    text = refused(tmp_path, *options[:2], masks="run")
    assert f"1 of {len(SAMPLES) - 2} images: was not predicted: {SAMPLES[0]}" in text


@pytest.mark.parametrize("order", ["same", "other"])
def test_classes_in_another_order_than_the_masks_are_refused(tmp_path, order):
    write_mask(tmp_path / "truth/a.png", np.ones((2, 2), np.uint8))
    write_mask(tmp_path / "masks/masks/a.png", np.ones((2, 2), np.uint8))
    names = ["cat", "dog"]
    note = {"made_from": "x", "about": {"classes": names}}
    (tmp_path / "masks/inputs.json").write_text(json.dumps(note))
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names if order == "same" else reversed(names)))
    if order == "same":
        metrics, _ = evaluated(tmp_path, "--classes", file, *MADE)
        assert metrics["rows"][-1]["scores"]["classes"]["cat"]["iou"] == 100
    else:
        text = " ".join(refused(tmp_path, "--classes", file, *MADE).split())
        assert "in another order; theirs is cat, dog, and they are known without" in text


def noted(root, names, masks, truth):
    """A folder of masks of these classes, a column of each number, and true masks likewise."""
    for folder, numbers in (("masks/masks", masks), ("truth", truth)):
        write_mask(root / folder / "a.png", np.tile(np.array(numbers, np.uint8), (2, 1)))
    note = {"made_from": "x", "about": {"classes": list(names)}}
    (root / "masks/inputs.json").write_text(json.dumps(note))


ALPHABETICAL = tuple(sorted(COCO80.names))


@pytest.mark.parametrize("names", [COCO80.names, ALPHABETICAL, COCO80.names[:3], ["Hot-Dog"]])
@pytest.mark.parametrize("given", ["coco80", "coco14"])
def test_masks_of_coco_classes_in_any_order_against_its_ids(tmp_path, names, given):
    ids = [COCO80.ids[COCO80.names.index(name.lower().replace("-", " "))] for name in names]
    noted(tmp_path, names, range(1, len(names) + 1), ids)
    metrics, _ = evaluated(tmp_path, "--classes", given, *MADE)
    classes = metrics["rows"][0]["scores"]["classes"]
    assert [classes[name]["iou"] for name in names] == [100] * len(names)


def test_classes_that_masks_cannot_show_count_where_true_masks_show_them(tmp_path, caplog):
    """VOC's dog is 12, its person 15: of a model that has dogs alone."""
    noted(tmp_path, ["dog"], [0, 1, 0], [0, 12, 15])
    metrics, _ = evaluated(tmp_path, "--classes", "voc12", *MADE)
    scores = metrics["rows"][0]["scores"]
    assert (scores["classes"]["dog"]["iou"], scores["classes"]["person"]["iou"]) == (100, 0)
    assert scores["classes"]["cat"]["iou"] is None
    assert "masks cannot show aeroplane, bicycle" in caplog.text


def test_the_folder_of_masks_is_known_from_within(tmp_path, monkeypatch):
    noted(tmp_path, ["dog", "cat"], [1], [2])
    (tmp_path / "list.txt").write_text("cat\ndog")
    monkeypatch.chdir(tmp_path / "masks/masks")
    call = ["eval", ".", tmp_path / "truth", "--classes", tmp_path / "list.txt"]
    code, text = said(cli.main, *call, "--out", tmp_path / "out")
    assert code == cli.WRONG_INPUT and "in another order" in text


def test_masks_of_voc_classes_in_another_order(tmp_path, caplog):
    noted(tmp_path, VOC.names[::-1], [20, 1], [1, 20])
    metrics, _ = evaluated(tmp_path, "--classes", "voc12", *MADE)
    assert metrics["rows"][0]["scores"]["classes"]["aeroplane"]["iou"] == 100
    assert "those of tvmonitor, train" in caplog.text


@pytest.mark.parametrize("names", [COCO80.names, ALPHABETICAL])
def test_how_coco_is_numbered_is_asked_for_and_can_be_said(tmp_path, caplog, names):
    noted(tmp_path, names, [12, 80], [12, 80])
    text = " ".join(refused(tmp_path, *MADE).split())
    assert "say --classes coco80) or the masks' own labels 1..80 (say --num-labels 81)" in text
    metrics, _ = evaluated(tmp_path, "--num-labels", 81, *MADE)
    assert metrics["rows"][0]["scores"]["classes"][names[11]]["iou"] == 100
    (tmp_path / "list.txt").write_text("\n".join(names))
    evaluated(tmp_path, "--classes", tmp_path / "list.txt", *MADE)
    assert "if they hold COCO's ids 1..90, say --classes coco80" in caplog.text


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (VOC.names, ["--num-labels", 91], "has 21 labels, background and aeroplane"),
        (["cat", "yak"], ["--classes", "voc12"], "--classes voc12: lacks yak, classes of"),
        (COCO90.names, ["--classes", "coco80"], "lacks street sign, hat, shoe"),
        ([f"c{i}" for i in range(20)], ["--classes", "voc12"], "lacks c0, c1"),
        (["cat", "dog"], ["cat"], "has 1 classes, "),
        (["cat", "dog"], ["cat", "dog", "cow"], "has 3 classes, "),
        (["cat", "dog", "cow"], ["cat", "cow", "yak"], "in another order; theirs is cat, dog"),
    ],
)
def test_classes_that_the_masks_do_not_have_are_refused(tmp_path, names, options, told):
    noted(tmp_path, names, [1], [1])
    if not options[0].startswith("--"):
        (tmp_path / "list.txt").write_text("\n".join(options))
        options = ["--classes", tmp_path / "list.txt"]
    assert told in " ".join(refused(tmp_path, *options, *MADE).split())


def test_other_spellings_are_taken_and_other_names_are_told(tmp_path, caplog):
    spelt = ["TV monitor" if name == "tvmonitor" else name for name in VOC.names]
    noted(tmp_path, spelt, [20], [20])
    metrics, _ = evaluated(tmp_path, "--classes", "voc12", *MADE)
    assert metrics["rows"][0]["scores"]["classes"]["tvmonitor"]["iou"] == 100
    assert "otherwise" not in caplog.text
    spelt[0] = "airplane"
    noted(tmp_path, spelt, [1], [1])
    evaluated(tmp_path, "--classes", "voc12", *MADE)
    assert "calls classes of the masks otherwise: airplane as aeroplane" in caplog.text
    (tmp_path / "list.txt").write_text("\n".join(["Flugzeug", *VOC.names[1:]]))
    evaluated(tmp_path, "--classes", tmp_path / "list.txt", *MADE)
    assert "airplane as Flugzeug" in caplog.text


def test_the_chart_can_be_svg_and_is_reproducible(tmp_path):
    write_stored(tmp_path, "voc", 0.43)
    charts = []
    for _ in range(2):
        evaluated(tmp_path, "--num-labels", 21, "--chart", "svg", *MADE)
        charts.append((tmp_path / "out" / "classes.svg").read_bytes())
    assert charts[0] == charts[1]
    assert b"<svg" in charts[0][:400]


def test_unknown_conditions_are_named(tmp_path):
    write_stored(tmp_path, "voc", 0.43)
    metrics, _ = evaluated(tmp_path, "--num-labels", 21, "--split", "mine")
    (row,) = metrics["rows"]
    assert row["what"] == "masks"
    assert row["conditions"]["split"] == "mine"
    assert row["conditions"]["crf"] == "not known"
    assert "CRF not known" in row["caption"]


def test_coco_truth_in_ids_against_80_classes(tmp_path):
    """Truth 13 is the stop sign, class index 11 of 80: label 12."""
    label = COCO80.names.index("stop sign") + 1
    assert (label, COCO80.ids[label - 1]) == (12, 13)
    write_mask(tmp_path / "truth" / "a.png", np.full((4, 4), 13, np.uint8))
    write_mask(tmp_path / "masks" / "a.png", np.full((4, 4), 12, np.uint8))
    metrics, _ = evaluated(tmp_path, "--classes", "coco80", *MADE)
    assert metrics["rows"][0]["scores"]["classes"]["stop sign"]["iou"] == 100.0


def test_class_names_from_a_file(tmp_path):
    write_mask(tmp_path / "truth" / "a.png", np.ones((4, 4), np.uint8))
    write_mask(tmp_path / "masks" / "a.png", np.ones((4, 4), np.uint8))
    (tmp_path / "names.txt").write_text("apple\npear\n")
    metrics, text = evaluated(tmp_path, "--classes", tmp_path / "names.txt", *MADE)
    classes = metrics["rows"][0]["scores"]["classes"]
    assert list(classes) == ["background", "apple", "pear"]
    assert classes["pear"]["iou"] is None and classes["apple"]["iou"] == 100.0
    assert "pear" not in text
    assert metrics["rows"][0]["scores"]["miou_interval"] is None


@pytest.fixture
def two(tmp_path):
    """Two images, right in every pixel."""
    for name in ("a", "sub/b"):
        for folder in ("truth", "masks"):
            write_mask(tmp_path / folder / f"{name}.png", np.ones((5, 6), np.uint8))
    return tmp_path


def test_images_without_prediction(two):
    (two / "masks" / "a.png").unlink()
    (two / "split.txt").write_text("a\nsub/b\n")
    text = refused(two, "--num-labels", 3, "--names", two / "split.txt")
    assert "1 of 2 images: was not predicted: a" in text
    metrics, _ = evaluated(two, "--num-labels", 3, *MADE)
    assert metrics["rows"][0]["conditions"]["images"] == 1


def test_predictions_without_truth(two):
    (two / "truth" / "a.png").unlink()
    text = refused(two, "--num-labels", 3)
    assert "1 of 2 images: has no true mask: a; --names FILE scores" in text
    write_mask(two / "truth" / "a.Png", np.ones((5, 6), np.uint8))
    told = "a (files of these names have the suffix .Png, which is not read); --names FILE scores"
    assert told in refused(two, "--num-labels", 3)


@pytest.mark.parametrize("folder", ["truth", "masks"])
def test_capital_suffixes_are_read(two, folder):
    (two / folder / "a.png").rename(two / folder / "a.PNG")
    metrics, _ = evaluated(two, "--num-labels", 3, *MADE)
    assert metrics["rows"][0]["conditions"]["images"] == 2
    (two / folder / "sub/b.png").rename(two / folder / "sub/b.PNG")
    metrics, _ = evaluated(two, "--num-labels", 3, *MADE)
    assert metrics["rows"][0]["conditions"]["images"] == 2
    write_mask(two / folder / "a.png", np.ones((5, 6), np.uint8))
    text = " ".join(refused(two, "--num-labels", 3).split())
    assert "expected one file of a name, got a.PNG, a.png" in text


def test_the_split_is_called_as_the_list_or_the_folder(two, monkeypatch):
    (two / "truth").rename(two / "truth.v2")
    monkeypatch.chdir(two / "truth.v2")
    for truth in ("../truth.v2", "."):
        code, _ = said(cli.main, "eval", two / "masks", truth, "--out", two / "out",
                       "--num-labels", 3)  # fmt: skip
        (row,) = json.loads((two / "out/metrics.json").read_text())["rows"]
        assert (code, row["conditions"]["split"]) == (0, "truth.v2")


def test_masks_of_another_size(two):
    write_mask(two / "masks" / "a.png", np.ones((6, 5), np.uint8))
    text = refused(two, "--num-labels", 3)
    assert "a.png" in text and "expected 6x5 (width x height), got 5x6" in text


def test_labels_out_of_range(two):
    write_mask(two / "masks" / "a.png", np.full((5, 6), 7, np.uint8))
    assert "expected 0..2 or 255, got 7" in refused(two, "--num-labels", 3)


def test_undecided_pixels_are_wrong_and_said(two, caplog):
    write_mask(two / "masks" / "a.png", np.full((5, 6), 255, np.uint8))
    metrics, text = evaluated(two, "--num-labels", 3, *MADE)
    scores = metrics["rows"][0]["scores"]
    assert scores["miou"] == scores["pixel_accuracy"] == 50.0
    assert scores["confused"] == [
        {"truth": "label 1", "predicted": "undecided", "pixels": 30, "percent_of_truth": 50.0}
    ]
    assert "undecided" in text
    assert (
        "30 pixels (50.00 %) are undecided in the masks (255): they count as wrong" in caplog.text
    )


def test_lists_of_paths(two):
    (two / "psa.txt").write_text("/truth/a.png /other/a.png\nsub\\b.png\n")
    metrics, _ = evaluated(two, "--num-labels", 3, "--names", two / "psa.txt", *MADE)
    assert metrics["rows"][0]["conditions"]["images"] == 2
    (two / "psa.txt").write_text("a\nx/a.png\n")
    text = refused(two, "--num-labels", 3, "--names", two / "psa.txt")
    assert "names: 'a' and 'x/a.png' both mean 'a'" in text


def test_thousands_of_missing_images_are_counted(two):
    (two / "names.txt").write_text("a\n" + "\n".join(map(str, range(5000))))
    text = refused(two, "--num-labels", 3, "--names", two / "names.txt")
    assert "5000 of 5001 images: was not predicted: 0, 1, 10, 100, 1000 and 4,995 more" in text


def test_class_files_with_faults(two):
    for content, told in (("", "found none"), ("cat\ncat\n", "expected each class once")):
        (two / "classes.txt").write_text(content)
        text = refused(two, "--classes", two / "classes.txt")
        assert "classes.txt" in text and told in text


def test_a_class_called_background_is_scored_apart(two):
    (two / "classes.txt").write_text("background\ncat\n")
    metrics, _ = evaluated(two, "--classes", two / "classes.txt", *MADE)
    assert list(metrics["rows"][0]["scores"]["classes"]) == ["(background)", "background", "cat"]


def test_out_that_is_a_file(two):
    (two / "o").write_text("precious")
    assert "--out: expected a folder, got the file" in refused(two, "--num-labels", 3)
    assert (two / "o").read_text() == "precious"


def test_only_ignored_truth(two):
    for name in ("a", "sub/b"):
        write_mask(two / "truth" / f"{name}.png", np.full((5, 6), 255, np.uint8))
    told = (
        "expected at least one pixel with a known true label, got none in the true masks of 2 "
        "images (255 is not counted)"
    )
    assert f"{two / 'truth'}: {told}" in refused(two, "--num-labels", 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--classes: expected voc12, coco14, coco80 or a file of names, or else --num-labels"),
        (("--classes", "voc12", "--num-labels", 21), "expected one of the two, got both"),
        (("--classes", "vok"), "--classes: expected voc12, coco14, coco80 or a file, got 'vok'"),
        (("--num-labels", 1), "--num-labels: expected 2 to 255 with background, got 1"),
        (("--num-labels", 3, "--boundary", 2), "--boundary: expected a share of the diagonal"),
        (("--num-labels", 3, "--made-with", "crff=x"), "--made-with: expected scales, flip, crf"),
        (("--num-labels", 3, "--names", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_mistakes_are_told(two, arguments, told):
    assert told in refused(two, *arguments)


@pytest.mark.parametrize(
    "span", ["x", "0:1", "0.5:0.2:0.1", "0:1:0", "0:2:0.1", "-1", "nan", "0:1:nan", "0:1:1e-9"]
)
def test_thresholds_that_make_no_sense(tmp_path, span):
    write_stored(tmp_path, "voc")
    text = refused(tmp_path, "--classes", "voc12", f"--thresholds={span}", masks="cams")
    assert "--thresholds: expected" in text


def test_folders_of_other_things_are_told_with_what_to_take(two):
    (two / "tars").mkdir()
    (two / "tars/00000.tar").write_bytes(b"")
    told = refused(two, "--num-labels", 3, masks="tars")
    assert "there are .tar; unpack the tars, or label with --output png" in told
    (two / "run/label").mkdir(parents=True)
    (two / "run/recipe.yaml").write_text("name: x\n")
    told = refused(two, "--num-labels", 3, masks="run")
    assert f"expected a folder of masks, got a run; take {two / 'run/label'}" in told


def test_a_tar_beside_masks_does_not_matter(two):
    (two / "masks/backup.tar").write_bytes(b"")
    code, _ = said(cli.main, "eval", two / "masks", two / "truth", "--out", two / "o",
                   "--num-labels", 3)  # fmt: skip
    assert code == 0


def test_empty_and_missing_folders(two):
    (two / "empty").mkdir()
    assert "no PNG in" in refused(two, "--num-labels", 3, masks="empty")
    for options in ((), ("--num-labels", 3)):
        for folder in ("masks", "truth"):
            told = " ".join(refused(two, *options, **{folder: "nowhere"}).split())
            assert f"{folder.upper()}: expected a folder, got '{two / 'nowhere'}'" in told
    assert "no PNG in" in refused(two, "--num-labels", 3, truth="empty")


def test_lists_with_faults(two):
    for content, told in (("", "found none"), ("a\na\n", "stands in line 1 too"), ("../a", "'..'")):
        (two / "list.txt").write_text(content)
        assert told in refused(two, "--num-labels", 3, "--names", two / "list.txt")


def test_cams_of_two_kinds(tmp_path):
    write_stored(tmp_path, "voc")
    write_bytes(tmp_path / "cams" / "0.npz", npz_of_cams(stored("voc", 0, "cam"), [0]))
    text = refused(tmp_path, "--num-labels", 21, masks="cams")
    assert "expected files of one kind, got .npy and .npz" in text


def test_cams_that_are_none(tmp_path):
    write_stored(tmp_path, "voc")
    arguments = ("--num-labels", 21)
    outside = {20: C["voc.0.cam"][0]}
    np.save(tmp_path / "cams" / "0.npy", outside, allow_pickle=True)
    assert "expected class indices 0 to 19, got [20]" in refused(tmp_path, *arguments, masks="cams")
    np.save(tmp_path / "cams" / "0.npy", np.zeros(3))
    assert "0.npy: expected CAMs" in refused(tmp_path, *arguments, masks="cams")
    np.save(tmp_path / "cams" / "0.npy", {0: 255 * C["voc.0.cam"][0]}, allow_pickle=True)
    assert "0.npy: expected CAMs [K, H, W] from 0 to 1 of" in refused(
        tmp_path, *arguments, masks="cams"
    )
    (tmp_path / "cams" / "0.npy").write_bytes(b"nothing")
    assert "0.npy: expected CAMs" in refused(tmp_path, *arguments, masks="cams")


def test_the_calibration_of_a_confidence_is_printed(tmp_path):
    """Of a folder as ``weaktr label --emit confidence`` leaves it, but for a suffix."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        truth, mask = (rng.integers(0, 3, (8, 10), np.uint8) for _ in range(2))
        for folder, pixels in (
            ("truth", truth), ("out/masks", mask), ("out/confidence", np.full_like(mask, 204)),
        ):  # fmt: skip
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "out/masks/b.png").rename(tmp_path / "out/masks/b.PNG")
    code, text = said(
        cli.main, "eval", tmp_path / "out", tmp_path / "truth", "--num-labels", 3,
        "--made-with", "crf=none", "--out", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0, text
    numbers = json.loads((tmp_path / "scores" / "metrics.json").read_text())["calibration"]
    accuracy = json.loads((tmp_path / "scores" / "metrics.json").read_text())["rows"][0]["scores"][
        "pixel_accuracy"
    ]
    (row,) = numbers["bins"]
    assert 100 * row["right"] == pytest.approx(accuracy)
    assert numbers["expected_calibration_error"] == pytest.approx(0.8 - accuracy / 100)
    assert f"expected calibration error {80 - accuracy:.1f} %" in text
