"""A2C (Mnih et al. 2016)."""

from __future__ import annotations

import torch

from gala_mpi.learners.base import Learner, Losses
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.rollout.batch import Batch


class A2C(Learner):
    """Advantage actor-critic (Mnih et al. 2016) with the GALA paper's constants."""

    settings: A2CSettings

    def loss(self, part: Batch) -> tuple[torch.Tensor, Losses]:
        """Return policy loss + value_coefficient · value loss − entropy_coefficient · entropy, means over the batch."""
        settings = self.settings
        distribution, values = part.evaluate()
        returns = lambda_returns(part.rewards, part.discounts, part.next_values, settings.gae_lambda)
        advantages = returns - values
        policy = -(advantages.detach() * distribution.log_prob(part.actions)).mean()
        value = advantages.pow(2).mean()
        entropy = distribution.entropy().mean()
        assert settings.entropy_coefficient is not None  # it is settled
        loss = policy + settings.value_coefficient * value - settings.entropy_coefficient * entropy
        return loss, Losses(policy, value, entropy)
