"""What each command refuses, and in which words. That this is said once, by rank 0, and ends all ranks: tests/commands."""

from __future__ import annotations

import functools
import shutil
import sys
import tarfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym

from gala_mpi import evaluate, pulse
from gala_mpi.bench import __main__ as bench
from gala_mpi.doctor import __main__ as doctor
from gala_mpi.errors import REFUSED, SettingError
from gala_mpi.job import prepare
from gala_mpi.mpi.world import World
from gala_mpi.run import files, lock

SMALL = ("--env", "CartPole-v1", "--num-envs", 4, "--precision", "fp32")


class Shows(gymnasium.Env):
    """Returns nothing but zeros, at its steps by `change`."""

    def __init__(self, space, change=lambda observation: observation):
        self.observation_space, self.action_space, self.change = space, gym.Discrete(2), change

    def _zeros(self):
        return gym.utils.unflatten(self.observation_space, np.zeros(gym.flatdim(self.observation_space), np.float32))

    def reset(self, *, seed=None, options=None):
        return self._zeros(), {}

    def step(self, action):
        return self.change(self._zeros()), 0.0, False, False, {}


GRID = gym.Box(0, 255, (7, 9), np.uint8)
for name, *arguments in (
    ("Grid-v0", GRID),
    ("Mixed-v0", gym.Dict({"grid": GRID, "more": gym.MultiBinary(3)})),
    ("Liar-v0", gym.Box(-1, 1, (4,)), lambda observation: np.zeros(5, np.float32)),
    ("Says-v0", gym.Text(9)),
    ("Leaves-v0", gym.Box(-1, 1, (4,)), lambda observation: sys.exit(0)),
):
    gymnasium.register(name, functools.partial(Shows, *arguments), disable_env_checker=True)

TRAIN = {
    "game": (("--env", "pongg"), "--env pongg: no such environment", "did you mean pong"),
    "protocol": (
        ("--sticky", 0.25),
        "--atari.sticky 0.25: CartPole-v1 is no Atari game",
        "one (pong, ALE/Pong-v5) is expected",
    ),
    "actions": (("--atari.full-actions", "False"), "--atari.full-actions False: CartPole-v1 is no Atari game", "or None"),
    "module": (("--env", "no_such:Env-v0"), "--env no_such:Env-v0: there is no module no_such", "on PYTHONPATH"),
    "keyword": (("--env-kwargs", "gravity=3"), "--env-kwargs gravity=3: CartPole-v1 takes no gravity", "sutton_barto_reward"),
    "wrapper": (
        ("--wrappers", "FrameStack:4"),
        "--wrappers FrameStack:4: a class of gymnasium.wrappers",
        "FrameStackObservation",
    ),
    "wrapped game": (
        ("--env", "pong", "--wrappers", "ClipReward"),
        "--wrappers ClipReward: pong is not made by gymnasium",
        "--atari.*",
    ),
    "two players": (("--env", "warlords"), "--env warlords: the Atari game warlords needs two players", "played alone"),
    "environments": (("--num-envs", 0), "--num-envs 0", "1 or more"),
    "halves": (("--overlap", "--num-envs", 3), "--overlap --num-envs 3", "an even number"),
    "workers": (("--env-workers", 5), "--num-envs 4 --env-workers 5", "4 or less is expected"),
    "workers of halves": (("--overlap", "--env-workers", 3), "--overlap --env-workers 3", "an even number"),
    "workers of a game": (
        ("--env", "pong", "--env-workers", 2),
        "--env-workers 2: pong steps its environments in a way of its own",
        "0 is expected",
    ),
    "it raises in a worker": (
        ("--env", "worked:Worked-v0", "--env-workers", 1, "--env-kwargs", "how=raise", "at=0"),
        "--env worked:Worked-v0: it does not start (RuntimeError: the pole has broken, in ",
        "worked.py, line",
    ),
    "steps": (("--total-steps", 0), "--total-steps 0", "1 or more"),
    "rate": (("--lr", -1), "--lr -1", "positive"),
    "rate nan": (("--lr", "nan"), "--lr nan", "positive"),
    "discount": (("--a2c.discount", 2), "--a2c.discount 2", "0 to 1"),
    "marks": (("--checkpoint-updates", 100), "--checkpoint-updates 100", "--exact-resume"),
    "bound": (("--exchange", "server", "--staleness", 1), "--staleness 1 --exchange server", "--exchange gossip is expected"),
    "averages": (("--sync-updates", 5), "--sync-updates 5 --exchange gossip", "--exchange periodic is expected"),
    "graph": (("--topology", "rinng"), "--topology rinng", "a file is expected (did you mean ring?)"),
    "device": (("--device", "tpu"), "--device tpu", "cpu"),
    "network": (("--network", "nature"), "--network nature", "mlp is expected"),
    "a game": (
        ("--env", "pong", "--normalise-observations"),
        "--normalise-observations: pong shows nothing but images; observations that are numbers are expected",
        "",
    ),
    "rewards of images": (
        ("--env", "Grid-v0", "--normalise-rewards"),
        "--normalise-rewards: Grid-v0 shows nothing but images; observations that are numbers are expected",
        "",
    ),
    "rewards twice": (
        ("--normalise-rewards", "--a2c.clip-rewards", "True"),
        "--normalise-rewards --a2c.clip-rewards True: one of the two is expected",
        "",
    ),
    "spread": (("--action-std", 0), "--action-std 0", "a number from 1e-6 to 1e6"),
    "small images": (
        ("--env", "Grid-v0", "--network", "gala"),
        "--network gala: images of Grid-v0 have 7×9 pixels; 36 or more a side, or --network small or mlp, is expected",
        "",
    ),
    "images among others": (
        ("--env", "Mixed-v0", "--network", "nature"),
        "--network nature: images of Mixed-v0 have 7×9 pixels",
        "",
    ),
    "another shape": (
        ("--env", "Liar-v0"),
        "--env Liar-v0: environment 0 returned at its step 1 observation of shape (5,); (4,) is declared (Box(-1.0, 1.0, (4,)",
        "",
    ),
    "text": (
        ("--env", "Says-v0"),
        "--env Says-v0: observations are Text(",
        "a wrapper that turns it into numbers is expected",
    ),
    "it leaves": (
        ("--env", "Leaves-v0"),
        "--env Leaves-v0: it does not start (RuntimeError: environment 0 of --env Leaves-v0 has called sys.exit(0) at "
        "its step 1, in",
        "test_refusals.py, line",
    ),
    "no run": (("--resume", "--run-dir", "nothing"), "--run-dir nothing: a run is expected", "run.h5"),
    "a file in the way": (("--run-dir", "file/run"), "--run-dir file/run: file cannot be written", "a writable directory"),
}
BENCH = {
    "rounds": (("train", "--rounds", 0), "--rounds 0"),
    "updates": (("exchange", "--updates", 0), "--updates 0"),
    "one rank": (("exchange",), "mpirun -n 1: 2 ranks or more is expected"),
    "seconds": (("agents", "--seconds", -1), "--seconds -1"),
    "bound": (
        ("train", "--exchange", "none", "--staleness", 1),
        "--staleness 1 --exchange none: --exchange gossip is expected",
    ),
    "replay": (("train", "--replay", "runs/pong"), "--replay: a benchmark reads no run"),
    "resume": (("train", "--resume"), "--resume: a benchmark reads no run"),
}
EVALUATE = {
    "no games": (("--episodes", 0), "--episodes 0: a whole number from 1 to 1,000,000 is expected"),
    "games": (("--episodes", 10**12), f"--episodes {10**12}: a whole number from 1 to 1,000,000 is expected"),
    "no steps": (("--max-steps", 0), "--max-steps 0: a whole number, 1 or more, is expected"),
    "word": (("--checkpoint", "worst"), "--checkpoint worst: newest, best or a checkpoint's number is expected"),
    "digit": (("--checkpoint", "²"), "--checkpoint ²: newest, best or a checkpoint's number is expected"),
    "number": (("--checkpoint", 77), "--checkpoint 77: a complete checkpoint of gossip is expected ("),
    "film": (("--video", "film.avi"), "--video film.avi"),
}
DOCTOR = {
    "environments": (("--num-envs", 0), "--num-envs 0"),
    "resume": (("--resume",), "--resume: the doctor reads no run"),
    "replay": (("--replay", "runs/pong"), "--replay: the doctor reads no run"),
}


@pytest.fixture(scope="module")
def world():
    end = pulse.end
    yield World()
    pulse.end = end


def refused(choose, flags: tuple, world: World, capfd) -> str:
    """The line in which a command refuses its flags."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        world.decide(lambda: choose([*map(str, flags)], world))
    assert end.value.code == REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    return line.removeprefix("gala_mpi: ")


@pytest.mark.parametrize("flags, start, allowed", TRAIN.values(), ids=TRAIN)
def test_training(world, tmp_path, monkeypatch, capfd, flags, start, allowed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    line = refused(prepare.make, (*SMALL, *flags), world, capfd)
    assert line.startswith(start) and allowed in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A folder with the runs `gossip` and `allreduce`, of CartPole-v1."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "old_runs" / "runs.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none yet
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize(
    "flags",
    [("--env", "Acrobot-v1"), ("--exchange", "allreduce"), ("--staleness", 0), ("--network", "gala")],
    ids=str,
)
def test_resume_of_something_else(world, old, monkeypatch, capfd, flags):
    """Another game, network, exchange: the checkpoint does not fit."""
    monkeypatch.chdir(old)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    line = refused(prepare.make, ("--resume", "--run-dir", "gossip", *flags), world, capfd)
    assert " ".join(map(str, flags)) in line
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*") if path.name != ".lock"} == before


def test_a_run_keeps_what_it_sees(world, old, capfd):
    """One that was begun before there was a choice says nothing of it, and sees as it has seen."""
    run = old / "allreduce"
    assert prepare.read(["--resume", "--run-dir", str(run)]).spaces == "raw"
    line = refused(prepare.make, ("--resume", "--run-dir", run, "--spaces", "scaled"), world, capfd)
    assert line == f"--spaces scaled: the run in {run} has raw, and goes on with it"


@pytest.mark.parametrize("flag", ["--normalise-observations", "--normalise-rewards"])
def test_a_run_keeps_what_it_normalises(world, old, capfd, flag):
    """One that was begun before there was a choice normalises nothing."""
    run = old / "allreduce"
    assert not any(prepare.read(["--resume", "--run-dir", str(run)]).statistics.values())
    line = refused(prepare.make, ("--resume", "--run-dir", run, flag), world, capfd)
    assert line == f"{flag} True: the run in {run} has False, and goes on with it"


@pytest.mark.parametrize(
    ("wrapper", "flag"),
    [("NormalizeObservation", "--normalise-observations"), ("NormalizeReward:gamma=0.9", "--normalise-rewards")],
)
def test_wrappers_that_keep_statistics_to_themselves_are_said_to_and_what_does_not(world, wrapper, flag):
    *_, advice = prepare.settle(prepare.read([*map(str, SMALL), "--wrappers", wrapper]), world)
    own = "its statistics are each environment's own, neither saved nor shared"
    assert advice == [f"warning: --wrappers {wrapper}: {own}; those of {flag} are both"]


@pytest.mark.parametrize(
    ("env", "base_lr", "entropy"), [("pong", 7e-4, 0.01), ("CartPole-v1", 2e-3, 0.01), ("Pendulum-v1", 2e-3, 0.0)]
)
def test_defaults_that_go_by_the_spaces_are_settled_and_stored(world, env, base_lr, entropy):
    def settled(*flags: str):
        return prepare.settle(prepare.read(["--env", env, "--precision", "fp32", *flags]), world)[0]

    assert (settled().base_lr, settled().a2c.entropy_coefficient) == (base_lr, entropy)
    given = settled("--base-lr", "1e-4", "--a2c.entropy-coefficient", "0.5")
    assert (given.base_lr, given.a2c.entropy_coefficient) == (1e-4, 0.5)


def test_a_run_that_nobody_has_begun_is_not_resumed(world, tmp_path, capfd):
    line = refused(prepare.make, ("--resume", "--run-dir", tmp_path), world, capfd)
    assert line.startswith(f"--run-dir {tmp_path}: a run is expected")


def test_long_rollouts_need_memory(world, tmp_path, capfd):
    flags = ("--env", "pong", "--rollout-length", 100_000, "--run-dir", tmp_path / "run")
    line = refused(prepare.make, flags, world, capfd)
    assert line.startswith("memory on ") and "--num-envs" in line
    assert not any(tmp_path.iterdir())


def test_a_run_that_another_job_begins_and_ends_meanwhile_is_not_begun_anew(world, old, tmp_path, monkeypatch, capfd):
    """Between the first look at the directory and its lock."""
    take = lock.take

    def taken_late(run: Path) -> None:
        shutil.copytree(old / "gossip", run, dirs_exist_ok=True)
        take(run)

    monkeypatch.setattr(lock, "take", taken_late)
    run = tmp_path / "run"
    assert refused(prepare.make, (*SMALL, "--run-dir", run), world, capfd).startswith(f"--run-dir {run} exists")
    assert snapshot(run) == snapshot(old / "gossip")


def snapshot(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("[!.]*") if path.is_file()}


@pytest.mark.parametrize("flags, words", EVALUATE.values(), ids=EVALUATE)
def test_evaluate(world, old, monkeypatch, capfd, flags, words):
    monkeypatch.chdir(old)
    before = snapshot(old)
    assert refused(lambda said, _: evaluate.choose(said), ("gossip", *flags), world, capfd).startswith(words)
    assert snapshot(old) == before


@pytest.mark.parametrize("flags, words", BENCH.values(), ids=BENCH)
def test_benchmarks(world, capfd, flags, words):
    assert words in refused(bench.read_arguments, (*flags, *SMALL), world, capfd)


@pytest.mark.parametrize(
    "ranks, flags, words",
    [
        (2, ("--frozen", 2), "--frozen 2: a rank from 0 to 1"),
        (2, ("--exchange", "allreduce"), "bench frozen --exchange allreduce: gossip, server or none is expected"),
        (2, ("--exchange", "periodic"), "bench frozen --exchange periodic: gossip, server or none is expected"),
    ],
)
def test_benchmarks_of_several_ranks(ranks, flags, words):
    with pytest.raises(SettingError, match=words):
        bench.check(bench.parse(["frozen", *map(str, flags)]), ranks, hosts=1)


@pytest.mark.parametrize("flags, words", DOCTOR.values(), ids=DOCTOR)
def test_the_doctor(world, capfd, flags, words):
    assert words in refused(doctor.read_arguments, (*SMALL, *flags), world, capfd)


def test_hdf5_told_to_lock_where_nothing_can_be(world, tmp_path, monkeypatch, capfd):
    """The variable goes before what a program says as it opens a file."""
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    monkeypatch.setattr(files, "try_lock", lambda folder: f"No locks available in {folder}")
    line = refused(prepare.make, (*SMALL, "--run-dir", tmp_path / "run"), world, capfd)
    assert line.startswith("HDF5_USE_FILE_LOCKING=TRUE: FALSE is expected") and f"No locks available in {tmp_path}" in line
    assert not any(tmp_path.iterdir())
