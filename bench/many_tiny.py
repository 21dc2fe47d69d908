"""Many tiny photographs through all of `weaktr label`: speed, memory over time, index.

    python bench/many_tiny.py                   # 100,000 in 10 tars; about 20 minutes on two cores
    python bench/many_tiny.py --images 20000 --shard-size 2000

Generated JPEGs of 64 x 64 in tars, a ViT of 2 layers with random weights, one process with one
thread. Its resident memory is read every second. A run is flat where the memory at 50 % and 100 %
of the images is within 5 % of that at 10 %. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import report
import scale_work
from bench_scale import facts_of_machine

MIB = 2**20
#: By how much memory may differ from that at 10 % of the images.
FLAT = 0.05


class Sample(NamedTuple):
    """The state of a command at a moment."""

    seconds: float  #: since its start
    images: int  #: that it has made
    resident: int  #: bytes


class Journals:
    """Counts the images of a folder of results while they are made; reads what is new alone."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._read: dict[Path, tuple[int, int]] = {}  # journal -> bytes, lines without the first
        self._whole: dict[Path, int] = {}

    def count(self) -> int:
        """Images of whole shards, and of those that are begun."""
        for record in (self.out / "index").glob("*.json"):
            if record not in self._whole:
                self._whole[record] = json.loads(record.read_text())["statistics"]["images"]
        whole = {record.stem for record in self._whole}
        begun = 0
        for journal in (self.out / "unfinished").glob("*/*.jsonl"):
            if journal.parent.name not in whole:
                begun += self._lines_of(journal)
        return sum(self._whole.values()) + begun

    def _lines_of(self, journal: Path) -> int:
        position, lines = self._read.get(journal, (0, -1))
        try:
            with open(journal, "rb") as file:
                file.seek(position)
                content = file.read()
        except FileNotFoundError:  # its shard is whole now
            return 0
        self._read[journal] = position + len(content), lines + content.count(b"\n")
        return max(0, self._read[journal][1])


def resident(process: int) -> int | None:
    """Bytes in memory of a process; None = it has ended."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def watched(command: Sequence[object], out: Path) -> tuple[float, list[Sample]]:
    """Run ``weaktr`` and look at it every second: (seconds, samples).

    Raises:
        SystemExit: it fails; says what it said.
    """
    began, samples, journals = time.monotonic(), [], Journals(out)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            weaktr(command), env=scale_work.environment(1), stdout=log, stderr=log
        )
        while process.poll() is None:
            now = time.monotonic()
            if (size := resident(process.pid)) is not None:
                samples.append(Sample(now - began, journals.count(), size))
            time.sleep(max(0.0, 1 - (time.monotonic() - now)))
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode())
    return time.monotonic() - began, samples


def weaktr(command: Iterable[object]) -> list[str]:
    """The command line of ``weaktr``."""
    return [sys.executable, "-m", "weaktr.cli", *map(str, command)]


def seconds_of(command: Sequence[object]) -> float:
    """How long a command takes, its start included."""
    began = time.monotonic()
    subprocess.run(weaktr(command), env=scale_work.environment(1), check=True, capture_output=True)
    return time.monotonic() - began


def memory_at(samples: Sequence[Sample], share: float, images: int) -> int:
    """Median bytes around a share of the images, over a twentieth of them to each side."""
    low, high = (share - 0.05) * images, (share + 0.05) * images
    around = [one.resident for one in samples if low <= one.images <= min(high, images)]
    return int(median(around)) if around else 0


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in paths)


def measured(images: int, shard_size: int, scratch: Path) -> dict[str, Any]:
    """Everything, as plain values."""
    model = scale_work.write_model(scratch / "model", scale_work.TINY)
    tars = scale_work.write_tars(scratch / "tars", range(images), shard_size, scale_work.tiny_jpeg)
    out = scratch / "out"
    label = ["label", model, tars, "--out", out, *scale_work.QUICK]
    started = seconds_of(["label", "--help"])
    seconds, samples = watched(label, out)
    work = [one for one in samples if 0 < one.images < images]
    speed = images / (work[-1].seconds - work[0].seconds) if len(work) > 1 else None
    index = out / "index.parquet"
    again = seconds_of(label)
    index.unlink()
    (out / "stats.json").unlink()
    return {
        "images": images,
        "shard_size": shard_size,
        "seconds": seconds,
        "images_per_second": speed,
        "first_image_after": work[0].seconds if work else None,
        "memory": {f"{share:.0%}": memory_at(samples, share, images) for share in (0.1, 0.5, 1.0)},
        "memory_peak": max(one.resident for one in samples),
        "restart_seconds": again,
        "help_seconds": started,
        "join_seconds": seconds_of(["index", out]),
        "count_seconds": seconds_of(["index", out]),
        "query_seconds": seconds_of(
            ["index", out, "--class", "class03", "--max-area", 0.2, "--csv", scratch / "found.csv"]
        ),
        "verify_seconds": seconds_of(["index", out, "--verify"]),
        "bytes": {
            "photographs": size_of(tars.glob("*.tar")),
            "masks": size_of((out / "masks").glob("*.tar")),
            "index of shards": size_of((out / "index").glob("*.parquet")),
            "records of shards": size_of((out / "index").glob("*.json")),
            "index": index.stat().st_size,
            "stats": (out / "stats.json").stat().st_size,
        },
        "samples": [list(one) for one in samples],
    }


def in_words(result: dict[str, Any]) -> list[str]:
    """The table, in Markdown."""
    images, memory = result["images"], result["memory"]
    first = memory["10%"]
    rows = [
        ("images/s, without the start", f"{result['images_per_second'] or 0:,.0f}"),
        ("seconds, whole command", f"{result['seconds']:,.0f}"),
        *((f"MiB resident at {share}", f"{size / MIB:,.0f} ({size / first - 1:+.1%})")
          for share, size in memory.items()),
        ("MiB resident, peak", f"{result['memory_peak'] / MIB:,.0f}"),
        ("seconds, started again", f"{result['restart_seconds']:.1f}"),
        ("seconds, weaktr index: join", f"{result['join_seconds']:.1f}"),
        ("seconds, weaktr index: count", f"{result['count_seconds']:.1f}"),
        ("seconds, weaktr index: a class, small areas", f"{result['query_seconds']:.1f}"),
        ("seconds, weaktr index --verify", f"{result['verify_seconds']:.1f}"),
        ("of each, import and start", f"{result['help_seconds']:.1f}"),
        *((f"bytes an image, {name}", f"{size / images:,.1f}")
          for name, size in result["bytes"].items()),
    ]  # fmt: skip
    about = f"{images:,} images of 64 x 64, shards of {result['shard_size']:,}"
    return [f"| {about} | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]


def is_flat(memory: dict[str, int]) -> bool:
    """Whether memory stays as it was at 10 %."""
    first = memory["10%"]
    return all(abs(size / first - 1) <= FLAT for size in memory.values())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--scratch", type=Path, help="folder for temporary files, about 1 GB")
    path = report.result_path()
    parser.add_argument("--json", type=Path, help="default: %(default)s",
                        default=path.with_name(f"{path.stem}-many-tiny.json"))  # fmt: skip
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="weaktr-bench-", dir=options.scratch) as scratch:
        result = measured(options.images, options.shard_size, Path(scratch))
    print("\n".join(in_words(result)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = facts_of_machine() | {"datetime": datetime.now(UTC).isoformat()}
    options.json.write_text(json.dumps(facts | {"many_tiny": result}) + "\n")
    flat = is_flat(result["memory"])
    print(f"memory is {'flat' if flat else 'not flat'} within {FLAT:.0%}; {options.json}")
    return 0 if flat else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
