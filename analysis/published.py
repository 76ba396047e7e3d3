"""Published scores, with what was trained for them, how they were measured and where they were read: published.csv.

A normalised score is 0 where a random policy scores and 1 where the human tester of Mnih et al. 2015 does:
(score - random) / (human - random).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")
GAMES = ("beam_rider", "breakout", "pong", "qbert", "seaquest", "space_invaders")


@dataclass(frozen=True)
class Reference:
    """Scores of one publication: game → (score, spread as it was published or "").

    Attributes:
        steps: of training, over all environments; None: not stated where it was read.
        environments: side by side in training (the papers' simulators or processes); None: not stated.
        protocol: of the evaluation.
    """

    method: str
    steps: int | None
    environments: int | None
    protocol: str
    source: str
    scores: dict[str, tuple[float, str]]

    def words(self, game: str) -> str:
        """Return the score of a game and its spread; a dash where there is none."""
        if game not in self.scores:
            return "–"
        score, spread = self.scores[game]
        return f"{score:,.5g}" + (f" ± {spread}" if spread else "")


def load() -> list[Reference]:
    """Return all references; those of `random` and `human` come first."""
    with open(FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Reference(
            r["method"],
            *(int(r[name]) if r[name] else None for name in ("steps", "environments")),
            r["protocol"],
            r["source"],
            {game: _score(r[game]) for game in GAMES if r[game]},
        )
        for r in rows
    ]


def _score(cell: str) -> tuple[float, str]:
    score, _, spread = cell.partition("±")
    return float(score), spread


RANDOM, HUMAN, *PUBLISHED = load()


def normalised(game: str, score: float) -> float:
    """Normalise scores of a game of GAMES, elementwise; NaN for any other game."""
    if game not in RANDOM.scores:
        return score * float("nan")
    low, high = RANDOM.scores[game][0], HUMAN.scores[game][0]
    return (score - low) / (high - low)


def is_atari(game: str) -> bool:
    """Return whether a run's env is an Atari game: these go by their bare names (pong), or by ids like ALE/Pong-v5."""
    return game.startswith("ALE/") or (game.islower() and "-" not in game and "/" not in game)
