"""What a million, 100 million, 10 billion photographs cost: hours, money, bytes; what is scarce.

    python bench/cost_model.py --results bench/results/0.1.0/amd-epyc-2.json
    python bench/cost_model.py --profile trace.json --cores-used 2 --machine "AMD EPYC, 2 cores"
    python bench/cost_model.py --results ... --gpu-images 100 --gpu-source "assumption"

Measured: seconds of each stage of ``weaktr label`` on a core, of `bench_label.py` (``--results``)
or of one run (``weaktr label ... --profile trace.json``); bytes of masks and rows, of a folder of
results (``--out``). Everything else is an assumption of the command line, and printed as one:
prices, the speed of a GPU, networks, storage. With ``--gpu-images`` the model, threshold and CRF
run on a GPU at that speed, and cores decode and write; without, cores do everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import machine_line

SIZES = (10**6, 10**8, 10**10)
#: Stages: name -> row of `bench_label.py`, spans of a trace; and whether a GPU takes it over.
STAGES = {
    "decode": ("read and resize", "read", False),
    "model": ("CAMs", "CAMs", True),
    "threshold": ("threshold", "threshold", True),
    "CRF": ("CRF", "refinement", True),
    "PNG": ("PNG and digest", "write", False),
}
#: Bytes of a file system for which ext4 makes an inode, unless somebody says otherwise.
BYTES_OF_INODE = 16_384
PARTS = "its parts one by one"
#: Requests of a shard to an object store: one read; masks, rows and record written.
READS, WRITES = 1, 3


@dataclass(frozen=True)
class Costs:
    """Of one photograph.

    Args:
        core_seconds: stage -> seconds of one core.
        source: of these numbers.
        photograph, mask, row: bytes.
    """

    core_seconds: dict[str, float]
    source: str
    photograph: float
    mask: float
    row: float


@dataclass(frozen=True)
class Machine:
    """One machine of many; rates are each second.

    Args:
        cores: processors.
        gpu_images: photographs that its GPUs label; None = it has none.
        network: bytes in and out together.
        price: dollars an hour.
    """

    cores: int
    gpu_images: float | None
    network: float
    price: float


def costs_of_results(result: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Core seconds of each stage, and their source, of what `bench_label.py` stored.

    Raises:
        SystemExit: it has not measured the parts.
    """
    rows = {
        entry["extra_info"]["row"]: entry
        for entry in result["benchmarks"]
        if entry["group"].endswith(PARTS)
    }
    if not {row for row, _, _ in STAGES.values()} <= set(rows):
        raise SystemExit(f"expected a result with a group '... {PARTS}'; bench_label.py makes it")
    seconds = {}
    for stage, (row, _, is_model) in STAGES.items():
        facts, one = rows[row]["extra_info"], rows[row]["stats"]["median"]
        threads = facts["threads"] if is_model else 1  # reading and writing was done in one
        seconds[stage] = one / facts["items"] * threads
    group = next(iter(rows.values()))["group"]
    return seconds, f"{group} ({machine_line(result)})"


def costs_of_trace(trace: dict[str, Any], cores: int) -> dict[str, float]:
    """Core seconds of each stage, of a trace of ``weaktr label --profile``; the model's of `cores`.

    Raises:
        SystemExit: no photograph was read in it.
    """
    spans = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    images = sum(span["name"] == "read" for span in spans)
    if not images:
        raise SystemExit("expected a trace in which photographs were read")
    return {
        stage: sum(span["dur"] for span in spans if span["name"] == name) / 1e6 / images
        * (cores if is_model else 1)
        for stage, (_, name, is_model) in STAGES.items()
    }  # fmt: skip


def bytes_of(out: Path) -> tuple[float, float]:
    """Bytes of a mask and of a row, of a folder of results whose index is joined."""
    statistics = json.loads((out / "stats.json").read_text())["statistics"]
    rows = sum(path.stat().st_size for path in (out / "index").rglob("*.parquet"))
    joined = (out / "index.parquet").stat().st_size
    images = max(1, statistics["images"])
    return statistics["bytes"] / max(1, statistics["masks"]), (rows + joined) / images


def rates(costs: Costs, machine: Machine) -> dict[str, float]:
    """Photographs a second that each resource of a machine allows."""
    moved = costs.photograph + costs.mask + costs.row
    stages = {stage: not STAGES[stage][2] or machine.gpu_images is None for stage in STAGES}
    on_cores = sum(costs.core_seconds[stage] for stage, own in stages.items() if own)
    allowed = {} if machine.gpu_images is None else {"GPU": machine.gpu_images}
    told = ", ".join(stage for stage, own in stages.items() if own)
    return {**allowed, f"cores ({told})": machine.cores / on_cores,
            "network": machine.network / moved}  # fmt: skip


def _short(number: float) -> str:
    """A number with two digits that count, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def in_words(
    costs: Costs, machine: Machine, *, machines: int, storage: float, shard: int, starts: float
) -> list[str]:
    """Both tables, in Markdown.

    Args:
        costs: of a photograph.
        machine: each.
        machines: how many.
        storage: bytes a second that all of them together may move.
        shard: photographs of a shard.
        starts: seconds for which a machine starts.
    """
    allowed = rates(costs, machine)
    speed = min(allowed.values())
    first = min(allowed, key=lambda name: allowed[name])
    moved = costs.photograph + costs.mask + costs.row
    lines = ["| resource of a machine | photographs/s that it allows |", "|---|---:|"]
    lines += [f"| {name} | {rate:,.1f} |" for name, rate in allowed.items()]
    lines += [
        "",
        f"First to run out: {first}. {machines} machines need {machines * speed * moved / 1e6:,.0f}"
        f" MB/s of the storage that they share; its {storage / 1e6:,.0f} MB/s are enough for "
        f"{storage / (speed * moved):,.0f}.",
        "",
        f"| photographs | machine hours | days on {machines} | dollars | in, TB | masks, TB "
        "| index, GB | shards | requests | loose PNGs: ext4 with enough inodes, TB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    total = min(machines * speed, storage / moved)
    for images in SIZES:
        shards = -(-images // shard)
        busy = min(machines, shards)
        hours = (images / (total / machines) + busy * starts) / 3600
        lines.append(
            f"| {images:,} | {hours:,.0f} | {_short(hours / machines / 24)} "
            f"| {hours * machine.price:,.0f} | {images * costs.photograph / 1e12:,.2f} "
            f"| {images * costs.mask / 1e12:,.3f} | {images * costs.row / 1e9:,.1f} | {shards:,} "
            f"| {shards * (READS + WRITES):,} | {images * BYTES_OF_INODE / 1e12:,.2f} |"
        )
    return lines


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measured = parser.add_argument_group("measured")
    of = measured.add_mutually_exclusive_group(required=True)
    of.add_argument("--results", type=Path, help="JSON of bench_label.py")
    of.add_argument("--profile", type=Path, help="trace of weaktr label --profile, without a GPU")
    measured.add_argument("--cores-used", type=int, default=1, help="threads of that run")
    measured.add_argument("--machine", default="machine not named", help="of that run")
    measured.add_argument("--out", type=Path, help="results of weaktr label in shards, for bytes")
    assumed = parser.add_argument_group("assumptions")
    assumed.add_argument(
        "--photograph-bytes", type=float, default=13_510_573_713 / 82_783,
        help="default: the archive of COCO train2014 / its images",
    )  # fmt: skip
    assumed.add_argument("--mask-bytes", type=float, default=4000, help="without --out")
    assumed.add_argument("--row-bytes", type=float, default=300, help="without --out")
    assumed.add_argument("--cores", type=int, default=16, help="of a machine")
    assumed.add_argument("--gpu-images", type=float, help="a second, of the GPUs of a machine")
    assumed.add_argument("--gpu-source", help="where that number comes from")
    assumed.add_argument("--price", type=float, default=1.0, help="dollars an hour and machine")
    assumed.add_argument("--price-source", default="assumption", help="where it comes from")
    assumed.add_argument("--network", type=float, default=10, help="Gbit/s of a machine")
    assumed.add_argument("--storage", type=float, default=5000, help="MB/s, shared by all")
    assumed.add_argument("--machines", type=int, default=64)
    assumed.add_argument("--shard-size", type=int, default=10_000)
    assumed.add_argument("--start", type=float, default=30, help="seconds of a machine")
    options = parser.parse_args(arguments)
    if options.gpu_images is not None and not options.gpu_source:
        parser.error("--gpu-images: expected --gpu-source, which says where the number comes from")
    return options


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    if options.results is not None:
        seconds, source = costs_of_results(json.loads(options.results.read_text()))
    else:
        trace = json.loads(options.profile.read_text())
        seconds = costs_of_trace(trace, options.cores_used)
        source = f"{options.profile.name} ({options.machine})"
    mask, row = options.mask_bytes, options.row_bytes
    if options.out is not None:
        mask, row = bytes_of(options.out)
    costs = Costs(seconds, source, options.photograph_bytes, mask, row)
    network = options.network * 1e9 / 8
    machine = Machine(options.cores, options.gpu_images, network, options.price)
    told = ", ".join(f"{stage} {1 / value:,.1f}" for stage, value in seconds.items())
    sizes = "measured" if options.out is not None else "assumed"
    print(f"Measured: photographs/s on one core: {told}. Of: {source}\n")
    gpu = "no GPU"
    if options.gpu_images is not None:
        gpu = f"GPU: {options.gpu_images:g} photographs/s ({options.gpu_source})"
    print(
        f"Assumed: {options.cores} cores a machine; {gpu}; ${options.price:g} an hour "
        f"({options.price_source}); network {options.network:g} Gbit/s; "
        f"{options.photograph_bytes / 1e3:,.0f} kB a photograph. {sizes.capitalize()}: "
        f"{mask:,.0f} bytes a mask, {row:,.0f} a row of both indexes.\n"
    )
    lines = in_words(costs, machine, machines=options.machines, storage=options.storage * 1e6,
                     shard=options.shard_size, starts=options.start)  # fmt: skip
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
