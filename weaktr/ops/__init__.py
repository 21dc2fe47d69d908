"""Hot operations: argument checks, dispatch and the plain-PyTorch definition of each."""

from weaktr.ops.attention import softmax_attention
from weaktr.ops.clipped_cross_entropy import ClippedLoss, clipped_cross_entropy
from weaktr.ops.confusion import confusion
from weaktr.ops.dense_crf import dense_crf, dense_crf_labels
from weaktr.ops.dense_crf.unaries import unary_from_labels, unary_from_probabilities
from weaktr.ops.fuse_heads import fuse_heads, fuse_heads_packed
from weaktr.ops.head_stats import HeadStats, head_stats, head_stats_packed
from weaktr.ops.propagate_labels import propagate_labels

__all__ = [
    "ClippedLoss",
    "HeadStats",
    "clipped_cross_entropy",
    "confusion",
    "dense_crf",
    "dense_crf_labels",
    "fuse_heads",
    "fuse_heads_packed",
    "head_stats",
    "head_stats_packed",
    "propagate_labels",
    "softmax_attention",
    "unary_from_labels",
    "unary_from_probabilities",
]
