"""Environments: Atari frame by frame against gymnasium's own wrappers, other games against single environments."""

import functools
import math

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from gala_mpi.envs import base, registry
from gala_mpi.envs.atari import FRAMES_PER_STEP, NO_OPS, AtariEnvironments
from gala_mpi.envs.base import Step
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.errors import SettingError
from gala_mpi.networks.policy import Network

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


# Names


@pytest.mark.parametrize(
    "env, expected",
    [
        ("pong", ("atari", "pong")),
        ("ms_pacman", ("atari", "ms_pacman")),
        ("ALE/Pong-v5", ("atari", "pong")),
        ("PongNoFrameskip-v4", ("atari", "pong")),
        ("PongDeterministic-v4", ("atari", "pong")),
        ("ALE/MsPacman-v5", ("atari", "ms_pacman")),
        ("CartPole-v1", ("gymnasium", "CartPole-v1")),
        ("Blackjack-v1", ("gymnasium", "Blackjack-v1")),
        ("ALE/Blackjack-v5", ("atari", "blackjack")),
    ],
)
def test_names_of_games(env, expected):
    assert registry.resolve(env) == expected


def test_every_atari_id_of_gymnasium_is_its_game():
    ids = {name: spec.kwargs["game"] for name, spec in gymnasium.registry.items() if "game" in spec.kwargs}
    assert len(ids) > 300
    assert {name: registry.resolve(name) for name in ids} == {name: ("atari", game) for name, game in ids.items()}


def test_every_game_is_its_own_name():
    assert [registry.resolve(game) for game in registry.atari_games()] == [("atari", game) for game in registry.atari_games()]


@pytest.mark.parametrize(
    "game, id", [("combat", "Combat"), ("joust", "Joust"), ("maze_craze", "MazeCraze"), ("warlords", "Warlords")]
)
def test_a_game_that_nobody_plays_alone_is_refused_and_not_suggested(game, id):
    """ale-py ends the process once it is loaded."""
    for name in (game, f"ALE/{id}-v5", f"{id}NoFrameskip-v4"):
        with pytest.raises(SettingError, match=f"--env {name}: .*{game} needs two players"):
            registry.resolve(name)
    with pytest.raises(SettingError) as error:
        registry.resolve(game + "x")
    assert f"{game} " not in str(error.value) and f"{game}?" not in str(error.value)


@pytest.mark.parametrize("wrong, near", [("pnog", "pong"), ("CartPole-v7", "CartPole-v1"), ("ALE/Pogn-v5", "ALE/Pong-v5")])
def test_an_unknown_game_is_refused_with_a_near_match(wrong, near):
    with pytest.raises(SettingError) as error:
        registry.resolve(wrong)
    assert f"--env {wrong}" in str(error.value) and near in str(error.value)


def test_a_game_like_no_other_is_refused_with_examples():
    with pytest.raises(SettingError, match="for example pong"):
        registry.resolve("qqqqqqqq")


# Atari against gymnasium's wrappers


class Opening(gymnasium.Wrapper):
    """After a reset, plays FIRE (where there is one) and no-ops until the emulator has shown `frames` frames."""

    frames = 0

    def reset(self, **options):
        result = self.env.reset(**options)
        meanings = self.unwrapped.get_action_meanings()
        if "FIRE" in meanings:
            self.env.step(meanings.index("FIRE"))
        while self.unwrapped.ale.getEpisodeFrameNumber() < self.frames:
            self.env.step(0)
        return result


class Reference:
    """One game in gymnasium's wrappers, with what should be seen of lives and scores worked out from the emulator."""

    def __init__(self, game: str, limit: int = 108_000):
        specs = gymnasium.registry.items()
        self.name = next(name for name, spec in specs if spec.kwargs.get("game") == game and name.startswith("ALE/"))
        self.limit = limit

    def reset(self, frames: int) -> np.ndarray:
        """The first observation of a new emulator after an opening of `frames` frames; the limit counts from there."""
        options = {"frameskip": 1, "repeat_action_probability": 0.0, "max_num_frames_per_episode": self.limit + frames}
        opening = Opening(gymnasium.make(self.name, **options))
        opening.frames = frames
        shown = AtariPreprocessing(opening, noop_max=0, frame_skip=FRAMES_PER_STEP, screen_size=84)
        self.env = FrameStackObservation(shown, 4, padding_type="zero")
        self.ale = self.env.unwrapped.ale
        observation, _ = self.env.reset()
        self.lives, self.score, self.length = self.ale.lives(), 0.0, 0
        return observation

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, bool]:
        """Observation, reward, whether a life or the game was lost, whether the game was, whether it was cut off."""
        observation, reward, over, cut, _ = self.env.step(action)
        lost = over or self.ale.lives() < self.lives
        self.lives = self.ale.lives()
        self.score += reward
        self.length += 1
        return observation, reward, lost, over, cut


def frames_shown(environments: AtariEnvironments) -> int:
    """How many frames the first environment's emulator has shown since its episode began."""
    return int(environments._frames[0])


def assert_same_screens(mine: np.ndarray, theirs: np.ndarray) -> None:
    """Equal as ale-py's own tests demand: no pixel differs by more than 2, and at most 25 of a frame do at all."""
    difference = np.abs(mine.astype(int) - theirs.astype(int))
    assert mine.shape == theirs.shape and difference.max() <= 2
    assert ((difference > 0).sum(axis=(1, 2)) <= 25).all()


@pytest.mark.parametrize(
    "game, steps, games, lives_lost",
    [("breakout", 400, 2, 8), ("pong", 1000, 1, 0), ("seaquest", 500, 1, 3)],
)
def test_atari_equals_the_wrappers_of_gymnasium(game, steps, games, lives_lost):
    """Observations, rewards, ends of lives and games, scores and lengths, across lost lives and the ends of games."""
    environments, reference = AtariEnvironments(game, 1), Reference(game)
    first = environments.reset(np.array([5]))
    assert 1 <= frames_shown(environments) <= NO_OPS
    assert_same_screens(first[0], reference.reset(frames_shown(environments)))
    rng = np.random.default_rng(0)
    seen_games = seen_losses = 0
    for _ in range(steps):
        action = rng.integers(environments.spaces.actions)
        step = environments.step(np.array([action]))
        expected, reward, lost, over, _ = reference.step(action)
        assert step.rewards[0] == reward and step.terminated[0] == lost and not step.truncated[0]
        assert [(e.environment, e.score, e.length) for e in step.episodes] == [(0, reference.score, reference.length)] * over
        if over:  # the observation is the next game's
            assert 1 <= frames_shown(environments) <= NO_OPS
            expected = reference.reset(frames_shown(environments))
        assert_same_screens(step.observations[0], expected)
        seen_games += over
        seen_losses += lost and not over
    assert seen_games >= games and seen_losses >= lives_lost
    environments.close()


def test_openings_are_from_1_to_30_frames_long():
    environments = AtariEnvironments("breakout", 12)
    environments.reset(np.arange(12))
    assert environments._frames.min() >= 1 and environments._frames.max() <= NO_OPS
    assert len(set(environments._frames)) > 6
    environments.close()


def test_a_game_that_is_cut_off_shows_where_it_stood():
    """ale-py cuts a game after 108,000 frames; here after 80, so that the test need not wait."""
    environments, reference = AtariEnvironments("pong", 1, max_num_frames_per_episode=80), Reference("pong", 80)
    environments.reset(np.array([5]))
    reference.reset(frames_shown(environments))
    cuts = 0
    for _ in range(60):
        step = environments.step(np.array([2]))
        expected, _, lost, _, cut = reference.step(2)
        assert step.truncated[0] == cut and not step.terminated[0] and not lost
        assert [(e.score, e.length) for e in step.episodes] == [(reference.score, reference.length)] * cut
        if cut:
            assert reference.length == 80 // FRAMES_PER_STEP
            assert_same_screens(step.final_observations[0], expected)
            expected = reference.reset(frames_shown(environments))
        assert_same_screens(step.observations[0], expected)
        cuts += cut
    assert cuts == 3
    environments.close()


def lost_and_cut(limit: int) -> tuple[list[bool], list[bool]]:
    """Terminations and truncations of 30 steps of Breakout that is cut after `limit` frames."""
    environments = AtariEnvironments("breakout", 1, max_num_frames_per_episode=limit)
    environments.reset(np.array([5]))
    rng = np.random.default_rng(0)
    steps = [environments.step(rng.integers(4, size=1)) for _ in range(30)]
    environments.close()
    return [bool(step.terminated[0]) for step in steps], [bool(step.truncated[0]) for step in steps]


def test_a_life_lost_in_the_step_that_cuts_the_game_off_counts_as_lost():
    terminated, _ = lost_and_cut(108_000)
    when = terminated.index(True)
    terminated, truncated = lost_and_cut(FRAMES_PER_STEP * (when + 1))
    assert terminated[when] and not truncated[when]
    _, truncated = lost_and_cut(FRAMES_PER_STEP * when)  # one step earlier the game was cut
    assert truncated[when - 1]


def play(environments: AtariEnvironments, seeds: list[int], steps: int = 60) -> np.ndarray:
    """Observations of some fixed random actions, [steps, N, ...]."""
    environments.reset(np.array(seeds))
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(steps):
        action = rng.integers(environments.spaces.actions)
        shown.append(environments.step(np.full(len(seeds), action)).observations.copy())
    environments.close()
    return np.stack(shown)


def test_the_same_seeds_give_the_same_games_and_other_seeds_others():
    shown = play(AtariEnvironments("breakout", 3, threads=2), [7, 7, 8])
    assert np.array_equal(shown[:, 0], shown[:, 1])
    assert not np.array_equal(shown[:, 0], shown[:, 2])
    assert np.array_equal(shown[:, 2], play(AtariEnvironments("breakout", 1), [8])[:, 0])


def test_sticky_actions_change_the_game():
    plain, sticky = (play(AtariEnvironments("breakout", 1, sticky=sticky), [7]) for sticky in (0.0, 0.25))
    assert np.array_equal(plain[0], play(AtariEnvironments("breakout", 1), [7], 1)[0])
    assert not np.array_equal(plain, sticky)


def test_sticky_actions_are_drawn_from_the_seed():
    shown = play(AtariEnvironments("breakout", 2, sticky=0.25), [7, 7])
    assert np.array_equal(shown[:, 0], shown[:, 1])


def test_make_hands_its_settings_on():
    environments = registry.make("breakout", 2, sticky=0.25)
    assert np.array_equal(play(environments, [7, 8]), play(AtariEnvironments("breakout", 2, 1, 0.25), [7, 8]))
    assert isinstance(registry.make("CartPole-v1", 1), GymEnvironments)


def test_atari_spaces():
    environments = AtariEnvironments("pong", 2)
    assert environments.spaces == base.Spaces((4, 84, 84), True, 6)
    observations = environments.reset(np.array([0, 1]))
    assert observations.shape == (2, 4, 84, 84) and observations.dtype == np.uint8
    environments.close()


# Other games against a single gymnasium environment


def balance(observation: np.ndarray) -> int:
    """A controller that balances CartPole."""
    position, speed, angle, turn = observation
    return int(position + 2 * speed + 20 * angle + 4 * turn > 0)


class Single:
    """The contract written down for one gymnasium environment."""

    def __init__(self, name: str, seed: int):
        self.env = gymnasium.make(name)
        self.observation, _ = self.env.reset(seed=seed)
        self.score, self.length = 0.0, 0

    def step(self, action) -> tuple[float, bool, bool, np.ndarray, list[tuple[float, int]]]:
        """Reward, terminated, truncated, the observation before a reset, and the score and length if the game ended."""
        last, reward, terminated, truncated, _ = self.env.step(action)
        self.observation, self.score, self.length = last, self.score + reward, self.length + 1
        episodes = []
        if terminated or truncated:
            episodes = [(self.score, self.length)]
            self.observation, _ = self.env.reset()
            self.score, self.length = 0.0, 0
        return float(reward), terminated, truncated, last, episodes


def compare(name: str, seeds: list[int], choose, steps: int) -> list[Step]:
    """Play `name` with `choose(observation, t, environment)` and check every step against single environments."""
    environments, singles = GymEnvironments(name, len(seeds)), [Single(name, seed) for seed in seeds]
    observations = environments.reset(np.array(seeds))
    played = []
    for t in range(steps):
        actions = np.stack([choose(observation, t, i) for i, observation in enumerate(observations)])
        step = environments.step(actions)
        for i, single in enumerate(singles):
            reward, terminated, truncated, last, episodes = single.step(actions[i])
            assert step.rewards[i] == np.float32(reward)
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated)
            assert np.array_equal(step.observations[i], single.observation)
            if truncated:
                assert np.array_equal(step.final_observations[i], last)
            found = [(e.score, e.length) for e in step.episodes if e.environment == i]
            assert found == [(pytest.approx(score, rel=1e-5), length) for score, length in episodes]
        observations = step.observations
        played.append(step)
    environments.close()
    return played


def test_cartpole_with_random_actions_ends_and_begins_as_alone():
    rng = np.random.default_rng(0)
    steps = compare("CartPole-v1", [1, 2, 3], lambda observation, t, i: rng.integers(2), 300)
    assert sum(len(step.episodes) for step in steps) > 20
    assert all(step.final_observations is None and not step.truncated.any() for step in steps)


def test_cartpole_that_is_balanced_is_cut_off_after_500_steps():
    def choose(observation, t, i):
        return balance(observation) if i == 0 else t % 2  # the second one falls again and again

    steps = compare("CartPole-v1", [1, 2], choose, 1010)
    assert [t for t, step in enumerate(steps) if step.truncated[0]] == [499, 999]
    assert [(e.score, e.length) for step in steps for e in step.episodes if e.environment == 0] == [(500.0, 500)] * 2
    assert sum(step.terminated[1] for step in steps) > 5


def test_pendulum_is_cut_off_after_200_steps():
    rng = np.random.default_rng(0)
    steps = compare("Pendulum-v1", [1, 2], lambda observation, t, i: rng.normal(size=1).astype(np.float32), 410)
    assert [t for t, step in enumerate(steps) if step.truncated.all()] == [199, 399]
    assert steps[0].rewards.dtype == np.float32 and steps[0].observations.dtype == np.float32


def test_observations_that_were_handed_out_do_not_change():
    environments = GymEnvironments("CartPole-v1", 2)
    first = environments.reset(np.array([1, 2]))
    before = first.copy()
    second = environments.step(np.array([0, 1])).observations
    kept = second.copy()
    environments.step(np.array([0, 1]))
    assert np.array_equal(first, before) and np.array_equal(second, kept)


# Small environments of our own, for what no standard one shows


class Toy(gymnasium.Env):
    """Ends after 3 steps, and tells the action that arrived as its reward."""

    def __init__(self, observation_space, action_space, last=(True, False)):
        self.observation_space, self.action_space, self.last = observation_space, action_space, last

    def _observation(self) -> np.ndarray:
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        return (np.arange(np.prod(shape)).reshape(shape) * 7 + self.t).astype(dtype)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        terminated, truncated = self.last if self.t == 3 else (False, False)
        return self._observation(), float(np.sum(action)), terminated, truncated, {}


def toy(name: str, *arguments) -> str:
    """Register a Toy and return its id."""
    gymnasium.register(f"toy/{name}-v0", functools.partial(Toy, *arguments), disable_env_checker=True)
    return f"toy/{name}-v0"


def pixels(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


NUMBERS = spaces.Box(-np.inf, np.inf, (4,), np.float32)
CHOICE = spaces.Discrete(2)
BOX = spaces.Box(np.float32([-1, 0]), np.float32([1, 3]))


def test_images_with_channels_last_are_turned():
    environments = GymEnvironments(toy("Photo", pixels(40, 50, 3), CHOICE, (False, True)), 2)
    observations = environments.reset(np.array([1, 2]))
    assert environments.spaces == base.Spaces((3, 40, 50), True, 2)
    plain = (np.arange(40 * 50 * 3).reshape(40, 50, 3) * 7).astype(np.uint8)
    for y, x, c in ((0, 0, 0), (3, 11, 2), (39, 49, 1)):
        assert observations[1, c, y, x] == plain[y, x, c]
    assert observations.shape == (2, 3, 40, 50) and observations.dtype == np.uint8
    final = [environments.step(np.array([0, 0])) for _ in range(3)][-1].final_observations
    assert np.array_equal(final[1], np.moveaxis(plain + np.uint8(3), 2, 0))


def test_images_with_channels_first_stay():
    environments = GymEnvironments(toy("Planes", pixels(4, 40, 50), CHOICE), 1)
    assert environments.spaces.observation_shape == (4, 40, 50) and environments.spaces.image
    plain = (np.arange(4 * 40 * 50).reshape(4, 40, 50) * 7).astype(np.uint8)
    assert np.array_equal(environments.reset(np.array([1]))[0], plain)


def test_bytes_that_are_no_image_become_numbers():
    environments = GymEnvironments(toy("Memory", pixels(8), CHOICE), 1)
    observations = environments.reset(np.array([1]))
    assert not environments.spaces.image and observations.dtype == np.float32
    assert np.array_equal(observations[0], np.arange(8) * 7)


@pytest.mark.parametrize("observation", [spaces.Box(-np.inf, np.inf, (5, 6), np.float32), pixels(5, 6), pixels()])
def test_what_is_no_image_is_flattened(observation):
    """A table of numbers, a grey picture, a single number: a network takes them, and what was cut off too."""
    environments = GymEnvironments(
        toy(f"Flat{observation.dtype}{len(observation.shape)}", observation, CHOICE, (False, True)), 2
    )
    numbers = math.prod(observation.shape)
    assert environments.spaces == base.Spaces((numbers,), False, 2)
    observations = environments.reset(np.array([1, 2]))
    plain = np.arange(numbers) * 7
    assert observations.dtype == np.float32 and np.array_equal(observations, [plain, plain])
    final = [environments.step(np.array([0, 0])) for _ in range(3)][-1].final_observations
    assert np.array_equal(final, [plain + 3, plain + 3])
    _, values = Network("mlp", environments.spaces)(torch.from_numpy(observations))
    assert values.shape == (2,)


def test_actions_of_a_box_are_clipped_to_its_bounds():
    environments = GymEnvironments(toy("Box", NUMBERS, BOX), 2)
    environments.reset(np.array([1, 2]))
    assert environments.spaces == base.Spaces((4,), False, None, (2,), (-1.0, 0.0), (1.0, 3.0))
    assert environments.step(np.float32([[-5, -5], [0.5, 9]])).rewards.tolist() == [-1, 3.5]


def test_discrete_actions_begin_where_the_environment_begins():
    environments = GymEnvironments(toy("Dial", NUMBERS, spaces.Discrete(3, start=5)), 2)
    environments.reset(np.array([1, 2]))
    assert environments.step(np.array([0, 2])).rewards.tolist() == [5, 7]


def test_a_game_both_lost_and_cut_off_counts_as_lost():
    environments = GymEnvironments(toy("Both", NUMBERS, CHOICE, (True, True)), 1)
    environments.reset(np.array([1]))
    last = [environments.step(np.array([1])) for _ in range(3)][-1]
    assert last.terminated[0] and not last.truncated[0]
    assert [(e.score, e.length) for e in last.episodes] == [(3.0, 3)]


@pytest.mark.parametrize(
    "name, observation, action, complaint",
    [
        ("Pair", spaces.Tuple([NUMBERS, NUMBERS]), CHOICE, "observations are Tuple"),
        ("Many", NUMBERS, spaces.MultiDiscrete([2, 2]), "actions are MultiDiscrete"),
    ],
)
def test_spaces_that_no_network_takes_are_refused(name, observation, action, complaint):
    with pytest.raises(SettingError, match=complaint):
        GymEnvironments(toy(name, observation, action), 1)


@pytest.mark.parametrize("env, sticky", [("pong", 0.0), ("breakout", 0.25), ("CartPole-v1", 0.0)])
def test_a_reset_forgets_what_was_played_before(env, sticky):
    """Used or new, environments play the same games from the same seeds: an exact resume counts on it."""
    used, new = (registry.make(env, 3, sticky=sticky) for _ in range(2))
    dice = np.random.default_rng(0)
    used.reset(np.arange(3))
    for _ in range(150):
        used.step(dice.integers(0, used.spaces.actions, 3))
    seeds = np.arange(10, 13)
    assert np.array_equal(used.reset(seeds), new.reset(seeds))
    for _ in range(150):
        actions = dice.integers(0, used.spaces.actions, 3)
        one, other = used.step(actions), new.step(actions)
        for name in ("observations", "rewards", "terminated", "truncated"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.episodes == other.episodes
    used.close(), new.close()
