"""`gala_mpi.Policy`: every kind of network chooses as it does in training, also out of a file and as an ONNX model."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import gala_mpi
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Part, Spaces
from gala_mpi.errors import DiskError, SettingError
from gala_mpi.games import Games
from gala_mpi.networks import onnx
from gala_mpi.networks.distributions import NEVER
from gala_mpi.networks.policy import described_spaces
from gala_mpi.policy import Policy, make_network

IMAGE, VECTOR = Spaces((4, 44, 40), True, 6), Spaces((5,), False, 3)
PACKED = Spaces((2 * 9 * 8 + 4 + 7,), False, None, (2,), choices=(3, 4), image_shape=(2, 9, 8), masked=True)
BOX = Spaces((5,), False, None, (2, 1), (-1.0, -np.inf), (3.0, np.inf), action_scale=(2.0, 1.0), action_offset=(1.0, 0.0))
KINDS: dict[str, tuple[Spaces, dict[str, Any]]] = {
    "gala": (IMAGE, {"network": "gala"}),
    "nature": (IMAGE, {"network": "nature"}),
    "impala": (Spaces((3, 20, 24), True, 6), {"network": "impala"}),
    "small": (Spaces((1, 9, 8), True, 3, dtype="float32", scale=1.0), {"network": "small"}),
    "mlp": (VECTOR, {"network": "mlp", "hidden": "16,8", "activation": "relu", "normalise_observations": True}),
    "mlp with a copy": (VECTOR, {"network": "mlp", "value_network": "copy", "normalise_observations": True}),
    "mlp of images": (Spaces((3, 9, 8), True, 3), {"network": "mlp"}),
    "masks": (PACKED, {"network": "small", "normalise_observations": True, "normalise_rewards": True}),
    "box": (BOX, {"network": "mlp"}),
    "own": (VECTOR, {"network": "nets:features"}),
    "own heads": (VECTOR, {"network": "nets:Apart"}),
    "lstm": (VECTOR, {"network": "mlp", "memory": "lstm", "memory_size": 7}),
    "gru": (IMAGE, {"network": "gala", "memory": "gru", "memory_size": 9}),
    "bf16": (IMAGE, {"network": "gala", "precision": "bf16"}),
}
EXPORTED = ("impala", "masks", "own heads", "gru")  # and gala, mlp and lstm by tests/commands/test_exported.py
OTHERS = [pytest.param(kind, marks=pytest.mark.long) for kind in KINDS if kind not in EXPORTED]
kinds = pytest.mark.parametrize("kind", KINDS)


def policy_of(kind: str) -> Policy:
    """Random parameters, with which actions differ from observation to observation."""
    spaces, settings = KINDS[kind]
    torch.manual_seed(0)
    settings = Config(env="CartPole-v1", **{"precision": "fp32"} | settings)
    network, flat = make_network(settings, spaces)
    flat.learnt.data.add_(0.1 * torch.randn(len(flat.learnt.data)))
    for sums in filter(None, (network.observation_sums, network.return_sums)):
        for parameter, value in zip(sums.parameters(), (50, 0.5, 10, 40)):
            parameter.data.fill_(value)
    policy = Policy(settings, network)
    if network.policy is not None:
        with torch.no_grad():
            network.policy.bias -= policy.module(torch.from_numpy(observations(spaces, 100)))[0].clamp_min(-100).mean(0)
    return policy


def observations(spaces: Spaces, number: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (number, *spaces.observation_shape)
    if spaces.observation_dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    rows = rng.normal(size=shape).astype(np.float32)
    if spaces.masked:
        mask = rng.random((number, spaces.outputs)) < 0.5
        mask[:, np.cumsum((0, *spaces.choices[:-1]))] |= ~mask[:, 1:3].any(1, keepdims=True)
        mask[:, [0, 3]] = True  # one of each choice at least
        rows[:, -spaces.outputs :] = mask
    return rows


def network_of(policy: Policy):
    return policy.module.network


@kinds
def test_spaces_are_those_that_a_checkpoint_describes(kind):
    spaces, _ = KINDS[kind]
    assert described_spaces(json.loads(json.dumps(policy_of(kind).description))) == spaces


def test_the_parts_of_an_observation_are_described():
    spaces = Spaces((7,), False, 3, parts=(Part("position", "Box(4)", 4), Part("speed", "Box(3)", 3)))
    network, _ = make_network(Config(network="mlp", precision="fp32"), spaces)
    assert described_spaces(json.loads(json.dumps(network.description()))).parts == spaces.parts


@kinds
@torch.no_grad()
def test_a_policy_out_of_a_file_is_the_same(kind, tmp_path):
    """On 1,000 observations, one after the other where there is a memory; drawn actions too."""
    policy = policy_of(kind)
    policy.save(tmp_path / "policy.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt"]
    again, network = gala_mpi.load_policy(tmp_path / "policy.pt"), network_of(policy)
    seen = observations(network.spaces)
    batches = seen.reshape(10, 100, *seen.shape[1:])
    state, different = network.first_state(100), set()
    for batch in batches:
        distribution, values, next_state = network.step(torch.from_numpy(batch), state)
        plain = again.module(torch.from_numpy(batch), *([state] if network.memory else []))
        torch.testing.assert_close(plain[1], values, rtol=0, atol=0)
        chosen = policy.act(batch)
        assert np.array_equal(chosen, distribution.mode.numpy()) and np.array_equal(chosen, again.act(batch))
        state = next_state
        different |= {*map(bytes, chosen)}
    assert len(different) > 1
    for each in (policy, again):
        each.reset()
    assert np.array_equal(policy.act(seen, deterministic=False), again.act(seen, deterministic=False))


@torch.no_grad()
def test_a_file_is_enough_for_torch_alone(tmp_path):
    policy = policy_of("lstm")
    policy.save(tmp_path / "policy.pt")
    contents = torch.load(tmp_path / "policy.pt", weights_only=True)
    assert json.loads(contents["policy"])["memory"] == {"kind": "lstm", "size": 7}
    state = network_of(policy).state_dict()
    assert contents["parameters"].keys() == state.keys()
    assert all(torch.equal(contents["parameters"][name], state[name]) for name in state)
    size = sum(tensor.numel() for tensor in state.values())
    assert (tmp_path / "policy.pt").stat().st_size < 4 * size + 20_000


@pytest.mark.parametrize("kind", [*EXPORTED, *OTHERS])
@torch.no_grad()
def test_an_onnx_model_gives_the_same_numbers(kind, tmp_path):
    policy, path = policy_of(kind), tmp_path / "policy.onnx"
    policy.to_onnx(path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    network = network_of(policy)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {"observations": observations(network.spaces)}
    if network.memory:
        inputs["state"] = torch.randn(1000, network.state_size).numpy()
    assert [each.name for each in session.get_inputs()] == list(inputs)
    assert [each.name for each in session.get_outputs()] == ["outputs", "values", "next_state"][: len(inputs) + 1]
    network.dtype = torch.float32  # of which the model is
    expected = policy.module(*map(torch.from_numpy, inputs.values()))
    assert expected[0].shape == (1000, network.spaces.outputs) and expected[0].std() > 0.01
    for got, wanted in zip(session.run(None, inputs), expected, strict=True):
        largest = max(1.0, float(wanted[wanted != NEVER].abs().max()))
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=0, atol=1e-5 * largest)
    (one,) = session.run(["values"], {name: rows[:1] for name, rows in inputs.items()})
    assert one.shape == (1,)


class Looking(torch.nn.Module):
    """Does otherwise by what it sees, of which no graph can be made."""

    def __init__(self, spaces: Spaces):
        super().__init__()
        self.layer = torch.nn.Linear(5, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() < 1e9 else x @ self.layer.weight.T


def test_what_cannot_be_exported_is_one_line_and_leaves_the_old_file(tmp_path):
    settings = Config(network="test_load_policy:Looking", precision="fp32")
    policy = Policy(settings, make_network(settings, VECTOR)[0])
    (tmp_path / "policy.onnx").write_text("old")
    with pytest.raises(SettingError, match=r"--network test_load_policy:Looking: it cannot be exported to ONNX \(") as raised:
        policy.to_onnx(tmp_path / "policy.onnx")
    assert "\n" not in str(raised.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("policy.onnx", "old")]


def test_a_model_that_gives_other_numbers_is_refused(tmp_path, monkeypatch):
    policy = policy_of("mlp")

    class Session:
        def __init__(self, *given, **named):
            pass

        def get_outputs(self):
            return [SimpleNamespace(name=name) for name in ("outputs", "values")]

        @torch.no_grad()
        def run(self, names, inputs):
            outputs, values = policy.module(torch.from_numpy(inputs["observations"]))
            return [outputs.numpy(), values.numpy() + 1e-3]

    monkeypatch.setattr(onnx, "_export", lambda *given: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(SettingError, match=r"ONNX: values of the model and of torch are 0\.001 apart; .* or less is expected"):
        policy.to_onnx(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    for write in (policy_of("mlp").save, policy_of("mlp").to_onnx):
        with pytest.raises(DiskError, match=r"nowhere/policy cannot be written: No such file or directory"):
            write(tmp_path / "nowhere" / "policy")


@pytest.mark.parametrize("contents", [b"", b"text", "other"])
def test_another_file_is_one_line(tmp_path, contents):
    path = tmp_path / "policy.pt"
    torch.save({"format": "gala_mpi policy 99"}, path) if contents == "other" else path.write_bytes(contents)
    with pytest.raises(SettingError, match=r"policy.pt: a file that Policy.save has written is expected \(.+\)") as raised:
        gala_mpi.load_policy(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "part, value",
    [
        *(("parameters", value) for value in (None, [1], {"encoder.0.weight": "x"})),
        *(("settings", {name: value}) for name, value in (("network", None), ("network", 3), ("hidden", "a,b"))),
    ],
    ids=str,
)
def test_a_file_with_other_things_in_it_is_one_line(tmp_path, part, value):
    path = tmp_path / "policy.pt"
    policy_of("mlp").save(path)
    contents = torch.load(path, weights_only=True)
    contents[part] = json.dumps(json.loads(contents["settings"]) | value) if part == "settings" else value
    torch.save(contents, path)
    with pytest.raises(SettingError, match=r"policy.pt: a file that Policy.save has written is expected \(.+\)"):
        gala_mpi.load_policy(path)


def test_a_bit_that_has_changed_is_noticed(tmp_path):
    path = tmp_path / "policy.pt"
    policy_of("mlp").save(path)
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    with pytest.raises(SettingError, match=r"policy.pt: damaged: a file that Policy.save has written is expected"):
        gala_mpi.load_policy(path)


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DiskError, match="pipe cannot be written: it is a device or a pipe"):
        policy_of("mlp").save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


# Acting


def test_actions_that_a_mask_excludes_are_never_chosen():
    policy = policy_of("masks")
    seen = observations(PACKED)
    masks = np.split(seen[:, -7:], [3], axis=1)
    for deterministic in (True, False):
        chosen = policy.act(seen, deterministic)
        assert chosen.shape == (1000, 2) and chosen.dtype == np.int64
        assert all((mask[np.arange(1000), actions] == 1).all() for mask, actions in zip(masks, chosen.T))
    assert ((policy.module(torch.from_numpy(seen))[0] == NEVER).numpy() == (seen[:, -7:] == 0)).all()


def test_drawn_actions_are_as_frequent_as_they_are_probable():
    policy = policy_of("mlp")
    one = observations(VECTOR, 1)[0]
    probable = policy.module(torch.from_numpy(one[None]))[0].softmax(-1)[0].detach().numpy()
    drawn = np.bincount(policy.act(np.tile(one, (100_000, 1)), deterministic=False), minlength=3) / 100_000
    assert np.abs(drawn - probable).max() < 5 * np.sqrt(0.25 / 100_000)


@pytest.mark.parametrize("kind", ["gala", "mlp", "box", "masks"])
def test_one_observation_is_one_of_many(kind):
    policy = policy_of(kind)
    seen = observations(network_of(policy).spaces, 5)
    alone = [policy.act(each) for each in seen]
    assert all(each.shape == network_of(policy).spaces.action_shape for each in alone)
    np.testing.assert_allclose(policy.act(seen), alone, atol=1e-6)
    kept = seen.copy()
    kept.flags.writeable = False
    np.testing.assert_allclose(policy.act(kept.tolist() if kind == "mlp" else kept), alone, atol=1e-6)


@torch.no_grad()
def test_a_memory_is_of_each_episode_until_it_is_reset():
    policy, seen = policy_of("lstm"), torch.from_numpy(observations(VECTOR, 60).reshape(12, 5, 5))
    network = network_of(policy)
    ends = np.random.default_rng(0).random((12, 5)) < 0.3
    for episode in range(5):  # one by one, each from nothing where one has ended
        state, expected = network.first_state(1), []
        for step in range(12):
            distribution, _, state = network.step(seen[step, episode][None], state)
            expected.append(distribution.mode.item())
            state = network.first_state(1) if ends[step, episode] else state
        policy.reset()
        got = []
        for step in range(12):
            got.append(policy.act(seen[step].numpy())[episode])
            policy.reset(ends[step])
        assert got == expected
    policy.reset()
    first = policy.act(seen[0, 0].numpy())
    policy.act(seen[1, 0].numpy())
    policy.reset()
    assert policy.act(seen[0, 0].numpy()) == first


BAD = {
    "shape": ("mlp", np.zeros((2, 6)), r"observation of shape \[2, 6\]: \[5\] or \[N, 5\] is expected"),
    "depth": ("gala", np.zeros((1, 1, 4, 44, 40), np.uint8), r"observation of shape .*: \[4, 44, 40\] or \[N, 4, 44, 40\]"),
    "none": ("mlp", np.zeros((0, 5)), r"observation of shape \[0, 5\]"),
    "floats": ("gala", np.zeros((4, 44, 40)), "observation of float64: uint8 is expected"),
    "infinite": ("mlp", [0, 0, np.inf, 0, 0], "observation of nan or inf: one of finite numbers is expected"),
    "words": ("mlp", ["a"] * 5, "observation of <U1: float32 is expected"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_observation_of_another_kind_is_one_line(what):
    kind, observation, words = BAD[what]
    with pytest.raises(SettingError, match=words):
        policy_of(kind).act(observation)


def test_another_number_of_episodes_needs_a_reset():
    policy = policy_of("lstm")
    policy.act(observations(VECTOR, 4))
    with pytest.raises(SettingError, match="observations: 3: 4, as before, or a call of `reset` is expected"):
        policy.act(observations(VECTOR, 3))
    with pytest.raises(SettingError, match=r"which of shape \[3\]: \[4\], as of `act`, is expected"):
        policy.reset(np.ones(3, bool))
    policy.reset()
    assert policy.act(observations(VECTOR, 3)).shape == (3,)


def test_a_box_of_actions_is_brought_to_its_bounds():
    policy = policy_of("box")
    actions = np.array([[[-3.0], [-50.0]], [[0.5], [2.0]], [[9.0], [1e6]]], np.float32)
    assert policy.unscaled(actions).tolist() == [[[-1], [-50]], [[2], [2]], [[3], [1e6]]]
    assert policy_of("mlp").unscaled(np.array([2])).tolist() == [2]


# The environment


def policy_for(env: str, **settings) -> Policy:
    torch.manual_seed(0)
    settings = Config(env=env, **{"network": "mlp", "precision": "fp32"} | settings)
    return Policy(settings, make_network(settings, registry.try_out(env, **settings.env_options).spaces)[0])


def play(policy: Policy, seed: int, steps: int) -> tuple[float, int]:
    """The score and the length of a game."""
    environment = policy.environment()
    observation, _ = environment.reset(seed=seed)
    policy.reset()
    score, over = 0.0, False
    for _ in range(steps):
        observation, reward, terminated, truncated, info = environment.step(policy.act(observation))
        score, over = score + reward, terminated or truncated
        if info["return_over"]:
            policy.reset()
        if over:
            break
    environment.close()
    assert over == ("episode" in info)
    return (info["episode"]["r"], info["episode"]["l"]) if over else (score, steps)


@pytest.mark.parametrize(
    "env, settings",
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {"memory": "gru"}),
        ("Taxi-v4", {}),
        ("seaquest", {"network": "gala", "memory": "lstm"}),
    ],
)
def test_a_game_is_played_as_evaluate_plays_it(env, settings):
    policy = policy_for(env, **settings)
    environments = registry.make(env, 1, **policy._settings.env_options)
    (game,) = Games(environments, np.array([5]), 300).play(network_of(policy), None)
    environments.close()
    assert play(policy, 5, 300) == (game.score, game.length)


def test_a_lost_life_ends_a_return_and_no_episode():
    """By the same actions as in training's environments."""
    policy = policy_for("breakout", network="gala")
    environment, training = policy.environment(), registry.make("breakout", 1)
    observation, _ = environment.reset(seed=3)
    seen, rng, lives = training.reset(np.array([3])), np.random.default_rng(0), 0
    for _ in range(2000):
        assert np.array_equal(observation, seen[0])
        action = rng.integers(4)
        observation, reward, terminated, truncated, info = environment.step(action)
        step = training.step(np.array([action]))
        seen = step.observations
        assert (reward, info["return_over"]) == (step.rewards[0], bool(step.terminated[0] or step.truncated[0]))
        assert (terminated or truncated) == bool(step.episodes)
        lives += info["return_over"]
        if step.episodes:
            break
    assert lives == 5 and terminated and info["episode"]["l"] == step.episodes[0].length
    again, _ = environment.reset()
    assert np.array_equal(again, seen[0])  # the next episode, which had begun
    environment.close()


def test_an_episode_that_is_cut_off_shows_its_last_observation():
    policy = policy_for("MountainCar-v0", env_kwargs=("max_episode_steps=4",))
    environment, plain = policy.environment(), gymnasium.make("MountainCar-v0", max_episode_steps=4)
    first, _ = environment.reset(seed=1)
    assert np.array_equal(first, plain.reset(seed=1)[0])
    for action in (0, 2, 2, 1):
        ours, theirs = environment.step(action), plain.step(action)
        assert np.array_equal(ours[0], theirs[0]) and ours[1:4] == theirs[1:4]
    assert ours[3]
    begun = [environment.reset()[0] for _ in range(3)]
    assert not np.array_equal(begun[0], begun[1]) and not np.array_equal(begun[1], begun[2])
    assert np.array_equal(environment.reset(seed=1)[0], first)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of bounds that are infinite
def test_the_environment_is_one_of_gymnasiums():
    for env in ("CartPole-v1", "Pendulum-v1"):
        check_env(policy_for(env).environment(), skip_render_check=True)


def test_the_screen_is_shown():
    environment = policy_for("breakout", network="gala").environment(render_mode="rgb_array")
    environment.reset(seed=1)
    environment.step(1)
    assert environment.render().shape == (420, 640, 3) and environment.render().std() > 5
    with pytest.raises(SettingError, match="action of shape \\[2\\]: \\[\\] is expected"):
        environment.step(np.array([1, 1]))
    environment.close()
    with pytest.raises(SettingError, match="render_mode human: None or rgb_array is expected"):
        policy_for("CartPole-v1").environment(render_mode="human")


def test_an_environment_with_other_spaces_is_refused():
    with pytest.raises(SettingError, match="--env CartPole-v1: its observations or actions are not those of the policy"):
        policy_of("mlp").environment()
