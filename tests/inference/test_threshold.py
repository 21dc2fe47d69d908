"""The threshold that parts patches best: against the definition, and where it is known."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from weaktr.config import LabelConfig
from weaktr.data import Sample
from weaktr.data.photographs import read_photograph
from weaktr.files import write_json
from weaktr.inference.cams import CamInputs, Cams, CamsOfModel
from weaktr.inference.threshold import (
    THRESHOLDS,
    Choice,
    best_threshold,
    choose_by_features,
    drawn,
    fisher_curve,
    read_choice,
    write_choice,
)
from weaktr.seals import is_sealed


def brute_force(features, cams, threshold):
    """The criterion by its words, patch by patch; the CAMs have whole patches."""
    rows, columns = features.shape[1:]
    side = cams.shape[1] // rows, cams.shape[2] // columns
    groups = {True: [], False: []}
    for y in range(rows):
        for x in range(columns):
            part = cams.max(0)[y * side[0] : (y + 1) * side[0], x * side[1] : (x + 1) * side[1]]
            patch = features[:, y, x] / np.linalg.norm(features[:, y, x])
            groups[bool(part.mean() > threshold)].append(patch)
    if not groups[True] or not groups[False]:
        return 0.0
    patches = np.array(groups[True] + groups[False])
    total = ((patches - patches.mean(0)) ** 2).sum()
    means = {inside: np.mean(group, 0) for inside, group in groups.items()}
    between = sum(
        len(group) * ((means[inside] - patches.mean(0)) ** 2).sum()
        for inside, group in groups.items()
    )
    return between / total


@pytest.mark.parametrize(("grid", "side"), [((3, 4), 4), ((1, 7), 2), ((5, 5), 1), ((1, 1), 8)])
def test_the_curve_is_that_of_the_definition(grid, side):
    rng = np.random.default_rng(sum(grid))
    features = rng.normal(size=(6, *grid))
    cams = rng.random((2, grid[0] * side, grid[1] * side))
    limits = [0.1, 0.4, 0.5, 0.6, 0.9]
    curve = fisher_curve(torch.from_numpy(features), torch.from_numpy(cams), limits)
    expected = [brute_force(features, cams, limit) for limit in limits]
    np.testing.assert_allclose(curve.numpy(), expected, atol=1e-5)
    assert max(expected) > 0 or grid == (1, 1)


def test_equal_or_missing_features_and_no_class_are_zeros():
    cams = torch.rand(1, 8, 8)
    for features in (torch.ones(3, 4, 4), torch.zeros(3, 4, 4)):
        assert fisher_curve(features, cams, THRESHOLDS).abs().max() < 1e-3
    assert not fisher_curve(torch.rand(3, 4, 4), torch.zeros(0, 8, 8), THRESHOLDS).any()


def test_of_equal_values_the_middle_is_taken():
    assert best_threshold((0.1, 0.2, 0.3, 0.4, 0.5), (0, 2, 2, 2, 1)) == 0.3
    assert best_threshold((0.1, 0.2, 0.3, 0.4, 0.5), (2, 1, 1, 2, 2)) == 0.1


class Planted:
    """Photographs of an object whose features differ from the background's.

    The CAM of the object is between 0.6 and 0.8, that of the background below 0.3, and that of a
    halo around the object, which has the background's features, at most 0.45.
    """

    device, num_labels, with_features = torch.device("cpu"), 2, True

    def __init__(self, folder, count=6):
        self.samples = []
        for index in range(count):
            path = folder / f"{index}.png"
            Image.fromarray(np.full((24, 32, 3), index, np.uint8)).save(path)
            self.samples.append(Sample(f"photo {index}", path, (0,), None, f"list:{index}"))

    def shows_a_class(self, sample):
        return bool(sample.labels)

    def files(self, sample):
        return (sample.image,)

    def read(self, sample):
        photograph = read_photograph(sample, None)
        return CamInputs(sample, photograph, torch.from_numpy(photograph.pixels), [])

    def fits(self, batch, further):
        return len(batch) < 2

    def cams(self, batch):
        given = [planted(int(one.image[0, 0, 0])) for one in batch]
        return [Cams((0,), cams, features=features) for cams, features in given]


def planted(seed):
    draw = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(1, 4, (1,), generator=draw)) for _ in range(2))
    cam = torch.rand(24, 32, generator=draw) * 0.3
    halo = np.s_[4 * (top - 1) : 4 * (top + 3), 4 * (left - 1) : 4 * (left + 3)]
    inside = np.s_[4 * top : 4 * (top + 2), 4 * left : 4 * (left + 2)]
    cam[halo] = 0.35 + 0.1 * torch.rand(16, 16, generator=draw)
    cam[inside] = 0.6 + 0.2 * torch.rand(8, 8, generator=draw)
    features = torch.randn(5, 6, 8, generator=draw) * 0.1
    features[0] += 1
    features[:2, top : top + 2, left : left + 2] += torch.tensor([-1.0, 1.0])[:, None, None]
    return cam[None], features


@pytest.fixture
def source(tmp_path):
    return Planted(tmp_path)


def test_the_threshold_between_object_and_halo_is_found(source):
    choice = choose_by_features(source, source.samples, 8)
    assert 0.42 <= choice.threshold <= 0.68
    assert choice.in_words() == f"auto: {choice.threshold:g}"
    assert set(choice.images) == {sample.name for sample in source.samples}
    for threshold, value in choice.curve:
        curves = [
            brute_force(features.numpy(), cam.numpy(), threshold)
            for cam, features in map(planted, range(6))
        ]
        assert value == pytest.approx(np.mean(curves), abs=1e-4)


def test_the_same_images_in_any_order_give_the_same_choice(source):
    forward = choose_by_features(source, source.samples, 8)
    assert choose_by_features(source, source.samples[::-1], 8) == forward
    names = [sample.name for sample in drawn(source.samples, 3)]
    assert [sample.name for sample in drawn(source.samples[::-1], 3)] == names


def test_an_unreadable_image_does_not_count(source, caplog):
    source.samples[2].image.write_bytes(b"nothing")
    choice = choose_by_features(source, source.samples, 8)
    assert set(choice.images) == {f"photo {index}" for index in (0, 1, 3, 4, 5)}
    assert "does not count" in caplog.text


def test_without_features_or_without_contrast_it_is_refused(source):
    flat = source.cams
    source.cams = lambda batch: [cams._replace(maps=cams.maps * 0) for cams in flat(batch)]
    with pytest.raises(ValueError, match="expected CAMs that part foreground"):
        choose_by_features(source, source.samples, 8)
    source.with_features = False
    with pytest.raises(ValueError, match="give a number, or label with the model"):
        choose_by_features(source, source.samples, 8)


def test_a_model_gives_what_is_needed(tmp_path):
    samples = Planted(tmp_path).samples
    for index, sample in enumerate(samples):
        noise = np.random.default_rng(index).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(sample.image)
    model = small.tiny_cam_model()
    choice = choose_by_features(CamsOfModel(model, LabelConfig(), with_features=True), samples, 8)
    assert len(choice.images) == len(samples) and choice.threshold in THRESHOLDS


def test_photographs_are_drawn_whatever_their_names(tmp_path):
    samples = [replace(s, name=f"caf\udce9 {s.name}") for s in Planted(tmp_path).samples]
    assert drawn(samples, 3) == drawn(samples[::-1], 3)


def test_a_choice_is_read_as_it_was_written(tmp_path):
    curve, told = ((0.3, 1.5), (0.31, 2.0)), "search_on_masks: 0.31, chosen with true masks of 2"
    choice = Choice(0.31, "search_on_masks", "mIoU", ("a", "b/ü"), curve, "voc12 val")
    write_choice(choice, tmp_path)
    assert read_choice(tmp_path) == choice
    assert choice.in_words() == f"{told} images of voc12 val"
    older = asdict(choice)
    del older["split"]
    write_json(tmp_path / "threshold.json", older, seal=True)
    assert read_choice(tmp_path) == replace(choice, split="")
    assert read_choice(tmp_path).in_words() == f"{told} images"
    file = tmp_path / "threshold.json"
    assert is_sealed(file) and read_choice(tmp_path / "nowhere") is None
    file.write_text(file.read_text().replace("0.31", "0.41"))
    with pytest.raises(ValueError, match="not as weaktr wrote it"):
        read_choice(tmp_path)
    file.write_bytes(b"")
    assert read_choice(tmp_path) is None
