"""What learners are told: one dataclass each, read from the command line. Defaults are the GALA paper's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Optional, Self

PAPER_ENTROPY = 0.01  # A2C's coefficient


@dataclass(frozen=True)
class LearnerSettings:
    """What every learner is told."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    clip_rewards: Optional[bool] = None
    """Learn from the sign of rewards; scores are never clipped. None: yes for Atari, no elsewhere."""
    max_grad_norm: float = 0.5
    """Gradients longer than this are scaled down to it."""
    optimiser: Literal["rmsprop", "adam"] = "rmsprop"
    """How the gradient becomes a step: rmsprop, or adam (Kingma & Ba 2015). A run keeps its own when it is resumed."""
    rms_alpha: float = 0.99
    """Decay of RMSprop's running mean of squared gradients."""
    rms_eps: float = 1e-5
    """RMSprop's ε, added to the root."""
    decay_lr: bool = False
    """Let the learning rate fall linearly to 0 over the run's global steps."""

    def settled(self, discrete: bool) -> Self:
        """Return the settings with what goes by the kind of actions filled in: one of several, or a box of numbers."""
        return self


@dataclass(frozen=True)
class A2CSettings(LearnerSettings):
    """The advantage actor-critic learner."""

    gae_lambda: float = 1.0
    """λ of the returns: 1 = n-step returns, less = lambda returns (GAE)."""
    entropy_coefficient: Optional[float] = None
    """Weight of the entropy bonus in the loss. None: 0.01; 0 where actions are a Box, whose spread it would only widen."""
    value_coefficient: float = 0.5
    """Weight of the squared value error in the loss."""

    def settled(self, discrete: bool) -> Self:
        coefficient = self.entropy_coefficient
        if coefficient is None:
            coefficient = PAPER_ENTROPY if discrete else 0.0
        return replace(self, entropy_coefficient=coefficient)
