"""What ``import weaktr`` offers: training by recipe, trained models, and masks of folders.

What it returns draws itself in a notebook. The commands ``weaktr-train``, ``weaktr label`` and
``weaktr predict`` do the same.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch

from weaktr.config import LabelConfig, PredictConfig, Recipe
from weaktr.data import Classes, Sample
from weaktr.data.manifest import Exif
from weaktr.evaluation.notebook import Cams, Mask, as_html, table
from weaktr.files import read_json
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.labels import label_maps, uses_features
from weaktr.inference.patch_cams import CamsOfPatches, cams_of
from weaktr.inference.predictions import Predictor
from weaktr.inference.results import LabelMaps
from weaktr.jobs.folder import Masks, Task, labelled, predicted
from weaktr.jobs.masked import masked_in
from weaktr.messages import few, first_lines
from weaktr.models import Segmenter, Stage1Model, checkpoints
from weaktr.models.precision import choose_device
from weaktr.outputs import METRICS
from weaktr.progress import shown_log
from weaktr.recipes import load_recipe, with_settings
from weaktr.refine import Refiner, choose_refiners, files_of, paths_of
from weaktr.report.page import report_at_the_end
from weaktr.stages.carried import Carried, carried, of_other_stage
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import MODEL
from weaktr.switches import own_switches

log = logging.getLogger("weaktr")

S = TypeVar("S", LabelConfig, PredictConfig)
R_co = TypeVar("R_co", covariant=True)
#: uint8 [H, W, 3] RGB, or the path of an image file.
Image = np.ndarray | str | Path
#: The classes that an image shows: names, or class indices 0..C-1; both may be mixed.
Labels = Sequence[str | int]


class _Reads(Protocol[R_co]):
    """What makes masks or CAMs of photographs."""

    def read(self, sample: Sample) -> R_co: ...

    def inputs(self, sample: Sample, pixels: np.ndarray) -> R_co: ...


def load(path: str | Path, device: str = "auto") -> Model:
    """Read a checkpoint of either stage.

    Where there is a GPU, cuDNN's convolutions keep float32 in this process from then on, unless
    matrix products may take TF32.

    Args:
        path: ``model.safetensors``.
        device: "auto" = CUDA if there is one, else the CPU; or a name of torch's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of weaktr, or no such device.
    """
    with own_switches():
        module, description = checkpoints.load(path, choose_device(device))
    file = checkpoints.weights_file(path)
    own: Carried[Any]
    if isinstance(module, Segmenter):
        own = carried(PredictConfig, file, description)
    else:
        own = carried(LabelConfig, file, description)
    classes = checkpoints.class_names(description, file)
    return Model(module, classes, settings=own.settings, exif=own.exif, file=file)


def train(
    recipe: str | Path | Recipe,
    run: str | Path | None = None,
    settings: Iterable[str] = (),
    *,
    report: bool = True,
) -> TrainedRun:
    """Run all stages of a recipe, as ``weaktr-train`` does; continues where a run stopped.

    Progress is shown; where logging is set up, it goes to the logger "weaktr".

    Args:
        recipe: a recipe's name, its YAML file, or the recipe itself.
        run: folder of the results; None = ``runs/NAME``.
        settings: changes such as ``"train_cam.epochs=5"``, in a list.
        report: also write ``report.html``, as ``weaktr report`` does.

    Returns:
        The run; its folder holds ``train_cam/model.safetensors``, ``label/masks``,
        ``train_seg/model.safetensors``, ``predict/masks``, ``metrics.json``, ``report.html``.

    Raises:
        ValueError: no such recipe, an unknown setting, or what the check before the run found, all
            of it (see `weaktr.stages.pipeline.run_recipe`).
    """
    if not isinstance(recipe, (str, Path, Recipe)):
        raise ValueError(f"recipe: expected a name, a path or a Recipe, got {recipe!r}")
    if isinstance(settings, str):
        raise ValueError(f"settings: expected a list such as [{settings!r}], got text")
    if isinstance(recipe, Recipe):
        recipe = with_settings(recipe, settings)
    else:
        recipe = load_recipe(recipe, settings)
    folder = Path("runs") / recipe.name if run is None else Path(run)
    with own_switches(), shown_log():
        run_recipe(recipe, folder)
        if report:
            report_at_the_end(folder)
    return TrainedRun(folder)


def label(
    model: str | Path | Model,
    photos: str | Path,
    out: str | Path = "labels",
    labels: str | Path | None = None,
    settings: LabelConfig | PredictConfig | Iterable[str] | None = None,
    *,
    emit: Iterable[str] = (),
    exif: Exif | None = None,
    device: str = "auto",
) -> Masks:
    """Pseudo labels of a folder of photographs, as ``weaktr label`` writes them.

    Started again, it goes on with the photographs that are left.

    Args:
        model: a checkpoint's file, a `Model` that was loaded from one (whose settings count, with
            the weights of the file), or a folder of CAMs.
        photos: folder of photographs. All whose labels are known get a mask: those of
            ``train.csv``, ``val.csv`` and ``test.csv`` together (``train_part.csv`` and
            ``val_part.csv`` where ``weaktr init`` wrote these), or of ``labels.csv``.
        out: folder that gets the masks.
        labels: a CSV or JSON with the image-level labels, in place of these.
        settings: of labelling, for a model of stage 2 of prediction; or changes of those that the
            checkpoint carries, such as ``"crf=none"``, in a list.
        emit: also "confidence", "cam".
        exif: "apply" turns photographs as viewers do, and their masks with them; "ignore"; None =
            as a manifest says, else as the `Model` does or the run that trained the model.
        device: see `load`; that of a `Model` is its own.

    Returns:
        The masks by the names of their photographs, such as ``masks["shop/0001"]``.

    Raises:
        ValueError: something does not fit; nothing has been written.
    """
    task = _task(model, photos, out, settings, device, emit=tuple(emit), exif=exif)
    file = None if labels is None else Path(labels)
    with own_switches(), shown_log(), labelled(task, file) as masks:
        return masks


def predict(
    model: str | Path | Model,
    photos: str | Path,
    out: str | Path = "predictions",
    settings: PredictConfig | Iterable[str] | None = None,
    *,
    names: str | Path | None = None,
    exif: Exif | None = None,
    device: str = "auto",
) -> Masks:
    """Masks of a folder of photographs by a model of stage 2, as ``weaktr predict`` writes them.

    Started again, it goes on with the photographs that are left.

    Args:
        names: a file with the names of the only photographs that count, one a line.
        model, photos, out, settings, exif, device: see `label`.

    Returns:
        The masks by the names of their photographs.

    Raises:
        ValueError: something does not fit; nothing has been written.
    """
    task = _task(model, photos, out, settings, device, exif=exif)
    file = None if names is None else Path(names)
    with own_switches(), shown_log(), predicted(task, file) as masks:
        return masks


def _task(
    model: str | Path | Model,
    photos: str | Path,
    out: str | Path,
    settings: LabelConfig | PredictConfig | Iterable[str] | None,
    device: str,
    **options: Any,
) -> Task:
    """What `label` and `predict` are to do.

    Raises:
        ValueError: a model that is in no file.
    """
    source = model
    if isinstance(model, Model):
        if model.file is None:
            raise ValueError("model: expected one that weaktr.load has read, or its file's path")
        source, device = model.file, str(model._device)
        settings = model.settings if settings is None else settings
        if Path(photos).suffix != ".json":  # which says it for itself
            options["exif"] = options["exif"] or model.exif
    if not isinstance(source, (str, Path)):
        raise ValueError(f"model: expected a checkpoint's path or a Model, got {model!r}")
    if not isinstance(settings, (str, LabelConfig, PredictConfig)):
        settings = tuple(settings or ())
    return Task(Path(source), Path(photos), Path(out), settings, device=device, **options)


class TrainedRun(os.PathLike[str]):
    """A run that `train` has finished. It is used as the path of its folder, too.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def __repr__(self) -> str:
        return f"<run in {self.folder}>"

    @property
    def scores(self) -> dict[str, float]:
        """Scores in percent by their names in ``metrics.json``; empty where nothing was scored."""
        return {key: score for key, (score, _) in self._scores().items()}

    def cam_model(self, device: str = "auto") -> Model:
        """The model of stage 1; see `load`."""
        return load(self.folder / "train_cam" / MODEL, device)

    def segmenter(self, device: str = "auto") -> Model:
        """The model of stage 2; see `load`."""
        return load(self.folder / "train_seg" / MODEL, device)

    def masks(self, stage: str) -> Masks:
        """The pseudo labels ("label") or the predictions ("predict").

        Raises:
            ValueError: there are none.
        """
        for masked in masked_in(self.folder):
            if masked.maker == stage:
                names = masked.manifest.classes.names
                for line in first_lines([*masked.masks.unusable.values()]):
                    log.warning("left out: %s", line)
                return Masks(masked.masks.folder, masked.samples, names)
        raise ValueError(
            f"stage: expected label or predict, of which {self.folder} has masks; got {stage!r}"
        )

    def _scores(self) -> dict[str, tuple[float, str]]:
        """Name of a score -> the score in percent, and its conditions in words."""
        file = self.folder / METRICS
        found = read_json(file) if file.is_file() else {"conditions": {}}
        return {key: (found[key], about) for key, about in found["conditions"].items()}

    def _repr_html_(self) -> str:
        """The scores and some of the masks."""
        rows = [(key, f"{score:.1f}", about) for key, (score, about) in self._scores().items()]
        parts = [table(("score", "%", "of"), rows)] if rows else []
        try:
            makers = [masked.maker for masked in masked_in(self.folder)]
        except ValueError as error:  # the photographs have gone
            return "".join([*parts, f"<p>no pictures: {as_html(str(error))}</p>"])
        for maker in makers:
            masks = self.masks(maker)
            title = {"label": "pseudo labels", "predict": "predictions"}[maker]
            parts.append(f"<h4>{len(masks)} {title}</h4>{masks._repr_html_()}")
        return "".join(parts)


class Model:
    """A trained model, as `load` returns it. Stage 1 gives CAMs and labels, stage 2 predictions.

    Args:
        module: in eval mode, on its device. Changes of its weights after the first image may have
            no effect.
        classes: C names in class-index order; None = not known.
        settings: how CAMs, labels or predictions are computed unless a call says otherwise; None =
            the defaults of `LabelConfig`, of stage 2 `PredictConfig`. `load` takes those that the
            checkpoint carries.
        exif: how files are read, see `Sample`; what a manifest says of its own comes first.
        file: from which it was read; None = from none.

    Raises:
        ValueError: not a name for each of the module's classes, or settings of another kind.
    """

    def __init__(
        self,
        module: Stage1Model | Segmenter,
        classes: Sequence[str] | None = None,
        *,
        settings: LabelConfig | PredictConfig | None = None,
        exif: Exif = "ignore",
        file: Path | None = None,
    ) -> None:
        self.module, self.file = module, file
        self.classes = None if classes is None else Classes(tuple(classes)).names
        self.settings: LabelConfig | PredictConfig
        if isinstance(module, Segmenter):
            self.settings = _of_kind(PredictConfig, settings or PredictConfig())
        else:
            self.settings = _of_kind(LabelConfig, settings or LabelConfig())
        count = module.num_labels - 1 if isinstance(module, Segmenter) else module.num_classes
        if self.classes is not None and len(self.classes) != count:
            raise ValueError(
                f"classes: expected {count} names, those of the model, got {len(self.classes)}"
            )
        self.exif: Exif = exif
        self._source: CamsOfModel | CamsOfPatches | None = None
        self._predictor: Predictor | None = None

    def cams(self, image: Image, labels: Labels, settings: LabelConfig | None = None) -> Cams:
        """Class activation maps, as ``weaktr label --dump-cams`` writes them.

        On a GPU the command takes several images at a time, which may round differently.

        Args:
            image: uint8 [H, W, 3] RGB, or the path of an image file.
            labels: K names or class indices.
            settings: how they are computed; None = the model's own, `Model.settings`.

        Returns:
            float32 [K, H, W] in [0, 1], in the order of `labels`; of an image with a longer side
            than `LabelConfig.max_side` at that size.

        Raises:
            ValueError: a model of stage 2, a file that is no image, another kind of array, an
                unknown label, or settings of another kind.
        """
        indices = self._class_indices(labels)
        chosen = self._of_call(LabelConfig, settings)
        result = self._labelled(image, indices, chosen, [])
        assert result.classes is not None
        maps = result.arrays()["cam"][[result.classes.index(index) for index in indices]]
        names = [f"class {i}" if self.classes is None else self.classes[i] for i in indices]
        return Cams(maps, self._photograph(image), names)

    def label(
        self,
        image: Image,
        labels: Labels,
        settings: LabelConfig | None = None,
        *,
        threshold: float | Literal["auto"] | None = None,
        name: str | None = None,
    ) -> Mask:
        """The pseudo label of an image whose classes are known, as by ``weaktr label``.

        Args:
            image: uint8 [H, W, 3] RGB, or the path of an image file.
            labels: names or class indices; an empty list = all background.
            settings: scales, threshold, CRF and so on; None = the model's own.
            threshold: in place of that of the settings. "auto" is chosen for this image alone,
                where ``weaktr label`` chooses one for all images.
            name: of the photograph in its folder, such as "shop/0001", by which refiners find its
                proposals and its teacher; needed for these alone.

        Returns:
            uint8 [H, W]: 0 = background, k + 1 = class index k.

        Raises:
            ValueError: as in `cams`; or refiners that read files, and no name.
        """
        indices = self._class_indices(labels)
        chosen = self._of_call(LabelConfig, settings)
        if threshold is not None:
            chosen = replace(chosen, threshold=threshold)
        mask = self._labelled(image, indices, chosen, choose_refiners(chosen), name).mask()
        return Mask(mask, self._photograph(image), self.classes)

    def predict(
        self, image: Image, settings: PredictConfig | None = None, *, name: str | None = None
    ) -> Mask:
        """The mask of an image whose classes are not known, as by ``weaktr predict``.

        Args:
            image: uint8 [H, W, 3] RGB, or the path of an image file.
            settings: scales, windows, CRF and so on; None = the model's own.
            name: see `label`.

        Returns:
            uint8 [H, W]: 0 = background, k + 1 = class index k.

        Raises:
            ValueError: a model of stage 1, a file that is no image, another kind of array,
                settings of another kind, or refiners that read files, and no name.
        """
        if not isinstance(self.module, Segmenter):
            hint = of_other_stage(PredictConfig, self.file)
            raise ValueError(
                f"predict: a model of stage 1 must be told what is shown; use label{hint}"
            )
        settings = self._of_call(PredictConfig, settings)
        with own_switches(self._device):
            predictor = self._predictor
            if predictor is None or predictor.settings != settings:
                predictor = self._predictor = Predictor(self.module, settings)
            found = _name_for(predictor.refiners, name)
            (result,) = predictor.label_maps([self._read(predictor, image, None, found)])
            mask = result.mask()
        return Mask(mask, self._photograph(image), self.classes)

    def _read(
        self, source: _Reads[R_co], image: Image, labels: tuple[int, ...] | None, name: str
    ) -> R_co:
        """What a source takes of an image; a file is read as the commands read it.

        Raises:
            ValueError: a file that is no image, or another kind of array.
        """
        if isinstance(image, (str, Path)):
            return source.read(Sample(name, Path(image), labels, None, "", exif=self.exif))
        return source.inputs(Sample(name, Path(), labels, None, ""), _checked(image))

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _of_call(self, kind: type[S], settings: S | None) -> S:
        """The settings of a call, else the model's own."""
        return _of_kind(kind, self.settings if settings is None else settings)

    def _photograph(self, image: Image) -> np.ndarray | Sample:
        """What a mask of an image draws itself over."""
        if isinstance(image, np.ndarray):
            return image
        return Sample(Path(image).stem, Path(image), None, None, "", exif=self.exif)

    def _labelled(
        self,
        image: Image,
        indices: Sequence[int],
        settings: LabelConfig,
        refiners: Sequence[Refiner],
        name: str | None = None,
    ) -> LabelMaps:
        """The pseudo label and the CAMs of an image; its classes ascending and each once."""
        assert not isinstance(self.module, Segmenter)
        if settings.threshold == "search_on_masks":
            raise ValueError("threshold: 'search_on_masks' is for recipes; give a number, or auto")
        with own_switches(self._device):
            source = self._source
            if source is None or source.settings != settings:
                # not of this call's `refiners`: `cams` has none, and shares the source with `label`
                features = uses_features(settings, choose_refiners(settings))
                source = self._source = cams_of(self.module, settings, with_features=features)
            shown, found = tuple(sorted(set(indices))), _name_for(refiners, name)
            inputs = self._read(source, image, shown, found)
            (result,) = label_maps(source, [inputs], settings.threshold, refiners, emit=("cam",))
        return result

    def _class_indices(self, labels: Labels) -> list[int]:
        """The class index of each label.

        Raises:
            ValueError: a model of stage 2, or an unknown label.
        """
        if isinstance(self.module, Segmenter):
            hint = of_other_stage(LabelConfig, self.file)
            raise ValueError(f"labels: a model of stage 2 takes none; use predict{hint}")
        if isinstance(labels, str):
            raise ValueError(f"labels: expected a list of class names or indices, got {labels!r}")
        names, count = self.classes or (), self.module.num_classes
        indices = []
        for label in labels:
            if isinstance(label, str) and names:
                if label not in names:
                    (nearest,) = difflib.get_close_matches(label, names, n=1, cutoff=0.0)
                    raise ValueError(
                        f"labels: unknown class {label!r}; did you mean {nearest!r}? "
                        f"Known here: {', '.join(names)}"
                    )
                indices.append(names.index(label))
            elif (
                isinstance(label, (int, np.integer))
                and not isinstance(label, bool)
                and 0 <= label < count
            ):
                indices.append(int(label))
            else:
                known = "names or indices" if names else "indices (the checkpoint has no names)"
                raise ValueError(f"labels: expected {known} 0..{count - 1}, got {label!r}")
        return indices


def _checked(image: object) -> np.ndarray:
    """An image in memory, uint8 [H, W, 3], contiguous.

    Raises:
        ValueError: another kind of array.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image: expected uint8 [H, W, 3] RGB or a path, got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"image: expected uint8 [H, W, 3] RGB or a path, got {image.dtype} {image.shape}"
        )
    return np.require(image, requirements=["C", "W"])  # torch shares the memory


def _name_for(refiners: Sequence[Refiner], name: str | None) -> str:
    """The name of an image, which matters to refiners that read files by it.

    Raises:
        ValueError: there are some, and it is not known.
    """
    if not (read := paths_of(refiners)):
        return name or "image"
    if name is None:
        raise ValueError(
            f"name: expected that of the photograph in its folder, such as 'shop/0001', by which "
            f"refiners look for it in {few([*map(str, read)])}; got none"
        )
    if not files_of(refiners, name):
        log.warning("%s: not in %s, so its labels stay", name, few([*map(str, read)]))
    return name


def _of_kind(kind: type[S], settings: object) -> S:
    """`settings`, which are to be of a kind.

    Raises:
        ValueError: of another one.
    """
    if not isinstance(settings, kind):
        raise ValueError(f"settings: expected a {kind.__name__} or None, got {settings!r}")
    return settings
