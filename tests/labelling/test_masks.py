"""What is said of a folder of masks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.data.mask_index import LEAST_SHARE
from weaktr.data.masks import RefinedMasks
from weaktr.labelling.masks import MaskReport
from weaktr.report.photographs import LEAST_AREA, Photo

SIDE = 100
LEAST = round(LEAST_SHARE * SIDE * SIDE)


def sample(name):
    return Sample(name, Path(f"{name}.png"), None, None, "")


def mask(pixels=0, label=1, ground=0):
    """A mask that has `pixels` of a label."""
    labels = np.full((SIDE, SIDE), ground, np.uint8)
    labels.ravel()[:pixels] = label
    return labels


@pytest.fixture
def report_of(tmp_path, caplog):
    """A function: the report of masks by name, and what it logs."""

    def made(of_name, given=None, names=None):
        masks = RefinedMasks(tmp_path, refined=False, contents=Contents())
        for name, labels in of_name.items():
            masks.record(masks.write(name, lambda _, own=labels: own, given=given))
        samples = [sample(name) for name in (of_name if names is None else names)]
        report = MaskReport()
        report.count(masks, samples)
        report.count_older(masks, samples)
        caplog.clear()
        with caplog.at_level(logging.INFO, "weaktr"):
            report.log("masks", None)
        return report, caplog.text

    return made


def test_a_speck_of_a_class_counts_neither_here_nor_in_the_report(report_of):
    report, _ = report_of({"enough": mask(LEAST), "speck": mask(LEAST - 1, label=2)})
    assert report.images_of == {0: 2, 1: 1}
    assert LEAST_AREA == LEAST_SHARE
    for pixels, shown in ((LEAST, {1}), (LEAST - 1, set())):
        areas = {0: 1 - pixels / SIDE**2, 1: pixels / SIDE**2}
        photo = Photo("label", sample("a"), Path(), (SIDE, SIDE), areas, {}, False)
        assert photo.shown == shown


def test_masks_of_background_alone_are_named(report_of):
    report, text = report_of({"a": mask(), "b": mask(50), "c": mask(LEAST - 1), "d": mask()})
    assert report.background == ["a", "c", "d"]
    assert "3 masks show background alone (a, c, d)" in text
    assert "1 mask shows background alone (b)" in report_of({"b": mask()}, names=["b"])[1]


def test_background_is_right_where_no_class_was_given(report_of):
    report, text = report_of({"a": mask()}, given=())
    assert report.background == [] and "background alone" not in text


def test_masks_of_other_photographs_stay_and_it_says_where(report_of, tmp_path):
    report, text = report_of({"a": mask(50), "b": mask(50)}, names=["a", "c"])
    assert report.older == 1
    assert "1 mask there is of images that are not among those given now; they stay" in text
    assert f"in {tmp_path}" in text
