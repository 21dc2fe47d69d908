"""``weaktr report RUN``: one HTML page of what was trained, scores, and every mask."""

from __future__ import annotations

import argparse
from pathlib import Path

from weaktr.cli.common import check_files
from weaktr.progress import log

HELP = """\
One HTML file of a run: what was trained, how long, curves, scores, and every mask to look through.

Without true masks the page shows areas, confidence, and where masks and image-level labels
disagree, the worst first. It needs no network and may be sent to others: names and small pictures
of the photographs are in it. DIR may also be --out of `weaktr label` or `weaktr predict`.

examples:
  weaktr report runs/mine
  weaktr report runs/mine --full
  weaktr report masks/ --out masks.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="DIR", help="folder of a run, or of masks")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the HTML file (default: DIR/report.html)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="also write larger photographs and masks into PAGE_files/ beside PAGE.html",
    )


def run(arguments: argparse.Namespace) -> int:
    from weaktr.outputs import REPORT
    from weaktr.report.page import write_report

    own = arguments.run / REPORT
    if arguments.out is not None and arguments.out.resolve() != own.resolve():
        check_files({"--out": arguments.out})
    log.info("report: %s", write_report(arguments.run, arguments.out, full=arguments.full))
    return 0
