"""Returns from rewards, discounts and values. Pure functions on [T, N] tensors.

A step carries a discount, not a done flag: γ inside an episode and 0 where it ends. A truncated episode also has discount
0; the value of the observation that was cut off is added to its last reward (`rollout/collector.py`), so that truncation
bootstraps and termination does not.
"""

from __future__ import annotations

import torch


def lambda_returns(rewards: torch.Tensor, discounts: torch.Tensor, next_values: torch.Tensor, lambda_: float) -> torch.Tensor:
    """G_t = r_t + d_t [(1 - λ) V(s_{t+1}) + λ G_{t+1}], with G_T = V(s_T).

    λ = 1: n-step returns, r_t + d_t r_{t+1} + ... + d_t ... d_{T-1} V(s_T) (Mnih et al. 2016, algorithm S3).
    λ = 0: one-step targets r_t + d_t V(s_{t+1}). (Sutton & Barto 2018, equation 12.2; advantages are GAE(λ)'s.)

    Args:
        rewards: r_t, [T, N].
        discounts: d_t, [T, N].
        next_values: V(s_{t+1}) for t = 0 .. T-1, [T, N]; the last row bootstraps.
        lambda_: λ in [0, 1].

    Returns:
        G_t, [T, N], without gradient.
    """
    with torch.no_grad():
        returns, following = [], next_values[-1]
        for reward, discount, value in reversed(list(zip(rewards, discounts, next_values))):
            following = reward + discount * value.lerp(following, lambda_)
            returns.append(following)
        return torch.stack(returns[::-1])
