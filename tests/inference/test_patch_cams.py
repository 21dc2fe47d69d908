"""CAMs of a classifier of patches, from the features of its backbone, and labels of odds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from tests.inference.test_features import count_passes, photographs
from tests.models.small import patch_model
from tests.models.test_families import FAMILIES, TINY
from weaktr.config import CamModelConfig, LabelConfig, PatchesConfig
from weaktr.data import Sample
from weaktr.data.array_cache import MIB, ArrayCache
from weaktr.inference import encoded
from weaktr.inference.cams import Cams
from weaktr.inference.features import FeatureStore
from weaktr.inference.labels import FACTORS, label_maps, labels_from_cams, scores_from_odds
from weaktr.inference.patch_cams import (
    CamsOfPatches,
    against_background,
    cams_of,
    encoder_of,
    stacked,
)
from weaktr.inference.soft_labels import Softening
from weaktr.models import PatchModel, checkpoints
from weaktr.refine import choose_refiners
from weaktr.refine.maps import best_labels

ONE_VIEW = LabelConfig(scales=(1.0,), flip=False, threshold=0.5, crf=None)


def count_features(monkeypatch, encoder):
    """The list to which every photograph is added whose features are computed."""
    computed, features = [], encoder.features
    monkeypatch.setattr(
        encoder, "features", lambda batch: computed.extend(batch) or features(batch)
    )
    return computed


@pytest.fixture
def model():
    return patch_model(3, seed=4)


@pytest.fixture
def samples(tmp_path):
    labels = ((0, 2), (1,), ())
    return [replace(sample, labels=own)
            for sample, own in zip(photographs(tmp_path), labels, strict=True)]  # fmt: skip


def shares_of(model, pixels, classes):
    """[K + 1, h, w] of pixels uint8 [h · 8, w · 8, 3], from the backbone as it is."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in model.vit.normalization)
    image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
    tokens, kept = model.vit.embed(image[None]), []
    current = tokens.tokens
    for index in range(len(model.vit.blocks)):
        current = model.vit.run_block(index, current, tokens).tokens
        kept.append(model.vit.norm(current)[0, model.vit.num_prefix_tokens :])
    features = torch.cat([kept[index] for index in (*model.config.patches.layers, -1)], 1)
    grid = (pixels.shape[0] // model.patch_size, pixels.shape[1] // model.patch_size)
    return model.shares(features.half(), classes).T.unflatten(1, grid)


def resized(pixels, short_side):
    """Whole patches of 8 pixels."""
    scale = short_side / min(pixels.shape[:2])
    height, width = (round(side * scale / 8) * 8 for side in pixels.shape[:2])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def against_likeliest(shares):
    """Maps of shares, background first."""
    return shares[1:] / (shares[0] + shares[1:].max(0).values) if len(shares) > 1 else shares[1:]


@torch.inference_mode()
def test_cams_are_the_mean_of_the_views(model, samples):
    """Scales and flips, each from a forward pass of its own; a class against the background."""
    settings = replace(ONE_VIEW, scales=(1.0, 1.5), flip=True)
    source = CamsOfPatches(model, settings, with_views=True)
    batch = [source.read(sample) for sample in samples]
    for sample, cams in zip(samples, source.cams(batch), strict=True):
        pixels = np.array(Image.open(sample.image))
        views = []
        for side in (32, 48):
            seen = resized(pixels, side)
            for flipped in (False, True):
                image = seen[:, ::-1] if flipped else seen
                small = shares_of(model, image, sample.labels)
                small = small.flip(-1) if flipped else small
                views.append(F.interpolate(small[None], pixels.shape[:2], mode="bilinear")[0])
        mean = torch.stack(views).mean(0)
        assert cams.odds and cams.classes == sample.labels
        assert cams.maps.shape == (len(sample.labels), *pixels.shape[:2])
        assert_close(cams.maps, against_likeliest(mean), atol=0.02, rtol=0)
        for view, expected in zip(cams.views, views, strict=True):
            assert_close(view, against_likeliest(expected), atol=0.03, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tmp_path):
    torch.manual_seed(0)
    config = CamModelConfig(
        family, weights=None, kind="patches", image_size=64, backbone_args=TINY,
        patches=PatchesConfig(short_side=64, layers=(-1,)),
    )  # fmt: skip
    model = PatchModel(config, 4).eval()
    model.weight.normal_()
    loaded, _ = checkpoints.load(checkpoints.save(model, tmp_path / "model"))
    (sample,) = photographs(tmp_path, [(50, 91)])
    sample = replace(sample, labels=(1, 3))
    own, again = (
        source.cams([source.read(sample)])[0]
        for source in (cams_of(model, ONE_VIEW), cams_of(loaded, ONE_VIEW))
    )
    assert own.maps.shape == (2, 50, 91) and own.maps.std() > 0
    assert ((own.maps >= 0) & (own.maps <= 1)).all()
    assert torch.equal(own.maps, again.maps)


def test_features_from_the_cache_give_the_same(model, samples, tmp_path, monkeypatch):
    """What is there is not computed again: not for another view, nor by another classifier."""
    settings = replace(ONE_VIEW, scales=(1.0, 1.5))
    plain = CamsOfPatches(model, settings)
    expected = plain.cams([plain.read(sample) for sample in samples])
    encoder = encoder_of(model)
    passes = count_passes(monkeypatch, encoder)
    store = FeatureStore(encoder, ArrayCache(tmp_path / "cache"))
    cached = CamsOfPatches(model, settings, cache=store)
    cached.fill_cache(samples[1:])
    cached.fill_cache(samples)
    assert len(passes) == 2 * len(samples)
    computed = count_features(monkeypatch, cached.encoder)
    for _ in range(2):
        batch = [cached.read(sample) for sample in samples]
        for cams, own in zip(cached.cams(batch), expected, strict=True):
            assert torch.equal(cams.maps, own.maps)
    assert len(passes) == 2 * len(samples) and not computed


def test_what_the_cache_has_no_room_for_is_computed_in_the_batch(model, samples, monkeypatch):
    """Not photograph by photograph by those who read; filling ends where there is no room."""
    plain = CamsOfPatches(model, ONE_VIEW)
    expected = plain.cams([plain.read(sample) for sample in samples])
    encoder = encoder_of(model)
    one = encoder.features([encoder.read(samples[1], plain.views[0])])[0]
    size = sum(part.nbytes for part in (one.patches, one.token, *one.layers))
    monkeypatch.setattr(encoded, "CHUNK", 1)
    store = FeatureStore(encoder, ArrayCache(memory_mb=1.5 * size / MIB))
    cached = CamsOfPatches(model, ONE_VIEW, cache=store)
    passes = count_passes(monkeypatch, encoder)
    cached.fill_cache([samples[1], samples[0], samples[2]])
    assert len(passes) == 2  # one that is kept, one that is not
    monkeypatch.setattr(encoder, "encode", lambda _: pytest.fail("a pass of its own"))
    batch = [cached.read(sample) for sample in samples]
    assert [one.parts[0].dtype for one in batch] == [torch.uint8, torch.float16, torch.uint8]
    computed = count_features(monkeypatch, encoder)
    for cams, own in zip(cached.cams(batch), expected, strict=True):
        assert torch.equal(cams.maps, own.maps)
    assert len(computed) == 2


def test_the_cache_belongs_to_backbone_and_layers_alone(model):
    """Other settings of the classifier do not compute the features again."""
    identity = encoder_of(model).identity
    config = model.config
    for patches in ({"least_share": 0.1}, {"saliency_weight": 0.5}, {"short_side": 64}):
        model.config = replace(config, patches=replace(config.patches, **patches), pool="avg")
        assert encoder_of(model).identity == identity
    model.config = replace(config, patches=replace(config.patches, layers=(-1, 0)))
    assert encoder_of(model).identity != identity
    assert encoder_of(patch_model(3, seed=5)).identity != identity


def test_classes_that_nobody_gave(model, samples):
    """Those that are likelier than `predict_above`, with their probabilities."""
    sample = replace(samples[0], labels=None)
    source = CamsOfPatches(model, ONE_VIEW, 0.0)
    assert source.shows_a_class(sample)
    (all_of_them,) = source.cams([source.read(sample)])
    assert all_of_them.classes == (0, 1, 2)
    likely = all_of_them.probabilities
    (features,) = encoder_of(model).features([source.encoder.read(sample, source.views[0])])
    expected = model.class_probabilities(stacked(features).flatten(0, 1))
    assert likely == pytest.approx(expected.tolist(), abs=1e-6)
    middle = sorted(likely)[1]
    above = CamsOfPatches(model, ONE_VIEW, middle)
    (cams,) = above.cams([above.read(sample)])
    best = int(np.argmax(likely))
    assert cams.classes == (best,) and cams.probabilities == (likely[best],)
    given = replace(sample, labels=(best,))
    assert torch.equal(cams.maps, above.cams([above.read(given)])[0].maps)
    nothing = CamsOfPatches(model, ONE_VIEW)
    assert not nothing.shows_a_class(sample)
    (cams,) = nothing.cams([nothing.read(sample)])
    assert (cams.classes, cams.probabilities, len(cams.maps)) == ((), None, 0)


def test_features_are_those_of_the_last_block(model, samples):
    source = CamsOfPatches(model, replace(ONE_VIEW, scales=(1.0, 2.0)), with_features=True)
    for sample, cams in zip(samples, source.cams([source.read(s) for s in samples]), strict=True):
        (seen,) = encoder_of(model).features([source.encoder.read(sample, source.views[0])])
        expected = seen.patches.permute(2, 0, 1).float()
        assert cams.features.dtype == torch.float32
        assert torch.equal(cams.features, expected)


def test_a_photograph_in_memory_is_that_of_the_file(model, samples):
    """Also above `max_side`: the model sees what the file holds."""
    views = replace(ONE_VIEW, scales=(0.5, 1.0), flip=True)
    for source in (CamsOfPatches(model, views), CamsOfPatches(model, replace(views, max_side=20))):
        for sample in samples:
            pixels = np.array(Image.open(sample.image))
            (own,) = source.cams([source.read(sample)])
            (again,) = source.cams([source.inputs(sample, pixels)])
            assert torch.equal(own.maps, again.maps)


def test_max_side_changes_the_maps_not_what_the_model_sees(model, samples):
    sources = [CamsOfPatches(model, replace(ONE_VIEW, max_side=side)) for side in (None, 32)]
    for sample in samples[:2]:
        large, small = (source.cams([source.read(sample)])[0].maps for source in sources)
        assert max(small.shape[1:]) == 32 < max(large.shape[1:])
        shrunk = F.interpolate(large[None], small.shape[1:], mode="bilinear", antialias=True)[0]
        assert (shrunk - small).abs().mean() < 0.02


def test_photographs_turned_by_exif(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)  # seen as it is
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    turned = Sample("turned", tmp_path / "turned.png", (0,), None, "", exif="apply")
    upright = Sample("upright", tmp_path / "upright.png", (0,), None, "")
    source = CamsOfPatches(model, replace(ONE_VIEW, flip=True))
    one, other = source.cams([source.read(turned), source.read(upright)])
    assert one.maps.shape == (1, 64, 32)
    assert torch.equal(one.maps, other.maps)


def test_photographs_are_labelled_alike_in_any_batch(model, samples):
    source = CamsOfPatches(model, replace(ONE_VIEW, flip=True))
    batch = [source.read(sample) for sample in samples]
    for one, cams in zip(batch, source.cams(batch), strict=True):
        assert torch.equal(cams.maps, source.cams([one])[0].maps)
    assert source.fits([], batch[0]) and source.fits(batch[:2], batch[2])
    assert not source.fits([batch[0]] * 4, batch[0])


def test_a_threshold_of_one_half_takes_the_likeliest_label():
    """Among background and classes, and with the probabilities that the maps were made from."""
    shares = torch.rand(4, 9, 11).softmax(0)
    maps = against_background(shares)
    assert_close(maps, against_likeliest(shares), atol=1e-6, rtol=1e-5)
    assert_close(scores_from_odds(maps, 0.5), shares, atol=1e-5, rtol=1e-4)
    assert torch.equal(labels_from_cams(maps, 0.5), shares.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("background", [1e-4, 1e-7, 1e-12, 0.0])
def test_classes_are_told_apart_where_there_is_no_background(background):
    """The second class of two has most of a pixel, and the background next to nothing."""
    shares = torch.tensor([background, 0.3, 0.7 - background])[:, None, None]
    maps = against_background(shares)
    scores = scores_from_odds(maps, 0.5)
    assert_close(scores, shares, atol=1e-6, rtol=1e-6)
    assert best_labels(scores)[0].item() == labels_from_cams(maps, 0.5).item() == 2


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_scores_by_odds(threshold):
    """The odds of the background are multiplied; the classes stay as they are to each other."""
    shares = (3 * torch.randn(3, 5, 7, dtype=torch.float64)).softmax(0)
    maps = against_background(shares).float()
    scores = scores_from_odds(maps, threshold)
    expected = torch.cat([threshold * shares[:1], (1 - threshold) * shares[1:]])
    expected = expected / expected.sum(0)
    assert_close(scores, expected.float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(scores.argmax(0).to(torch.uint8), labels_from_cams(maps, threshold))


@pytest.mark.parametrize("maps", [torch.zeros(2, 2, 2), torch.ones(2, 2, 2), torch.zeros(0, 2, 2)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_scores_of_certain_maps_are_finite(maps, threshold):
    scores = scores_from_odds(maps, threshold)
    assert scores.isfinite().all() and (scores >= 0).all()
    assert_close(scores.sum(0), torch.ones(2, 2))


class Given:
    """A source of one photograph whose maps hold odds."""

    device = torch.device("cpu")

    def __init__(self, maps):
        self.given = Cams((0, 2), maps, odds=True)

    def cams(self, batch):
        return [self.given for _ in batch]


@pytest.fixture
def given(tmp_path):
    """A source of odds, a photograph, and the probabilities behind the maps."""
    (sample,) = photographs(tmp_path, [(16, 24)])
    shares = (2 * torch.randn(3, 16, 24)).softmax(0)
    source = Given(against_background(shares))
    return source, CamsOfPatches(patch_model(3), ONE_VIEW).read(sample), shares


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_soft_labels_are_the_probabilities(given, temperature):
    """At temperature 1 those behind the maps, in cells."""
    source, inputs, shares = given
    (result,) = label_maps(source, [inputs], 0.5, [], softening=Softening(temperature, 4))
    powers = shares.double() ** (1 / temperature)
    cells = (powers / powers.sum(0)).unflatten(1, (4, 4)).unflatten(3, (6, 4)).mean((2, 4))
    assert np.abs(result.arrays()["soft"] - 255 * cells.numpy()).max() <= 1


def test_confidence_is_the_probability_of_the_label(given):
    source, inputs, shares = given
    (result,) = label_maps(source, [inputs], 0.5, [], emit=["confidence"])
    np.testing.assert_allclose(result.arrays()["confidence"], shares.amax(0), atol=1e-4)
    np.testing.assert_array_equal(result.arrays()["plain"], shares.argmax(0))


def test_stability_multiplies_the_odds_of_the_background(given):
    source, inputs, shares = given
    options = {"emit": ["confidence"], "confidence": "stability"}
    (result,) = label_maps(source, [inputs], 0.5, [], **options)
    label = shares.argmax(0)
    agree = []
    for factor in FACTORS:
        other = torch.cat([factor * shares[:1], shares[1:]])
        agree.append(other.argmax(0) == label)
    expected = torch.stack(agree).float().mean(0)
    np.testing.assert_allclose(result.arrays()["confidence"], expected, atol=1e-6)
    assert expected.min() < 0.6 and expected.max() == 1
    refiners = choose_refiners(LabelConfig(refiners=({"crf": {"start": "scores"}},)))
    (refined,) = label_maps(source, [inputs], 0.5, refiners, **options)
    ways = refined.arrays()["confidence"] * (len(FACTORS) + 2)
    np.testing.assert_allclose(ways, np.round(ways), atol=1e-4)


def test_a_threshold_for_each_photograph_and_propagation(model, samples):
    source = CamsOfPatches(model, ONE_VIEW, with_features=True)
    refiners = choose_refiners(LabelConfig(refiners=({"propagation": {"neighbours": 9}},)))
    batch = [source.read(sample) for sample in samples[:2]]
    for sample, result in zip(samples, label_maps(source, batch, "auto", refiners), strict=False):
        maps = result.arrays()
        assert maps["refined"].shape == np.array(Image.open(sample.image)).shape[:2]
        assert set(np.unique(maps["refined"])) <= set(range(len(sample.labels) + 1))
        assert (maps["refined"] != maps["plain"]).any()
