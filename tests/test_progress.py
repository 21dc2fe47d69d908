"""What reaches the terminal."""

from __future__ import annotations

import io
import logging

import pytest
from rich.table import Table
from rich.text import Text

from weaktr.messages import printable
from weaktr.progress import PlainConsole, PlainFormatter

#: Names of files that would act on a terminal, turn the writing, or cannot be encoded.
HOSTILE = [
    "a\x1b[31mb",
    "a\x07b",
    "a\x9bb",
    "a\rb",
    "a\u202eb",
    "a\u2028b",
    "a\udcffb",
    "\x1b]0;x\x07",
]


def test_other_texts_stay_as_they_are():
    for text in ("plain", "zwölf Äpfel, 犬 und 🐕", "two\nlines\tand a tab", "C:\\new"):
        assert printable(text) == text


@pytest.mark.parametrize("name", HOSTILE)
def test_control_characters_are_escaped_wherever_they_are_printed(name):
    assert printable(name).isascii() and printable(name).isprintable()
    stream = io.StringIO()
    console = PlainConsole(file=stream, soft_wrap=True, width=150)
    table = Table(title=Text(name))
    table.add_column("file")
    table.add_row(Text(name))
    for thing in (Text(name, style="bold red"), table, name.replace("[", "(")):
        console.print(thing)
    record = logging.LogRecord("weaktr", logging.INFO, "", 0, "read %s", (name,), None)
    stream.write(PlainFormatter("%(message)s").format(record))
    written = stream.getvalue()
    assert not [letter for letter in written if not letter.isprintable() and letter != "\n"]
    assert written.isascii() or "a" in written
    written.encode()


def test_styles_still_reach_a_terminal():
    stream = io.StringIO()
    PlainConsole(file=stream, force_terminal=True, width=80).print(Text("red", style="red"))
    assert "\x1b[31mred\x1b[0m" in stream.getvalue()
