"""What learners are told: one dataclass each, read from the command line.

None in a setting of theirs, or of the run's, is a default that goes by the task. It is filled in once (`job.prepare`), and
stored with the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Optional, Self

from gala_mpi.cli import require, require_whole

# A step moves no parameter by more than some multiple of the learning rate, unless ε is smaller than a gradient whose square
# is too small for float32. So with this bound, and one of the rate, parameters do not overflow, whatever the gradients.
SMALLEST_EPS = 1e-12
PAPER_LR = 7e-4  # GALA's, for 16 environments
# Where the network sees no images. With the paper's, 4 agents on CartPole play 174 after 500,000 steps, with this one 500.
NUMBERS_LR = 2e-3
PAPER_LENGTH = 5  # GALA's rollouts
PAPER_ENTROPY = 0.01  # A2C's coefficient, and PPO's on Atari
# IMPALA's rollouts (Espeholt et al. 2018, table G.1), and those with which it learns from fewer steps on Atari
IMPALA_LENGTH, ATARI_LENGTH = 20, 10
# PPO's steps of an agent's rollout, and of a minibatch, where the network sees no images (Schulman et al. 2017, table 3)
PPO_STEPS, PPO_MINIBATCH = 2048, 64
# Where it sees images (table 5)
PPO_LENGTH, PPO_MINIBATCHES = 128, 4


@dataclass(frozen=True)
class LearnerSettings:
    """What every learner is told."""

    scales_lr: ClassVar[bool] = True  # whether --base-lr is for 16 environments, and grows with the root of their number

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
    adam_eps: float = 1e-8
    """Adam's ε, added to the root."""
    decay_lr: bool = False
    """Let the learning rate fall linearly to 0 over the run's global steps."""

    def check(self, group: str) -> None:
        """Refuse values that cannot work; `group` is what their flags begin with, like --a2c.

        Raises:
            SettingError: names the flag, the value seen and the values allowed.
        """
        require(0 <= self.discount <= 1, f"{group}.discount", self.discount, "a number from 0 to 1")
        require(self.max_grad_norm > 0, f"{group}.max-grad-norm", self.max_grad_norm, "a positive number")
        require(0 <= self.rms_alpha < 1, f"{group}.rms-alpha", self.rms_alpha, "a number from 0 to below 1")
        for name, eps in (("rms", self.rms_eps), ("adam", self.adam_eps)):
            require(SMALLEST_EPS <= eps < math.inf, f"{group}.{name}-eps", eps, f"a number, {SMALLEST_EPS:g} or more,")

    def of_run(self, images: bool, num_envs: int) -> dict[str, Any]:
        """Return the learner's defaults for settings of the run, by their names in `Config`.

        Args:
            images: whether the network sees images.
            num_envs: environments of an agent.
        """
        return {
            "rollout_length": PAPER_LENGTH,
            "base_lr": PAPER_LR if images else NUMBERS_LR,
            "normalise_observations": False,
            "normalise_rewards": False,
        }

    def settled(self, discrete: bool, images: bool = False, steps: int = PPO_STEPS, environments: int | None = None) -> Self:
        """Return the settings with what goes by the task filled in.

        Args:
            discrete: whether an action is one of several, not a box of numbers.
            images: whether the network sees images.
            steps: of an agent's rollout, T · N.
            environments: N, where parts of a rollout are whole environments, since the network has a memory.
        """
        return self

    def at_once(self, steps: int) -> int | None:
        """Return how many of a rollout's steps autograd goes over at a time; None: the rollout is learnt from once, whole."""
        return None

    def parts(self, rows: int) -> int:
        """Return in how many parts a rollout of so many rows (see `Batch`) is learnt from, each time it is gone over."""
        return 1

    def optimiser_steps(self, rows: int) -> int:
        """Return how many steps the optimiser takes on a rollout of so many rows, at most."""
        return self.parts(rows)


@dataclass(frozen=True)
class ActorCriticSettings(LearnerSettings):
    """What learners with a policy and a value are told besides."""

    gae_lambda: float = 1.0
    """λ of the returns: 1 = n-step returns, less = lambda returns (GAE)."""
    entropy_coefficient: Optional[float] = None
    """Weight of the entropy bonus in the loss. None: 0.01; 0 where actions are a Box, whose spread it would only widen."""
    value_coefficient: float = 0.5
    """Weight of the squared value error in the loss."""

    def check(self, group: str) -> None:
        super().check(group)
        require(0 <= self.gae_lambda <= 1, f"{group}.gae-lambda", self.gae_lambda, "a number from 0 to 1")
        for name, weight in (("entropy", self.entropy_coefficient), ("value", self.value_coefficient)):
            fits = weight is None or 0 <= weight < math.inf
            require(fits, f"{group}.{name}-coefficient", weight, "a number, 0 or more,")

    def settled(self, discrete: bool, images: bool = False, steps: int = PPO_STEPS, environments: int | None = None) -> Self:
        coefficient = self.entropy_coefficient
        if coefficient is None:
            coefficient = PAPER_ENTROPY if discrete else 0.0
        return replace(self, entropy_coefficient=coefficient)


@dataclass(frozen=True)
class A2CSettings(ActorCriticSettings):
    """The advantage actor-critic learner. Defaults are the GALA paper's."""


@dataclass(frozen=True)
class PPOSettings(ActorCriticSettings):
    """The proximal policy optimisation learner. Defaults are those of Schulman et al. 2017, or of OpenAI's Baselines."""

    scales_lr: ClassVar[bool] = False  # what bounds a rollout's steps is the clipping, however many environments there are

    optimiser: Literal["rmsprop", "adam"] = "adam"
    """How the gradient becomes a step: rmsprop, or adam (Kingma & Ba 2015). A run keeps its own when it is resumed."""
    adam_eps: float = 1e-5
    """Adam's ε, added to the root."""
    decay_lr: bool = True
    """Let the learning rate fall linearly to 0 over the run's global steps."""
    gae_lambda: float = 0.95
    """λ of the advantages (GAE, Schulman et al. 2016)."""
    epochs: Optional[int] = None
    """How often all steps of a rollout are learnt from. None: 4 where the network sees images (as OpenAI's Baselines; the paper
    has 3), 10 where it sees numbers alone."""
    minibatches: Optional[int] = None
    """Into how many parts of random steps a rollout is divided in each epoch; the optimiser takes a step for each.
    None: 4 where the network sees images, else so many that each has 64 steps. With --memory each is of one or several whole
    environments: no more than --num-envs, to which None keeps."""
    clip: Optional[float] = None
    """ε: what is gained by probabilities that differ from the rollout's by more than this share is not counted. None: 0.1 where
    the network sees images, 0.2 where it sees numbers alone."""
    value_clip: Optional[float] = None
    """Count the larger of two errors of a value: its own, and that of the value moved from the rollout's by this at most.
    None: its own."""
    normalise_advantages: bool = True
    """Bring the advantages of each minibatch to mean 0 and variance 1."""
    target_kl: Optional[float] = None
    """Go over a rollout no more after an epoch whose last minibatch is farther than this from the policy that played, in nats.
    Agents then differ in their numbers of steps, which they may not where they average gradients. None: all epochs."""

    def check(self, group: str) -> None:
        super().check(group)
        require_whole(f"{group}.epochs", self.epochs, 1)
        require_whole(f"{group}.minibatches", self.minibatches, 1)
        require(self.clip is None or 0 < self.clip < 1, f"{group}.clip", self.clip, "a number between 0 and 1")
        for name, bound in (("value-clip", self.value_clip), ("target-kl", self.target_kl)):
            require(bound is None or 0 < bound < math.inf, f"{group}.{name}", bound, "a positive number")

    def of_run(self, images: bool, num_envs: int) -> dict[str, Any]:
        return {
            "rollout_length": PPO_LENGTH if images else max(1, PPO_STEPS // num_envs),
            "base_lr": 2.5e-4 if images else 3e-4,
            "normalise_observations": not images,
            "normalise_rewards": not images and not self.clip_rewards,
        }

    def settled(self, discrete: bool, images: bool = False, steps: int = PPO_STEPS, environments: int | None = None) -> Self:
        minibatches = PPO_MINIBATCHES if images else max(1, steps // PPO_MINIBATCH)
        if environments is not None:
            minibatches = min(minibatches, environments)
        return replace(
            super().settled(discrete, images, steps, environments),
            epochs=(4 if images else 10) if self.epochs is None else self.epochs,
            minibatches=minibatches if self.minibatches is None else self.minibatches,
            clip=(0.1 if images else 0.2) if self.clip is None else self.clip,
        )

    def at_once(self, steps: int) -> int | None:
        return -(-steps // (self.minibatches or 1))

    def parts(self, rows: int) -> int:
        return min(self.minibatches or 1, rows)

    def optimiser_steps(self, rows: int) -> int:
        return (self.epochs or 1) * self.parts(rows)


@dataclass(frozen=True)
class VTraceSettings(ActorCriticSettings):
    """The V-trace learner: IMPALA (Espeholt et al. 2018) with the steps of A2C.

    IMPALA's own bound of gradients and ε (40 and 0.01, of sums over 20 steps of 32 environments: 0.0625 and 1e-4 of means) are
    for ten times as many steps: docs/paper.md.
    """

    decay_lr: bool = True
    """Let the learning rate fall linearly to 0 over the run's global steps."""
    gae_lambda: float = 1.0
    """λ of the targets: less than 1 weakens c, by which later steps count (Espeholt et al. 2018, remark 2)."""
    rho_bar: float = 1.0
    """ρ̄: ratios of an action's probabilities, by the policy that learns and by the one that played, count as this much at
    most; inf: as they are."""
    c_bar: float = 1.0
    """c̄: how much of what comes after a step its ratio passes on at most; inf: as it is."""

    def check(self, group: str) -> None:
        super().check(group)
        for name, bound in (("rho-bar", self.rho_bar), ("c-bar", self.c_bar)):
            require(bound > 0, f"{group}.{name}", bound, "a positive number, or inf,")

    def of_run(self, images: bool, num_envs: int) -> dict[str, Any]:
        return {
            "rollout_length": ATARI_LENGTH if images else IMPALA_LENGTH,
            "base_lr": 1e-3 if images else NUMBERS_LR,  # A2C's, for rollouts that are twice as long
            "normalise_observations": not images,
            "normalise_rewards": not images and not self.clip_rewards,
        }
