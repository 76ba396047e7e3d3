"""A learner of a user's own, in one file: REINFORCE with a baseline (Williams 1992), without a value."""

from __future__ import annotations

import torch

from gala_mpi.learners.base import Learner, Losses
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.rollout.batch import Batch


class Reinforce(Learner):
    """Return minus the mean return of all environments at that step, times the log-probability. Nothing bootstraps."""

    def loss(self, part: Batch) -> tuple[torch.Tensor, Losses]:
        policy, _ = part.evaluate()
        returns = lambda_returns(part.rewards, part.discounts, torch.zeros_like(part.rewards), 1.0)
        loss = -((returns - returns.mean(1, keepdim=True)) * policy.log_prob(part.actions)).mean()
        return loss, Losses(policy=loss)
