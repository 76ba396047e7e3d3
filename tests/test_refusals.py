"""What each command refuses, and in which words. That this is said once, by rank 0, and ends all ranks: tests/commands."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym

from gala_mpi import config_checks, evaluate, pulse
from gala_mpi.bench import __main__ as bench
from gala_mpi.config import Config
from gala_mpi.doctor import __main__ as doctor
from gala_mpi.errors import REFUSED, SettingError
from gala_mpi.job import prepare
from gala_mpi.mpi.world import World
from gala_mpi.networks import policy
from gala_mpi.policy import load_policy
from gala_mpi.run import files, lock, open_run

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
    "outer steps": (("--outer-momentum", 0.9), "--outer-momentum 0.9 --exchange gossip", "--exchange periodic is expected"),
    "graph": (("--topology", "rinng"), "--topology rinng", "a file is expected (did you mean ring?)"),
    "device": (("--device", "tpu"), "--device tpu", "cpu"),
    "network": (("--network", "nature"), "--network nature", "mlp is expected"),
    "a network that is none": (
        ("--network", "natur"),
        "--network natur: gala, nature, small, impala, mlp, or MODULE:FUNCTION of yours is expected",
        "",
    ),
    "no module": (
        ("--network", "nowhere:nets"),
        "--network nowhere:nets: there is no module nowhere; one that is installed, on PYTHONPATH or in ",
        "",
    ),
    "a network that keeps something": (("--network", "nets:normalising"), "--network nets:normalising: it keeps encoder.", ""),
    "layers that are fixed": (
        ("--env", "pong", "--hidden", "256"),
        "--network gala --hidden 256: --network mlp is expected with it",
        "",
    ),
    "layers of ones own": (
        ("--network", "nets:features", "--activation", "relu"),
        "--network nets:features --activation relu: --network mlp is expected with it",
        "",
    ),
    "no units": (
        ("--hidden", "64,0"),
        "--hidden 64,0: a number of units a layer, 1 to 10,000 each, as 256,256,",
        "is expected",
    ),
    "too many units": (("--hidden", "10001"), "--hidden 10001: a number of units a layer", ""),
    "a copy of the value's network for images": (
        ("--env", "pong", "--value-network", "copy"),
        "--network gala --value-network copy: --network mlp is expected with it",
        "",
    ),
    "a memory of two networks": (
        ("--memory", "lstm", "--value-network", "copy"),
        "--memory lstm --value-network copy: shared, since one memory is behind both, is expected",
        "",
    ),
    "words": (("--hidden", "64x64"), "--hidden 64x64: a number of units a layer", ""),
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
    "rewards twice, by ppo": (
        ("--learner", "ppo", "--normalise-rewards", "--ppo.clip-rewards", "True"),
        "--normalise-rewards --ppo.clip-rewards True: one of the two is expected",
        "",
    ),
    "numbers of minibatches that differ": (
        ("--learner", "ppo", "--exchange", "allreduce", "--ppo.target-kl", 0.02),
        "--ppo.target-kl 0.02 --exchange allreduce: ranks average the gradient of every minibatch, so all take as many; "
        "None or --exchange gossip or periodic or server or none is expected",
        "",
    ),
    "mixes within one step": (
        ("--mix-steps", 4),
        "--mix-steps 4 --learner a2c: it takes one step on a rollout; --learner ppo is expected",
        "",
    ),
    "mixes with nobody": (
        ("--mix-steps", 4, "--learner", "ppo", "--exchange", "server"),
        "--mix-steps 4 --exchange server: --exchange gossip is expected",
        "",
    ),
    "mixes within what is exact": (
        ("--mix-steps", 4, "--learner", "ppo", "--staleness", 0, "--exact-resume"),
        "--mix-steps 4 --exact-resume True: one of the two is expected",
        "",
    ),
    "numbers of mixes that differ": (
        ("--mix-steps", 4, "--learner", "ppo", "--staleness", 0, "--ppo.target-kl", 0.02),
        "--mix-steps 4 --staleness 0 --ppo.target-kl 0.02: None, so that all do as many updates, is expected",
        "",
    ),
    "preemption where nobody waits for a rollout": (
        ("--preempt", 0.6, "--exchange", "periodic"),
        "--preempt 0.6 --exchange periodic: --exchange allreduce is expected",
        "",
    ),
    "preemption of one rank": (
        ("--preempt", 0.6, "--exchange", "allreduce"),
        "--preempt 0.6: one rank waits for nobody; None, or 2 ranks or more, is expected",
        "",
    ),
    "preemption that is repeated": (
        ("--preempt", 0.6, "--exchange", "allreduce", "--exact-resume"),
        "--exact-resume --preempt 0.6: one of the two is expected",
        "",
    ),
    "a lag without correction": (
        ("--lag", 1, "--learner", "ppo"),
        "--lag 1 --learner ppo: it learns from what its own parameters have played; --lag 0 or --learner vtrace is expected",
        "",
    ),
    "a lag of rollouts that are cut short": (
        ("--lag", 1, "--learner", "vtrace", "--exchange", "allreduce", "--preempt", 0.6),
        "--lag 1 --preempt 0.6: one of the two is expected",
        "",
    ),
    "actors without correction": (
        ("--actors", 3),
        "--actors 3 --learner a2c: it learns from what its own parameters have played; ",
        "--actors 0 or --learner vtrace is expected",
    ),
    "actors and a lag": (
        ("--learner", "vtrace", "--actors", 1, "--lag", 1),
        "--actors 1 --lag 1: one of the two is expected",
        "",
    ),
    "actors and what is exact": (
        ("--learner", "vtrace", "--actors", 1, "--exact-resume"),
        "--actors 1 --exact-resume True: one of the two is expected",
        "",
    ),
    "actors of rollouts that are cut short": (
        ("--learner", "vtrace", "--actors", 1, "--exchange", "allreduce", "--preempt", 0.6),
        "--actors 1 --preempt 0.6: one of the two is expected",
        "",
    ),
    "actors of which one is slow": (
        ("--learner", "vtrace", "--actors", 1, "--slow-rank", "0:1s"),
        "--actors 1 --slow-rank 0:1s: one of the two is expected",
        "",
    ),
    "no ranks for actors": (
        ("--learner", "vtrace", "--actors", 1),
        "--actors 1: mpirun -n 1: a multiple of 2 ranks is expected",
        "",
    ),
    "fewer actors than none": (("--learner", "vtrace", "--actors", -1), "--actors -1", "0 or more"),
    "clipping": (("--ppo.clip", 1), "--ppo.clip 1.0", "a number between 0 and 1 is expected"),
    "minibatches of whole environments": (
        ("--learner", "ppo", "--memory", "lstm", "--num-envs", 4, "--ppo.minibatches", 5),
        "--memory lstm --num-envs 4 --ppo.minibatches 5: 4 or less is expected",
        "",
    ),
    "memory": (("--memory", "gru", "--memory-size", 0), "--memory-size 0", "1 or more"),
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
    "a name too long": (("--run-dir", 300 * "x"), f"--run-dir {300 * 'x'} cannot be written:", "File name too long"),
    "a name that is none": (("--run-dir", "a\0b"), "--run-dir a\0b cannot be written:", "null byte"),
    "no run by that name": (("--resume", "--run-dir", 300 * "x"), f"--run-dir {300 * 'x'}: a run is expected", "run.h5"),
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
    "actors": (("train", "--learner", "vtrace", "--actors", 1), "bench --actors 1: 0, since benchmarks are of agents that"),
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


def test_a_folder_that_one_may_not_enter(world, tmp_path, monkeypatch, capfd):
    """As of another user, whose run is asked for."""
    monkeypatch.chdir(tmp_path)

    def stat(path: str | Path, status: Callable = os.stat, **more) -> os.stat_result:  # root may enter every folder
        if "closed/" in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return status(path, **more)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for flags, words in (((), "closed cannot be written; a writable directory"), (("--resume",), "a run is expected there")):
        line = refused(prepare.make, (*SMALL, *flags, "--run-dir", "closed/run"), world, capfd)
        assert line.startswith(f"--run-dir closed/run: {words}")
    for read in (load_policy, open_run):
        with pytest.raises(SettingError, match="closed/run"):
            read("closed/run")


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
    ("flag", "value", "has"),
    [("--hidden", "128,128", "64,64"), ("--activation", "relu", "tanh"), ("--value-network", "copy", "shared")],
)
def test_a_run_keeps_its_layers(world, old, capfd, flag, value, has):
    """One that was begun before there was a choice has those that it had."""
    run = old / "allreduce"
    line = refused(prepare.make, ("--resume", "--run-dir", run, flag, value), world, capfd)
    assert line == f"{flag} {value}: the run in {run} has {has}, and goes on with it"


def test_layers_are_settled_and_stored(world):
    def settled(*flags: str):
        found, network, _ = prepare.settle(prepare.read(["--env", "CartPole-v1", *flags]), world)
        return found.network, found.hidden, found.activation, found.value_network, network.parameters

    assert settled() == ("mlp", "64,64", "tanh", "shared", 4_675)
    assert settled("--hidden", "8", "--activation", "relu") == ("mlp", "8", "relu", "shared", 4 * 8 + 8 + 3 * (8 + 1))
    apart = settled("--hidden", "8", "--value-network", "copy")
    assert apart == ("mlp", "8", "tanh", "copy", 2 * (4 * 8 + 8) + 3 * (8 + 1))
    assert settled("--network", "nets:linear") == ("nets:linear", None, None, None, 3 * (4 + 1))


@pytest.mark.parametrize(("learner", "rows"), [("a2c", 16), ("ppo", 512)])
def test_precisions_are_compared_at_what_is_learnt_from_at_once(world, monkeypatch, learner, rows):
    asked = []
    monkeypatch.setattr(policy, "fastest_precision", lambda *arguments: asked.append(arguments[2]) or "fp32")
    prepare.settle(prepare.read(["--env", "pong", "--learner", learner]), world)
    assert asked == [rows]


def test_a_run_keeps_what_it_remembers_with(world, old, capfd):
    """One that was begun before there was a choice remembers nothing."""
    run = old / "allreduce"
    assert prepare.read(["--resume", "--run-dir", str(run)]).memory is None
    line = refused(prepare.make, ("--resume", "--run-dir", run, "--memory", "lstm"), world, capfd)
    assert line == f"--memory lstm: the run in {run} has None, and goes on with it"


@pytest.mark.parametrize(
    ("wrapper", "flag"),
    [("NormalizeObservation", "--normalise-observations"), ("NormalizeReward:gamma=0.9", "--normalise-rewards")],
)
def test_wrappers_that_keep_statistics_to_themselves_are_said_to_and_what_does_not(world, wrapper, flag):
    *_, advice = prepare.settle(prepare.read([*map(str, SMALL), "--wrappers", wrapper]), world)
    own = "its statistics are each environment's own, neither saved nor shared"
    assert advice == [f"warning: --wrappers {wrapper}: {own}; those of {flag} are both"]


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (
            ("--learner", "ppo", "--a2c.discount", 0.9, "--vtrace.rho-bar", 2.0, "--ppo.clip", 0.3),
            ["--a2c.discount 0.9: no effect beside --learner ppo", "--vtrace.rho-bar 2.0: no effect beside --learner ppo"],
        ),
        (("--ppo.clip", 0.3), ["--ppo.clip 0.3: no effect beside --learner a2c"]),
        (
            ("--exchange", "allreduce", "--topology", "complete"),
            ["--topology complete: no effect beside --exchange allreduce"],
        ),
        (("--lr", 1e-4, "--base-lr", 1e-3), ["--base-lr 0.001: no effect beside --lr 0.0001"]),
        (("--memory-size", 9), ["--memory-size 9: no effect without --memory"]),
        (("--evaluate-episodes", 3), ["--evaluate-episodes 3: no effect without --evaluate-minutes"]),
        (("--a2c.discount", 0.9, "--topology", "complete", "--base-lr", 1e-3), []),
        (("--memory", "gru", "--memory-size", 9, "--evaluate-minutes", 9, "--evaluate-episodes", 3, "--lr", 1e-4), []),
    ],
)
def test_settings_without_effect_are_named_and_the_run_goes_on(world, tmp_path, flags, lines):
    plan = prepare.make([*map(str, SMALL), "--run-dir", str(tmp_path / "run"), *map(str, flags)], world)
    assert [line for line in plan.advice if "no effect" in line] == [f"warning: {line}" for line in lines]


def test_of_a_resumed_run_nobody_knows_who_set_what_has_no_effect():
    idle = Config(lr=1e-4, base_lr=1e-3)
    assert config_checks.without_effect(idle)
    assert not config_checks.without_effect(dataclasses.replace(idle, resume=True, run_dir=Path("runs/one")))
    assert not config_checks.without_effect(dataclasses.replace(idle, replay=Path("runs/one")))


@pytest.mark.parametrize(
    ("env", "base_lr", "entropy"), [("pong", 7e-4, 0.01), ("CartPole-v1", 2e-3, 0.01), ("Pendulum-v1", 2e-3, 0.0)]
)
def test_defaults_that_go_by_the_spaces_are_settled_and_stored(world, env, base_lr, entropy):
    def settled(*flags: str):
        return prepare.settle(prepare.read(["--env", env, "--precision", "fp32", *flags]), world)[0]

    assert (settled().base_lr, settled().a2c.entropy_coefficient) == (base_lr, entropy)
    given = settled("--base-lr", "1e-4", "--a2c.entropy-coefficient", "0.5")
    assert (given.base_lr, given.a2c.entropy_coefficient) == (1e-4, 0.5)


@pytest.mark.parametrize(
    ("flags", "run", "learner"),
    [
        (("--env", "pong"), (128, 2.5e-4, False, False), (4, 4, 0.1, 0.01)),
        (("--env", "pong", "--num-envs", "8"), (128, 2.5e-4, False, False), (4, 4, 0.1, 0.01)),
        (("--env", "CartPole-v1"), (128, 3e-4, True, True), (10, 32, 0.2, 0.01)),
        (("--env", "Pendulum-v1", "--num-envs", "3"), (682, 3e-4, True, True), (10, 31, 0.2, 0.0)),
        (("--env", "Pendulum-v1", "--num-envs", "4096"), (1, 3e-4, True, True), (10, 64, 0.2, 0.0)),
        (("--env", "CartPole-v1", "--ppo.clip-rewards", "True"), (128, 3e-4, True, False), (10, 32, 0.2, 0.01)),
        (
            ("--env", "CartPole-v1", "--rollout-length", "2", "--num-envs", "4", "--no-normalise-observations"),
            (2, 3e-4, False, True),
            (10, 1, 0.2, 0.01),
        ),
        (
            ("--env", "CartPole-v1", "--base-lr", "1e-4", "--ppo.epochs", "3", "--ppo.minibatches", "7", "--ppo.clip", "0.3"),
            (128, 1e-4, True, True),
            (3, 7, 0.3, 0.01),
        ),
        (("--env", "CartPole-v1", "--lr", "1e-4"), (128, None, True, True), (10, 32, 0.2, 0.01)),
        (("--env", "CartPole-v1", "--memory", "lstm"), (128, 3e-4, True, True), (10, 16, 0.2, 0.01)),
        (("--env", "pong", "--memory", "gru", "--num-envs", "3"), (128, 2.5e-4, False, False), (4, 3, 0.1, 0.01)),
    ],
)
def test_defaults_of_ppo_go_by_the_task_and_are_stored(world, flags, run, learner):
    told = ("--learner", "ppo", "--precision", "fp32", *flags)
    settled, *_ = prepare.settle(prepare.read([*told]), world)
    found = settled.rollout_length, settled.base_lr, settled.normalise_observations, settled.normalise_rewards
    assert found == run
    ppo = settled.ppo
    assert (ppo.epochs, ppo.minibatches, ppo.clip, ppo.entropy_coefficient) == learner
    assert settled.a2c == Config().a2c  # which nobody asks


def test_what_ppo_is_given_goes_no_further_than_ppo(world):
    """A2C's rollouts and statistics are what they were before there was another learner."""
    settled, *_ = prepare.settle(prepare.read(["--env", "CartPole-v1", "--ppo.epochs", "3"]), world)
    assert (settled.rollout_length, settled.base_lr) == (5, 2e-3) and not any(settled.statistics.values())
    assert settled.ppo == dataclasses.replace(Config().ppo, epochs=3)


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
