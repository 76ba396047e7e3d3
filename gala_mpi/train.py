"""Train one policy with many actor-learners: every MPI rank is an agent that owns its simulators, network and optimiser.

    mpirun -n 32 python -m gala_mpi.train
    mpirun -n 2 python -m gala_mpi.train --env breakout --exchange allreduce --total-steps 10000000
    mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/pong-gossip-...

`agent.update` is the algorithm; this file goes through the run: record, show, save, stop.
"""

from __future__ import annotations

from gala_mpi import stop

stop.listen()  # before torch and MPI are imported: until then a signal would kill this rank

import sys  # noqa: E402

from gala_mpi import agent, checkpoint, display, plan  # noqa: E402
from gala_mpi.checkpoint import Checkpoints  # noqa: E402
from gala_mpi.energy import Meter  # noqa: E402
from gala_mpi.exchange import Order  # noqa: E402
from gala_mpi.metrics import Metrics  # noqa: E402
from gala_mpi.plan import Plan  # noqa: E402
from gala_mpi.progress import Progress  # noqa: E402
from gala_mpi.stop import Stop  # noqa: E402
from gala_mpi.world import World  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    with World() as world:
        train(world, world.decide(lambda: plan.make(arguments, world)))


def train(world: World, plan: Plan) -> None:
    """Train until the plan's updates are done, or somebody asks to stop. Collective."""
    config, run = plan.config, plan.config.run_dir
    if world.root:
        display.welcome(config, world.size, world.library, world.threads, plan.generation)
    me = agent.build(config, world.comm, world.node.rank, world.threads, plan.generation)
    learner, exchange = me.learner, me.exchange
    hours = 0.0
    if plan.generation:
        hours = checkpoint.restore(run, plan.generation, world.rank, learner)
    to_come = me.updates - learner.updates
    meter = Meter() if world.node.rank == 0 else None
    metrics = Metrics(run, world.rank, learner.updates, to_come, plan.mixes_per_update, config.sketch_updates, hours, meter)
    checkpoints = Checkpoints(run, world.rank, config.checkpoint_minutes, config.keep_checkpoints, plan.generation)
    stop_asked = Stop(config.wall_minutes)

    def save(generation: int | None = None) -> None:
        metrics.sync()
        checkpoints.save(checkpoint.take(learner, config.network, world.size, metrics.hours, progress.score), generation)

    me.start()
    with Progress(world, config, learner.steps) as progress:
        order = Order()
        while learner.updates < me.updates and not order.stop:
            losses, grad_norm, episodes, sketches = me.update()
            with me.clock("record"):
                counters = exchange.counters()
                metrics.record(learner, losses, grad_norm, episodes, counters, sketches, me.clock.lap())
                progress.update(learner, episodes, counters)
                order = exchange.agree(Order(stop=stop_asked.requested(), save=checkpoints.due()))
                if order.save:
                    save()
        me.close()  # from here on all ranks are out of the loop
        save(world.largest(checkpoints.generation) + 1)
        metrics.close()
    finished = world.all(learner.updates >= me.updates)
    if world.root:
        display.farewell(config, world.size, finished, stop_asked.reason)


if __name__ == "__main__":
    main(sys.argv[1:])
