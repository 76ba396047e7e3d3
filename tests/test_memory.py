"""Memory that a process has freed is the system's again. In a process of its own: what others allocated lies in the way."""

from __future__ import annotations

import subprocess
import sys

HOLES = """
import ctypes
from gala_mpi import memory, metrics

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def allocate(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

memory.map_large_blocks()
before = metrics.resident_mib()
{allocations}
print(metrics.resident_mib() - before)
trim = memory.Trim()
trim()
print(metrics.resident_mib() - before)
memory.SECONDS_BETWEEN_TRIMS = 0.0
trim()
print(metrics.resident_mib() - before)
"""


def grown(allocations: str) -> list[float]:
    """MiB more than before the allocations, the same before a minute is over, and after memory has been given back."""
    done = subprocess.run([sys.executable, "-c", HOLES.format(allocations=allocations)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


def test_holes_between_small_blocks_are_given_back():
    """Eighty megabytes in blocks below the threshold, with something smaller behind each that stays."""
    full, soon, after = grown("""
blocks = [(allocate(1 << 20), allocate(1 << 16)) for _ in range(80)]
for large, _ in blocks:
    libc.free(large)
""")
    assert full > 60
    assert soon > 60
    assert after < 10


def test_large_blocks_leave_no_holes():
    full, *_ = grown("""
blocks = [(allocate(3 << 20), allocate(1 << 16)) for _ in range(30)]
for large, _ in blocks:
    libc.free(large)
""")
    assert full < 10


TRAINING = """
import sys
from gala_mpi import memory, train

trims = []
memory.SECONDS_BETWEEN_TRIMS, memory.give_back = 0.0, lambda: trims.append(None)
try:
    train.main(["--env", "CartPole-v1", "--total-steps", "800", "--run-dir", sys.argv[1]])
finally:
    print("trims:", len(trims))
"""


def test_training_gives_back_as_it_goes(tmp_path):
    """Ten updates of 80 steps, each of which is due."""
    done = subprocess.run([sys.executable, "-c", TRAINING, str(tmp_path / "run")], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("trims: ")[-1].strip() == "10"
