"""Train one policy with many actor-learners: every MPI rank is an agent that owns its environments, network and optimiser.

    mpirun -n 32 python -m gala_mpi.train
    mpirun -n 2 python -m gala_mpi.train --env breakout --exchange allreduce --total-steps 10000000
    mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/pong-gossip-...

`agent.update` is the algorithm; this file goes through the run: record, show, save, stop.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.prepare_to_train(status=2)  # before torch and MPI are imported

import sys

from gala_mpi import display, errors
from gala_mpi.config import Config
from gala_mpi.display import LiveReport
from gala_mpi.exchange.base import Order
from gala_mpi.job import (
    build,
    prepare,
    reproduce,
    resume,
    signals,
)
from gala_mpi.job.membership import Membership
from gala_mpi.job.prepare import Plan
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.job.signals import Stop
from gala_mpi.mpi.world import World
from gala_mpi.record.energy import Meter
from gala_mpi.record.recorder import (
    Recorder,
    Update,
)


def main(arguments: list[str] | None = None) -> None:
    with World() as world:
        status = train(world, world.decide(lambda: prepare.make(arguments, world)))
        signals.listen_no_more()
        sys.exit(status)


def train(world: World, plan: Plan) -> int:
    """Train until the plan's updates are done, or somebody asks to stop. The exit status (see `stop`). Collective."""
    config = plan.config
    if world.root:
        display.welcome(config, world.size, world.library, world.threads, plan.origin, plan.advice)
    trainer = Trainer(world, plan)
    trainer.run()
    if config.replay:
        return _compared(world, config)
    finished = world.all(trainer.learner.updates >= trainer.last)
    status, reason = (errors.FINISHED, "") if finished else world.largest(trainer.stop.verdict)
    if world.root:
        display.farewell(config, world.size, reason)
    return status


class Trainer:
    """One rank's part of a run: its agent, and what records, shows, saves and stops it. Collective to make and to run.

    Attributes:
        last: the update after which this agent is done.
        stop: whether somebody has asked to stop early, and why.
    """

    def __init__(self, world: World, plan: Plan):
        config, run, origin = plan.config, plan.config.run_dir, plan.origin
        self.world, self.config = world, config
        self.agent = build.build(config, world.comm, world.node.rank, world.threads)
        self.learner, self.exchange = self.agent.learner, self.agent.exchange
        hours = 0.0
        if origin.number:
            hours = resume.restore(run, origin, world.rank, self.learner)
            self.agent.restart_environments()
        updates = self.learner.updates
        self.last = config.updates(world.size, world.sum(updates), world.sum(self.learner.steps))
        self.metrics = Recorder(
            *(run, world.rank, updates, self.last - updates, plan.mixes_per_update, config.sketch_updates, hours),
            meter=Meter() if world.node.rank == 0 else None,
            agents=world.size,
            resumed_from=origin.number,
            new_episodes=not (origin.number and config.exact_resume),
        )
        self.checkpoints = Checkpoints(run, world.rank, config, origin.last)
        self.progress = LiveReport(world, config, self.learner.steps)
        self.stop = Stop(config.wall_minutes, plan.propagation_delay)
        self.roll = Membership(run, world) if config.survive is not None and world.size > 1 else None

    def run(self) -> None:
        """Update by update to the last one, or to where all agree to stop."""
        self.agent.start()
        with self.progress:
            order = Order()
            while self.learner.updates < self.last and not order.stop:
                update = self.agent.update()
                with self.agent.clock("record"):
                    self.record(update)
                    order = self.agree()
                    if order.save:
                        self.save()
                        if self.config.exact_resume:
                            self.agent.restart_environments()  # as who resumes here
            if self.roll:
                self.end_without_the_lost(self.roll)
            self.agent.close(meanwhile=self.attend)  # from here on all ranks are out of the loop
            if not (order.stop and order.save and self.config.exact_resume):  # which has just saved
                self.save(self.world.largest(self.checkpoints.number) + 1)
            self.metrics.close()

    def record(self, update: Update) -> None:
        """Write an update down, and show it."""
        counters = self.exchange.counters()
        self.metrics.record(self.learner, update, counters, self.agent.clock.lap())
        self.progress.update(self.learner, update.episodes, counters)
        if self.roll:
            self.roll.miss(counters.lost)

    def agree(self) -> Order:
        """What all do next, as far as I have heard: my wish is one of many."""
        wish = Order(stop=self.stop.requested(self.checkpoints.slowest), save=self.checkpoints.due())
        return self.checkpoints.heed(self.exchange.agree(wish), self.learner.updates)

    def save(self, number: int | None = None) -> None:
        """Write a checkpoint: the next one, or `number`."""
        self.metrics.sync()
        state = resume.take(self.learner, self.config, self.world.size, self.metrics.hours, self.progress.score)
        self.checkpoints.save(state, number)

    def attend(self) -> None:
        """While others still train: save with them, for a checkpoint is of all ranks; pass on a wish to stop."""
        if self.checkpoints.due():
            self.save()
        if self.stop.verdict[0] != errors.FINISHED:
            self.exchange.agree(Order(stop=True))

    def end_without_the_lost(self, roll: Membership) -> None:
        """Wait for the others' ends; where somebody is lost, save, say so and leave without MPI."""
        roll.leave()
        self.exchange.serve(until=roll.all_out, meanwhile=self.attend)
        roll.answer(self.learner.updates, self.checkpoints.number)
        self.exchange.serve(until=roll.complete)
        if not roll.lost:
            return
        self.save(max(end.number for end in roll.ends) + 1)
        self.metrics.close()
        self.progress.hide()
        if roll.spokesman:
            display.bereaved(self.config, self.world.size, roll.lost)
        roll.wait_for_checkpoints(self.checkpoints.number)
        self.world.leave(max(errors.RESUME, self.stop.verdict[0]))


def _compared(world: World, config: Config) -> int:
    """The exit status of a replay: whether every rank's losses and norms are those that were recorded. Collective."""
    repeated = world.all(reproduce.repeats(config.replay, config.run_dir, world.rank))
    if world.root and repeated:
        display.say(f"replayed: {config.run_dir}\nevery loss and norm is that of {config.replay}, bit for bit")
    return errors.FINISHED if repeated else errors.FAILED


if __name__ == "__main__":
    main(sys.argv[1:])
