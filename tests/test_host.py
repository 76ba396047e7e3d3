"""Large blocks that were freed are the system's again, smaller ones are kept.

Processes of their own: what others allocated lies in the way.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKS = """
import ctypes, resource
from gala_mpi import host
from gala_mpi.record import recorder

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def allocate(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

{begin}
"""
HOLES = """
before = recorder.resident_mib()
blocks = [(allocate(3 << 20), allocate(1 << 16)) for _ in range(30)]
for large, _ in blocks:
    libc.free(large)
print(recorder.resident_mib() - before)
"""
FAULTS = """
libc.free(allocate(2_000_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    libc.free(allocate(2_000_000))
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


def measured(begin: str, what: str) -> float:
    done = subprocess.run([sys.executable, "-c", BLOCKS.format(begin=begin) + what], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("begin, holes", [("host.tune_malloc()", False), ("libc.mallopt(-3, 1 << 30)", True)])
def test_large_blocks_leave_no_holes(begin, holes):
    """Ninety megabytes in blocks with something smaller behind each that stays; in the heap they would stay resident."""
    grown = measured(begin, HOLES)
    assert grown > 60 if holes else grown < 10


@pytest.mark.parametrize("begin, faults", [("host.tune_malloc()", False), ("libc.mallopt(-3, 1 << 21)", True)])
def test_a_block_that_comes_again_finds_its_pages(begin, faults):
    """Two megabytes, 488 pages of 4 kB, at the end of the heap."""
    of_each = measured(begin, FAULTS)
    assert of_each > 300 if faults else of_each < 10
