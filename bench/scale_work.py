"""What the benchmarks of scale share: photographs, models, finished results, and commands.

As a program: the command ``weaktr``, bound to some cores; FILE gets when its parts began and ended.

    python bench/scale_work.py FILE CORES label MODEL IMAGES --out OUT

CORES: numbers with commas, or "all". FILE is JSON: `Marks`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 375, 500
CLASSES = 20
#: Different pictures; further photographs are these, rolled by some pixels.
PICTURES = 24
#: Settings with which the tiny model labels.
QUICK = ("--set", "scales=[1.0]", "--set", "flip=false", "--set", "crf=none",
         "--set", "threshold=0.3")  # fmt: skip
TINY = "tiny"


@dataclass
class Marks:
    """Seconds since 1970 at which a command was where.

    Args:
        began: before Python imported anything.
        work: when the first photograph could be asked for: all is imported, the model loaded, the
            photographs listed.
        worked: when the last mask was written.
        ended: when the command returned.
        cpu: seconds of all its threads on processors, which other programs hardly change.
        opened: files of masks that were opened before `ended`.
    """

    began: float = 0.0
    work: float = 0.0
    worked: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    opened: int = 0


def write_model(path: Path, backbone: str) -> Path:
    """A stage-1 checkpoint with random weights.

    Args:
        path: of the file.
        backbone: a name of timm, or `TINY`: 2 layers of width 32 at 64 x 64.
    """
    import torch

    from weaktr.config import CamModelConfig
    from weaktr.models import CamModel, checkpoints

    torch.manual_seed(0)
    config = CamModelConfig(backbone, weights=None, drop_path=0.0)
    if backbone == TINY:
        arguments: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
        config = CamModelConfig("vit_tiny_patch16_224", weights=None, drop_path=0.0, image_size=64,
                                patch_size=8, backbone_args=arguments, reduction=2.0)  # fmt: skip
    classes = [f"class{index:02}" for index in range(CLASSES)]
    return checkpoints.save(CamModel(config, CLASSES), path, classes=classes)


@cache
def scene(number: int) -> np.ndarray:
    """A drawn scene with noise, [375, 500, 3]; as JPEG about as large as a photograph."""
    from weaktr.data.sources.scenes import render_scene

    drawn = render_scene(number, size=WIDTH, seed=0, split="bench")[0][:HEIGHT]
    rng = np.random.default_rng(number)
    fine = rng.normal(0, 12, (HEIGHT, WIDTH))
    coarse = Image.fromarray(rng.normal(0, 24, (HEIGHT // 4, WIDTH // 4)).astype(np.float32))
    noise = fine + np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return np.clip(drawn + noise[..., None], 0, 255).astype(np.uint8)


def large_jpeg(number: int) -> bytes:
    """Photograph `number`, 500 x 375."""
    turns, index = divmod(number, PICTURES)
    return jpeg_of(np.roll(scene(index), 8 * turns, 1))


def tiny_jpeg(number: int) -> bytes:
    """Photograph `number`, 64 x 64: noise with a square; each has other bytes."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(90, 140, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    top, left = rng.integers(4, 28, 2)
    pixels[top : top + 32, left : left + 32] = rng.integers(0, 256, 3)
    return jpeg_of(pixels)


def jpeg_of(pixels: np.ndarray) -> bytes:
    """Pixels uint8 [H, W, 3] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def classes_of(number: int) -> tuple[int, int]:
    """The two classes of a photograph."""
    return number % CLASSES, (number * 7 + 3) % CLASSES


def write_folder(folder: Path, numbers: range, jpeg: Callable[[int], bytes]) -> Path:
    """Photographs as files, with labels.csv."""
    folder.mkdir(parents=True)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels"])
        for number in numbers:
            (folder / f"{number:06}.jpg").write_bytes(jpeg(number))
            labels = sorted({f"class{index:02}" for index in classes_of(number)})
            rows.writerow([f"{number:06}.jpg", ";".join(labels)])
    return folder


def write_tars(
    folder: Path, numbers: Sequence[int], size: int, jpeg: Callable[[int], bytes]
) -> Path:
    """Photographs in tars of `size`: KEY.jpg, and KEY.cls with the classes by number."""
    folder.mkdir(parents=True)
    for first in range(0, len(numbers), size):
        with tarfile.open(folder / f"{first // size:05}.tar", "w") as tar:
            for number in numbers[first : first + size]:
                labels = ",".join(map(str, sorted({*classes_of(number)})))
                for suffix, content in {"jpg": jpeg(number), "cls": labels.encode()}.items():
                    info = tarfile.TarInfo(f"{number:06}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def finish(command: Sequence[str]) -> int:
    """Write the results that ``weaktr label`` would, but masks of 8 x 8 pixels at once.

    Args:
        command: ``MODEL IMAGES --out OUT ...``, as the command takes them.

    Returns:
        Number of masks.
    """
    from weaktr.cli import label as command_label
    from weaktr.data.masks import areas_of, png_of
    from weaktr.files import write_bytes
    from weaktr.jobs.folder import Task
    from weaktr.jobs.shards import ShardTask, ready_job
    from weaktr.shards.index import join
    from weaktr.shards.output import MASKS, ShardWriter
    from weaktr.shards.rows import Row, table_of
    from weaktr.shards.statistics import statistics_of

    parser = argparse.ArgumentParser()
    command_label.add_arguments(parser)
    given = parser.parse_args(command)
    task = Task(given.checkpoint, Path(given.images), given.out, given.set, exif=given.exif,
                device=given.device)  # fmt: skip
    labels = given.labels or "auto"
    job = ready_job(ShardTask("label", task, given.images, labels, output=given.output,
                              shard_size=given.shard_size))  # fmt: skip
    maker, masks, count = job.maker, [], 0
    for label in range(CLASSES):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[2:6, 2:6] = label + 1
        content = png_of(pixels)
        facts: dict[str, Any] = {"areas": areas_of(pixels), "mask_bytes": len(content)}
        facts |= {"labels": tuple(facts["areas"]), "height": 8, "width": 8}
        facts["mask_digest"] = hashlib.sha256(content).hexdigest()
        masks.append((facts, content))
    for name in job.shards.names:
        with ExitStack() as stack:
            shard = job.shards.read(name, stack, None)
            writer = ShardWriter(maker.layout, name, maker.made_from)
            for sample in shard.samples:
                label = sample.labels[0] if sample.labels else 0
                facts, content = masks[label]
                if maker.layout.form == "png":
                    place = maker.layout.file(MASKS, name, sample.name)
                    write_bytes(place, content, durable=False)
                digest = hashlib.sha256(sample.name.encode()).hexdigest()
                row = Row(sample.name, name, shard.images[sample.name], "labelled", digest=digest,
                          given=sample.labels, confidence=dict.fromkeys(facts["labels"], 0.5),
                          inputs=(digest,), **facts, **maker.facts)  # fmt: skip
                writer.add(row, {MASKS: content})
            statistics = statistics_of(table_of(writer.rows))
            writer.finish(shard.data, statistics, unread=0, seconds=1.0)
            count += len(writer.rows)
    join(given.out)
    return count


def environment(threads: int) -> dict[str, str]:
    """The variables of a command of so many threads, of this weaktr; no launcher's among them."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")
    own = {key: value for key, value in os.environ.items() if not key.startswith(launchers)}
    package = str(Path(import_module("weaktr").__file__ or "").parents[1])
    return own | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
                  "PYTHONPATH": package}  # fmt: skip


def start(
    marks: Path, cores: str, threads: int, *arguments: object, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start this program; its output goes to a file, or nowhere."""
    command = [sys.executable, __file__, marks, cores, *arguments]
    with open(log or os.devnull, "wb") as output:
        return subprocess.Popen(
            list(map(str, command)), env=environment(threads), stdout=output, stderr=output
        )


def ended(processes: Mapping[Path, subprocess.Popen[bytes]]) -> list[Marks]:
    """Wait for commands; what their files say.

    Raises:
        RuntimeError: one has failed.
    """
    for process in processes.values():
        if process.wait() != 0:
            raise RuntimeError(f"exit code {process.returncode}: {process.args}")
    return [Marks(**json.loads(file.read_text())) for file in processes]


def masks_of(out: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the masks of a folder of results, in order of their names."""
    for path in sorted((out / "masks").iterdir()):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
        else:
            yield path.name, path.read_bytes()


def main(file: str, cores: str, *command: str) -> None:
    """Run a command, and note when its parts begin and end."""
    marks = Marks(began=time.time())
    if cores != "all":
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    from weaktr.cli import main as weaktr_main
    from weaktr.cli.threads import let_threads_sleep

    let_threads_sleep()
    from weaktr.jobs import shards as sharded
    from weaktr.stages import label

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            marks.work = time.time()
            result = function(*arguments, **options)
            marks.worked = time.time()
            return result

        return run

    # the two functions in which commands read photographs, compute and write masks
    label.make_masks = marked(label.make_masks)  # type: ignore[assignment]
    sharded.make_shards = marked(sharded.make_shards)  # type: ignore[assignment]
    masks = str(Path(command[command.index("--out") + 1]).resolve() / "masks") + os.sep

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            marks.opened += path.startswith(masks)

    if os.environ.get("WATCH_MASKS"):
        sys.addaudithook(heard)
    code = weaktr_main(list(command))
    marks.ended, marks.cpu = time.time(), time.process_time()
    Path(file).write_text(json.dumps(asdict(marks)))
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
