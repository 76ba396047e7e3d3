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
        advantages: of the actions (GAE), normalised if they are to be.
        returns: values + advantages that are not normalised.
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
        whole = self._minibatch(batch, None, batch.actions, numbers) if parts == 1 else None  # in any order
        for _ in range(cast(int, self.settings.epochs)):  # they are settled
            if whole is not None:
                yield whole
            else:
                for some in np.array_split(draw.permutation(batch.rows), parts):
                    rows = torch.from_numpy(some).to(returns.device)
                    yield self._minibatch(batch, rows, batch.some(batch.actions, rows), batch.some(numbers, rows))
            if self.settings.target_kl is not None and self._kl > self.settings.target_kl:
                return

    def _minibatch(self, batch: Batch, rows: torch.Tensor | None, actions: torch.Tensor, numbers: torch.Tensor) -> Minibatch:
        log_probs, values, advantages, returns = numbers.unbind(-1)
        if self.settings.normalise_advantages:
            advantages = normalised(advantages)
        return Minibatch(batch, rows, actions, log_probs, values, advantages, returns)

    def loss(self, part: Minibatch) -> tuple[torch.Tensor, Losses]:
        """Return policy loss + value_coefficient · value loss − entropy_coefficient · entropy, means over the minibatch.

        Policy loss: −min(r A, clip(r, 1 ± ε) A), with r = π(a|s) / π_old(a|s) (Schulman et al. 2017, equation 7).
        """
        coefficient = cast(float, self.settings.entropy_coefficient)
        distribution, values = part.evaluate()
        loss, terms = _Objective.apply(distribution.log_prob(part.actions), values, part, self.settings)
        with torch.set_grad_enabled(coefficient != 0):
            entropy = distribution.entropy().mean()
            if coefficient:
                loss = loss - coefficient * entropy
        policy, value, self._kl, clip_share = terms
        return loss, Losses(policy, value, entropy, self._kl, clip_share)


class _Objective(torch.autograd.Function):
    """What PPO minimises, but for the entropy, as a function of log π(a|s) and V(s). Its gradient is a formula: found by
    autograd, it takes longer than all layers of a small network."""

    @staticmethod
    def forward(ctx, log_probs, values, part, settings):
        """Return policy loss + value_coefficient · value loss, and (policy loss, value loss, KL divergence, clip share)."""
        clip, share = settings.clip, 1 / values.numel()
        log_ratio = log_probs - part.log_probs
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain, bound = ratio * part.advantages, clipped * part.advantages
        policy = -torch.min(gain, bound).mean()
        moving = errors = values - part.returns
        if settings.value_clip is not None:
            moved = values - part.values
            other = part.values + moved.clamp(-settings.value_clip, settings.value_clip) - part.returns
            farther = other.square() > errors.square()
            errors = torch.where(farther, other, errors)
            moving = errors.masked_fill(farther & (moved.abs() > settings.value_clip), 0.0)
        value = errors.square().mean()
        kl = (ratio - 1 - log_ratio).mean()  # never negative; its mean is KL(π_old ‖ π) (Schulman 2020, k3)
        clip_share = (ratio != clipped).float().mean()
        # d r / d log π = r. A gain beyond its bound is constant. What is not a number stays so, and no step is taken.
        by_policy = gain.masked_fill(gain > bound, 0.0).mul_(-share)
        by_value = moving * (2 * share * settings.value_coefficient)
        ctx.save_for_backward(by_policy, by_value)
        terms = policy, value, kl, clip_share
        return policy + settings.value_coefficient * value, terms

    @staticmethod
    def backward(ctx, gradient, *_):
        by_policy, by_value = ctx.saved_tensors
        return gradient * by_policy, gradient * by_value, None, None


def normalised(advantages: torch.Tensor) -> torch.Tensor:
    """Bring float32 [M] or [T, M] to mean 0 and variance 1; a single one, or all the same, to 0."""
    deviation, mean = torch.std_mean(advantages, correction=0)
    return (advantages - mean) / (deviation + EPSILON)
