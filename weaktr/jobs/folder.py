"""A model and a folder of photographs -> a folder of masks.

What ``weaktr label`` and ``weaktr predict`` do, and `weaktr.label` and `weaktr.predict` in Python.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from weaktr import data
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data import IGNORE, DataError, Sample
from weaktr.data.listing import BESIDE, photographs_of
from weaktr.data.manifest import Exif, Manifest
from weaktr.data.masks import MaskFolder
from weaktr.data.problems import Findings
from weaktr.data.sources.folder import NOT_LISTED
from weaktr.data.splits import joined, label_files
from weaktr.evaluation.notebook import MOST_PICTURES, Mask, masks_html
from weaktr.evaluation.overview import draw_contact_sheet, spread
from weaktr.inference.labels import uses_features
from weaktr.inference.patch_cams import WITHOUT_EFFECT, cams_of
from weaktr.inference.probabilities import for_ensemble
from weaktr.inference.stored_cams import StoredCams
from weaktr.labelling.masks import MaskReport
from weaktr.labelling.whose import require_same_work
from weaktr.messages import counted, few, listed
from weaktr.models import PatchModel, Segmenter, Stage1Model, checkpoints
from weaktr.models.precision import choose_device
from weaktr.outputs import claimed_for_masks
from weaktr.recipes import as_tree, identity, with_settings
from weaktr.refine import Refiner, choose_refiners, paths_of
from weaktr.stages.carried import Carried, carried, carried_of_cams, of_other_stage
from weaktr.stages.check_models import require_views
from weaktr.stages.init import labels_since
from weaktr.stages.label import AFTER_CAMS, label, require_features
from weaktr.stages.predict import predict
from weaktr.stages.threshold import require_way

log = logging.getLogger("weaktr")

#: Data sets with lists and image-level labels of their own, see `weaktr.data.SOURCES`.
DATASETS = ("coco14", "voc12")
#: What ``--emit`` takes.
EMITTED = ("mask", "confidence", "cam")
S = TypeVar("S", LabelConfig, PredictConfig)


class Masks(Mapping[str, Mask]):
    """The masks that were made of photographs, by their names; drawn in a notebook.

    Args:
        folder: of the masks.
        samples: the photographs that were to get one.
        classes: C names; None = not known.
        report: what was made now and what was left out; None = they were there.

    Attributes:
        contact_sheet: a picture of some of them; None = there is no mask.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        classes: Sequence[str] | None,
        report: MaskReport | None = None,
    ) -> None:
        self.folder, self.report = folder, report
        self.contact_sheet: Path | None = None
        self.classes = None if classes is None else tuple(classes)
        self._masks = MaskFolder(folder)
        self._samples = {s.name: s for s in samples if s.name in self._masks}

    @property
    def label_names(self) -> list[str]:
        """L names, background first; by number where the names of the classes are not known."""
        if self.classes is not None:
            return ["background", *self.classes]
        of_all = (label for entry in self._masks.entries.values() for label in entry.labels)
        last = max((label for label in of_all if label != IGNORE), default=0)
        return ["background", *(f"class {index}" for index in range(last))]

    def __getitem__(self, name: str) -> Mask:
        sample = self._samples[name]
        return Mask(self._masks.read(name), sample, self.classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __repr__(self) -> str:
        return f"<{len(self)} masks in {self.folder}>"

    def _repr_html_(self) -> str:
        """Some of them, spread evenly over all."""
        names = spread(list(self), MOST_PICTURES)
        drawn = []
        for name in names:
            with suppress(DataError):  # gone, or changed by hand into something else
                drawn.append((name, self[name]))
        return masks_html(drawn, len(self) - len(drawn))


@dataclass(frozen=True)
class Task:
    """Which masks to make, and where.

    Args:
        source: a checkpoint; to label also a folder of CAMs.
        images: the folder of photographs.
        out: gets the masks.
        settings: of labelling or prediction; or changes of those that the checkpoint carries, such
            as ``"crf=none"``.
        emit: what to write beside the masks, see `label` and `predict`.
        exif: see `Sample`; it comes before what a manifest says of its photographs, which "ignore"
            must not contradict. None = as a manifest says, else as `carried_exif` does.
        device: a name for `choose_device`.
        profile: see `weaktr.labelling.masks.make_masks`.
        teacher: a folder of masks for the refiner "teacher", which then comes last.
        dataset: what `images` is the root of, one of `DATASETS`; None = a folder of photographs,
            or a manifest (.json).
        split: of the data set.
        carried_exif: as the checkpoint, or the folder of CAMs, carries it; see `chosen`.
    """

    source: Path
    images: Path
    out: Path
    settings: LabelConfig | PredictConfig | Sequence[str] = ()
    emit: Collection[str] = ()
    exif: Exif | None = None
    device: str = "auto"
    profile: Path | None = None
    teacher: Path | None = None
    dataset: str | None = None
    split: str = "train"
    carried_exif: Exif = "ignore"

    @property
    def is_listed(self) -> bool:
        """Whether a manifest or a data set says which photographs there are, and their `exif`."""
        return self.dataset is not None or self.images.suffix == ".json"

    @property
    def exif_unless_listed(self) -> Exif:
        """How photographs are read of which no manifest says it.

        Masks of a manifest note it, too, as they always did, so that their folders stay valid.
        """
        return self.exif or self.carried_exif

    def chosen(
        self, kind: type[S], carried_with: Callable[[Sequence[str]], Carried[S]]
    ) -> tuple[S, Task]:
        """The settings of the task, which the log tells, and the task with what is carried.

        Args:
            kind: of the settings.
            carried_with: gives those that are carried, with changes ``key=value``.

        Raises:
            ValueError: settings of another kind, or a change that cannot be.
        """
        given = self.settings
        own: Carried[S]
        if isinstance(given, kind):
            every = [f"{key}={json.dumps(value)}" for key, value in as_tree(given).items()]
            own = replace(carried_with(every), settings=given, origin="as given", changed=())
        elif isinstance(given, (str, LabelConfig, PredictConfig)):
            raise ValueError(
                f"settings: expected a {kind.__name__} or a list such as ['crf=none'], "
                f"got {given!r}"
            )
        else:
            own = carried_with(given)
        if self.teacher is not None:
            teacher: dict[str, Any] = {"teacher": {"folder": str(self.teacher)}}
            refiners: dict[str, Any] = {"refiners": (*own.settings.refiners, teacher)}
            own = replace(own, settings=replace(own.settings, **refiners))
        task = replace(self, carried_exif=own.exif)
        exif = (self.exif or "ignore") if self.is_listed else task.exif_unless_listed
        log.info("%s", replace(own, exif=exif).in_words())
        return own.settings, task

    @contextmanager
    def claimed(
        self,
        command: str,
        source: Path,
        inputs: Mapping[str, Any],
        classes: Sequence[str] | None,
        files: Iterable[Path | None],
        read: Iterable[Path],
    ) -> Iterator[None]:
        """Have the folder to oneself.

        Args:
            command: "label" or "predict".
            source: the checkpoint's ``.safetensors`` file, or the folder of CAMs.
            inputs: settings that the masks depend on.
            classes: their names; None = not known.
            files: that say what the photographs are, if any.
            read: what the refiners read.

        Raises:
            ValueError: see `require_same_work` and `claimed_for_masks`.
        """
        about = {
            "command": command,
            "photographs": str(self.images.resolve()),
            "classes": None if classes is None else list(classes),
            "exif": self.exif_unless_listed,
        }
        require_same_work(self.out, about)
        turned = {"exif": "apply"} if self.exif_unless_listed == "apply" else {}
        settings = {**inputs, **turned}
        given = [file for file in files if file is not None]
        folders = [photographs_of(self.images), self.images / "masks"]
        images = [*(folders if self.images.is_dir() else []), *read]
        with claimed_for_masks(self.out, source, settings, given, images, about):
            yield

    def masks(
        self, report: MaskReport, samples: Sequence[Sample], classes: Sequence[str] | None
    ) -> Masks:
        """The masks that were made, with a contact sheet beside them."""
        masks = Masks(self.out, samples, classes, report)
        masks.contact_sheet = draw_contact_sheet(self.out, samples, masks.label_names)
        return masks


@contextmanager
def labelled(task: Task, labels: Path | None = None) -> Iterator[Masks]:
    """Label photographs; their folder is ours until the end of the ``with`` statement.

    Args:
        task: its `source` is a checkpoint of either stage, or a folder of CAMs.
        labels: the image-level labels; None = the label files among the photographs, those of
            all splits together (`weaktr.data.splits.label_files`). Without any, the model
            predicts what each of them shows.

    Raises:
        ValueError: something does not fit; nothing has been written.
        PipelineError: see `weaktr.inference.pipeline.run_pipeline`.
    """
    task = replace(task, emit=beside_masks(task.emit))
    if task.source.is_dir():
        with _labelled_stored_cams(task, labels) as masks:
            yield masks
        return
    loaded = load_model(task)
    by = _labelled_by_segmenter if isinstance(loaded.model, Segmenter) else _labelled_by_cams
    with by(loaded, task, labels) as masks:
        yield masks


def beside_masks(emit: Collection[str]) -> list[str]:
    """What is to be written beside the masks, of what ``--emit`` says.

    Raises:
        ValueError: an unknown name.
    """
    for name in emit:
        if name not in EMITTED:
            raise ValueError(f"--emit: expected some of {', '.join(EMITTED)}; got {name!r}")
    return sorted(set(emit) - {"mask"})


@contextmanager
def predicted(task: Task, names: Path | None = None) -> Iterator[Masks]:
    """Predict photographs; their folder is ours until the end of the ``with`` statement.

    Args:
        task: its `source` is a checkpoint of stage 2.
        names: a file with the names of the only photographs that count; None = all.

    Raises:
        ValueError: something does not fit; nothing has been written.
        PipelineError: see `weaktr.inference.pipeline.run_pipeline`.
    """
    if not isinstance(task.settings, (str, LabelConfig, PredictConfig)):
        with_settings(PredictConfig(), task.settings)  # a slip is said before a model is read
    loaded = load_model(task)
    if not isinstance(loaded.model, Segmenter):
        hint = of_other_stage(PredictConfig, loaded.file)
        raise ValueError(f"{task.source}: expected a stage-2 checkpoint, got stage 1{hint}")
    settings, task = loaded.settings_of(task, PredictConfig)
    refiners = require_settings(loaded.model, settings)
    listed_in = manifest_of(task)
    samples = (listed_in or data.unlabelled(task.images, exif=task.exif_unless_listed)).samples
    if names is not None:
        samples = data.only(samples, data.read_names(names))
    classes, files = loaded.classes, [names]
    with task.claimed(
        "predict", loaded.file, identity(settings), classes, files, paths_of(refiners)
    ):
        report = predict(
            loaded.model, samples, task.out, settings, emit=task.emit, profile=task.profile
        )
        yield task.masks(report, samples, classes)


class Loaded(NamedTuple):
    """A model from its checkpoint."""

    model: Stage1Model | Segmenter
    classes: tuple[str, ...] | None
    file: Path  #: ``.safetensors``
    description: dict[str, Any]

    def carried(self, kind: type[S], changes: Sequence[str]) -> Carried[S]:
        """The settings that the checkpoint carries, with changes; see `carried`."""
        return carried(kind, self.file, self.description, changes)

    def settings_of(self, task: Task, kind: type[S]) -> tuple[S, Task]:
        """See `Task.chosen`; the log says which settings do nothing with this model."""
        settings, task = task.chosen(kind, partial(self.carried, kind))
        usual = kind()
        names = [
            name
            for name in fields_without_effect(self.model)
            if getattr(settings, name) != getattr(usual, name)
        ]
        if names:
            log.warning("without effect with %s: %s", self.file, ", ".join(names))
        return settings, task


def fields_without_effect(model: Stage1Model | Segmenter) -> Sequence[str]:
    """The settings of labelling, or of prediction, that do nothing with a model."""
    if isinstance(model, Segmenter):
        return ("image_weight",) if model.image_head is None else ()
    return WITHOUT_EFFECT if isinstance(model, PatchModel) else ()


def load_model(task: Task) -> Loaded:
    model, description = checkpoints.load(task.source, choose_device(task.device))
    classes = checkpoints.class_names(description, task.source)
    return Loaded(model, classes, checkpoints.weights_file(task.source), description)


def require_settings(model: Segmenter, settings: PredictConfig) -> list[Refiner]:
    """What is wrong with the settings is said before anything is written; gives the refiners."""
    require_views(settings)
    for_ensemble(model, settings.ensemble)
    return choose_refiners(settings)


def photographs(
    task: Task, labels: Path | None, classes: Sequence[str] | None
) -> tuple[Sample, ...]:
    """The photographs: with image-level labels where there are files of them, else without.

    Raises:
        ValueError: a file that may be meant as the labels, but has another name.
        DataError: label files are wrong, or say different things of a photograph.
    """
    images = task.images
    if (listed_in := manifest_of(task, labels, classes)) is not None:
        return listed_in.samples
    files = label_files(images) if labels is None else {"train": labels}
    if not files:
        patterns = ("[!.]*.csv", "[!.]*.json")
        if others := sorted(file.name for kind in patterns for file in images.glob(kind)):
            raise ValueError(
                f"{images}: expected labels.csv or train.csv for image-level labels, found "
                f"{others[0]}: give it by --labels, or move it away to let the model predict what "
                "each image shows"
            )
        log.warning(
            "%s: no labels.csv or train.csv and no --labels, so the model predicts what each image "
            "shows", images,
        )  # fmt: skip
        return data.unlabelled(images, exif=task.exif_unless_listed).samples
    if classes is None:
        raise ValueError(f"{task.source}: this checkpoint does not name its classes")
    found = {split: Findings() for split in files}
    options: dict[str, Any] = {"classes": classes, "exif": task.exif_unless_listed}
    manifests = []
    for split in files:
        own = data.folder(images, labels, split=split, problems=found[split], **options)
        if found[split].count("error"):
            own = data.folder(images, labels, split=split, **options)  # raises
        manifests.append(own)
    samples = joined(manifests)
    log.info("labels: %s", _counted_files(files.values(), list(map(len, manifests))))
    if labels is None and (told := labels_since(images)) is not None:
        log.warning("%s", told)
    _tell_not_listed(next(iter(found.values())), images, [file.name for file in files.values()])
    return samples


def manifest_of(
    task: Task, labels: Path | None = None, classes: Sequence[str] | None = None
) -> Manifest | None:
    """The photographs of a data set, or of a manifest; None = the task speaks of a folder.

    Args:
        task: see `Task`.
        labels: a file of image-level labels, which data sets have already.
        classes: C names, among which those of the data set must be; None = they do not matter.

    Raises:
        ValueError: other classes, a file of labels, or an `exif` that contradicts it; or what the
            data set's reader raises.
    """
    if not task.is_listed:
        return None
    if labels is not None:
        raise ValueError(f"--labels: {task.images} has image-level labels already")
    if task.dataset is None:
        manifest = _as_asked(Manifest.load(task.images), task)
    else:
        options: dict[str, Any] = {}
        if task.exif == "apply":
            raise ValueError(
                f"--exif apply: masks of {task.dataset} are of the pixels as stored; expected "
                "--exif ignore"
            )
        if task.dataset == "coco14" and classes is not None and len(classes) in (80, 90):
            options = {"ids": len(classes)}
        manifest = data.load_manifest(task.dataset, task.images, task.split, **options)
    where = "" if task.dataset is None else f", {task.dataset} {task.split}"
    log.info("photographs: %s of %s%s", f"{len(manifest):,}", task.images, where)
    return manifest if classes is None else _renumbered(manifest, classes, task)


def _as_asked(manifest: Manifest, task: Task) -> Manifest:
    """A manifest whose photographs are turned where a task asks for it.

    Raises:
        ValueError: the task asks for pixels as stored, and the manifest turns some.
    """
    if task.exif == "apply":
        turned: tuple[Sample, ...] = tuple(replace(sample, exif="apply") for sample in manifest)
        return replace(manifest, samples=turned)
    count = sum(sample.exif == "apply" for sample in manifest)
    if task.exif == "ignore" and count:
        raise ValueError(
            f"--exif ignore: {task.images} says exif: apply of "
            f"{counted(count, 'photograph', 'photographs')}; leave --exif out, or change it there"
        )
    return manifest


def _renumbered(manifest: Manifest, classes: Sequence[str], task: Task) -> Manifest:
    """A manifest whose class indices are those of the checkpoint.

    Raises:
        ValueError: it has classes that the checkpoint does not know.
    """
    own = manifest.classes.names
    if not own or own == tuple(classes):
        return manifest
    if unknown := [name for name in own if name not in classes]:
        raise ValueError(
            f"{task.images}: expected classes of {task.source} ({few(classes)}), got {few(unknown)}"
        )
    index = [list(classes).index(name) for name in own]
    samples = tuple(
        sample if sample.labels is None
        else replace(sample, labels=tuple(sorted(index[label] for label in sample.labels)))
        for sample in manifest
    )  # fmt: skip
    return replace(manifest, samples=samples)


def _counted_files(files: Iterable[Path], counts: Sequence[int]) -> str:
    """``photos/train.csv (52 photographs) and photos/val.csv (8)``."""
    told = [f"{file} ({count:,})" for file, count in zip(files, counts, strict=True)]
    told[0] = f"{told[0][:-1]} {'photograph' if counts[0] == 1 else 'photographs'})"
    return listed(told)


def _tell_not_listed(found: Findings, images: Path, files: Sequence[str]) -> None:
    """Warn of photographs that no label file speaks of."""
    if count := found.counts["warning", NOT_LISTED]:
        first = [Path(problem.file).name for problem in found if problem.kind == NOT_LISTED]
        log.warning(
            "%s not in %s, so without a mask (%s)",
            counted(count, f"photograph in {images} is", f"photographs in {images} are"),
            listed(files), few(first),
        )  # fmt: skip
    for problem in found:
        if problem.kind == BESIDE:
            log.warning("%s: %s, so without a mask", images, problem.message)


@contextmanager
def _labelled_by_cams(loaded: Loaded, task: Task, labels: Path | None) -> Iterator[Masks]:
    """By CAMs of the image-level labels, or of the classes that the model predicts."""
    model, classes, file, _ = loaded
    assert not isinstance(model, Segmenter)
    settings, task = loaded.settings_of(task, LabelConfig)
    samples = photographs(task, labels, classes)
    refiners = choose_refiners(settings)
    source = cams_of(
        model,
        settings,
        settings.predict_above,
        with_features=uses_features(settings, refiners),
        with_views="confidence" in task.emit and settings.confidence == "stability",
    )
    require_way(settings, source)
    del model, loaded  # on a CPU the source has its own copy of most weights
    with task.claimed("label", file, identity(settings), classes, [labels], paths_of(refiners)):
        report = label(source, samples, task.out, settings, emit=task.emit, profile=task.profile)
        yield task.masks(report, samples, classes)


@contextmanager
def _labelled_by_segmenter(loaded: Loaded, task: Task, labels: Path | None) -> Iterator[Masks]:
    """By predictions among the image-level labels, where there are any."""
    model, classes, file, _ = loaded
    assert isinstance(model, Segmenter)
    hint = of_other_stage(LabelConfig, file)
    if task.emit:
        raise ValueError(
            f"--emit {','.join(task.emit)}: expected mask alone for a stage-2 checkpoint "
            f"({task.source}); CAMs are of stage 1{hint}"
        )
    if hint:
        log.info("%s: of stage 2, so masks are predictions; CAMs are of stage 1%s", file, hint)
    settings, task = loaded.settings_of(task, PredictConfig)
    samples = photographs(task, labels, classes)
    refiners = require_settings(model, settings)
    with task.claimed("label", file, identity(settings), classes, [labels], paths_of(refiners)):
        report = predict(
            model, samples, task.out, settings, given_classes=True, profile=task.profile
        )
        yield task.masks(report, samples, classes)


@contextmanager
def _labelled_stored_cams(task: Task, labels: Path | None) -> Iterator[Masks]:
    """By CAMs that are there: threshold and refinement."""
    settings, task = task.chosen(LabelConfig, partial(carried_of_cams, task.source, AFTER_CAMS))
    refiners = choose_refiners(settings)  # what is wrong is said before anything is written
    default = as_tree(LabelConfig())
    ineffective = [
        key
        for key, value in as_tree(settings).items()
        if key not in AFTER_CAMS and value != default[key]
    ]
    ineffective += ["--labels"] if labels else []
    ineffective += ["--emit cam"] if "cam" in task.emit else []
    if ineffective:
        raise ValueError(
            f"{', '.join(ineffective)}: of no effect on CAMs that are there ({task.source}); "
            f"expected {', '.join(AFTER_CAMS)}"
        )
    inputs = {key: value for key, value in identity(settings).items() if key in AFTER_CAMS}
    listed_in = manifest_of(task)
    samples = (listed_in or data.unlabelled(task.images, exif=task.exif_unless_listed)).samples
    cams = StoredCams(task.source, samples, choose_device(task.device))
    require_features(refiners, cams)
    require_way(settings, cams)
    with task.claimed("label", task.source, inputs, None, [], paths_of(refiners)):
        report = label(cams, samples, task.out, settings, emit=task.emit, profile=task.profile)
        yield task.masks(report, samples, None)
