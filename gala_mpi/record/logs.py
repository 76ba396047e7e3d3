"""A run's scalars for programs that draw them while it trains (--log): TensorBoard, and Weights & Biases. Rank 0 only.

Every few seconds: `run/...` of all agents, as rank 0 has heard of them, and `agent0/...`, means of its own updates since the
last time. With --evaluate-minutes also `evaluation/...`, and a film, when one has ended, at the steps of its checkpoint. The
axis is the steps of all agents. What every agent did at every update stands in metrics/.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gala_mpi.errors import DiskError, JobError, SettingError
from gala_mpi.record.recorder import Update
from gala_mpi.run import events, files
from gala_mpi.run.evaluations import Evaluated

SECONDS_BETWEEN_SCALARS = 5.0
NEEDED = {"tensorboard": None, "wandb": "wandb"}  # the package of each kind of log, of an extra of its name
PROJECT = "gala_mpi"


class Log(Protocol):
    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write finite numbers by their names."""

    def film(self, step: int, name: str, gif: Path) -> None:
        """Write a film, which stays where it is."""

    def close(self) -> None: ...


class TensorBoard:
    """An event file in RUN/tensorboard, another one for each start."""

    def __init__(self, run: Path, settings: str, step: int):
        now = time.time()
        self._path = run / "tensorboard" / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
        with files.naming(self._path):
            self._path.parent.mkdir(exist_ok=True)
            self._file = open(self._path, "xb")
            self._file.write(events.header() + events.start(step, now))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = np.array([time.time()])
        records = [events.scalars(name, np.array([step]), now, np.array([value])) for name, value in scalars.items()]
        with files.naming(self._path):
            self._file.writelines(record for each in records for record in each)
            self._file.flush()

    def film(self, step: int, name: str, gif: Path) -> None:
        record = events.image(name, step, time.time(), gif.read_bytes())
        with files.naming(self._path):
            self._file.write(record)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run of the project gala_mpi, which goes on when this one does. WANDB_MODE and the like say how and where to."""

    def __init__(self, run: Path, settings: str, step: int):
        import wandb  # pyright: ignore[reportMissingImports]  # of an extra

        named = run / "wandb" / "id"
        files.first(named, secrets.token_hex(4))
        about: dict[str, Any] = {"project": PROJECT, "id": named.read_text(), "resume": "allow", "name": run.name}
        quiet = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(**about, dir=run, config=json.loads(settings), settings=quiet)
        except Exception as error:  # no key, no network, ...
            said = " ".join(str(error).split()).rstrip(".")
            raise JobError(f"--log wandb: {said}; `wandb login`, or WANDB_MODE=offline, is expected") from None
        self._run.define_metric("*", step_metric="steps")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"steps": step, **scalars})

    def film(self, step: int, name: str, gif: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # of an extra

        self._run.log({"steps": step, name: wandb.Video(str(gif), format="gif")})

    def close(self) -> None:
        self._run.finish()


LOGS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(kinds: Sequence[str]) -> None:
    """Refuse a log whose package is not there. Raises SettingError."""
    for kind in kinds:
        package = NEEDED[kind]
        if package is not None and find_spec(package) is None:
            raise SettingError(f"--log {kind}: {package} is not installed; pip install gala_mpi[{kind}] is expected")


class Scalars:
    """What rank 0 writes into its logs.

    Args:
        kinds: of the logs, by their names in LOGS.
        run: the run directory.
        settings: of the run, JSON.
        step: of all agents, at which this start begins.
    """

    def __init__(self, kinds: Sequence[str], run: Path, settings: str, step: int):
        self._logs: list[Log] = [LOGS[kind](run, settings, step) for kind in kinds]
        self._own: list[dict[str, float]] = []
        self._written, self._steps = time.monotonic(), step

    def update(self, update: Update, step: int, of_run: Mapping[str, float]) -> None:
        """Take in an update of this rank's; write, if it is time to.

        Args:
            step: of all agents.
            of_run: numbers of all agents, by name.
        """
        self._own.append(_own(update))
        if time.monotonic() - self._written >= SECONDS_BETWEEN_SCALARS:
            self.write(step, of_run)

    def write(self, step: int, of_run: Mapping[str, float]) -> None:
        """Write what has come since the last time. NaN, as of losses that a learner does not have, is left out."""
        now = time.monotonic()
        scalars = {f"run/{name}": float(value) for name, value in of_run.items()}
        scalars["run/steps_per_second"] = (step - self._steps) / max(now - self._written, 1e-9)
        for name in self._own[0] if self._own else ():
            values = [row[name] for row in self._own]
            scalars[f"agent0/{name}"] = float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
        finite = {name: value for name, value in scalars.items() if np.isfinite(value)}
        self._each(lambda log: log.write(step, finite))
        self._own, self._written, self._steps = [], now, step

    def evaluation(self, done: Evaluated) -> None:
        """Write an evaluation, at the steps of its checkpoint."""
        scores = {"score": done.score, "error": done.error, "games": float(done.games), "checkpoint": float(done.checkpoint)}
        finite = {f"evaluation/{name}": value for name, value in scores.items() if np.isfinite(value)}
        self._each(lambda log: log.write(done.steps, finite))

    def film(self, step: int, gif: Path) -> None:
        """Write a film of an evaluation."""
        self._each(lambda log: log.film(step, "evaluation/film", gif))

    def close(self, step: int, of_run: Mapping[str, float]) -> None:
        """Write what has come since the last time, and end all logs."""
        self.write(step, of_run)
        self._each(lambda log: log.close())

    def _each(self, use: Callable[[Log], None]) -> None:
        """Use every log. The run goes on without one that others see to, and that fails."""
        for log in list(self._logs):
            try:
                use(log)
            except DiskError:  # as for all files of the run
                raise
            except Exception as error:
                self._logs.remove(log)
                said = f"{type(error).__name__}: {error}"
                print(f"gala_mpi: warning: {type(log).__name__} gets no more scalars ({said})", file=sys.stderr, flush=True)


def _own(update: Update) -> dict[str, float]:
    """Return an update's numbers by the names of their columns in metrics/."""
    losses = update.losses
    return {
        "policy_loss": float(losses.policy),
        "value_loss": float(losses.value),
        "entropy": float(losses.entropy),
        "kl": float(losses.kl),
        "clip_share": float(losses.clip_share),
        "rho": float(losses.rho),
        "policy_lag": update.policy_lag,
        "grad_norm": update.grad_norm,
        "step_norm": update.step_norm,
    }
