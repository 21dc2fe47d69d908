"""Each rule: where it applies, what it says, and where it keeps quiet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.test_photographs import photo
from weaktr.config import Recipe
from weaktr.recipes import load_recipe
from weaktr.report import words
from weaktr.report.photographs import ClassRow, class_rows
from weaktr.report.words import GROUPS, Case, MaskSet, in_words

HALF, FULL, NOTHING = {0: 0.5, 1: 0.5}, {0: 0.02, 1: 0.98}, {0: 1.0}


def masks(*photos):
    return MaskSet(photos, class_rows(photos, 60))


def row(given, found=None):
    """A class of which so many photographs are given, and so many masks show it."""
    found = given if found is None else found
    return ClassRow(1, given, found, found, 0, None, None)


def rows(*table, photos=()):
    return MaskSet(photos or [photo()], table)


@pytest.fixture(scope="module")
def own():
    """The recipe for somebody's own photographs."""
    recipe = load_recipe("own_dinov2_s")
    return replace(recipe, data=replace(recipe.data, source="folder", root="my photos"))


def test_pseudo_labels_can_show_given_classes_only(own):
    case = Case("run", {"label": masks(*[photo() for _ in range(3)])}, own, trained=3)
    told = words.pseudo_labels(case)
    assert told.startswith("Pseudo labels are masks of the 3 photographs that the run learns from.")
    assert "100 % is by construction" in told
    assert "of 3 of the 5 photographs that" in words.pseudo_labels(replace(case, trained=5))
    part = Case("out", {"label": masks(photo(), photo(given=None))})
    assert "was given of 1 of them" in words.pseudo_labels(part)
    unknown = words.pseudo_labels(Case("out", {"label": masks(photo(given=None))}))
    assert unknown.startswith("Pseudo labels are masks of 1 photograph.")
    assert "the model chose them" in unknown and "construction" not in unknown
    assert words.pseudo_labels(Case("run", {"predict": masks(photo())})) is None


def test_predictions_were_kept_apart_or_not(own):
    case = Case("run", {"predict": masks(photo(), photo())}, own, trained=9)
    assert "kept apart from training" in words.predictions(case)
    seen = words.predictions(replace(case, seen=1))
    assert "1 of the photographs were trained on" in seen and "kept apart" not in seen
    assert "apart" not in words.predictions(replace(case, recipe=None))
    assert words.predictions(Case("run", {"label": masks(photo())}, own)) is None


def test_confidence_is_told_where_it_is_known():
    assert words.confidence(Case("run", {"label": masks(photo())})) is None
    assert "not how likely" in words.confidence(Case("run", {"label": masks(photo(sure={1: 0.5}))}))


def test_found_labels_are_counted():
    case = Case("run", {"label": rows(row(169, 134)), "predict": rows(row(17, 4))})
    assert "pseudo labels show 134 of 169 (79 %) and predictions show 4 of 17 (24 %)" in (
        words.found(case)
    )
    assert words.found(Case("out", {"predict": masks(photo(given=None))})) is None


def test_without_true_masks_it_says_how_to_measure(own):
    case = Case("my run", {"label": masks(photo())}, own)
    told = words.no_truth(case)
    assert "`'my photos/masks/'`" in told and "--val-masks N" in told
    assert words.no_truth(replace(case, has_scores=True)) is None
    assert "`weaktr eval 'my run' TRUTH`" in words.no_truth(replace(case, recipe=None))
    voc = replace(own, data=replace(own.data, source="voc12"))
    assert "draw" not in words.no_truth(replace(case, recipe=voc))


def test_what_was_measured_is_told_of_that_model_alone(own):
    case = Case("run", {"label": masks(photo())}, own)
    assert "33 to 37 % mIoU with 50" in words.to_expect(case)
    assert words.to_expect(replace(case, recipe=Recipe())) is None
    assert words.to_expect(replace(case, has_scores=True)) is None


def test_few_photographs(own):
    case = Case("run", {"label": masks(photo())}, own, trained=47)
    assert words.few_photographs(case).startswith("47 photographs are few")
    assert words.few_photographs(replace(case, trained=48)) is None
    assert words.few_photographs(replace(case, trained=0)) is None


def test_few_photographs_of_a_class(own):
    case = Case("run", {"label": rows(row(1), row(1), row(4), row(5), row(0))}, own, trained=90)
    told = words.few_of_a_class(case)
    assert told.startswith(
        "3 of 4 classes have fewer than 5 training photographs (2 of them a single one)"
    )
    one = replace(case, sets={"label": rows(row(4))})
    assert words.few_of_a_class(one).startswith("1 of 1 class has fewer than 5 training photog")
    assert "single" not in words.few_of_a_class(one)
    assert words.few_of_a_class(replace(case, sets={"label": rows(row(5))})) is None
    assert words.few_of_a_class(replace(case, trained=0)) is None


def test_masks_without_background(own):
    good = [photo(areas=HALF) for _ in range(9)]
    case = Case("run", {"label": masks(photo(areas=FULL), *good)}, own)
    told = words.without_background(case)
    assert "1 of 10 pseudo labels" in told and "below 10 %" in told
    assert "`label.threshold` (now 0.5) higher" in told
    assert "`cam_model.patches.least_background` (now 0.2) higher" in told
    seldom = replace(case, sets={"label": masks(photo(areas=FULL), *good, *good)})
    assert "1 of 19 pseudo labels" in words.without_background(seldom)
    assert "threshold" not in words.without_background(seldom)
    assert "least_background" not in words.without_background(replace(case, recipe=Recipe()))
    both = replace(case, sets={**seldom.sets, "predict": masks(photo(areas=FULL))})
    assert "1 of 19 pseudo labels, 1 of 1 predictions" in words.without_background(both)
    assert words.without_background(replace(case, sets={"label": masks(*good)})) is None


def test_missing_labels(own):
    case = Case("run", {"label": rows(row(10, 9))}, own)
    told = words.missing_labels(case)
    assert (
        told.startswith("1 of 10 labels")
        and "larger `cam_model.patches.least_share` (now 0.05)" in told
    )
    assert "least_share" not in words.missing_labels(replace(case, recipe=Recipe()))
    assert words.missing_labels(replace(case, sets={"label": rows(row(11, 10))})) is None
    assert words.missing_labels(replace(case, recipe=None)) is None


def test_a_segmenter_that_finds_less(own):
    case = Case("run", {"label": rows(row(10, 9)), "predict": rows(row(10, 7))}, own)
    assert "`weaktr label run/train_cam/model.safetensors PHOTOS`" in words.blind_segmenter(case)
    near = {"label": rows(row(10, 9)), "predict": rows(row(20, 17))}
    assert words.blind_segmenter(replace(case, sets=near)) is None
    assert words.blind_segmenter(replace(case, sets={"label": rows(row(10, 9))})) is None


def test_nothing_found():
    empty = photo(given=None, areas=NOTHING)
    assert words.nothing_found(Case("out", {"predict": masks(empty)})).startswith("1 mask shows")
    known = photo(given=(), areas=NOTHING)
    assert words.nothing_found(Case("out", {"predict": masks(known)})) is None


def test_correction(own):
    case = Case("runs/a`b", {"label": masks(photo())}, own)
    told = words.correction(case)
    assert told.count("`") == 4 and "trains the segmenter on them" in told
    no_second = replace(own, stages=["train_cam", "label"])
    assert "segmenter" not in words.correction(replace(case, recipe=no_second))
    assert words.correction(replace(case, recipe=None)) is None


def test_nothing_is_said_of_no_masks_and_rules_are_of_one_group(own):
    assert in_words(Case("run", {"label": masks()}, own, trained=3)) == {
        group: [] for group in GROUPS
    }
    rules = [rule for group in GROUPS.values() for rule in group]
    assert len(rules) == len(set(rules))
    said = in_words(Case("run", {"label": masks(photo(sure={1: 0.5}))}, own, trained=3))
    assert [len(texts) for texts in said.values()] == [2, 3, 3]
