"""Sliding-window inference against the published code (mmseg, OpenCV)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from tests.inference.published import E, inputs_of, scores_of, segmenter, settings_of
from tests.models import small
from tests.parity.recipe import GOLDEN
from tests.tolerances import assert_golden
from weaktr.inference.predictions import Predictor
from weaktr.inference.probabilities import for_ensemble, for_prediction, patch_features

CRF = load_file(GOLDEN / "E_crf.safetensors")


@pytest.fixture(scope="module")
def model():
    return segmenter()


@pytest.mark.parametrize("window_batch", [1, 2, 7])
def test_multi_scale_scores_of(model, window_batch):
    settings = settings_of(window_batch=window_batch)
    prob = scores_of(for_prediction(model, settings), E["image"], settings)
    assert_golden(torch.from_numpy(prob), torch.from_numpy(E["prob.multi_scale"]))


@pytest.mark.parametrize("ensemble", ["plain", "published"])
def test_any_batch_of_windows_gives_the_same(model, ensemble):
    """Windows of several scales and flips in one forward pass.

    To a few roundings: several threads cut larger batches into other pieces.
    """
    one, *others = (
        scores_of(for_prediction(model, settings), E["image"], settings)
        for settings in (
            settings_of(window_batch=count, ensemble=ensemble) for count in (1, 2, 7, 64)
        )
    )
    for other in others:
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(other.argmax(0), one.argmax(0))


def test_windows_that_do_not_fit_the_memory_go_in_smaller_passes(model, monkeypatch, caplog):
    """A batch of photographs is made smaller by who made it, a photograph here."""
    settings = settings_of(window_batch=7)
    expected = scores_of(for_prediction(model, settings), E["image"], settings)
    predictor = Predictor(model, settings)
    passes, outputs = [], predictor.model.patch_outputs

    def limited(windows):
        passes.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs(windows)

    monkeypatch.setattr(predictor.model, "patch_outputs", limited)
    one = inputs_of(E["image"], settings)
    for _ in range(2):
        (scores,) = predictor.probabilities([one])
        np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-6)
    assert passes[:3] == [7, 4, 2] and max(passes[2:]) == 2
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        f"the memory does not hold {count} windows at a time" for count in (7, 4)
    ]
    predictor = Predictor(model, settings)
    monkeypatch.setattr(predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(predictor.model, "patch_outputs", limited)
    with pytest.raises(torch.OutOfMemoryError):
        predictor.probabilities([one, one])


def test_single_scale_probabilities(model):
    prob = scores_of(model, E["image"], settings_of(ratios=(1.0,), flip=False))
    expected = torch.from_numpy(E["prob.single_scale"])
    assert_golden(torch.from_numpy(prob)[:, ::2, ::2], expected)


def test_published_ensemble(model):
    settings = settings_of(ensemble="published", window_batch=2)
    prob = scores_of(for_prediction(model, settings), E["image"], settings)
    early = (prob - E["prob.multi_scale"]) / 0.8
    assert_golden(
        torch.from_numpy(early)[:, ::2, ::2],
        torch.from_numpy(E["prob.multi_scale_multimask_p1"]),
    )
    assert_golden(torch.from_numpy(prob[E["process_batch.keys"]]), torch.from_numpy(CRF["prob"]))
    np.testing.assert_array_equal(prob.argmax(0), E["process_batch.pred"])
    np.testing.assert_array_equal(np.unique(prob.argmax(0)), E["process_batch.keys"])


def test_the_ensemble_needs_a_mask_transformer():
    linear = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs a mask transformer, got 'linear'"):
        for_ensemble(linear, "published")


@pytest.mark.parametrize("ratios", [(0.5, 1.0, 1.5), (0.5, 0.75)])
def test_features_are_the_encoders_of_the_whole_image(model, ratios):
    settings = settings_of(ratios=ratios)
    one = inputs_of(E["image"][:, :90], settings)
    features = patch_features(model, one, settings)
    scaled = one.scaled[1].permute(2, 0, 1).float()  # of the ratio nearest to 1
    if min(scaled.shape[1:]) < settings.window:  # enlarged, as for the windows
        shape = [int(side * settings.window / min(scaled.shape[1:])) for side in scaled.shape[1:]]
        scaled = F.interpolate(scaled[None], shape, mode="bilinear", align_corners=False)[0]
    mean, std = (
        torch.tensor(np.round(255 * np.array(values), 2)).float().view(3, 1, 1)
        for values in model.normalization
    )
    tokens = model.vit(((scaled - mean) / std)[None])[0, model.vit.num_prefix_tokens :]
    grid = (scaled.shape[1] // 16, scaled.shape[2] // 16)
    assert_golden(features, tokens.T.unflatten(1, grid).detach())


def test_classes_that_are_not_given_take_nothing_from_the_others(model, monkeypatch):
    """Where the model is nearly certain of a class that is not given, the others stay apart."""
    settings = settings_of(ratios=(1.0,), flip=False)
    predictor = Predictor(model, settings, given_classes=True)
    one = inputs_of(E["image"], settings)
    one = one._replace(sample=replace(one.sample, labels=(1,)))
    height, width = one.photograph.pixels.shape[:2]
    sure = torch.full((model.num_labels, height, width), 1e-9)
    sure[:3] = torch.tensor([1e-8, 1.0, 3e-8])[:, None, None]
    monkeypatch.setattr(predictor, "probabilities", lambda _: [sure])
    (result,) = predictor.label_maps([one], emit=("scores",))
    scores = result.arrays()["scores"]
    np.testing.assert_allclose(scores[0], 0.25, rtol=1e-5)
    np.testing.assert_allclose(scores[2], 0.75, rtol=1e-5)
    assert scores[1].max() == scores[3:].max() == 0
    assert set(np.unique(result.mask())) == {2}
