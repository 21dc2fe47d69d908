"""What became of the shards of a process, and how far it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weaktr.progress import Meter

#: What happened to a shard: its masks were made; it was whole; another process works on it.
MADE, WHOLE, ELSEWHERE = "made", "whole", "elsewhere"


@dataclass
class ShardsReport:
    """What became of the shards of a process."""

    shards: Counter[str] = field(default_factory=Counter)  #: `MADE`, `WHOLE`, `ELSEWHERE`
    status: Counter[str] = field(default_factory=Counter)  #: of photographs, `weaktr.shards.rows`
    images_of: Counter[int] = field(default_factory=Counter)  #: label -> masks that show it
    left_out: int = 0  #: photographs that failed now
    broken: dict[str, str] = field(default_factory=dict)  #: shards that cannot be used -> why
    #: process -> what its refiners have to report of the masks made now
    notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def masks(self) -> int:
        """Number of masks."""
        return self.status["labelled"] + self.status["edited"]

    def add(self, what: str, record: Mapping[str, Any] | None) -> None:
        """Count a shard and what its record says."""
        self.shards[what] += 1
        statistics = (record or {}).get("statistics", {})
        self.status.update(statistics.get("status", {}))
        for label, facts in statistics.get("labels", {}).items():
            self.images_of[int(label)] += facts["images"]

    def merge(self, other: ShardsReport) -> None:
        """Add what another process reports."""
        self.shards.update(other.shards)
        self.status.update(other.status)
        self.images_of.update(other.images_of)
        self.left_out += other.left_out
        self.broken |= other.broken
        self.notes |= other.notes

    def in_words(self) -> str:
        """How many shards and photographs there are, and what became of them."""
        shards = ", ".join(f"{count:,} {what}" for what, count in self.shards.items())
        photographs = ", ".join(f"{count:,} {what}" for what, count in self.status.items() if count)
        return f"shards: {shards or 'none'}; photographs: {photographs or 'none'}"

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing: no shard, no photograph."""
        return not (self.broken or self.shards[ELSEWHERE] or self.status["failed"])


class Progress:
    """The bar of a process: how many photographs there are is known shard by shard.

    Args:
        title: of the work.
        done: photographs of shards that were whole.
        shards: how many there are.
        report: of the work.
    """

    def __init__(self, title: str, done: int, shards: int, report: ShardsReport) -> None:
        self.report, self._shards = report, shards
        self._meter = Meter(title, done, done=done)

    def __enter__(self) -> Progress:
        self._meter.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._meter.__exit__(*details)

    def begin(self, photographs: int, ready: int) -> None:
        """A shard of so many begins, some of them ready; later ones are taken to be as large."""
        left = self._shards - sum(self.report.shards.values()) - len(self.report.broken)
        total = self._meter.done + photographs * max(1, left)
        self._meter.expect(total, skipped=ready)

    def advance(self, note: str) -> None:
        """One photograph more is done."""
        bad = f"{self.report.left_out:,} left out, " if self.report.left_out else ""
        self._meter.advance(note=bad + note)
