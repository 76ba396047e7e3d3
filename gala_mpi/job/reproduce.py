"""Whether a recorded run can be replayed, and whether it was: asked before the first step and after the last."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import layout, reader

# What does not touch the parameters: how they are kept, and how messages came to be mixed when they were.
FREE = {"replay", "resume", "run_dir", "checkpoint_minutes", "keep_checkpoints", "wall_minutes", "sketch_updates", "log"}
FREE |= {"evaluate_minutes", "evaluate_episodes"}
FREE |= {"staleness", "max_lag", "checksum", "slow_rank", "survive", "max_skipped", "hang_minutes"}
COLUMNS = ("policy_loss", "value_loss", "entropy", "grad_norm", "step_norm")


def check(settings: Config, threads: list[int]) -> None:
    """Refuse to replay what cannot come out the same.

    Args:
        settings: with nothing left to choose.
        threads: of every rank.

    Raises:
        SettingError: names what differs.
    """
    run = settings.replay
    assert run is not None  # else there is nothing to check
    before, starts, agents = reader.read_config(run, "--replay"), reader.read_starts(run), reader.read_agents(run)
    if "replay" not in EXCHANGES[before.exchange].load().takes:
        takers = " or ".join(name for name, member in EXCHANGES.items() if "replay" in member.load().takes)
        raise SettingError(f"--replay {run}: the run has --exchange {before.exchange}; {takers} is expected")
    if len(starts) > 1:
        raise SettingError(f"--replay {run}: the run was started {len(starts)} times; one that was never resumed is expected")
    if agents != len(threads):
        raise SettingError(f"--replay {run}: {len(threads)} ranks; the run's {agents} are expected (mpirun -n {agents})")
    for name in (field.name for field in dataclasses.fields(Config) if field.name not in FREE):
        here, there = getattr(settings, name), getattr(before, name)
        if here != there:
            raise SettingError(f"--replay {run}: {name} {here}; the run's {there} is expected")
    for rank in range(agents):
        if not layout.metrics_files(run, rank):
            raise SettingError(f"--replay {run}: rank {rank} has recorded nothing; metrics of all {agents} agents are expected")
    if list(starts[0]["threads"]) != threads:
        raise SettingError(f"--replay {run}: threads {threads}; the run's {list(map(int, starts[0]['threads']))} are expected")


def bits(numbers: np.ndarray) -> np.ndarray:
    """float32 as they lie in memory: NaN equals NaN."""
    return np.ascontiguousarray(numbers).view(np.uint32)


def repeats(recorded: Path, run: Path, rank: int) -> bool:
    """Whether all losses and norms of one rank are the same, bit for bit; prints where they begin to differ."""
    old, new = (reader.read_rows(path, rank, "updates") for path in (recorded, run))
    old = old[: len(new)]
    same = np.logical_and.reduce([bits(old[column]) == bits(new[column]) for column in COLUMNS])
    if not same.all():
        first = new["update"][~same][0]
        print(f"gala_mpi: rank {rank} differs from {recorded} from update {first} on", file=sys.stderr, flush=True)
    return bool(same.all())
