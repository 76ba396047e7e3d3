"""`gala_mpi.load_policy` and `python -m gala_mpi.export` of real runs: what evaluate plays, also on a machine without MPI."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import gala_mpi
import launch
from commandline import SMALL, train
from gala_mpi import config, config_file, evaluate, export
from gala_mpi.envs import registry
from gala_mpi.envs.base import Environments
from gala_mpi.errors import SettingError
from gala_mpi.games import Games, game_seeds
from gala_mpi.policy import Policy
from gala_mpi.run import checkpoints, files, layout, reader
from without_training import run_without

ROOT = Path(__file__).parents[2]
ENOUGH, FEW = 1000, 200  # observations of a run's averaged policy, and of the others
NEVER = -1e9
LSTM, GRU = ("--memory", "lstm", "--memory-size", 8), ("--memory", "gru", "--memory-size", 8)
PPO, VTRACE = ("--learner", "ppo", "--ppo.epochs", 1), ("--learner", "vtrace")
PENDULUM = ("--env", "Pendulum-v1", "--num-envs", 4)
PONG = ("--env", "pong", "--num-envs", 2, "--precision", "fp32", "--rollout-length", 5)
RUNS: dict[str, tuple] = {
    "a2c, gossip, mlp": (*SMALL, "--normalise-observations", "--normalise-rewards"),
    "vtrace, server, lstm": (*SMALL, *VTRACE, *LSTM, "--exchange", "server"),
}
LONG: dict[str, tuple] = {
    "ppo, allreduce, gala": (*PONG, *PPO, "--ppo.minibatches", 2, "--exchange", "allreduce"),
    "a2c, periodic, gru": (*PENDULUM, *GRU, "--exchange", "periodic"),
    "ppo, none, own": (*SMALL, *PPO, "--network", "nets:Apart", "--exchange", "none"),
    "vtrace, gossip, nature": (*PONG, *VTRACE, "--network", "nature"),
    "vtrace, allreduce, impala": (*PONG, *VTRACE, "--network", "impala", "--exchange", "allreduce"),
    "a2c, server, gala and lstm": (*PONG, *LSTM, "--exchange", "server"),
    "ppo, periodic, impala and gru": (
        *PONG,
        *PPO,
        *GRU,
        "--ppo.minibatches",
        2,
        "--network",
        "impala",
        "--exchange",
        "periodic",
    ),
    "ppo, server, masks": ("--env", "Taxi-v4", "--num-envs", 4, *PPO, "--exchange", "server"),
    "a2c, allreduce, mlp of other layers": (*SMALL, "--hidden", "16,8", "--activation", "relu", "--exchange", "allreduce"),
    "a2c, none, small": (*PONG, "--network", "small", "--exchange", "none"),
    "ppo, gossip, masks and lstm": ("--env", "Taxi-v4", "--num-envs", 4, *PPO, *LSTM, "--ppo.minibatches", 2),
    "vtrace, periodic, mlp": (*SMALL, *VTRACE, "--exchange", "periodic"),
    "vtrace, none, gru": (*PENDULUM, *VTRACE, *GRU, "--exchange", "none"),
}
STEPS = {"pong": 40}
kinds = pytest.mark.parametrize("kind", [*RUNS, *(pytest.param(kind, marks=pytest.mark.long) for kind in LONG)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """A run of each kind on 2 ranks, trained when it is asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])))

    def of(kind: str) -> Path:
        if kind not in made:
            flags = (RUNS | LONG)[kind]
            made[kind] = folder / kind.replace(", ", "-").replace(" ", "-")
            train(2, made[kind], *flags, "--total-steps", STEPS.get(str(flags[1]), 2000))
        return made[kind]

    yield of
    monkeypatch.undo()


class Recorded(Environments):
    """Environments that write down what they have shown, and what was done."""

    def __init__(self, inner: Environments):
        self.inner, self.num_envs, self.spaces = inner, inner.num_envs, inner.spaces
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def reset(self, seeds):
        self.shown = self.inner.reset(seeds)
        return self.shown

    def send(self, actions):
        self.actions = actions
        self.inner.send(actions)

    def receive(self):
        step = self.inner.receive()
        self.seen.append((self.shown.copy(), self.actions.copy(), step.terminated | step.truncated))
        self.shown = step.observations
        return step

    def close(self):
        self.inner.close()


def choices(run: Path, checkpoint: str) -> Iterator[tuple[int, list[list[tuple]]]]:
    """Of every policy that evaluate plays: what it saw and did in games of 8 environments, and where a return ended."""
    selection = evaluate.choose([str(run), "--checkpoint", checkpoint])
    settings = selection.settings
    environments = Recorded(registry.make(settings.env, 8, **settings.env_options))
    network, flat = evaluate.make_network(settings, environments.spaces)
    for agent, vector in evaluate.load(selection).vectors.items():
        flat.data.copy_(torch.from_numpy(vector))
        games, number, wanted = [], 0, ENOUGH if agent == evaluate.MEAN else FEW
        while number < wanted:
            environments.seen = []
            Games(environments, game_seeds(len(games), range(8)), wanted // 8).play(network, None)
            games.append(environments.seen)
            number += 8 * len(environments.seen)
        yield agent, games
    environments.close()


def assert_chooses(policy: Policy, games: list[list[tuple]]) -> None:
    for game in games:
        policy.reset()
        for observations, actions, ended in game:
            chosen = policy.act(observations)
            assert chosen.dtype == actions.dtype and np.array_equal(chosen, actions)
            policy.reset(ended)


@kinds
@pytest.mark.filterwarnings("ignore:.*Pendulum")
def test_a_policy_chooses_what_evaluate_plays(kind, runs, tmp_path):
    """Out of the run, every agent's and the mean; that also out of a file and as an ONNX model."""
    run = runs(kind)
    policies = dict(choices(run, "newest"))
    shared = kind.split(", ")[1] == "server"
    assert set(policies) == ({evaluate.MEAN} if shared else {0, 1, evaluate.MEAN})
    for agent, games in policies.items():
        policy = gala_mpi.load_policy(run, "last", "mean" if agent == evaluate.MEAN else agent)
        assert_chooses(policy, games)
    policy.save(tmp_path / "policy.pt")
    assert_chooses(gala_mpi.load_policy(tmp_path / "policy.pt"), games)
    policy.to_onnx(tmp_path / "policy.onnx")
    assert_same_logits(policy, tmp_path / "policy.onnx", games)


@torch.no_grad()
def assert_same_logits(policy: Policy, path: Path, games: list[list[tuple]]) -> None:
    session, number = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), 0
    for game in games:
        state = None
        for observations, _, _ in game:
            number += len(observations)
            seen = torch.from_numpy(observations)
            if policy.module.network.memory is None:
                outputs, values = policy.module(seen)
                got = session.run(None, {"observations": observations})
            else:
                before = torch.zeros(len(seen), policy.module.network.state_size) if state is None else state
                outputs, values, state = policy.module(seen, before)
                got = session.run(None, {"observations": observations, "state": before.numpy()})
            logits = outputs.numpy()
            np.testing.assert_allclose(got[0], logits, rtol=0, atol=1e-5)
            np.testing.assert_allclose(got[1], values.numpy(), rtol=1e-5, atol=1e-5)
    assert number >= ENOUGH


def test_the_mean_is_that_of_all_agents_and_best_is_the_best(runs, tmp_path):
    """Averaged by hand; of two checkpoints, of which the first is made the best."""
    run = shutil.copytree(runs("a2c, gossip, mlp"), tmp_path / "run")
    first = checkpoints.newest(run)
    last = first + 1
    shutil.copytree(layout.checkpoint_file(run, first, 0).parent, layout.checkpoint_file(run, last, 0).parent)
    for number, rank in ((first, 0), (last, 0), (last, 1)):
        with files.revised(layout.checkpoint_file(run, number, rank)) as file:
            file.attrs["score"] = 900.0 if number == first else 800.0
            file.attrs["games"] = 100
            file["learner/parameters"][:] += float(number == last)
    for name, number in (("best", first), ("last", last), (last, last), (str(first), first)):
        states = [checkpoints.load(run, number, rank) for rank in range(2)]
        vectors = [state.learner["parameters"].astype(np.float64) for state in states]
        assert not np.array_equal(*vectors)
        for agent, vector in (("mean", sum(vectors) / 2), (0, vectors[0]), (1, vectors[1])):
            found = gala_mpi.load_policy(run, name, agent).module.network.state_dict()
            for entry in states[0].policy["parameters"]:
                numbers = found[entry["name"]].flatten().double().numpy()
                np.testing.assert_allclose(numbers, vector[entry["offset"] :][: len(numbers)], rtol=1e-6)


def test_a_checkpoint_that_does_not_say_what_it_is_of(runs, tmp_path):
    """As those of old runs: the environment tells."""
    run = shutil.copytree(runs("a2c, gossip, mlp"), tmp_path / "run")
    number = checkpoints.newest(run)
    for rank in range(2):
        with files.revised(layout.checkpoint_file(run, number, rank)) as file:
            del file["policy"]
    (games,) = [games for agent, games in choices(run, "newest") if agent == evaluate.MEAN]
    assert_chooses(gala_mpi.load_policy(run, "last"), games)


BAD: dict[str, tuple[tuple, str]] = {
    "nothing": ((), "export run: --torch FILE.pt, --onnx FILE.onnx or --config FILE.toml is expected"),
    "ending": (("--torch", "policy.onnx"), "--torch policy.onnx: a name that ends in .pt or .pth is expected"),
    "onnx": (("--onnx", "policy.pt"), "--onnx policy.pt: a name that ends in .onnx is expected"),
    "toml": (("--config", "run.json"), "--config run.json: a name that ends in .toml is expected"),
    "folder": (("--onnx", "no/policy.onnx"), "--onnx no/policy.onnx: a file in a folder that exists is expected"),
    "agent": (("--torch", "p.pt", "--agent", "best"), "--agent best: mean, ema or a rank is expected"),
    "rank": (("--torch", "p.pt", "--agent", "2"), "agent 2: mean, ema or a rank (0, 1) is expected"),
    "word": (
        ("--torch", "p.pt", "--checkpoint", "worst"),
        "checkpoint worst: newest, best or a checkpoint's number",
    ),
    "number": (("--torch", "p.pt", "--checkpoint", "77"), "checkpoint 77: a complete checkpoint of run is expected ("),
    "network": (
        ("--torch", "p.pt", "--network", "nets:features"),
        "--network nets:features: mlp, which the run has,",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(what, runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").symlink_to(runs("a2c, gossip, mlp"))
    monkeypatch.chdir(tmp_path)
    flags, words = BAD[what]
    assert export.main(["run", *flags]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"gala_mpi: {words}") and said.err.count("\n") == 1 and not said.out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_other_things_than_a_run_are_one_line(runs, tmp_path, capsys):
    shared = runs("vtrace, server, lstm")
    with pytest.raises(SettingError, match="agent 0: mean, since agents of --exchange server share one vector, is expected"):
        gala_mpi.load_policy(shared, agent=0)
    assert export.main([str(tmp_path), "--torch", str(tmp_path / "p.pt")]) == 2
    assert capsys.readouterr().err == f"gala_mpi: run directory {tmp_path}: a run is expected there, but it has no run.h5\n"
    gala_mpi.load_policy(shared).save(tmp_path / "p.pt")
    with pytest.raises(SettingError, match=r"p.pt: agent 1: none, since the file has one policy, is expected"):
        gala_mpi.load_policy(tmp_path / "p.pt", agent=1)
    run = shutil.copytree(runs("a2c, gossip, mlp"), tmp_path / "run")
    path = layout.checkpoint_file(run, checkpoints.newest(run), 1)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SettingError, match=r"checkpoint \d+: .*rank00001.h5 is damaged or deleted"):
        gala_mpi.load_policy(run, int(path.parent.name))
    gala_mpi.load_policy(run, int(path.parent.name), agent=0)  # whose own file is sound


def test_the_settings_of_a_run_are_those_of_the_next_one(runs, tmp_path):
    """But for the command's own."""
    run = runs("vtrace, server, lstm")
    assert export.main([str(run), "--config", str(tmp_path / "run.toml")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
    settings = config.parse(config_file.expand(["--config", str(tmp_path / "run.toml")]))
    assert settings == dataclasses.replace(reader.read_config(run), config=None, run_dir=None)


WITHOUT_MPI = """
import json, sys
import numpy as np
from gala_mpi import export, load_policy

run, folder = sys.argv[1:]
assert export.main([run, "--checkpoint", "last", "--torch", f"{folder}/p.pt", "--onnx", f"{folder}/p.onnx"]) == 0
for source in (run, f"{folder}/p.pt"):
    policy = load_policy(source, "last") if source == run else load_policy(source)
    environment = policy.environment()
    observation, _ = environment.reset(seed=1)
    actions = []
    for _ in range(30):
        action = policy.act(observation)
        actions.append(action.tolist())
        observation, *_, info = environment.step(action)
        if info["return_over"]:
            policy.reset()
    print(json.dumps(actions))
assert "mpi4py" not in sys.modules
"""


def test_a_machine_without_mpi(runs, tmp_path):
    """Nor is mpi4py there."""
    run, program = runs("vtrace, server, lstm"), tmp_path / "program.py"
    program.write_text(WITHOUT_MPI)
    done = run_without(("mpi4py",), program, run, tmp_path, paths=str(ROOT))
    assert done.returncode == 0, done.stderr
    *written, one, other = done.stdout.splitlines()
    assert written == [f"written: {tmp_path / name}" for name in ("p.pt", "p.onnx")]
    assert one == other and len(json.loads(one)) == 30


def test_the_command_as_users_type_it(runs, tmp_path):
    run = runs("a2c, gossip, mlp")
    command = [sys.executable, "-m", "gala_mpi.export", str(run), "--torch", "p.pt", "--agent", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=launch.environment(), capture_output=True, text=True, timeout=launch.HANGS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "written: p.pt\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["p.pt"]
    settings = json.loads(torch.load(tmp_path / "p.pt", weights_only=True)["settings"])
    assert settings["env"] == reader.read_config(run).env and settings["run_dir"] is None
