"""Masks of a command: when they were written, and photographs put in the place of others."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image


def stamps(masks):
    """When each mask was written."""
    return {name: masks.path(name).stat().st_mtime_ns for name in masks.entries}


def replaced(path, seed):
    """Another photograph of the same size in pixels and bytes, with the same time."""
    before = path.stat()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    content = path.read_bytes()
    path.write_bytes(content + bytes(max(0, before.st_size - len(content))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def tree(folder):
    """The content of every file of a folder; None = a folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
