"""The run directory, with h5py and numpy alone: no torch, no MPI.

    from gala_mpi.run import find_runs, open_run

    for path in find_runs(["runs"]):
        run = open_run(path)
        print(run.path, run.config["exchange"], run.config["a2c"]["gae_lambda"], run.state)
        print(run.episodes(0)["score"].mean(), *run.problems)

`layout` says where everything lies, `files` writes files that a kill leaves whole, `tables` has the columns, `parts` says which
rows count, `checkpoints` which checkpoints are complete, `opened` is a run as a whole, `reader` finds and opens runs, `writer`
writes run.h5.
"""

from gala_mpi.run.opened import Run
from gala_mpi.run.reader import RunError, find_runs, open_run

__all__ = ["Run", "RunError", "find_runs", "open_run"]
