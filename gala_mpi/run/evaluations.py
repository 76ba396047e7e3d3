"""What a run's evaluations say in one line each, without their games: for who asks often, while the run trains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gala_mpi.run import files, layout


@dataclass(frozen=True)
class Evaluated:
    """One evaluation.

    Attributes:
        checkpoint: its number.
        score: mean of the policy of all agents together; of agents that share nothing, of all that they played.
        error: standard error of that; NaN of one game.
        games: how many games that is of.
        steps: of all agents at the checkpoint; -1: an older evaluation, which does not say.
        while_training: whether the run made it (--evaluate-minutes).
    """

    checkpoint: int
    score: float
    error: float
    games: int
    steps: int
    while_training: bool

    def __str__(self) -> str:
        error = f" ± {self.error:.1f}" if np.isfinite(self.error) else ""
        return f"checkpoint {self.checkpoint} scores {self.score:.1f}{error} in {self.games} game{'s' * (self.games > 1)}"


def read(run: Path, after: int = 0) -> list[Evaluated]:
    """Return a run's evaluations from number `after` on, oldest first. Those of older versions do not say their score, and are
    left out.

    Raises:
        Exception: run.h5 cannot be read; h5py raises many kinds.
    """
    with files.reading(layout.run_file(run)) as file:
        group = file.get("evaluations", {})
        said = [group[str(number)].attrs for number in range(after, len(group))]
        return [
            Evaluated(
                int(about["checkpoint"]),
                float(about["score"]),
                float(about["error"]),
                int(about["games"]),
                int(about["steps"]),
                bool(about["while_training"]),
            )
            for about in said
            if "score" in about
        ]


def number(run: Path) -> int:
    """Return how many evaluations a run has.

    Raises:
        Exception: as `read`.
    """
    with files.reading(layout.run_file(run)) as file:
        return len(file.get("evaluations", {}))


def scores(run: Path) -> dict[int, float]:
    """Return the newest score of each checkpoint that the run has evaluated while it trained; none of a run that does not do so
    any more, or cannot be read."""
    try:
        with files.reading(layout.run_file(run)) as file:
            if json.loads(file.attrs["config"]).get("evaluate_minutes") is None:
                return {}
        return {each.checkpoint: each.score for each in read(run) if each.while_training}
    except Exception:  # damaged (h5py raises many kinds), or not there
        return {}
