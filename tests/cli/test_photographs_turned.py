"""``weaktr label`` and ``weaktr predict`` on photographs that EXIF turns."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import weaktr
from tests.cli.photographs import (
    CAT_ALONE,
    COMMANDS,
    NAMES,
    SETTINGS,
    arguments,
    photo,
    with_labels,
)
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data import unlabelled
from weaktr.data.masks import MaskFolder
from weaktr.jobs.masked import masked_in
from weaktr.models import checkpoints
from weaktr.recipes import with_settings


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_are_turned_with_their_photographs(command, models, tmp_path, caplog):
    photos = tmp_path / "photos"
    photo(photos / "plain.jpg", 60, 40)
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(photos / "turned.jpg", 60, 40)) as image:
        image.save(photos / "turned.jpg", exif=turned)
    call = arguments(command, models, with_labels(photos), tmp_path / "stored")
    assert said(cli.main, *call)[0] == 0
    assert "1 image is turned by viewers (EXIF), masks are not" in caplog.text
    stored = MaskFolder(tmp_path / "stored")
    assert stored.entries["turned"].size == (40, 60)
    assert stored.entries["turned"].exif == "ignored" and stored.entries["plain"].exif is None
    call = arguments(command, models, photos, tmp_path / "upright", "--exif", "apply")
    assert said(cli.main, *call)[0] == 0
    assert "1 image was turned as EXIF says" in caplog.text
    upright = MaskFolder(tmp_path / "upright")
    assert upright.entries["turned"].size == upright.read("turned").shape == (60, 40)
    np.testing.assert_array_equal(upright.read("plain"), stored.read("plain"))
    mixed = arguments(command, models, photos, tmp_path / "stored", "--exif", "apply")
    assert said(cli.main, *mixed)[0] == cli.WRONG_INPUT


@pytest.mark.parametrize("shards", [(), ("--shard-size", "9")], ids=["plain", "shards"])
@pytest.mark.parametrize("command", COMMANDS)
def test_photographs_of_a_manifest_are_turned_too(command, shards, models, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(tmp_path / "photos/a.jpg", 60, 40)) as image:
        image.save(tmp_path / "photos/a.jpg", exif=turned)
    for exif in ("ignore", "apply"):
        unlabelled(tmp_path / "photos", exif=exif).save(tmp_path / f"{exif}.json")
    for said_of_them, option, size in (
        ("ignore", (), (40, 60)),
        ("ignore", ("--exif", "apply"), (60, 40)),
        ("apply", (), (60, 40)),
        ("apply", ("--exif", "ignore"), None),
    ):
        out = tmp_path / "-".join((said_of_them, *option))
        images, more = tmp_path / f"{said_of_them}.json", (*CAT_ALONE[command], *shards, *option)
        code, text = said(cli.main, *arguments(command, models, images, out, *more))
        if size is None:
            assert code == cli.WRONG_INPUT and not out.exists()
            assert "--exif ignore: " in text and "says exif: apply of 1 photograph" in text
            continue
        assert code == 0, text
        if not shards:
            (masked,) = masked_in(out)  # as reports and exports read it
            assert masked.masks.entries["a"].size == size
            assert [sample.exif for sample in masked.samples] == [
                "apply" if size == (60, 40) else "ignore"
            ]
        with Image.open(out / "masks/a.png") as mask:
            assert mask.size == size[::-1]


@pytest.mark.parametrize("way", ["plain", "shards", "python", "Model"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_manifest_comes_before_what_a_checkpoint_carries(command, way, models, tmp_path, caplog):
    """Only who asks for it has its photographs turned; those of a folder are as the run did."""
    caplog.set_level("INFO", "weaktr")
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(tmp_path / "photos/a.jpg", 60, 40)) as image:
        image.save(tmp_path / "photos/a.jpg", exif=turned)
    unlabelled(tmp_path / "photos").save(tmp_path / "photos.json")
    model, _ = checkpoints.load(models[command])
    known = {"classes": {"names": NAMES}, "masks": {command: {}, "exif": "apply"}}
    own = {command: checkpoints.save(model, tmp_path / "carries", **known)}
    for images, asked, size in (
        ("photos.json", None, (40, 60)),
        ("photos.json", "apply", (60, 40)),
        ("photos", None, (60, 40)),
        ("photos", "ignore", (40, 60)),
    ):
        out = tmp_path / f"{images}-{asked}"
        caplog.clear()
        if way in ("plain", "shards"):
            more = (*CAT_ALONE[command], *(("--exif", asked) if asked else ()))
            more += ("--shard-size", "9") if way == "shards" else ()
            code, text = said(cli.main, *arguments(command, own, tmp_path / images, out, *more))
            assert code == 0, text
        else:
            given = own[command] if way == "python" else weaktr.load(own[command])
            settings = (*SETTINGS[command], *CAT_ALONE[command][1:])
            if way == "Model":
                settings = with_settings(given.settings, settings)
            options = {"settings": settings, "exif": asked, "device": "cpu"}
            getattr(weaktr, command)(given, tmp_path / images, out, **options)
        with Image.open(out / "masks/a.png") as mask:
            assert mask.size == size[::-1]
        assert ("exif=apply" in caplog.text) == (size == (60, 40))
        settings = json.loads((out / "inputs.json").read_text())["settings"]
        assert settings.get("exif") == (
            None if asked == "ignore" else "apply"
        )  # as ever: they stay
