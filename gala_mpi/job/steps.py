"""The run's count of steps: how far it is, and when an agent is done.

Agents that wait for each other do an equal share each. Others do what they can, and all stop when their sum reaches
--total-steps (T of Mnih et al. 2016): a slow agent then does less, and the run does not wait for it. Under --preempt agents
that wait for each other do what they can too; they know the sum, and stop at the same update.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gala_mpi.config import Config
from gala_mpi.learners.base import Learner
from gala_mpi.mpi.world import World
from gala_mpi.run import reader


class Steps:
    """The count, as one agent knows it. Collective to make.

    Args:
        learner: as it starts, or goes on.
        heard: steps of all agents, as far as this one has heard.
        counted: steps of all agents since the start, where they count them together (see `Exchange.steps`); else None.

    Attributes:
        last: the update after which this agent is done; where it does not depend on the others, else at the latest.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        learner: Learner,
        heard: Callable[[], int],
        counted: Callable[[], int | None] = lambda: None,
    ):
        self._total, self._learner, self._world, self._heard = config.total_steps, learner, world, heard
        updates, steps = world.sum(learner.updates), world.sum(learner.steps)
        self._before, self._counted = steps, counted
        self._shared = not (config.in_step or config.replay) or counted() is not None
        self._recorded: dict[int, int] = {}
        if config.replay:
            rows = reader.read_rows(config.replay, world.rank, "updates")
            self._recorded = dict(zip(rows["update"].tolist(), rows["run_steps"].tolist()))
            self.last = max(self._recorded, default=0)
        elif self._shared:
            rollouts = max(0, math.ceil((self._total - steps) / config.steps_per_update))
            self.last = learner.updates + rollouts * config.updates_per_rollout
        else:
            self.last = config.updates(world.size, updates, steps)

    def of_all(self) -> int:
        """Return the steps of all agents, as far as this one knows; in a replay, as far as it knew when it was recorded."""
        if (counted := self._counted()) is not None:
            return self._before + counted
        if self._shared:
            return self._heard()
        recorded = self._recorded.get(self._learner.updates, -1)  # an older version recorded none
        return recorded if recorded >= 0 else self._learner.steps * self._world.size

    def progress(self) -> float:
        """Return the share of the run's steps that are done, in [0, 1]."""
        return min(1.0, self.of_all() / self._total)

    def done(self) -> bool:
        """Return whether this agent has nothing left to do."""
        return self.of_all() >= self._total if self._shared else self._learner.updates >= self.last

    def all_done(self) -> bool:
        """Return whether nobody has anything left to do, at the end of a run. Collective."""
        if self._shared:
            return self._world.sum(self._learner.steps) >= self._total
        return self._world.all(self.done())
