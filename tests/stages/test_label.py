"""CAMs over scales and flips, and labels from them, against the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from tests.parity.test_cam import TYPES, model_of
from tests.stages.stored import FACTS, arrays
from tests.tolerances import assert_golden
from weaktr.config import LabelConfig
from weaktr.data import Classes, Sample
from weaktr.data.masks import MaskFolder, read_mask_file
from weaktr.inference import cams as stage
from weaktr.inference.cams import CamsOfModel, image_cams, multi_scale_cams
from weaktr.inference.labels import labels_from_cams
from weaktr.stages.label import label

B, C = arrays("B_multiscale_cam"), arrays("C_labels_miou")
CASES = FACTS["B_multiscale_cam"]["cases"]
THRESHOLDS = (0.3, 0.42, 0.43, 0.45, 0.6)
SAMPLES = range(6)


def published_cams(case, copies=1):
    facts = CASES[case]
    model = model_of(f"A_{facts['model']}").eval()
    images = np.stack([B[f"image.{facts['image']}"]] * copies)
    return multi_scale_cams(
        model,
        images,
        [tuple(B[f"{case}.keys"].tolist())] * copies,
        scales=facts["scales"],
        attention_type=TYPES[facts["attention_type"]],
        refine=facts["patch_attn_refine"],
    )


@pytest.mark.parametrize("case", CASES)
def test_cams_are_the_published_ones(case):
    (cams,) = published_cams(case)
    expected = torch.from_numpy(B[f"{case}.cam"])
    step = cams.shape[-1] // expected.shape[-1]  # some are stored at every second pixel
    assert_golden(torch.from_numpy(cams)[..., ::step, ::step], expected)


@pytest.mark.parametrize("name", [key for key in B if key.startswith("resized.")])
def test_images_are_resized_as_published(name):
    _, picture, scale = name.split(".", 2)
    image = Image.fromarray(B[f"image.{picture}"])
    size = round(image.width * float(scale)), round(image.height * float(scale))
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized, B[name])


def test_a_batch_gives_what_single_images_give():
    case = "voc_flower_s1.0_1.2_transcam"
    one, two = published_cams(case, copies=2)
    assert_golden(torch.from_numpy(one), torch.from_numpy(B[f"{case}.cam"]))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_each_image_of_a_batch_has_its_own_classes():
    model = model_of("A_a2_voc20_max").eval()
    images = np.stack([B["image.flower"], B["image.flower"][:, ::-1]])
    together = multi_scale_cams(model, images, [(0, 5), ()], scales=(1.0,))
    (alone,) = multi_scale_cams(model, images[:1], [(0, 5)], scales=(1.0,))
    assert together[1].shape == (0, 75, 100)
    np.testing.assert_allclose(together[0], alone, atol=1e-5)


@pytest.mark.parametrize(("settings", "sizes"), [
    ({"batch_size": 16}, [4]),
    ({"batch_size": 3}, [3, 1]),
    ({"batch_tokens": 1}, [1, 1, 1, 1]),
    ({"batch_tokens": 2 * 2 * 7 * 5}, [2, 1, 1]),
])  # fmt: skip
def test_images_of_any_sizes_are_labelled_together(settings, sizes, tiny_model, monkeypatch):
    """Batches as large as the settings say, and the same CAMs as one image at a time."""
    sides = [(80, 112), (80, 112), (200, 112), (80, 48)]
    rng = np.random.default_rng(0)
    images = [
        (
            Sample(str(index), None, (index % 2,), None, ""),
            rng.integers(0, 255, (*side, 3), np.uint8),
        )
        for index, side in enumerate(sides)
    ]
    seen = []

    def noting(model, batch, present, **arguments):
        seen.append(len(batch))
        return multi_scale_cams(model, batch, present, **arguments)

    monkeypatch.setattr(stage, "multi_scale_cams", noting)
    monkeypatch.setattr(stage, "_normalise", lambda maps: maps)  # it enlarges rounding
    found = list(image_cams(tiny_model, images, LabelConfig(scales=(1.0, 0.5), **settings)))
    assert seen == sizes
    for (sample, image), (same, _, cams) in zip(images, found, strict=True):
        (alone,) = multi_scale_cams(tiny_model, [image], [sample.labels], scales=(1.0, 0.5))
        assert same is sample
        assert_golden(torch.from_numpy(cams), torch.from_numpy(alone))


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_labels_are_the_published_ones(dataset, threshold):
    for index in SAMPLES:
        key = f"{dataset}.{index}"
        values = np.array([0, *(C[f"{key}.keys"] + 1)], np.uint8)
        made = values[labels_from_cams(C[f"{key}.cam"], threshold)]
        np.testing.assert_array_equal(made, C[f"{key}.label_t{threshold}"])


def test_softmax_ties_go_to_the_background():
    made = labels_from_cams(C["tie.cam"], 0.43)
    np.testing.assert_array_equal(made, C["tie.label"])
    assert (made != C["tie.raw_argmax"]).any()


CLASSES = Classes(("red", "blue"))


@pytest.fixture
def tiny_model():
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    return small.cam_model(
        "vit_tiny_patch16_224", 2, image_size=32, patch_size=16, reduction=1, feat_reduction=1,
        backbone_args=arguments,
    ).eval()  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    made = []
    for index, labels in enumerate([(0,), (0, 1), (), None]):
        path = tmp_path / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24 + index, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(Sample(f"deep/{index}", path, labels, None, f"list.txt:{index + 1}"))
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "0.png").read_bytes()[:100])
    return [*made, Sample("broken", broken, (1,), None, "list.txt:5")]


def test_unlabelled_and_corrupt_images_are_reported(tiny_model, samples, tmp_path):
    out = tmp_path / "out"
    report = label(
        CamsOfModel(tiny_model, LabelConfig(crf=None)), samples, out, LabelConfig(crf=None)
    )
    assert report.labelled == 2
    assert report.unlabelled == ["deep/2", "deep/3"]
    assert [(p.file, p.where) for p in report.unreadable] == [
        (str(tmp_path / "broken.png"), "list.txt:5")
    ]
    assert set(MaskFolder(out).entries) == {"deep/0", "deep/1"}


def test_unlabelled_images_can_become_background(tiny_model, samples, tmp_path):
    settings = LabelConfig(unlabelled="background", crf="voc_cam")
    label(CamsOfModel(tiny_model, settings), samples[:3], tmp_path / "out", settings)
    masks = MaskFolder(tmp_path / "out")
    assert not masks.read("deep/2").any()
    assert masks.entries["deep/2"].labels == (0,)


def test_only_classes_of_the_image_label_occur(tiny_model, samples, tmp_path):
    label(
        CamsOfModel(tiny_model, LabelConfig(threshold=0.2)),
        samples[:2],
        tmp_path / "out",
        LabelConfig(threshold=0.2),
    )
    masks = MaskFolder(tmp_path / "out")
    assert set(np.unique(masks.read("deep/0"))) <= {0, 1}
    assert set(np.unique(masks.read("deep/1"))) <= {0, 1, 2}


def test_finished_masks_are_not_made_again(tiny_model, samples, tmp_path):
    out, settings = tmp_path / "out", LabelConfig(crf=None)
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    kept = MaskFolder(out).path("deep/0")
    before = kept.stat().st_mtime_ns
    label(CamsOfModel(tiny_model, settings), samples[:2], out, settings)
    assert kept.stat().st_mtime_ns == before
    assert len(MaskFolder(out)) == 2


def test_a_damaged_mask_is_made_again(tiny_model, samples, tmp_path):
    out, settings = tmp_path / "out", LabelConfig(crf=None)
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    path = MaskFolder(out).path("deep/0")
    whole = read_mask_file(path)
    path.write_bytes(path.read_bytes()[:40])
    label(CamsOfModel(tiny_model, settings), samples[:1], out, settings)
    np.testing.assert_array_equal(read_mask_file(path), whole)


def test_cams_can_be_dumped(tiny_model, samples, tmp_path):
    label(
        CamsOfModel(tiny_model, LabelConfig(crf=None)),
        samples[:2],
        tmp_path / "out",
        LabelConfig(crf=None),
        dump_cams=True,
    )
    with np.load(tmp_path / "out" / "cams" / "deep" / "1.npz") as stored:
        assert stored["cams"].shape == (2, 20, 25)
        assert stored["classes"].tolist() == [0, 1]
        assert stored["cams"].min() >= 0
        assert stored["cams"].max() <= 1
