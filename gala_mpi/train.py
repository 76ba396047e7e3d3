"""Train one policy with many actor-learners: every MPI rank is an agent that owns its simulators, network and optimiser.

    mpirun -n 32 python -m gala_mpi.train
    mpirun -n 2 python -m gala_mpi.train --env breakout --exchange allreduce --total-steps 10000000
    mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/pong-gossip-...

`agent.update` is the algorithm; this file goes through the run: record, show, save, stop.
"""

from __future__ import annotations

from gala_mpi import machine, stop

stop.listen()  # before torch and MPI are imported: until then a signal would kill this rank
machine.refuse_tiny_shared_memory(status=2)

import sys  # noqa: E402

from gala_mpi import agent, checkpoint, display, plan, replay  # noqa: E402
from gala_mpi.checkpoint import Checkpoints  # noqa: E402
from gala_mpi.config import Config  # noqa: E402
from gala_mpi.energy import Meter  # noqa: E402
from gala_mpi.exchange import Order  # noqa: E402
from gala_mpi.metrics import Metrics  # noqa: E402
from gala_mpi.plan import Plan  # noqa: E402
from gala_mpi.progress import Progress  # noqa: E402
from gala_mpi.roll import Roll  # noqa: E402
from gala_mpi.stop import Stop  # noqa: E402
from gala_mpi.world import World  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    with World() as world:
        sys.exit(train(world, world.decide(lambda: plan.make(arguments, world))))


def train(world: World, plan: Plan) -> int:
    """Train until the plan's updates are done, or somebody asks to stop. The exit status (see `stop`). Collective."""
    config, run, origin = plan.config, plan.config.run_dir, plan.origin
    if world.root:
        display.welcome(config, world.size, world.library, world.threads, origin, plan.advice)
    me = agent.build(config, world.comm, world.node.rank, world.threads)
    learner, exchange = me.learner, me.exchange
    hours = 0.0
    if origin.generation:
        hours = checkpoint.restore(run, origin, world.rank, learner)
        me.begin()
    last = config.updates(world.size, world.sum(learner.updates), world.sum(learner.steps))
    metrics = Metrics(
        *(run, world.rank, learner.updates, last - learner.updates, plan.mixes_per_update, config.sketch_updates, hours),
        meter=Meter() if world.node.rank == 0 else None,
        resumed_from=origin.generation,
        new_episodes=not (origin.generation and config.exact_resume),
    )
    checkpoints = Checkpoints(run, world.rank, config, origin.last)
    stop_asked = Stop(config.wall_minutes, notice=world.size + (config.checkpoint_updates or 0))
    roll = Roll(run, world) if config.survive is not None and world.size > 1 else None

    def save(generation: int | None = None) -> None:
        metrics.sync()
        checkpoints.save(checkpoint.take(learner, config.network, world.size, metrics.hours, progress.score), generation)

    me.start()
    with Progress(world, config, learner.steps) as progress:
        order = Order()
        while learner.updates < last and not order.stop:
            losses, grad_norm, episodes, sketches = me.update()
            with me.clock("record"):
                counters = exchange.counters()
                metrics.record(learner, losses, grad_norm, episodes, counters, sketches, me.clock.lap())
                progress.update(learner, episodes, counters)
                wish = Order(stop=stop_asked.requested(checkpoints.slowest), save=checkpoints.due())
                order = checkpoints.heed(exchange.agree(wish), learner.updates)
                if order.save:
                    save()
                    if config.exact_resume:
                        me.begin()  # as who resumes here
                if roll:
                    roll.miss(counters.lost)
        if roll:
            roll.answer(learner.updates, checkpoints.generation)
            me.exchange.serve(until=roll.complete)
            if roll.lost:
                save(max(end.generation for end in roll.ends) + 1)
                metrics.close()
                progress.hide()
                if roll.spokesman:
                    display.bereaved(config, world.size, roll.lost)
                roll.wait_for_checkpoints(checkpoints.generation)
                world.leave(max(stop.RESUME, stop_asked.verdict[0]))
        me.close()  # from here on all ranks are out of the loop
        if not (order.stop and config.exact_resume):  # which has just saved
            save(world.largest(checkpoints.generation) + 1)
        metrics.close()
    if config.replay:
        return _compared(world, config)
    finished = world.all(learner.updates >= last)
    status, reason = (stop.FINISHED, "") if finished else world.largest(stop_asked.verdict)
    if world.root:
        display.farewell(config, world.size, reason)
    return status


def _compared(world: World, config: Config) -> int:
    """The exit status of a replay: whether every rank's losses and norms are those that were recorded. Collective."""
    repeated = world.all(replay.repeats(config.replay, config.run_dir, world.rank))
    if world.root and repeated:
        display.say(f"replayed: {config.run_dir}\nevery loss and norm is that of {config.replay}, bit for bit")
    return stop.FINISHED if repeated else stop.FAILED


if __name__ == "__main__":
    main(sys.argv[1:])
