"""Returns from rewards, discounts and values. Pure functions on [T, N] tensors.

A step carries a discount, not a done flag: γ inside an episode and 0 where it ends. A truncated episode also has discount
0; the value of the observation that was cut off is added to its last reward (`rollout/collector.py`), so that truncation
bootstraps and termination does not.
"""

from __future__ import annotations

import math

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
        steps = zip(rewards + (1 - lambda_) * discounts * next_values, lambda_ * discounts)
        returns, following = [], next_values[-1]
        for gained, weight in reversed(list(steps)):
            following = gained + weight * following
            returns.append(following)
        return torch.stack(returns[::-1])


def vtrace(
    rewards: torch.Tensor,
    discounts: torch.Tensor,
    values: torch.Tensor,
    next_values: torch.Tensor,
    log_ratios: torch.Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """V-trace (Espeholt et al. 2018): targets of V(s_t), and advantages of the actions, where another policy has played.

        v_t = V(s_t) + Σ_{k ≥ t} d_t ... d_{k-1} c_t ... c_{k-1} ρ_k (r_k + d_k V(s_{k+1}) − V(s_k))      (equation 1)
        advantage = ρ_t (r_t + d_t v_{t+1} − V(s_t)), with v_T = V(s_T)                                 (section 4.2)

    ρ_t = min(ρ̄, π/μ) and c_t = λ min(c̄, π/μ) (remark 2), with the probabilities of the action by the policy that learns and by
    the one that played. Where these are one, and ρ̄ and c̄ are 1 or more, v_t is `lambda_returns`.

    Args:
        rewards: r_t, [T, N].
        discounts: d_t, [T, N].
        values: V(s_t), [T, N].
        next_values: V(s_{t+1}), [T, N]; the last row bootstraps.
        log_ratios: log π/μ, [T, N].
        rho_bar: ρ̄, which decides whose values are learnt: of π where it is infinite, nearer to those of μ the smaller it is.
        c_bar: c̄, by which the influence of later steps is bounded.
        lambda_: λ in [0, 1].

    Returns:
        v_t and the advantages, both [T, N], without gradient.
    """
    with torch.no_grad():
        rho, c = bounded_ratios(log_ratios, rho_bar), lambda_ * bounded_ratios(log_ratios, c_bar)
        differences = rho * (rewards + discounts * next_values - values)
        beyond, following = torch.zeros_like(values[-1]), []  # v_{t+1} − V(s_{t+1}); remark 1
        for difference, discount, weight in reversed(list(zip(differences, discounts, c))):
            following.append(beyond)
            beyond = difference + discount * weight * beyond
        following = torch.stack(following[::-1])
        targets = values + differences + discounts * c * following
        return targets, differences + rho * discounts * following


def bounded_ratios(log_ratios: torch.Tensor, bound: float) -> torch.Tensor:
    """Return min(bound, exp(log_ratios)), [T, N]; `bound` is positive or infinite."""
    return log_ratios.clamp_max(math.log(bound)).exp()
