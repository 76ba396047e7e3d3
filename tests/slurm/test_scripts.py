"""The batch scripts as texts."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from launch import ROOT

SCRIPTS = sorted((ROOT / "jobs" / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if not shutil.which("shellcheck"):
        pytest.fail("the package shellcheck is needed (as root: make packages)", pytrace=False)
    result = subprocess.run(["shellcheck", "-x", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout
