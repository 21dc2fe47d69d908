"""`bench/report.py`: from a pytest-benchmark result to the README's table."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "bench" / "report.py"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("bench_report", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(group, row, median, baseline=False, items=1, peak=12.4):
    facts = {"row": row, "baseline": baseline, "items": items, "peak_mib": peak, "error": 2e-6}
    return {"group": group, "stats": {"median": median}, "extra_info": facts}


RESULT = {
    "datetime": "2026-01-02T03:04:05",
    "commit_info": {"id": "0123456789abcdef", "dirty": False},
    "machine_info": {
        "cpu": {"brand_raw": "A Processor"},
        "threads": 1,
        "torch": "2.14",
        "weaktr": "0.1.0",
    },
    "benchmarks": [
        entry("crf", "torch", 0.5),
        entry("train", "weaktr", 2.0, items=4, peak=None),
        entry("crf", "pydensecrf", 0.25, baseline=True),
    ],
}


def test_table(report):
    assert report.table(RESULT).splitlines() == [
        "A Processor, 1 thread, float32, torch 2.14, weaktr 0.1.0 at commit 0123456789ab, "
        "2026-01-02; medians.",
        "",
        *report.HEADER,
        "| crf | torch | 500.0 | 2.00 | 12 | 0.50x | 2e-06 |",
        "|  | pydensecrf | 250.0 | 4.00 | 12 | 1.00x | 2e-06 |",
        "| train | weaktr | 500.0 | 2.00 |  |  | 2e-06 |",
    ]


def test_table_says_what_was_not_committed(report):
    edited = RESULT | {"commit_info": {"id": "unversioned", "dirty": True}}
    assert "at commit unversioned with changes not committed, " in report.table(edited)


def in_series(group, row, median, **facts):
    benchmark = entry(group, row, median, **facts)
    benchmark["extra_info"]["series"] = "crf L4"
    return benchmark


SERIES = [
    in_series("crf a L4", "cpu", 0.1, peak=10.0),
    in_series("crf a L4", "pydensecrf", 0.2, baseline=True),
    in_series("crf b L4", "cpu", 0.4, peak=30.0),
    in_series("crf b L4", "pydensecrf", 3.2, baseline=True),
]


def test_a_series_is_shown_by_its_geometric_means(report):
    """Of 2x and 8x: 4x."""
    assert report.table(RESULT | {"benchmarks": SERIES}).splitlines()[4:] == [
        "| crf L4, 2 settings | cpu | 200.0 | 5.00 | 30 | 4.00x | 2e-06 |",
        "|  | pydensecrf | 800.0 | 1.25 | 12 | 1.00x | 2e-06 |",
    ]


def test_the_groups_of_a_series(report):
    lines = report.table(RESULT | {"benchmarks": SERIES}, cells=True).splitlines()[4:]
    assert [line.split(" | ")[0] for line in lines] == ["| crf a L4", "| ", "| crf b L4", "| "]


def test_a_series_with_a_gap_stays_apart(report):
    """The mean of what is there would be compared with that of other settings."""
    lines = report.table(RESULT | {"benchmarks": SERIES[:3]}).splitlines()[4:]
    assert len(lines) == 3
    assert "settings" not in "".join(lines)


def test_insert_replaces_only_what_is_between_the_markers(report):
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb\n"
    once = report.insert(text, "new")
    assert once == f"a\n{report.BEGIN}\nnew\n{report.END}\nb\n"
    assert report.insert(once, "new") == once


@pytest.mark.parametrize("text", ["", "{b}", "{e} {b}", "{b} {b} {e}"])
def test_insert_without_both_markers(report, text):
    with pytest.raises(ValueError, match=r"README\.md: expected"):
        report.insert(text.format(b=report.BEGIN, e=report.END), "new")


def test_result_path_names_version_and_machine(report, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    monkeypatch.setattr(report, "processor", lambda: "AMD EPYC (TM) 9")
    monkeypatch.setattr(report.os, "cpu_count", lambda: 2)
    expected = tmp_path / "bench" / "results" / "1.2.3" / "amd-epyc-tm-9-2.json"
    assert report.result_path(tmp_path) == expected
