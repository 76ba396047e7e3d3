"""Settings: what is refused, what is stored, what the command line knows."""

import ast
import dataclasses
import inspect
import itertools
import json
import math
from pathlib import Path

import pytest

from gala_mpi.config import A2CSettings, AtariSettings, Config, PPOSettings, VTraceSettings
from gala_mpi.config_checks import check
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.job.prepare import read as parse
from gala_mpi.run import layout, writer
from gala_mpi.topology import Graph

OUT_OF_BOUNDS = [
    ("--num-envs", "num_envs", [0, -1]),
    ("--env-workers", "env_workers", [-1]),
    ("--rollout-length", "rollout_length", [0, -5]),
    ("--total-steps", "total_steps", [0, -1]),
    ("--seed", "seed", [-1]),
    ("--staleness", "staleness", [-1]),
    ("--max-lag", "max_lag", [-1]),
    ("--lag", "lag", [-1, 2]),
    ("--sync-updates", "sync_updates", [0, -1]),
    ("--lr", "lr", [0.0, -1e-3, 1.1e6, math.inf, math.nan]),
    ("--base-lr", "base_lr", [0.0, -1e-3, 1.1e6, math.inf, math.nan]),
    ("--actors", "actors", [-1]),
    ("--memory-size", "memory_size", [0, -1]),
    ("--action-std", "action_std", [0.0, 1e-7, -1.0, 2e6, math.inf, math.nan]),
    ("--atari.sticky", "atari.sticky", [-0.1, 1.1, math.nan]),
    ("--atari.frame-skip", "atari.frame_skip", [0, -1]),
    ("--atari.no-ops", "atari.no_ops", [-1]),
    ("--atari.frame-limit", "atari.frame_limit", [0, -1]),
    ("--checkpoint-minutes", "checkpoint_minutes", [0.0, 1e-9, 1e-300, -1.0, math.nan, math.inf]),
    ("--checkpoint-updates", "checkpoint_updates", [0, -1]),
    ("--evaluate-minutes", "evaluate_minutes", [0.0, 1e-9, -1.0, math.nan, math.inf]),
    ("--evaluate-episodes", "evaluate_episodes", [0, -1, 1001]),
    ("--keep-checkpoints", "keep_checkpoints", [0, -1]),
    ("--sketch-updates", "sketch_updates", [-1]),
    ("--max-skipped", "max_skipped", [-1]),
    ("--wall-minutes", "wall_minutes", [0.0, -2.0, math.nan]),
    ("--survive", "survive", [0.0, -5.0, math.inf, math.nan]),
    ("--mix-steps", "mix_steps", [0, -1]),
    ("--outer-momentum", "outer_momentum", [-0.1, 1.0, math.nan]),
    ("--outer-lr", "outer_lr", [0.0, -0.7, 1.1e6, math.inf, math.nan]),
    ("--ema", "ema", [0.0, 1.0, -0.1, math.nan]),
    ("--preempt", "preempt", [0.0, -0.5, 1.01, math.nan]),
    ("--hang-minutes", "hang_minutes", [0.0, -1.0, 1e9, math.inf, math.nan]),
    *(
        (f"--{learner}.{name.replace('_', '-')}", f"{learner}.{name}", bad)
        for learner in ("a2c", "ppo", "vtrace")
        for name, bad in {
            "discount": [-0.1, 1.1, math.nan],
            "gae_lambda": [-0.1, 1.1, math.nan],
            "entropy_coefficient": [-0.1, math.inf, math.nan],
            "value_coefficient": [-0.1, math.inf, math.nan],
            "max_grad_norm": [0.0, -1.0, math.nan],
            "rms_alpha": [-0.1, 1.0, math.nan],
            "rms_eps": [0.0, 1e-13, -1e-5, math.inf, math.nan],
            "adam_eps": [0.0, 1e-13, -1e-5, math.inf, math.nan],
        }.items()
    ),
    ("--ppo.epochs", "ppo.epochs", [0, -1]),
    ("--ppo.minibatches", "ppo.minibatches", [0, -1]),
    ("--ppo.clip", "ppo.clip", [0.0, 1.0, -0.1, math.nan]),
    ("--ppo.value-clip", "ppo.value_clip", [0.0, -0.2, math.inf, math.nan]),
    ("--ppo.target-kl", "ppo.target_kl", [0.0, -0.02, math.inf, math.nan]),
    ("--vtrace.rho-bar", "vtrace.rho_bar", [0.0, -1.0, math.nan]),
    ("--vtrace.c-bar", "vtrace.c_bar", [0.0, -1.0, math.nan]),
]
IN_BOUNDS = {
    "num_envs": [1, 512],
    "env_workers": [0, 1, 16],
    "rollout_length": [None, 1],
    "total_steps": [1],
    "seed": [0, 2**40],
    "staleness": [None, 0, 7],
    "max_lag": [None, 0, 7],
    "lag": [0],
    "actors": [0],
    "sync_updates": [None],
    "outer_momentum": [None],
    "outer_lr": [None],
    "ema": [None, 0.5, 0.999],
    "preempt": [None],
    "mix_steps": [None],
    "lr": [None, 1e-9, 1.0, 1e6],
    "base_lr": [None, 1e-9, 1.0, 1e6],
    "memory_size": [1, 512],
    "action_std": [1e-3, 2.0],
    "atari.sticky": [None, 0.0, 0.25, 1.0],
    "atari.frame_skip": [None, 1, 8],
    "atari.no_ops": [None, 0, 100],
    "atari.frame_limit": [None, 1, 10**6],
    "checkpoint_minutes": [0.01],
    "checkpoint_updates": [None],
    "keep_checkpoints": [1],
    "sketch_updates": [0, 1],
    "max_skipped": [0],
    "evaluate_minutes": [None, 0.01, 60.0],
    "evaluate_episodes": [1, 1000],
    "wall_minutes": [None, 0.1],
    "survive": [None, 0.5],
    "hang_minutes": [None, 0.5],
    **{
        f"{learner}.{name}": good
        for learner in ("a2c", "ppo", "vtrace")
        for name, good in {
            "discount": [0.0, 1.0],
            "gae_lambda": [0.0, 0.95, 1.0],
            "entropy_coefficient": [None, 0.0],
            "value_coefficient": [0.0],
            "max_grad_norm": [1e-3],
            "rms_alpha": [0.0, 0.999],
            "rms_eps": [1e-8],
            "adam_eps": [1e-8],
        }.items()
    },
    "ppo.epochs": [None, 1, 80],
    "ppo.minibatches": [None, 1, 32],
    "ppo.clip": [None, 0.3],
    "ppo.value_clip": [None, 0.2, 10.0],
    "ppo.target_kl": [None, 0.02],
    "vtrace.rho_bar": [0.5, math.inf],
    "vtrace.c_bar": [0.5, math.inf],
}
GROUPS = {"a2c": A2CSettings, "ppo": PPOSettings, "vtrace": VTraceSettings, "atari": AtariSettings}
FIELDS = {group: {field.name for field in dataclasses.fields(kind)} for group, kind in GROUPS.items()}
CONFIG_FIELDS = {field.name for field in dataclasses.fields(Config)} - set(GROUPS)


def config_with(name: str, value) -> Config:
    """Settings of which one, "ppo.clip" say, has a value."""
    group, _, inner = name.rpartition(".")
    return Config(**{group: GROUPS[group](**{inner: value})} if group else {name: value})


def numbers() -> set[str]:
    """The fields that hold numbers."""
    kinds = {"": Config} | {f"{group}.": kind for group, kind in GROUPS.items()}
    fields = [(prefix + field.name, field.type) for prefix, kind in kinds.items() for field in dataclasses.fields(kind)]
    return {name for name, kind in fields if "int" in kind or "float" in kind}


def test_every_number_is_tried():
    assert {name for _, name, _ in OUT_OF_BOUNDS} == set(IN_BOUNDS) == numbers()


@pytest.mark.parametrize("flag, name, value", [(flag, name, value) for flag, name, bad in OUT_OF_BOUNDS for value in bad])
def test_a_value_out_of_bounds_is_refused_by_flag_and_value(flag, name, value):
    with pytest.raises(SettingError) as error:
        check(config_with(name, value))
    assert str(error.value).startswith(f"{flag} {value}: ") and str(error.value).endswith("expected")


@pytest.mark.parametrize("name, value", [(name, value) for name, good in IN_BOUNDS.items() for value in good])
def test_a_value_within_bounds_is_taken(name, value):
    check(config_with(name, value))


@pytest.mark.parametrize("exchange", ["allreduce", "periodic", "server", "none"])
def test_a_staleness_bound_is_for_gossip_alone(exchange):
    with pytest.raises(SettingError, match=rf"--staleness 3 --exchange {exchange}: .*gossip"):
        check(Config(exchange=exchange, staleness=3))
    check(Config(exchange="gossip", staleness=3))
    check(Config(exchange=exchange))


@pytest.mark.parametrize("exchange", ["allreduce", "periodic", "server", "none"])
def test_a_largest_lag_is_for_gossip_that_is_not_in_lock_step(exchange):
    with pytest.raises(SettingError, match=rf"--max-lag 3 --exchange {exchange}: .*gossip"):
        check(Config(exchange=exchange, max_lag=3))
    with pytest.raises(SettingError, match=r"--max-lag 3 --staleness 0: .*expected"):
        check(Config(max_lag=3, staleness=0))
    check(Config(max_lag=3, staleness=1))


@pytest.mark.parametrize("exchange", ["gossip", "allreduce", "server", "none"])
def test_updates_between_averages_are_for_periodic_alone(exchange):
    with pytest.raises(SettingError, match=rf"^--sync-updates 10 --exchange {exchange}: --exchange periodic is expected$"):
        check(Config(exchange=exchange, sync_updates=10))
    check(Config(exchange="periodic", sync_updates=1))


@pytest.mark.parametrize("exchange", ["gossip", "allreduce", "server", "none"])
def test_outer_steps_are_for_periodic_alone(exchange):
    expected = rf"^--outer-momentum 0.9 --exchange {exchange}: --exchange periodic is expected$"
    with pytest.raises(SettingError, match=expected):
        check(Config(exchange=exchange, outer_momentum=0.9))
    with pytest.raises(SettingError, match=r"^--outer-lr 0.7: --outer-momentum with it is expected$"):
        check(Config(exchange="periodic", outer_lr=0.7))
    for momentum in (0.0, 0.99):
        check(Config(exchange="periodic", outer_momentum=momentum, outer_lr=2.0))


IN_STEP = [Config(exchange="allreduce"), Config(exchange="periodic"), Config(staleness=0)]
OUT_OF_STEP = [Config(), Config(staleness=1), Config(exchange="server"), Config(exchange="none")]


def test_which_agents_move_in_step():
    assert all(config.in_step for config in IN_STEP) and not any(config.in_step for config in OUT_OF_STEP)


@pytest.mark.parametrize("flag, name, values", OUT_OF_BOUNDS)
def test_the_flag_that_a_complaint_names_is_a_flag(flag, name, values):
    parsed = parse([flag, str(IN_BOUNDS[name][-1])])
    assert parsed == config_with(name, IN_BOUNDS[name][-1])


CHANGED = Config(
    env="ALE/Breakout-v5",
    exchange="gossip",
    topology=Graph("one-peer-exponential"),
    staleness=0,
    total_steps=123,
    lr=3e-4,
    network="nature",
    precision="bf16",
    run_dir=Path("runs/é"),
    resume=True,
    wall_minutes=1.5,
    a2c=A2CSettings(gae_lambda=0.95, clip_rewards=False),
    atari=AtariSettings(sticky=0.25, fire=False),
    env_kwargs=("gravity=-3.5", "name=a b"),
    wrappers=("FrameStackObservation:4",),
)


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_json_and_back(config):
    assert Config.from_json(config.to_json()) == config


def test_json_is_json_of_every_field():
    values = json.loads(CHANGED.to_json())
    assert set(values) == CONFIG_FIELDS | set(GROUPS)
    assert {group: set(values[group]) for group in GROUPS} == FIELDS
    assert values["run_dir"] == "runs/é" and values["a2c"]["gae_lambda"] == 0.95


@pytest.mark.parametrize("agents, num_envs, expected", [(1, 16, 7e-4), (4, 16, 14e-4), (1, 4, 3.5e-4), (2, 16, 7e-4 * 2**0.5)])
def test_the_learning_rate_grows_with_the_root_of_all_simulators(agents, num_envs, expected):
    assert Config(num_envs=num_envs).learning_rate(agents) == pytest.approx(expected)
    assert Config(num_envs=num_envs, base_lr=14e-4).learning_rate(agents) == pytest.approx(2 * expected)
    assert Config(num_envs=num_envs, base_lr=14e-4, lr=1e-3).learning_rate(agents) == 1e-3


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_agents_that_share_nothing_have_the_learning_rate_of_one(exchange):
    expected = 7e-4 if exchange == "none" else 7e-4 * 32**0.5
    assert Config(exchange=exchange).learning_rate(32) == pytest.approx(expected)
    assert Config(exchange=exchange, lr=1e-3).learning_rate(32) == 1e-3


@pytest.mark.parametrize("total_steps", [1, 159, 160, 161, 40_000_000])
def test_updates_are_the_fewest_that_do_all_steps(total_steps):
    config = Config(total_steps=total_steps, num_envs=16, rollout_length=5)
    updates, per_update = config.updates(2), 2 * 16 * 5
    assert updates * per_update >= total_steps > (updates - 1) * per_update


def test_updates_do_what_is_left_of_the_steps():
    """After 3 agents with 4 updates each and 1000 steps in all, the counters of 2 agents stand at 6."""
    config = Config(total_steps=3000, num_envs=16, rollout_length=5)
    assert config.updates(2, done=12, steps=1000) == 6 + math.ceil(2000 / 160)
    assert config.updates(2, done=12, steps=5000) <= 6


def test_no_flags_are_the_defaults():
    assert parse([]) == Config()


FLAGS = [
    ("--env", "breakout", {"env": "breakout"}),
    ("--exchange", "allreduce", {"exchange": "allreduce"}),
    ("--topology", "one-peer-exponential", {"topology": Graph("one-peer-exponential")}),
    ("--topology", "my graph.txt", {"topology": Graph("my graph.txt")}),
    ("--staleness", "4", {"staleness": 4}),
    ("--max-lag", "5", {"max_lag": 5}),
    ("--sync-updates", "5", {"sync_updates": 5}),
    ("--outer-momentum", "0.9", {"outer_momentum": 0.9}),
    ("--outer-lr", "0.1", {"outer_lr": 0.1}),
    ("--total-steps", "1000", {"total_steps": 1000}),
    ("--num-envs", "8", {"num_envs": 8}),
    ("--rollout-length", "20", {"rollout_length": 20}),
    ("--lr", "1e-3", {"lr": 1e-3}),
    ("--base-lr", "1e-3", {"base_lr": 1e-3}),
    ("--seed", "3", {"seed": 3}),
    ("--network", "nature", {"network": "nature"}),
    ("--precision", "fp32", {"precision": "fp32"}),
    ("--device", "cuda", {"device": "cuda"}),
    ("--atari.sticky", "0.25", {"atari": AtariSettings(sticky=0.25)}),
    ("--sticky", "0.25", {"atari": AtariSettings(sticky=0.25)}),
    ("--sticky=0.25", "--atari.full-actions=True", {"atari": AtariSettings(sticky=0.25, full_actions=True)}),
    ("--env-kwargs", "size=(8, 8)", {"env_kwargs": ("size=(8, 8)",)}),
    ("--wrappers", "FrameStackObservation:4", {"wrappers": ("FrameStackObservation:4",)}),
    ("--run-dir", "somewhere", {"run_dir": Path("somewhere")}),
    ("--checkpoint-minutes", "1.5", {"checkpoint_minutes": 1.5}),
    ("--exact-resume", "--checkpoint-updates=7", {"exact_resume": True, "checkpoint_updates": 7}),
    ("--keep-checkpoints", "2", {"keep_checkpoints": 2}),
    ("--sketch-updates", "20", {"sketch_updates": 20}),
    ("--wall-minutes", "10", {"wall_minutes": 10.0}),
    ("--a2c.gae-lambda", "0.95", {"a2c": A2CSettings(gae_lambda=0.95)}),
]


@pytest.mark.parametrize("flag, value, expected", FLAGS)
def test_flags(flag, value, expected):
    assert parse([flag, value]) == Config(**expected)


@pytest.mark.parametrize("arguments", [["--env"], ["--exchange", "gossipp"], ["--num-envs", "four"], ["--colour", "red"]])
def test_a_flag_that_does_not_parse_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def documented(kind: type) -> dict[str, str]:
    """Each field's flag with the first words of the sentence below it in the source."""
    sources = [inspect.getsource(each) for each in reversed(kind.__mro__) if dataclasses.is_dataclass(each)]
    body = [statement for source in sources for statement in ast.parse(source).body[0].body]
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@pytest.mark.parametrize(
    "kind, prefix, fields",
    [(Config, "--", CONFIG_FIELDS), *((kind, f"--{group}.", FIELDS[group]) for group, kind in GROUPS.items())],
)
def test_help_lists_every_field_with_its_sentence(kind, prefix, fields, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code in (0, None)
    shown = "".join(capsys.readouterr().out.split())
    sentences = documented(kind)
    assert set(sentences) >= fields
    for name in fields:
        assert prefix + name.replace("_", "-") in shown
        first_line = "".join(sentences[name].split("\n")[0].split())
        assert first_line in shown, name


# Resuming


def begin_run(run: Path, **settings) -> Config:
    config = Config(run_dir=run, **settings)
    writer.write_run(run, config, 2, {"time": "now"})
    return config


def test_resume_takes_the_stored_settings_and_what_is_given_replaces_them(tmp_path):
    stored = begin_run(tmp_path / "run", env="breakout", a2c=A2CSettings(gae_lambda=0.9))
    arguments = ["--resume", "--run-dir", str(tmp_path / "run"), "--total-steps", "77", "--a2c.decay-lr"]
    expected = dataclasses.replace(stored, resume=True, total_steps=77, a2c=A2CSettings(gae_lambda=0.9, decay_lr=True))
    assert parse(arguments) == expected


def test_a_resumed_run_can_be_resumed_again(tmp_path):
    stored = begin_run(tmp_path / "run", resume=True)
    assert parse(["--resume", "--run-dir", str(tmp_path / "run")]) == stored


def test_without_resume_the_stored_settings_are_left_alone(tmp_path):
    begin_run(tmp_path / "run", env="breakout")
    assert parse(["--run-dir", str(tmp_path / "run")]).env == "pong"


def test_a_resumed_run_keeps_the_text_of_its_graph(tmp_path):
    graph = Graph("my.txt", "# comment\n0 1\n1 0\n")
    begin_run(tmp_path / "run", topology=graph)
    resume = ["--resume", "--run-dir", str(tmp_path / "run")]
    assert parse(resume).topology == graph
    assert parse([*resume, "--topology", "my.txt"]).topology == Graph("my.txt")  # to be read anew


@pytest.mark.parametrize(
    "packed, graph",
    [
        ("torus", Graph("torus")),
        ("my.txt\n0 1\n1 0\n", Graph("my.txt", "0 1\n1 0\n")),
        ("hierarchical:2\n0 0 1 1", Graph("hierarchical:2", nodes=(0, 0, 1, 1))),
    ],
)
def test_settings_of_old_runs_are_read(packed, graph):
    values = json.loads(Config().to_json()) | {"topology": packed}
    assert Config.from_json(json.dumps(values)) == Config(topology=graph)


def test_runs_from_before_spaces_were_scaled_are_raw():
    values = json.loads(Config().to_json())
    assert Config.from_json(json.dumps(values)).spaces == "scaled"
    del values["spaces"], values["action_std"], values["base_lr"]
    assert Config.from_json(json.dumps(values)) == Config(spaces="raw", base_lr=7e-4)
    values["lr"] = 1e-3
    assert Config.from_json(json.dumps(values)) == Config(spaces="raw", lr=1e-3)


@pytest.mark.parametrize("sticky, now", [(0.0, None), (0.25, 0.25)])
def test_settings_of_runs_from_before_the_protocol_was_a_setting(sticky, now):
    """Their environments are games without more, which mean 0 without --sticky then and now."""
    values = json.loads(Config().to_json())
    del values["atari"]
    assert Config.from_json(json.dumps(values | {"sticky": sticky})) == Config(atari=AtariSettings(sticky=now))
    assert Config.from_json(json.dumps(values)) == Config()


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(SettingError, match="--resume needs --run-dir"):
        parse(["--resume"])
    with pytest.raises(SettingError, match=r"no run\.h5"):
        parse(["--resume", "--run-dir", str(tmp_path)])


def test_resume_of_a_damaged_run_says_so(tmp_path):
    begin_run(tmp_path / "run")
    layout.run_file(tmp_path / "run").write_bytes(b"nothing")
    with pytest.raises(SettingError, match="cannot be read"):
        parse(["--resume", "--run-dir", str(tmp_path / "run")])


@pytest.mark.parametrize("value", ["", "3", "3:", "200ms", "-1:200ms", "3:-5ms", "3:200", "3:200m", "a:1s", "3:nans"])
def test_a_slow_rank_that_is_none_is_refused(value):
    with pytest.raises(SettingError, match=r"^--slow-rank .*: RANK:TIME.*expected$"):
        check(Config(slow_rank=value))


@pytest.mark.parametrize("value, slowness", [(None, (-1, 0.0)), ("3:200ms", (3, 0.2)), ("0:1.5s", (0, 1.5))])
def test_slow_rank(value, slowness):
    config = Config(slow_rank=value)
    check(config)
    assert config.slowness() == pytest.approx(slowness)


@pytest.mark.parametrize("other", [{"exchange": "server"}, {"staleness": 0}, {"replay": Path("runs/one")}])
def test_survive_is_for_gossip_that_does_not_wait(other):
    check(Config(survive=5.0, staleness=1))
    with pytest.raises(SettingError, match="--survive"):
        check(Config(survive=5.0, **other))


def test_a_checksum_is_for_gossip():
    with pytest.raises(SettingError, match="--checksum"):
        check(Config(exchange="allreduce", checksum=True))


@pytest.mark.parametrize(
    "settings, label",
    [
        ({"exchange": "gossip", "topology": Graph("torus")}, "GALA torus"),
        ({"exchange": "gossip", "staleness": 0}, "GALA ring, τ = 0"),
        ({"exchange": "gossip", "max_lag": 5}, "GALA ring, lag ≤ 5"),
        ({"exchange": "allreduce"}, "A2C"),
        ({"exchange": "periodic"}, "local SGD"),
        ({"exchange": "periodic", "sync_updates": 5}, "local SGD, K = 5"),
        ({"exchange": "periodic", "outer_momentum": 0.9, "outer_lr": 0.1}, "local SGD, μ = 0.9, η = 0.1"),
        ({"exchange": "none"}, "independent"),
    ],
)
def test_what_a_method_is_called(settings, label):
    config = Config(**settings)
    assert EXCHANGES[config.exchange].label(vars(config)) == label
