"""Class lists, the two COCO numberings, the VOC colours."""

from __future__ import annotations

import numpy as np
import pytest

from weaktr.data.classes import (
    COCO80,
    COCO90,
    COCO_UNUSED,
    VOC,
    Classes,
    palette,
)


def test_voc_ids_are_labels() -> None:
    assert len(VOC) == 20
    assert VOC.num_labels == 21
    assert VOC.label_names[0] == "background"
    assert VOC.label_names[15] == "person"
    assert VOC.index_of_name["tvmonitor"] == 19
    assert VOC.index_of_id[20] == 19


def test_coco_numberings_agree_on_names() -> None:
    assert (len(COCO90), len(COCO80)) == (90, 80)
    for name, identity in zip(COCO80.names, COCO80.ids, strict=True):
        assert COCO90.names[identity - 1] == name
    assert set(COCO90.names) - set(COCO80.names) == set(COCO_UNUSED)


@pytest.mark.parametrize(("coco_id", "label"), [(1, 1), (11, 11), (13, 12), (44, 40), (90, 80)])
def test_coco_ids_and_labels(coco_id: int, label: int) -> None:
    assert COCO80.index_of_id[coco_id] == label - 1
    assert COCO80.ids[label - 1] == coco_id


def test_unused_coco_ids_have_no_label() -> None:
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & COCO80.index_of_id.keys()


def test_palette_is_vocs() -> None:
    colours = palette()
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for label, colour in known.items():
        assert tuple(colours[label]) == colour
    assert tuple(colours[255]) == (224, 224, 192)
    assert len(np.unique(colours, axis=0)) == 256
    np.testing.assert_array_equal(palette(21), colours[:21])
    with pytest.raises(ValueError, match="num_labels"):
        palette(257)


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (("cat", "dog", "cat"), (), "cat"),
        (("cat", "dog"), (3, 3), "3"),
        (("cat", "dog"), (3,), "got 1"),
        (("cat",), (255,), "255"),
        (tuple(map(str, range(255))), (), "254"),
    ],
)
def test_impossible_classes(names: tuple[str, ...], ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classes(names, ids)


@pytest.mark.parametrize("name", [False, None, 1, 1.0, "", "  "])
def test_names_are_text(name: object) -> None:
    with pytest.raises(ValueError, match="expected text that is not blank"):
        Classes(("cat", name))  # type: ignore[arg-type]


def test_names_that_differ_in_blanks_are_the_same() -> None:
    with pytest.raises(ValueError, match=r"got \['cat'\] more than once"):
        Classes(("cat", " cat"))


def test_a_class_called_background_leaves_label_0_its_own_name() -> None:
    assert Classes(("background", "cat")).label_names == ("(background)", "background", "cat")
