"""``weaktr label`` on pictures in memory of this program, with a trace of what each part did when.

python bench/label_trace.py COUNT TRACE.json [--device cuda] [--amp fp16] [--photographs FOLDER]

All of them are labelled twice: at first kernels are compiled and chosen for the sizes that come.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from bench_label import write_photographs
from label_work import LABEL, cam_model, read_samples

from weaktr.data import Sample
from weaktr.inference.cams import CamsOfModel
from weaktr.models.precision import choose_device
from weaktr.progress import log, set_up_logging
from weaktr.stages.label import label

#: Of each photograph in FOLDER.
CLASSES = (3, 14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="photographs")
    parser.add_argument("trace", type=Path, help="JSON for chrome://tracing or ui.perfetto.dev")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="none")
    parser.add_argument("--photographs", default="", help="JPEGs; else some of 500x375 are written")
    parser.add_argument("--results", type=Path, help="JSON with images a second")
    options = parser.parse_args()
    set_up_logging()
    settings = replace(LABEL, amp=options.amp)
    device = choose_device(options.device)
    source = CamsOfModel(cam_model(str(device)), settings)
    with tempfile.TemporaryDirectory() as folder:
        if options.photographs:
            samples, what = repeated(Path(options.photographs), options.count), "photographs"
        else:
            what = write_photographs(Path(folder), options.count)
            samples = read_samples(Path(folder))
        rates = {}
        for turn, trace in (("first", None), ("again", options.trace)):
            start = time.perf_counter()
            label(source, samples, Path(folder) / turn, settings, profile=trace)
            rates[turn] = len(samples) / (time.perf_counter() - start)
    log.info("%d of %s: %s images/s", len(samples), what, rates)
    if options.results:
        facts = {"images": len(samples), "of": what, "amp": options.amp, "images_per_s": rates}
        facts["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else None
        options.results.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def repeated(folder: Path, count: int) -> Sequence[Sample]:
    """`count` samples of the JPEGs in a folder, which come again and again."""
    paths = sorted(folder.rglob("*.jpg"))
    chosen = ((number, paths[number % len(paths)]) for number in range(count))
    return [Sample(f"{number:05}_{path.stem}", path, CLASSES, None, "") for number, path in chosen]


if __name__ == "__main__":
    main()
