"""Which photographs are held out from training, and which are a fair few of many."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

Labels = Mapping[str, Sequence[str]]


def hold_out(labels: Labels, share: float, kept: Collection[str] = ()) -> set[str]:
    """Choose the photographs that are not trained on, by a digest of their names.

    So a photograph keeps its side when others are added, unless a class has few. Of every class at
    least half of the photographs are trained on. At least one photograph is held out, if one can.

    Args:
        labels: names of all photographs -> their classes.
        share: of the photographs that are held out, 0 to 0.5.
        kept: photographs that are trained on in any case.

    Raises:
        ValueError: `share` is outside 0..0.5.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"--hold-out: expected a share from 0 to 0.5, got {share}")
    counts = Counter(label for names in labels.values() for label in set(names))
    spare = {label: count // 2 for label, count in counts.items()}
    held: set[str] = set()
    for name in sorted(labels.keys() - set(kept), key=_place) if share else ():
        if held and _place(name) >= share:
            break
        if all(spare[label] for label in set(labels[name])):
            held.add(name)
            spare.update({label: spare[label] - 1 for label in set(labels[name])})
    return held


def spread(labels: Labels, count: int) -> list[str]:
    """Some photographs of the classes that most photographs show, always the same.

    Each next one is of the class that fewest so far show, so that there are several of each.
    Photographs without classes count as a class of their own.

    Args:
        labels: names of all photographs -> their classes.
        count: how many are wanted; of at most a third as many classes, if these have enough.
    """
    of_class: dict[str, list[str]] = {}
    for name in sorted(labels, key=_place, reverse=True):
        for label in set(labels[name]) or {""}:
            of_class.setdefault(label, []).append(name)
    common = sorted(of_class, key=lambda label: (-len(of_class[label]), label))
    together = max(1, count // 3)
    chosen: dict[str, None] = {}
    shown: Counter[str] = Counter()
    for first in range(0, len(common), together):
        group = set(common[first : first + together])
        while group and len(chosen) < count:
            rarest = min(group, key=lambda label: (shown[label], label))
            name = of_class[rarest].pop()
            if not of_class[rarest]:
                group.remove(rarest)
            if name not in chosen:
                chosen[name] = None
                shown.update(set(labels[name]) or {""})
    return sorted(chosen)


def _place(name: str) -> float:
    """A number from 0 to 1 that only the name decides."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big") / 2**64
