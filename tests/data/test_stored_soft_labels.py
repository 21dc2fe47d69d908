"""Files of soft labels: read back as written, refused where they are something else."""

from __future__ import annotations

import numpy as np
import pytest

from weaktr.data.problems import DataError
from weaktr.data.stored_maps import (
    SoftLabels,
    is_damaged,
    npz_of_cams,
    npz_of_soft_labels,
    read_soft_labels,
)
from weaktr.files import write_bytes
from weaktr.seals import is_sealed

SIZE = (20, 31)


@pytest.fixture
def soft():
    shares = np.random.default_rng(0).integers(1, 256, (3, 4, 5), np.uint8)
    return SoftLabels(shares, (0, 2, 7))


@pytest.fixture
def path(tmp_path, soft):
    write_bytes(tmp_path / "deep" / "a.npz", npz_of_soft_labels(soft, SIZE))
    return tmp_path / "deep" / "a.npz"


def test_they_read_back(path, soft):
    read = read_soft_labels(path, 8, SIZE)
    np.testing.assert_array_equal(read.shares, soft.shares)
    assert read.labels == soft.labels
    assert is_sealed(path)
    assert not is_damaged(path)


def refused(path, message, num_labels=8, size=SIZE):
    with pytest.raises(DataError, match=rf"a\.npz: no soft labels .*{message}"):
        read_soft_labels(path, num_labels, size)


def test_others_are_refused(path, soft):
    refused(path, r"labels \[0, 2, 7\], expected 0\.\.6", num_labels=7)
    refused(path, r"an image of \[20, 31\] pixels, not \(20, 30\)", size=(20, 30))
    write_bytes(path, npz_of_soft_labels(soft._replace(labels=(0, 2, 2)), SIZE))
    refused(path, r"labels \[0, 2, 2\] for 3 maps")
    write_bytes(
        path, npz_of_soft_labels(soft._replace(shares=soft.shares.astype(np.float32)), SIZE)
    )
    refused(path, "of float32")
    write_bytes(path, npz_of_soft_labels(soft._replace(shares=0 * soft.shares), SIZE))
    refused(path, "cells without any label")
    write_bytes(path, npz_of_cams(np.ones((1, 2, 2), np.float32), [0]))
    refused(path, "an archive without soft, labels, size")
    path.unlink()
    refused(path, "No such file")


def test_what_is_damaged(path):
    whole = path.read_bytes()
    for cut in (0, 2, 30, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:cut])
        assert is_damaged(path), cut
    path.write_bytes(bytes(len(whole)))
    assert is_damaged(path)
    middle = whole.index(b"soft.npy") + 100
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    assert is_damaged(path)
    path.write_text("notes")
    assert not is_damaged(path)
    np.savez(path, mine=np.ones(3))
    assert not is_damaged(path)
