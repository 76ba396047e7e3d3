"""Train one policy with many actor-learners: every MPI rank is an agent that owns its environments, network and optimiser.

    mpirun -n 32 python -m gala_mpi.train
    mpirun -n 2 python -m gala_mpi.train --env breakout --exchange allreduce --total-steps 10000000
    mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/pong-gossip-...

`train` is the loop of a run: update, record, show, save, stop. What an update is stands in agent.py. `call` is what programs of
one's own call as `gala_mpi.train(...)`.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.prepare_to_train(status=2, command=__name__ == "__main__")  # before torch and MPI are imported

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from gala_mpi import display, errors, pulse
from gala_mpi.agent import Agent
from gala_mpi.callbacks import Callback, Callbacks, Ended, EpisodeEnded, Saved, Updated
from gala_mpi.config import Config
from gala_mpi.display import LiveReport
from gala_mpi.envs import modules
from gala_mpi.errors import JobError, Refusal, SettingError
from gala_mpi.exchange.base import Counters, Order
from gala_mpi.job import build, build_actors, command, given, hangs, once, prepare, reproduce, resume, signals
from gala_mpi.job.evaluations import Evaluations, News
from gala_mpi.job.membership import Membership
from gala_mpi.job.prepare import Plan
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.job.signals import Stop
from gala_mpi.job.skips import Skips
from gala_mpi.job.steps import Steps
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World
from gala_mpi.record.energy import Meter
from gala_mpi.record.logs import Scalars
from gala_mpi.record.recorder import Recorder, Update
from gala_mpi.rollout.arrivals import Arrivals
from gala_mpi.rollout.collector import Collector
from gala_mpi.run import layout, lock


def main(arguments: list[str] | None = None) -> None:
    """Train as a command line says, and end the process. Collective."""
    signals.listen()
    arguments = sys.argv[1:] if arguments is None else arguments
    command.remember(arguments)
    with World() as world:
        plan = world.decide(lambda: prepare.make(arguments, world))
        ended = run(world, plan, Callbacks())
        signals.ignore_late_signals()
        sys.exit(ended.status)


def call(
    config: Config | None = None,
    *,
    callbacks: Iterable[Callback | Callable[[Updated], bool | str | None]] = (),
    **settings: Any,
) -> Ended:
    """Train, in a program of one's own that runs under mpirun, as the command of this name does. Collective, of all ranks.

        gala_mpi.train(env="CartPole-v1", learner="ppo", total_steps=50_000, callbacks=[print])

    Settings are those of the command line, by the names of `Config`. Of a `Config` those count as given that are not its
    defaults, of keywords all. With `resume=True` and `run_dir`, or `replay`, the run's settings stand for those not given.

    A function may stand for the name of an environment or a network. At the top of a module, or of the program itself, it is
    stored as MODULE:FUNCTION, so that every command finds it later. Others train, but no other process finds them.

    Signals are heeded as by the command while this trains. It seeds the global streams of Python, numpy and torch, and sets how
    many threads torch has. It may be called again, for another run. Where ranks are lost (`survive`), and MPI with them, it
    ends the process.

    Args:
        config: settings, alike on all ranks.
        callbacks: what to call at updates, episodes, checkpoints and the end: each a `Callback`, or a function that is called
            with an `Updated` after each update. Ranks may have others each.
        settings: more settings, as keywords; tables (a2c, ppo, vtrace, atari) also as dicts. They win. `env` may be a function
            that returns an environment of gymnasium, `network` one from the environment's spaces to a torch module.

    Returns:
        How the run has ended: where it is, whether all steps are done, and why not.

    Raises:
        SettingError: bad input, in one line that names the flag; on all ranks, of which none waits for another. (A ValueError.)
            Any other error, such as one of an environment, a network or a callback, ends the job on all ranks with status 1.
    """
    with once.training(), signals.listening():
        try:
            with World() as world:
                mine = world.together(lambda: given.gather(config, settings))
                told = world.together(lambda: Callbacks(callbacks))
                world.require_alike([*given.words(mine)])
                command.remember(None)
                plan = world.agree_on(lambda: prepare.plan(given.read(mine), world))
                return run(world, plan, told)
        except Refusal as refusal:
            lock.release()
            raise SettingError(str(refusal)) from None


def run(world: World, plan: Plan, callbacks: Callbacks) -> Ended:
    """Do this rank's part of a run, and return how it has ended. Collective."""
    world.split(plan.config.actors)
    try:
        ended = world.of_agent(act(world, plan) if world.acts else train(world, plan, callbacks))
    except SystemExit as end:  # an environment's, say: the others would wait for ever
        raise JobError(f"something has called sys.exit({end.code}) in the middle of training") from None
    assert ended is not None  # every crew has an agent
    hangs.leave()
    lock.release()
    return ended


def train(world: World, plan: Plan, callbacks: Callbacks) -> Ended:
    """Train until all steps are done, or all have agreed to stop. Return how it has ended. Collective."""
    if world.root:
        display.welcome(plan.config, world.size, world.library, world.threads, plan.origin, plan.advice)
    if plan.config.hang_minutes is not None:
        hangs.watch(plan.config.hang_minutes, world, plan.config.survive is not None)
    trainer = Trainer(world, plan, callbacks)
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
    ended = trainer.ended()
    trainer.let_go(ended.status)
    return ended


def act(world: World, plan: Plan) -> None:
    """Play for the agent that this rank is an actor of, until it needs no more. Collective."""
    if plan.config.hang_minutes is not None:
        hangs.watch(plan.config.hang_minutes, world, plan.config.survive is not None)
    actor = build_actors.build_actor(plan.config, world)
    status = actor.act()
    close_environments(actor.collector, world)
    if status is not None:
        world.leave(status)


class Trainer:
    """One rank's part of a run: its agent, and what records, shows, saves and stops it. Collective to make.

    Attributes:
        steps: the run's count of them.
        stop: whether somebody has asked to stop early, and why.
    """

    def __init__(self, world: World, plan: Plan, callbacks: Callbacks):
        config, run, origin = plan.config, plan.config.directory, plan.origin
        self.world, self.config, self.callbacks = world, config, callbacks
        self.agent = make_agent(config, world)
        self.learner, self.exchange = self.agent.learner, self.agent.exchange
        hours, recent = 0.0, []
        if origin.number:
            # All go on at the same moment, who had been lost too.
            hours = world.largest(resume.restore(run, origin, world.rank, self.learner))
            recent = resume.recent_scores(run, origin, world.rank)
            self.agent.restart_environments()
        pulse.work(self.learner.updates)
        self.report = LiveReport(world, config, self.learner, recent)
        self.steps = Steps(config, world, self.learner, lambda: self.report.steps, self.exchange.steps)
        updates = self.learner.updates
        self.recorder = Recorder(
            *(run, world.rank, updates, self.steps.last - updates, plan.mixes_per_update, config.sketch_updates, hours),
            meter=Meter() if world.node.rank == 0 else None,
            agents=world.size,
            resumed_from=origin.number,
            new_episodes=not (origin.number and config.exact_resume),
        )
        settings = config.to_json()
        self.scalars = Scalars(config.log, run, settings, self.steps.of_all()) if world.root and config.log else None
        self.checkpoints = Checkpoints(run, world.rank, config, origin.last)
        self.stop = Stop(config.wall_minutes, plan.propagation_delay)
        news = News(run, self.report.say, self.scalars) if world.root else None
        evaluated = config.evaluate_minutes is not None
        self.evaluations = Evaluations(config, world, self.stop, news) if evaluated else None
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
        if self.scalars:
            self.scalars.update(update, self.steps.of_all(), self.report.numbers)
        if self.evaluations:
            self.evaluations.look()
        if self.membership:
            self.membership.report_lost(counters.lost)
        if self.callbacks:
            self._tell(update, counters)

    def _tell(self, update: Update, counters: Counters) -> None:
        """Tell callbacks of an update and its episodes, and heed what they ask for."""
        rank, number, losses = self.world.rank, self.learner.updates, update.losses
        for episode in update.episodes:
            self.callbacks.episode(EpisodeEnded(rank, number, episode.environment, episode.score, episode.length))
        done = Updated(
            *(rank, self.world.size, number, self.learner.steps, self.steps.of_all()),
            *(self.recorder.hours, self.report.score, float(losses.policy), float(losses.value), float(losses.entropy)),
            *(update.grad_norm, update.step_norm, len(counters.mixes), update.skipped),
        )
        self.callbacks.update(done)
        self.stop.ask(self.callbacks.reason)

    def agree(self) -> Order:
        """Return what all do next, as far as this rank has heard; its own wish is one of many."""
        wish = Order(stop=self.stop.requested(self.checkpoints.slowest), save=self.checkpoints.due())
        return self.checkpoints.heed(self.exchange.agree(wish), self.learner.updates)

    def save(self, number: int | None = None) -> None:
        """Write a checkpoint: the next one, or `number`."""
        with pulse.save():
            layout.require_there(self.config.directory)
            self.recorder.sync()
            scores = resume.Scores(self.report.score, self.report.games, self.report.recent)
            about = (self.config, self.world.size, self.recorder.hours, scores)
            state = resume.take(self.learner, *about, self.exchange.shared())
            self.checkpoints.save(state, number)
        if self.evaluations:
            self.evaluations.saved(self.checkpoints.number)
        if self.callbacks:
            number = self.checkpoints.number
            file = layout.checkpoint_file(self.config.directory, number, self.world.rank)
            self.callbacks.checkpoint(Saved(self.world.rank, self.learner.updates, number, file))
            self.stop.ask(self.callbacks.reason)

    def end(self, last: Order) -> None:
        """Serve the others until all are out of the loop, save together, and close. `last`: what was agreed on last."""
        if self.membership:
            self._end_without_the_lost(self.membership)
        self.agent.leave(meanwhile=self._attend)
        has_just_saved = last.stop and last.save and self.config.exact_resume
        if not has_just_saved:
            self.save(self.world.largest(self.checkpoints.number) + 1)
        if self.evaluations:
            self.world.wait()  # until all have saved
            self.evaluations.conclude(self.checkpoints.number, display.Lines().say)
        self._close_records()
        self.skips.conclude(self.recorder.skipped, self.learner.updates)
        close_environments(self.agent.collector, self.world)  # last: who knows what a user's environment does then

    def _close_records(self) -> None:
        """Write down what has not been yet."""
        self.recorder.close()
        if self.scalars:
            self.scalars.close(self.steps.of_all(), self.report.numbers)

    def ended(self) -> Ended:
        """Say how the run has ended, and return it; its exit statuses are in `errors` and `job.signals`. Collective."""
        if self.config.replay:
            finished = _repeats(self.world, self.config)
            status, reason = (errors.FINISHED, "") if finished else (errors.FAILED, "it is not what was recorded")
        else:
            finished = self.steps.all_done()
            status, reason = (errors.FINISHED, "") if finished else self.world.largest(self.stop.verdict)
            if self.world.root:
                display.farewell(self.config, self.world.size, reason)
        return self._tell_end(finished, reason, status)

    def _tell_end(self, finished: bool, reason: str, status: int) -> Ended:
        ended = Ended(self.world.rank, self.config.directory, finished, reason, status)
        self.callbacks.end(ended)
        return ended

    def let_go(self, status: int) -> None:
        """Let go of this agent's actors, if it has some. Collective, of all agents.

        Once one of them is lost, anywhere, MPI cannot be finalised: each rank ends by itself, when all agents have come here.
        """
        arrivals = self.agent.collector
        if not isinstance(arrivals, Arrivals):
            return
        if self.config.survive is None:
            arrivals.dismiss(None)
            return
        arrivals.end()
        whole = self.world.sum(len(arrivals.lost)) == 0
        arrivals.dismiss(None if whole else status)
        if not whole:
            self.world.wait()
            lock.release()
            self.world.leave(status)

    def _attend(self) -> None:
        """While others still train: show them; save with them, for a checkpoint is of all ranks; pass on a wish to stop."""
        self.report.refresh()
        if self.evaluations:
            self.evaluations.look()
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
        if self.evaluations:
            self.evaluations.end()
        self._close_records()
        self.report.hide()
        self.skips.conclude(self.recorder.skipped, self.learner.updates)
        if membership.first_survivor:
            display.bereaved(self.config, self.world.size, membership.lost)
        membership.wait_for_checkpoints(self.checkpoints.number)
        lock.release()
        status, reason = max((errors.RESUME, "ranks are lost"), self.stop.verdict)
        self._tell_end(False, reason, status)
        if isinstance(self.agent.collector, Arrivals):
            self.agent.collector.dismiss(status)
        self.world.leave(status)


def make_agent(config: Config, world: World) -> Agent:
    """Return this rank's agent. Collective."""
    if world.crew is not None:
        return build_actors.build_learner(config, world)
    return build.build(config, world.comm, world.node.rank, world.threads)


def close_environments(collector: Collector | Arrivals, world: World) -> None:
    """Close them, whatever they say: the run is whole."""
    try:
        collector.close()
    except Exception as error:
        display.say(f"warning: environments of {world.name} cannot be closed ({modules.in_a_line(error)})")


def _repeats(world: World, config: Config) -> bool:
    """Return whether every rank's losses and norms are those that were recorded, in a replay. Collective."""
    assert config.replay is not None  # else there is nothing to compare
    repeated = world.all(reproduce.repeats(config.replay, config.directory, world.rank))
    if world.root and repeated:
        display.replayed(config)
    return repeated


class Train(ModuleType):
    """This module, which programs call as a function."""

    __call__ = staticmethod(call)


sys.modules[__name__].__class__ = Train


if __name__ == "__main__":
    launch.run(main)
