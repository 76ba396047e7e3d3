"""Every setting of a run: a typed field, a default, a sentence. Read from the command line by tyro, stored as JSON.

Defaults are the GALA paper's (from the authors' code) unless the sentence says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

from gala_mpi import cli
from gala_mpi.cli import require, require_whole
from gala_mpi.envs.settings import AtariSettings
from gala_mpi.errors import SettingError
from gala_mpi.exchange import EXCHANGES
from gala_mpi.lazy import Member
from gala_mpi.learners import LEARNERS
from gala_mpi.learners.settings import A2CSettings, LearnerSettings
from gala_mpi.networks import NETWORKS
from gala_mpi.topology import Graph

# The names in the tables, of which the command line takes one
if TYPE_CHECKING:
    ExchangeName = LearnerName = NetworkName = str
else:
    ExchangeName, LearnerName, NetworkName = Literal[*EXCHANGES], Literal[*LEARNERS], Literal[*NETWORKS]

TABLES: dict[str, Mapping[str, Member]] = {"--exchange": EXCHANGES, "--learner": LEARNERS, "--network": NETWORKS}
RING = Graph("ring")
# A step moves no parameter by more than some multiple of the learning rate, unless ε is smaller than a gradient whose square
# is too small for float32. So with these bounds parameters do not overflow, whatever the gradients.
LARGEST_LR, SMALLEST_EPS = 1e6, 1e-12
PAPER_LR = 7e-4  # for 16 environments
SHORTEST_PAUSE = 0.001  # minutes: checkpoints take about as long
LONGEST_HANG = 1_000_000  # minutes; timers of the system end somewhere
SLOW_RANK = re.compile(r"(\d+):(\d+\.?\d*)(ms|s)")


@dataclass(frozen=True)
class Config:
    """Every setting of a training run."""

    env: str = "pong"
    """Environment: an Atari game (pong, ms_pacman, ALE/Pong-v5, PongNoFrameskip-v4), any gymnasium id (CartPole-v1),
    MODULE:ID where importing a module of yours registers it, or one of EnvPool's (envpool:HalfCheetah-v4). What the names of
    Atari games mean: docs/environments.md."""
    env_kwargs: tuple[str, ...] = ()
    """What an environment of gymnasium or EnvPool is told: KEY=VALUE ..., as gravity=-5.0 map_name=8x8. A value that is no
    literal of Python's is a string."""
    wrappers: tuple[str, ...] = ()
    """Wrappers around each gymnasium environment, the innermost first: classes of gymnasium.wrappers or MODULE:FUNCTION, with
    arguments behind a colon, as FlattenObservation FrameStackObservation:4,padding_type=zero my_module:shaped:0.5."""
    atari: AtariSettings = field(default_factory=AtariSettings)
    exchange: ExchangeName = "gossip"
    """How agents share what they learn: one of those listed above."""
    topology: Graph = RING
    """Who reads whom under gossip: a graph's name, or a file with one.
    ring = 1 peer; exponential = log2 n peers; complete = everybody;
    one-peer-exponential = 1 peer, another one at every update;
    torus = the 4 neighbours on a 2-D grid that wraps around (fewer if a side is 1 or 2);
    hierarchical:K = a ring inside each node, and every K updates one over the nodes, by the hosts of the ranks.
    A file holds lines "reader peer [weight]" or a matrix of weights; python -m gala_mpi.topology shows it."""
    staleness: Optional[int] = None
    """After how many updates without mixing an agent waits for its peers. None: never.
    It bounds the updates without a mix, not how old what is mixed may be: that is --max-lag.
    0 = lock-step: peers' parameters of exactly the same update are mixed; reproducible bit for bit."""
    max_lag: Optional[int] = None
    """Under gossip, messages that are more updates than this behind their reader are not mixed (by the updates that both have
    done since the start). None: all are. An agent mixes once every in-peer has one that may be. So whoever reads a lasting
    straggler soon mixes nothing, or waits for it if --staleness is given; the straggler goes on mixing what it reads.
    On CartPole beside one, 10 learnt better than None: docs/transport.md."""
    sync_updates: Optional[int] = None
    """With --exchange periodic: updates between two averages. None: 10."""
    checksum: bool = False
    """Verify every message by a checksum (gossip); for those who doubt their MPI, network or memory."""
    total_steps: int = 40_000_000
    """Steps of the whole run, counted over all agents. Agents that wait for each other do an equal share each; of others the
    faster ones do more, and all stop once the sum is reached.
    1 step = 1 action in 1 environment = 4 Atari frames (--atari.frame-skip)."""
    num_envs: int = 16
    """Environments per agent."""
    env_workers: int = 0
    """Worker processes per agent that step its environments, for gymnasium environments that take a millisecond a step or more.
    0: the agent does so itself. With --overlap each half of the environments has half of them."""
    overlap: bool = False
    """Let two halves of an agent's environments take turns: one half plays while the network chooses the other's actions.
    Both see the same parameters, so nothing lags behind. For agents with more than one core (or a GPU), and environments that
    do not play in the agent's own process: Atari, EnvPool, --env-workers."""
    rollout_length: int = 5
    """Steps in each environment per update."""
    lr: Optional[float] = None
    """Learning rate, up to a million. None: base-lr * sqrt(environments / 16): those of all agents, or of one where
    agents share nothing."""
    base_lr: Optional[float] = None
    """Without --lr, the learning rate for 16 environments. None: 7e-4 (the paper's) where the network sees images, 2e-3
    where it sees numbers alone."""
    seed: int = 0
    """Seeds the initial weights (the same on all agents) and the agents' own streams (all different)."""
    network: Optional[NetworkName] = None
    """The network: one of those listed above. None: gala for images (small where a side has less than
    36 pixels), mlp for the rest."""
    spaces: Literal["scaled", "raw"] = "scaled"
    """What becomes of the observations and actions of gymnasium environments: scaled = bytes by their upper bound, actions of a
    bounded Box to its bounds (docs/environments.md); raw = as runs before this setting saw them, which keep it."""
    action_std: float = 1.0
    """The standard deviation of a Box of actions at the start of a run: a share of half of the range between its bounds."""
    normalise_observations: bool = False
    """Bring the numbers of observations to mean 0 and variance 1, by running statistics that agents share and save as they do
    parameters (docs/environments.md). For observations that are numbers, not images. A run keeps its choice."""
    normalise_rewards: bool = False
    """Divide the rewards that are learnt from by the standard deviation of discounted returns, likewise; scores are not."""
    learner: LearnerName = "a2c"
    """The learning algorithm: one of those listed above. Its settings are flags of its name, like --a2c.discount."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network's layers. auto = bf16 for images where rank 0 measures that it is faster, else fp32.
    Parameters, gradients and messages are float32 either way."""
    device: str = "cpu"
    """cpu, cuda (ranks of a node are dealt over its GPUs) or cuda:0."""
    run_dir: Optional[Path] = None
    """Where the run is kept. None: runs/<env>-<exchange>-<time>."""
    resume: bool = False
    """Continue the run in --run-dir from its newest complete checkpoint, on any number of ranks.
    Its settings apply; those given here replace them."""
    exact_resume: bool = False
    """A run that is stopped and resumed equals one that never stopped, bit for bit: at each checkpoint all environments begin
    new episodes. For ranks in step (--staleness 0, --exchange allreduce or periodic, one rank). Stops only at a checkpoint."""
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
    that is more). Only with gossip, and where the launcher spares the other ranks: see docs/survival.md.
    None: a dead rank ends the job."""
    max_skipped: int = 100
    """How many updates in a row an agent may skip, learning nothing, because a number is not finite: a reward or observation,
    the gradient. One more ends the job with status 1. The message names the number."""
    hang_minutes: Optional[float] = None
    """End the job with status 1 when a rank has made no update for so many minutes, and say where it stands. More than the
    longest update, checkpoint and pause (SIGSTOP) of any rank. None: who waits says for whom, every 30 s, and goes on."""
    slow_rank: Optional[str] = None
    """RANK:TIME, for example 3:200ms: that agent computes so much longer at every update. For tests of stragglers."""
    a2c: A2CSettings = field(default_factory=A2CSettings)

    @property
    def directory(self) -> Path:
        """The run directory, once it is settled where that is (`job.prepare`)."""
        assert self.run_dir is not None
        return self.run_dir

    def learning_rate(self, agents: int) -> float:
        """The learning rate at the start: `lr`, or the paper's square-root rule over the environments of all agents that
        learn together, from `base_lr` on, which `job.prepare` settles."""
        together = agents if EXCHANGES[self.exchange].load().shares else 1
        base = PAPER_LR if self.base_lr is None else self.base_lr
        return self.lr if self.lr is not None else base * math.sqrt(self.num_envs * together / 16)

    def slowness(self) -> tuple[int, float]:
        """Whom `slow_rank` slows down, and by how many seconds an update; (-1, 0.0): nobody."""
        if self.slow_rank is None:
            return -1, 0.0
        match = SLOW_RANK.fullmatch(self.slow_rank)
        assert match is not None  # `check` refuses any other
        rank, number, unit = match.groups()
        return int(rank), float(number) * {"ms": 1e-3, "s": 1.0}[unit]

    @property
    def learner_field(self) -> str:
        """The field that holds what the learner is told: the one of its name; a2c for a learner without settings of its own."""
        return self.learner if isinstance(getattr(self, self.learner, None), LearnerSettings) else "a2c"

    @property
    def learner_settings(self) -> LearnerSettings:
        """What the learner is told."""
        return getattr(self, self.learner_field)

    @property
    def in_step(self) -> bool:
        """Whether all agents stand at the same update."""
        return EXCHANGES[self.exchange].load().in_step(self)

    @property
    def exact_updates(self) -> int:
        """Updates from one checkpoint of an exact run to the next; its episodes are cut off at each, so not too few."""
        return self.checkpoint_updates or 5000

    @property
    def steps_per_update(self) -> int:
        """Steps of one agent's update."""
        return self.num_envs * self.rollout_length

    def updates(self, agents: int, done: int = 0, steps: int = 0) -> int:
        """The update at which each of `agents` agents ends that share equally, when they have done `done` updates and `steps`
        steps in all."""
        per_update = self.steps_per_update
        return math.ceil((self.total_steps - steps + done * per_update) / (agents * per_update))

    @property
    def turns(self) -> int:
        """Into how many parts that take turns an agent's environments are divided."""
        return 2 if self.overlap else 1

    @property
    def env_options(self) -> dict[str, Any]:
        """What `envs.registry.make` is told besides the environment's name."""
        return {"atari": self.atari, "kwargs": self.env_kwargs, "wrappers": self.wrappers, "raw": self.spaces == "raw"}

    @property
    def statistics(self) -> dict[str, bool]:
        """What a network is told of the statistics that it keeps."""
        return {"normalise_observations": self.normalise_observations, "normalise_rewards": self.normalise_rewards}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> Config:
        values: dict[str, Any] = with_new_names(json.loads(text))
        for each in dataclasses.fields(Config):
            kind = each.default_factory
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and each.name in values:
                values[each.name] = kind(**values[each.name])
        values["topology"] = Graph.from_stored(values["topology"])
        for name in ("run_dir", "replay"):
            values[name] = Path(values[name]) if values.get(name) else None
        for name in ("env_kwargs", "wrappers"):
            values[name] = tuple(values.get(name, ()))
        return Config(**values)


def with_new_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run has stored, as an older version meant them: with today's names, and what it had no
    choice in."""
    values = {"spaces": "raw"} | stored
    if values.get("lr") is None:
        values.setdefault("base_lr", PAPER_LR)
    if "sticky" in values:
        values["atari"] = {"sticky": values.pop("sticky") or None}  # names of games meant 0 then
    return values


def parse(arguments: list[str], default: Config | None = None) -> Config:
    """The command line → settings.

    Args:
        default: the settings that flags replace; None: this module's.

    Raises:
        SystemExit: 0 after --help, 2 after a flag that tyro refuses (it has printed why).
    """
    return cli.parse(
        Config,
        "train",
        "Train one policy with many actor-learners: one MPI rank is one agent.\n\n"
        "  mpirun -n 32 python -m gala_mpi.train                        Pong with GALA, 40 million steps\n"
        "  mpirun -n 4 python -m gala_mpi.train --env breakout --topology exponential\n"
        "  mpirun -n 4 python -m gala_mpi.train --exchange allreduce    the A2C baseline\n"
        "  mpirun -n 32 python -m gala_mpi.train --resume --run-dir runs/...\n\n"
        + "\n\n".join(_members(flag, table) for flag, table in TABLES.items()),
        [re.sub(r"^--sticky(?=$|=)", "--atari.sticky", word) for word in arguments],
        default=default or Config(),
    )


def _members(flag: str, table: Mapping[str, Member]) -> str:
    """A table's members, a line each."""
    return f"{flag}:\n" + "\n".join(f"  {name} = {member.sentence}" for name, member in table.items())


def check(config: Config) -> None:
    """Refuse settings that cannot work, before any long work starts.

    Raises:
        SettingError: names the flag, the value seen and the values allowed.
    """
    c, a2c = config, config.a2c
    require_whole("--num-envs", c.num_envs, 1)
    require_whole("--env-workers", c.env_workers, 0)
    require_whole("--rollout-length", c.rollout_length, 1)
    require_whole("--total-steps", c.total_steps, 1)
    require_whole("--seed", c.seed, 0)
    require_whole("--staleness", c.staleness, 0)
    require_whole("--max-lag", c.max_lag, 0)
    require_whole("--sync-updates", c.sync_updates, 1)
    require_whole("--checkpoint-updates", c.checkpoint_updates, 1)
    require_whole("--sketch-updates", c.sketch_updates, 0)
    require_whole("--keep-checkpoints", c.keep_checkpoints, 1)
    require_whole("--max-skipped", c.max_skipped, 0)
    require(c.lr is None or 0 < c.lr <= LARGEST_LR, "--lr", c.lr, f"a positive number, {LARGEST_LR:g} at most,")
    base = c.base_lr
    require(base is None or 0 < base <= LARGEST_LR, "--base-lr", base, f"a positive number, {LARGEST_LR:g} at most,")
    pause = c.checkpoint_minutes
    require(SHORTEST_PAUSE <= pause < math.inf, "--checkpoint-minutes", pause, f"a number, {SHORTEST_PAUSE} or more,")
    _require_positive("--wall-minutes", c.wall_minutes)
    _require_positive("--survive", c.survive)
    hang = c.hang_minutes
    require(hang is None or 0 < hang <= LONGEST_HANG, "--hang-minutes", hang, f"a positive number, {LONGEST_HANG:,} at most,")
    require(SMALLEST_EPS <= a2c.rms_eps < math.inf, "--a2c.rms-eps", a2c.rms_eps, f"a number, {SMALLEST_EPS:g} or more,")
    require(a2c.max_grad_norm > 0, "--a2c.max-grad-norm", a2c.max_grad_norm, "a positive number")
    require(1e-6 <= c.action_std <= 1e6, "--action-std", c.action_std, "a number from 1e-6 to 1e6")
    sticky = c.atari.sticky
    require(sticky is None or 0 <= sticky <= 1, "--atari.sticky", sticky, "a probability, 0 to 1,")
    require_whole("--atari.frame-skip", c.atari.frame_skip, 1)
    require_whole("--atari.no-ops", c.atari.no_ops, 0)
    require_whole("--atari.frame-limit", c.atari.frame_limit, 1)
    require(0 <= a2c.discount <= 1, "--a2c.discount", a2c.discount, "a number from 0 to 1")
    require(0 <= a2c.gae_lambda <= 1, "--a2c.gae-lambda", a2c.gae_lambda, "a number from 0 to 1")
    require(0 <= a2c.rms_alpha < 1, "--a2c.rms-alpha", a2c.rms_alpha, "a number from 0 to below 1")
    for flag, weight in (("entropy", a2c.entropy_coefficient), ("value", a2c.value_coefficient)):
        require(weight is None or 0 <= weight < math.inf, f"--a2c.{flag}-coefficient", weight, "a number, 0 or more,")
    slow = c.slow_rank is None or SLOW_RANK.fullmatch(c.slow_rank)
    require(slow, "--slow-rank", c.slow_rank, "RANK:TIME, for example 3:200ms or 0:1.5s,")
    _check_together(config)


def check_no_run(config: Config, who: str) -> None:
    """For programs that read no run: refuse the flags that name one. Raises SettingError."""
    for flag, value in (("--resume", config.resume), ("--replay", config.replay)):
        if value:
            raise SettingError(f"{flag}: {who} reads no run; the flags that the run was started with are expected")


def _check_together(c: Config) -> None:
    """Refuse what does not go together."""
    require(c.num_envs % 2 == 0 or not c.overlap, "--overlap --num-envs", c.num_envs, "an even number")
    require(c.env_workers % 2 == 0 or not c.overlap, "--overlap --env-workers", c.env_workers, "an even number")
    require(c.env_workers <= c.num_envs, f"--num-envs {c.num_envs} --env-workers", c.env_workers, f"{c.num_envs} or less")
    marks = c.exact_resume or c.checkpoint_updates is None
    require(marks, "--checkpoint-updates", c.checkpoint_updates, "--exact-resume with it")
    for flag, other in (("--resume", c.resume), ("--survive", c.survive), ("--wall-minutes", c.wall_minutes)):
        require(not (c.replay and other), f"{flag} --replay", c.replay, "one of the two")
    clipped = f"--{c.learner_field}.clip-rewards"
    require(
        not (c.normalise_rewards and c.learner_settings.clip_rewards), f"--normalise-rewards {clipped}", True, "one of the two"
    )
    if c.survive is not None:
        require(c.staleness != 0, f"--survive {c.survive} --staleness", c.staleness, "a bound of 1 or more, or none,")
    if c.max_lag is not None:
        require(c.staleness != 0, f"--max-lag {c.max_lag} --staleness", c.staleness, "a bound of 1 or more, or none,")
    for name, flag, given in (
        ("survive", f"--survive {c.survive}", c.survive is not None),
        ("staleness", f"--staleness {c.staleness}", c.staleness is not None),
        ("max_lag", f"--max-lag {c.max_lag}", c.max_lag is not None),
        ("checksum", "--checksum", c.checksum),
        ("sync_updates", f"--sync-updates {c.sync_updates}", c.sync_updates is not None),
    ):
        if given and name not in EXCHANGES[c.exchange].load().takes:
            takers = [exchange for exchange, member in EXCHANGES.items() if name in member.load().takes]
            raise SettingError(f"{flag} --exchange {c.exchange}: --exchange {' or '.join(takers)} is expected")


def _require_positive(flag: str, value: float | None) -> None:
    require(value is None or 0 < value < math.inf, flag, value, "a positive number")
