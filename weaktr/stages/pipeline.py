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

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from weaktr import __version__, outputs, processes
from weaktr.config import Recipe
from weaktr.outputs import INPUTS, finished_facts, mark_finished
from weaktr.progress import timed
from weaktr.recipes import as_tree
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

#: Seconds after which a machine sees the folders that another has made on storage that they share.
SEEN_AFTER = 90.0

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
    """Run the stages of a recipe in order, together with all processes that torchrun has started.

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
            works; processes that do not fit each other.
        Stopped: a signal came; what was done is saved.
        ProcessLost: see `weaktr.processes.together`.
    """
    with processes.together():
        order = {"start": start, "only": only, "force": force}
        require_same_orders({"version": __version__, "recipe": as_tree(recipe)} | order)
        if processes.is_first():
            return lead(Run(recipe, folder), chosen_stages(recipe, start, only), force=force)
        return follow(recipe, folder)


def lead(run: Run, stages: Sequence[Stage], *, force: bool) -> int:
    """`run_recipe` in the only process, or in the first."""
    with processes.alone():
        left = unfinished(run, stages, force=force)
        parts = check_run(run, left)
    require_no_faults(parts)
    for warning in [] if left else changed_labels(run.recipe):
        log.warning("%s", warning)
    for line in plan(run, left, parts):
        log.info("%s", line)
    with places.claimed_run(run):
        if not (run.folder / places.RECIPE).exists():
            places.write_recipe(run)
        left_out = sum([run_stage(stage, run, force=force) for stage in stages])
        places.write_recipe(run)
        places.write_table(run, run.of("evaluate"))
        told({"left_out": left_out})
        return left_out


def follow(recipe: Recipe, folder: Path) -> int:
    """`run_recipe` in every other process: do a part of what the first one does."""
    stages = {stage.name: stage for stage in STAGES}
    while True:
        order = told(None)
        if "stage" not in order:
            return int(order["left_out"])
        place = Path(order["place"])
        require_seen(place)
        do(stages[order["stage"]], Run(recipe, folder), place)


def told(order: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What the first process has all others do next: a stage, or the end; they pass None."""
    return processes.of_first(lambda: order or {})


def do(stage: Stage, run: Run, place: Path) -> int:
    """The work of a stage, each process its part; returns how many images it left out."""
    processes.require_own_gpus(run.device)
    with whole_keys(stage.settings[::-1]):  # its own come before its model's
        return stage.work(run, place)


def require_same_orders(order: Mapping[str, Any]) -> None:
    """Raise `ValueError` where processes were started to do different things."""
    texts = processes.of_each(json.dumps(order, sort_keys=True))
    if len(set(texts)) > 1:
        other = next(number for number, text in enumerate(texts) if text != texts[0])
        differ = outputs.differences(json.loads(texts[0]), json.loads(texts[other]))
        raise ValueError(
            f"process {other}: expected the recipe and options of process 0, got others ({differ})"
        )


def require_seen(place: Path) -> None:
    """Raise `ValueError` unless this process sees a folder that the first has made.

    File systems of several machines may show it a while later.
    """
    ends = time.monotonic() + SEEN_AFTER
    while not (place / INPUTS).is_file():
        if time.monotonic() > ends:
            raise ValueError(
                f"{place}: expected it on storage that all machines share, process "
                f"{processes.index()} does not see what process 0 wrote; choose another --out"
            )
        time.sleep(0.1)


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
    with timed(stage.name):
        told({"stage": stage.name, "place": str(place)})
        left_out = do(stage, run, place)
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
