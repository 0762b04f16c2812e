"""Code in a process of its own, which imports what the tests import."""

import os
import subprocess
import sys
from pathlib import Path

import ssd_ext

PATHS = os.pathsep.join(str(folder) for folder in (Path(__file__).parent, Path(ssd_ext.__file__).parents[1]))


def printed_by(code: str, *arguments: object, timeout: float | None = None, **environment: str) -> str:
    """What the code prints, with these arguments in sys.argv; its errors are a failure."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    variables = {**os.environ, "PYTHONPATH": PATHS, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
