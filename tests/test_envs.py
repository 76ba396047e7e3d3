"""Environments by name, against single ones of gymnasium, and with keywords and wrappers."""

import functools
import importlib
import math
import re
import subprocess
import sys

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import FrameStackObservation, TimeAwareObservation

from gala_mpi.envs import base, film, options, registry
from gala_mpi.envs.base import Step
from gala_mpi.envs.gym import GymEnvironments
from gala_mpi.envs.modules import in_a_line
from gala_mpi.envs.settings import PAPER, AtariSettings
from gala_mpi.errors import SettingError
from gala_mpi.networks.policy import Network

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
FRAMES_PER_STEP, NO_OPS = 4, 30
STICKY = AtariSettings(sticky=0.25)


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
    assert registry.resolve(env)[:2] == expected


def test_every_atari_id_of_gymnasium_is_its_game():
    ids = {name: spec.kwargs["game"] for name, spec in gymnasium.registry.items() if "game" in spec.kwargs}
    assert len(ids) > 300
    assert {name: registry.resolve(name)[:2] for name in ids} == {name: ("atari", game) for name, game in ids.items()}


def test_every_game_is_its_own_name():
    games = registry.atari_games()
    assert [registry.resolve(game)[:2] for game in games] == [("atari", game) for game in games]
    assert {registry.resolve(game)[2:] for game in games} == {(PAPER, game, "") for game in games} and len(games) > 100


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


@pytest.fixture
def module(tmp_path, monkeypatch, registered):
    """Write a module into the working directory, which no path of Python's names; return the name it can be imported by."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return name

    return write


POLE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("{id}", CartPoleEnv, max_episode_steps=7)
"""


def test_a_module_of_the_users_own_registers_its_environment(module):
    env = f"{module('poles_of_mine', POLE.format(id='Mine-v0'))}:Mine-v0"
    assert registry.resolve(env)[:2] == ("gymnasium", env)
    environments = registry.make(env, 2)
    environments.reset(np.array([1, 2]))
    steps = [environments.step(np.array([step % 2, step % 2])) for step in range(7)]
    assert steps[-1].truncated.all()  # after 7 steps: it is that one


@pytest.mark.parametrize(
    "name, text, env, words",
    [
        ("", "", "no_such_module:Mine-v0", "there is no module no_such_module"),
        (
            "broken_module",
            "import nothing_like_it",
            "broken_module:Mine-v0",
            "ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("exiting", "import sys; sys.exit(3)", "exiting:Mine-v0", "importing exiting fails (SystemExit: 3)"),
        ("other_pole", POLE.format(id="Mine-v1"), "other_pole:Mine-v2", "registers no Mine-v2"),
    ],
)
def test_a_module_that_registers_nothing_is_refused_in_a_line(module, name, text, env, words):
    if name:
        module(name, text)
    with pytest.raises(SettingError) as error:
        registry.resolve(env)
    assert str(error.value).startswith(f"--env {env}: ") and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("id", ["Pacman-v0", "Pong-v0", "ALE/Pong-v5", "pong"])
def test_an_id_that_the_user_has_registered_is_the_users(registered, id):
    gymnasium.register(id, "gymnasium.envs.classic_control:CartPoleEnv")
    assert registry.resolve(id)[:2] == ("gymnasium", id)
    assert registry.make(id, 1).spaces.observation_shape == (4,)


def test_what_was_registered_before_ale_py_came_stays():
    program = """
import gymnasium
gymnasium.register("Pong-v0", "gymnasium.envs.classic_control:CartPoleEnv")
from gala_mpi.envs import registry
print(registry.resolve("Pong-v0").kind, registry.resolve("Pong-v4").kind)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gymnasium", "atari"]


def test_an_environment_that_does_not_start_is_one_line(registered):
    def exits(**options):
        sys.exit(3)

    gymnasium.register("Exits-v0", exits)
    with pytest.raises(SettingError, match="--env Exits-v0: it does not start"):
        registry.try_out("Exits-v0")


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


def compare(name: str, seeds: list[int], choose, steps: int, taken=lambda action: action) -> list[Step]:
    """Play `name` with `choose(observation, t, environment)` and check every step against single environments.

    Args:
        taken: what a single environment gets for an action.
    """
    environments, singles = GymEnvironments(name, len(seeds)), [Single(name, seed) for seed in seeds]
    observations = environments.reset(np.array(seeds))
    played = []
    for t in range(steps):
        actions = np.stack([choose(observation, t, i) for i, observation in enumerate(observations)])
        step = environments.step(actions)
        for i, single in enumerate(singles):
            reward, terminated, truncated, last, episodes = single.step(taken(actions[i]))
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
    steps = compare(
        "Pendulum-v1", [1, 2], lambda observation, t, i: rng.normal(size=1).astype(np.float32), 410, lambda action: 2 * action
    )
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
    np.testing.assert_allclose(observations[0], np.arange(8) * 7 / 255, rtol=1e-6)


@pytest.mark.parametrize("observation", [spaces.Box(-np.inf, np.inf, shape, np.float32) for shape in ((5, 6), ())])
def test_what_is_no_image_is_flattened(observation):
    """A table of numbers, a single number: a network takes them, and what was cut off too."""
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
    bounds = {"action_scale": (1.0, 1.5), "action_offset": (0.0, 1.5)}
    assert environments.spaces == base.Spaces((4,), False, None, (2,), (-1.0, 0.0), (1.0, 3.0), **bounds)
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


class Unsayable(Exception):
    def __str__(self):
        raise ValueError


def test_whatever_is_raised_is_said_in_a_line():
    try:
        raise RuntimeError("it broke") from ValueError("somewhere\nelse")  # which was never raised, as from another process
    except RuntimeError as error:
        assert re.fullmatch(rf"RuntimeError: it broke, in {re.escape(__file__)}, line \d+", in_a_line(error))
    assert in_a_line(ValueError("two\nlines")) == "ValueError: two lines"
    assert in_a_line(Unsayable()) == "Unsayable"


# Keywords and wrappers


@pytest.mark.parametrize(
    "words, expected",
    [
        ((), {}),
        (("gravity=-3.5", "size=(8, 8)", "on=True", "none=None"), {"gravity": -3.5, "size": (8, 8), "on": True, "none": None}),
        (
            ("map_name=8x8", "path=./a=b.xml", "text=", "word='1'"),
            {"map_name": "8x8", "path": "./a=b.xml", "text": "", "word": "1"},
        ),
    ],
)
def test_keywords_of_an_environment(words, expected):
    assert options.keywords(words) == expected


@pytest.mark.parametrize("words", [("gravity",), ("=3",), ("a b=3",), ("a=1", "a=2")])
def test_words_that_are_no_keywords_are_refused(words):
    with pytest.raises(SettingError, match=rf"^--env-kwargs {words[-1]}: KEY=VALUE is expected, each key once$"):
        options.keywords(words)


def test_keywords_reach_the_environment():
    environments = registry.make("MountainCar-v0", 1, kwargs=("goal_velocity=0.05", "max_episode_steps=3"))
    assert environments.envs[0].unwrapped.goal_velocity == 0.05
    environments.reset(np.array([1]))
    assert [bool(environments.step(np.array([1])).truncated[0]) for _ in range(3)] == [False, False, True]


def test_a_keyword_that_the_environment_does_not_take_is_refused():
    with pytest.raises(SettingError) as error:
        registry.try_out("CartPole-v1", kwargs=("gravity=3",))
    words = "CartPole-v1 takes no gravity; one of these is expected: max_episode_steps, sutton_barto_reward"
    assert str(error.value) == f"--env-kwargs gravity=3: {words}"


def test_a_keyword_that_is_handed_on_and_refused_is_one_line(registered):
    def pole(**more):
        return CartPoleEnv(**more)

    gymnasium.register("Handing-v0", pole)
    registry.try_out("Handing-v0", kwargs=("sutton_barto_reward=True",))
    with pytest.raises(SettingError, match=r"--env Handing-v0: it does not start .*unexpected keyword argument 'gravity'"):
        registry.try_out("Handing-v0", kwargs=("gravity=3",))


WRAPPED = """
import gymnasium
import numpy as np
def shaped(env, by, plus=0):
    return gymnasium.wrappers.TransformReward(env, lambda reward: by * reward + plus)
def nothing(env):
    return 3
class Drawn(gymnasium.Wrapper):
    def render(self):
        return np.uint8([[[1, 2, 3]]])

class Listed(gymnasium.Wrapper):
    def render(self):
        return [[[1, 2, 3]]]

class Scaled(gymnasium.Wrapper):
    def render(self):
        return np.ones((4, 4, 3))

class Blind(gymnasium.Wrapper):
    def render(self):
        raise NotImplementedError
"""


def test_wrappers_are_those_of_gymnasium_and_ones_own_in_their_order(module):
    name = module("wrappers_of_mine", WRAPPED)
    words = ("FrameStackObservation:3,padding_type=zero", "TimeAwareObservation", f"{name}:shaped:0.5,plus=1")
    kwargs = ("max_episode_steps=6",)
    environments = registry.make("CartPole-v1", 1, kwargs=kwargs, wrappers=words)
    single = FrameStackObservation(gymnasium.make("CartPole-v1", max_episode_steps=6), 3, padding_type="zero")
    single = TimeAwareObservation(single)
    assert environments.spaces.observation_shape == single.observation_space.shape == (13,)
    first, _ = single.reset(seed=4)
    assert np.array_equal(environments.reset(np.array([4]))[0], first.astype(np.float32))
    for number in range(6):
        step, (expected, reward, *_) = environments.step(np.array([number % 2])), single.step(number % 2)
        seen = step.final_observations if number == 5 else step.observations
        assert np.array_equal(seen[0], expected.astype(np.float32)) and step.rewards[0] == 0.5 * reward + 1
    filmed = film.make_filmed("CartPole-v1", kwargs=kwargs, wrappers=(*words, f"{name}:Drawn"))
    assert filmed.spaces == environments.spaces and filmed.screen().tolist() == [[[1, 2, 3]]]
    filmed.close()
    for wrapper, said in (
        ("Listed", r"\(TypeError: it renders list; uint8 \[height, width, 3\] is expected, in"),
        ("Scaled", r"\(TypeError: it renders float64 \(4, 4, 3\); uint8 \[height, width, 3\] is expected, in"),
        ("Blind", "; a render\\(\\) for rgb_array, which its metadata lists, is expected"),
    ):
        with pytest.raises(SettingError, match=f"--env CartPole-v1: it cannot be filmed ?{said}"):
            film.make_filmed("CartPole-v1", kwargs=kwargs, wrappers=(f"{name}:{wrapper}",))


@pytest.mark.parametrize(
    "word, words",
    [
        ("FrameStack:4", "a class of gymnasium.wrappers or MODULE:FUNCTION is expected (did you mean FrameStackObservation"),
        ("nothing_like_it", "a class of gymnasium.wrappers or MODULE:FUNCTION is expected"),
        ("FrameStackObservation:0", "it cannot wrap <TimeLimit"),
        ("FrameStackObservation", "it cannot wrap <TimeLimit"),
        ("FrameStackObservation:2)+f(3", "arguments that are Python's literals are expected, not 2)+f(3"),
        ("FrameStackObservation:open('x')", "arguments that are Python's literals are expected, not open('x')"),
        ("FrameStackObservation:**{}", "arguments that are Python's literals are expected, not **{}"),
        ("wrappers_of_mine:missing", "wrappers_of_mine has no missing"),
        ("wrappers_of_mine:nothing", "it returns int; an environment is expected"),
        ("no_such_module:wrap", "there is no module no_such_module"),
    ],
)
def test_a_wrapper_that_is_none_is_refused_in_a_line(module, word, words):
    module("wrappers_of_mine", WRAPPED)
    with pytest.raises(SettingError) as error:
        registry.try_out("CartPole-v1", wrappers=(word,))
    assert str(error.value).startswith(f"--wrappers {word}: {words}") and "\n" not in str(error.value)


@pytest.mark.parametrize("env", ["pong", "ALE/Breakout-v5", "CartPole-v1"])
def test_a_reset_forgets_what_was_played_before(env):
    """Used or new, environments play the same games from the same seeds: an exact resume counts on it."""
    used, new = (registry.make(env, 3) for _ in range(2))
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


class Odd(gymnasium.Env):
    """Returns what older versions of gym did; counts how often one has been closed."""

    observation_space, action_space, closed = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2), 0

    def __init__(self, old):
        self.old = old

    def reset(self, *, seed=None, options=None):
        observation = np.zeros(2, np.float32)
        return observation if self.old == "reset" else (observation, {})

    def step(self, action):
        observation = np.zeros(2, np.float32)
        return (observation, 0.0, False, {}) if self.old == "step" else (observation, 0.0, False, False, {})

    def close(self):
        Odd.closed += 1
        if self.old == "close":
            raise RuntimeError("it stays")


gymnasium.register("Odd-v0", Odd, disable_env_checker=True)


@pytest.mark.parametrize(
    "old, said",
    [
        ("reset", "its reset returned ndarray; (observation, info) is expected"),
        ("step", "its step returned 4 values; (observation, reward, terminated, truncated, info) is expected"),
    ],
)
def test_what_older_versions_of_gym_return_is_named(old, said):
    Odd.closed = 0
    with pytest.raises(SettingError, match=re.escape(f"environment 0 of --env Odd-v0: {said}")):
        registry.try_out("Odd-v0", kwargs=[f"old={old}"])
    assert Odd.closed == 1  # all the same


def test_what_is_refused_is_said_even_if_it_cannot_be_closed(monkeypatch):
    monkeypatch.setattr(Odd, "observation_space", spaces.Text(3))
    with pytest.raises(SettingError, match="a wrapper that turns it into numbers is expected"):
        registry.try_out("Odd-v0", kwargs=["old=close"])


def test_all_are_closed_even_if_one_cannot_be():
    environments, Odd.closed = registry.make("Odd-v0", 3, kwargs=["old=close"]), 0
    with pytest.raises(RuntimeError, match="it stays"):
        environments.close()
    assert Odd.closed == 3
