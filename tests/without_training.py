"""Programs run where nothing of the training is installed: neither torch, MPI and the environments, nor the package itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRAINING = ("ale_py", "gymnasium", "imageio", "mpi4py", "pynvml", "torch")
PROGRAM = """
import os, runpy, sys

forbidden, name, *sys.argv = sys.argv[1:]

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden.split(","):
            raise ImportError(f"{name} is imported")

sys.meta_path[:] = [Forbid(), *(finder for finder in sys.meta_path if "Editable" not in repr(finder))]  # no installed checkout
sys.path[0] = os.path.dirname(sys.argv[0])  # as if Python had been told the file
runpy.run_path(sys.argv[0], run_name=name)
"""


def run_without(
    forbidden: tuple[str, ...], script: Path, *arguments: object, name: str = "__main__", cwd: Path = Path("/"), paths: str = ""
) -> subprocess.CompletedProcess:
    """Run a script as module `name` where the `forbidden` packages cannot be imported.

    Args:
        paths: the PYTHONPATH.
    """
    words = [sys.executable, "-c", PROGRAM, ",".join(forbidden), name, str(script), *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
