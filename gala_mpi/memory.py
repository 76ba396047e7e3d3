"""Keep a rank's memory flat, and its pages.

glibc's aligned allocation cannot reuse a free block of exactly the size asked for (2.36), so a gradient of 3 MB that is
allocated and freed at every step leaves holes in the heap as soon as something small comes to lie behind it. Seen: 11 GB of
free blocks of one size, on one rank of two, after 23,000 updates. Large blocks that are mapped instead of carved from the
heap go back to the system when they are freed. Such small things were MPICH's notes of gets (`exchange/window.py`); without
them the heap stays as it is, and this guards against others.

Smaller ones are better kept: glibc gives the end of the heap back when 128 kB of it are free, and a gradient of images of 2 MB
that is allocated there and freed at every update costs 500 page faults.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 1 << 21  # bytes
SPARE = 1 << 23  # bytes


def tune() -> None:
    """Map blocks of 2 MiB and more from now on, and keep up to 8 MiB of the heap's end. Without glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, SPARE)
