"""Large blocks that were freed are the system's again. Processes of their own: what others allocated lies in the way."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
import ctypes
from gala_mpi import memory, metrics

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def allocate(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

{begin}
before = metrics.resident_mib()
blocks = [(allocate(3 << 20), allocate(1 << 16)) for _ in range(30)]
for large, _ in blocks:
    libc.free(large)
print(metrics.resident_mib() - before)
"""


@pytest.mark.parametrize("begin, holes", [("memory.map_large_blocks()", False), ("libc.mallopt(-3, 1 << 30)", True)])
def test_large_blocks_leave_no_holes(begin, holes):
    """Ninety megabytes in blocks with something smaller behind each that stays; in the heap they would stay resident."""
    done = subprocess.run([sys.executable, "-c", HOLES.format(begin=begin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout)
    assert grown > 60 if holes else grown < 10
