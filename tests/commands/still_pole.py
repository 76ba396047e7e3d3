"""StillPole-v0 is CartPole as a still picture shows it: where cart and pole are, not how fast. Registered when imported."""

import gymnasium
import numpy as np
from gymnasium.wrappers import TransformObservation


def still(env: gymnasium.Env) -> gymnasium.Env:
    """Show position and angle alone."""
    seen = env.observation_space
    space = gymnasium.spaces.Box(seen.low[::2], seen.high[::2], dtype=np.float32)
    return TransformObservation(env, lambda observation: observation[::2], space)


def make(**options) -> gymnasium.Env:
    return still(gymnasium.make("CartPole-v1", disable_env_checker=True, **options))


gymnasium.register("StillPole-v0", make)
