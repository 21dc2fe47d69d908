"""What reaches the terminal."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from weaktr import progress
from weaktr.cli.data import run_stats
from weaktr.data import Classes, Manifest, Sample
from weaktr.evaluation import overview, report
from weaktr.evaluation.pairs import evaluate_pairs
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


#: Names that rich would take for styles or signs of feeling.
MARKED = ["[/x]", "dog [puppy]", "cat :smile:", "[red]", "[bold]b[/bold]"]


@pytest.fixture
def printed(monkeypatch):
    """What the tables print."""
    stream = io.StringIO()
    plain = PlainConsole(file=stream, soft_wrap=True, width=400)
    for module in (progress, overview, report):
        monkeypatch.setattr(module, "console", plain)
    return stream


@pytest.mark.parametrize("name", MARKED)
def test_names_are_no_markup_wherever_they_are_printed(name, printed):
    truth = np.array([[0, 1, 1]], np.uint8)
    labels = evaluate_pairs([0], lambda _: (truth[:, ::-1], truth), 2)
    conditions = report.Conditions(f"1{name}", note=f"2{name}")
    row = report.Row("miou", f"3{name}", conditions, labels.scores, labels)
    names = ["background", f"4{name}"]
    report.print_rows([row], f"5{name}")
    report.print_classes([row, row], names)
    report.print_confused(row, names)
    overview.print_labels({1: 1}, names, 1)
    samples = (Sample("a", Path("a.png"), (0,), None, ""),)
    run_stats(Manifest(f"6{name}", f"7{name}", Classes((f"8{name}",)), samples), progress.console)
    progress.console.print(f"9{name}")
    text = printed.getvalue()
    assert [k for k in range(1, 10) if f"{k}{name}" not in text] == []


def test_bars_take_names_as_they_are(monkeypatch):
    stream = io.StringIO()
    terminal = PlainConsole(file=stream, force_terminal=True, width=200)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.Meter("a[/x]:smile:", 1) as meter:
        meter.advance(note="b[/x]:smile:")
    assert "a[/x]:smile:" in stream.getvalue() and "b[/x]:smile:" in stream.getvalue()


@pytest.mark.parametrize("is_minor", [False, True])
def test_work_of_nothing_has_no_bar(is_minor, monkeypatch):
    stream = io.StringIO()
    terminal = PlainConsole(file=stream, force_terminal=True, width=40)
    monkeypatch.setattr(progress, "console", terminal)
    assert list(progress.track([], "looking", 0, is_minor=is_minor)) == []
    assert stream.getvalue() == ""


def test_a_narrow_terminal_shows_how_much_is_done(monkeypatch):
    stream = io.StringIO()
    terminal = PlainConsole(file=stream, force_terminal=True, width=40)
    monkeypatch.setattr(progress, "console", terminal)
    list(progress.track(range(1234), "looking at headers", 1234))
    assert "1234/1234" in stream.getvalue()


def test_warnings_of_python_are_a_line_of_the_log(caplog):
    with warnings.catch_warnings():
        progress.set_up_logging()
        warnings.simplefilter("always")
        caplog.set_level(logging.INFO, "weaktr")
        progress.log.addHandler(caplog.handler)
        warnings.warn("Glyph 27 (\x1b) is missing\nfrom a font", UserWarning, stacklevel=1)
        progress.log.removeHandler(caplog.handler)
    assert caplog.messages == ["UserWarning: Glyph 27 (\\x1b) is missing\\nfrom a font"]
    assert isinstance(logging.lastResort.formatter, PlainFormatter)
