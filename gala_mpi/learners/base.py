"""What every learner is: a loss, and what becomes of its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from gala_mpi.flat import Flat
from gala_mpi.learners import optimisers
from gala_mpi.learners.optimisers import Step
from gala_mpi.learners.outer import OuterStep
from gala_mpi.learners.settings import LearnerSettings
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch


class Losses(NamedTuple):
    """The terms of a loss, as they are recorded: means over a batch, without coefficients. NaN: the learner has none.

    The last three are no terms, and say how far the policy is from the one that played, where it may be: the KL divergence in
    nats, the share of steps at which a ratio of probabilities was clipped, and V-trace's ρ, such a ratio after it.
    """

    policy: float | torch.Tensor = math.nan
    value: float | torch.Tensor = math.nan
    entropy: float | torch.Tensor = math.nan
    kl: float | torch.Tensor = math.nan
    clip_share: float | torch.Tensor = math.nan
    rho: float | torch.Tensor = math.nan


class RolloutPart(Protocol):
    """What a gradient is taken of: a rollout, or a view of some of its steps."""

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`."""


class Learner:
    """A learning algorithm. Another one is a subclass with a `loss`; more where it takes a rollout in parts.

    Args:
        network: its parameters become views of `flat.data`.
        settings: what the learner is told.
        lr: the learning rate at the start.
        stream: update → what the learner draws from at it: of the run's seed and of this rank, so that nothing of it has to be
            saved.

    Attributes:
        corrects: whether it may learn from what older parameters have played (--lag, --actors). It then takes each rollout
            once, whole.
        flat: the network's parameters and gradients.
        updates: rollouts that have been learnt from.
        steps: of these.
    """

    corrects: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        settings: LearnerSettings,
        lr: float,
        stream: Callable[[int], np.random.Generator] = np.random.default_rng,
    ):
        self.network, self.lr, self.stream = network, lr, stream
        self.settings = settings.settled(network.spaces.discrete, network.spaces.picture is not None)
        self.flat = Flat(network)
        self.optimiser = optimisers.make(settings, self.flat.learnt.data)
        self.updates = 0
        self.steps = 0
        self._average: torch.Tensor | None = None
        self._decay = 0.0
        self._outer: OuterStep | None = None

    def keep_average(self, decay: float) -> None:
        """Keep a moving average of the parameters, from what they are now: x̂ ← decay · x̂ + (1 − decay) · x at each `average`.

        It is `ema` of the learner's state. Statistics at the end of the vector, which are sums, are the newest.
        """
        self._average, self._decay = self.flat.data.clone(), decay

    def average(self) -> None:
        """Add the parameters, as they are after an update, to their moving average, if one is kept."""
        if self._average is not None:
            end = len(self.flat.learnt.data)
            self._average[:end].lerp_(self.flat.learnt.data, 1 - self._decay)
            self._average[end:].copy_(self.flat.counted.data)

    def take_outer_steps(self, momentum: float, lr: float) -> None:
        """Go on from means of all agents by steps with momentum (see OuterStep), which are part of the learner's state."""
        self._outer = OuterStep(momentum, lr)

    def outer_step(self) -> None:
        """Take the outer step, if any are taken, from the mean over all agents. Statistics, which are sums, stay at it."""
        if self._outer is not None:
            self._outer(self.flat.learnt.data)

    def loss(self, part: Any) -> tuple[torch.Tensor, Losses]:
        """Return the loss of a part of a rollout, with gradient (see `Batch.evaluate`), and its terms.

        Of a whole rollout it is recorded for GPUs (`device.cuda_graph`): only operations on the device, and no look at a
        number.
        """
        raise NotImplementedError

    def parts(self, batch: Batch) -> Iterable[RolloutPart]:
        """Return what a gradient is taken of, one after the other: the rollout itself.

        A learner that goes over it several times, or over minibatches, returns as many objects that its `loss` takes, for
        instance views of some rows. The next is asked for when the gradient of the one before is there, so that a generator
        may end by what it was. Where agents average their gradients all must have as many, of rollouts that are cut short
        (--preempt) too.
        """
        return [batch]

    @property
    def one_pass(self) -> bool:
        """Whether each rollout is differentiated once, whole, with the parameters that played it."""
        return type(self).parts is Learner.parts and type(self).gradient is Learner.gradient

    def gradient(self, part: RolloutPart) -> torch.Tensor:
        """Put the gradient of the loss into `flat.grad`.

        Returns:
            The terms of the loss, float32 [6]: see Losses.
        """
        loss, terms = self.loss(part)
        part.backward(loss)
        return torch.stack([term if torch.is_tensor(term) else loss.new_full((), term) for term in terms]).detach()

    def count(self, steps: int) -> None:
        """Count one more update, of so many steps."""
        self.updates += 1
        self.steps += steps

    def tally(self, additions: torch.Tensor | None) -> None:
        """Put what a rollout adds to the network's statistics behind the gradient; None: nothing.

        It is shared with the gradient, and `step` adds it. (Of a rollout in several parts with the last one, so that all are
        learnt from with the statistics that it was played with.)
        """
        if additions is None:
            self.flat.counted.grad.zero_()
        else:
            self.flat.counted.grad.copy_(additions)

    def step(self, progress: float, into: torch.Tensor | None = None) -> Step:
        """Clip the gradient, and take one step of the optimiser from `flat.data`; none where it is not finite.

        What is behind the gradient (see `tally`) is added with the step, or not at all.

        Args:
            progress: share of the run's global steps that are done, in [0, 1]; the learning rate's decay goes by it.
            into: where the new parameters go, float32 [P]; `flat.data` then is to be set by who gave it. None: they go into
                `flat.data`.
        """
        lr = self.lr * (1 - progress if self.settings.decay_lr else 1)
        learnt, counted = self.flat.learnt, self.flat.counted
        end = len(learnt.data)
        room = None if into is None else into[:end]
        step = self.optimiser.step(learnt.grad, learnt.data, lr, self.settings.max_grad_norm, room)
        if len(counted.data):
            after = counted.data if into is None else into[end:]
            after.copy_(counted.data + counted.grad if step.taken else counted.data)
        return step

    def state(self) -> optimisers.State:
        """Return all that a resume needs of the learner: `parameters` (float32 [P]), counters, and the optimiser's state."""
        return {
            "parameters": self.flat.data.cpu().numpy().copy(),
            "updates": np.int64(self.updates),
            "steps": np.int64(self.steps),
            **({} if self._average is None else {"ema": self._average.cpu().numpy().copy()}),
            **({} if self._outer is None else self._outer.state()),
            **self.optimiser.state(),
        }

    def load(self, state: optimisers.State) -> None:
        """Take in what `state` returned. A moving average that it has not begins with the parameters."""
        self.flat.data.copy_(torch.from_numpy(state["parameters"]))
        self.updates, self.steps = int(state["updates"]), int(state["steps"])
        if self._average is not None:
            self._average.copy_(torch.from_numpy(state.get("ema", state["parameters"])))
        if self._outer is not None:
            self._outer.load(state, self.flat.data)
        self.optimiser.load(state)
