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

from gala_mpi import cli, networks
from gala_mpi.envs.settings import AtariSettings
from gala_mpi.exchange import EXCHANGES
from gala_mpi.lazy import Member
from gala_mpi.learners import LEARNERS
from gala_mpi.learners.settings import PAPER_LR, A2CSettings, LearnerSettings, PPOSettings, VTraceSettings
from gala_mpi.networks import NETWORKS
from gala_mpi.topology import Graph

# The names in the tables, of which the command line takes one
if TYPE_CHECKING:
    ExchangeName = LearnerName = str
else:
    ExchangeName, LearnerName = Literal[*EXCHANGES], Literal[*LEARNERS]

TABLES: dict[str, Mapping[str, Member]] = {"--exchange": EXCHANGES, "--learner": LEARNERS, "--network": NETWORKS}
RING = Graph("ring")
SLOW_RANK = re.compile(r"(\d+):(\d+\.?\d*)(ms|s)")


@dataclass(frozen=True)
class Config:
    """Every setting of a training run, as a flag of the command `train`, whose `--help` says what each does:
    `num_envs` is `--num-envs`, and of the table `a2c` `discount` is `--a2c.discount`."""

    env: str = "pong"
    """Environment: an Atari game (pong, ms_pacman, ALE/Pong-v5, PongNoFrameskip-v4), any gymnasium id (CartPole-v1),
    MODULE:ID where importing a module of yours registers it, MODULE:FUNCTION where a function of it makes one, or one of
    EnvPool's (envpool:HalfCheetah-v4). What the names of Atari games mean: docs/environments.md."""
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
    base:K = at most K peers (K is 1 if left out), others at every update, and after a period the exact mean of any number;
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
    mix_steps: Optional[int] = None
    """Under gossip, for learners that take several steps of the optimiser on a rollout (ppo): after how many of them agents
    mix. So many are an update then, in all that counts updates; the next one goes on with the same rollout.
    None: once a rollout."""
    ema: Optional[float] = None
    """Keep an exponential moving average of each agent's parameters for evaluation (evaluate --policies ema), in checkpoints:
    after every update it goes 1 - EMA of the way to the parameters. 0.999 is a mean over about a thousand updates.
    Training goes on as without. None: keep none."""
    sync_updates: Optional[int] = None
    """With --exchange periodic: updates between two averages. None: 10."""
    outer_momentum: Optional[float] = None
    """With --exchange periodic: go on from an average by an outer step with so much of Nesterov's momentum, to which what
    agents have moved since the last one is the gradient (DiLoCo, Douillard et al. 2023, take 0.9). None: from the average."""
    outer_lr: Optional[float] = None
    """With --outer-momentum: the learning rate of the outer step. None: 0.7."""
    preempt: Optional[float] = None
    """With --exchange allreduce: once this share of the ranks has played its rollout, the others cut theirs short and learn
    from what they have (DD-PPO, Wijmans et al. 2020, who take 0.6), so that nobody waits long for slow environments. A quarter
    of a rollout is always played, and gradients of all ranks weigh the same. Which steps are played then depends on who is
    how fast: two runs differ. None: all wait for all."""
    checksum: bool = False
    """Verify every message by a checksum (gossip); for those who doubt their MPI, network or memory."""
    total_steps: int = 40_000_000
    """Steps of the whole run, counted over all agents. Agents that wait for each other do an equal share each; of others the
    faster ones do more, and all stop once the sum is reached.
    1 step = 1 action in 1 environment = 4 Atari frames (--atari.frame-skip)."""
    num_envs: int = 16
    """Environments per agent; with --actors per actor."""
    env_workers: int = 0
    """Worker processes per agent that step its environments, for gymnasium environments that take a millisecond a step or more.
    0: the agent does so itself. With --overlap each half of the environments has half of them."""
    overlap: bool = False
    """Let two halves of an agent's environments take turns: one half plays while the network chooses the other's actions.
    Both see the same parameters, so nothing lags behind. For agents with more than one core (or a GPU), and environments that
    do not play in the agent's own process: Atari, EnvPool, --env-workers."""
    lag: int = 0
    """1: environments play on while the agent learns from the rollout before, in a second thread; so what is learnt from is one
    update old, and the learner must be one that corrects for it (vtrace). Deterministic. For agents with more than one core, or
    a GPU: docs/performance.md. 0: one after the other."""
    actors: int = 0
    """How many ranks play for each agent, which then only learns: of K + 1 ranks in a row the first is the agent, the others
    are its actors. They play with parameters that are some updates old, so the learner must be one that corrects for it
    (vtrace). One agent is IMPALA; several share by any --exchange: docs/actors.md. 0: agents play themselves."""
    rollout_length: Optional[int] = None
    """Steps in each environment per update. None: a2c 5; vtrace 10 where the network sees images, else 20; ppo 128 there, else
    so many that an agent's environments do 2,048 together."""
    lr: Optional[float] = None
    """Learning rate, up to a million. None: a2c and vtrace base-lr * sqrt(environments / 16): those of all agents, or of one
    where agents share nothing; ppo base-lr, however many there are, since its clipping bounds how far a rollout goes (as in
    DD-PPO, Wijmans et al. 2020)."""
    base_lr: Optional[float] = None
    """Without --lr, what it goes by. None: a2c 7e-4 (the paper's) where the network sees images, 2e-3 where it sees numbers
    alone; vtrace 1e-3 and 2e-3; ppo 2.5e-4 and 3e-4."""
    seed: int = 0
    """Seeds the initial weights (the same on all agents) and the agents' own streams (all different)."""
    network: Optional[str] = None
    """The network: one of those listed above, or MODULE:FUNCTION, a function of yours from the environment's spaces to a torch
    module, in the working directory, on PYTHONPATH or installed (docs/extending.md). None: gala for images (small where a side
    has less than 36 pixels), mlp for the rest."""
    hidden: Optional[str] = None
    """Of --network mlp: how many units each of its layers has, as 256,256. None: 64,64. A run keeps its own."""
    activation: Optional[Literal["tanh", "relu"]] = None
    """Of --network mlp: what follows each of its layers. None: tanh. A run keeps its own."""
    value_network: Optional[Literal["shared", "copy"]] = None
    """Of --network mlp: whether the value is learnt behind the policy's layers (shared), or behind as many of its own (copy; as
    OpenAI's Baselines call it), as PPO is mostly used on numbers. None: shared. A run keeps its own."""
    memory: Optional[Literal["lstm", "gru"]] = None
    """With what the network remembers an episode: lstm or gru, a layer of units behind its encoder, for tasks in which one
    observation does not show all (docs/environments.md). None: with nothing. A run keeps its choice.
    What is learnt goes back to the first step of a rollout; PPO's minibatches are of whole environments."""
    memory_size: int = 256
    """With --memory: how many units."""
    spaces: Literal["scaled", "raw"] = "scaled"
    """What becomes of the observations and actions of gymnasium environments: scaled = bytes by their upper bound, actions of a
    bounded Box to its bounds (docs/environments.md); raw = as runs before this setting saw them, which keep it."""
    action_std: float = 1.0
    """The standard deviation of a Box of actions at the start of a run: a share of half of the range between its bounds."""
    normalise_observations: Optional[bool] = None
    """Bring the numbers of observations to mean 0 and variance 1, by running statistics that agents share and save as they do
    parameters (docs/environments.md). For observations that are numbers, not images. A run keeps its choice.
    None: a2c no, ppo and vtrace yes where the network sees numbers alone."""
    normalise_rewards: Optional[bool] = None
    """Divide the rewards that are learnt from by the standard deviation of discounted returns, likewise; scores are not.
    None: as for observations, unless rewards are clipped."""
    learner: LearnerName = "a2c"
    """The learning algorithm: one of those listed above. Its settings are flags of its name, like --a2c.discount."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network's layers. auto = bf16 for images where rank 0 measures that it is faster, else fp32.
    Parameters, gradients and messages are float32 either way."""
    device: str = "cpu"
    """cpu, cuda (ranks of a node are dealt over its GPUs) or cuda:0."""
    config: Optional[Path] = None
    """Settings from a TOML file: by the names of flags, env = "pong", and those with a dot in tables, as [ppo] with clip = 0.1.
    Flags beside it win. `gala_mpi.export RUN --config FILE` writes that of a run."""
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
    evaluate_minutes: Optional[float] = None
    """Every so many minutes, and at the end, play the policy of all agents together, of a checkpoint, while training goes on:
    in a process beside one rank, which nobody waits for. (A checkpoint is saved for it where --checkpoint-minutes is longer.)
    The checkpoint that scores most is the best one then (docs/evaluation.md). None: never."""
    evaluate_episodes: int = 10
    """With --evaluate-minutes: how many games."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Draw the run while it trains: tensorboard = event files in RUN/tensorboard, wandb = Weights & Biases (pip install
    gala_mpi[wandb]; WANDB_MODE=offline without a network). Scalars of the run and of rank 0's learner, every few seconds; with
    --evaluate-minutes scores of evaluations, and the beginning of a game as a film."""
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
    ppo: PPOSettings = field(default_factory=PPOSettings)
    vtrace: VTraceSettings = field(default_factory=VTraceSettings)

    @property
    def directory(self) -> Path:
        """The run directory, once it is settled where that is (`job.prepare`)."""
        assert self.run_dir is not None
        return self.run_dir

    def learning_rate(self, agents: int) -> float:
        """The learning rate at the start: `lr`, or `base_lr`, by the learner with the paper's square-root rule over the
        environments of all agents that learn together."""
        if self.lr is not None:
            return self.lr
        base = self.left_to_learner(images=True).get("base_lr", self.base_lr)
        if not self.learner_settings.scales_lr:
            return base
        together = agents if EXCHANGES[self.exchange].load().shares else 1
        return base * math.sqrt(self.num_envs * together / 16)

    def apart(self, agents: int) -> bool:
        """Whether so many agents share nothing, so that the average of their policies is none that anybody has learnt."""
        return agents > 1 and not EXCHANGES[self.exchange].load().shares

    def ranks(self, agents: int) -> int:
        """The ranks of so many agents, with their actors."""
        return agents * (1 + self.actors)

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

    def left_to_learner(self, images: bool) -> dict[str, Any]:
        """The settings that are None and the learner has a default for, by name. `images`: whether the network sees some."""
        defaults = self.learner_settings.of_run(images, self.num_envs)
        if self.lr is not None:
            del defaults["base_lr"]  # of which nothing is made
        return {name: default for name, default in defaults.items() if getattr(self, name) is None}

    @property
    def length(self) -> int:
        """Steps in each environment per update; where nothing is settled yet (`job.prepare`), as for images."""
        return self.left_to_learner(images=True).get("rollout_length", self.rollout_length)

    @property
    def steps_per_update(self) -> int:
        """Steps of one agent's rollout."""
        return self.num_envs * self.length

    def updates(self, agents: int, done: int = 0, steps: int = 0) -> int:
        """The update at which each of `agents` agents ends that share equally, when they have done `done` updates and `steps`
        steps in all."""
        rollouts = math.ceil((self.total_steps - steps) / (agents * self.steps_per_update))
        return done // agents + rollouts * self.updates_per_rollout

    @property
    def updates_per_rollout(self) -> int:
        """In how many updates an agent learns from a rollout, at most; where nothing is settled yet, 1."""
        if self.mix_steps is None:
            return 1
        rows = self.num_envs if self.memory else self.steps_per_update
        return math.ceil(self.learner_settings.optimiser_steps(rows) / self.mix_steps)

    @property
    def turns(self) -> int:
        """Into how many parts that take turns an agent's environments are divided."""
        return 2 if self.overlap else 1

    @property
    def env_options(self) -> dict[str, Any]:
        """What `envs.registry.make` is told besides the environment's name."""
        return {"atari": self.atari, "kwargs": self.env_kwargs, "wrappers": self.wrappers, "raw": self.spaces == "raw"}

    @property
    def network_options(self) -> dict[str, Any]:
        """What a network is told besides its name, spaces and precision."""
        told = {"memory": self.memory, "memory_size": self.memory_size, "settings": self.encoder_settings}
        return self.statistics | told

    @property
    def encoder_settings(self) -> dict[str, str]:
        """What the network's encoder is told besides the spaces."""
        defaults = networks.member(self.network or "").settings
        return {name: getattr(self, name) or default for name, default in defaults.items()}

    @property
    def statistics(self) -> dict[str, bool]:
        """What a network is told of the statistics that it keeps."""
        return {name: bool(getattr(self, name)) for name in ("normalise_observations", "normalise_rewards")}

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
        for name in ("env_kwargs", "wrappers", "log"):
            values[name] = tuple(values.get(name, ()))
        return Config(**values)


def with_new_names(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run has stored, as an older version meant them: with today's names, and what it had no
    choice in."""
    values = {"spaces": "raw", "normalise_observations": False, "normalise_rewards": False} | stored
    values = {**networks.member(values.get("network") or "").settings, **values}
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
        [_as_it_is_called(word) for word in arguments],
        default=default or Config(),
    )


def _as_it_is_called(word: str) -> str:
    """A word of the command line, with today's name in place of another one."""
    word = re.sub(r"^--sticky(?=$|=)", "--atari.sticky", word)
    return re.sub(r"^--no-(normalise-observations|normalise-rewards)$", r"--\1=False", word)


def _members(flag: str, table: Mapping[str, Member]) -> str:
    """A table's members, a line each."""
    return f"{flag}:\n" + "\n".join(f"  {name} = {member.sentence}" for name, member in table.items())
