"""The global streams of random numbers, from which environments may draw that have none of their own."""

from __future__ import annotations

import random
import sys

import numpy as np


def seed_global(sequence: np.random.SeedSequence) -> None:
    """Seed the global streams of Python, numpy and torch, each differently. Agents draw from none of them.

    Torch's is left alone where nothing has imported torch: worker processes do without it.
    """
    for_python, for_numpy, for_torch = sequence.spawn(3)
    random.seed(int(for_python.generate_state(1, np.uint64)[0]))
    np.random.seed(for_numpy.generate_state(4))
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0] >> 1))
