"""Data sets and sampler: right tensors, and the same pixels after every resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.data.trees import SIZE, write_image, write_mask
from weaktr.data import DataError, datasets, load_manifest
from weaktr.data.classes import IGNORE, Classes
from weaktr.data.datasets import CamDataset, EpochSampler, SegDataset, mixed_seed, multi_hot
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.stored_maps import SoftLabels, npz_of_soft_labels
from weaktr.data.transforms import cam_train_transform, seg_train_transform
from weaktr.files import write_bytes

CLASSES = Classes(("cat", "dog", "cow"))
COUNT = 6


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    samples = tuple(
        Sample(
            str(k),
            write_image(tmp_path / f"{k}.png", seed=k),
            (k % 3,) if k else (),
            write_mask(tmp_path / f"{k}_mask.png", [1, 2, 255]),
            f"labels.csv:{k + 2}",
        )
        for k in range(COUNT)
    )
    return Manifest("own", "train", CLASSES, samples)


def one(image: Path, mask: Path) -> Manifest:
    """An image with a mask."""
    sample = Sample(image.stem, image, None, mask, "")
    return Manifest("own", "train", CLASSES, (sample,))


def cam(manifest: Manifest, seed: int = 0) -> CamDataset:
    return CamDataset(manifest, cam_train_transform(16), seed=seed)


def test_cam_items(manifest: Manifest) -> None:
    dataset = cam(manifest)
    assert len(dataset) == COUNT
    image, target = dataset[4]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.float32)
    assert target.tolist() == [0.0, 1.0, 0.0]
    assert dataset[0][1].tolist() == [0.0, 0.0, 0.0]


def test_cam_never_opens_a_mask(manifest: Manifest) -> None:
    for sample in manifest:
        assert sample.mask is not None
        sample.mask.unlink()
    for index in range(COUNT):
        cam(manifest)[index]


def test_cam_needs_labels_inside_the_classes(manifest: Manifest) -> None:
    first, *others = manifest.samples
    for labels, message in [(None, "no image-level labels"), ((3,), r"expected 0\.\.2")]:
        bad = replace(manifest, samples=(*others, replace(first, labels=labels)))
        with pytest.raises(DataError, match=rf"labels\.csv:2\).*{message}"):
            cam(bad)


def test_a_corrupt_image_names_its_file_even_from_a_worker(manifest: Manifest) -> None:
    path = manifest.samples[3].image
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DataError, match=r"3\.png \(labels\.csv:5\): cannot be read"):
        cam(manifest)[3]
    loader = DataLoader(cam(manifest), batch_size=COUNT, num_workers=1)
    with pytest.raises(DataError, match=r"3\.png \(labels\.csv:5\): cannot be read"):
        next(iter(loader))


def test_seg_items(manifest: Manifest) -> None:
    dataset = SegDataset(manifest, seg_train_transform(20, short_side=24))
    image, labels = dataset[1]
    assert (image.shape, image.dtype) == ((3, 20, 20), torch.float32)
    assert (labels.shape, labels.dtype) == ((20, 20), torch.uint8)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 255}


def test_items_with_classes_say_which_patches_are_padding(manifest: Manifest) -> None:
    """Images of 20 x 27 pixels in crops of 40 x 40, whose patches are 8 wide."""
    transform = seg_train_transform(40, short_side=20, ratio=(1, 1), patch_size=8)
    for patch_size in (None, 8):  # labels of pixels, shares of patches
        dataset = SegDataset(manifest, transform, patch_size=patch_size, with_classes=True)
        image, _, shown, inside = dataset[1]
        padding = torch.zeros(5, 5)
        padding[:3, :4] = 1
        assert inside.equal(padding) and shown.shape == (3,)
        assert image[:, 20:].eq(0).all() and image[:, :, 27:].eq(0).all()


def test_crops_of_an_image_lie_side_by_side_and_read_it_once(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = SegDataset(manifest, seg_train_transform(20, short_side=24), seed=3, crops=3)
    sampler = EpochSampler(len(dataset), 4, seed=1, crops=3)
    assert len(dataset) == 3 * COUNT
    order = sampler.order(0)
    assert sorted(order) == list(range(3 * COUNT))
    assert [i // 3 for i in order[::3]] != sorted(i // 3 for i in order[::3])
    for first in range(0, len(order), 3):
        assert order[first : first + 3] == list(range(order[first], order[first] + 3))
    assert [dataset.sample_of(i).name for i in (0, 2, 3)] == [
        manifest.samples[i].name for i in (0, 0, 1)
    ]
    read: list[str] = []
    plain = datasets.tv_image
    monkeypatch.setattr(
        datasets, "tv_image", lambda sample: (read.append(sample.name), plain(sample))[1]
    )
    for batch in sampler:
        read.clear()
        together = dataset.__getitems__(batch)
        assert read == list(dict.fromkeys(dataset.sample_of(i).name for i in batch))
        for index, item in zip(batch, together, strict=True):
            for ours, alone in zip(item, dataset[index], strict=True):
                assert torch.equal(ours, alone)
    assert not torch.equal(dataset[0][0], dataset[1][0])
    single = SegDataset(manifest, seg_train_transform(20, short_side=24), seed=3)
    assert torch.equal(single[0][0], dataset[0][0])  # the first crop is that of a single one


def test_seg_reads_a_mask_of_the_image_s_size_and_labels(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "pseudo/0.png", [3])
    dataset = SegDataset(one(write_image(tmp_path / "0.png"), mask), lambda *both: both)
    pixels, labels = dataset[0]
    assert pixels.shape == (3, *SIZE)
    assert labels.shape == SIZE
    assert int(labels[0, 0]) == 3
    write_mask(mask, [4])
    with pytest.raises(DataError, match=r"pseudo/0\.png: mask values outside"):
        dataset[0]
    write_mask(mask, [3], size=(5, 5))
    with pytest.raises(DataError, match="differ in size"):
        dataset[0]


def test_seg_maps_mask_ids_and_needs_masks(manifest: Manifest) -> None:
    stored = {1: 1, 2: 2, 0: 0, 255: 255}
    samples = tuple(replace(sample, mask_ids=(2, 1, 7)) for sample in manifest)
    swapped = SegDataset(replace(manifest, samples=samples), lambda *both: both)
    assert swapped[0][1][0, :4].tolist() == [stored[2], stored[1], 255, 0]
    without = replace(manifest, samples=(replace(manifest.samples[2], mask=None),))
    with pytest.raises(DataError, match=r"labels\.csv:4\): has no mask"):
        SegDataset(without, lambda *both: both)


def test_pixels_depend_on_seed_epoch_and_index_alone(manifest: Manifest) -> None:
    dataset = cam(manifest, seed=5)
    dataset.set_epoch(2)
    first = dataset[3][0]
    torch.rand(7)
    dataset[1]
    assert torch.equal(dataset[3][0], first)
    again = cam(manifest, seed=5)
    again.set_epoch(2)
    assert torch.equal(again[3][0], first)
    again.set_epoch(3)
    assert not torch.equal(again[3][0], first)
    other = cam(manifest, seed=6)
    other.set_epoch(2)
    assert not torch.equal(other[3][0], first)
    same_image = replace(manifest, samples=(manifest.samples[3],) * COUNT)
    repeated = cam(same_image, seed=5)
    repeated.set_epoch(2)
    assert torch.equal(repeated[3][0], first)
    assert not torch.equal(repeated[2][0], first)


def test_the_callers_random_numbers_stay_as_they_were(manifest: Manifest) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    cam(manifest)[0]
    assert torch.equal(torch.rand(3), expected)


def epochs(manifest: Manifest, workers: int, persistent: bool) -> list[torch.Tensor]:
    dataset = cam(manifest)
    sampler = EpochSampler(COUNT, 2, seed=4)
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=persistent
    )
    batches = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        batches += [images for images, _ in loader]
    return batches


def test_any_number_of_workers_sees_the_same_batches(manifest: Manifest) -> None:
    alone = epochs(manifest, 0, False)
    assert len(alone) == 6
    for workers, persistent in [(1, False), (2, True)]:
        for ours, theirs in zip(epochs(manifest, workers, persistent), alone, strict=True):
            assert torch.equal(ours, theirs)


def test_a_resumed_epoch_goes_on_where_it_stopped() -> None:
    sampler = EpochSampler(23, 4, seed=9)
    sampler.set_epoch(6)
    whole = list(sampler)
    assert len(whole) == len(sampler) == sampler.batches_per_epoch == 5
    resumed = EpochSampler(23, 4, seed=9)
    resumed.set_epoch(6, start_batch=3)
    assert list(resumed) == whole[3:]
    assert len(resumed) == 2
    resumed.set_epoch(6, start_batch=5)
    assert list(resumed) == []


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        sampler = EpochSampler(50, 10, seed=seed)
        sampler.set_epoch(epoch)
        order = [index for batch in sampler for index in batch]
        assert sorted(order) == list(range(50))
        orders.add(tuple(order))
    assert len(orders) == 4


def test_a_last_batch_that_is_not_whole_is_left_out() -> None:
    sampler = EpochSampler(7, 3)
    assert list(sampler) == [sampler.order(0)[:3], sampler.order(0)[3:6]]


def test_impossible_samplers() -> None:
    for length, batch_size, message in [
        (0, 1, "length"),
        (3, 0, "batch_size"),
        (3, 4, "4 is more than the 3 samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            EpochSampler(length, batch_size)
    for epoch, start in [(-1, 0), (0, -1), (0, 3)]:
        with pytest.raises(ValueError, match="epoch, start_batch"):
            EpochSampler(4, 2).set_epoch(epoch, start)


def test_seeds_mix() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mixed_seed(1, 2) == mixed_seed(1, 2)
    assert mixed_seed(0, 0) == 520810605562734633


def test_multi_hot() -> None:
    assert multi_hot((0, 3), 5).tolist() == [1, 0, 0, 1, 0]


def test_load_manifest(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "m.json")
    assert load_manifest("manifest", tmp_path / "m.json") == manifest
    images = load_manifest("images", tmp_path, "all", classes=("cat",))
    assert len(images) == 2 * COUNT
    with pytest.raises(ValueError, match=r"source: expected one of .*'voc12'.* got 'voc'"):
        load_manifest("voc", tmp_path)
    with pytest.raises(ValueError, match=r"options of source 'coco14': .*'labels'"):
        load_manifest("coco14", tmp_path, labels="x")
    with pytest.raises(ValueError, match=r"options of source 'scenes': .*'count'"):
        load_manifest("scenes", tmp_path)


def test_shares_of_the_cells_of_a_whole_photograph(tmp_path: Path) -> None:
    """Of a mask, unlabelled pixels not counted, and of soft labels in its place."""
    write_image(tmp_path / "a.png")
    labels = np.zeros(SIZE, np.uint8)
    labels[: SIZE[0] // 2, : SIZE[1] // 2] = 2
    labels[SIZE[0] // 2 :, SIZE[1] // 2 :] = IGNORE
    labels[SIZE[0] // 2 :, : SIZE[1] // 4] = IGNORE
    Image.fromarray(labels).save(tmp_path / "a_mask.png")
    image = one(tmp_path / "a.png", tmp_path / "a_mask.png")
    hard = SegDataset(image, tuple).shares(0, (2, 2))
    expected = torch.zeros(4, 2, 2)
    expected[2, 0, 0] = expected[0, 0, 1] = expected[0, 1, 0] = 1
    assert torch.equal(hard, expected)
    cells = np.array([[[51, 255]], [[204, 0]]], np.uint8)
    write_bytes(tmp_path / "a.npz", npz_of_soft_labels(SoftLabels(cells, (0, 3)), SIZE))
    soft = {"a": tmp_path / "a.npz"}
    dataset = SegDataset(image, tuple, patch_size=8, soft=soft)
    both = torch.tensor([[[0.2, 1.0]], [[0.0, 0]], [[0, 0]], [[0.8, 0]]])
    assert torch.allclose(dataset.shares(0, (1, 2)), both)
    assert torch.allclose(dataset.shares(0, (3, 1)), both.mean(2, keepdim=True).expand(4, 3, 1))


def test_shares_where_nothing_is_labelled(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    Image.fromarray(np.full(SIZE, IGNORE, np.uint8)).save(tmp_path / "m.png")
    dataset = SegDataset(one(tmp_path / "a.png", tmp_path / "m.png"), tuple)
    assert not dataset.shares(0, (2, 3)).any()
