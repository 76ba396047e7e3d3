"""Every setting of a run: a typed field, a default, a sentence. Read from the command line by tyro, stored as JSON.

Defaults are the GALA paper's (from the authors' code) unless the sentence says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

from gala_mpi import topology
from gala_mpi.errors import SettingError

Exchange = Literal["gossip", "allreduce", "server", "none"]


@dataclass(frozen=True)
class A2CSettings:
    """The advantage actor-critic learner."""

    discount: float = 0.99
    """γ, the weight of the next step's reward."""
    lambda_: float = 1.0
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
    """Learn from the sign of rewards. Default: yes for Atari, no elsewhere. Reported scores are never clipped."""


@dataclass(frozen=True)
class Config:
    """Every setting of a training run."""

    env: str = "pong"
    """Game: an Atari game (pong, ms_pacman, ALE/Pong-v5, PongNoFrameskip-v4) or any gymnasium id (CartPole-v1)."""
    exchange: Exchange = "gossip"
    """How agents share what they learn: gossip = GALA (average parameters with neighbours, never wait); allreduce = A2C
    (average gradients over all, in step); server = A3C (a shared vector in rank 0's window); none = independent agents."""
    topology: topology.Name = "ring"
    """Who reads whom under gossip: ring (1 peer), exponential (log2 n peers), one-peer-exponential (1 peer, changing every
    update), complete (everybody)."""
    staleness: Optional[int] = None
    """After how many updates without mixing an agent waits for its peers. Default: never. 0 = lock-step: every agent mixes
    its peers' parameters of exactly the same update, and a run is reproducible bit for bit."""
    total_steps: int = 40_000_000
    """Steps of the whole run, over all agents (1 step = 1 action in 1 simulator = 4 Atari frames). Every agent does an
    equal share, rounded up to whole updates."""
    num_envs: int = 16
    """Simulators per agent."""
    rollout_length: int = 5
    """Steps in each simulator per update."""
    lr: Optional[float] = None
    """Learning rate. Default: 7e-4 * sqrt(simulators of all agents / 16)."""
    seed: int = 0
    """Seeds the initial weights (the same on all agents) and every agent's action and simulator streams (all different)."""
    network: Optional[Literal["gala", "nature", "mlp"]] = None
    """gala = 32-64-32 convolutions + 512 units, nature = 32-64-64 + 512, mlp = 64-64. Default: gala for images, else mlp."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network's layers. auto = bf16 if rank 0 measures that it is faster here. Parameters, gradients and
    messages are float32 either way."""
    device: str = "cpu"
    """cpu, cuda (ranks of a node are dealt over its GPUs) or cuda:0."""
    sticky: float = 0.0
    """Probability that an Atari emulator repeats the last action (Machado et al. 2018 use 0.25)."""
    run_dir: Optional[Path] = None
    """Where the run is kept. Default: runs/<env>-<exchange>-<time>."""
    resume: bool = False
    """Continue the run in --run-dir from its newest complete checkpoint. Its settings apply; those given here replace them."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept; the best one is kept as well."""
    wall_minutes: Optional[float] = None
    """Save and stop after this many minutes. Default: no limit."""
    a2c: A2CSettings = field(default_factory=A2CSettings)

    def learning_rate(self, agents: int) -> float:
        """The learning rate at the start: `lr`, or the paper's square-root rule over all agents' simulators."""
        return self.lr if self.lr is not None else 7e-4 * math.sqrt(self.num_envs * agents / 16)

    def updates(self, agents: int) -> int:
        """How many updates each of `agents` agents does."""
        return math.ceil(self.total_steps / (agents * self.num_envs * self.rollout_length))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> Config:
        values: dict[str, Any] = json.loads(text)
        values["a2c"] = A2CSettings(**values["a2c"])
        values["run_dir"] = Path(values["run_dir"]) if values["run_dir"] else None
        return Config(**values)


def parse(arguments: list[str] | None = None) -> Config:
    """The command line → settings. With --resume the stored settings of --run-dir are the defaults.

    Raises:
        SystemExit: 0 after --help, 2 after a flag that tyro refuses (it has printed why).
        SettingError: --resume without a run.
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
    """The defaults that the command line is read against: this module's, or those of the run that is resumed."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--resume", action="store_true")
    early.add_argument("--run-dir", "--run_dir", type=Path)
    try:
        known, _ = early.parse_known_args(arguments)
    except SystemExit:  # a flag without its value: tyro says so better
        return Config()
    if not known.resume:
        return Config()
    if known.run_dir is None:
        raise SettingError("--resume needs --run-dir DIR, the run to continue")
    from gala_mpi import store

    return store.read_config(known.run_dir)


def check(config: Config) -> None:
    """Refuse settings that cannot work, before any long work starts.

    Raises:
        SettingError: names the flag, the value seen and the values allowed.
    """

    def require(holds: bool, flag: str, value: object, allowed: str) -> None:
        if not holds:
            raise SettingError(f"{flag} {value}: {allowed} is expected")

    require(config.num_envs >= 1, "--num-envs", config.num_envs, "a whole number of simulators per agent, 1 or more,")
    require(config.rollout_length >= 1, "--rollout-length", config.rollout_length, "a whole number of steps, 1 or more,")
    require(config.total_steps >= 1, "--total-steps", config.total_steps, "a whole number of steps, 1 or more,")
    require(config.seed >= 0, "--seed", config.seed, "a whole number, 0 or more,")
    require(config.staleness is None or config.staleness >= 0, "--staleness", config.staleness, "a number of updates, 0 or more,")
    require(config.lr is None or 0 < config.lr < math.inf, "--lr", config.lr, "a positive number")
    require(0 <= config.sticky <= 1, "--sticky", config.sticky, "a probability, 0 to 1,")
    require(config.checkpoint_minutes > 0, "--checkpoint-minutes", config.checkpoint_minutes, "a positive number of minutes")
    require(config.keep_checkpoints >= 1, "--keep-checkpoints", config.keep_checkpoints, "a whole number, 1 or more,")
    require(config.wall_minutes is None or config.wall_minutes > 0, "--wall-minutes", config.wall_minutes, "a positive number of minutes")
    a2c = config.a2c
    require(0 <= a2c.discount <= 1, "--a2c.discount", a2c.discount, "a number from 0 to 1")
    require(0 <= a2c.lambda_ <= 1, "--a2c.lambda-", a2c.lambda_, "a number from 0 to 1")
    require(a2c.entropy_coefficient >= 0, "--a2c.entropy-coefficient", a2c.entropy_coefficient, "a number, 0 or more,")
    require(a2c.value_coefficient >= 0, "--a2c.value-coefficient", a2c.value_coefficient, "a number, 0 or more,")
    require(a2c.max_grad_norm > 0, "--a2c.max-grad-norm", a2c.max_grad_norm, "a positive number")
    require(0 <= a2c.rms_alpha < 1, "--a2c.rms-alpha", a2c.rms_alpha, "a number from 0 to below 1")
    require(a2c.rms_eps > 0, "--a2c.rms-eps", a2c.rms_eps, "a positive number")
    require(
        config.exchange == "gossip" or config.staleness is None,
        f"--exchange {config.exchange} --staleness",
        config.staleness,
        "a staleness bound only with --exchange gossip",
    )
