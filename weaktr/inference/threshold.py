"""The background threshold of a set of photographs, chosen without pixel labels.

A good threshold parts each photograph's patches into two groups that look different: foreground,
whose largest CAM is above it, and background. How different is measured on patch features, which
know nothing of the CAMs (`fisher_curve`); the threshold where the mean over photographs is largest
is taken.

Source: Fisher, "The use of multiple measurements in taxonomic problems", 1936 (the criterion); that
it chooses thresholds is this project's own observation (docs/evaluation.md has the numbers).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.data import Problem, Sample
from weaktr.files import read_json, write_json
from weaktr.inference.cams import CamInputs, CamSource
from weaktr.inference.pipeline import Parts, limits_for, run_pipeline
from weaktr.inference.results import FINITE, LabelMaps, hand_over, is_finite
from weaktr.messages import counted
from weaktr.ops.upload import upload
from weaktr.progress import Meter
from weaktr.seals import is_sealed

log = logging.getLogger("weaktr")

#: The thresholds among which is chosen.
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))
#: Of how many photographs the mean is taken at most.
MOST_IMAGES = 200
#: The file of a choice, in the folder of the masks.
CHOICE = "threshold.json"
#: Values of a curve that differ by less are equal.
EQUAL = 1e-6


@dataclass(frozen=True)
class Choice:
    """A threshold and how it was chosen.

    Args:
        threshold: the background score.
        way: "auto" or "search_on_masks", as the setting says.
        criterion: what was largest at this threshold, in words.
        images: names of the photographs that count.
        curve: (threshold, criterion), ascending.
        split: data set and split whose true masks were used; "" = none, or an older version did
            not note it.
    """

    threshold: float
    way: str
    criterion: str
    images: tuple[str, ...]
    curve: tuple[tuple[float, float], ...]
    split: str = ""

    def in_words(self) -> str:
        """The threshold and where it comes from, to stand beside scores."""
        masks = ""
        if self.way == "search_on_masks":
            of_split = f" of {self.split}" if self.split else ""
            images = counted(len(self.images), "image", "images")
            masks = f", chosen with true masks of {images}{of_split}"
        return f"{self.way}: {self.threshold:g}{masks}"


def fisher_curve(features: Tensor, cams: Tensor, thresholds: Sequence[float]) -> Tensor:
    """How much of the variance of a photograph's patches each threshold explains.

        score_p = mean over the pixels of patch p of max_k cam_k
        foreground(t) = {p: score_p > t}, of n_1 patches with mean feature m_1; background: n_0, m_0
        criterion(t) = n_1 n_0 / n² |m_1 - m_0|² / (1/n Σ_p |f_p - m|²)

    with features f_p of unit length. It is 0 where one of the groups is empty, and 1 at most.

    Args:
        features: [D, h, w] of the patches.
        cams: float [K, H, W] in [0, 1], on the same device.
        thresholds: T of them.

    Returns:
        float32 [T], there.
    """
    if not len(cams):
        return features.new_zeros(len(thresholds), dtype=torch.float32)
    patches = F.normalize(features.float().flatten(1), dim=0).T
    patches = patches - patches.mean(0)
    rows, columns = features.shape[1:]
    scores = F.adaptive_avg_pool2d(cams.float().amax(0)[None], (rows, columns)).flatten()
    limits = upload(torch.tensor(thresholds, dtype=scores.dtype), scores.device)
    inside = (scores > limits[:, None]).float()
    count, front = len(patches), inside.sum(1)
    back = count - front
    front_mean = inside @ patches / front.clamp_min(1)[:, None]
    back_mean = (1 - inside) @ patches / back.clamp_min(1)[:, None]
    between = front * back / count**2 * (front_mean - back_mean).square().sum(1)
    total = patches.square().sum(1).mean()
    return between / total.clamp_min(1e-6)  # equal patches differ by rounding alone


def best_threshold(thresholds: Sequence[float], values: Sequence[float]) -> float:
    """The threshold with the largest value; of equal ones side by side the one in the middle."""
    largest = max(values) - EQUAL
    first = next(index for index, value in enumerate(values) if value >= largest)
    last = first
    while last + 1 < len(values) and values[last + 1] >= largest:
        last += 1
    return thresholds[(first + last) // 2]


def drawn(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, by a digest of their names: whatever their order, the same ones."""

    def digest(sample: Sample) -> bytes:
        return hashlib.sha256(sample.name.encode(errors="surrogatepass")).digest()

    return sorted(samples, key=digest)[:count]


def mean_fisher_curve(
    source: CamSource, samples: Sequence[Sample], queue_mb: int, title: str = "threshold"
) -> tuple[np.ndarray, list[str]]:
    """The mean of `fisher_curve` over photographs, at `THRESHOLDS`.

    Args:
        source: of CAMs with features.
        samples: the photographs; one that cannot be read or shows no class is left out.
        queue_mb: see `LabelConfig`.
        title: of the progress.

    Returns:
        float64 [T], and the names of the photographs that count.

    Raises:
        PipelineError: see `run_pipeline`.
    """
    total, names = np.zeros(len(THRESHOLDS)), list[str]()

    def compute(batch: Sequence[CamInputs]) -> list[LabelMaps]:
        rows, maps = [], []
        for one, cams in zip(batch, source.cams(batch), strict=True):
            assert cams.features is not None
            curve = fisher_curve(cams.features, cams.maps, THRESHOLDS)
            rows.append((one.sample, one.photograph, cams.classes, cams.probabilities))
            maps.append({"curve": curve, FINITE: is_finite(cams.maps)})
        return hand_over(rows, maps)

    def write(result: LabelMaps) -> tuple[np.ndarray, bool] | Problem:
        if (problem := result.problem()) is not None:
            return problem
        return result.arrays()["curve"].astype(np.float64), bool(result.classes)

    with Meter(title, len(samples)) as meter:

        def record(sample: Sample, written: tuple[np.ndarray, bool] | Problem) -> None:
            nonlocal total
            if isinstance(written, Problem):
                log.warning("%s: does not count: %s", title, written)
            elif written[1]:
                total = total + written[0]
                names.append(sample.name)
            meter.advance()

        run_pipeline(
            samples,
            Parts(source.read, source.fits, compute, write, record),
            limits_for(source.device, queue_mb),
        )
    return total / max(1, len(names)), names


def require_patch_features(source: CamSource) -> None:
    """Raise `ValueError` unless CAMs come with the features by which a threshold is chosen."""
    if not source.with_features:
        raise ValueError(
            "threshold: 'auto' needs the patch features of a model, which these CAMs do not have "
            "(those in files have none): give a number, or label with the model"
        )


def choose_by_features(source: CamSource, samples: Sequence[Sample], queue_mb: int) -> Choice:
    """The threshold whose foreground and background differ most in their patch features.

    Args:
        source: of CAMs with features.
        samples: those of which `MOST_IMAGES` are drawn.
        queue_mb: see `LabelConfig`.

    Raises:
        ValueError: the source has no features, or no threshold parts any photograph.
    """
    require_patch_features(source)
    values, names = mean_fisher_curve(source, drawn(samples, MOST_IMAGES), queue_mb)
    if not values.max() > 0:
        raise ValueError(
            f"threshold: 'auto' expected CAMs that part foreground from background, got none in "
            f"{len(names)} images that show a class: give a number"
        )
    points = tuple((t, round(float(value), 6)) for t, value in zip(THRESHOLDS, values, strict=True))
    best = best_threshold(THRESHOLDS, values.tolist())
    criterion = "share of the variance of patch features between foreground and background"
    return Choice(best, "auto", criterion, tuple(names), points)


def write_choice(choice: Choice, folder: Path, *, once: bool = False) -> None:
    """Write `CHOICE` into a folder of masks; with `once` only where nobody has done so."""
    write_json(folder / CHOICE, asdict(choice), seal=True, is_new=once)


def read_choice(folder: Path) -> Choice | None:
    """What `write_choice` wrote; None where there is nothing.

    Raises:
        ValueError: somebody has changed the file, or it is another one.
    """
    path = folder / CHOICE
    if not path.is_file() or (path.stat().st_size == 0):
        return None
    if not is_sealed(path):
        raise ValueError(
            f"{path}: is not as weaktr wrote it: delete it to have the threshold chosen again, or "
            "give a number as threshold"
        )
    content = read_json(path)
    try:
        points = tuple((float(t), float(value)) for t, value in content["curve"])
        images = tuple(map(str, content["images"]))
        threshold, split = float(content["threshold"]), str(content.get("split", ""))
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold {threshold:g}")
        way, criterion = str(content["way"]), str(content["criterion"])
        return Choice(threshold, way, criterion, images, points, split)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected a choice of a threshold, got {error}") from error
