"""Print docs/metrics.md, from the one declaration of the columns:  python -m gala_mpi.run.columns_doc > docs/metrics.md"""

from __future__ import annotations

from gala_mpi.run.tables import COLUMNS, SECONDS_BETWEEN_READINGS

METADATA = {
    "time": "of the start",
    "command": "as it was typed",
    "config": "settings of this start, JSON",
    "gala_mpi": "version",
    "commit": "that was checked out; empty outside a checkout",
    "python": "version",
    "packages": "names and versions of what the training rests on",
    "mpi": "library and version",
    "hosts": "of every rank",
    "threads": "of every rank",
    "cores": "of rank 0's host",
    "slurm_job": "id; empty outside Slurm",
    "resumed_from": "the checkpoint's number; 0: from scratch",
    "degree": "most in-peers of an agent (gossip)",
    "period": "rounds of the graph until it repeats (gossip)",
    "beta": "second singular value of the product of a period's mixing matrices (gossip)",
}
TABLES = {
    "updates": "One row an update. The times from `act` to `record` are of the main thread, one after the other; their sum is "
    "at most the update's. With `--lag 1`, `act` and `simulate` are of the rollout that is played for the next update, and the "
    "time of the thread that learns is in `cpu` alone. Episodes are those of the rollout that was learnt from.",
    "episodes": "One row a finished episode.",
    "mixes": "One row a message averaged into the parameters (gossip).",
    "sketches": "Random projections (count sketches) of two vectors, the same projection for all ranks, updates and runs: "
    "distances, means and angles of vectors are those of their sketches, with a relative standard error of 1.1% for distances.",
    "energy": f"One row every {SECONDS_BETWEEN_READINGS:.0f} s, from the first rank of every node, about the whole node. "
    "What a node does not count is NaN; nothing is estimated.",
}

PAGE = """# What a run writes down

Made by `python -m gala_mpi.run.columns_doc` from the code that writes the files; a test compares.

    runs/<name>/run.h5                            attributes config (JSON), agents, format
                starts/0, 1, ...                  attributes: metadata about each start
                evaluations/0, 1, ...             episodes of `gala_mpi.evaluate`
                metrics/rank00007                 link to the rank's first metrics file
    runs/<name>/metrics/rank00007.h5              tables of one rank
                        rank00007-1.h5, ...       go on after a resume, or when one is full
    runs/<name>/checkpoints/000012/rank00007.h5   what a resume needs

A metrics file has room for its rows from the start; `rows/<table>` says how many are written, and is raised after them. So a
reader of a run that still trains, or was killed, sees whole rows. The attribute `after_update` of a file says that its rows
are of later updates, and replace such rows of the rank's earlier files. `gala_mpi.open_run` does all that, of a run in any
state, and needs neither MPI nor torch.

One step is one action in one environment; of an Atari game it is four frames. Columns without a unit are plain numbers.

## Reading

With h5py:

```python
import h5py

with h5py.File("runs/pong/metrics/rank00000.h5", "r", locking=False) as file:
    updates = file["updates"][: file["rows/updates"][()]]
print(updates["hours"][-1], updates["entropy"].mean())
```

With pandas:

```python
import gala_mpi, pandas

run = gala_mpi.open_run("runs/pong")
ranks = {{rank: pandas.DataFrame(run.episodes(rank)) for rank in range(run.agents)}}
print(pandas.concat(ranks, names=["rank", "row"]).groupby("rank").score.describe())
```

With xarray:

```python
import gala_mpi, xarray

updates = gala_mpi.open_run("runs/pong").updates(0)
columns = {{name: ("update", updates[name]) for name in updates.dtype.names[1:]}}
data = xarray.Dataset(columns, {{"update": updates["update"]}})
```

On the shell: `h5dump -d /updates -c 3 runs/pong/metrics/rank00000.h5`

## metrics/rank*.h5

Attributes: `format`, `rank`, `after_update`, `agents` (how many the run has in this start), `resumed_from` (0: from scratch),
`new_episodes` (false where this start resumed the run with `--exact-resume`, which begins new episodes at every checkpoint
anyway; true after any other start, from scratch too).

{tables}
## run.h5

Attributes of `starts/<n>`:

| name | meaning |
|---|---|
{metadata}

Columns of `evaluations/<n>`: `policy` (rank, or -1 for the averaged one), `game` (number of the episode, from 0), `score`
(points), `length` (steps).
Attributes: `checkpoint`, `arg_max` (most probable actions, not sampled ones), `seed`, `time`; `max_steps`, and how many
episodes were `cut` off by it; `steps` (of all agents) and `hours` of the checkpoint; `score`, the mean of the policy of all
agents together (of agents that share nothing, of all of them), `error`, its standard error, and `games`, of how many that is;
`while_training`, whether the run made it itself (`--evaluate-minutes`). Older files lack those from `steps` on.
"""


def page() -> str:
    """Return the whole page."""
    tables = ""
    for table, columns in COLUMNS.items():
        tables += f"### {table}\n\n{TABLES[table]}\n\n| column | type | unit | meaning |\n|---|---|---|---|\n"
        for name, kind, unit, meaning in columns:
            shown = f"{kind[0]} × {kind[1][0]:,}" if isinstance(kind, tuple) else kind
            tables += f"| {name} | `{shown}` | {unit or '–'} | {meaning} |\n"
        tables += "\n"
    metadata = "\n".join(f"| {name} | {meaning} |" for name, meaning in METADATA.items())
    return PAGE.format(tables=tables, metadata=metadata)


if __name__ == "__main__":
    print(page(), end="")
