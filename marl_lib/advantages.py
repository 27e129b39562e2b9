"""How good actions were: advantages and returns of rollouts, and the scale of rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from marl_lib.nn.normalization import RunningNorm


def generalised_advantage(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016, equation 16).

    δ_t = r_t + γ (1 - terminated) V(s_{t+1}) - V(s_t);  A_t = δ_t + γ λ (1 - ended) A_{t+1}.
    A time limit cuts the sum, but what the episode would still have been worth stays in δ.

    Parameters
    ----------
    reward, value, terminated : (..., T, B)
    next_value : (..., T, B)
        Value of the observation each step led to, before any reset.
    ended : (..., T, B)
        Terminated or truncated.

    Returns
    -------
    Tensor (..., T, B)
    """
    delta = reward + gamma * next_value * ~terminated - value
    keep = gamma * lam * ~ended
    advantage = torch.empty_like(delta)
    last = torch.zeros_like(delta[..., 0, :])
    for t in reversed(range(delta.shape[-2])):
        last = delta[..., t, :] + keep[..., t, :] * last
        advantage[..., t, :] = last
    return advantage


def explained_variance(returns: Tensor, value: Tensor) -> Tensor:
    """Return the share of the returns' variance that values explain, (..., n) each -> (...)."""
    return 1 - (returns - value).var(-1) / returns.var(-1).clamp(min=1e-8)


class RewardScale:
    """Divides rewards by the running standard deviation of the discounted return.

    Parameters
    ----------
    replicates, num_envs : int
    gamma : float
    """

    def __init__(self, replicates: int, num_envs: int, gamma: float, device: torch.device):
        self.norm = RunningNorm(replicates, 1, device=device)
        self.total = torch.zeros(replicates, num_envs, device=device)
        self.gamma = gamma

    def __call__(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Take in rewards (R, T, B) and return them scaled."""
        totals = torch.empty_like(reward)
        for t in range(reward.shape[1]):
            self.total = self.gamma * self.total + reward[:, t]
            totals[:, t] = self.total
            self.total = self.total * ~ended[:, t]
        self.norm.update(totals.flatten(1).unsqueeze(-1))
        return reward * self.norm.scale.unsqueeze(-1)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics and the returns so far."""
        return {**self.norm.state_dict(), "total": self.total.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.total.copy_(state["total"])
        self.norm.load_state_dict({k: v for k, v in state.items() if k != "total"})


def q_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Return Peng's Q(λ) returns (Peng, Williams 1996), as Gallici et al. 2024 use them.

    G_t = r_t + γ [λ G_{t+1} + (1 - λ) max_a Q(s_{t+1}, a)]. Where an episode ended, and at the end
    of the rollout, there is no G_{t+1}, and max_a Q(s_{t+1}, a) stands for it; after termination
    both are zero. The later actions are taken as they come, exploring or not, which is biased but
    needs no ratios.

    Parameters
    ----------
    reward, terminated : (..., T, B)
    next_value : (..., T, B)
        max_a Q of the observation each step led to, before any reset; need not be finite where
        the episode was terminated.
    ended : (..., T, B)
        Terminated or truncated.

    Returns
    -------
    Tensor (..., T, B)
    """
    bootstrap = gamma * next_value.masked_fill(terminated, 0.0)
    keep = lam * ~ended
    now = reward + (1 - keep) * bootstrap
    carry = gamma * keep
    out = torch.empty_like(now)
    out[..., -1, :] = last = reward[..., -1, :] + bootstrap[..., -1, :]
    for t in reversed(range(now.shape[-2] - 1)):
        last = now[..., t, :] + carry[..., t, :] * last
        out[..., t, :] = last
    return out
