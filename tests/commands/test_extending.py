"""docs/extending.md: all of its changes are applied to a copy of the package, and its commands run on it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import launch
from launch import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = re.findall(r"as `(\w+\.py)` in the working directory:\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a copy of the package to which every change has been made, and the page's files."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "gala_mpi", folder / "gala_mpi", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        subprocess.run(["git", "apply", "--whitespace=error"], cwd=folder, input=diff, text=True, check=True)
    for name, text in FILES:
        (folder / name).write_text(text)
    return folder


def run(folder: Path, command: str) -> str:
    """Run a command of the page, as it stands, with the copy in place of the package."""
    words = [{"mpirun": str(launch.LAUNCHER), "python": sys.executable}.get(word, word) for word in shlex.split(command)]
    environment = launch.environment() | {"PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=launch.HANGS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_section_has_a_change():
    assert len(DIFFS) == len(re.findall(r"^## ", PAGE, re.MULTILINE)) == 6
    assert len(COMMANDS) == 8 and len(FILES) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(extended, command):
    trains = "gala_mpi.train" in command
    place = extended / f"run-{COMMANDS.index(command)}"
    said = run(extended, f"{command} --run-dir {place}" if trains else command)
    if not trains:
        assert said.startswith("both-ways, 8 agents") and "updates until all have heard of all" in said
        return
    assert f"finished: {place}" in said
    with h5py.File(place / "metrics" / "rank00000.h5", "r", locking=False) as file:
        rows = file["updates"][: file["rows/updates"][()]]
    assert (rows["load"] > 0).all() and np.isfinite(rows["policy_loss"]).all()  # the column is there, too
