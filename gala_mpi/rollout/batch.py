"""A rollout, as a learner sees it.

How the policy and values of its steps are differentiated is not the learner's concern: forward passes that were cached while
the rollout was played (`cached.py`), or passes that are computed again (`stored.py`), behind the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import torch

from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.policy import Network


class Player(Protocol):
    """A learner, as rollouts see it: whose network plays, and whether each rollout is differentiated once, whole."""

    network: Network

    @property
    def one_pass(self) -> bool: ...


class Passes(Protocol):
    """The forward passes of a rollout, step by step, turn by turn; each over other rows, [N / turns] of them.

    Attributes:
        name: which kind, in one word.
    """

    name: str

    def load_parameters(self) -> None:
        """Begin a new rollout with the network's parameters as they are now."""

    def forward(
        self, number: int, observations: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Do pass `number` (from 0 on) over [N / turns, ...]: a distribution over actions and values, without gradient.

        Values may be views of room that `end` fills.

        Args:
            state: what the memory holds before the pass, [N / turns, S], and then after it. None: episodes begin.
        """
        ...

    def end(self, steps: int) -> None:
        """Let the rollout have T = `steps` steps, as many as there is room for or fewer. From now on its values are there."""

    def evaluate(
        self, rows: torch.Tensor | None = None, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Return what the network says of all steps, [T, N], or of `rows` (see `Batch`), with gradient.

        Args:
            state, resets: the batch's, where the network has a memory.
        """
        ...

    def bootstrap(self) -> torch.Tensor:
        """Return what the network says of the value of what was seen after the last step, [N], without gradient."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` (a function of what `evaluate` returned) in place of the parameters' `grad`."""

    def observations(self) -> torch.Tensor:
        """Return what the network saw at all steps, [T, N, ...]."""
        ...


class Acted(NamedTuple):
    """What one pass brought: the policy, values [N / turns], and the actions that were drawn; None: it bootstraps."""

    policy: Policy
    values: torch.Tensor
    actions: torch.Tensor | None


@dataclass
class Batch:
    """T steps of N environments. Tensors are [T, N] float32 where nothing else is said.

    Its rows are what can be learnt from apart: the T · N steps; with a memory the N environments, each with all its steps.

    What not every learner needs is computed when it is first asked for.

    Attributes:
        passes: of this rollout.
        rewards: r_t as the learner sees them; γ V(cut-off observation) is added where an episode was truncated.
        discounts: γ, or 0 where the return ends.
        resets: bool; whether a return begins at this step: the first one of an episode or a life.
        acted: what the passes brought, in their order.
        state: what the network's memory held before the first step, [N, S], by the network that played; None: it has no memory.
        additions: what the rollout adds to the network's statistics, float32 (see `Flat.counted`); None: it keeps none.
    """

    passes: Passes
    rewards: torch.Tensor
    discounts: torch.Tensor
    resets: torch.Tensor
    acted: Sequence[Acted] = field(repr=False)
    state: torch.Tensor | None = None
    additions: torch.Tensor | None = None

    @cached_property
    def actions(self) -> torch.Tensor:
        """a_t, int64 [T, N] or float32 [T, N, *action_shape]."""
        return self._grid([each.actions for each in self._playing if each.actions is not None])

    @cached_property
    def behaviour(self) -> Policy:
        """The distributions from which the actions were drawn, [T, N], without gradient."""
        policies = [each.policy for each in self._playing]
        return policies[0].joined(cast(Any, policies), self.rewards.shape)  # all are of the first one's kind

    @cached_property
    def log_probs(self) -> torch.Tensor:
        """log π(a_t | s_t) by the policy that chose a_t, without gradient."""
        return self.behaviour.log_prob(self.actions)

    @cached_property
    def values(self) -> torch.Tensor:
        """V(s_t) by the network that played, without gradient."""
        return self._grid([each.values for each in self._playing])

    @cached_property
    def next_values(self) -> torch.Tensor:
        """V(s_{t+1}) by the network that played, without gradient; the last row bootstraps."""
        return self._grid([each.values for each in self.acted[len(self.acted) - len(self._playing) :]])

    @cached_property
    def observations(self) -> torch.Tensor:
        """s_t, [T, N, ...]: uint8 for images, else float32 as the network was given them (under bf16 they may be rounded to
        bfloat16)."""
        return self.passes.observations()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.rewards.numel() if self.state is None else len(self.state)

    def some(self, column: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return what a column [T, N, ...] has of some rows, int64 [M]: [M, ...]; with a memory [T, M, ...]."""
        return column.flatten(0, 1)[rows] if self.state is None else column[:, rows]

    def evaluate(self, rows: torch.Tensor | None = None) -> tuple[Policy, torch.Tensor]:
        """Return what the network says of the steps now, with gradient: a distribution over actions and values.

        Args:
            rows: int64 [M], some rows, for learners that take a rollout in parts; what is returned is as of `some`. None: all,
                [T, N].
        """
        if rows is not None:
            return self.passes.evaluate(rows, self.state, self.resets)
        if self._evaluated is None:
            self._evaluated = self.passes.evaluate(None, self.state, self.resets)
        return self._evaluated

    def following(self, values: torch.Tensor) -> torch.Tensor:
        """Return V(s_{t+1}) by the network as it is now, [T, N], without gradient; the last row bootstraps.

        Where that is the network that played, they are `next_values`, but for rounding.

        Args:
            values: V(s_t), as `evaluate` has returned them.
        """
        return torch.cat([values[1:].detach(), self.passes.bootstrap()[None]])

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` (a function of what `evaluate` returned) in place of the parameters' `grad`."""
        self.passes.backward(loss)
        self._evaluated = None

    def __post_init__(self):
        self._evaluated: tuple[Policy, torch.Tensor] | None = None
        self._playing = [each for each in self.acted if each.actions is not None]  # the others bootstrap

    def _grid(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Join what the passes brought: [T, N, ...]."""
        joined = torch.cat(parts)
        return joined.view(*self.rewards.shape, *joined.shape[1:])
