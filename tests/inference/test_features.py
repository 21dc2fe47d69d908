"""Features of a frozen backbone: their values, their keys, and a pass that is interrupted."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.models.test_families import FAMILIES, TINY
from tests.tolerances import assert_close
from weaktr.config import BackboneConfig
from weaktr.data import DataError, Sample
from weaktr.data.array_cache import MIB, ArrayCache
from weaktr.inference.features import FeatureEncoder, FeatureStore, View
from weaktr.inference.pipeline import PipelineError
from weaktr.models import ViT

CPU = torch.device("cpu")
CONFIG = BackboneConfig(
    "vit_tiny_patch16_224",
    weights=None,
    image_size=32,
    backbone_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
)
VIEW = View(32)


def encoder_of(config=CONFIG, seed=0, **settings):
    torch.manual_seed(seed)
    return FeatureEncoder(config, CPU, **{"amp": "none"} | settings)


def photographs(folder, sizes=((40, 64), (64, 40), (64, 64))):
    """Samples of photographs of noise, as PNG."""
    rng = np.random.default_rng(0)
    samples = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
        samples.append(Sample(path.stem, path, (0,), None, ""))
    return samples


def count_passes(monkeypatch, encoder):
    """The list to which every photograph that goes through the encoder is added."""
    passes = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda batch: passes.extend(batch) or encode(batch))
    return passes


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((375, 500), 448, (448, 602)),  # 448 = 32 · 14, 597 -> 43 · 14
        ((500, 375), 448, (602, 448)),
        ((20, 20), 448, (448, 448)),
        ((10, 4000), 28, (28, 224)),  # squeezed to 8 times as long as wide
        ((300, 400), 5, (14, 14)),
    ],
)
def test_whole_patches_in_the_same_proportion(size, short_side, expected):
    assert View(short_side).size_of(size, 14) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_models_own_tokens(family, tmp_path):
    config = BackboneConfig(family, weights=None, image_size=64, backbone_args=TINY)
    encoder = encoder_of(config, layers=(-1, 0))
    patch = encoder.patch_size
    (sample,) = photographs(tmp_path, [(4 * patch, 6 * patch)])
    features = FeatureStore(encoder, ArrayCache(), View(4 * patch)).get(sample)

    torch.manual_seed(0)
    vit = ViT(config).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in vit.normalization)
    pixels = torch.from_numpy(np.array(Image.open(sample.image))).permute(2, 0, 1)
    with torch.no_grad():
        images = ((pixels / 255 - mean) / std)[None]
        tokens = vit(images)[0]
        embedded = vit.embed(images)
        after_first = vit.norm(vit.run_block(0, embedded.tokens, embedded).tokens)[0]
    patches, of_first = (x[-24:].unflatten(0, (4, 6)) for x in (tokens, after_first))
    token = tokens[0] if vit.num_class_tokens else tokens.mean(0)
    assert features.patches.dtype == features.token.dtype == torch.float16
    assert_close(features.patches.float(), patches, "float16")
    assert_close(features.token.float(), token, "float16")
    last, first = features.layers
    assert torch.equal(last, features.patches)
    assert_close(first.float(), of_first, "float16")


def test_a_flipped_view_is_laid_out_as_the_photograph(tmp_path):
    plain, *_ = photographs(tmp_path)
    mirrored = replace(plain, image=tmp_path / "mirrored.png")
    Image.fromarray(np.array(Image.open(plain.image))[:, ::-1]).save(mirrored.image)
    store = FeatureStore(encoder_of(), ArrayCache(), VIEW)
    flipped = store.get(plain, View(32, flipped=True))
    assert torch.equal(flipped.patches, store.get(mirrored).patches.flip(1))
    assert torch.equal(flipped.token, store.get(mirrored).token)
    assert not torch.equal(flipped.patches, store.get(plain).patches)


def test_several_photographs_in_one_pass(tmp_path):
    """As on a GPU: of one size stacked, of several sizes packed."""
    samples = photographs(tmp_path, [(32, 48), (32, 48), (64, 32), (32, 32)])
    encoder = encoder_of(layers=(0,))
    inputs = [
        encoder.read(sample, View(32, flipped=bool(i % 2))) for i, sample in enumerate(samples)
    ]
    for batch in (inputs, inputs[:2]):
        for together, one in zip(encoder.features(batch), batch, strict=True):
            (alone,) = encoder.features([one])
            assert_close(together.patches, alone.patches, "float16")
            assert_close(together.token, alone.token, "float16")
            assert_close(together.layers[0], alone.layers[0], "float16")


def test_bf16_is_near(tmp_path):
    sample, *_ = photographs(tmp_path)
    exact = FeatureStore(encoder_of(), ArrayCache(), VIEW).get(sample)
    near = FeatureStore(encoder_of(amp="bf16"), ArrayCache(), VIEW).get(sample)
    assert 0 < (near.patches - exact.patches).abs().max() < 0.05 * exact.patches.abs().max()


def test_each_photograph_passes_once(tmp_path, monkeypatch):
    samples = photographs(tmp_path)
    encoder = encoder_of()
    passes = count_passes(monkeypatch, encoder)
    store = FeatureStore(encoder, ArrayCache(tmp_path / "cache"), VIEW)
    first = list(store.of(samples))
    assert [sample for sample, _ in first] == samples and len(passes) == 3
    assert [tuple(features.patches.shape) for _, features in first] == [
        (2, 3, 16), (3, 2, 16), (2, 2, 16),
    ]  # fmt: skip
    later = FeatureStore(encoder, ArrayCache(tmp_path / "cache", memory_mb=0), VIEW)
    for (sample, one), (_, other) in zip(first, later.of(samples), strict=True):
        assert torch.equal(one.patches, other.patches) and torch.equal(one.token, other.token)
        assert torch.equal(one.patches, store.get(sample).patches)
    assert len(passes) == 3


def test_the_memory_bound_is_held_without_a_folder(tmp_path):
    samples = photographs(tmp_path, [(32, 32)] * 5)
    size = 2 * (4 * 16 + 16)
    cache = ArrayCache(memory_mb=2.5 * size / MIB)
    store = FeatureStore(encoder_of(), cache, VIEW)
    for _ in range(2):
        assert len(list(store.of(samples))) == 5
        assert cache.memory_bytes == 2 * size


def test_what_makes_another_entry(tmp_path):
    sample, other, _ = photographs(tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in encoder_of().weights.state_dict().items()}, weights)
    of_file = replace(CONFIG, weights=str(weights))

    def key(encoder, sample=sample, view=VIEW):
        return FeatureStore(encoder, ArrayCache(), view).key(sample)

    base = key(encoder_of())
    copy = tmp_path / "copy.png"
    copy.write_bytes(sample.image.read_bytes())
    same = [
        key(encoder_of()),
        key(encoder_of(of_file, seed=1)),  # the same weights, from a file
        key(encoder_of(replace(CONFIG, attention="sdpa"))),
        key(encoder_of(), replace(sample, name="b", image=copy, labels=(1,))),
    ]
    assert same == [base] * 4
    different = [
        key(encoder_of(seed=1)),
        key(encoder_of(replace(CONFIG, position="published_cam"))),
        key(encoder_of(replace(CONFIG, norm_eps=1e-3))),
        key(encoder_of(amp="bf16")),
        key(encoder_of(layers=(0,))),
        key(encoder_of(), other),
        key(encoder_of(), replace(sample, exif="apply")),
        key(encoder_of(), view=View(48)),
        key(encoder_of(), view=View(32, flipped=True)),
    ]
    assert len({base, *different}) == 10


def test_photographs_turned_by_exif(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (32, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1).copy()).save(tmp_path / "upright.png")
    turned = Sample("turned", tmp_path / "turned.png", (), None, "", exif="apply")
    upright = Sample("upright", tmp_path / "upright.png", (), None, "")
    store = FeatureStore(encoder_of(), ArrayCache(), VIEW)
    assert torch.equal(store.get(turned).patches, store.get(upright).patches)
    assert store.get(replace(turned, exif="ignore")).patches.shape == (2, 4, 16)


def test_a_photograph_that_changes_passes_again(tmp_path, monkeypatch):
    samples = photographs(tmp_path)
    encoder = encoder_of()
    store = FeatureStore(encoder, ArrayCache(tmp_path / "cache"), VIEW)
    before = [features.patches for _, features in store.of(samples)]
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(samples[0].image)
    passes = count_passes(monkeypatch, encoder)
    after = [features.patches for _, features in store.of(samples)]
    assert len(passes) == 1 and not torch.equal(before[0], after[0])
    assert all(map(torch.equal, before[1:], after[1:]))


def test_a_damaged_file_is_computed_again(tmp_path, monkeypatch):
    samples = photographs(tmp_path)
    encoder = encoder_of()
    first = [
        f.patches for _, f in FeatureStore(encoder, ArrayCache(tmp_path / "c"), VIEW).of(samples)
    ]
    file = sorted((tmp_path / "c").glob("*.npz"))[1]
    content = file.read_bytes()
    file.write_bytes(content[:60] + b"x" + content[61:])
    passes = count_passes(monkeypatch, encoder)
    store = FeatureStore(encoder, ArrayCache(tmp_path / "c"), VIEW)
    assert all(map(torch.equal, first, (f.patches for _, f in store.of(samples))))
    assert len(passes) == 1 and file.read_bytes() == content


def test_a_killed_pass_goes_on(tmp_path, monkeypatch):
    samples = photographs(tmp_path, [(32, 32)] * 6)
    encoder = encoder_of()
    encode = encoder.encode
    passes = []

    def fails_at_the_fourth(batch):
        passes.extend(batch)
        if len(passes) == 4:
            raise OSError("the power fails")
        return encode(batch)

    monkeypatch.setattr(encoder, "encode", fails_at_the_fourth)
    with pytest.raises(PipelineError, match="the power fails"):
        list(FeatureStore(encoder, ArrayCache(tmp_path / "cache"), VIEW).of(samples))
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 3
    features = list(FeatureStore(encoder, ArrayCache(tmp_path / "cache"), VIEW).of(samples))
    assert len(features) == 6 and len(passes) == 4 + 3


def test_unreadable_photographs_are_left_out_by_name(tmp_path, caplog):
    samples = photographs(tmp_path)
    samples[1].image.write_bytes(samples[1].image.read_bytes()[:200])
    missing = Sample("missing", tmp_path / "missing.jpg", (), None, "list.txt:7")
    store = FeatureStore(encoder_of(), ArrayCache(), VIEW)
    with caplog.at_level(logging.WARNING, "weaktr"):
        assert [s.name for s, _ in store.of([*samples, missing])] == ["0", "2"]
    assert set(store.left_out) == {"1", "missing"}
    messages = [record.message for record in caplog.records]
    assert any("1.png: cannot be read as an image" in m for m in messages)
    assert any("missing.jpg (list.txt:7): file is missing" in m for m in messages)
    with pytest.raises(DataError, match="file is missing"):
        store.get(missing)


def test_what_float16_does_not_hold_is_float32(tmp_path):
    """A pass in float16 overflows for photographs of noise, not for one of mean grey."""
    noise, grey = photographs(tmp_path, [(32, 32)] * 2)
    Image.new("RGB", (32, 32), (127, 128, 127)).save(grey.image)
    encoder = encoder_of(amp="fp16", layers=(0,))
    encoder.weights.patch_embed.proj.weight.data.mul_(1e6)
    inputs = [encoder.read(sample, VIEW) for sample in (noise, grey)]
    found = encoder.features(inputs)
    dtypes = [
        {part.dtype for part in (features.token, features.patches, *features.layers)}
        for features in found
    ]
    assert dtypes == [{torch.float32}, {torch.float16}]
    pixels = inputs[0].pixels.permute(2, 0, 1)[None]
    exact = encoder.weights((pixels / 255 - 0.5) / 0.5)[0, 1:]
    assert_close(found[0].patches.flatten(0, 1), exact, "float32")
    store = FeatureStore(encoder, ArrayCache(tmp_path / "cache", memory_mb=0), VIEW)
    for _ in range(2):  # computed, and from its file
        for sample, features in zip((noise, grey), found, strict=True):
            again = store.get(sample)
            assert torch.equal(again.patches, features.patches)
            assert torch.equal(again.layers[0], features.layers[0])


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    sample, *_ = photographs(tmp_path)
    encoder = encoder_of()
    encoder.weights.norm.weight.data.fill_(1e30)  # float16 has no such numbers
    features = FeatureStore(encoder, ArrayCache(), VIEW).get(sample)
    assert features.patches.abs().max() > 1e29
    encoder.weights.norm.weight.data.fill_(torch.inf)
    with pytest.raises(DataError, match="patches are NaN or infinite, in float32 too"):
        FeatureStore(encoder, ArrayCache(), VIEW).get(sample)


def test_no_such_layer():
    with pytest.raises(
        ValueError, match=r"layers: expected blocks -2\.\.1, each once, got \[0, 2\]"
    ):
        encoder_of(layers=(0, 2))
