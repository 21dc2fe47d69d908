"""Weakly-supervised semantic segmentation with plain vision transformers (WeakTr).

Source: Zhu et al., "WeakTr: Exploring Plain Vision Transformer for Weakly-supervised Semantic
Segmentation", arXiv 2304.01184.
"""

__version__ = "0.1.0"
