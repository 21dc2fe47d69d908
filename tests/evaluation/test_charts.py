"""Charts and pictures: what is written in them, whatever the names are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text

from weaktr.evaluation import charts, folders, pictures
from weaktr.evaluation.iou import ConfusionSum, scores
from weaktr.evaluation.report import Conditions, Row

#: Formulas, whole and broken, controls of a terminal, letters without a glyph, half a letter.
STRANGE = ["a$_$b", "$\\frac{$", "$x^2$", "a\x1b[31mb", "猫", "a\udcffb", "_cat", "[/red]", "a\nb"]
#: As they stand in a picture.
SHOWN = ["a$_$b", "$\\frac{$", "$x^2$", "a\\x1b[31mb", "猫", "a\\udcffb", "_cat", "[/red]", "a\\nb"]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the figures that are written."""
    found: list[str] = []
    save = Figure.savefig

    def look(figure: Figure, *args, **options) -> None:
        save(figure, *args, **options)
        found.extend(text.get_text() for text in figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", look)
    return found


def test_names_of_any_kind_are_drawn_as_they_are(texts: list[str], tmp_path: Path) -> None:
    values = np.arange(len(STRANGE), dtype=float)
    image = np.zeros((8, 8, 3), np.uint8)
    mask = np.arange(1, 10, dtype=np.uint8).repeat(8)[:64].reshape(8, 8)
    settings = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bars, long = charts.Bars("IoU", values), "x$^$ " * 80
        charts.class_bars([bars], STRANGE, tmp_path / "a.svg", title="$_$", caption=long)
        assert {*SHOWN, "$_$"} <= {*texts}
        (caption,) = (text for text in texts if text.startswith("x$^$ x$^$"))
        assert caption.split() == ["x$^$"] * 80 and caption.count("\n") == 3
        texts.clear()
        strips = [pictures.Strip(name, image, [pictures.Panel(name, mask)]) for name in STRANGE[:2]]
        pictures.draw(strips, ["background", *STRANGE], tmp_path / "b.png", "a$_$b \x07")
    assert {*SHOWN[:8], "a$_$b \\x07"} <= {*texts}
    assert dict(matplotlib.rcParams) == settings and not pyplot.get_fignums()


def test_numbers_are_there_where_no_chart_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    total = ConfusionSum(2)
    total.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))

    def fail(*_, **__) -> None:
        raise ValueError("\nno\nfont")

    monkeypatch.setattr(Figure, "savefig", fail)
    row = Row("miou", "masks", Conditions("val"), scores(total))
    (tmp_path / "classes.png").write_bytes(b"of older numbers")
    with caplog.at_level("WARNING", "weaktr"):
        written = folders.write_report([row], ["background", "cat"], tmp_path)
    assert written == [tmp_path / "metrics.json"]
    (written,) = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert written["scores"]["miou"] == 100
    assert not (tmp_path / "classes.png").exists() and not pyplot.get_fignums()
    assert "classes.png: the chart is not drawn: \\nno\\nfont" in caplog.text
