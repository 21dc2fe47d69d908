"""`weaktr label` in several processes, in shards, and started again: whole commands, in turns.

    python bench/bench_scale.py            # all three; about 50 minutes on two cores
    python bench/bench_scale.py sharding restart --photographs 8 --rounds 1 --finished 2000

A script rather than a file of pytest-benchmark: a row is a command of minutes, several of them at
the same time, and what counts is the ratio of neighbours in a round. The JSON has the form of
pytest-benchmark's, so ``bench/report.py FILE --cells`` prints it as a table.

processes  one process with one thread, bound to one core; two of them, bound to a core each. With
           the start (imports, the model, the list of photographs), and without.
sharding   a folder as it is; in shards, into loose PNGs and into tars; tars into tars.
restart    the command again over a finished folder: seconds, and how many masks it opens.

Masks of all rows must be the same, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import report
import scale_work
from scale_work import Marks, masks_of, write_folder, write_model, write_tars

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Row:
    """What was measured of one way.

    Args:
        whole: seconds from the start of its processes to their end, a value a round.
        work: of them, without their start: from the first photograph to the last mask.
        start: seconds until the first photograph, the mean of its processes.
        cpu: seconds on processors of all its processes.
        same: whether the masks are those of the first row.
    """

    whole: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    same: bool = True


@dataclass(frozen=True)
class Way:
    """Processes of a row.

    Args:
        arguments: of ``weaktr label`` after MODEL, a list for each process; OUT stands for the
            folder of results.
        cores: to which each is bound, or "all".
        threads: of each.
    """

    arguments: Sequence[Sequence[object]]
    cores: Sequence[str]
    threads: int = 1


def run_once(way: Way, model: Path, out: Path, scratch: Path) -> tuple[float, list[Marks]]:
    """Run the processes of a way: (seconds of all, what each notes)."""
    began, processes = time.time(), {}
    for number, (arguments, cores) in enumerate(zip(way.arguments, way.cores, strict=True)):
        given = [out if argument == "OUT" else argument for argument in arguments]
        marks = scratch / f"marks{number}.json"
        log = scratch / f"log{number}"
        processes[marks] = scale_work.start(marks, cores, way.threads, "label", model, *given,
                                            log=log)  # fmt: skip
    try:
        marks_of_all = scale_work.ended(processes)
    except RuntimeError:
        sys.stderr.write("".join(path.read_text() for path in sorted(scratch.glob("log*"))))
        raise
    return time.time() - began, [Marks(**{**vars(m), "began": began}) for m in marks_of_all]


def in_turns(ways: Mapping[str, Way], model: Path, scratch: Path, rounds: int) -> dict[str, Row]:
    """Run all ways, in one order and then in the other, `rounds` times in all."""
    rows = {name: Row() for name in ways}
    right: list[tuple[str, bytes]] = []
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            out = scratch / "out"
            settle()
            whole, marks = run_once(ways[name], model, out, scratch)
            row = rows[name]
            row.whole.append(whole)
            row.work.append(max(m.worked for m in marks) - min(m.work for m in marks))
            row.start.append(sum(m.work - m.began for m in marks) / len(marks))
            row.cpu.append(sum(m.cpu for m in marks))
            masks = sorted(masks_of(out))
            right = right or masks
            row.same &= masks == right
            shutil.rmtree(out)
            print(f"  {name}: {whole:.1f} s, of which {row.start[-1]:.1f} s are the start",
                  flush=True)  # fmt: skip
    return rows


def settle() -> None:
    """Have what others wrote on the disk, so that no command waits for it."""
    os.sync()


def entry(
    group: str, row: str, seconds: Sequence[float], items: int, *, right: bool = True,
    baseline: bool = False, **facts: Any
) -> dict[str, Any]:  # fmt: skip
    """A row as pytest-benchmark stores it."""
    stats = {"min": min(seconds), "max": max(seconds), "median": median(seconds)}
    stats |= {"mean": sum(seconds) / len(seconds), "rounds": len(seconds), "data": list(seconds)}
    extra = {"row": row, "baseline": baseline, "items": items, "error": float(not right),
             "within": 0.0, "peak_mib": None, **facts}  # fmt: skip
    name = f"{group}, {row}"
    return {"group": group, "name": name, "fullname": name, "params": None, "param": None,
            "extra_info": extra, "options": {}, "stats": stats}  # fmt: skip


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """first / second, round by round."""
    return [one / two for one, two in zip(first, second, strict=True)]


def processes(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Two processes of one thread against one."""
    count = options.photographs or 60
    model = write_model(scratch / "model", options.model)
    photos = write_folder(scratch / "photos", range(count), scale_work.large_jpeg)
    own = (photos, "--out", "OUT", "--shard-size", max(1, count // 6))
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:2]]
    if len(cores) < 2:
        raise SystemExit("processes: expected two cores")
    ways = {
        "one process, one thread": Way([own], cores[:1]),
        "two processes, one thread each": Way([(*own, "--shard", f"{i}/2") for i in (0, 1)], cores),
    }
    rows = in_turns(ways, model, scratch, options.rounds or 3)
    one, two = rows.values()
    about = f"{options.model}, 500x375, {count} photographs"
    groups = {f"labelling, {about}, whole commands": "whole",
              f"labelling, {about}, without their start": "work"}  # fmt: skip
    entries = []
    for group, kind in groups.items():
        gain = ratios(getattr(one, kind), getattr(two, kind))
        print(f"{group}: {median(gain):.2f} times as fast in two processes "
              f"({', '.join(f'{each:.2f}' for each in gain)})")  # fmt: skip
        for name, row in rows.items():
            facts = {"start": row.start, "cpu": row.cpu, "threads": 1, "times_as_fast": gain}
            entries.append(entry(group, name, getattr(row, kind), count, right=row.same,
                                 baseline=row is one, **facts))  # fmt: skip
    starts = {name: median(row.start) for name, row in rows.items()}
    print("start of a process:", ", ".join(f"{n}: {s:.1f} s" for n, s in starts.items()))
    return entries


def sharding(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Shards and their index against the folder as it is."""
    count = options.photographs or 96
    threads = len(os.sched_getaffinity(0))
    size = max(1, count // 3)
    model = write_model(scratch / "model", options.small_model)
    photos = write_folder(scratch / "photos", range(count), scale_work.large_jpeg)
    # shards of the same photographs as the folder's have by their names are not needed: all are
    # made, and masks are compared by their names
    tars = write_tars(scratch / "tars", range(count), size, scale_work.large_jpeg)
    sets = [argument for value in options.set for argument in ("--set", value)]
    arguments: dict[str, list[object]] = {
        "folder": [photos],
        "folder to PNG, 1 shard": [photos, "--shard-size", count],
        "folder to PNG, 3 shards": [photos, "--shard-size", size],
        "folder to tar, 3 shards": [photos, "--shard-size", size, "--output", "tar"],
        "tar to tar, 3 shards": [tars],
    }
    ways = {name: Way([[*own, *sets, "--out", "OUT"]], ["all"], threads)
            for name, own in arguments.items()}  # fmt: skip
    rows = in_turns(ways, model, scratch, options.rounds or 5)
    plain = rows["folder"]
    about = f"{options.small_model}, 500x375, {count} photographs, {threads} threads"
    about = ", ".join([about, *options.set])
    entries = []
    for kind, group in {"whole": "whole commands", "work": "without their start"}.items():
        for name, row in rows.items():
            more = [each - 1 for each in ratios(getattr(row, kind), getattr(plain, kind))]
            entries.append(entry(f"shards, {about}, {group}", name, getattr(row, kind), count,
                                 right=row.same, baseline=row is plain, threads=threads,
                                 start=row.start, cpu=row.cpu, overhead=more))  # fmt: skip
            if row is not plain:
                print(f"{name}, {group}: {median(more):+.1%} of the folder's time "
                      f"({', '.join(f'{each:+.1%}' for each in more)})")  # fmt: skip
    for name, row in rows.items():
        more = [each - 1 for each in ratios(row.cpu, plain.cpu)]
        print(f"{name}, seconds on processors: {median(more):+.1%}")
    return entries


def restart(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """The command again, where all is done."""
    count = options.finished
    model = write_model(scratch / "model", scale_work.TINY)
    inputs: dict[str, Callable[[], Path]] = {
        "png": lambda: write_folder(scratch / "photos", range(count), scale_work.tiny_jpeg),
        "tar": lambda: write_tars(scratch / "tars", range(count), 10_000, scale_work.tiny_jpeg),
    }
    entries = []
    for form, write in inputs.items():
        out = scratch / "out"
        shards = [*(["--shard-size", 1000] if form == "png" else []), "--output", form]
        given = [write(), "--out", out, *shards]
        finished = scale_work.finish([str(model), *map(str, given)])
        assert finished == count, (finished, count)
        way = Way([given], ["all"])
        seconds, work, opened = [], [], []
        for turn in range(options.rounds or 3):
            settle()
            if turn == 0:
                with watched():
                    opened += [marks.opened for marks in run_once(way, model, out, scratch)[1]]
            whole, marks = run_once(way, model, out, scratch)
            seconds.append(whole)
            work.append(marks[0].worked - marks[0].work)
        print(f"restart, {count:,} finished, {form}: {median(seconds):.1f} s, of which looking at "
              f"shards {median(work):.2f} s; masks opened: {sum(opened)}", flush=True)  # fmt: skip
        shutil.rmtree(out)
        entries.append(entry(f"started again over {count} finished photographs", form, seconds,
                             count, right=sum(opened) == 0, looking=work,
                             opened=sum(opened), threads=1))  # fmt: skip
    return entries


class watched:
    """While open, commands count the masks that they open (which slows them down)."""

    def __enter__(self) -> None:
        os.environ["WATCH_MASKS"] = "1"

    def __exit__(self, *_: object) -> None:
        del os.environ["WATCH_MASKS"]


def facts_of_machine() -> dict[str, Any]:
    """What `report.machine_line` says, and the commit."""
    import torch

    from weaktr import __version__

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    machine = {"cpu": {"brand_raw": report.processor(), "count": os.cpu_count()}}
    versions = {"torch": torch.__version__, "weaktr": __version__, "threads": 1}
    commit = {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    return {"machine_info": machine | versions, "commit_info": commit,
            "datetime": datetime.now(UTC).isoformat()}  # fmt: skip


def result_file() -> Path:
    """Beside that of the other benchmarks, which are measured in other runs."""
    path = report.result_path()
    return path.with_name(f"{path.stem}-scale.json")


WORK = {"processes": processes, "sharding": sharding, "restart": restart}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="*", metavar="WORK", help=f"{', '.join(WORK)} (all)")
    parser.add_argument("--photographs", type=int, help="default: 60 for processes, 96 for shards")
    parser.add_argument("--rounds", type=int, help="default: 5 for shards, else 3")
    parser.add_argument("--finished", type=int, default=82_081, help="of restart; default: COCO's")
    parser.add_argument("--model", default="deit_small_patch16_224", help="of processes")
    parser.add_argument(
        "--small-model", default="deit_tiny_patch16_224", metavar="MODEL",
        help="of shards: the faster it is, the more their overhead counts",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], help="settings of shards' labelling")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files, about 1 GB")
    parser.add_argument("--json", type=Path, default=result_file(), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := set(options.work) - set(WORK):
        parser.error(f"expected {', '.join(WORK)}, got {', '.join(sorted(unknown))}")
    entries = []
    for name in options.work or WORK:
        with tempfile.TemporaryDirectory(prefix="weaktr-bench-", dir=options.scratch) as scratch:
            print(f"{name}:", flush=True)
            entries += WORK[name](options, Path(scratch))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    stored = facts_of_machine() | {"benchmarks": entries}
    options.json.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{options.json}: bench/report.py --cells prints it")


if __name__ == "__main__":
    main(sys.argv[1:])
