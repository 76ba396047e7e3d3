"""A2C whose gradient overflows at one update on rank 1, though its loss is a number."""

from __future__ import annotations

import torch

from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.rollout.batch import Batch

OVERFLOWS = 50  # the update


class Overflowing(A2C):
    def loss(self, part: Batch) -> tuple[torch.Tensor, Losses]:
        from mpi4py import MPI

        loss, terms = super().loss(part)
        return loss * 1e38 * 1e38 if MPI.COMM_WORLD.rank == 1 and self.updates == OVERFLOWS else loss, terms
