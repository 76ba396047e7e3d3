"""Fixtures of the tests of commands."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def importable_here(monkeypatch) -> None:
    """What lies beside the tests can be imported, here and by commands: environments of theirs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    monkeypatch.syspath_prepend(HERE)
