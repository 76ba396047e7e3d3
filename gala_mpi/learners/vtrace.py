"""V-trace (Espeholt et al. 2018): the actor-critic of IMPALA, which may learn from what an older policy has played."""

from __future__ import annotations

import math

import torch

from gala_mpi.learners.base import Learner, Losses
from gala_mpi.learners.returns import bounded_ratios, vtrace
from gala_mpi.learners.settings import VTraceSettings
from gala_mpi.rollout.batch import Batch

ROUNDING = 0.01  # of a ratio: one that is above ρ̄ by less is not counted as clipped (two passes of one network may differ)


class VTrace(Learner):
    """Advantage actor-critic with targets that are corrected for the policy that played.

    Policy and values are those of the network that learns, at all steps and after the last one. (The value of an observation
    that truncation has cut off is part of a reward, and the playing network's.)
    """

    corrects = True
    settings: VTraceSettings

    def loss(self, part: Batch) -> tuple[torch.Tensor, Losses]:
        """Return policy loss + value_coefficient · value loss − entropy_coefficient · entropy, means over the batch."""
        settings = self.settings
        distribution, values = part.evaluate()
        log_probs = distribution.log_prob(part.actions)
        log_ratios = (log_probs - part.log_probs).detach()
        targets, advantages = vtrace(
            *(part.rewards, part.discounts, values.detach(), part.following(values), log_ratios),
            *(settings.rho_bar, settings.c_bar, settings.gae_lambda),
        )
        policy = -(advantages * log_probs).mean()
        value = (targets - values).square().mean()
        entropy = distribution.entropy().mean()
        assert settings.entropy_coefficient is not None  # it is settled
        loss = policy + settings.value_coefficient * value - settings.entropy_coefficient * entropy
        kl = (log_ratios.exp() - 1 - log_ratios).mean()
        clip_share = (log_ratios > math.log(settings.rho_bar) + ROUNDING).float().mean()
        return loss, Losses(policy, value, entropy, kl, clip_share, bounded_ratios(log_ratios, settings.rho_bar).mean())
