"""`calling.py PART FOLDER`: a program of one's own that calls `gala_mpi.train`; what each rank sees is a file of FOLDER."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import gymnasium
import torch
from mpi4py import MPI

import gala_mpi

RANK = -1  # MPI is not called where a worker process imports this
SMALL = {"env": "CartPole-v1", "num_envs": 4, "precision": "fp32"}
LOCK_STEP = gala_mpi.Config(
    **SMALL, staleness=0, total_steps=4000, a2c=dataclasses.replace(gala_mpi.Config().a2c, discount=0.9)
)


def make_pole(gravity: float = 9.8) -> gymnasium.Env:
    environment = gymnasium.make("CartPole-v1", max_episode_steps=30, render_mode=None)
    environment.unwrapped.gravity = gravity
    return environment


class Net(torch.nn.Module):
    def __init__(self, spaces):
        super().__init__()
        self.layer = torch.nn.Linear(*spaces.observation_shape, 16)

    def forward(self, observations):
        return torch.tanh(self.layer(observations))


class Noted(gala_mpi.Callback):
    """Everything that a callback is told."""

    def __init__(self):
        self.seen: dict[str, list] = {name: [] for name in ("update", "episode", "checkpoint", "end")}

    def update(self, done):
        self.seen["update"].append(dataclasses.asdict(done))

    def episode(self, ended):
        assert ended.update == 1 + len(self.seen["update"])  # before its update
        self.seen["episode"].append(dataclasses.asdict(ended))

    def checkpoint(self, saved):
        assert saved.file.exists()
        self.seen["checkpoint"].append(dataclasses.asdict(saved))

    def end(self, ended):
        self.seen["end"].append(dataclasses.asdict(ended))


def write(folder: Path, what: object) -> None:
    (folder / f"rank{RANK}.json").write_text(json.dumps(what, default=str))


def equal(folder: Path) -> None:
    """As keywords, and as a Config, in one process."""
    gala_mpi.train(LOCK_STEP, run_dir=folder / "config")
    gala_mpi.train(**SMALL, staleness=0, total_steps=4000, a2c={"discount": 0.9}, run_dir=str(folder / "keywords"))


def noted(folder: Path) -> None:
    noted = Noted()
    updates: list[gala_mpi.Updated] = []
    ended = gala_mpi.train(
        gala_mpi.Config(**SMALL),
        total_steps=20_000,
        checkpoint_minutes=0.01,
        run_dir=folder / "run",
        callbacks=[noted, updates.append],
    )
    assert updates == [gala_mpi.Updated(**each) for each in noted.seen["update"]]
    assert noted.seen["end"] == [dataclasses.asdict(ended)]
    write(folder, noted.seen)


def stopped(folder: Path) -> None:
    """By rank 1 alone; further settings are words NAME=VALUE."""
    settings = dict(word.split("=") for word in sys.argv[3:])
    more = {name: int(value) if value.isdigit() else value == "True" or value for name, value in settings.items()}
    told = (lambda done: done.update >= 30 and "good enough",) if RANK == 1 else ()
    ended = gala_mpi.train(**SMALL, total_steps=10**9, run_dir=folder / "run", callbacks=told, **more)
    write(folder, dataclasses.asdict(ended))


def again(folder: Path) -> None:
    """A run that a signal stops, its continuation, and what a program has left of its own afterwards."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]

    def term(done):
        if RANK == 0 and done.update == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    run = folder / "run"
    ends = [gala_mpi.train(**SMALL, staleness=0, total_steps=10**9, hang_minutes=5, run_dir=run, callbacks=[term])]
    ends.append(gala_mpi.train(gala_mpi.Config(resume=True, run_dir=run), total_steps=8000))
    ends.append(gala_mpi.train(resume=True, run_dir=run, total_steps=8000))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert MPI.COMM_WORLD.allreduce(1) == MPI.COMM_WORLD.size
    write(folder, [dataclasses.asdict(ended) for ended in ends])


def factories(folder: Path) -> None:
    gala_mpi.train(
        num_envs=4,
        env=make_pole,
        env_kwargs=["gravity=5.0"],
        network=Net,
        total_steps=2000,
        precision="fp32",
        run_dir=folder / "run",
    )


def unnamed(folder: Path) -> None:
    """By lambdas; played here, where alone they are known."""
    run = folder / "run"
    gala_mpi.train(**SMALL | {"env": lambda: make_pole()}, network=lambda spaces: Net(spaces), total_steps=2000, run_dir=run)
    gala_mpi.train(resume=True, run_dir=run, total_steps=3000)
    from gala_mpi import evaluate

    evaluate.main([str(run), "--episodes", "2"])


def raising(folder: Path) -> None:
    def told(done):
        if done.rank == 1 and done.update == 60:
            raise KeyError("of mine")

    exact = {"staleness": 0, "exact_resume": True, "checkpoint_updates": 25}
    gala_mpi.train(**SMALL, **exact, total_steps=10**9, run_dir=folder / "run", callbacks=[told])


def odd(folder: Path) -> None:
    gala_mpi.train(**SMALL, total_steps=10**9, run_dir=folder / "run", callbacks=[lambda done: done.update])


def nested(folder: Path) -> None:
    gala_mpi.train(**SMALL, total_steps=10**9, run_dir=folder / "run", callbacks=[lambda done: gala_mpi.train(**SMALL)])


def actors(folder: Path) -> None:
    noted = Noted()
    ended = gala_mpi.train(**SMALL, learner="vtrace", actors=1, total_steps=4000, run_dir=folder / "run", callbacks=[noted])
    write(folder, {"ended": dataclasses.asdict(ended), **noted.seen})


def refused(folder: Path) -> None:
    """Each of these on all ranks alike, one after the other."""
    good = {**SMALL, "total_steps": 100}
    cases = [
        {"colour": 1},
        {"num_env": 1},
        {"num_envs": "4"},
        {"num_envs": True},
        {"num_envs": 0},
        {"exchange": "shouting"},
        {"total_steps": 1.5},
        {"ppo": {"clipp": 1}},
        {"a2c": 0.9},
        {"topology": "nowhere"},
        {"resume": True},
        {"seed": RANK},
        {"env": make_pole if RANK else Net},
        {"callbacks": [5] if RANK else []},
        {"callbacks": Noted},
        {"config": "pong"},
        {"config": gala_mpi.Config(config=Path("some.toml"))},
        {"env": lambda: 5},
        {"env": lambda: 1 / 0},
        {"env": lambda: make_pole(), "env_workers": 1},
        {"network": lambda spaces: 5},
        {"run_dir": "/proc/run"},
        {"run_dir": folder},
    ]
    said = []
    for case in cases:
        try:
            gala_mpi.train(**{**good, **case})
        except ValueError as error:
            assert type(error).__name__ == "SettingError"
            said.append(str(error))
    write(folder, said)


if __name__ == "__main__":
    RANK = MPI.COMM_WORLD.rank
    globals()[sys.argv[1]](Path(sys.argv[2]))
