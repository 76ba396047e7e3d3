"""The transport's protocol as a model (docs/transport.pml): Spin proves it, and finds every fault planted in it. No MPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

TORN = "(word[0]==version)&&(word[1]==version)"
THROWN_AWAY = "begun==version"
STUCK = "invalid end state"

RIGHT = [
    "",
    "SLOTS=4 V=8",
    "SLOTS=3 WORDS=3",
    "LAZY",
    "NO_SYNC_AFTER_LATEST",
    "LATEST_JUDGES",
    "LOCKSTEP V=6",
    "LOCKSTEP V=6 SLOTS=4",
    "LOCKSTEP SLOTS=1",
    "LOCKSTEP RANKS=2 NO_RECEIPT",
]

FAULTS = {
    "NO_SYNC_AFTER_BEGUN": TORN,
    "NO_SYNC_AFTER_PAYLOAD": TORN,
    "BEGUN_LATE": TORN,
    "LATEST_EARLY": TORN,
    "NO_BEGUN_CHECK": TORN,
    "LATEST_JUDGES_LATE": TORN,
    "LATEST_JUDGES NO_SYNC_AFTER_BEGUN NO_SYNC_AFTER_LATEST": TORN,
    "NO_SYNC_AFTER_HEADER": TORN,
    "NO_SYNC_AFTER_GET": TORN,
    "SPLIT_WORDS": TORN,
    "CHECKSUM_IN_HEADER": "check==version",
    "LAZY NO_SYNC_AFTER_LATEST": STUCK,
    "LOCKSTEP NO_RECEIPT": THROWN_AWAY,
    "LOCKSTEP RECEIPT_EARLY": THROWN_AWAY,
    "LOCKSTEP RECEIPT_TOO_NEW": STUCK,
    "LOCKSTEP FINISHED_IS_A_FLAG": "version>last[source]",
    "LOCKSTEP LAZY NO_SYNC_AFTER_LATEST": STUCK,
}


@dataclass
class Verdict:
    errors: int
    states: int
    depth: int  # of the error, or of the longest run
    text: str


def verify(directory: Path, flags: str, compiled_with: str, *options: str) -> Verdict:
    """Search all runs of the model that `flags` make."""
    for tool in ("spin", "gcc"):
        if not shutil.which(tool):
            missing = pytest.fail if os.geteuid() == 0 else pytest.skip  # the Makefile installs it where it may
            missing(f"needs {tool}: install Debian's package {tool}")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    began = time.monotonic()
    run("spin", "-a", *(f"-D{flag}" for flag in flags.split()), str(DOCS / "transport.pml"))
    run("gcc", "-w", compiled_with, "-o", "pan", "pan.c")  # not optimised: that would take longer than the search
    text = run("./pan", "-m100000", "-w18", *options)
    errors, states = (int(re.search(pattern, text)[1]) for pattern in (r"errors: (\d+)", r"(\d+) states, stored"))
    depth = int(re.search(r"at depth (\d+)|depth reached (\d+)", text).expand(r"\1\2"))
    print(f"{flags or 'as it is'}: {errors} errors, {states:,} states, depth {depth}, {time.monotonic() - began:.1f} s")
    assert "max search depth too small" not in text and (errors or "not completed" not in text), text
    return Verdict(errors, states, depth, text)


@pytest.mark.parametrize("flags", RIGHT)
def test_no_run_of_the_protocol_breaks_a_promise(flags, tmp_path):
    verdict = verify(tmp_path, flags, "-DSAFETY")
    assert verdict.errors == 0, verdict.text
    unreached = [line for line in verdict.text.splitlines() if "state" in line and "assert" in line and "pml:" in line]
    assert not unreached  # a promise that is never put to the test says nothing
    assert verdict.states > 2000


def test_every_run_ends(tmp_path):
    """No cycle: a reader neither waits for the writer nor reads again and again what it has thrown away."""
    assert verify(tmp_path, "", "-DNP", "-l").errors == 0


def test_with_one_slot_a_reader_may_read_in_vain_for_ever(tmp_path):
    assert verify(tmp_path, "SLOTS=1", "-DSAFETY").errors == 0
    verdict = verify(tmp_path, "SLOTS=1", "-DNP", "-l")
    assert verdict.errors == 1 and "non-progress cycle" in verdict.text


@pytest.mark.parametrize("flags", FAULTS)
def test_a_planted_fault_is_found(flags, tmp_path):
    verdict = verify(tmp_path, flags, "-DBFS")  # breadth first: the shortest run that shows it
    assert verdict.errors == 1
    assert FAULTS[flags] in re.search(r"pan:1: (.*)", verdict.text)[1]


def test_the_document_lists_every_fault():
    _, table = (DOCS / "transport.md").read_text().split("| fault |")
    assert re.findall(r"^\| `([A-Z_ ]+)` \|", table, re.MULTILINE) == list(FAULTS)
