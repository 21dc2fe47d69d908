"""Results of pytest-benchmark -> the table in README.md.

python bench/report.py                    # this machine's result -> README.md
python bench/report.py RESULT.json        # that result -> README.md
python bench/report.py --cells            # every group of a series, on the screen
python bench/report.py --where            # where this machine's result belongs

A series is a piece of work under several settings, one group each; README.md shows their means.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = [
    "| work | implementation | ms per image | images/s | peak MiB | speed | difference |",
    "|---|---|---:|---:|---:|---:|---:|",
]


def result_path(root: Path = ROOT) -> Path:
    """``bench/results/<version>/<machine>.json`` for the machine that this runs on."""
    version = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.M)
    if version is None:
        raise LookupError("pyproject.toml has no line 'version = \"...\"'")
    machine = f"{processor()}-{os.cpu_count()}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", machine).strip("-")
    return root / "bench" / "results" / version[1] / f"{slug}.json"


def processor() -> str:
    """The processor's name, such as "AMD EPYC 9254"; its architecture where nothing says more."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def table(result: dict[str, Any], cells: bool = False) -> str:
    """Markdown: one line on the machine, then one row per implementation, grouped by work.

    speed: the baseline's time divided by the row's, 1.0x for the baseline itself. difference:
    largest absolute difference from our plain-PyTorch definition.

    Args:
        result: what pytest-benchmark wrote.
        cells: each group of a series by itself, instead of their means.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    right = [entry for entry in result["benchmarks"] if is_right(entry)]
    for entry in right if cells else with_means(right):
        groups.setdefault(entry["group"], []).append(entry)
    lines = [machine_line(result), "", *HEADER]
    for group, entries in groups.items():
        baseline = [seconds(e) for e in entries if e["extra_info"]["baseline"]]
        for number, entry in enumerate(entries):
            lines.append(row("" if number else group, entry, baseline))
    return "\n".join(lines)


def is_right(entry: dict[str, Any]) -> bool:
    """Whether a row's result was right to within its bound (older results are: others failed)."""
    facts = entry["extra_info"]
    return bool(facts["error"] <= facts.get("within", float("inf")))


def with_means(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`entries` with one in place of those that share a series and a row.

    Its time is the geometric mean of theirs, so that the ratio of two is the geometric mean of the
    ratios; peak and difference are the largest. Series of which a row lacks a group stay apart.
    """
    series: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        name = entry["extra_info"].get("series", entry["group"])
        series.setdefault(name, {}).setdefault(entry["extra_info"]["row"], []).append(entry)
    merged = []
    for name, rows in series.items():
        groups = [[entry["group"] for entry in row] for row in rows.values()]
        if len(groups[0]) > 1 and all(names == groups[0] for names in groups):
            merged += [mean(f"{name}, {len(groups[0])} settings", row) for row in rows.values()]
        else:
            merged += [entry for row in rows.values() for entry in row]
    return merged


def mean(group: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry of a series for those of a row."""
    facts = [entry["extra_info"] for entry in entries]
    peaks = [each["peak_mib"] for each in facts]
    return {
        "group": group,
        "stats": {"median": geometric_mean(entry["stats"]["median"] for entry in entries)},
        "extra_info": facts[0]
        | {
            "error": max(each["error"] for each in facts),
            "peak_mib": None if None in peaks else max(peaks),
        },
    }


def seconds(entry: dict[str, Any]) -> float:
    """Median seconds per image."""
    return float(entry["stats"]["median"] / entry["extra_info"]["items"])


def row(group: str, entry: dict[str, Any], baseline: list[float]) -> str:
    """One line of the table."""
    facts = entry["extra_info"]
    time = seconds(entry)
    peak = "" if facts["peak_mib"] is None else f"{facts['peak_mib']:.0f}"
    speed = f"{baseline[0] / time:.2f}x" if baseline else ""
    return (
        f"| {group} | {facts['row']} | {time * 1e3:.1f} | {1 / time:.2f} | {peak} | {speed} "
        f"| {facts['error']:.0e} |"
    )


def machine_line(result: dict[str, Any]) -> str:
    """What was measured where: everything that a number means nothing without."""
    info = result["machine_info"]
    device = info.get("gpu") or info["cpu"]["brand_raw"]
    threads = "thread" if info["threads"] == 1 else "threads"
    commit = result["commit_info"]["id"][:12]
    edited = " with changes not committed" if result["commit_info"]["dirty"] else ""
    return (
        f"{device}, {info['threads']} {threads}, float32, torch {info['torch']}, "
        f"weaktr {info['weaktr']} at commit {commit}{edited}, {result['datetime'][:10]}; medians."
    )


def insert(text: str, new: str) -> str:
    """`text` with everything between the two markers replaced by `new`.

    Raises:
        ValueError: the markers are not there, each once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md: expected {BEGIN} and then {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--where", action="store_true", help="print the path and make its folder")
    parser.add_argument("--cells", action="store_true", help="print all groups, write nothing")
    options = parser.parse_args(arguments)
    path = options.result or result_path()
    if options.where:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(path)
        return
    if not path.exists():
        sys.exit(f"{path} is not there; `make bench` writes it")
    if options.cells:
        print(table(json.loads(path.read_text()), cells=True))
        return
    readme = ROOT / "README.md"
    new = insert(readme.read_text(encoding="utf-8"), table(json.loads(path.read_text())))
    readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
