"""Writing run.h5: settings, metadata about every start, and evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gala_mpi.config import Config
from gala_mpi.run.files import revised
from gala_mpi.run.layout import FORMAT, RANK_FILE, run_file


def write_run(run: Path, config: Config, agents: int, metadata: Mapping[str, Any]) -> None:
    """Begin a start of a run, a new one or a resumed one: write its settings, its metadata and links to all ranks' metrics.

    `starts/0`, `starts/1`, ... keep the metadata of each start; the attributes `config` and `agents` are the newest ones.
    """
    run.mkdir(parents=True, exist_ok=True)
    with revised(run_file(run)) as file:
        file.attrs.update({"format": FORMAT, "config": config.to_json(), "agents": agents})
        starts = file.require_group("starts")
        starts.create_group(str(len(starts))).attrs.update({"config": config.to_json(), **metadata})
        for rank in range(agents):
            name = RANK_FILE.format(rank)
            if file.get(f"metrics/{name}", getlink=True) is None:
                file[f"metrics/{name}"] = h5py.ExternalLink(f"metrics/{name}.h5", "/")
    for folder in ("metrics", "checkpoints"):  # last: what has no run.h5 is no run yet, and can be begun anew
        (run / folder).mkdir(exist_ok=True)


def write_evaluation(run: Path, episodes: np.ndarray, metadata: Mapping[str, Any]) -> None:
    """Add an evaluation's episodes (a structured array) and metadata about it to a run, under evaluations/0, 1, ..."""
    with revised(run_file(run)) as file:
        evaluations = file.require_group("evaluations")
        evaluations.create_dataset(str(len(evaluations)), data=episodes).attrs.update(metadata)
