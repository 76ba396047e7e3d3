"""Distributions over actions, for any number of leading dimensions [...]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal

NEVER = -1e9  # the logit of an action that is not to be taken: exp(NEVER) is 0, and 0 · NEVER is a number


class Discrete:
    """A distribution over actions 0 .. A-1. As torch's Categorical, which takes four times as long to make and draw from.

    Args:
        logits: [..., A].
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    @classmethod
    def joined(cls, policies: Sequence[Discrete], shape: Sequence[int]) -> Discrete:
        """Join distributions over actions [N] each, in their order, to one over actions `shape`."""
        logits = torch.cat([policy.logits for policy in policies])
        return cls(logits.view(*shape, *logits.shape[1:]))

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

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions, int64 [...]: argmax(logits − log E) with E ~ Exp(1) (the Gumbel-max trick, Maddison et al. 2014).

        Args:
            generator: of E; None: torch's global stream.
        """
        return (self.logits - torch.empty_like(self.logits).exponential_(generator=generator).log_()).argmax(-1)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of actions int64 [...], [...]."""
        return self.log_probs.gather(-1, actions[..., None])[..., 0]

    def entropy(self) -> torch.Tensor:
        """Return the entropies in nats, [...]."""
        return -(self.probs * self.log_probs).sum(-1)


class Masked(Discrete):
    """As Discrete, where some actions have logits of NEVER: their probability is 0, and all else stays finite."""

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        noise = torch.empty_like(self.logits).exponential_(generator=generator)
        # An E of exactly 0, whose logarithm is infinite, must not bring up an action that may not be taken.
        return (self.logits - noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()).argmax(-1)


class Several(Masked):
    """A distribution over k choices at once, independent of each other given the logits.

    Args:
        logits: [..., k, A], A actions of each choice; 10 · NEVER behind those of a choice that has fewer, so that they are
            never taken, even where all others are masked.
    """

    @staticmethod
    def of(logits: torch.Tensor, choices: Sequence[int]) -> Several:
        """Take apart logits of k choices behind each other, [..., sum(choices)]."""
        most = max(choices)
        parts = [F.pad(part, (0, most - part.shape[-1]), value=10 * NEVER) for part in logits.split(list(choices), -1)]
        return Several(torch.stack(parts, -2))

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of actions int64 [..., k], [...]."""
        return super().log_prob(actions).sum(-1)

    def entropy(self) -> torch.Tensor:
        """Return the entropies in nats, [...]: the sums over the choices."""
        return super().entropy().sum(-1)


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

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions, [..., *action_shape]: with the same numbers as torch's, which takes no generator."""
        mean, deviation = self.base_dist.loc.detach(), self.base_dist.scale.detach()
        noise = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device).normal_(generator=generator)
        return mean + noise * deviation


Policy = Discrete | Gaussian
