"""Pickles of strangers: nothing that they name is imported, called or changed."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import time
from typing import Any

import pytest

from weaktr.data.pickles import Built, Maker, Refused, count_values, read_pickle


def read(content: bytes, table: dict[str, Any] | None = None) -> Any:
    return read_pickle(io.BytesIO(content), table or {})


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -1, 255, 256, 70_000, -(2**40), 2**80], "b": (1.5, float("inf"), None, True)},
        [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, "", "Ω" * 300, b"", b"\xff" * 300],
        {1: {2: {3: False}}, None: 1, b"key": "value"},
        collections.OrderedDict(a=1, b=2),
        ["again", ["again"], "again"],
    ],
)
def test_plain_values_come_back(protocol, value):
    assert read(pickle.dumps(value, protocol)) == value


def test_a_value_that_holds_itself():
    value: list[Any] = []
    value.append(value)
    again = read(pickle.dumps(value))
    assert again[0] is again


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", [set(), {1, 2}, frozenset({3})])
def test_sets_are_what_the_table_says(protocol, value):
    """Nothing is hashed: a set of tuples of tuples could take for ever."""
    made = Point(0)
    of_a_set = Maker(lambda items=(): made)
    names = [f"{module}.{kind}" for module in BUILTINS for kind in ("set", "frozenset")]
    assert read(pickle.dumps([value, 7], protocol), dict.fromkeys(names, of_a_set)) == [made, 7]


def test_bytearrays_are_bytes():
    assert read(pickle.dumps(bytearray(b"\xff\0a"), 5)) == b"\xff\0a"


BUILTINS = ("builtins", "__builtin__")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [print, argparse.Namespace(), Exception("x"), {1}, range(3), 1j])
def test_what_the_table_lacks_is_refused(value, protocol):
    with pytest.raises(ValueError, match=r"could run code|opcode"):
        read(pickle.dumps(value, protocol))


class Point(Built):
    def __init__(self, x: int) -> None:
        self.x, self.y = x, 0

    def build(self, state: Any) -> None:
        self.y = state["y"]


TABLE = {"m.Point": Maker(Point), "m.five": 5}


def test_makers_constants_and_states():
    point = read(b"cm\nPoint\n(I3\ntR(S'y'\nI4\ndb.", TABLE)
    assert (point.x, point.y) == (3, 4)
    assert read(b"cm\nfive\n.", TABLE) == 5
    assert read(b"\x8c\x01m\x8c\x04five\x93.", TABLE) == 5


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cm\nPoint\n(S'make'\nNdb.", "gives attributes to a Maker"),
        (b"cm\nfive\n(S'real'\nNdb.", "gives attributes to a int"),
        (b"](S'append'\nNdb.", "gives attributes to a list"),
        (b"cm\nfive\n(I1\ntR.", "calls something that is no function"),
        (b"S'print'\n(I1\ntR.", "calls something that is no function"),
        (b"cm\nPoint\n(I1\nI2\ntR.", "damaged pickle"),
        (b"cm\nPoint\nI1\nR.", "no function"),
        (b"(ios\nsystem\n.", "opcode"),
        (b"\x82\x01.", "opcode"),
        (b"](I1\n\x90.", "adds items to a list"),
        (b"(I1\n\x91.", "asks for builtins.set"),
        (b"I1\nI2\na.", "appends to a int"),
        (b"I1\nI2\nI3\ns.", "gives items to a int"),
        (b"}cm\nPoint\nI3\ns.", "key of type Maker"),
        (b"}(I1\ntI3\ns.", "key of type tuple"),
        (b"}(I1\nI2\nI3\nu.", "argument 2 is shorter"),
        (b"I1\n", "cut off"),
        (b"", "cut off"),
        (b".", "damaged pickle"),
        (b"t.", "damaged pickle"),
        (b"g5\n.", "damaged pickle"),
        (b"Q.", "refers to something"),
        (b"I1\nQ.", "refers to something outside"),
        (b"\x8a\x05\x01.", "expected 5 bytes|not enough data"),
        (b"B\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x7fabc.", "expected"),
        (b"X\xff\xff\xff\xffabc.", "expected"),
        (b"\xff.", "opcode"),
        (b"I" + b"9" * 5000 + b"\n.", "Exceeds the limit|4300"),
        (b"I1\nI2\n\x93.", "names something without text"),
    ],
)
def test_damaged_and_hostile_pickles(content, reason):
    with pytest.raises(ValueError, match=reason):
        read(content, TABLE)


@pytest.mark.parametrize("module", ["os", "builtins", "m.Point", "a\n\x1b[31m" + "x" * 10_000])
def test_a_refusal_is_one_short_line(module):
    content = b"X" + struct.pack("<I", len(module)) + module.encode() + b"\x8c\x06system\x93."
    with pytest.raises(Refused) as caught:
        read(content, TABLE)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "content", [b"B" + struct.pack("<I", 10**6) + b"x" * 99, b"S" + b"x" * 10**5 + b"\n.", b"g%d\n"]
)
def test_a_fault_is_one_short_line(content):
    with pytest.raises(ValueError, match=r"^\S.*$") as caught:
        read(content.replace(b"%d", b"9" * 4000))
    assert len(str(caught.value)) < 300


def test_no_memory_beyond_the_file():
    """A memo index of 2^31 and bytes made of one text ten thousand times."""
    assert read(b"I7\nr\xff\xff\xff\x7fj\xff\xff\xff\x7f.") == 7
    text = b"X" + struct.pack("<I", 10_000) + b"x" * 10_000
    calls = b"h\x01h\x00\x85R" * 10_000
    with pytest.raises(ValueError, match="more bytes than it holds"):
        read(text + b"q\x00c_codecs\nencode\nq\x01" + calls + b".")
    table = {"m.text": Maker(lambda text: text + "!")}
    with pytest.raises(ValueError, match="more bytes than it holds"):
        read(text + b"q\x00cm\ntext\nq\x01" + calls + b".", table)


def test_calls_get_what_can_be_hashed_and_shown():
    table = {"m.size": Maker(lambda value: len(repr(value))), "m.Point": Maker(Point)}
    assert read(b"cm\nsize\n(I1\nI2\nt\x85R.", table) == len("(1, 2)")
    wide, deep = b")" + b"q\x00h\x00\x86" * 60, b")" + b"\x85" * 10_000
    for value, reason in ((wide, "more values than"), (deep, "more than 100 levels")):
        for around in (b"cm\nsize\n%b\x85R.", b"cm\nPoint\n(I3\ntR}S'y'\n%bsb.", b"%bQ."):
            with pytest.raises(ValueError, match=reason):
                read_pickle(io.BytesIO(around.replace(b"%b", value)), table, refer=hash)


def test_count_values():
    assert count_values({"a": [1, (2, 3)], "b": []}, 7) == 7
    with pytest.raises(ValueError, match="more values than"):
        count_values({"a": [1, (2, 3)], "b": []}, 6)


def test_keys_cannot_take_for_ever():
    """The hash of a tuple of twice the tuple below, a hundred times, has 2^100 steps."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="key of type tuple"):
        read(b"})" + b"q\x00h\x00\x86" * 100 + b"Ns.")
    with pytest.raises(ValueError, match="key of type tuple"):  # ends the process where hashed
        read(b"})" + b"\x85" * 200_000 + b"Ns.")
    assert time.monotonic() - start < 60
