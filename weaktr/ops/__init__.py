"""Hot operations: argument checks, dispatch and the plain-PyTorch definition of each."""

from weaktr.ops.clipped_cross_entropy import ClippedLoss, clipped_cross_entropy
from weaktr.ops.confusion import confusion
from weaktr.ops.dense_crf import dense_crf, unary_from_labels, unary_from_probabilities
from weaktr.ops.fuse_heads import fuse_heads
from weaktr.ops.head_stats import HeadStats, head_stats

__all__ = [
    "ClippedLoss",
    "HeadStats",
    "clipped_cross_entropy",
    "confusion",
    "dense_crf",
    "fuse_heads",
    "head_stats",
    "unary_from_labels",
    "unary_from_probabilities",
]
