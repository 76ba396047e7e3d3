"""What is said of updates that are skipped."""

from __future__ import annotations

import pytest

from gala_mpi.errors import JobError
from gala_mpi.job.skips import Skips


def test_the_first_is_named_and_at_the_end_their_number(capsys):
    skips = Skips(1, "n1", allowed=10)
    for update in range(1, 8):
        skips.note(update, "a reward of nan" if update != 4 else "")
    skips.conclude(9, 40)  # three of them before a resume
    first, last = capsys.readouterr().err.splitlines()
    assert first == "gala_mpi: rank 1 on n1 skips update 1: a reward of nan"
    assert last.startswith("gala_mpi: rank 1 on n1 has skipped 9 of 40 updates in all")


def test_what_has_been_named_is_not_said_again(capsys):
    skips = Skips(0, "n1", allowed=0)
    skips.conclude(5, 40)
    assert capsys.readouterr().err == ""
    with pytest.raises(JobError, match="1 updates in a row up to 6 are skipped, --max-skipped 0 are allowed"):
        skips.note(6, "a reward of nan")
