"""Stage 1 with a frozen backbone: one pass over the photographs, the same training."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

from tests.models import small
from tests.models.test_families import CAM, FAMILIES, TINY
from tests.stages import tiny
from tests.tolerances import assert_close
from weaktr import data
from weaktr.config import BackboneConfig, CacheConfig, CamAugment, TrainCamConfig
from weaktr.data import DataError, Sample
from weaktr.data.datasets import CamDataset, EncodedCamDataset, tv_image
from weaktr.data.transforms import IMAGENET, Crop, cam_train_transform
from weaktr.inference.encoded import EncodedPhotographs
from weaktr.inference.head_inputs import (
    CropInputs,
    HeadInputsEncoder,
    as_computed,
    as_kept,
    reasons_against,
)
from weaktr.models import ViT
from weaktr.models.cam import HeadInputs
from weaktr.stages import train_cam
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import Run
from weaktr.stages.train_cam import cam_losses
from weaktr.training.loop import TrainingLoop

PLAIN = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "randaugment": False, "erasing": 0.0}
FROZEN = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "warmup_epochs": 0, "lag_one_epoch": False,
          "backbone_lr": 0.0, "class_tokens": "frozen", "augment": PLAIN}  # fmt: skip


def frozen(root, **settings):
    return tiny.recipe(
        root,
        cam_model=tiny.MODEL | {"reduction": 0.5, "drop_path": 0.0},
        train_cam=FROZEN | settings,
    )


@pytest.fixture
def root(tmp_path):
    return tiny.squares(tmp_path / "data", count=13)


def trained(recipe, folder):
    """The weights and the losses of a training."""
    train_cam.train_cam(Run(recipe, folder.parent), folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return load_file(folder / "model.safetensors"), [json.loads(line) for line in lines]


@pytest.fixture
def passes(monkeypatch):
    """The list to which every crop that passes through the backbone for the cache is added."""
    crops = []
    encode = HeadInputsEncoder.encode

    def counting(self, batch):
        crops.extend(batch)
        return encode(self, batch)

    monkeypatch.setattr(HeadInputsEncoder, "encode", counting)
    return crops


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, "float16_training"),
        ({"ema_decay": 0.5, "accumulate": 2}, "float16_training"),
        ({"amp": "bf16"}, "bf16_training"),
    ],
    ids=["float32", "average", "bf16"],
)
def test_the_same_training_as_the_plain_one(root, tmp_path, monkeypatch, passes, settings, row):
    recipe = frozen(root, **settings)
    weights, losses = trained(recipe, tmp_path / "once" / "train_cam")
    assert len(passes) == 26  # both flips of 13 photographs, in three epochs
    monkeypatch.setattr(train_cam, "reasons_against", lambda *_: ["a test"])
    expected, expected_losses = trained(recipe, tmp_path / "plain" / "train_cam")
    assert len(passes) == 26 and weights.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(weights[name], value, row)
    torch.manual_seed(recipe.seed)
    start = small.CamModel(recipe.cam_model, 3).state_dict()
    for name in ("head.weight", "fusion.map_hidden.weight"):
        assert (expected[name] - start[name]).abs().max() > 2e-3
    assert [entry.keys() for entry in losses] == [entry.keys() for entry in expected_losses]
    values = [torch.tensor([[*one.values()] for one in log]) for log in (losses, expected_losses)]
    assert_close(*values, row)


def test_class_tokens_stay(root, tmp_path):
    recipe = frozen(root, augment=PLAIN | {"scale": [0.5, 1.0]})
    torch.manual_seed(0)
    weights, _ = trained(recipe, tmp_path / "train_cam")
    torch.manual_seed(recipe.seed)
    start = small.CamModel(recipe.cam_model, 3).state_dict()
    moved = {name.split(".")[0] for name in weights if not torch.equal(weights[name], start[name])}
    assert moved == {"head", "fusion"}
    tokens, _ = trained(frozen(root, class_tokens="trained"), tmp_path / "other" / "train_cam")
    assert not torch.equal(tokens["vit.cls_token"], start["vit.cls_token"])


def test_a_second_training_and_a_resumed_one_use_what_is_there(root, tmp_path, monkeypatch, passes):
    recipe = frozen(root)
    expected, lines = trained(recipe, tmp_path / "a" / "train_cam")
    assert len(passes) == 26
    other, _ = trained(frozen(root, lr=2e-2), tmp_path / "a" / "again")
    assert len(passes) == 26 and not torch.equal(other["head.weight"], expected["head.weight"])

    saved = TrainingLoop.save

    def stops_after_one_epoch(self):
        saved(self)
        if self.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "save", stops_after_one_epoch)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, tmp_path / "b" / "train_cam")
    monkeypatch.setattr(TrainingLoop, "save", saved)
    weights, again = trained(recipe, tmp_path / "b" / "train_cam")
    assert len(passes) == 52 and again == lines
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_a_run_keeps_them_beside_its_stages(root, tmp_path, passes):
    run = tmp_path / "run"
    for lr in (1e-2, 2e-2):
        run_recipe(frozen(root, lr=lr, epochs=1), run, only="train_cam")
    assert len(passes) == len([*(run / "features").glob("*.npz")]) == 26
    shutil.rmtree(run / "features")
    run_recipe(frozen(root, lr=2e-2, epochs=1), run, only="train_cam")
    assert len(passes) == 26  # finished before
    shared = replace(frozen(root, epochs=1), cache=CacheConfig(str(tmp_path / "shared")))
    for name in ("a", "b"):
        run_recipe(shared, tmp_path / name, only="train_cam")
    assert len(passes) == 52 and not (tmp_path / "a" / "features").exists()


def test_without_room_photographs_pass_each_time(root, tmp_path, passes, monkeypatch):
    recipe = frozen(root, epochs=2)
    no_room = replace(recipe, cache=CacheConfig(memory_mb=0, disk_gb=0))
    expected, _ = trained(recipe, tmp_path / "a" / "train_cam")
    batches, compute = [], EncodedPhotographs._compute

    def counted(store, samples, *arguments):
        batches.append(len(samples))
        return compute(store, samples, *arguments)

    monkeypatch.setattr(EncodedPhotographs, "_compute", counted)
    weights, _ = trained(no_room, tmp_path / "b" / "train_cam")
    assert len(passes) == 26 + 26 + 2 * 12 and not (tmp_path / "b" / "features").exists()
    assert batches == [13, 13] + [4] * 6  # a batch of the training at once
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (31, 32), (40, 24), (24, 41)])
def test_crops_are_those_of_the_training_transform(tmp_path, size, flip):
    """A square of the middle; one of both that there are where a side is longer by one pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    classes = data.Classes(("a",), (1,))
    sample = Sample("a", tmp_path / "a.png", (0,), None, "")
    manifest = data.Manifest("x", "train", classes, (sample,))
    transform = cam_train_transform(16, **PLAIN | {"flip": flip})
    plain = CamDataset(manifest, transform, seed=3)
    encoded = EncodedCamDataset(
        manifest,
        lambda size: Crop.draw(size, (1.0, 1.0), (1.0, 1.0), flip),
        lambda crops: [
            [crop.of(tv_image(sample), 16), torch.tensor(crop.flipped)]
            for sample, crop in crops.items()
        ],
        seed=3,
    )
    mean, std = IMAGENET
    normalized = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    flips = set()
    for epoch in range(6):
        plain.set_epoch(epoch)
        encoded.set_epoch(epoch)
        shown, is_flipped, target = encoded[0]
        expected, _ = plain[0]
        assert torch.equal(normalized(shown), expected)
        assert target.tolist() == [1.0]
        flips.add(bool(is_flipped))
    assert flips == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[flip]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("patch_norm", [False, True])
def test_what_is_kept_gives_the_losses_of_a_direct_pass(family, patch_norm):
    model = small.cam_model(family, 4, **CAM | {"patch_norm": patch_norm})
    encoder = HeadInputsEncoder(model, "none")
    generator = torch.Generator().manual_seed(0)
    size = (4 * model.patch_size, 5 * model.patch_size)
    pixels = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
    targets = torch.eye(4)[:2]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in model.normalization)
    losses = cam_losses(model((pixels / 255 - mean) / std), targets)
    kept = [
        as_kept({name: value.numpy() for name, value in one.items()})
        for one in encoder.encode([CropInputs(image) for image in pixels])
    ]
    (alone,) = encoder.encode([CropInputs(pixels[1])])
    for name, value in kept[1]._asdict().items():
        assert_close(value, alone[name], "float16")
    batch = as_computed(HeadInputs(*map(torch.stack, zip(*kept, strict=True))))
    again = cam_losses(model.outputs(batch), targets)
    for name, loss in losses.items():
        assert_close(again[name], loss, "float16_training")
    gradients = [
        torch.autograd.grad(sum(parts.values()), [model.head.weight, model.fusion.map_score.weight])
        for parts in (losses, again)
    ]
    for one, other in zip(*gradients, strict=True):
        largest = one.abs().max().clamp(min=1e-9)  # of dead hidden units all are 0
        assert_close(other / largest, one / largest, "float16_gradient")


@pytest.mark.parametrize(
    "family",
    [
        "deit_small_patch16_224",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "vit_small_patch16_dinov3",
        "vit_base_patch16_siglip_224",
    ],
)
def test_one_row_for_all_classes_where_a_training_starts(family, tmp_path):
    """One token is repeated for every class; where there is none each class draws its own."""
    own = ViT(BackboneConfig(family, image_size=64, backbone_args=TINY))
    save_file(own.state_dict(), tmp_path / "a.safetensors")
    weights = str(tmp_path / "a.safetensors")
    model = small.cam_model(family, 4, **CAM | {"weights": weights})
    assert HeadInputsEncoder(model, "none").has_one_row == (own.num_class_tokens > 0)


def test_one_row_where_all_class_tokens_are_the_same():
    model = small.cam_model("deit_small_patch16_224", 4, **CAM)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    own = HeadInputsEncoder(model, "none").encode([CropInputs(image)])[0]
    assert own["class_rows"].shape == (2, 3, 4, 16)
    with torch.no_grad():
        model.vit.cls_token.copy_(model.vit.cls_token[:, :1].expand_as(model.vit.cls_token))
    assert not HeadInputsEncoder(model, "none").has_one_row  # their positions differ
    with torch.no_grad():
        model.vit.pos_embed[:, :4] = model.vit.pos_embed[:, :1]
    one = HeadInputsEncoder(model, "none").encode([CropInputs(image)])[0]
    assert one["class_rows"].shape == (2, 3, 1, 16)


def test_other_weights_settings_or_crops_are_other_entries():
    def identity(amp="none", seed=0, classes=3, **settings):
        torch.manual_seed(seed)
        return HeadInputsEncoder(
            small.cam_model("deit_small_patch16_224", classes, **CAM | settings), amp
        ).identity

    base = identity()
    assert identity() == base
    others = [
        identity("bf16"), identity(seed=1), identity(classes=4), identity(pool="avg"),
        identity(patch_norm=True), identity(image_size=80),
    ]  # fmt: skip
    assert len({base, *others}) == 7


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"backbone_lr": 0.1}, "backbone_lr is 0.1, not 0.0"),
        ({"class_tokens": "trained"}, 'class_tokens is "trained", not "frozen"'),
        ({"augment": PLAIN | {"scale": (0.5, 1.0)}}, "augment.scale is [0.5, 1.0], not [1.0, 1.0]"),
        ({"augment": PLAIN | {"ratio": (0.5, 1.0)}}, "augment.ratio is [0.5, 1.0], not [1.0, 1.0]"),
        ({"augment": PLAIN | {"randaugment": True}}, "augment.randaugment is true, not false"),
        ({"augment": PLAIN | {"erasing": 0.1}}, "augment.erasing is 0.1, not 0.0"),
    ],
)
def test_reasons_against(settings, reason):
    values = FROZEN | settings
    config = TrainCamConfig(**values | {"augment": CamAugment(**values["augment"])})
    assert reasons_against(small.tiny_cam_model(), config) == [reason]


def test_dropped_parts_are_a_reason_against(root, tmp_path, passes, caplog):
    recipe = tiny.recipe(
        root,
        cam_model=tiny.MODEL | {"reduction": 2.0, "drop_path": 0.1},
        train_cam=FROZEN | {"epochs": 0},
    )
    with caplog.at_level(logging.INFO, "weaktr"):
        trained(recipe, tmp_path / "train_cam")
    assert not passes and any(
        "pass through it in every epoch: cam_model.drop_path" in r.message for r in caplog.records
    )


def test_unreadable_photographs_are_named_at_once(root, tmp_path):
    for name in ("3", "5"):
        path = root / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError) as error:
        trained(frozen(root), tmp_path / "train_cam")
    assert [p.file.rpartition("/")[2] for p in error.value.problems] == ["3.png", "5.png"]
