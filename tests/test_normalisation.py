"""Running statistics of observations and returns: by definition, recomputed from everything that was seen."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from test_rollout import GAMMA, KINDS, SEEDS, N, Recorded, T

from batches import made_up
from gala_mpi import topology
from gala_mpi.clock import Clock
from gala_mpi.config import A2CSettings, Config
from gala_mpi.device import cuda_graph
from gala_mpi.envs.base import Spaces
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.flat import Flat
from gala_mpi.job import build, elastic, resume
from gala_mpi.job.schedule import Checkpoints
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.mpi.world import World
from gala_mpi.networks.policy import Network
from gala_mpi.networks.statistics import BOUND, EPSILON, LARGEST, Sums
from gala_mpi.rollout import cached, tally
from gala_mpi.rollout import collector as collecting
from gala_mpi.rollout.cached import Cached
from gala_mpi.rollout.collector import Collector, _Room
from gala_mpi.rollout.stored import Stored
from gala_mpi.rollout.tally import AT_ONCE, Counter, Tally
from gala_mpi.topology import Graph
from gpu import Gpu, by_torch_alone

VECTORS = Spaces((4,), False, 3)
PACKED = Spaces((2 * 7 * 9 + 4 + 3,), False, 3, image_shape=(2, 7, 9), masked=True)
BOTH = {"normalise_observations": True, "normalise_rewards": True}
STEPS = 6


# The sums


def add(sums: Sums, additions: np.ndarray) -> None:
    """As an update does: in float32."""
    parameters = list(sums.parameters())
    for parameter, part in zip(parameters, torch.from_numpy(additions).split([len(each) for each in parameters])):
        parameter += part


def count(sums: Sums, rollouts: list[np.ndarray]) -> None:
    """Count rollouts of rows, [n, size] each."""
    counter = Counter(sums)
    for rows in rollouts:
        counter.begin()
        counter.count(rows)
        add(sums, counter.additions())


def vector(sums: Sums) -> np.ndarray:
    return torch.cat(list(sums.parameters())).double().numpy()


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of all rows."""
    return rows.astype(np.float64).mean(0), rows.astype(np.float64).std(0)


def test_numbers_are_scaled_by_the_mean_and_variance_of_what_was_counted():
    rng, sums = np.random.default_rng(0), Sums(3)
    rollouts = [rng.normal([0, 5, -2], [1, 0.3, 7], (20, 3)) for _ in range(50)]
    count(sums, rollouts)
    mean, deviation = moments(np.concatenate(rollouts))
    x = rng.normal([0, 5, -2], [1, 0.3, 7], (9, 3)).astype(np.float32)
    x[0] = 1e6, -1e6, 1e6
    expected = np.clip((x - mean) / np.sqrt(deviation**2 + EPSILON), -BOUND, BOUND)
    np.testing.assert_allclose(sums.scaling()(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[0]).tolist() == [BOUND] * 3


@pytest.mark.parametrize("steps", [1, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 3])
def test_a_rollout_of_any_length_is_counted_whole_and_as_it_was(steps):
    """Step by step, by a caller who writes over what was counted; nothing is left for the next one."""
    sums, shown, seen = Sums(2), np.zeros((3, 2), np.float32), []
    counter = Counter(sums)
    for rollout in range(2):
        counter.begin()
        for step in range(steps):
            shown[:] = np.random.default_rng([rollout, step]).normal(size=(3, 2))
            seen.append(shown.copy())
            counter.count(shown)
        add(sums, counter.additions())
    rows = np.concatenate(seen).astype(np.float64)
    expected = [len(rows), 0, 0, *rows.sum(0), *np.square(rows).sum(0)]
    np.testing.assert_allclose(vector(sums), expected, rtol=1e-5, atol=1e-4)


def test_before_anything_is_counted_numbers_stay_as_they_are():
    x = torch.tensor([[1e6, -3.0]])
    assert torch.equal(Sums(2).scaling()(x), x)


def test_a_number_that_never_changes_becomes_0():
    sums, rows = Sums(2), np.tile(np.float32([1e6, 0.1]), (8, 1))
    sums.centre(rows.mean(0, dtype=np.float64))
    count(sums, [rows] * 100)
    assert torch.equal(sums.scaling()(torch.from_numpy(rows)), torch.zeros(8, 2))


@pytest.mark.parametrize("mean, deviation", [(100, 0.1), (-1e4, 0.1), (0, 1e-3)])
def test_large_numbers_that_differ_by_little_are_told_apart(mean, deviation):
    """The offset is one of them: in the sums of the numbers' own squares the variance would be lost in the digits."""
    rng, sums = np.random.default_rng(0), Sums(1)
    rows = rng.normal(mean, deviation, (200_000, 1)).astype(np.float32)
    sums.centre(rows[0])
    count(sums, np.split(rows, 2000))
    expected, spread = (float(each[0]) for each in moments(rows))
    scaling = sums.scaling()
    assert abs(float(scaling.mean) - expected) < 1e-3 * spread + 1e-7 * abs(mean)
    assert float(scaling.factor) * math.sqrt(spread**2 + EPSILON) == pytest.approx(1, rel=1e-4)


def test_a_variance_that_float32_has_no_digits_for_does_not_blow_numbers_up():
    """All are 1e6 from the offset, by ±1: of the variance, 1, sums of squares near 1e12 leave noise or less than nothing."""
    sums = Sums(1)
    sums.centre(np.zeros(1))
    count(sums, [1e6 + np.array([[-1.0], [1.0]]).repeat(n, axis=1).T.reshape(-1, 1) for n in (10, 7)])
    scaling = sums.scaling()
    assert float(scaling.factor) == pytest.approx((1e-5 * 1e6**2) ** -0.5, rel=1e-3)
    assert scaling(torch.tensor([[1e6 + 5]])).abs() < 1


def test_the_mean_of_sums_is_of_all_that_agents_have_counted():
    """One has counted three times as much as the other."""
    rng, agents = np.random.default_rng(0), [Sums(2), Sums(2), Sums(2)]
    rows = rng.normal(3, 2, (300, 2)), rng.normal(-1, 1, (100, 2))
    for sums, mine in zip(agents, rows):
        sums.centre(np.array([1.0, 2.0]))
        count(sums, np.split(mine, 10))
    for mixed, one, other in zip(agents[2].parameters(), agents[0].parameters(), agents[1].parameters(), strict=True):
        mixed.copy_((one + other) / 2)
    mean, deviation = moments(np.concatenate(rows))
    scaling = agents[2].scaling()
    np.testing.assert_allclose(scaling.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(1 / scaling.factor, deviation, rtol=1e-5)


def test_what_is_long_ago_weighs_less_and_less(monkeypatch):
    """Once MEMORY rows are counted, each rollout scales down what is there, so that no more are."""
    monkeypatch.setattr(tally, "MEMORY", 100)
    rng, sums = np.random.default_rng(0), Sums(1)
    sums.centre(np.array([5.0]))
    rollouts = [rng.normal(5 + k / 10, 1, (30, 1)) for k in range(20)]
    n = total = squares = 0.0
    for rows in rollouts:
        kept = min(1, (100 - 30) / n) if n else 1
        n, total, squares = kept * n + 30, kept * total + (rows - 5).sum(), kept * squares + ((rows - 5) ** 2).sum()
    count(sums, rollouts)
    assert n == pytest.approx(100)
    np.testing.assert_allclose(vector(sums), [n, 5, total, squares], rtol=1e-5)
    count(sums, [rng.normal(0, 1, (500, 1))])  # more at a time: that is all there is
    assert float(sums.count) == 500 and float(sums.scaling().mean) == pytest.approx(0, abs=0.2)


def test_numbers_that_are_too_large_to_be_squared_leave_the_sums_finite():
    sums, rows = Sums(2), np.float32([[1e38, -1e38], [1, 2]])
    sums.centre(rows[0])
    assert sums.offset.tolist() == pytest.approx([LARGEST, -LARGEST], rel=2**-16)
    count(sums, [rows] * 5)
    assert np.isfinite(vector(sums)).all() and torch.isfinite(sums.scaling()(torch.from_numpy(rows))).all()


def test_offsets_stay_as_they_are_when_up_to_256_agents_average_them():
    """By all-reduce, in any order: the sum of so many is exact, and a division is, too."""
    sums, rng = Sums(1000), np.random.default_rng(0)
    sums.centre(rng.normal(size=1000) * 10.0 ** rng.uniform(-6, 6, 1000))
    offset = sums.offset.detach().numpy()
    for agents in range(1, 257):
        total = np.zeros_like(offset)
        for _ in range(agents):
            total += offset
        assert np.array_equal(total / np.float32(agents), offset)


# In the network


def counted(network: Network, seed: int = 0) -> Network:
    """The network, as if its statistics were of some numbers."""
    rng = np.random.default_rng(seed)
    for sums in filter(None, (network.observation_sums, network.return_sums)):
        size = len(sums.sum)
        sums.centre(rng.normal(size=size))
        count(sums, [rng.normal(rng.normal(size=size), 1 + rng.random(size), (40, size))])
    return network


def test_a_network_sees_numbers_scaled_and_neither_pixels_nor_masks():
    torch.manual_seed(0)
    plain, network = Network("small", PACKED), Network("small", PACKED, **BOTH)
    network.load_state_dict(network.state_dict() | plain.state_dict())
    counted(network)
    x = torch.randn(50, *PACKED.observation_shape)
    x[:, -3:] = (torch.rand(50, 3) < 0.6).float()
    scaled = x.clone()
    pixels = 2 * 7 * 9
    scaling = network.observation_sums.scaling()
    assert len(scaling.mean) == 4
    scaled[:, pixels:-3] = ((x[:, pixels:-3] - scaling.mean) * scaling.factor).clamp(-10, 10)
    (policy, values), (expected, others) = network(x), plain(scaled)
    assert torch.equal(policy.logits, expected.logits) and torch.equal(values, others)
    assert not torch.equal(values, plain(x)[1])


def test_statistics_come_last_in_the_vector_and_are_not_drawn():
    torch.manual_seed(0)
    plain = Network("mlp", VECTORS)
    torch.manual_seed(0)
    network = Network("mlp", VECTORS, **BOTH)
    flat, before = Flat(network), Flat(plain)
    assert torch.equal(flat.learnt.data, before.data) and len(flat.counted.data) == 1 + 3 * 4 + 1 + 3
    assert flat.table[: len(before.table)] == before.table
    assert before.learnt.data.data_ptr() == before.data.data_ptr() and len(before.learnt.data) == len(before)
    assert len(before.counted.data) == 0
    flat.counted.data.fill_(7)
    assert all((parameter == 7).all() for parameter in network.return_sums.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_passes_are_ordinary_passes(precision):
    """Outputs and the gradient; observations are remembered as they came."""
    tolerance = 1e-5 if precision == "fp32" else 5e-2
    torch.manual_seed(0)
    network = Network("mlp", VECTORS, precision, **BOTH)
    flat = Flat(counted(network))
    seen = [5 * torch.randn(N, 4) for _ in range(T + 1)]
    passes = Cached(network, T, seen[0]), Stored(network, T, seen[0])
    for update in range(2):
        gradients = []
        for each in passes:
            each.load_parameters()
            values = torch.stack([each.forward(t, now)[1].detach() for t, now in enumerate(seen)])
            assert torch.equal(each.observations(), torch.stack(seen[:T]))
            policy, now = each.evaluate()
            torch.testing.assert_close(now.detach(), values[:T], rtol=tolerance, atol=tolerance)
            each.backward(policy.log_prob(torch.zeros(T, N, dtype=torch.long)).sum() + now.square().sum())
            gradients.append(flat.learnt.grad.clone())
        distance = torch.linalg.vector_norm(gradients[0] - gradients[1]) / torch.linalg.vector_norm(gradients[1])
        assert distance < tolerance
        counted(network, seed=update + 1)


# The learner


def new_learner(kind: type[A2C] = A2C, **options) -> A2C:
    torch.manual_seed(0)
    return kind(Network("mlp", VECTORS, **options), A2CSettings(optimiser="adam"), lr=1e-2)


def new_batch(network: Network, seed: int):
    rng = torch.Generator().manual_seed(seed)
    seen, rewards = torch.randn(T + 1, N, 4, generator=rng), torch.randn(T, N, generator=rng)
    actions = torch.randint(0, 3, (T, N), generator=rng)
    return made_up(network, seen, actions, rewards, torch.full((T, N), 0.9))


def additions(learner: A2C, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(learner.flat.counted.data), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_learnt_is_what_is_learnt_without_statistics(elsewhere):
    """Bit for bit, as long as nothing is scaled by them: steps, norms, the optimiser's state."""
    plain, learner = new_learner(), new_learner(normalise_rewards=True)
    expected = learner.flat.counted.data.clone()
    for seed in range(5):
        steps = []
        for each in (plain, learner):
            each.gradient(new_batch(each.network, seed))
            each.tally(additions(each, seed) if each is learner else None)
            room = torch.full((len(each.flat),), math.nan) if elsewhere else None
            steps.append(each.step(0.0, room))
            if room is not None:
                each.flat.data.copy_(room)
        expected += additions(learner, seed)
        assert steps[0] == steps[1] and steps[0].taken
        assert torch.equal(plain.flat.data, learner.flat.learnt.data)
        assert torch.equal(learner.flat.counted.data, expected)
    for name, value in plain.optimiser.state().items():
        assert np.array_equal(value, learner.optimiser.state()[name]), name


def test_outer_steps_leave_statistics_at_the_mean():
    learner = new_learner(**BOTH)
    learner.take_outer_steps(0.9, 0.7)
    learner.outer_step()
    before, end = learner.flat.data.clone(), len(learner.flat.learnt.data)
    learner.flat.data.add_(1)
    learner.outer_step()
    torch.testing.assert_close(learner.flat.learnt.data, before[:end] + 0.7 * 1.9)
    assert torch.equal(learner.flat.counted.data, before[end:] + 1)


def test_a_moving_average_has_the_newest_statistics():
    learner = new_learner(**BOTH)
    learner.keep_average(0.5)
    before = learner.flat.data.clone()
    learner.flat.data.add_(1)
    learner.average()
    ema, end = torch.from_numpy(learner.state()["ema"]), len(learner.flat.learnt.data)
    torch.testing.assert_close(ema[:end], before[:end] + 0.5)
    assert torch.equal(ema[end:], learner.flat.counted.data)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("broken", [slice(None), slice(0, 1)])
def test_a_step_that_is_not_taken_adds_nothing(elsewhere, broken):
    learner = new_learner(**BOTH)
    learner.flat.counted.data.normal_()
    before = learner.flat.data.clone()
    learner.gradient(new_batch(learner.network, 1))
    learner.tally(additions(learner))
    learner.flat.grad[broken] = math.nan
    room = torch.full_like(before, math.nan) if elsewhere else None
    assert not learner.step(0.0, room).taken
    assert torch.equal(learner.flat.data if room is None else room, before)


class Twice(A2C):
    """Takes each rollout in two parts, and remembers the statistics that it met."""

    def parts(self, batch):
        self.met = []
        return [batch, copy.copy(batch)]

    def loss(self, part) -> tuple[torch.Tensor, Losses]:
        self.met.append(self.flat.counted.data.clone())
        return super().loss(part)


def test_of_a_rollout_in_parts_statistics_are_added_once_and_at_the_end(world):
    agent = new_agent(world, "CartPole-v1")
    twice = agent.learner = Twice(agent.learner.network, A2CSettings(), 1e-3)
    stored = Stored(twice.network, T_OF_AGENT, agent.collector.observations[0])
    agent.collector._rooms = [_Room.of(stored, agent.collector._pass, T_OF_AGENT + 1, agent.collector.device)]
    agent.gradient = twice.gradient
    agent.start()
    for update in range(3):
        before = twice.flat.counted.data.clone()
        assert not agent.update().skipped
        assert len(twice.met) == 2 and all(torch.equal(met, before) for met in twice.met)
        assert float(twice.network.observation_sums.count) == (update + 1) * T_OF_AGENT * 2
    agent.close()


# The rollout


class Played:
    """A collector whose network keeps statistics, after some updates, and what the environments gave and got.

    Args:
        kind: of test_rollout.
    """

    def __init__(self, kind: str, path: str = "cached", updates: int = STEPS):
        torch.manual_seed(0)
        kind, _, overlapped = kind.partition(" ")
        turns = 2 if overlapped else 1
        self.environments = [Recorded(GymEnvironments(f"plan/{kind}-v0", N // turns), []) for _ in range(turns)]
        self.network = Network(KINDS[kind][0], self.environments[0].spaces, **BOTH)
        self.learner = A2C(self.network, A2CSettings(discount=GAMMA), lr=1e-3)
        self.collector = Collector(self.learner, self.environments, SEEDS, T, GAMMA, False, lambda: None, Clock())
        assert self.collector.passes.name == path
        self.batches, self.before = [], []
        gradient = cuda_graph(self.learner.gradient, torch.device("cpu"))
        for _ in range(updates):
            self.before.append(copy.deepcopy(self.network))
            batch, _ = self.collector.collect()
            self.batches.append({name: getattr(batch, name).clone() for name in ("rewards", "values", "next_values")})
            gradient(batch)
            self.learner.tally(batch.additions)
            assert self.learner.step(0.0).taken

    def seen(self, update: int) -> np.ndarray:
        """What was acted on up to an update, [n, 4]."""
        return np.concatenate([np.concatenate(each.shown[: update * T]) for each in self.environments])

    def of_all(self, name: str) -> np.ndarray:
        """What all environments gave at all steps, [steps, N]."""
        return np.concatenate([np.stack([getattr(step, name) for step in each.steps]) for each in self.environments], axis=1)

    def returns(self) -> np.ndarray:
        """G_t = γ G_{t-1} + r_t, anew in each episode, [steps, N]."""
        rewards, over = self.of_all("rewards").astype(np.float64), self.of_all("terminated") | self.of_all("truncated")
        returns = np.zeros_like(rewards)
        for i in range(N):
            following = 0.0
            for t in range(len(rewards)):
                returns[t, i] = following = GAMMA * following + rewards[t, i]
                following *= not over[t, i]
        return returns


kinds = pytest.mark.parametrize("kind", ["numbers", "box", "numbers overlapped"])
paths = pytest.mark.parametrize("path", ["cached", "stored"])


@pytest.fixture
def through(monkeypatch):
    def choose(path: str) -> None:
        if path == "stored":
            monkeypatch.setattr(cached, "fits", lambda network, learner: False)
            monkeypatch.setattr(collecting, "computed_again", lambda network, device: Stored)

    return choose


@kinds
@paths
def test_statistics_are_those_of_all_that_was_acted_on(kind, path, through):
    """Not of what bootstraps, nor of what is cut off."""
    through(path)
    played = Played(kind, path)
    for sums, rows in (
        (played.network.observation_sums, played.seen(STEPS)),
        (played.network.return_sums, played.returns().reshape(-1, 1)),
    ):
        assert float(sums.count) == len(rows) == STEPS * T * N
        mean, deviation = moments(rows)
        np.testing.assert_allclose(sums.scaling().mean, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(1 / sums.scaling().factor, deviation, rtol=1e-5)


@kinds
def test_a_rollout_is_played_by_what_was_known_before_it(kind):
    """Values while it is played and bootstraps are those of the network as it was, over raw observations scaled by hand."""
    played = Played(kind)
    assert len({float(network.observation_sums.count) for network in played.before}) == STEPS
    for update, (network, batch) in enumerate(zip(played.before, played.batches)):
        shown = [np.concatenate(each) for each in zip(*(half.shown for half in played.environments))]
        mean, deviation = moments(played.seen(update)) if update else (0, 1)
        plain = Network("mlp", network.spaces)
        plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
        for t in range(T + 1):
            x = (shown[update * T + t] - mean) / np.sqrt(np.square(deviation) + EPSILON * (update > 0))
            x = np.clip(x, -BOUND, BOUND) if update else x
            with torch.no_grad():
                _, values = plain(torch.from_numpy(x.astype(np.float32)))
            found = batch["values"][t] if t < T else batch["next_values"][-1]
            torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5)


@kinds
def test_rewards_are_divided_by_the_deviation_of_returns_and_cut_off_games_bootstrap(kind):
    played = Played(kind)
    rewards, returns = played.of_all("rewards"), played.returns()
    truncated = played.of_all("truncated")
    assert truncated.sum() > 5
    finals = [[step.final_observations for step in each.steps] for each in played.environments]
    for update, (network, batch) in enumerate(zip(played.before, played.batches)):
        deviation = math.sqrt(returns[: update * T].var() + EPSILON) if update else 1.0
        for t in range(T):
            for i in range(N):
                expected = float(np.clip(rewards[update * T + t, i] / deviation, -BOUND, BOUND))
                if truncated[update * T + t, i]:
                    turn, row = divmod(i, N // len(finals))
                    final = torch.from_numpy(finals[turn][update * T + t][row : row + 1])
                    with torch.no_grad():
                        expected += GAMMA * float(network(final)[1])
                assert float(batch["rewards"][t, i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rewards_are_clipped_to_the_bound():
    network = Network("mlp", VECTORS, normalise_rewards=True)
    known = Tally(network, 2, GAMMA)
    rewards, over = np.float32([1e-3, -1e-3]), np.zeros(2, bool)
    for reward in (rewards, np.float32([1e9, -1e9])):
        known.begin()
        scaled = known.scaled(reward, over, 0)
        add(network.return_sums, known.additions())
    assert scaled.tolist() == [BOUND, -BOUND] and scaled.dtype == np.float32


def test_new_episodes_begin_their_returns_anew():
    played = Played("numbers", updates=1)
    played.collector.reset(SEEDS)
    assert not played.collector._tally._returns.any()


@pytest.mark.parametrize("path", ["cached", "stored"])
@pytest.mark.parametrize("kind", ["numbers", "box overlapped"])
def test_training_by_graphs_is_training_bit_for_bit(kind, path, monkeypatch, through):
    through(path)
    by_torch_alone(monkeypatch)
    expected = Played(kind, path)
    gpu = Gpu(monkeypatch)
    found = Played(kind, path)
    assert len(gpu.graphs) > 3 and all(graph.replays for graph in gpu.graphs)
    assert torch.equal(found.learner.flat.data, expected.learner.flat.data)


# Another number of agents


@pytest.mark.parametrize("ranks", [2, 6])
def test_agents_go_on_from_the_mean_of_sums_or_from_copies(tmp_path, ranks):
    """On a ring agent 2 is read by agent 3 and that by agent 0: of four, agents 0, 2 and 3 become one."""
    rng = np.random.default_rng(0)
    rows = [rng.normal([100, 0, -5, 1], [0.1, 2, 1, 3], (40 * (rank + 1), 4)) for rank in range(4)]
    for rank, mine in enumerate(rows):
        learner = new_learner(**BOTH)
        learner.network.observation_sums.centre(rows[0][0])
        count(learner.network.observation_sums, np.split(mine, 4))
        Checkpoints(tmp_path, rank, Config(), 0).save(resume.take(learner, Config(), 4, 1.0, resume.Scores(2.0, 100, ())))
    origin = resume.resumable(tmp_path, "mlp", len(learner.flat))
    origin = dataclasses.replace(origin, shares=elastic.shares(topology.build(Graph("ring"), 4), 4, ranks))
    merged = {0: (0, 2, 3), 1: (1,)} if ranks == 2 else {rank: (rank % 4,) for rank in range(6)}
    for rank in range(ranks):
        learner = new_learner(**BOTH)
        resume.restore(tmp_path, origin, rank, learner)
        together = np.concatenate([rows[agent] for agent in merged[rank]])
        sums = learner.network.observation_sums
        assert float(sums.count) == pytest.approx(len(together) / len(merged[rank]))
        mean, deviation = moments(together)
        np.testing.assert_allclose(sums.scaling().mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(1 / sums.scaling().factor, np.sqrt(deviation**2 + EPSILON), rtol=1e-3)


# The agent

T_OF_AGENT = 5


@pytest.fixture(scope="module")
def world():
    from gala_mpi import pulse

    end = pulse.end
    yield World()
    pulse.end = end


def new_agent(world: World, env: str):
    config = Config(env=env, num_envs=2, network="mlp", precision="fp32", **BOTH)
    return build.build(config, world.comm, 0, 1)


def test_sums_count_from_what_was_seen_first(world):
    agent = new_agent(world, "Pendulum-v1")
    first = agent.collector.observations[0].double().mean(0)
    torch.testing.assert_close(agent.learner.network.observation_sums.offset.double(), first, rtol=2**-16, atol=0)
    assert not agent.learner.network.return_sums.offset.any()
    agent.close()


def test_an_update_with_a_number_that_is_not_finite_adds_nothing(world):
    agent = new_agent(world, "CartPole-v1")
    agent.start()
    agent.update()
    before = agent.learner.flat.data.clone()
    agent.collector.environments[0].envs[0].unwrapped.state = (math.nan,) * 4
    assert "environment 0 gave an observation of nan" in agent.update().skipped
    assert torch.equal(agent.learner.flat.data, before)
    agent.close()


def test_sketches_are_of_what_is_learnt(world):
    agent = new_agent(world, "CartPole-v1")
    agent.sketch._every = 1
    agent.start()
    sketches = agent.update().sketches
    assert np.array_equal(sketches[1], agent.sketch(agent.learner.flat.learnt.data))
    agent.close()
