"""The evaluations of a run, one of each checkpoint, and the policies in them that count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
from gala_mpi.run import Run, checkpoints

MEAN = -1  # the averaged policy's number


@dataclass(frozen=True)
class Evaluation:
    """Policies of one checkpoint.

    Attributes:
        policies: number → the scores of its episodes: the averaged policy's, or of independent agents those of each.
        arg_max: whether the most probable actions were taken; else they were drawn.
        cut: how many episodes, of all that were played, did not end within max_steps steps: they count with what they had.
    """

    run: Run
    checkpoint: int
    policies: dict[int, np.ndarray]
    arg_max: bool
    cut: int
    played: int
    max_steps: int

    @property
    def means(self) -> np.ndarray:
        return np.array([scores.mean() for scores in self.policies.values()])

    @property
    def episodes(self) -> np.ndarray:
        return np.concatenate(list(self.policies.values()))


def evaluations(run: Run) -> tuple[list[Evaluation], list[str]]:
    """Return the newest evaluation of each checkpoint, in their order, and what to say of those that are left out."""
    independent = run.config["exchange"] == "none" and run.agents > 1
    found: dict[int, Evaluation] = {}
    others: set[int] = set()
    notes = []
    for episodes, metadata in run.evaluations:
        number = int(metadata.get("checkpoint", 0))
        finite = episodes[np.isfinite(episodes["score"])]
        if broken := len(episodes) - len(finite):
            notes.append(f"{run.path}: {broken} episodes of checkpoint {number} have a score that is not finite; left out")
        played = {int(n): finite["score"][finite["policy"] == n].astype(float) for n in np.unique(finite["policy"])}
        policies = {n: scores for n, scores in played.items() if (n >= 0 if independent else n == MEAN)}
        if policies:
            cut = (int(metadata.get("cut", 0)), len(episodes), int(metadata.get("max_steps", 0)))
            found[number] = Evaluation(run, number, policies, bool(metadata.get("arg_max", True)), *cut)
        else:
            others.add(number)
    if unplayed := sorted(others - found.keys()):
        reason = "its agents are independent, of which only the average" if independent else "not the averaged policy"
        where = f"at checkpoint {', '.join(map(str, unplayed))}"
        notes.append(f"{run.path}: {reason} was played {where}; left out (python -m gala_mpi.evaluate plays every policy)")
    return [found[number] for number in sorted(found)], notes


def shortened(run: list[Evaluation]) -> list[str]:
    """Return a line for each of a run's evaluations with episodes that were cut off."""
    return [
        f"{e.run.path}: {e.cut} of {e.played} episodes of checkpoint {e.checkpoint} were cut off after {e.max_steps:,} steps"
        for e in run
        if e.cut
    ]


def unevaluated(final: Evaluation) -> list[str]:
    """Say so where a run has a newer checkpoint than the one evaluated."""
    newest = max(checkpoints.complete(final.run.path), default=final.checkpoint)
    if newest <= final.checkpoint:
        return []
    return [f"{final.run.path}: its newest checkpoint, {newest}, is not evaluated; scores are of checkpoint {final.checkpoint}"]
