"""Measure where the time of an update goes: named sections, in seconds."""

from __future__ import annotations

import time

SECTIONS = {
    "act": "forward passes that choose actions",
    "simulate": "environments",
    "learn": "backward pass; with `--lag 1` what of it is left once the next rollout has been played",
    "optimise": "optimiser's step",
    "exchange": "messages and averages; where ranks move in step, also waiting for the others",
    "record": "metrics, sketches and checkpoints",
}


class Clock:
    """Stopwatch of the sections of an update: `with clock("act"): ...` adds to one.

    Attributes:
        seconds: of each section since the last lap.
    """

    def __init__(self):
        self.seconds = dict.fromkeys(SECTIONS, 0.0)

    def __call__(self, section: str) -> _Section:
        """Return a context manager that adds the time spent in it to `section`."""
        return _Section(self.seconds, section)

    def lap(self) -> dict[str, float]:
        """Return the seconds of each section since the last lap, and start again at zero."""
        lap, self.seconds = dict(self.seconds), self.seconds
        for section in self.seconds:
            self.seconds[section] = 0.0
        return lap


class _Section:
    """Adds the time spent in a `with` block to one section."""

    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception) -> None:
        self._seconds[self._name] += time.perf_counter() - self._began
