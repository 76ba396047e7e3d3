"""`python -m gala_mpi.evaluate RUN`, as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest

import gala_mpi
import launch
from commandline import SMALL, complaints, plain, train
from gala_mpi import evaluate
from gala_mpi.config import AtariSettings, Config
from gala_mpi.envs import film, registry
from gala_mpi.errors import SettingError
from gala_mpi.evaluate import GAMES
from gala_mpi.games import game_seeds
from gala_mpi.run import checkpoints, files, layout
from gala_mpi.run.policies import EMA, MEAN
from launch import mpirun

EVALUATE = ("-m", "gala_mpi.evaluate")
IMPATIENT = Path(__file__).with_name("impatient.py")


@pytest.fixture(scope="module")
def pole(tmp_path_factory):
    """A run of two agents that have learnt a little."""
    run = tmp_path_factory.mktemp("pole") / "run"
    train(2, run, *SMALL, "--total-steps", 8000, "--checkpoint-minutes", 0.02, "--ema", 0.9)
    return run


@pytest.fixture(scope="module")
def pong(tmp_path_factory):
    run = tmp_path_factory.mktemp("pong") / "run"
    train(1, run, "--env", "pong", "--total-steps", 800, "--precision", "fp32")
    return run


def evaluations(run) -> list[tuple[np.ndarray, dict]]:
    with files.reading(layout.run_file(run)) as file:
        group = file.get("evaluations", {})
        return [(group[name][()], dict(group[name].attrs)) for name in sorted(group, key=int)]


def test_every_agent_and_the_mean_play_the_same_games_on_any_number_of_ranks(pole):
    said = [mpirun(n, *EVALUATE, pole, "--episodes", 5) for n in (1, 3)]
    assert all(result.returncode == 0 for result in said), said[0].stderr + said[1].stderr
    (one, metadata), (three, _) = evaluations(pole)[-2:]
    assert metadata["arg_max"]
    assert {(row["policy"], row["game"]) for row in one} == {(p, g) for p in (0, 1, MEAN) for g in range(5)}
    assert np.array_equal(np.sort(one), np.sort(three))
    assert len(np.unique(one["score"])) > 1
    for policy, name in ((0, "agent 0"), (1, "agent 1"), (MEAN, "mean of all agents")):
        scores = one["score"][one["policy"] == policy].astype(float)
        error = np.sqrt(((scores - scores.mean()) ** 2).sum() / 4) / np.sqrt(5)
        cells = re.search(rf"{name} *│ *([\d.]+) *│ *([\d.]+)", said[0].stdout)
        assert [float(cell) for cell in cells.groups()] == pytest.approx([scores.mean(), error], abs=0.06)


@pytest.mark.parametrize("policies, name, code", [("mean", "parameters", MEAN), ("ema", "ema", EMA)])
def test_scores_are_those_of_the_policy_played_by_hand(pole, policies, name, code):
    """One game at a time, in a plain gymnasium environment, with the parameters averaged by hand."""
    import gymnasium
    import torch

    from gala_mpi.flat import Flat
    from gala_mpi.networks.policy import Network

    number = checkpoints.newest(pole)
    vectors = [checkpoints.load(pole, number, rank).learner[name] for rank in range(2)]
    network = Network("mlp", registry.make("CartPole-v1", 1).spaces)
    Flat(network).data.copy_(torch.from_numpy((vectors[0] + vectors[1]) / 2))
    loaded = gala_mpi.load_policy(pole, number, policies).module.network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
    scores = []
    for seed in game_seeds(1, range(3)):
        game = gymnasium.make("CartPole-v1")
        observation, _ = game.reset(seed=int(seed))
        score, over = 0.0, False
        while not over:
            action = network(torch.from_numpy(observation)[None])[0].logits.argmax().item()
            observation, reward, terminated, truncated, _ = game.step(action)
            score, over = score + reward, terminated or truncated
        scores.append(score)
    result = mpirun(2, *EVALUATE, pole, "--episodes", 3, "--policies", policies)
    assert result.returncode == 0, result.stderr
    games, _ = evaluations(pole)[-1]
    assert set(games["policy"]) == {code}
    assert np.sort(games, order="game")["score"].tolist() == scores


@pytest.mark.parametrize("suffix", ["mp4", pytest.param("gif", marks=pytest.mark.long)])
def test_film(pong, suffix):
    film = pong / f"film.{suffix}"
    result = mpirun(1, IMPATIENT, pong, "--episodes", 1, "--policies", "mean", "--video", film)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^200 steps of one game filmed$", result.stdout, re.MULTILINE)
    frames = imageio.imread(film)
    games, _ = evaluations(pong)[-1]
    assert games.dtype == GAMES
    shown = games["length"][0] + 1
    assert 0.95 * shown < len(frames) <= shown + 2  # encoders may join frames that are equal
    assert frames.shape[1:] == (420, 640, 3)
    assert frames[len(frames) // 2].std() > 5
    assert not list(pong.glob(".*tmp*"))


def test_the_screen_shows_the_game_that_is_played():
    """The twin's colours, made grey and small, are the newest frame of the observation."""
    environments = film.make_filmed("breakout")
    environments.reset(np.array([3]))
    rng = np.random.default_rng(0)
    for _ in range(300):
        step = environments.step(rng.integers(4, size=1))
        grey = cv2.cvtColor(environments.screen()[::2, ::4], cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(small - step.observations[0, -1]).mean() < 1
    environments.close()


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--checkpoint", 77), "--checkpoint 77"),
        (("--video", "/nowhere/film.mp4"), "/nowhere/film.mp4"),
    ],
)
def test_bad_input_is_one_line(pole, flags, words):
    before = evaluations(pole) if "evaluations" in h5_names(pole) else []
    result = mpirun(2, *EVALUATE, pole, *flags)
    assert result.returncode == 2
    (line,) = complaints(result)
    assert words in line
    assert len(evaluations(pole) if "evaluations" in h5_names(pole) else []) == len(before)


def test_a_run_without_moving_averages_is_refused(pong):
    result = mpirun(2, *EVALUATE, pong, "--policies", "ema")
    (line,) = complaints(result)
    assert result.returncode == 2 and " has no moving average; one of a run with --ema is expected" in line


def test_a_damaged_checkpoint_is_one_line(pole, tmp_path):
    """It is refused where it was asked for by its number; as the best one it is passed over."""
    run = shutil.copytree(pole, tmp_path / "run")
    before = checkpoints.best(run)
    number = max(checkpoints.numbers(run)) + 1  # of the same score, and later
    shutil.copytree(layout.checkpoint_file(run, before, 0).parent, layout.checkpoint_file(run, number, 0).parent)
    assert checkpoints.best(run) == number
    damaged = layout.checkpoint_file(run, number, 1)
    damaged.write_bytes(damaged.read_bytes()[:5000])
    result = mpirun(2, *EVALUATE, run, "--checkpoint", number)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (line,) = complaints(result)
    assert line.startswith(f"gala_mpi: --checkpoint {number}: {damaged} is damaged")
    result = mpirun(2, *EVALUATE, run, "--checkpoint", "best")
    (line,) = complaints(result)
    assert line.startswith(f"gala_mpi: {damaged} is damaged and passed over")
    assert result.returncode == 0 and f"checkpoint {before}," in result.stdout


def test_checkpoints_may_go_once_the_games_have_begun(pole, tmp_path):
    """As under a run that goes on, which keeps its newest ones."""
    run = shutil.copytree(pole, tmp_path / "run")
    result = mpirun(1, Path(__file__).with_name("pruned.py"), run, "--episodes", 2)
    assert result.returncode == 0, result.stderr
    assert not (run / "checkpoints").exists()
    games, _ = evaluations(run)[-1]
    assert sorted(games["policy"]) == [MEAN, MEAN, 0, 0, 1, 1]


def test_a_log_shows_how_far_the_games_of_all_ranks_are(pole):
    """Every 10 s; here at once."""
    result = mpirun(3, IMPATIENT, pole, "--episodes", 5)
    assert result.returncode == 0, result.stderr
    assert plain(result.stdout)
    said = re.findall(r"^(\d+) of 15 games played, (?:–|\d:\d\d:\d\d) left$", result.stdout, re.MULTILINE)
    played = [int(number) for number in said]
    assert played == sorted(played) and played[0] < 15 and played[-1] == 15


def test_games_are_played_and_filmed_by_the_protocol_of_the_run():
    """Here they are cut off after 40 frames, 2 a step."""
    protocol = AtariSettings(frame_skip=2, frame_limit=40)
    settings = Config(env="ALE/Breakout-v5", network="gala", precision="fp32", atari=protocol)
    environments = film.make_filmed(settings.env, **settings.env_options)
    environments.reset(np.array([3]))
    steps = [environments.step(np.array([0])) for _ in range(20)]
    assert [bool(step.truncated[0]) for step in steps] == [False] * 19 + [True]
    assert environments.frames_per_second == 30
    environments.close()
    assert lengths_of_games(settings) == [20, 20]


def lengths_of_games(settings: Config) -> list[int]:
    """Of two games that a network as it begins plays, in evaluating a run with these settings."""
    _, flat = evaluate.make_network(settings, registry.try_out(settings.env, **settings.env_options).spaces)
    selection = evaluate.Selection(evaluate.Evaluation(Path("run"), episodes=2), settings, 1, [0])
    world, played = SimpleNamespace(rank=0, size=1, threads=1), SimpleNamespace(count=lambda games: None)
    environments, games, cut = evaluate.play_my_share(selection, {0: flat.data.numpy()}, world, played)
    assert environments and not cut
    environments.close()
    return games["length"].tolist()


def test_games_are_played_with_the_keywords_and_wrappers_of_the_run():
    kwargs, wrappers = ("max_episode_steps=4",), ("TimeAwareObservation", "RepeatAction:2")
    settings = Config(env="MountainCar-v0", network="mlp", precision="fp32", env_kwargs=kwargs, wrappers=wrappers)
    assert lengths_of_games(settings) == [2, 2]


def test_an_environment_with_other_spaces_than_the_runs_is_one_line(pole, monkeypatch):
    assert evaluate.choose([str(pole)]).settings.env == "CartPole-v1"
    monkeypatch.setattr(Config, "env_options", {"wrappers": ("FrameStackObservation:2",)})
    with pytest.raises(SettingError, match=r"a network of 4,931 parameters, the run's has 4,675; .*expected"):
        evaluate.choose([str(pole)])


def test_games_are_kept_when_nobody_reads_of_them(pole):
    """`| head`: here the reader has left before anything is written."""
    before = evaluations(pole)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, *EVALUATE, str(pole), "--episodes", "2"]
    subprocess.run(command, stdout=writing, stderr=subprocess.DEVNULL, env=launch.environment(), timeout=launch.HANGS)
    os.close(writing)
    assert len(evaluations(pole)) == len(before) + 1


def test_games_that_are_too_long_are_cut_off(pole):
    result = mpirun(2, *EVALUATE, pole, "--episodes", 3, "--policies", "mean", "--max-steps", 5)
    assert result.returncode == 0, result.stderr
    assert "3 of 3 games were cut off by --max-steps 5: scores are of these steps" in result.stdout
    games, metadata = evaluations(pole)[-1]
    assert games["length"].tolist() == [5] * 3 and games["score"].tolist() == [5] * 3
    assert (metadata["max_steps"], metadata["cut"]) == (5, 3)


def test_ctrl_c_is_one_line_of_each_rank(pole):
    with launch.Job(2, *EVALUATE, pole, "--episodes", 100_000) as job:
        job.wait_until(lambda: len(job.ranks()) == 2 and "games played" in job.stdout + job.stderr)
        for rank in job.ranks():
            os.kill(rank, signal.SIGINT)
        ended = job.wait()
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    assert all("is interrupted; the job ends." in line for line in complaints(ended)) and complaints(ended)


def test_no_run(tmp_path):
    result = mpirun(1, *EVALUATE, tmp_path)
    assert result.returncode == 2
    (line,) = complaints(result)
    assert line == f"gala_mpi: run directory {tmp_path}: a run is expected there, but it has no run.h5"


def h5_names(run) -> list[str]:
    with files.reading(layout.run_file(run)) as file:
        return list(file)
