"""Damage files of every kind and let every reader have them.

    python -m tests.fuzz.run --cases 200000                   # make fuzz CASES=200000
    python -m tests.fuzz.run --readers pth state.pt --seed 7  # some readers, other cases
    python -m tests.fuzz.run --replay fuzz-findings/pth-17.json

Each case is a small whole file that was damaged: bytes, and what its format says. A reader must
read it or refuse it in one line that names the file. Crashes, hangs, floods of memory and other
exceptions are findings; their files are kept for a replay. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a worker inherits no threads

from tests.fuzz.readers import READERS, Files, Reader
from tests.fuzz.workers import LIMIT, Finding, case_of, run_cases

FOLDER = Path("fuzz-findings")


def shares(readers: Sequence[Reader], cases: int) -> dict[str, int]:
    """How many of the cases each reader gets, at least one."""
    total = sum(reader.share for reader in readers)
    return {reader.name: max(1, round(cases * reader.share / total)) for reader in readers}


def save(finding: Finding, files: Files, folder: Path) -> Path:
    """Keep the files of a finding."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{finding.reader.replace(' ', '_')}-{finding.number}.json"
    content = {
        "reader": finding.reader,
        "kind": finding.kind,
        "where": finding.where,
        "message": finding.message,
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
    }
    path.write_text(json.dumps(content, indent=1))
    return path


def replay(path: Path) -> list[Finding]:
    """Run a kept case again."""
    content = json.loads(path.read_text())
    files = {name: base64.b64decode(data) for name, data in content["files"].items()}
    return run_cases(READERS[content["reader"]], lambda _: files, 0, 1, LIMIT).findings


def show(finding: Finding) -> str:
    """A finding in one line."""
    return f"{finding.kind}: {finding.where}: {finding.message!r}"


def fuzz(reader: Reader, seed: int, first: int, count: int, folder: Path, limit: float) -> bool:
    """Run cases of a reader, print what became of them, keep what was found.

    Returns:
        Whether there is no finding.
    """
    began = time.monotonic()
    whole = run_cases(reader, lambda _: reader.whole(), 0, 1, limit)
    assert whole.read == 1, f"{reader.name}: the whole file is not read: {whole}"
    result = run_cases(reader, lambda number: case_of(reader, seed, number), first, count, limit)
    alike: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in result.findings:
        alike[finding.kind, finding.where].append(finding)
    print(
        f"{reader.name:22}{count:8} cases{result.read:8} read{result.refused:8} refused"
        f"{len(result.findings):6} findings{time.monotonic() - began:8.1f} s",
        flush=True,
    )
    for findings in alike.values():
        kept = save(findings[0], case_of(reader, seed, findings[0].number), folder)
        print(f"    {len(findings)} x {show(findings[0])}\n      {kept}", flush=True)
    return not result.findings


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Damage files and let the readers have them.")
    parser.add_argument("--cases", type=int, default=20000, help="of all readers together")
    parser.add_argument("--first", type=int, default=0, help="number of each reader's first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that a case may take")
    parser.add_argument("--findings", type=Path, default=FOLDER, help="folder for their files")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept case again")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        findings = replay(options.replay)
        print("\n".join(map(show, findings)) or "read, or refused as it should be")
        return bool(findings)
    warnings.simplefilter("ignore")  # of a zip that has a name twice
    readers = [READERS[name] for name in options.readers]
    clean = [
        fuzz(READERS[name], options.seed, options.first, count, options.findings, options.limit)
        for name, count in shares(readers, options.cases).items()
    ]
    print("no findings" if all(clean) else f"findings are in {options.findings}")
    return not all(clean)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
