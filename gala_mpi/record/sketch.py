"""A short random projection of a long vector: lengths and angles survive it, so that vectors which never met can be compared.

A count sketch (Charikar, Chen, Farach-Colton 2002): each coordinate is added, with a random sign, to one of SIZE sums. The
projection z = Φv is linear and the same on every rank and in every run. So ‖z_a − z_b‖ is ‖a − b‖ with a standard error of
at most 1/√(2 SIZE) = 1.1% of it (5% is 4.5 of these), the cosine of z_a and z_b is that of a and b within 1/√SIZE = 1.6%,
and the mean of sketches is the sketch of the mean.
"""

from __future__ import annotations

import numpy as np
import torch

from gala_mpi.run.tables import SIZE

SEED = 2019  # not the run's: the sketches of two runs can be compared as well


class Sketcher:
    """Sketches vectors of one length at every so many updates.

    Args:
        length: of the vectors.
        every: updates from one sketch to the next; 0: none is made.
    """

    def __init__(self, length: int, every: int):
        self._every = every
        if every:
            # The second SIZE sums are those with a minus.
            self._sums = np.random.default_rng(SEED).integers(2 * SIZE, size=length)

    def due(self, update: int) -> bool:
        """Whether vectors are sketched at `update`: at the same ones on every rank, so that they can be compared."""
        return self._every > 0 and update % self._every == 0

    def __call__(self, vector: torch.Tensor) -> np.ndarray:
        """The sketch of `vector`, float32 [SIZE]."""
        plus, minus = np.bincount(self._sums, vector.cpu().numpy(), 2 * SIZE).reshape(2, SIZE)
        return (plus - minus).astype(np.float32)
