"""PPO (Schulman et al. 2017): several epochs of minibatches of each rollout, with a clipped objective."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from gala_mpi.learners.base import Learner, Losses
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.learners.settings import PPOSettings
from gala_mpi.networks.distributions import Policy
from gala_mpi.rollout.batch import Batch

EPSILON = 1e-8  # added to the standard deviation of advantages


@dataclass
class Minibatch:
    """Some steps of a rollout. Tensors are float32 [M], without gradient; with a memory they are [T, M], of whole environments.

    Attributes:
        batch: the rollout.
        rows: which of its rows, int64 [M]. None: all, and tensors are [T, N].
        actions: int64 [M, ...] or float32 [M, *action_shape].
        log_probs: of the actions, by the policy that drew them.
        values: by the network that played.
        advantages: of the actions (GAE).
        returns: advantages + values.
    """

    batch: Batch
    rows: torch.Tensor | None
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def evaluate(self) -> tuple[Policy, torch.Tensor]:
        """Return what the network says of the steps now, with gradient: a distribution over actions and values."""
        return self.batch.evaluate(self.rows)

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`."""
        self.batch.backward(loss)


class PPO(Learner):
    """Proximal policy optimisation by clipping."""

    settings: PPOSettings

    def parts(self, batch: Batch) -> Iterator[Minibatch]:
        """Yield the minibatches of all epochs; under --ppo.target-kl no more epochs once the policy has moved so far."""
        returns = lambda_returns(batch.rewards, batch.discounts, batch.next_values, self.settings.gae_lambda)
        numbers = torch.stack([batch.log_probs, batch.values, returns - batch.values, returns], -1)  # taken apart at once
        draw, parts = self.stream(self.updates), self.settings.parts(batch.rows)
        self._kl = torch.zeros(())
        for _ in range(cast(int, self.settings.epochs)):  # they are settled
            if parts == 1:  # their order is nothing to learn from
                yield Minibatch(batch, None, batch.actions, *numbers.unbind(-1))
            else:
                for some in np.array_split(draw.permutation(batch.rows), parts):
                    rows = torch.from_numpy(some).to(returns.device)
                    yield Minibatch(batch, rows, batch.some(batch.actions, rows), *batch.some(numbers, rows).unbind(-1))
            if self.settings.target_kl is not None and self._kl > self.settings.target_kl:
                return

    def loss(self, part: Minibatch) -> tuple[torch.Tensor, Losses]:
        """Return policy loss + value_coefficient · value loss − entropy_coefficient · entropy, means over the minibatch.

        Policy loss: −min(r A, clip(r, 1 ± ε) A), with r = π(a|s) / π_old(a|s) (Schulman et al. 2017, equation 7).
        """
        settings = self.settings
        clip, coefficient = cast(float, settings.clip), cast(float, settings.entropy_coefficient)  # they are settled
        distribution, values = part.evaluate()
        log_ratio = distribution.log_prob(part.actions) - part.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        advantages = normalised(part.advantages) if settings.normalise_advantages else part.advantages
        policy = -torch.min(ratio * advantages, clipped * advantages).mean()
        errors = (values - part.returns).square()
        if settings.value_clip is not None:
            near = part.values + (values - part.values).clamp(-settings.value_clip, settings.value_clip)
            errors = torch.max(errors, (near - part.returns).square())
        value = errors.mean()
        with torch.set_grad_enabled(coefficient != 0):
            entropy = distribution.entropy().mean()
        with torch.no_grad():
            self._kl = (ratio - 1 - log_ratio).mean()  # never negative; its mean is KL(π_old ‖ π) (Schulman 2020, k3)
            clip_share = (ratio != clipped).float().mean()
        loss = policy + settings.value_coefficient * value - coefficient * entropy
        return loss, Losses(policy, value, entropy, self._kl, clip_share)


def normalised(advantages: torch.Tensor) -> torch.Tensor:
    """Bring float32 [M] or [T, M] to mean 0 and variance 1; a single one, or all the same, to 0."""
    deviation, mean = torch.std_mean(advantages, correction=0)
    return (advantages - mean) / (deviation + EPSILON)
