"""What every learner is: a loss, and what becomes of its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from gala_mpi.flat import Flat
from gala_mpi.learners import optimisers
from gala_mpi.learners.optimisers import Step
from gala_mpi.learners.settings import LearnerSettings
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch


class Losses(NamedTuple):
    """The terms of a loss, as they are recorded: means over a batch, without coefficients. NaN: the learner has none."""

    policy: float | torch.Tensor = math.nan
    value: float | torch.Tensor = math.nan
    entropy: float | torch.Tensor = math.nan


class Learner:
    """A learning algorithm. Another one is a subclass with a `loss`; more where it takes a rollout in parts.

    Args:
        network: its parameters become views of `flat.data`.
        settings: what the learner is told.
        lr: the learning rate at the start.

    Attributes:
        flat: the network's parameters and gradients.
        updates: rollouts that have been learnt from.
        steps: of these.
    """

    def __init__(self, network: Network, settings: LearnerSettings, lr: float):
        self.network, self.settings, self.lr = network, settings.settled(network.spaces.discrete), lr
        self.flat = Flat(network)
        self.optimiser = optimisers.make(settings, self.flat.learnt.data)
        self.updates = 0
        self.steps = 0

    def loss(self, part: Batch) -> tuple[torch.Tensor, Losses]:
        """Return the loss of a part of a rollout, with gradient (see `Batch.evaluate`), and its terms.

        Of a whole rollout it is recorded for GPUs (`device.cuda_graph`): only operations on the device, and no look at a
        number.
        """
        raise NotImplementedError

    def parts(self, batch: Batch) -> Sequence[Batch]:
        """Return what a gradient is taken of, one after the other: the rollout itself.

        A learner that goes over it several times, or over minibatches, returns as many objects that its `loss` takes and that
        have a `backward`, for instance views of some rows. They are as many on all agents, which may average their gradients.
        """
        return [batch]

    @property
    def one_pass(self) -> bool:
        """Whether each rollout is differentiated once, whole, with the parameters that played it."""
        return type(self).parts is Learner.parts and type(self).gradient is Learner.gradient

    def gradient(self, part: Batch) -> torch.Tensor:
        """Put the gradient of the loss into `flat.grad`.

        Returns:
            The terms of the loss, float32 [3]: see Losses.
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
            **self.optimiser.state(),
        }

    def load(self, state: optimisers.State) -> None:
        """Take in what `state` returned."""
        self.flat.data.copy_(torch.from_numpy(state["parameters"]))
        self.updates, self.steps = int(state["updates"]), int(state["steps"])
        self.optimiser.load(state)
