"""Benchmarks of real training.

    mpirun -n 2 python -m gala_mpi.bench train
    mpirun -n 4 python -m gala_mpi.bench exchange
    mpirun -n 4 python -m gala_mpi.bench frozen
    mpirun -n 4 python -m gala_mpi.bench straggler
    mpirun -n 8 python -m gala_mpi.bench agents --device cuda

Each benchmark is a module with two functions: `measure`, collective, returns figures on rank 0; `show` prints them as tables.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.set_environment(command=__name__ == "__main__")  # before numpy, torch and MPI are imported

import json
import math

from gala_mpi import cli, config_checks, config_file
from gala_mpi.bench import agents, exchange, frozen, straggler, train
from gala_mpi.bench.agents import AgentsBench
from gala_mpi.bench.exchange import ExchangeBench
from gala_mpi.bench.frozen import FrozenBench
from gala_mpi.bench.straggler import StragglerBench
from gala_mpi.bench.train import TrainBench
from gala_mpi.cli import require, require_whole
from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.job import prepare
from gala_mpi.mpi.world import World

Bench = TrainBench | ExchangeBench | FrozenBench | StragglerBench | AgentsBench
KINDS = {TrainBench: train, ExchangeBench: exchange, FrozenBench: frozen, StragglerBench: straggler, AgentsBench: agents}


def main(arguments: list[str]) -> None:
    """Run a benchmark and print its figures. Collective."""
    with World() as world:
        bench, settings = world.decide(lambda: read_arguments(arguments, world))
        kind = KINDS[type(bench)]
        figures = kind.measure(world, bench, settings)
        if not world.root:
            return
        figures |= {"mpi": world.library, "ranks": world.size, "hosts": len(set(world.hosts))}
        if bench.json:
            print(json.dumps(figures | {"settings": json.loads(settings.to_json())}))
        else:
            kind.show(figures, bench, settings)


def read_arguments(arguments: list[str], world: World) -> tuple[Bench, Config]:
    """Parse and check the command line, and resolve settings that depend on the machine.

    Raises:
        SettingError: bad input.
    """
    bench = parse(arguments)
    check(bench, world.size, len(set(world.hosts)))
    settings, *_ = prepare.settle(bench.settings, world)
    return bench, settings


def parse(arguments: list[str]) -> Bench:
    """Return the options of the benchmark that the command line names."""
    return cli.parse(
        {
            "train": TrainBench,
            "exchange": ExchangeBench,
            "frozen": FrozenBench,
            "straggler": StragglerBench,
            "agents": AgentsBench,
        },
        "bench",
        "Benchmarks. Machines are noisy: ratios within one call mean more than figures across calls.\n\n"
        "  mpirun -n 2 python -m gala_mpi.bench train\n"
        "  mpirun -n 4 python -m gala_mpi.bench train --topology exponential --network nature --json\n"
        "  mpirun -n 4 python -m gala_mpi.bench exchange\n"
        "  mpirun -n 4 python -m gala_mpi.bench frozen --seconds 5\n"
        "  mpirun -n 4 python -m gala_mpi.bench straggler --slow-rank 3:200ms\n"
        "  mpirun -n 8 python -m gala_mpi.bench agents --device cuda",
        config_file.expand(arguments),
    )


def check(bench: Bench, ranks: int, hosts: int) -> None:
    """Check that the benchmark can run on this number of ranks and hosts.

    Raises:
        SettingError: it cannot.
    """
    config_checks.check(bench.settings)
    config_checks.check_no_run(bench.settings, "a benchmark")
    actors = bench.settings.actors
    require(not actors, "bench --actors", actors, "0, since benchmarks are of agents that play themselves,")
    for name in ("rounds", "updates"):
        require_whole(f"--{name}", getattr(bench, name, 1), 1)
    seconds = getattr(bench, "seconds", 1.0)
    require(0 < seconds < math.inf, "--seconds", seconds, "a positive number")
    works_alone = isinstance(bench, TrainBench | AgentsBench)
    require(works_alone or ranks > 1, "mpirun -n", ranks, "2 ranks or more")
    if isinstance(bench, AgentsBench):
        require(hosts == 1, "bench agents: hosts", hosts, "1, all of whose cores each turn has,")
    if isinstance(bench, FrozenBench):
        require(0 <= (bench.frozen or 0) < ranks, "--frozen", bench.frozen, f"a rank from 0 to {ranks - 1}")
        # Each rank ends by its own clock, which is impossible for ranks that wait for each other.
        exchange = bench.settings.exchange
        free = [name for name, member in EXCHANGES.items() if not member.load().collective]
        require(exchange in free, "bench frozen --exchange", exchange, f"{', '.join(free[:-1])} or {free[-1]}")


if __name__ == "__main__":
    launch.run(main)
