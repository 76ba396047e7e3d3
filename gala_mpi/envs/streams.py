"""The global streams of random numbers, from which environments may draw that have none of their own."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_global(sequence: np.random.SeedSequence) -> None:
    """Seed the global streams of Python, numpy and torch, each differently. Agents draw from none of them."""
    for_python, for_numpy, for_torch = sequence.spawn(3)
    random.seed(int(for_python.generate_state(1, np.uint64)[0]))
    np.random.seed(for_numpy.generate_state(4))
    torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0] >> 1))
