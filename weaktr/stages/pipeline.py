"""All stages in order: skips finished stages, continues where a run stopped.

    RUN/recipe.yaml       the recipe with every default written out
    RUN/train_cam/        state.pt while training, model.safetensors + model.json, metrics.jsonl
    RUN/label/            masks/NAME.png, index.jsonl, before_refinement/
    RUN/train_seg/        as train_cam
    RUN/predict/          as label
    RUN/evaluate/         metrics.json with every number and where it comes from, charts
    RUN/STAGE/inputs.json     the fingerprint of the stage's inputs, and its settings; written first
    RUN/STAGE/finished.json   the same fingerprint; written last
    RUN/metrics.json      the scores in one flat table
    RUN/pictures/         the pictures of `weaktr show`
    RUN/report.html       the page of `weaktr report`, also at the end of a run
    RUN/features/         what a frozen backbone gave for the photographs (`CacheConfig`)

A stage runs again only if its inputs have changed: its settings, the seed, the content of its
images and weights, their labels, or the results of the stage before it. Its earlier results stay
where they are until the new ones are whole (`weaktr.stages.places`). `label` and `predict` go on
instead where only images have changed, with those images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from weaktr.config import Recipe
from weaktr.outputs import finished_facts, mark_finished
from weaktr.progress import timed
from weaktr.stages import places
from weaktr.stages.check import Part, changed_labels, check_run, require_no_faults
from weaktr.stages.evaluate import EVALUATE
from weaktr.stages.inputs import Inputs, inputs_of
from weaktr.stages.keys import whole_keys
from weaktr.stages.label import LABEL
from weaktr.stages.machine import machine_facts
from weaktr.stages.plan import plan
from weaktr.stages.predict import PREDICT
from weaktr.stages.run import MODEL, Run, Stage, model_digest, result_of
from weaktr.stages.train_cam import TRAIN_CAM
from weaktr.stages.train_seg import TRAIN_SEG
from weaktr.training.state import STATE

log = logging.getLogger("weaktr")

#: In the order in which the data pass through them, which is that of `Recipe.stages`.
STAGES = (TRAIN_CAM, LABEL, TRAIN_SEG, PREDICT, EVALUATE)


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> int:
    """Run the stages of a recipe in order.

    Args:
        recipe: what to do.
        folder: of the results.
        start: first stage to run; the results of earlier stages are used without checking whether
            they are up to date; they must be finished.
        only: the one stage to run.
        force: run the chosen stages from their beginning even if they are finished.

    Returns:
        How many images the stages had to leave out; the next start tries them again.

    Raises:
        ValueError: see `chosen_stages`; `check_run` finds a fault: all are listed, and nothing has
            been run or written; a folder with files of others, or one in which another process
            works.
    """
    run, stages = Run(recipe, folder), chosen_stages(recipe, start, only)
    left = unfinished(run, stages, force=force)
    parts = check_run(run, left)
    require_no_faults(parts)
    for warning in [] if left else changed_labels(recipe):
        log.warning("%s", warning)
    for line in plan(run, left, parts):
        log.info("%s", line)
    with places.claimed_run(run):
        if not (folder / places.RECIPE).exists():
            places.write_recipe(run)
        left_out = sum([run_stage(stage, run, force=force) for stage in stages])
        places.write_recipe(run)
        places.write_table(run, run.of("evaluate"))
        return left_out


def check_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> list[Part]:
    """What `run_recipe` checks before it runs; the arguments are its.

    Raises:
        ValueError: see `chosen_stages`.
    """
    run = Run(recipe, folder)
    return check_run(run, unfinished(run, chosen_stages(recipe, start, only), force=force))


def chosen_stages(recipe: Recipe, start: str | None, only: str | None) -> list[Stage]:
    """The stages of a recipe that ``--from`` and ``--only`` leave.

    Raises:
        ValueError: unknown stage, one that is not in the recipe, or both options.
    """
    names = [stage.name for stage in STAGES]
    for option, name in (("--from", start), ("--only", only)):
        if name is not None and name not in names:
            raise ValueError(f"{option}: expected one of {', '.join(names)}; got {name!r}")
        if name is not None and name not in recipe.stages:
            raise ValueError(
                f"{option}: {recipe.name} has no {name}; its stages are {', '.join(recipe.stages)}"
            )
    if start is not None and only is not None:
        raise ValueError(f"expected --from or --only, got both: {start} and {only}")
    chosen = (only,) if only else names[names.index(start or names[0]) :]
    return [s for s in STAGES if s.name in chosen and s.name in recipe.stages]


def unfinished(run: Run, stages: Sequence[Stage], *, force: bool) -> list[Stage]:
    """Those of `stages` that are not finished, or come after one that is not."""
    left: list[Stage] = []
    for stage in stages:
        follows = any(other in stage.after for other in left)
        if force or follows or not _is_up_to_date(stage, run):
            left.append(stage)
    return left


def _is_up_to_date(stage: Stage, run: Run) -> bool:
    try:
        if finished_facts(run.of(stage.name)) is None:  # before any file is read for its content
            return False
        return is_finished(stage, run, inputs_of(stage, run))
    except Exception:  # of data or an earlier stage: the check says what is wrong
        return False


def run_stage(stage: Stage, run: Run, *, force: bool = False) -> int:
    """Run one stage unless it is finished.

    Args:
        stage: one of `STAGES`.
        run: whose stage.
        force: run it from its beginning in any case.

    Returns:
        How many images it left out.

    Raises:
        ValueError: an earlier stage that this one needs is not finished.
    """
    folder, inputs = run.of(stage.name), inputs_of(stage, run)
    places.settle(folder, inputs)
    run.contents.save()  # what was read for it need not be read again if the stage is stopped
    if not force and is_finished(stage, run, inputs):
        log.info("%s: finished before, nothing has changed", stage.name)
        if left_out := (finished_facts(folder) or {}).get("left_out", 0):
            log.warning("%s: %d masks that cannot be used were left out", stage.name, left_out)
        return int(left_out)
    place = places.begin(folder, inputs, force=force)
    started = time.monotonic()
    with timed(stage.name), whole_keys(stage.settings[::-1]):  # its own come before its model's
        left_out = stage.work(run, place)
    mark_finished(
        place,
        inputs.made_from,
        images=None if left_out else inputs.images,  # None: those left out are tried again
        result=stage.result(run, place),
        files=places.digests_of(place, run.contents),
        left_out=left_out,
        seconds=round(time.monotonic() - started, 1),  # of this start, where there were several
        finished_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine_facts(run.device),
    )
    (place / STATE).unlink(missing_ok=True)
    places.write_table(run, place)
    places.put(place, folder, run.contents)
    run.results.pop(stage.name, None)
    places.write_recipe(run)
    run.contents.save()
    return left_out


def is_finished(stage: Stage, run: Run, inputs: Inputs) -> bool:
    """Whether the results of a stage are complete and come from exactly these inputs."""
    folder = run.of(stage.name)
    facts = finished_facts(folder)
    if facts is None or not inputs.fit(facts):
        return False
    if stage.result is model_digest:
        if not (folder / MODEL).is_file():
            return False
    elif facts.get("left_out"):  # which are tried again; a training is not repeated for them
        return False
    if not stage.by_image or facts["made_from"] == inputs.former:
        return True
    return facts.get("images") == inputs.images and facts.get("result") == result_of(stage, run)
