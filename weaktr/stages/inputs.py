"""What the results of a stage are made from: settings, images and labels, weights, earlier results.

What counts is the content of files, not where they are: `weaktr.contents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weaktr.contents import digest_of
from weaktr.data import Manifest, Sample
from weaktr.data.parallel import ordered_map
from weaktr.outputs import fingerprint, finished_facts
from weaktr.progress import track
from weaktr.recipes import identity
from weaktr.refine import Refiner, among, files_of
from weaktr.stages.run import Run, Stage, result_of

#: In place of the digest of a file that cannot be read.
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Inputs:
    """The inputs of a stage.

    Args:
        made_from: fingerprint of all of which a change makes the whole stage run again.
        images: digest of the images and their labels.
        facts: what went into `made_from`, by name.
        renamed: the fingerprint that older versions had, with other names of settings' values.
        former: that of still older ones, of paths and sizes in place of content.
    """

    made_from: str
    images: str
    facts: Mapping[str, Any]
    renamed: str
    former: str

    def fit(self, stored: Mapping[str, Any] | None) -> bool:
        """Whether ``inputs.json`` or ``finished.json`` of a folder says that it has these."""
        return stored is not None and stored["made_from"] in self.fingerprints

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Those that results of these inputs may have, that of this version first."""
        return self.made_from, self.renamed, self.former


def inputs_of(stage: Stage, run: Run) -> Inputs:
    """The inputs of a stage as they are now.

    Raises:
        ValueError: an earlier stage that this one needs is not finished.
    """
    manifests = [manifest for manifest in stage.images(run) if manifest is not None]
    earlier = _earlier(stage, run)
    settings, renamed = (_settings(stage, run, is_former) for is_former in (False, True))
    former = fingerprint(
        stage.name,
        *renamed.values(),
        *(None if m is None else m.fingerprint() for m in stage.images(run)),
        *(made_from for made_from, _ in earlier.values()),
    )
    facts: dict[str, Any] = {
        "settings": settings,
        "classes": [[*m.classes.names] for m in manifests],
        "results": {name: [*parts] for name, parts in earlier.items()},
    }
    weights = stage.weights(run)
    if weights is not None and Path(weights).is_file():  # their content counts, not their place
        facts["weights"] = run.contents.digest(Path(weights))
        facts["settings"], renamed = _without_place(settings), _without_place(renamed)
    if (chosen_on := stage.chosen_on(run)) is not None:
        facts["chosen_on"] = digest_of(_rows(chosen_on, run, ()))
    refiners = among(stage.refiners(run), [s.name for m in manifests for s in m.samples])
    images = digest_of(row for manifest in manifests for row in _rows(manifest, run, refiners))
    if not stage.by_image:
        facts["images"] = images
    before = fingerprint(stage.name, facts | {"settings": renamed})
    return Inputs(fingerprint(stage.name, facts), images, facts, before, former)


def _settings(stage: Stage, run: Run, is_former: bool) -> dict[str, Any]:
    """The settings that results depend on, by name; with `is_former` as older versions had them."""
    recipe = run.recipe
    own = {name: identity(getattr(recipe, name), is_former=is_former) for name in stage.settings}
    return own | {**stage.also(run)}


def _without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage without the file of its starting weights."""
    return {
        name: {**tree, "weights": "file"} if isinstance(tree, dict) and "weights" in tree else tree
        for name, tree in settings.items()
    }


def _earlier(stage: Stage, run: Run) -> dict[str, tuple[str, str]]:
    """Of the stages before a stage: what their results were made from, and what they are.

    Raises:
        ValueError: one that is needed is not finished.
    """
    earlier = {}
    for before in stage.needs(run.recipe):
        folder = run.of(before.name)
        finished = finished_facts(folder)
        if finished is None:
            raise ValueError(
                f"{run.folder}: {before.name} is not finished; run without --from and --only"
            )
        earlier[before.name] = finished["made_from"], result_of(before, run)
    return earlier


def _rows(
    manifest: Manifest, run: Run, refiners: Sequence[Refiner]
) -> Iterator[tuple[object, ...]]:
    """Each image of a manifest, in the order of the names: labels, content of its files."""

    def row(sample: Sample) -> tuple[object, ...]:
        files = [content_of(path, run) for path in (sample.image, sample.mask)]
        files += [content_of(path, run) for path in files_of(refiners, sample.name)]
        return sample.name, sample.labels, sample.mask_ids, sample.exif, *files

    samples = sorted(manifest.samples, key=lambda sample: sample.name)
    title = f"{manifest.name} {manifest.split}: which images have changed"
    return track(ordered_map(row, samples), title, len(samples), is_minor=True)


def content_of(path: Path | None, run: Run) -> str | None:
    """The digest of a file, `UNREADABLE`, or None where there is none."""
    try:
        return None if path is None else run.contents.digest(path)
    except (OSError, ValueError):
        return UNREADABLE
