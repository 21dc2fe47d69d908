"""``weaktr data prepare voc12``: the devkit's data, SBD's masks, lists, labels, one manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weaktr.data.classes import VOC
from weaktr.data.layout import first_folder, read_lines
from weaktr.data.prepare import official, sbd
from weaktr.data.prepare.download import Patience
from weaktr.data.prepare.result import Missing, Prepared, is_whole
from weaktr.data.prepare.sources import Sources
from weaktr.data.problems import Problem
from weaktr.data.sources.voc12 import find_cls_labels, voc12
from weaktr.files import clear_abandoned, write_bytes
from weaktr.progress import log

_SPLITS = ("train", "train_aug", "val")
#: Names of folders and archives with masks of train_aug, best first.
_MASK_SOURCES = (sbd.FOLDER, f"{sbd.FOLDER}.zip", "benchmark_RELEASE")


def prepare_voc12(
    root: str | Path,
    *,
    fetch: bool = False,
    archives: str | Path | None = None,
    sbd_masks: str | Path | None = None,
    cls_labels: str | Path | None = None,
    facts: official.VocFacts | None = None,
    patience: Patience | None = None,
) -> Prepared:
    """Make VOC 2012 ready for training and scoring, as far as the data at hand allow.

    Args:
        root: where the data are or will be: ``VOCdevkit``, ``VOC2012`` in it, or the folder that
            holds (or will hold) ``VOCdevkit``.
        fetch: download what is missing into ``root/downloads``.
        archives: a further folder with archives, beside `root` and ``root/downloads``.
        sbd_masks: ``SegmentationClassAug`` as folder or zip, or SBD (``benchmark.tgz`` or the
            folder in it). None = the one beside the archives, if any.
        cls_labels: ``cls_labels.npy`` with the image labels. None = see `sources.voc12`.
        facts: archives and counts. None = the official ones.
        patience: how hard to try to download.

    Returns:
        What is there and what is missing; also written to ``root/manifest.json``.

    Raises:
        ValueError: `root`, `sbd_masks` or an archive cannot be used; says why.
    """
    root, facts = Path(root), facts or official.VOC12
    if sbd_masks is not None and not Path(sbd_masks).exists():
        raise ValueError(f"sbd: {sbd_masks} does not exist; give a folder, zip or tar")
    sources = Sources(root, fetch=fetch, archives=archives, patience=patience)
    result = Prepared("voc12", root, VOC)
    default = root / "VOCdevkit/VOC2012"
    part = first_folder(
        folder / part
        for folder in (root, root / "VOC2012", default)
        for part in ("JPEGImages", "ImageSets")
    )
    voc = default if part is None else part.parent
    clear_abandoned(voc)
    labelled = find_cls_labels(voc, root, cls_labels)
    wanted = _has_gaps(voc, xml=labelled is None)
    result.changed |= sources.unpack(facts.data, voc, _place, wanted=wanted) > 0
    if all(sbd.voc_names(voc, split) for split in ("train", "val")):
        result.changed |= _augment(voc, sources, facts, sbd_masks)
        result.origins["masks of train_aug"] = sources.origin(sbd.FOLDER)
        result.origins["labels"] = str(labelled or "Annotations/*.xml, difficult objects included")
        _count(voc, labelled, sources, facts, result)
    else:
        what = f"{voc}: no ImageSets/Segmentation/train.txt and val.txt"
        result.missing.append(Missing(what, sources.remedy(facts.data)))
    result.write()
    return result


def _place(name: str) -> str | None:
    """From ``VOCdevkit/VOC2012/X`` to ``X``."""
    _, mark, rest = name.partition("VOC2012/")
    return rest if mark else None


def _has_gaps(voc: Path, *, xml: bool) -> bool:
    """Whether a file is missing that is needed and that the devkit's archive holds."""
    lists = [sbd.voc_names(voc, split) for split in ("train", "val")]
    if not all(lists):
        return True
    annotated = {name for names in lists for name in names}
    main = voc / "ImageSets/Main/trainval.txt"
    everything = {*annotated, *sbd.voc_names(voc, "train_aug")}
    if main.is_file():
        everything |= {line.split()[0] for _, line in read_lines(main)}
    needed = [voc / f"JPEGImages/{name}.jpg" for name in everything]
    needed += [voc / f"SegmentationClass/{name}.png" for name in annotated]
    if xml:
        needed += [voc / f"Annotations/{name}.xml" for name in everything]
    return not all(map(is_whole, needed))


def _augment(
    voc: Path, sources: Sources, facts: official.VocFacts, given: str | Path | None
) -> bool:
    """Complete ``SegmentationClassAug`` and the list train_aug; whether anything was written."""
    changed = _write_list(voc, facts)
    if not sbd.is_complete(voc):
        source = (
            Path(given)
            if given is not None
            else sources.find(_MASK_SOURCES, voc / sbd.FOLDER) or sources.archive(facts.sbd)
        )
        if source is not None:
            sources.origin(sbd.FOLDER, source.name)
            written = sbd.build(source, voc)
            log.info("%s: %d masks from %s", sbd.FOLDER, written, source)
            changed |= written > 0
    if (voc / sbd.FOLDER).is_dir():
        changed |= sbd.add_own(voc) > 0
    return _write_list(voc, facts) or changed


def _write_list(voc: Path, facts: official.VocFacts) -> bool:
    """Write ``train_aug.txt`` if it is missing and all its masks exist; whether it was written."""
    names = sbd.train_aug_names(voc)
    if sbd.voc_names(voc, "train_aug") or len(names) != facts.counts["train_aug"]:
        return False
    text = "".join(f"{name}\n" for name in names)
    write_bytes(voc / "ImageSets/Segmentation/train_aug.txt", text.encode())
    return True


def _count(
    voc: Path,
    labelled: Path | None,
    sources: Sources,
    facts: official.VocFacts,
    result: Prepared,
) -> None:
    """Write the manifests of the splits, count their images, and note what is missing."""
    for split in _SPLITS:
        if not sbd.voc_names(voc, split):
            masks = len(sbd.train_aug_names(voc))
            what = (
                f"train_aug: no list ImageSets/Segmentation/train_aug.txt, and {sbd.FOLDER} has "
                f"{masks} masks outside val, expected {facts.counts[split]}"
            )
            result.missing.append(Missing(what, _sbd_remedy(sources, facts)))
            continue
        problems: list[Problem] = []
        manifest = voc12(voc, split, cls_labels=labelled, problems=problems)
        if problems:
            remedy = f"weaktr data check voc12 {voc} --split {split} lists all of them"
            what = f"{split}: {len(problems)} faults, the first: {problems[0]}"
            result.missing.append(Missing(what, remedy))
        manifest = result.add_split(
            replace(manifest, split=split), facts.counts[split], sources.remedy(facts.data)
        )
        unmasked = sum(sample.mask is None for sample in manifest)
        if unmasked:
            needed, why = split != "train_aug", ", which only scoring needs"
            what = f"{split}: {unmasked} masks{'' if needed else why}"
            remedy = sources.remedy(facts.data) if needed else _sbd_remedy(sources, facts)
            result.missing.append(Missing(what, remedy, needed))


def _sbd_remedy(sources: Sources, facts: official.VocFacts) -> str:
    return f"{sources.remedy(facts.sbd)}, or give --sbd {sbd.FOLDER}.zip"
