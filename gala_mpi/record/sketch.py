"""Sketches of long vectors: short random projections that keep norms and angles.

They allow comparing vectors of different ranks, updates and runs offline. A sketch here is a count sketch (Charikar, Chen,
Farach-Colton 2002): each coordinate is added, with a random sign, to one of SIZE sums. The projection z = Φv is linear and
the same on every rank and in every run. So ‖z_a − z_b‖ is ‖a − b‖ with a standard error of at most 1/√(2 SIZE) = 1.1% of it
(5% is 4.5 standard errors), the cosine of z_a and z_b is that of a and b within 1/√SIZE = 1.6%, and the mean of sketches is
the sketch of the mean.
"""

from __future__ import annotations

import numpy as np
import torch

from gala_mpi.run.tables import SIZE

SEED = 2019  # the same in all runs, so that their sketches can be compared


class Sketcher:
    """Sketches vectors of one length, every few updates.

    Args:
        length: of the vectors.
        every: updates from one sketch to the next; 0: no sketches.
    """

    def __init__(self, length: int, every: int):
        self._every = every
        if every:
            # The sum that each coordinate is added to; those of the second SIZE sums are subtracted.
            self._sums = np.random.default_rng(SEED).integers(2 * SIZE, size=length)

    def due(self, update: int) -> bool:
        """Return whether vectors are sketched at `update`. The same on every rank, so that sketches can be compared."""
        return self._every > 0 and update % self._every == 0

    def __call__(self, vector: torch.Tensor) -> np.ndarray:
        """Return the sketch of `vector` (float32 [length]), float32 [SIZE]."""
        plus, minus = np.bincount(self._sums, vector.cpu().numpy(), 2 * SIZE).reshape(2, SIZE)
        return (plus - minus).astype(np.float32)
