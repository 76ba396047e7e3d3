"""Distributions over actions, for any number of leading dimensions [...]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch.distributions import Independent, Normal


class Discrete:
    """A distribution over actions 0 .. A-1. As torch's Categorical, which takes four times as long to make and draw from.

    Args:
        logits: [..., A].
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    @staticmethod
    def joined(policies: Sequence[Discrete], shape: Sequence[int]) -> Discrete:
        """Join distributions over actions [N] each, in their order, to one over actions `shape`."""
        logits = torch.cat([policy.logits for policy in policies])
        return Discrete(logits.view(*shape, *logits.shape[1:]))

    @cached_property
    def log_probs(self) -> torch.Tensor:
        """[..., A]."""
        return self.logits.log_softmax(-1)

    @property
    def probs(self) -> torch.Tensor:
        """[..., A]."""
        return self.log_probs.exp()

    @property
    def mode(self) -> torch.Tensor:
        """The most probable actions, int64 [...]."""
        return self.logits.argmax(-1)

    def sample(self) -> torch.Tensor:
        """Draw actions, int64 [...]: argmax(logits − log E) with E ~ Exp(1) (the Gumbel-max trick, Maddison et al. 2014)."""
        return (self.logits - torch.empty_like(self.logits).exponential_().log_()).argmax(-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of actions int64 [...], [...]."""
        return self.log_probs.gather(-1, actions[..., None])[..., 0]

    def entropy(self) -> torch.Tensor:
        """Return the entropies in nats, [...]."""
        return -(self.probs * self.log_probs).sum(-1)


class Gaussian(Independent):
    """A distribution over boxes of numbers. As torch's, whose `sample` has the host look whether the deviation is negative.

    Args:
        mean: [..., *action_shape].
        deviation: of the same shape.
        dimensions: how many dimensions an action has.
    """

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, dimensions: int):
        super().__init__(Normal(mean, deviation, validate_args=False), dimensions, validate_args=False)

    @staticmethod
    def joined(policies: Sequence[Gaussian], shape: Sequence[int]) -> Gaussian:
        """Join distributions over actions [N] each, in their order, to one over actions `shape`."""
        normals = [policy.base_dist for policy in policies]
        mean, deviation = (torch.cat(parts) for parts in zip(*((normal.loc, normal.scale) for normal in normals)))
        action = mean.shape[1:]
        return Gaussian(mean.view(*shape, *action), deviation.view(*shape, *action), len(action))

    def sample(self) -> torch.Tensor:
        """Draw actions, [..., *action_shape]."""
        return self.rsample().detach()


Policy = Discrete | Gaussian
