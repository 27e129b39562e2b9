"""Parallelised Q-learning (Gallici et al. 2024): no replay, no target network, but LayerNorm.

Many environments give data varied enough to learn from as they come, λ-returns carry rewards far in
one pass, and LayerNorm keeps bootstrapping stable. In a team the agents learn on their own, each
from its own reward, or together the sum of their values from the sum of their rewards (value
decomposition, Sunehag et al. 2018). Read from top to bottom: settings, network, acting, loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from marl_lib.advantages import q_lambda_return
from marl_lib.config import Count, Natural, Positive, Unit, at_least
from marl_lib.exploration import EpsilonConfig, EpsilonGreedy
from marl_lib.learner import Data
from marl_lib.nn.heads import QHead
from marl_lib.nn.layers import Layers
from marl_lib.on_policy import OnPolicy, OnPolicyConfig


@dataclass(frozen=True)
class PQNConfig(EpsilonConfig, OnPolicyConfig):
    """Settings of PQN.

    Parameters
    ----------
    mixer : {"none", "sum"}
        Independent agents with rewards of their own, or one Q_tot = Σᵢ Qᵢ for the summed reward
        (PQN-VDN).
    lam : float
        λ of the returns, in [0, 1]: 0 is one-step Q-learning.
    """

    mixer: Literal["none", "sum"] = "none"
    lam: Unit = 0.65
    learning_rate: Positive = 5e-4
    epochs: Count = 2
    batch_size: Annotated[int, at_least(2)] = 256
    max_grad_norm: Positive | None = 10.0
    epsilon_steps: Natural = 100_000


@dataclass(frozen=True)
class PQNVDNConfig(PQNConfig):
    """Settings of PQN-VDN: those of :class:`PQNConfig` with the team's value as a sum."""

    mixer: Literal["none", "sum"] = "sum"


class PQN(EpsilonGreedy, OnPolicy):
    """R replicates of a team of N agents, see :class:`marl_lib.learner.Learner`."""

    config: PQNConfig
    config_type = PQNConfig
    layers = Layers("relu", layer_norm=True, init="kaiming")  # as in the paper's code

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the action values of the agents."""
        return {"agents": lambda: self.team(lambda size: QHead(size, self.spec.n_actions))}

    @property
    def n_values(self) -> int:
        """V: one value for each agent, or one for the team."""
        return 1 if self.team_reward else self.spec.n_agents

    @property
    def team_reward(self) -> bool:
        """Whether the agents learn together, from the sum of all rewards."""
        return self.config.mixer == "sum"

    def mix(self, q: Tensor) -> Tensor:
        """Return what is learned of the agents' values (..., N): themselves or their sum (..., 1).

        Rewards are mixed alike.
        """
        return q.sum(-1, keepdim=True) if self.team_reward else q

    @torch.no_grad()
    def prepare(self) -> Data:
        """Return the rollout in stretches (R, n, length, ...), with its λ-returns (..., V)."""
        c, d = self.config, self.data
        reward = self.mix(d["reward"])  # (R, T, B, V)
        # max Q of what a step led to was found in acting on the next one
        led_to = {"obs": d["next_obs"], "memory": d["memory"]}
        led_to |= {"mask": d["next_mask"]} if "next_mask" in d else {}
        next_value = self.mix(self.following(d["best"], self._best_after, led_to))
        rows = self.by_row(reward, next_value=next_value)
        returns = q_lambda_return(**rows, gamma=c.gamma, lam=c.lam)
        kept = {"obs": d["obs"], "action": d["action"], "returns": returns.view(reward.shape)}
        return self.cut_up(kept, {"agents_memory": (self.start, d["memory"])})

    def _best_after(self, seen: Data) -> Tensor:
        """Return max Q (R, K, N) of what is seen, (R, K, ...)."""
        best: Tensor = self.lift(lambda net, seen: self.legal_values(net, seen)[0].amax(-1), seen)
        return best

    def minimised(self, left: float) -> Any:
        """Return the one loss."""
        return ("agents",), self.loss

    def loss(self, net: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return half the mean squared error of the values of the actions taken.

        Parameters
        ----------
        net : namespace of networks, of one replicate
        batch : dict of tensors (n, length, ...)
            As :meth:`prepare` gives them.
        """
        q, _ = net.agents(batch["obs"], batch["agents_memory"], batch["first"])
        q = self.mix(q.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1))
        error = 0.5 * (q - batch["returns"]).square()
        return self.mean(error), {"loss": error.mean(), "q": q.detach().mean()}
