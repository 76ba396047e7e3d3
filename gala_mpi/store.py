"""The only file that knows HDF5: atomic files, tables that survive a kill, the layout of a run directory.

A run directory:

    run.h5                            settings, versions, hosts, graph; links to the ranks' metrics; evaluations
    metrics/rank00007.h5              tables of one rank; rank00007-1.h5 ... follow after a restart or when one is full
    checkpoints/000012/rank00007.h5   all state of one rank; a generation is complete when every rank's file is there
    ends/rank00007.json               with --survive: how the rank's part ended, once it has

Three ways of writing, and no other:

* `atomic`: a file is built in memory, written under a temporary name, synced and renamed. A kill leaves the old file or the
  new one.
* `first`: a small file that one of many creates, whole, and nobody changes.
* `Tables`: a metrics file is created whole, with room for its rows, by `atomic`. Rows then go straight to their place in
  the file (datasets are contiguous, so a row has a fixed offset) and the row counter follows. No HDF5 structure ever
  changes again, so a reader of a live or killed run always sees a sound file with whole rows, and no lock is held.
  The room is a hole in the file: it takes no space on disk until it is used.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gala_mpi.config import Config
from gala_mpi.errors import DiskError, SettingError

FORMAT = 1
RANK_FILE = "rank{:05d}"
BLOCK = 4096


@contextmanager
def atomic(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that appears at `path`, whole and on disk, when the block ends; if it raises, nothing appears.

    It is built in memory, for HDF5 itself crashes where a disk is full.

    Raises:
        DiskError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    # The format of HDF5 1.10 has checksums of its own structure, so that damage is an error and not a crash.
    with h5py.File(temporary, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    try:
        with naming(path):
            _write_image(temporary, image)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the block becomes a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, read only. No lock is taken: files are never changed under a reader's feet, and NFS may refuse locks."""
    with h5py.File(path, "r", locking=False) as file:
        yield file


def try_lock(folder: Path) -> str:
    """Create and lock an HDF5 file in `folder`, as h5py does if it is not told otherwise. What it says; empty: it works."""
    path = folder / f".lock.{socket.gethostname()}.{os.getpid()}.h5"
    try:
        h5py.File(path, "w", locking=True).close()
        return ""
    except OSError as error:
        return str(error)
    finally:
        with suppress(OSError):
            path.unlink()


def _write_image(path: Path, image: bytes) -> None:
    """Blocks of zeros become holes, which take no space on disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.truncate(file, len(image))
        for start in range(0, len(image), BLOCK):
            block = image[start : start + BLOCK]
            if block.count(0) < len(block):
                _write(file, block, start)
        os.fsync(file)
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """See a folder's entries onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first(path: Path, text: str) -> bool:
    """Create `path` with `text`, whole; False if it is there already, which then stays as it is. One of many wins."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(exist_ok=True)
            temporary.write_text(text)
            sync(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True
    finally:
        temporary.unlink(missing_ok=True)


class Tables:
    """Append-only tables of one metrics file.

    Args:
        path: the file to create; it must not exist.
        layouts: name → (row dtype, rows that there is room for).
        attributes: facts about the file.
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
        """How many more rows `name` takes."""
        return self._layouts[name][1] - self._rows[name]

    def append(self, name: str, rows: np.ndarray) -> None:
        """Write rows, then their new number. A kill between the two leaves the rows unseen, never half seen."""
        if not len(rows):
            return
        dtype, _ = self._layouts[name]
        assert rows.dtype == dtype and len(rows) <= self.room(name)
        data, counter = self._offsets[name]
        with naming(self._path):
            _write(self._file, rows.tobytes(), data + self._rows[name] * dtype.itemsize)
            self._rows[name] += len(rows)
            _write(self._file, self._rows[name].to_bytes(8, "little"), counter)

    def sync(self) -> None:
        """Ask the system to put all rows on disk (against a power cut; a kill alone loses nothing)."""
        with naming(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """A dataset whose place in the file is fixed at once, so that rows can be written to it past HDF5."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, plist, link)


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


# The layout of a run directory.


def run_file(run: Path) -> Path:
    return run / "run.h5"


def checkpoint_file(run: Path, generation: int, rank: int) -> Path:
    return run / "checkpoints" / f"{generation:06d}" / f"{RANK_FILE.format(rank)}.h5"


def checkpoint_files(run: Path, generation: int) -> list[Path]:
    """The files of one generation that are there, in the order of the ranks."""
    return sorted(checkpoint_file(run, generation, 0).parent.glob("rank*.h5"))


def remove_leftovers(run: Path) -> None:
    """Delete the temporary files of ranks that were killed. Only where no other start of the run lives."""
    for folder in (run / "metrics", run / "checkpoints"):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)


def end_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.json"


def left_file(run: Path, rank: int) -> Path:
    return run / "ends" / f"{RANK_FILE.format(rank)}.left"


def lost(run: Path) -> set[int]:
    """The ranks that have died since the run was last started (`roll.Roll`)."""
    ends = [json.loads(file.read_text()) for file in (run / "ends").glob("rank*.json")]
    return {end["rank"] for end in ends if end["lost"]}


def forget_ends(run: Path) -> None:
    """The run starts anew."""
    shutil.rmtree(run / "ends", ignore_errors=True)


def metrics_files(run: Path, rank: int) -> list[Path]:
    """The metrics files of one rank, in the order of their writing."""
    name = RANK_FILE.format(rank)
    parts = {0: run / "metrics" / f"{name}.h5"}
    parts |= {int(path.stem.split("-")[1]): path for path in (run / "metrics").glob(f"{name}-*.h5")}
    return [parts[part] for part in sorted(parts) if parts[part].exists()]


def next_metrics_file(run: Path, rank: int) -> Path:
    files = metrics_files(run, rank)
    if not files:
        return run / "metrics" / f"{RANK_FILE.format(rank)}.h5"
    part = int(files[-1].stem.partition("-")[2] or 0) + 1
    return run / "metrics" / f"{RANK_FILE.format(rank)}-{part}.h5"


def read_rows(run: Path, rank: int, name: str) -> np.ndarray:
    """All rows of a rank's table that count: those of a later file replace what came after its beginning."""
    rows: list[np.ndarray] = []
    for path in metrics_files(run, rank):
        with reading(path) as file:
            rows = [part[part["update"] <= file.attrs["after_update"]] for part in rows]
            rows.append(file[name][: file[f"rows/{name}"][()]])
    return np.concatenate(rows)


def read_config(run: Path, flag: str = "--run-dir") -> Config:
    """The settings that a run was started (or last resumed) with. `flag` is the one that named the run.

    Raises:
        SettingError: `run` holds no run, or its run.h5 cannot be read.
    """
    if not run_file(run).is_file():
        raise SettingError(f"{flag} {run}: a run is expected there, but it has no run.h5")
    try:
        with reading(run_file(run)) as file:
            return Config.from_json(file.attrs["config"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{flag} {run}: {run_file(run)} cannot be read ({error})") from None


def read_agents(run: Path) -> int:
    """How many agents the run has."""
    with reading(run_file(run)) as file:
        return int(file.attrs["agents"])


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The facts about every start of the run, oldest first."""
    with reading(run_file(run)) as file:
        return [dict(file["starts"][name].attrs) for name in sorted(file["starts"], key=int)]


def saved_updates(run: Path, generation: int) -> dict[int, int]:
    """The update at which each rank saved a generation; empty if not all of them have, but for the dead."""
    updates, agents = {}, 0
    for path in checkpoint_files(run, generation):
        with reading(path) as file:
            updates[int(path.stem.removeprefix("rank"))] = int(file["learner"].attrs["updates"])
            agents = int(file.attrs["agents"])
    return updates if {*range(agents)} <= {*updates} | lost(run) else {}


def starting_hours(run: Path, rank: int) -> list[float]:
    """The run's training time at the first row of each metrics file of a rank; NaN in one without rows."""
    hours = []
    for path in metrics_files(run, rank):
        with reading(path) as file:
            hours.append(float(file["updates"][0]["hours"]) if file["rows/updates"][()] else np.nan)
    return hours


def newest_rows(run: Path, rank: int, table: str, count: int) -> np.ndarray:
    """The last `count` rows of a rank's table that no resume has superseded; fewer if there are no more."""
    parts, last = [], np.inf
    for path in reversed(metrics_files(run, rank)):
        with reading(path) as file:
            written = int(file[f"rows/{table}"][()])
            rows = file[table][max(0, written - count) if last == np.inf else 0 : written]
            parts.insert(0, rows[rows["update"] <= last])
            last = min(last, file.attrs["after_update"])
        if sum(map(len, parts)) >= count:
            break
    return np.concatenate(parts)[-count:]


@contextmanager
def revised(path: Path) -> Iterator[h5py.File]:
    """`path` with changes: a copy of its contents to change, which replaces it atomically when the block ends."""
    with atomic(path) as file:
        if path.exists():
            with reading(path) as old:
                file.attrs.update(old.attrs)
                for name in old:
                    old.copy(name, file)  # external links stay links
        yield file


def write_run(run: Path, config: Config, agents: int, facts: Mapping[str, Any]) -> None:
    """Start or resume `run`: its settings, facts about this start, and links to every rank's metrics.

    `starts/0`, `starts/1`, ... keep the facts of each start; the attributes `config` and `agents` are the newest ones.
    """
    run.mkdir(parents=True, exist_ok=True)
    with revised(run_file(run)) as file:
        file.attrs.update({"format": FORMAT, "config": config.to_json(), "agents": agents})
        starts = file.require_group("starts")
        starts.create_group(str(len(starts))).attrs.update({"config": config.to_json(), **facts})
        for rank in range(agents):
            name = RANK_FILE.format(rank)
            if file.get(f"metrics/{name}", getlink=True) is None:
                file[f"metrics/{name}"] = h5py.ExternalLink(f"metrics/{name}.h5", "/")
    for folder in ("metrics", "checkpoints"):  # last: what has no run.h5 is no run yet, and can be begun anew
        (run / folder).mkdir(exist_ok=True)


def write_evaluation(run: Path, games: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Add an evaluation's games (a structured array) and facts about it to `run`, under evaluations/0, 1, ..."""
    with revised(run_file(run)) as file:
        evaluations = file.require_group("evaluations")
        evaluations.create_dataset(str(len(evaluations)), data=games).attrs.update(facts)
