"""The photographs below a folder, told from masks, and from weaktr's own results."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from weaktr.data.layout import IMAGE_SUFFIXES, first_file, first_folder
from weaktr.files import paths_below
from weaktr.messages import counted, few
from weaktr.outputs import LOCK, has_inputs

#: The kind of problem of photographs outside of the folder in which they are looked for.
BESIDE = "photographs outside of images/"


def photographs_of(root: Path) -> Path:
    """The folder of photographs of a data set's root: ``images`` beside labels or masks, or VOC's
    ``JPEGImages``; of any other folder, itself."""
    images, voc = root / "images", root / "JPEGImages"
    stems = ("labels", "train", "val", "test")
    beside = [root / f"{stem}{suffix}" for stem in stems for suffix in (".csv", ".json")]
    if images.is_dir() and ((root / "masks").is_dir() or first_file(beside)):
        return images
    if voc.is_dir() and first_folder([root / "ImageSets", root / "Annotations"]):
        return voc
    return root


def photographs_beside(root: Path, images: Path) -> list[Path]:
    """The photographs below a folder that lie neither in its ``images`` nor in its ``masks``.

    PNGs that are called like a photograph are left out: they are masks, under whatever name of
    their folder (``annotations/a.png`` of ``images/a.jpg``).

    Args:
        root: the folder.
        images: its folder of photographs; where that is not ``root/images``, none lie beside it.
    """
    if images != root / "images" or not images.is_dir():
        return []
    others = paths_but_results(root, without=(images, root / "masks"))
    paths = [path for path in others if path.lower().endswith(IMAGE_SUFFIXES)]
    if any(path.lower().endswith(".png") for path in paths):
        inside = paths_but_results(images)
        stems = {_stem(path) for path in inside if path.lower().endswith(IMAGE_SUFFIXES)}
        paths = [
            path for path in paths if not path.lower().endswith(".png") or _stem(path) not in stems
        ]
    return in_order(map(Path, paths))


def _stem(path: str) -> str:
    """`Path.stem`, many times faster."""
    return os.path.splitext(os.path.basename(path))[0]


def beside_in_words(files: Sequence[Path], root: Path) -> str:
    """``2 photographs outside of images/ (a.jpg, b/c.jpg) are``, see `photographs_beside`."""
    names = few([path_below(file, root) for file in files])
    are = counted(len(files), "photograph", "photographs")
    return f"{are} outside of images/ ({names}) {'is' if len(files) == 1 else 'are'}"


def files_but_results(root: Path) -> Iterator[Path]:
    """`paths_but_results` as paths, which takes twice as long."""
    return map(Path, paths_but_results(root))


def paths_but_results(root: Path, without: Collection[Path] = ()) -> Iterator[str]:
    """The files below a folder (`paths_below`, links followed), but those in folders of weaktr's
    results in it, and in those `without`."""
    below = paths_below(root, follow=True, without=without)
    return but_results(below, root)


def but_results(paths: Iterable[str], root: Path) -> Iterator[str]:
    """Those of some paths below a folder that are in no folder of weaktr's results in it."""

    @cache
    def holds_results(folder: str) -> bool:
        path = Path(folder)
        if path in (root, path.parent):
            return False
        is_own = (path / LOCK).is_file() or has_inputs(path)
        return is_own or holds_results(os.path.dirname(folder))

    return (path for path in paths if not holds_results(os.path.dirname(path)))


def in_order(files: Iterable[Path]) -> list[Path]:
    """Files in the order of their paths' parts, as paths are compared."""
    return sorted(files, key=lambda file: file.parts)


def path_below(file: Path | str, folder: Path) -> str:
    """The path of a file from a folder on, its parts parted by /."""
    path, start = str(file), f"{folder}/"
    if os.sep == "/" and path.startswith(start):  # many times faster
        return path[len(start) :]
    return Path(file).relative_to(folder).as_posix()
