"""`python -m ssd`, and with it `torchrun -m ssd`."""

import sys

from ssd.cli import main

sys.exit(main())
