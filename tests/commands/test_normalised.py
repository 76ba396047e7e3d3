"""`--normalise-observations --normalise-rewards`: statistics are what the environments' own diaries say, on every exchange."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from diary_pole import DiaryPole, diaries
from test_policy import documented

from commandline import TRAIN, complaints, parameters, states, table, train
from gala_mpi.games import game_seeds
from gala_mpi.run import checkpoints, files, layout
from launch import mpirun

N, T, GAMMA = 4, 5, 0.99
UPDATES = 20
BOTH = ("--normalise-observations", "--normalise-rewards")
SIZES = (1, 4, 4, 4, 1, 1, 1, 1)  # count, offset, sum, squares of the observations; of the returns
TRUNCATED = 40  # steps, after which an episode of DiaryPole is cut off


class Statistics(NamedTuple):
    """Count, and mean and variance of each number."""

    count: float
    mean: np.ndarray
    variance: np.ndarray


def of_vector(vector: np.ndarray) -> tuple[Statistics, Statistics]:
    """Those of observations and of returns at the end of a vector of parameters."""
    parts = np.split(vector[-sum(SIZES) :].astype(np.float64), np.cumsum(SIZES)[:-1])
    return tuple(_of_sums(*part) for part in (parts[:4], parts[4:]))


def _of_sums(count, offset, total, squares) -> Statistics:
    shift = total / count
    return Statistics(float(count[0]), offset + shift, squares / count - shift**2)


def returns(rows: np.ndarray) -> np.ndarray:
    """G_t = γ G_{t-1} + r_t, anew in each episode, of each step of a diary [steps, N, 6] → [steps, N]."""
    found = np.zeros(rows.shape[:2])
    for i in range(rows.shape[1]):
        following, length = 0.0, 0
        for t, (reward, over) in enumerate(rows[:, i, 4:]):
            found[t, i] = following = GAMMA * following + reward
            length += 1
            if over or length == TRUNCATED:
                following, length = 0.0, 0
    return found


def of_rows(*diaries: np.ndarray) -> tuple[Statistics, Statistics]:
    """Those of all that several diaries say."""
    seen = np.concatenate([rows[..., :4].reshape(-1, 4) for rows in diaries])
    returned = np.concatenate([returns(rows).reshape(-1, 1) for rows in diaries])
    return tuple(Statistics(len(each), each.mean(0), each.var(0)) for each in (seen, returned))


def assert_same(found: tuple[Statistics, Statistics], expected: tuple[Statistics, Statistics], share: float = 1) -> None:
    """`share`: of what all have counted an agent has."""
    for one, other in zip(found, expected, strict=True):
        assert one.count == pytest.approx(share * other.count, rel=1e-5)
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(one.variance, other.variance, rtol=1e-3, atol=1e-6)


@pytest.fixture
def played(tmp_path, importable_here):
    """Trains some ranks on DiaryPole → the run; their diaries are in tmp_path."""

    def play(n: int, name: str, *flags: object, updates: int = UPDATES) -> Path:
        (tmp_path / name).mkdir()
        env = ("--env", "diary_pole:DiaryPole-v0", "--env-kwargs", f"folder={tmp_path / name}", "--num-envs", N)
        train(n, tmp_path / f"{name}-run", *env, *BOTH, *flags, "--total-steps", n * updates * N * T)
        return tmp_path / f"{name}-run"

    return play


def of_run(tmp_path: Path, name: str, n: int) -> list[np.ndarray]:
    return [diaries(tmp_path / name, rank) for rank in range(n)]


# Whose numbers are counted


def test_one_rank_has_those_of_all_that_it_has_seen(played, tmp_path):
    run = played(1, "one", updates=60)
    (rows,) = of_run(tmp_path, "one", 1)
    assert rows.shape == (60 * T, N, 6) and rows[..., 5].sum() > 10
    (vector,) = parameters(run, 1)
    assert_same(of_vector(vector), of_rows(rows))
    observed, returned = of_vector(vector)
    assert observed.mean[0] > 90 and (observed.variance > 0).all() and returned.variance > 10


def test_allreduce_has_those_of_all_ranks(played, tmp_path):
    run = played(2, "all", "--exchange", "allreduce")
    one, other = parameters(run, 2)
    assert np.array_equal(one, other)
    assert_same(of_vector(one), of_rows(*of_run(tmp_path, "all", 2)), share=1 / 2)


def test_the_servers_vector_has_those_of_all_ranks(played, tmp_path):
    run = played(2, "server", "--exchange", "server")
    one, other = parameters(run, 2)
    assert np.array_equal(one, other)
    assert_same(of_vector(one), of_rows(*of_run(tmp_path, "server", 2)), share=1 / 2)


@pytest.mark.parametrize("updates", [pytest.param(10, marks=pytest.mark.long), 13])
def test_periodic_averages_are_those_of_all_ranks(played, tmp_path, updates):
    """At every 5th update; what an agent has seen since is its own."""
    run = played(2, "periodic", "--exchange", "periodic", "--sync-updates", 5, updates=updates)
    both, joined = of_run(tmp_path, "periodic", 2), updates // 5 * 5 * T
    for vector, own in zip(parameters(run, 2), both):
        found, (together, _), (alone, _) = of_vector(vector)[0], of_rows(*(rows[:joined] for rows in both)), of_rows(own)
        since = own[joined:, :, :4].reshape(-1, 4)
        count = together.count / 2 + len(since)
        assert found.count == pytest.approx(count) and alone.count == len(own) * N
        mean = (together.count / 2 * together.mean + since.sum(0)) / count
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-4)


@pytest.mark.long
def test_without_an_exchange_each_has_its_own(played, tmp_path):
    run = played(2, "none", "--exchange", "none")
    for vector, rows in zip(parameters(run, 2), of_run(tmp_path, "none", 2)):
        assert_same(of_vector(vector), of_rows(rows))


def test_gossip_averages_them_with_its_weights(played, tmp_path):
    """In lock-step, on a graph whose weights differ: sums of each update are added, then averaged."""
    (tmp_path / "two.txt").write_text("0 0 0.7\n0 1 0.3\n1 1 0.6\n1 0 0.4\n")
    run = played(2, "gossip", "--staleness", 0, "--topology", tmp_path / "two.txt")
    both, weights = of_run(tmp_path, "gossip", 2), np.array([[0.7, 0.3], [0.4, 0.6]])
    offset = both[0][0, :, :4].mean(0)
    numbers = [np.concatenate([rows[..., :4] - offset, returns(rows)[..., None]], axis=2) for rows in both]
    sums = np.zeros((2, 1 + 5 + 5))
    for update in range(UPDATES):
        for rank, rows in enumerate(numbers):
            new = rows[update * T : (update + 1) * T].reshape(-1, 5)
            sums[rank] += np.concatenate([[len(new)], new.sum(0), np.square(new).sum(0)])
        sums = weights @ sums
    for vector, (count, *more) in zip(parameters(run, 2), sums):
        shift, squares = np.split(np.array(more) / count, 2)
        mean, variance = shift + np.append(offset, 0), squares - shift**2
        expected = Statistics(count, mean[:4], variance[:4]), Statistics(count, mean[4:], variance[4:])
        assert_same(of_vector(vector), expected)


# Stopped, resumed, replayed, played


def test_stopped_and_resumed_equals_never_stopped(played, tmp_path):
    flags = ("--exchange", "allreduce", "--exact-resume", "--checkpoint-updates", 10)
    whole, parts = played(2, "whole", *flags, updates=30), played(2, "parts", *flags, updates=10)
    train(2, parts, "--resume", "--total-steps", 2 * 30 * N * T)
    for mine, theirs in zip(states(whole, 2), states(parts, 2), strict=True):
        assert all(np.array_equal(value, theirs.learner[name]) for name, value in mine.learner.items())
    for column in ("policy_loss", "value_loss", "grad_norm", "step_norm"):
        assert np.array_equal(table(whole, 0, "updates")[column], table(parts, 0, "updates")[column])
    assert of_vector(parameters(parts, 2)[0])[0].count == 30 * N * T


def test_an_elastic_resume_goes_on_counting(played, tmp_path):
    """Two agents become one."""
    run = played(2, "elastic", "--exchange", "periodic", "--sync-updates", 1000)
    before = [of_vector(vector) for vector in parameters(run, 2)]
    (tmp_path / "elastic").rename(tmp_path / "first")
    (tmp_path / "elastic").mkdir()
    train(1, run, "--resume", "--total-steps", (2 * UPDATES + 10) * N * T)
    (vector,) = parameters(run, 1)
    new = diaries(tmp_path / "elastic", 0)[..., :4].reshape(-1, 4)
    old = before[0][0]  # agents of `periodic` that leave hand nothing on
    assert old.count == UPDATES * N * T
    found = of_vector(vector)[0]
    assert found.count == old.count + len(new)
    np.testing.assert_allclose(found.mean, (old.count * old.mean + new.sum(0)) / found.count, rtol=1e-5, atol=1e-4)


@pytest.mark.long
def test_a_replay_repeats_bit_for_bit(played, tmp_path):
    run = played(2, "free", "--slow-rank", "1:2ms", "--staleness", 4)
    said = train(2, tmp_path / "again", "--replay", run).stdout
    assert f"that of {run}, bit for bit" in said
    for one, other in zip(parameters(run, 2), parameters(tmp_path / "again", 2), strict=True):
        assert np.array_equal(one, other)


def test_evaluate_plays_with_them(played, tmp_path):
    """The scores are those of the documented policy in environments played by hand, with its rewards as they are."""
    run = played(2, "evaluated")
    result = mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 3)
    assert result.returncode == 0, result.stderr
    number, names = checkpoints.newest(run), documented()
    read = [names["read_policy"](layout.checkpoint_file(run, number, rank)) for rank in range(2)]
    about = read[0][0]
    assert about["observations"]["normalised"] == {"sums": "observation_sums", "offset": 0, "epsilon": 1e-8, "bound": 10.0}
    assert about["rewards"] == {"normalised": {"sums": "return_sums", "epsilon": 1e-8, "bound": 10.0}}
    policies = {rank: parameters for rank, (_, parameters) in enumerate(read)}
    policies[-1] = {name: (value + read[1][1][name]) / 2 for name, value in read[0][1].items()}
    games = evaluated(run)
    for policy, values in policies.items():
        mine = np.sort(games[games["policy"] == policy], order="game")
        scores = [by_hand(tmp_path, names["run_policy"], about, values, seed) for seed in game_seeds(1, range(3))]
        np.testing.assert_allclose(mine["score"], scores, rtol=1e-5)


def evaluated(run: Path) -> np.ndarray:
    with files.reading(layout.run_file(run)) as file:
        group = file["evaluations"]
        return group[max(group, key=int)][()]


def by_hand(folder: Path, run_policy, about: dict, values: dict, seed: int) -> float:
    pole = gymnasium.wrappers.TimeLimit(DiaryPole(folder), TRUNCATED)
    observation, _ = pole.reset(seed=int(seed))
    score, over = 0.0, False
    while not over:
        outputs, *_ = run_policy(about, values, torch.from_numpy(observation)[None])
        observation, reward, terminated, truncated, _ = pole.step(int(outputs.argmax()))
        score, over = score + reward, terminated or truncated
    return score


@pytest.mark.parametrize(
    "flag", ["--no-normalise-observations", pytest.param("--no-normalise-rewards", marks=pytest.mark.long)]
)
def test_a_run_keeps_its_choice(played, flag):
    run = played(1, "kept", updates=2)
    result = mpirun(1, *TRAIN, "--resume", "--run-dir", run, flag, "--total-steps", 1000)
    (line,) = complaints(result)
    assert result.returncode == 2
    assert line == f"gala_mpi: --{flag.removeprefix('--no-')} False: the run in {run} has True, and goes on with it"
