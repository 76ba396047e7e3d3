"""CartPole with a picture that takes no renderer: its cart, white on black."""

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv


class PaintedPole(CartPoleEnv):
    def render(self):
        screen = np.zeros((20, 40, 3), np.uint8)
        screen[:, int(np.clip(20 + 8 * self.state[0], 0, 39))] = 255
        return screen


gymnasium.register("Painted-v0", "painted_pole:PaintedPole", max_episode_steps=500)
