"""Runs the command line for `python -m ssd` and `torchrun -m ssd`."""

import sys

from ssd.cli import main

sys.exit(main())
