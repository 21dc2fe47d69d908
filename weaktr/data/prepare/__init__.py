"""``weaktr data prepare``: from nothing, archives or folders to a complete data set.

The modules, in the order in which data pass through them: `official` (what is published where),
`download`, `archives` (verified once), `unpack` (never outside the root), `sbd` (masks), `voc12`
and `coco14` (the two preparations), `result` (one manifest, and what is missing).
"""

from __future__ import annotations

from weaktr.data.prepare.archives import ArchiveError
from weaktr.data.prepare.coco14 import prepare_coco14
from weaktr.data.prepare.download import Patience
from weaktr.data.prepare.official import Archive, CocoFacts, VocFacts
from weaktr.data.prepare.result import Missing, Prepared
from weaktr.data.prepare.voc12 import prepare_voc12

__all__ = [
    "Archive",
    "ArchiveError",
    "CocoFacts",
    "Missing",
    "Patience",
    "Prepared",
    "VocFacts",
    "prepare_coco14",
    "prepare_voc12",
]
