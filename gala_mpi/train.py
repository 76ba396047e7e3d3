"""Train one policy with many actor-learners: every MPI rank is an agent that owns its environments, network and optimiser.

    mpirun -n 32 python -m gala_mpi.train
    mpirun -n 2 python -m gala_mpi.train --env breakout --exchange allreduce --total-steps 10000000
    mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/pong-gossip-...

`train` is the loop of a run: update, record, show, save, stop. What an update is stands in agent.py.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.prepare_to_train(status=2)  # before torch and MPI are imported

import sys

from gala_mpi import display, errors, pulse
from gala_mpi.config import Config
from gala_mpi.display import LiveReport
from gala_mpi.envs import modules
from gala_mpi.errors import JobError
from gala_mpi.exchange.base import Order
from gala_mpi.job import build, command, hangs, prepare, reproduce, resume, signals
from gala_mpi.job.membership import Membership
from gala_mpi.job.prepare import Plan
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.job.signals import Stop
from gala_mpi.job.skips import Skips
from gala_mpi.job.steps import Steps
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World
from gala_mpi.record.energy import Meter
from gala_mpi.record.recorder import Recorder, Update
from gala_mpi.run import layout, lock


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    command.remember(arguments)
    with World() as world:
        plan = world.decide(lambda: prepare.make(arguments, world))
        try:
            status = train(world, plan)
        except SystemExit as end:  # an environment's, say: the others would wait for ever
            raise JobError(f"something has called sys.exit({end.code}) in the middle of training") from None
        lock.release()
        signals.ignore_late_signals()
        sys.exit(status)


def train(world: World, plan: Plan) -> int:
    """Train until all steps are done, or all have agreed to stop. Return the exit status. Collective."""
    if world.root:
        display.welcome(plan.config, world.size, world.library, world.threads, plan.origin, plan.advice)
    if plan.config.hang_minutes is not None:
        hangs.watch(plan.config.hang_minutes, world, plan.config.survive is not None)
    trainer = Trainer(world, plan)
    agent, order = trainer.agent, Order()
    agent.start()
    with trainer.report:
        while not (trainer.steps.done() or order.stop):
            update = agent.update(trainer.steps.progress())  # rollout, gradient, step, exchange
            with agent.clock("record"):
                trainer.record(update)  # in metrics/ and on the terminal
                order = trainer.agree()  # what all do next
                if order.save:
                    trainer.save()  # in checkpoints/
                    if plan.config.exact_resume:
                        agent.restart_environments()  # as who resumes here
        trainer.end(order)
    return trainer.status()


class Trainer:
    """One rank's part of a run: its agent, and what records, shows, saves and stops it. Collective to make.

    Attributes:
        steps: the run's count of them.
        stop: whether somebody has asked to stop early, and why.
    """

    def __init__(self, world: World, plan: Plan):
        config, run, origin = plan.config, plan.config.directory, plan.origin
        self.world, self.config = world, config
        self.agent = build.build(config, world.comm, world.node.rank, world.threads)
        self.learner, self.exchange = self.agent.learner, self.agent.exchange
        hours = 0.0
        if origin.number:
            # All go on at the same moment, who had been lost too.
            hours = world.largest(resume.restore(run, origin, world.rank, self.learner))
            self.agent.restart_environments()
        self.report = LiveReport(world, config, self.learner)
        self.steps = Steps(config, world, self.learner, heard=lambda: self.report.steps)
        updates = self.learner.updates
        self.recorder = Recorder(
            *(run, world.rank, updates, self.steps.last - updates, plan.mixes_per_update, config.sketch_updates, hours),
            meter=Meter() if world.node.rank == 0 else None,
            agents=world.size,
            resumed_from=origin.number,
            new_episodes=not (origin.number and config.exact_resume),
        )
        self.checkpoints = Checkpoints(run, world.rank, config, origin.last)
        self.stop = Stop(config.wall_minutes, plan.propagation_delay)
        self.skips = Skips(world.rank, world.host, config.max_skipped)
        self.others = Roll.of(world.comm).watch_peers([rank for rank in range(world.size) if rank != world.rank])
        self.membership = Membership(run, world) if config.survive is not None and world.size > 1 else None
        if self.membership and not world.root:
            lock.share(run)  # rank 0, which has taken it, may be lost

    def record(self, update: Update) -> None:
        """Write an update down, and show it."""
        pulse.work(self.learner.updates)
        self.others.check()  # before the count of steps is written down: a look may bring news of it
        counters = self.exchange.counters()
        self.report.update(self.learner, update.episodes, counters, self.recorder.skipped + bool(update.skipped))
        self.recorder.record(self.learner, self.steps.of_all(), update, counters, self.agent.clock.lap())
        self.skips.note(self.learner.updates, update.skipped)
        if self.membership:
            self.membership.report_lost(counters.lost)

    def agree(self) -> Order:
        """Return what all do next, as far as this rank has heard; its own wish is one of many."""
        wish = Order(stop=self.stop.requested(self.checkpoints.slowest), save=self.checkpoints.due())
        return self.checkpoints.heed(self.exchange.agree(wish), self.learner.updates)

    def save(self, number: int | None = None) -> None:
        """Write a checkpoint: the next one, or `number`."""
        with pulse.save():
            layout.require_there(self.config.directory)
            self.recorder.sync()
            about = (self.config, self.world.size, self.recorder.hours, self.report.score)
            state = resume.take(self.learner, *about, self.exchange.shared())
            self.checkpoints.save(state, number)

    def end(self, last: Order) -> None:
        """Serve the others until all are out of the loop, save together, and close. `last`: what was agreed on last."""
        if self.membership:
            self._end_without_the_lost(self.membership)
        self.agent.leave(meanwhile=self._attend)
        has_just_saved = last.stop and last.save and self.config.exact_resume
        if not has_just_saved:
            self.save(self.world.largest(self.checkpoints.number) + 1)
        self.recorder.close()
        self.skips.conclude(self.recorder.skipped, self.learner.updates)
        try:
            self.agent.collector.close()  # last: who knows what a user's environment does then
        except Exception as error:  # the run is whole
            display.say(f"warning: environments of rank {self.world.rank} cannot be closed ({modules.in_a_line(error)})")

    def status(self) -> int:
        """Say how the run ended, and return the exit status (see `errors` and `job.signals`). Collective."""
        if self.config.replay:
            return _compare(self.world, self.config)
        finished = self.steps.all_done()
        status, reason = (errors.FINISHED, "") if finished else self.world.largest(self.stop.verdict)
        if self.world.root:
            display.farewell(self.config, self.world.size, reason)
        return status

    def _attend(self) -> None:
        """While others still train: show them; save with them, for a checkpoint is of all ranks; pass on a wish to stop."""
        self.report.refresh()
        if self.checkpoints.due():
            self.save()
        if self.stop.verdict[0] != errors.FINISHED:
            self.exchange.agree(Order(stop=True))

    def _end_without_the_lost(self, membership: Membership) -> None:
        """Wait for the others' ends; where somebody is lost, save, say so and leave without MPI."""
        membership.leave()
        self.exchange.serve(until=membership.all_left, meanwhile=self._attend)
        membership.record_end(self.learner.updates, self.checkpoints.number)
        self.exchange.serve(until=membership.complete)
        if not membership.lost:
            return
        self.save(max(end.number for end in membership.ends) + 1)
        self.recorder.close()
        self.report.hide()
        self.skips.conclude(self.recorder.skipped, self.learner.updates)
        if membership.first_survivor:
            display.bereaved(self.config, self.world.size, membership.lost)
        membership.wait_for_checkpoints(self.checkpoints.number)
        lock.release()
        self.world.leave(max(errors.RESUME, self.stop.verdict[0]))


def _compare(world: World, config: Config) -> int:
    """Return the exit status of a replay: whether every rank's losses and norms are those that were recorded. Collective."""
    assert config.replay is not None  # else there is nothing to compare
    repeated = world.all(reproduce.repeats(config.replay, config.directory, world.rank))
    if world.root and repeated:
        display.replayed(config)
    return errors.FINISHED if repeated else errors.FAILED


if __name__ == "__main__":
    launch.run(main)
