"""``weaktr label`` on pictures in memory of this program, with a trace of what each part did when.

python bench/label_trace.py COUNT TRACE.json [--device cuda] [--amp auto]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench_label import write_photographs
from label_work import LABEL, cam_model, read_samples

from weaktr.inference.cams import CamsOfModel
from weaktr.models.precision import choose_device
from weaktr.progress import log, set_up_logging
from weaktr.stages.label import label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="photographs")
    parser.add_argument("trace", type=Path, help="JSON for chrome://tracing or ui.perfetto.dev")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="none")
    options = parser.parse_args()
    set_up_logging()
    settings = replace(LABEL, amp=options.amp)
    source = CamsOfModel(cam_model(str(choose_device(options.device))), settings)
    with tempfile.TemporaryDirectory() as folder:
        what = write_photographs(Path(folder), options.count)
        samples = read_samples(Path(folder))
        label(source, samples, Path(folder) / "warm", settings)  # batches of the same sizes
        start = time.perf_counter()
        label(source, samples, Path(folder) / "out", settings, profile=options.trace)
        seconds = time.perf_counter() - start
    log.info("%d of %s: %.1f images/s", len(samples), what, len(samples) / seconds)


if __name__ == "__main__":
    main()
