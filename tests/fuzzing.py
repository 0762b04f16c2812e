"""How many inputs are drawn, and how."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SSD_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
