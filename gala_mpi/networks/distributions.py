"""Distributions over actions, for any number of leading dimensions [...]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F

NEVER = -1e9  # the logit of an action that is not to be taken: exp(NEVER) is 0, and 0 · NEVER is a number

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


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


class Gaussian:
    """A distribution over boxes of numbers, each independent of the others. As torch's Independent(Normal), which takes more
    than twice as long to make and to ask.

    Args:
        mean: [..., *action_shape].
        deviation: of each number, the same of all boxes: [*action_shape].
    """

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor):
        self.mean, self.deviation = mean, deviation
        self._axes = tuple(range(-deviation.dim(), 0))

    @staticmethod
    def joined(policies: Sequence[Gaussian], shape: Sequence[int]) -> Gaussian:
        """Join distributions over actions [N] each, in their order, to one over actions `shape`; deviations are those of the
        first."""
        mean, deviation = torch.cat([policy.mean for policy in policies]), policies[0].deviation
        return Gaussian(mean.view(*shape, *deviation.shape), deviation)

    @property
    def mode(self) -> torch.Tensor:
        """The most probable actions, float32 [..., *action_shape]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions, [..., *action_shape]: with the same numbers as torch's, which takes no generator."""
        mean, deviation = self.mean.detach(), self.deviation.detach()
        return torch.empty_like(mean).normal_(generator=generator).mul_(deviation).add_(mean)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the logarithms of the densities at actions [..., *action_shape], [...]."""
        squares = ((actions - self.mean) / self.deviation).square()
        return squares.sum(self._axes).mul(-0.5) - self.deviation.log().sum() - self.deviation.numel() * HALF_LOG_TAU

    def entropy(self) -> torch.Tensor:
        """Return the entropies in nats, [...]."""
        each = self.deviation.log().sum() + self.deviation.numel() * (0.5 + HALF_LOG_TAU)
        return each.expand(self.mean.shape[: self.mean.dim() - self.deviation.dim()])


Policy = Discrete | Gaussian
