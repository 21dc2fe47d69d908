"""Which photographs are held out, and which a try takes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from weaktr.data.hold_out import hold_out, spread


def photographs(count: int, classes: int = 5) -> dict[str, tuple[str, ...]]:
    rng = random.Random(0)
    names = [f"class {k}" for k in range(classes)]
    return {f"{k}.jpg": tuple(rng.sample(names, rng.randint(0, 2))) for k in range(count)}


def test_the_share_is_about_that_and_the_order_does_not_matter():
    labels = photographs(1000)
    held = hold_out(labels, 0.2)
    assert 170 < len(held) < 230
    assert hold_out(dict(reversed(labels.items())), 0.2) == held
    assert hold_out(labels, 0) == set()


def test_sides_stay_when_photographs_are_added():
    labels = photographs(1000)
    before = hold_out({name: labels[name] for name in list(labels)[:500]}, 0.2)
    assert before == hold_out(labels, 0.2) & set(list(labels)[:500])


def test_half_of_every_class_is_trained_on():
    labels = {f"{k}.jpg": (f"class {k // 2}", "all") for k in range(60)}
    held = hold_out(labels, 0.5)
    counts = Counter(label for name in labels.keys() - held for label in labels[name])
    assert all(counts[f"class {k}"] >= 1 for k in range(30))
    assert counts["all"] >= 30 and held
    assert hold_out({"a.jpg": ("cat",), "b.jpg": ("dog",)}, 0.5) == set()


def test_one_is_held_out_at_least_and_copies_never_are():
    labels = {f"{k}.jpg": ("cat",) for k in range(4)}
    assert len(hold_out(labels, 0.001)) == 1
    assert hold_out(labels, 0.5, kept=labels) == set()


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_no_share(share):
    with pytest.raises(ValueError, match=r"--hold-out: expected a share from 0 to 0\.5"):
        hold_out({}, share)


def test_a_few_of_the_common_classes():
    labels = {f"{k}.jpg": ("cat",) if k % 2 else ("dog",) for k in range(100)}
    labels |= {f"r{k}.jpg": (f"rare {k}",) for k in range(50)} | {"none.jpg": ()}
    chosen = spread(labels, 30)
    assert len(chosen) == 30 and chosen == spread(dict(reversed(labels.items())), 30)
    counts = Counter(label for name in chosen for label in labels[name])
    assert counts["cat"] > 5 and counts["dog"] > 5
    assert spread({"a": ("cat",)}, 30) == ["a"]
