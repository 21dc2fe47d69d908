"""The first lines of a run: what will be done, with how much, and on what."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

import torch

from weaktr import processes
from weaktr.messages import duration, listed, one_line
from weaktr.models.precision import inference_amp
from weaktr.progress import has_tensorboard
from weaktr.stages.check import TO_SCORE_ON, TRUTH, Part
from weaktr.stages.forecast import forecast, go_on
from weaktr.stages.keys import whole_keys
from weaktr.stages.machine import cpu_name
from weaktr.stages.run import Run, Stage

#: Parts of the check that say how much there is to do, beside the splits.
AMOUNTS = ("train_cam", "cam_model", "train_seg", "seg_model")

#: Runs of fewer photographs are over soon, and are not measured for.
FEWEST = 20


def plan(run: Run, stages: Sequence[Stage], parts: Sequence[Part]) -> Iterator[str]:
    """The lines of a plan.

    Args:
        run: that is to start.
        stages: that will run; none = no line.
        parts: what the check of them has found.
    """
    if not stages:
        return
    names = ", ".join(stage.name for stage in stages)
    yield one_line(f"{run.recipe.name}: {names}; into {run.folder}; on {in_words(run.device)}")
    if processes.count() > 1:
        yield shares_in_words(run, stages)
    truth = [part.found for part in parts if part.what.startswith(TRUTH)]
    is_scored = any(found != "0" for found in truth)
    for part in parts:
        is_told = part.what.startswith("split ") or part.what in AMOUNTS
        if part.found and is_told and (is_scored or not part.what.endswith(TO_SCORE_ON)):
            yield one_line(f"{part.what}: {part.found}")
    if truth and not is_scored:
        yield "there are no true masks, so nothing is scored"
    trains = any(stage.name.startswith("train_") for stage in stages)
    if trains and has_tensorboard():
        yield one_line(f"losses as curves: tensorboard --logdir {shlex.quote(str(run.folder))}")
    with processes.alone():
        seconds = forecast(run, stages, FEWEST)
    if seconds:
        shared = {stage: own / processes.count() for stage, own in seconds.items()}
        yield time_in_words(shared, go_on(run, stages))


def shares_in_words(run: Run, stages: Sequence[Stage]) -> str:
    """How many processes there are, and how many images of a batch each has.

    Raises:
        ValueError: a batch has fewer images than there are processes.
    """
    sizes = {"train_cam": run.recipe.train_cam.batch_size, "train_seg": run.train_seg.batch_size}
    if run.recipe.cam_model.kind == "patches":
        del sizes["train_cam"]
    shares = []
    for stage in stages:
        if (batch := sizes.get(stage.name)) is not None:
            with whole_keys((stage.name,)):
                rows = processes.rows(batch)
            shares.append(f"{stage.name} {rows.stop - rows.start} of {batch}")
    each = f"; images of a batch in the first: {listed(shares)}" if shares else ""
    return f"{processes.count()} processes{each}"


def time_in_words(seconds: Mapping[str, float], begun: Sequence[str] = ()) -> str:
    """What `forecast` has found; `begun`: trainings that may go on where they stopped."""
    parts = ", ".join(f"{stage} {duration(own)}" for stage, own in seconds.items())
    told = f"about {duration(sum(seconds.values()))} on this machine, measured just now: {parts}"
    return f"{told}; less where {listed(begun)} goes on where it stopped" if begun else told


def in_words(device: torch.device) -> str:
    """A device with its name, and how it computes."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    if device.type != "cpu":
        return str(device)
    fast = inference_amp("fast", device)
    amp = "bfloat16 in hardware" if fast == "bf16" else "no bfloat16 in hardware"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {amp}"
