"""``python -m weaktr.cli COMMAND ...``."""

import sys

from weaktr.cli import main

sys.exit(main())
