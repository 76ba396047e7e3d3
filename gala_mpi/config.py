"""Every setting of a run: a typed field, a default, a sentence. Read from the command line by tyro, stored as JSON.

Defaults are the GALA paper's (from the authors' code) unless the sentence says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

from gala_mpi.errors import SettingError

Exchange = Literal["gossip", "allreduce", "server", "none"]
SLOW_RANK = re.compile(r"(\d+):(\d+\.?\d*)(ms|s)")


@dataclass(frozen=True)
class A2CSettings:
    """The advantage actor-critic learner."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    gae_lambda: float = 1.0
    """λ of the returns: 1 = n-step returns, less = lambda returns (GAE)."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus in the loss."""
    value_coefficient: float = 0.5
    """Weight of the squared value error in the loss."""
    max_grad_norm: float = 0.5
    """Gradients longer than this are scaled down to it."""
    rms_alpha: float = 0.99
    """Decay of RMSprop's running mean of squared gradients."""
    rms_eps: float = 1e-5
    """RMSprop's ε, added to the root."""
    decay_lr: bool = False
    """Let the learning rate fall linearly to 0 over the run's global steps."""
    clip_rewards: Optional[bool] = None
    """Learn from the sign of rewards; scores are never clipped. None: yes for Atari, no elsewhere."""


@dataclass(frozen=True)
class Config:
    """Every setting of a training run."""

    env: str = "pong"
    """Game: an Atari game (pong, ms_pacman, ALE/Pong-v5, PongNoFrameskip-v4) or any gymnasium id (CartPole-v1)."""
    exchange: Exchange = "gossip"
    """How agents share what they learn.
    gossip = GALA: average parameters with neighbours, never wait;
    allreduce = A2C: average gradients over all ranks, in step;
    server = A3C: a shared vector in rank 0's window;
    none = independent agents."""
    topology: str = "ring"
    """Who reads whom under gossip: a graph's name, or a file with one.
    ring = 1 peer; exponential = log2 n peers; complete = everybody;
    one-peer-exponential = 1 peer, another one at every update;
    torus = the 4 neighbours on a 2-D grid that wraps around (fewer if a side is 1 or 2);
    hierarchical:K = a ring inside each node, and every K updates one over the nodes, by the hosts of the ranks.
    A file holds lines "reader peer [weight]" or a matrix of weights; python -m gala_mpi.topology shows it."""
    staleness: Optional[int] = None
    """After how many updates without mixing an agent waits for its peers. None: never.
    0 = lock-step: peers' parameters of exactly the same update are mixed; reproducible bit for bit."""
    checksum: bool = False
    """Verify every message by a checksum (gossip); for those who doubt their MPI, network or memory."""
    total_steps: int = 40_000_000
    """Steps of the whole run, over all agents; each does an equal share, in whole updates.
    1 step = 1 action in 1 simulator = 4 Atari frames."""
    num_envs: int = 16
    """Simulators per agent."""
    rollout_length: int = 5
    """Steps in each simulator per update."""
    lr: Optional[float] = None
    """Learning rate. None: 7e-4 * sqrt(simulators of all agents / 16)."""
    seed: int = 0
    """Seeds the initial weights (the same on all agents) and the agents' own streams (all different)."""
    network: Optional[Literal["gala", "nature", "mlp"]] = None
    """gala = 32-64-32 convolutions + 512 units; nature = 32-64-64 + 512; mlp = 64-64.
    None: gala for images, mlp for the rest."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network's layers. auto = bf16 where rank 0 measures that it is faster.
    Parameters, gradients and messages are float32 either way."""
    device: str = "cpu"
    """cpu, cuda (ranks of a node are dealt over its GPUs) or cuda:0."""
    sticky: float = 0.0
    """Probability that an Atari emulator repeats the last action (Machado et al. 2018 use 0.25)."""
    run_dir: Optional[Path] = None
    """Where the run is kept. None: runs/<env>-<exchange>-<time>."""
    resume: bool = False
    """Continue the run in --run-dir from its newest complete checkpoint, on any number of ranks.
    Its settings apply; those given here replace them."""
    exact_resume: bool = False
    """A run that is stopped and resumed equals one that never stopped, bit for bit: at each checkpoint all simulators begin
    new games. For ranks in step (--staleness 0, --exchange allreduce, one rank); it stops only at a checkpoint."""
    checkpoint_updates: Optional[int] = None
    """With --exact-resume: updates between checkpoints. None: 5000, some minutes."""
    replay: Optional[Path] = None
    """Run again what was recorded in this run directory, with exactly its mixes, into a new one: bit for bit the same.
    Its settings apply; those given here must agree, but for what only concerns how results are kept."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints, without --exact-resume."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept; the best one is kept as well."""
    sketch_updates: int = 100
    """Updates from one sketch of parameters and gradient (32 KiB in the metrics file) to the next; 0: none.
    From these the analysis tells how far agents are apart."""
    wall_minutes: Optional[float] = None
    """Save and stop after this many minutes. None: no limit."""
    survive: Optional[float] = None
    """Go on without an agent that shows no sign of life for so many seconds (or 3 times its longest silence so far, if
    that is more). Only with gossip, and where the launcher spares the other ranks: see the README.
    None: a dead rank ends the job."""
    slow_rank: Optional[str] = None
    """RANK:TIME, for example 3:200ms: that agent computes so much longer at every update. For tests of stragglers."""
    a2c: A2CSettings = field(default_factory=A2CSettings)

    def learning_rate(self, agents: int) -> float:
        """The learning rate at the start: `lr`, or the paper's square-root rule over all agents' simulators."""
        return self.lr if self.lr is not None else 7e-4 * math.sqrt(self.num_envs * agents / 16)

    def slowness(self) -> tuple[int, float]:
        """Whom `slow_rank` slows down, and by how many seconds an update; (-1, 0.0): nobody."""
        if self.slow_rank is None:
            return -1, 0.0
        rank, number, unit = SLOW_RANK.fullmatch(self.slow_rank).groups()
        return int(rank), float(number) * {"ms": 1e-3, "s": 1.0}[unit]

    @property
    def in_step(self) -> bool:
        """Whether all agents stand at the same update."""
        return self.exchange == "allreduce" or self.staleness == 0

    def updates(self, agents: int, done: int = 0, steps: int = 0) -> int:
        """The update at which each of `agents` agents ends, when they have done `done` updates and `steps` steps in all."""
        per_update = self.num_envs * self.rollout_length
        return math.ceil((self.total_steps - steps + done * per_update) / (agents * per_update))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> Config:
        values: dict[str, Any] = json.loads(text)
        values["a2c"] = A2CSettings(**values["a2c"])
        for name in ("run_dir", "replay"):
            values[name] = Path(values[name]) if values.get(name) else None
        return Config(**values)


def parse(arguments: list[str] | None = None) -> Config:
    """The command line → settings. With --resume the stored settings of --run-dir are the defaults, with --replay those of
    the run to replay.

    Raises:
        SystemExit: 0 after --help, 2 after a flag that tyro refuses (it has printed why).
        SettingError: --resume or --replay without a run.
    """
    import tyro  # only rank 0 parses, so only rank 0 pays for the import

    arguments = sys.argv[1:] if arguments is None else arguments
    return tyro.cli(
        Config,
        prog="python -m gala_mpi.train",
        description="Train one policy with many actor-learners: one MPI rank is one agent.\n\n"
        "  mpirun -n 32 python -m gala_mpi.train                        Pong with GALA, 40 million steps\n"
        "  mpirun -n 4 python -m gala_mpi.train --env breakout --topology exponential\n"
        "  mpirun -n 4 python -m gala_mpi.train --exchange allreduce    the A2C baseline\n"
        "  mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/...",
        args=arguments,
        default=_stored(arguments),
    )


def _stored(arguments: list[str]) -> Config:
    """The defaults that the command line is read against: this module's, or those of the run that is resumed or replayed."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", action="store_true")
    early.add_argument("--run-dir", "--run_dir", type=Path)
    early.add_argument("--replay", type=Path)
    try:
        known, _ = early.parse_known_args(arguments)
    except SystemExit:  # a flag without its value: tyro says so better
        return Config()
    from gala_mpi import store

    if known.replay is not None:
        stored = store.read_config(known.replay, "--replay")
        return dataclasses.replace(stored, run_dir=None, resume=False, wall_minutes=None, slow_rank=None, survive=None)
    if not known.resume:
        return Config()
    if known.run_dir is None:
        raise SettingError("--resume needs --run-dir DIR, the run to continue")
    return store.read_config(known.run_dir)


@dataclass(frozen=True)
class Evaluation:
    """Play a run's policies and say how good they are."""

    run: Path
    """The run directory."""
    episodes: int = 10
    """Games per policy."""
    checkpoint: str = "newest"
    """newest, best (by training score) or a checkpoint's number."""
    policies: Literal["all", "mean"] = "all"
    """all = every agent's policy and the one with their averaged parameters; mean = the averaged one alone."""
    sample: bool = False
    """Draw actions from the policy instead of taking the most probable one."""
    seed: int = 1
    """Seeds the games: the same seed deals the same games to every policy, on any number of ranks."""
    video: Optional[Path] = None
    """Also film one game of the averaged policy: FILE.mp4 or FILE.gif."""


def parse_evaluation(arguments: list[str]) -> Evaluation:
    """The command line of `gala_mpi.evaluate`. Raises SystemExit as `parse` does."""
    import tyro

    return tyro.cli(
        Evaluation,
        prog="python -m gala_mpi.evaluate",
        description="Play a run's policies: mean score ± standard error, up to 30 no-ops at the start.\n\n"
        "  python -m gala_mpi.evaluate runs/pong-...\n"
        "  mpirun -n 8 python -m gala_mpi.evaluate runs/pong-... --episodes 100\n"
        "  python -m gala_mpi.evaluate runs/pong-... --policies mean --video pong.mp4",
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs,),
    )


def check_evaluation(wanted: Evaluation) -> None:
    """Refuse what cannot work, before the first game. Raises SettingError."""
    if wanted.episodes < 1:
        raise SettingError(f"--episodes {wanted.episodes}: a whole number, 1 or more, is expected")
    if wanted.seed < 0:
        raise SettingError(f"--seed {wanted.seed}: a whole number, 0 or more, is expected")
    if wanted.checkpoint not in ("newest", "best") and not wanted.checkpoint.isdigit():
        raise SettingError(f"--checkpoint {wanted.checkpoint}: newest, best or a checkpoint's number is expected")
    if wanted.video is not None:
        if wanted.video.suffix not in (".mp4", ".gif"):
            raise SettingError(f"--video {wanted.video}: a name that ends in .mp4 or .gif is expected")
        if not wanted.video.absolute().parent.is_dir():
            raise SettingError(f"--video {wanted.video}: a file in a folder that exists is expected")


@dataclass(frozen=True)
class Watch:
    """How a run is doing, from its files alone."""

    run: Path
    """The run directory, of a live or an ended run."""
    once: bool = False
    """Print once instead of following the run. So it is where output is no terminal, too."""
    value: Optional[Literal["state", "steps", "rate", "score", "idle_starts"]] = None
    """Print one value alone, for scripts. rate: steps/s; idle_starts: how many of the last starts brought no progress."""


def parse_watch(arguments: list[str]) -> Watch:
    """The command line of `gala_mpi.watch`. Raises SystemExit as `parse` does."""
    import tyro

    return tyro.cli(
        Watch,
        prog="python -m gala_mpi.watch",
        description="How a run is doing, live or afterwards, from its files alone: on any host that sees them, without MPI.\n\n"
        "  python -m gala_mpi.watch runs/pong-...\n"
        "  python -m gala_mpi.watch runs/pong-... --value steps",
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs,),
    )


@dataclass(frozen=True)
class GraphView:
    """What a graph is like: who reads whom, how fast it averages, what it costs."""

    topology: str
    """ring, exponential, one-peer-exponential, complete, torus, hierarchical:K, or a file as for --topology of training."""
    agents: Optional[int] = None
    """How many agents; -n for short. A file may say so itself."""
    nodes: int = 4
    """Over how many nodes the agents of hierarchical:K are dealt."""
    parameters: int = 866_439
    """Length of the vectors that are sent, as float32. The default is that of network gala on Pong."""
    out: Optional[Path] = None
    """Also draw the graph into this file: FILE.png, FILE.svg or FILE.pdf."""
    json: bool = False
    """Print one JSON object instead of a table and a drawing."""


def parse_graph_view(arguments: list[str]) -> GraphView:
    """The command line of `gala_mpi.topology`. Raises SystemExit as `parse` does."""
    import tyro

    return tyro.cli(
        GraphView,
        prog="python -m gala_mpi.topology",
        description="Print and draw who reads whom.\n\n"
        "  python -m gala_mpi.topology ring -n 32\n"
        "  python -m gala_mpi.topology exponential -n 1000 --out graph.png\n"
        "  python -m gala_mpi.topology my_graph.txt",
        args=[re.sub(r"^-n(\d*)$", lambda n: f"--agents={n[1]}" if n[1] else "--agents", word) for word in arguments],
        config=(tyro.conf.PositionalRequiredArgs,),
    )


def check_graph_view(wanted: GraphView) -> None:
    """Refuse what cannot work. Raises SettingError."""
    if wanted.agents is not None and wanted.agents < 1:
        raise SettingError(f"-n {wanted.agents}: a whole number, 1 or more, is expected")
    if wanted.nodes < 1:
        raise SettingError(f"--nodes {wanted.nodes}: a whole number, 1 or more, is expected")
    if wanted.parameters < 1:
        raise SettingError(f"--parameters {wanted.parameters}: a whole number, 1 or more, is expected")
    if wanted.out is not None:
        if wanted.out.suffix not in (".png", ".svg", ".pdf"):
            raise SettingError(f"--out {wanted.out}: a name that ends in .png, .svg or .pdf is expected")
        if not wanted.out.absolute().parent.is_dir():
            raise SettingError(f"--out {wanted.out}: a file in a folder that exists is expected")


@dataclass(frozen=True)
class TrainBench:
    """How fast the real training loop runs: one rank alone against all ranks, and where an update's time goes."""

    settings: Config = field(default_factory=Config)
    """What is trained."""
    rounds: int = 3
    """How often one rank and all ranks take turns; medians over the rounds are printed."""
    updates: int = 150
    """Updates that each rank does in a turn."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class ExchangeBench:
    """What an exchange costs: against copying the same bytes, against Allreduce, and as a share of an update."""

    settings: Config = field(default_factory=Config)
    """What is trained."""
    updates: int = 200
    """Updates that each rank does."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class FrozenBench:
    """Whether anybody waits: one rank is frozen (SIGSTOP) while all train; the longest stall of the others is printed."""

    settings: Config = field(default_factory=Config)
    """What is trained."""
    frozen: Optional[int] = None
    """The rank to freeze. None: the last one."""
    seconds: float = 5.0
    """How long it stays frozen."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class StragglerBench:
    """What one slow rank costs the others: gossip against all-reduce, each with and without a straggler."""

    settings: Config = field(default_factory=Config)
    """What is trained. Without --slow-rank the last rank is slowed tenfold."""
    seconds: float = 15.0
    """How long each of the four turns lasts."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class Examination:
    """Whether the machine, MPI and the place for a run are well."""

    settings: Config = field(default_factory=Config)
    """What will be trained: it is this run's windows, memory and directory that are looked at."""
    json: bool = False
    """Print one JSON object instead of a table."""


def parse_examination(arguments: list[str]) -> Examination:
    """The command line of `gala_mpi.doctor`. Raises SystemExit as `parse` does."""
    import tyro

    return tyro.cli(
        Examination,
        prog="python -m gala_mpi.doctor",
        description="Look at the machine, MPI and the run directory; say what is wrong and what to do about it.\n\n"
        "  mpirun -n 4 python -m gala_mpi.doctor\n"
        "  mpirun -n 4 python -m gala_mpi.doctor --network nature --run-dir /scratch/me/runs/pong",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


Bench = TrainBench | ExchangeBench | FrozenBench | StragglerBench


def parse_bench(arguments: list[str]) -> TrainBench:
    """The command line of `gala_mpi.bench`. Raises SystemExit as `parse` does."""
    import tyro

    return tyro.extras.subcommand_cli_from_dict(
        {"train": TrainBench, "exchange": ExchangeBench, "frozen": FrozenBench, "straggler": StragglerBench},
        prog="python -m gala_mpi.bench",
        description="Benchmarks. Machines are noisy: ratios within one call mean more than figures across calls.\n\n"
        "  mpirun -n 2 python -m gala_mpi.bench train\n"
        "  mpirun -n 4 python -m gala_mpi.bench train --topology exponential --network nature --json\n"
        "  mpirun -n 4 python -m gala_mpi.bench exchange\n"
        "  mpirun -n 4 python -m gala_mpi.bench frozen --seconds 5\n"
        "  mpirun -n 4 python -m gala_mpi.bench straggler --slow-rank 3:200ms",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def check_bench(bench: Bench, ranks: int) -> None:
    """Refuse what cannot work on so many ranks. Raises SettingError."""
    check(bench.settings)
    for name in ("rounds", "updates"):
        if getattr(bench, name, 1) < 1:
            raise SettingError(f"--{name} {getattr(bench, name)}: a whole number, 1 or more, is expected")
    if not 0 < getattr(bench, "seconds", 1.0) < math.inf:
        raise SettingError(f"--seconds {bench.seconds}: a positive number is expected")
    if not isinstance(bench, TrainBench) and ranks < 2:
        raise SettingError("1 rank: 2 or more are expected (mpirun -n 2 ...)")
    if isinstance(bench, FrozenBench) and not 0 <= (bench.frozen or 0) < ranks:
        raise SettingError(f"--frozen {bench.frozen}: a rank from 0 to {ranks - 1} is expected")


def check(config: Config) -> None:
    """Refuse settings that cannot work, before any long work starts.

    Raises:
        SettingError: names the flag, the value seen and the values allowed.
    """

    def require(holds: bool, flag: str, value: object, allowed: str) -> None:
        if not holds:
            raise SettingError(f"{flag} {value}: {allowed} is expected")

    def unset_or(holds: Callable[[Any], bool], value: object) -> bool:
        return value is None or holds(value)

    require(config.num_envs >= 1, "--num-envs", config.num_envs, "a whole number of simulators per agent, 1 or more,")
    require(config.rollout_length >= 1, "--rollout-length", config.rollout_length, "a whole number of steps, 1 or more,")
    require(config.total_steps >= 1, "--total-steps", config.total_steps, "a whole number of steps, 1 or more,")
    require(config.seed >= 0, "--seed", config.seed, "a whole number, 0 or more,")
    require(unset_or(lambda x: x >= 0, config.staleness), "--staleness", config.staleness, "a number of updates, 0 or more,")
    require(unset_or(lambda x: 0 < x < math.inf, config.lr), "--lr", config.lr, "a positive number")
    require(0 <= config.sticky <= 1, "--sticky", config.sticky, "a probability, 0 to 1,")
    require(config.checkpoint_minutes > 0, "--checkpoint-minutes", config.checkpoint_minutes, "a positive number of minutes")
    require(
        unset_or(lambda x: x >= 1, config.checkpoint_updates),
        "--checkpoint-updates",
        config.checkpoint_updates,
        "a whole number of updates, 1 or more,",
    )
    require(
        config.exact_resume or config.checkpoint_updates is None,
        "--checkpoint-updates",
        config.checkpoint_updates,
        "--exact-resume with it",
    )
    require(config.sketch_updates >= 0, "--sketch-updates", config.sketch_updates, "a number of updates, 0 or more,")
    require(config.keep_checkpoints >= 1, "--keep-checkpoints", config.keep_checkpoints, "a whole number, 1 or more,")
    require(
        unset_or(lambda x: x > 0, config.wall_minutes), "--wall-minutes", config.wall_minutes, "a positive number of minutes"
    )
    a2c = config.a2c
    require(0 <= a2c.discount <= 1, "--a2c.discount", a2c.discount, "a number from 0 to 1")
    require(0 <= a2c.gae_lambda <= 1, "--a2c.gae-lambda", a2c.gae_lambda, "a number from 0 to 1")
    require(
        0 <= a2c.entropy_coefficient < math.inf, "--a2c.entropy-coefficient", a2c.entropy_coefficient, "a number, 0 or more,"
    )
    require(0 <= a2c.value_coefficient < math.inf, "--a2c.value-coefficient", a2c.value_coefficient, "a number, 0 or more,")
    require(a2c.max_grad_norm > 0, "--a2c.max-grad-norm", a2c.max_grad_norm, "a positive number")
    require(0 <= a2c.rms_alpha < 1, "--a2c.rms-alpha", a2c.rms_alpha, "a number from 0 to below 1")
    require(0 < a2c.rms_eps < math.inf, "--a2c.rms-eps", a2c.rms_eps, "a positive number")
    require(
        unset_or(SLOW_RANK.fullmatch, config.slow_rank),
        "--slow-rank",
        config.slow_rank,
        "RANK:TIME, for example 3:200ms or 0:1.5s,",
    )
    require(not (config.replay and config.resume), "--resume --replay", config.replay, "one of the two")
    require(not (config.replay and config.survive), "--survive --replay", config.replay, "one of the two")
    gossip = config.exchange == "gossip"
    require(unset_or(lambda x: 0 < x < math.inf, config.survive), "--survive", config.survive, "a positive number of seconds")
    require(gossip or config.survive is None, f"--survive {config.survive} --exchange", config.exchange, "--exchange gossip")
    require(
        config.staleness != 0 or config.survive is None,
        f"--survive {config.survive} --staleness",
        config.staleness,
        "a bound of 1 or more, or none,",
    )
    require(gossip or not config.checksum, "--checksum --exchange", config.exchange, "--exchange gossip")
    require(
        gossip or config.staleness is None,
        f"--exchange {config.exchange} --staleness",
        config.staleness,
        "a staleness bound only with --exchange gossip",
    )
