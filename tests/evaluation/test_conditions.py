"""How masks were made, in words."""

from __future__ import annotations

import pytest

from weaktr.config import LabelConfig
from weaktr.evaluation.conditions import refinement_name
from weaktr.refine import choose_refiners


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "voc_cam"),
        ({"crf": None}, "none"),
        ({"crf": "none"}, "none"),
        ({"crf": {"gaussian": [3, 3]}}, "explicit"),
        ({"refiners": ()}, "none"),
        ({"refiners": ({"crf": "none"},)}, "none"),
        ({"refiners": ({"crf": None},)}, "voc_cam"),
        ({"refiners": ({"crf": {"gaussian": [3, 3]}}, "crf")}, "explicit + voc_cam"),
        ({"refiners": ({"crf": {}},)}, "explicit"),
        ({"refiners": ({"crf": {"start": "scores"}},)}, "voc_cam from scores"),
        ({"refiners": ({"crf": {"start": "scores"}},), "crf": None}, "none"),
        ({"refiners": ({"crf": {"start": "labels", "gaussian": [3, 3]}},)}, "explicit from labels"),
        ({"refiners": ("propagation", "crf")}, "propagation + voc_cam"),
    ],
)
def test_refinement_in_words(settings, words):
    """The word "none" stands exactly where nothing is refined."""
    config = LabelConfig(**settings)
    assert refinement_name(config) == words
    assert (words == "none") == (not choose_refiners(config))


def test_other_refiners_are_named_with_their_settings():
    config = LabelConfig(refiners=({"walk": {"steps": 3}}, "crf"))
    assert refinement_name(config) == "walk {'steps': 3} + voc_cam"
