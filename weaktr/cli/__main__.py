"""``python -m weaktr.cli COMMAND ...``."""

from weaktr.cli import program

program()
