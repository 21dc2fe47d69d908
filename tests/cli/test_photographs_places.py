"""Which photographs of a folder ``weaktr label`` and ``weaktr predict`` take."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.cli.photographs import (
    arguments,
    photo,
)
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data.masks import MaskFolder


def test_the_root_of_a_data_set(tmp_path, models):
    """Of a data set its photographs alone get masks: no true masks, no results of weaktr."""
    root = tmp_path / "data"
    for name in ("a", "shop/b"):
        photo(root / "images" / f"{name}.jpg", 40, 30)
        (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ones((30, 40), np.uint8)).save(root / "masks" / f"{name}.png")
    for out in ("first", "second"):  # the first one's masks are no photographs of the second
        code, text = said(cli.main, *arguments("predict", models, root, root / out))
        assert code == 0, text
        assert set(MaskFolder(root / out).entries) == {"a", "shop/b"}
    (root / "labels.csv").write_text("image,labels\na.jpg,cat\nshop/b.jpg,dog\n")
    code, text = said(cli.main, *arguments("label", models, root, root / "labels"))
    assert code == 0, text
    assert set(MaskFolder(root / "labels").entries) == {"a", "shop/b"}
    assert "not in the list" not in text
    found = {file.relative_to(root).parts[0] for file in root.rglob("*") if file.is_file()}
    assert found == {"images", "masks", "first", "second", "labels", "labels.csv"}


@pytest.mark.parametrize("out", ["data/images/out", "data/images", "data/masks", "data/masks/x"])
def test_no_results_among_its_photographs_and_masks(tmp_path, models, out):
    photo(tmp_path / "data" / "images" / "a.jpg", 40, 30)
    (tmp_path / "data" / "masks").mkdir()
    code, text = said(cli.main, *arguments("predict", models, tmp_path / "data", tmp_path / out))
    assert code == cli.WRONG_INPUT
    assert "lies in the folder of the photographs" in text


def test_masks_beside_photographs_without_a_folder_of_their_own(tmp_path, models):
    photo(tmp_path / "flat" / "a.jpg", 40, 30)
    photo(tmp_path / "flat" / "masks" / "carnival.jpg", 40, 30)  # a photograph of a class
    Image.fromarray(np.ones((30, 40), np.uint8)).save(tmp_path / "flat" / "masks" / "a.png")
    code, text = said(cli.main, *arguments("predict", models, tmp_path / "flat", tmp_path / "out"))
    assert code == 0, text
    assert set(MaskFolder(tmp_path / "out").entries) == {"a", "masks/carnival"}


def test_the_root_of_voc(tmp_path, models):
    photo(tmp_path / "VOC2012" / "JPEGImages" / "2007_000032.jpg", 40, 30)
    photo(tmp_path / "VOC2012" / "SegmentationClass" / "2007_000032.png", 40, 30)
    (tmp_path / "VOC2012" / "ImageSets").mkdir()
    call = arguments("predict", models, tmp_path / "VOC2012", tmp_path / "out")
    assert said(cli.main, *call)[0] == 0
    assert set(MaskFolder(tmp_path / "out").entries) == {"2007_000032"}
