"""What is known of masks without truth: numbers by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from weaktr.data import Sample
from weaktr.report.photographs import Photo, chosen, class_rows, in_turn, strips


def photo(name="a", given=(0,), areas=None, sure=None, *, is_edited=False):
    sample = Sample(name, Path("a.png"), given, None, "")
    areas = {0: 0.5, 1: 0.5} if areas is None else areas
    return Photo("predict", sample, Path("m.png"), (4, 4), areas, sure or {}, is_edited)


def test_a_label_on_too_few_pixels_is_missing():
    one = photo(given=(0, 1, 2), areas={0: 0.9, 1: 0.0991, 2: 0.0009})
    assert one.shown == {1} and one.missing == {2, 3} and one.extra == set()


def test_classes_that_the_labels_do_not_name_are_extra():
    one = photo(given=(0,), areas={0: 0.4, 1: 0.2, 4: 0.3, 255: 0.1})
    assert one.extra == {4} and one.missing == set()
    unknown = photo(given=None, areas={0: 0.5, 4: 0.5})
    assert unknown.given is None and not unknown.extra and not unknown.missing


def test_confidence_is_the_mean_over_the_pixels_of_all_classes():
    sure = {0: 0.1, 1: 0.5, 2: 0.9}
    assert photo(areas={0: 0.6, 1: 0.3, 2: 0.1}, sure=sure).confidence == pytest.approx(0.6)
    assert photo(areas={0: 1.0}, sure={0: 0.7}).confidence == 0.7
    assert photo().confidence is None


@pytest.mark.parametrize(
    ("given", "areas", "doubt"),
    [
        ((0,), {0: 0.0999, 1: 0.9001}, "full"),
        ((0,), {1: 1.0}, "full"),
        (None, {1: 1.0}, "full"),
        ((0,), {0: 0.1, 1: 0.9}, None),
        ((0,), {0: 0.05, 1: 0.15, 255: 0.8}, None),  # a quarter of what is decided
        ((0,), {0: 0.01, 1: 0.19, 255: 0.8}, "full"),
        ((0,), {255: 1.0}, None),  # which is missing
        (None, {0: 1.0}, "empty"),
        (None, {0: 0.9995, 1: 0.0005}, "empty"),
        ((0,), {0: 1.0}, None),  # which is missing
        ((), {0: 1.0}, None),
    ],
)
def test_masks_are_suspicious_by_themselves(given, areas, doubt):
    assert photo(given=given, areas=areas).doubt == doubt


def test_a_mask_that_somebody_changed_may_fill_its_photograph():
    assert photo(areas={1: 1.0}, is_edited=True).doubt is None


def test_the_worst_come_first():
    everywhere = {0: 0.01, 1: 0.99}
    in_order = [
        photo("two missing", given=(0, 1, 2), sure={1: 0.9}),
        photo("missing and full", given=(0, 1), areas=everywhere, sure={1: 0.95}),
        photo("full", areas=everywhere, sure={1: 0.96}),
        photo("missing", given=(0, 1), sure={1: 0.4}),
        photo("unsure", sure={1: 0.3}),
        photo("sure", sure={1: 0.9}),
        photo("drawn", is_edited=True),
    ]
    in_order[:2] = in_order[1::-1]  # of as many, the whole mask comes before single labels
    ranked = sorted(in_order[::-1], key=Photo.rank)
    assert [one.sample.name for one in ranked] == [one.sample.name for one in in_order]


def test_the_worst_of_a_class_are_those_that_cover_everything_too():
    photos = [photo("good", sure={1: 0.5}), photo("full", areas={1: 1.0}, sure={1: 0.99})]
    assert [one.sample.name for one in strips(photos, 1)["worst"]] == ["full"]


def test_rows_of_classes():
    photos = [
        photo(given=(0,), areas={0: 0.8, 1: 0.2}, sure={1: 0.5}),
        photo(given=(0, 1), areas={0: 0.4, 1: 0.6}, sure={1: 0.9}),
        photo(given=(1,), areas={0: 0.9, 1: 0.1}, sure={1: 0.3}),
        photo(given=None, areas={0: 0.5, 1: 0.5}),
    ]
    one, two = class_rows(photos, 5)  # of four classes two occur
    assert (one.label, one.given, one.shown, one.found, one.unknown) == (1, 2, 4, 2, 1)
    assert one.area == pytest.approx((0.2 + 0.6 + 0.1 + 0.5) / 4)
    assert one.confidence == pytest.approx((0.2 * 0.5 + 0.6 * 0.9 + 0.1 * 0.3) / 0.9)
    assert (two.label, two.given, two.shown, two.area, two.confidence) == (2, 2, 0, None, None)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 18, 50])
def test_strips_show_no_photograph_twice(count):
    photos = [photo(str(i), sure={1: (i * 7 % count) / count}) for i in range(count)]
    strip = strips(photos, 1)
    shown = [one for own in strip.values() for one in own]
    assert len({id(one) for one in shown}) == len(shown) == min(count, 18)
    means = [one.confidence_of[1] for kind in ("worst", "typical") for one in strip[kind]]
    means += [one.confidence_of[1] for one in reversed(strip["best"])]
    assert means == sorted(means)


def test_the_worst_of_a_class_lack_it():
    lacking = photo("lacking", areas={0: 1.0}, sure={0: 0.99})
    photos = [photo("good", sure={1: 0.9}), lacking, photo("other", given=(2,), areas={3: 1.0})]
    strip = strips(photos, 1)
    assert [one.sample.name for one in strip["worst"]] == ["lacking"]
    assert [one.sample.name for one in strip["best"]] == ["good"]


def test_of_too_many_the_first_and_an_even_sample_are_chosen():
    photos = [photo(str(i)) for i in range(1000)]
    first = in_turn([{"worst": photos[500:560], "best": photos[990:]}])
    names = [int(one.sample.name) for one in chosen(photos, first, 100)]
    assert names == sorted(set(names)) and len(names) == 100
    assert {*range(500, 540)} <= {*names} and {*range(990, 1000)} <= {*names}
    others = [name for name in names if not (500 <= name < 540 or name >= 990)]
    assert len(others) == 50 and max(b - a for a, b in pairwise(others)) < 70
    assert chosen(photos, iter(()), 1000) == photos
