"""Benchmarks of the real thing.

    mpirun -n 2 python -m gala_mpi.bench train
    mpirun -n 4 python -m gala_mpi.bench exchange
    mpirun -n 4 python -m gala_mpi.bench frozen
    mpirun -n 4 python -m gala_mpi.bench straggler

Each kind is a module with two functions: `measure`, collective, returns figures on rank 0; `show` prints them as tables.
"""

from __future__ import annotations

import json
import sys

from gala_mpi import config, plan
from gala_mpi.bench import exchange, frozen, straggler, train
from gala_mpi.config import Config, ExchangeBench, FrozenBench, StragglerBench, TrainBench
from gala_mpi.world import World

KINDS = {TrainBench: train, ExchangeBench: exchange, FrozenBench: frozen, StragglerBench: straggler}


def main(arguments: list[str]) -> None:
    with World() as world:
        bench, settings = world.decide(lambda: prepare(arguments, world))
        kind = KINDS[type(bench)]
        figures = kind.measure(world, bench, settings)
        if not world.root:
            return
        figures |= {"mpi": world.library, "ranks": world.size, "hosts": len(set(world.hosts))}
        if bench.json:
            print(json.dumps(figures | {"settings": json.loads(settings.to_json())}))
        else:
            kind.show(figures, bench, settings)


def prepare(arguments: list[str], world: World) -> tuple[config.Bench, Config]:
    """Parse, check, resolve. Raises SettingError."""
    bench = config.parse_bench(arguments)
    config.check_bench(bench, world.size)
    settings, _ = plan.settle(bench.settings, world)
    return bench, settings


if __name__ == "__main__":
    main(sys.argv[1:])
