"""Hot operations: argument checks, dispatch and the plain-PyTorch definition of each."""

from weaktr.ops.fuse_heads import fuse_heads
from weaktr.ops.head_stats import HeadStats, head_stats

__all__ = ["HeadStats", "fuse_heads", "head_stats"]
