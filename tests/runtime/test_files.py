"""Files that are whole or not there, and folders that one process at a time writes to."""

import os
import signal
import subprocess
import sys

import pytest
from own_process import PATHS

from ssd.runtime.files import locked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")
def test_a_folder_is_free_as_soon_as_its_run_is_killed(tmp_path):
    """While its loader's workers, forked from it, live on."""
    code = (
        "import os, sys, time; from ssd.runtime.files import locked\n"
        "with locked(sys.argv[1]):\n"
        "    if child := os.fork(): print(child, flush=True)\n"
        "    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATHS}, text=True) as other:
        child = int(other.stdout.readline())
        other.kill()
        other.wait()
        try:
            with locked(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
