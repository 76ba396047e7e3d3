"""The columns of a rank's metrics file, and its tables, to which rows are only ever appended.

A metrics file is created whole, with room for its rows, by `files.atomic`. Rows then go straight to their place in the file
(datasets are contiguous, so a row has a fixed offset) and the row counter follows. No HDF5 structure ever changes again, so a
reader of a live or killed run always sees a sound file with whole rows, and no lock is held. The room is a hole in the file:
it takes no space on disk until it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gala_mpi.clock import SECTIONS
from gala_mpi.run.files import atomic, naming, reading, write_at
from gala_mpi.run.layout import FORMAT

SIZE = 4096  # numbers of a sketch
OPTIONAL = {"sketches", "energy"}  # tables that files of older versions lack
SECONDS_BETWEEN_WRITES = 2.0  # a row waits for so long, and for the end of an update, at most
SECONDS_BETWEEN_READINGS = 10.0  # of a node's counters, for `energy`

# Of every table the columns, in order: name, type, unit and meaning. This is their one declaration: the writer, every reader
# and docs/metrics.md go by it.
COLUMNS: dict[str, list[tuple]] = {
    "updates": [
        ("update", "<i8", "", "the agent's update counter: its version"),
        ("steps", "<i8", "steps", "this agent's so far, over all restarts"),
        ("run_steps", "<i8", "steps", "of all agents, as far as this one had heard; the learning rate's decay goes by it"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("policy_loss", "<f4", "", "mean over the batch"),
        ("value_loss", "<f4", "", "mean over the batch, without its coefficient"),
        ("entropy", "<f4", "nats", "of the policy, mean over the batch"),
        (
            "kl",
            "<f4",
            "nats",
            "of the policy from the one that played, by the steps learnt from, mean over all minibatches: r − 1 − log r, with "
            "r the ratio of the action's probabilities (Schulman 2020, k3); NaN: learners without",
        ),
        (
            "clip_share",
            "<f4",
            "",
            "share of these steps at which r was clipped: farther from 1 than `--ppo.clip`, or more than 1% above "
            "`--vtrace.rho-bar`; NaN: learners without",
        ),
        ("rho", "<f4", "", "V-trace's ρ, the smaller of r and `--vtrace.rho-bar`, mean over the batch; NaN: learners without"),
        (
            "policy_lag",
            "<f4",
            "updates",
            "from the parameters that played the rollout to those with which it was learnt from; 1 with `--lag 1`, but for the "
            "first one and those after new episodes; with `--actors` as it comes",
        ),
        ("rollout_wait", "<f4", "s", "for which the agent waited for a rollout of its actors; NaN: it plays itself"),
        ("actor_wait", "<f4", "s", "for which the actor of this rollout had waited until it might play it; NaN: likewise"),
        (
            "rollouts_torn",
            "<f4",
            "rollouts",
            "read again since the start: they were rewritten while they were read, or (`--checksum`) wrong; NaN: likewise",
        ),
        ("grad_norm", "<f4", "", "length of the gradient, before clipping"),
        ("step_norm", "<f4", "", "length of the optimiser's step, learning rate included"),
        ("skipped", "<i4", "updates", "from which nothing was learnt, since the start: a number in them was not finite"),
        ("staleness", "<i4", "updates", "since the last mix"),
        (
            "age",
            "<f4",
            "updates",
            "lag of the messages mixed, mean: updates that they are behind; negative: ahead; NaN: no mix. A3C: steps of other "
            "agents that the shared vector received between this agent's last pull and its push",
        ),
        ("torn", "<i4", "messages", "thrown away since the start: their slot was rewritten while they were read"),
        (
            "corrupt",
            "<i4",
            "messages",
            "thrown away since the start: their checksum was wrong (`--checksum`), or a number in them was not finite",
        ),
        ("poke_gap", "<f4", "s", "longest time since the last update in which MPI could not move messages along"),
        ("rss", "<f4", "MiB", "resident memory"),
        ("cpu", "<f4", "s", "processor time of this process since the last update, all threads"),
        *((section, "<f4", "s", meaning) for section, meaning in SECTIONS.items()),
    ],
    "episodes": [
        ("update", "<i8", "", "in which the episode ended"),
        ("steps", "<i8", "steps", "this agent's at the end of that update"),
        ("run_steps", "<i8", "steps", "of all agents then, as far as this one had heard"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("simulator", "<i4", "", "the number of the environment among this agent's, from 0"),
        ("length", "<i4", "steps", "of the whole episode"),
        ("score", "<f4", "points", "sum of the episode's real rewards, never clipped"),
    ],
    "mixes": [
        ("update", "<i8", "", "of this agent, at which the message was mixed"),
        ("peer", "<i4", "", "rank of its sender"),
        ("version", "<i8", "", "the sender's update counter when it was published"),
        ("weight", "<f8", "", "of the message in the average; this agent's own is what is left of 1"),
    ],
    "sketches": [
        ("update", "<i8", "", "every `--sketch-updates`"),
        ("parameters", ("<f4", (SIZE,)), "", "count sketch of the parameters after the exchange"),
        ("gradient", ("<f4", (SIZE,)), "", "count sketch of this agent's own gradient, before any averaging and clipping"),
    ],
    "energy": [  # of a whole node, written by its first rank; NaN: not available
        ("update", "<i8", "", "at which the node's counters were read"),
        ("hours", "<f8", "h", "training time of the run so far, over all restarts"),
        ("seconds", "<f4", "s", "since the row before; the others are of this time"),
        ("cpu_joules", "<f4", "J", "packages and memory, by RAPL; NaN: the kernel shows none"),
        ("gpu_joules", "<f4", "J", "all GPUs of the node, by NVML; NaN: there are none"),
        ("node_joules", "<f4", "J", "the node's own counter (pm_counters, which Slurm reads too); NaN: it has none"),
        ("cores_busy", "<f4", "", "share of the node's cores, whoever used them"),
        ("gpus_busy", "<f4", "", "share of the time, mean over the node's GPUs; NaN: there are none"),
    ],
}


def _dtype(table: str) -> np.dtype:
    kinds = ((name, *(kind if isinstance(kind, tuple) else (kind,))) for name, kind, _, _ in COLUMNS[table])
    return np.dtype(list(kinds))


TABLES = {table: _dtype(table) for table in COLUMNS}


class Tables:
    """The append-only tables of one metrics file.

    Args:
        path: the file to create; it must not exist.
        layouts: name → (row dtype, rows that there is room for).
        attributes: metadata about the file.
    """

    def __init__(self, path: Path, layouts: Mapping[str, tuple[np.dtype, int]], attributes: Mapping[str, Any]):
        if path.exists():
            raise FileExistsError(f"{path} exists: metrics are never overwritten")
        with atomic(path) as file:
            file.attrs.update({"format": FORMAT, **attributes})
            for name, (dtype, room) in layouts.items():
                _contiguous(file, name, (room,), dtype)
                _contiguous(file, f"rows/{name}", (), np.dtype("<i8"))
        self._path = path
        with reading(path) as file:
            self._offsets = {name: (file[name].id.get_offset(), file[f"rows/{name}"].id.get_offset()) for name in layouts}
        self._layouts = dict(layouts)
        self._rows = dict.fromkeys(layouts, 0)
        self._file = os.open(path, os.O_WRONLY)

    def room(self, name: str) -> int:
        """Return how many more rows table `name` takes."""
        return self._layouts[name][1] - self._rows[name]

    def append(self, name: str, rows: np.ndarray) -> None:
        """Write rows (a structured array), then how many there are. A kill in between leaves rows unseen, never half seen."""
        if not len(rows):
            return
        dtype, _ = self._layouts[name]
        assert rows.dtype == dtype and len(rows) <= self.room(name)
        data, counter = self._offsets[name]
        with naming(self._path):
            write_at(self._file, rows.tobytes(), data + self._rows[name] * dtype.itemsize)
            self._rows[name] += len(rows)
            write_at(self._file, self._rows[name].to_bytes(8, "little"), counter)

    def sync(self) -> None:
        """Force all rows onto the disk (against a power cut; a kill alone loses nothing)."""
        with naming(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create a dataset whose place in the file is fixed at once, so that rows can be written to it past HDF5."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, plist, link)
