"""Which images of a folder are photographs to train with, and what is told of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.trees import write_image, write_mask
from weaktr.data.own import OwnPhotographs, doubts, look_at


def told(own: OwnPhotographs, word: str) -> list[str]:
    return [doubt for doubt in doubts(own, ()) if word in doubt]


@pytest.fixture
def sorted_by_class(tmp_path: Path) -> Path:
    """Photographs in ``hats/`` and ``gloves/``."""
    for name in ("hats/h.jpg", "gloves/g.jpg"):
        write_image(tmp_path / name)
    return tmp_path


def test_photographs_in_a_folder_called_masks_show_masks(sorted_by_class: Path) -> None:
    write_image(sorted_by_class / "masks/m.jpg")
    own = look_at(sorted_by_class, None, None)
    assert own.labels == {
        "gloves/g.jpg": ("gloves",),
        "hats/h.jpg": ("hats",),
        "masks/m.jpg": ("masks",),
    }


def test_true_masks_are_no_class(sorted_by_class: Path) -> None:
    for name in ("hats/h", "gone/other"):
        write_mask(sorted_by_class / f"masks/{name}.png", [1])
    own = look_at(sorted_by_class, None, None)
    assert own.classes.names == ("gloves", "hats")
    assert told(own, "masks/") == []
    (sorted_by_class / "masks/hats/h.png").unlink()
    own = look_at(sorted_by_class, None, None)
    assert own.classes.names == ("gloves", "hats")
    (doubt,) = told(own, "masks/")
    assert doubt.startswith("masks/ counts as true masks, though none of its 1 images (other.png)")


def test_a_class_folder_called_images_is_not_mistaken_without_a_word(sorted_by_class: Path) -> None:
    write_image(sorted_by_class / "images/i.jpg")
    told = r"found no labels, and 2 photographs outside of images/ \(gloves/g.jpg, hats/h.jpg\) are"
    with pytest.raises(ValueError, match=told):
        look_at(sorted_by_class, None, None)


def test_labels_that_do_not_count_beside_those_given_are_told(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    for name in ("other", "train"):
        (tmp_path / f"{name}.csv").write_text(f"image,labels\na.jpg,{name}\n")
    given = tmp_path / "other.csv"
    own = look_at(tmp_path, given, None)
    assert own.labels == {"a.jpg": ("other",)}
    assert told(own, "counts") == ["--labels other.csv counts, not train.csv"]
    assert told(look_at(tmp_path, given, None, {tmp_path / "train.csv"}), "counts") == []
    assert told(look_at(tmp_path, tmp_path / "train.csv", None), "counts") == []


def test_copies_with_other_labels_are_told(sorted_by_class: Path) -> None:
    """Those of one class are copies, too; a link to nothing is passed over."""
    content = (sorted_by_class / "hats/h.jpg").read_bytes()
    for name in ("gloves/copy.jpg", "hats/copy.jpg"):
        (sorted_by_class / name).write_bytes(content)
    write_image(sorted_by_class / "gloves/g.jpg", seed=1)
    (sorted_by_class / "gloves/gone.jpg").symlink_to("nowhere.jpg")
    assert told(look_at(sorted_by_class, None, None), "the same") == [
        "gloves/copy.jpg, hats/copy.jpg, hats/h.jpg are the same photograph, with other labels: "
        "correct one of them"
    ]
    (sorted_by_class / "gloves/copy.jpg").unlink()
    assert told(look_at(sorted_by_class, None, None), "the same") == [
        "hats/copy.jpg, hats/h.jpg are the same photograph"
    ]


def test_masks_beside_their_photographs_are_told(sorted_by_class: Path) -> None:
    write_image(sorted_by_class / "hats/a_mask.png")  # of no photograph
    assert told(look_at(sorted_by_class, None, None), "called like") == []
    for name in ("h_mask", "h_mask_1", "h-GT"):
        write_mask(sorted_by_class / f"hats/{name}.png", [1])
    (doubt,) = told(look_at(sorted_by_class, None, None), "called like")
    assert doubt.startswith("3 photographs are called like another and then mask or the like (")
    assert doubt.endswith("hats/h-GT.png to masks/hats/h.png")


def test_photographs_beside_images_are_told(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "b.jpg", "more/c.jpg", "masks/a.png", "out/d.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "out/.weaktr-lock").touch()
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\n")
    own = look_at(tmp_path, None, None)
    assert list(own.labels) == ["a.jpg"]
    assert told(own, "outside") == [
        "2 photographs outside of images/ (b.jpg, more/c.jpg) are not used: move them into it"
    ]
