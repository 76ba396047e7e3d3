"""Train the ball on a beam until it stays there for long, and play the policy:

pip install examples/package
mpirun -n 2 python examples/package/train_beam.py
"""

import argparse

import gymnasium
from beam.environment import Beam
from beam.networks import apart

import gala_mpi


def windy(wind: float = 0.02) -> gymnasium.Env:
    """Return an environment of the package, made by hand."""
    return gymnasium.wrappers.TimeLimit(Beam(wind=wind), 200)


class Progress(gala_mpi.Callback):
    """Prints where checkpoints are, and stops the run at a score."""

    def __init__(self, score: float):
        self.score = score

    def update(self, done: gala_mpi.Updated) -> str | None:
        return f"a score of {done.score:.0f}" if done.score >= self.score else None

    def checkpoint(self, saved: gala_mpi.Saved) -> None:
        print(f"rank {saved.rank} has saved checkpoint {saved.number} at update {saved.update}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--score", type=float, default=190.0, help="stop at this mean score of the last 100 episodes, of 200")
    parser.add_argument("--run-dir", default=None)
    flags = parser.parse_args()
    ended = gala_mpi.train(
        gala_mpi.Config(learner="ppo", rollout_length=64),
        env=windy,
        network=apart,
        total_steps=flags.steps,
        run_dir=flags.run_dir,
        callbacks=[Progress(flags.score)],
    )
    if ended.rank == 0:
        policy = gala_mpi.load_policy(ended.directory, "last")
        environment = policy.environment()
        observation, _ = environment.reset(seed=1)
        steps, over = 0, False
        while not over:
            observation, _, terminated, truncated, _ = environment.step(policy.act(observation))
            steps, over = steps + 1, terminated or truncated
        print(f"{ended.reason or 'all steps are done'}: the ball stays for {steps} steps")


if __name__ == "__main__":
    main()
