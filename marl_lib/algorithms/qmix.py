"""A team's value from its agents' values: VDN, QMIX, Weighted QMIX.

Each agent has action values of its own observation, or of all it has seen; a mixer makes one value
of those of the actions taken and learns with them from the team's reward, the sum over the agents.
Since the mixer only rises with each agent's value, each agent's best action is its part of the
team's best, so in execution there is no mixer and nothing to share. Read from top to bottom:
settings, networks, acting, loss.

Sources: Sunehag et al. 2018 (VDN); Rashid et al. 2018 (QMIX); Rashid et al. 2020 (Weighted QMIX).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.config import Count, Natural, Share
from marl_lib.exploration import EpsilonConfig, EpsilonGreedy
from marl_lib.learner import Data
from marl_lib.nn.heads import QHead
from marl_lib.nn.mixing import ForwardMixer, MonotonicMixer
from marl_lib.off_policy import OffPolicy, OffPolicyConfig, next_values


@dataclass(frozen=True)
class QMIXConfig(EpsilonConfig, OffPolicyConfig):
    """Settings of QMIX and VDN.

    Parameters
    ----------
    mixer : {"monotonic", "sum"}
        QMIX, or VDN.
    mixer_width, hyper_width : int
        See :class:`marl_lib.nn.mixing.MonotonicMixer`.
    double : bool
        Choose the next actions with the network, judge them with the target (van Hasselt et al.
        2016).
    n_step : int
        Rewards summed before the bootstrap (Sutton and Barto 2018, section 7.1); 1 with a memory.
    """

    mixer: Literal["monotonic", "sum"] = "monotonic"
    mixer_width: Count = 32
    hyper_width: Count = 64
    target_every: Count = 200
    epsilon_steps: Natural = 50_000
    double: bool = True
    n_step: Count = 1


@dataclass(frozen=True)
class VDNConfig(QMIXConfig):
    """Settings of VDN: those of :class:`QMIXConfig` with the sum as mixer."""

    mixer: Literal["monotonic", "sum"] = "sum"


class QMIX(EpsilonGreedy, OffPolicy):
    """R replicates of a team that learns a joint value, see :class:`marl_lib.learner.Learner`.

    Notes
    -----
    The state that the mixer sees is the observations of all agents, side by side.
    """

    config: QMIXConfig
    config_type = QMIXConfig
    stores_sum = team_reward = True

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the agents' action values and the mixer."""
        c, s = self.config, self.spec
        nets: dict[str, Callable[[], nn.Module]] = {
            "agents": lambda: self.team(lambda size: QHead(size, s.n_actions))
        }
        if c.mixer == "monotonic":
            sizes = (s.n_agents, s.state_dim, c.mixer_width, c.hyper_width)
            nets["mixer"] = lambda: MonotonicMixer(*sizes)
        return nets

    def losses(self) -> dict[str, Any]:
        """Return the one loss, from which agents and mixer learn."""
        return {"loss": (tuple(self.nets), self.loss)}

    def mix(self, net: Any, q: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot of the values q (..., N) in the state (..., S), (...)."""
        return q.sum(-1) if self.config.mixer == "sum" else net.mixer(q, state)

    def loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return the mean square of the temporal-difference error of Q_tot.

        The target is r + γⁿ (1 - terminated) Q_tot'(s', a'), with a' each agent's best action
        (Rashid et al. 2018, equations 5 and 6) and with target agents and target mixer. A square as
        in both papers: under the Huber loss, VDN's values would not be the nearest sums.

        Parameters
        ----------
        net, target : namespaces of networks, of one replicate
        batch : dict of tensors (batch, T, ...)
        """
        q, memory = net.agents(batch["obs"], batch.get("agents_memory"), batch["first"])
        next_q, chooser = next_values(net, target, batch, memory, self.config.double)
        total = self.mix(net, taken(q, batch["action"]), batch["obs"].flatten(-2))  # (batch, T)
        with torch.no_grad():
            best = taken(next_q, chooser.argmax(-1))
            goal = self.goal(batch, self.mix(target, best, batch["next_obs"].flatten(-2)))
        return (total - goal).square().mean(), {}

    def goal(self, batch: Data, value: Tensor) -> Tensor:
        """Return r + γⁿ (1 - terminated) V, (batch, T)."""
        value = value.masked_fill(batch["terminated"], 0.0)
        return batch["reward"].squeeze(-1) + batch["discount"] * value

    def joint_table(self, obs: np.ndarray, replicate: int = 0) -> np.ndarray:
        """Return Q_tot of all joint actions of a team of two, (A, A), first agent by row.

        Parameters
        ----------
        obs : (N, D)
            With memory: the first of an episode.
        replicate : int

        Raises
        ------
        ValueError
            If there are not two agents.
        """
        if self.spec.n_agents != 2:
            raise ValueError(f"a joint table is for two agents, not {self.spec.n_agents}")
        x = torch.as_tensor(obs, dtype=torch.float32, device=self.device)

        def table(net: Any) -> Tensor:
            first, second = net.agents(x)[0].unbind(0)  # (A,) each
            pairs = torch.stack(torch.broadcast_tensors(first[:, None], second), dim=-1)
            return self.mix(net, pairs, x.flatten().expand(*pairs.shape[:-1], -1))  # (A, A)

        found: np.ndarray = self.lift(table)[replicate].numpy(force=True)
        return found


def taken(q: Tensor, action: Tensor) -> Tensor:
    """Return the values of actions (..., N) out of those of all, (..., N, A)."""
    return q.gather(-1, action.unsqueeze(-1)).squeeze(-1)


# Weighted QMIX ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WQMIXConfig(QMIXConfig):
    """Settings of Weighted QMIX.

    Parameters
    ----------
    weighting : {"optimistic", "central"}
        Full weight for joint actions whose value is underestimated (OW-QMIX), or that are or may be
        better than what the agents think best (CW-QMIX); ``alpha`` for the others.
    """

    weighting: Literal["optimistic", "central"] = "optimistic"
    alpha: Share = 0.1


class WQMIX(QMIX):
    """QMIX that fits best where it matters (Rashid et al. 2020).

    A monotonic mixer cannot fit every table. Weighted, it errs on poor joint actions and gets the
    best right; the targets are those of a second value, Q*, that any mixer may make.
    """

    config: WQMIXConfig
    config_type = WQMIXConfig

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return those of QMIX, and agents and mixer of Q*."""
        nets, s, width = super().networks(), self.spec, self.config.hyper_width
        mixer = lambda: ForwardMixer(s.n_agents, s.state_dim, width)  # noqa: E731
        return {**nets, "central": nets["agents"], "central_mixer": mixer}

    def looked_at(self, batch: Data) -> Data:
        """Return what agents and those of Q* see."""
        return {"agents": batch["obs"], "central": batch["obs"]}

    def loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return Σ w (Q_tot - y)² + (Q* - y)², means, with y = r + γ Q*'(s', a') (equations 5, 6).

        a' are the agents' best actions by Q_tot, and w is 1 where y > Q_tot (equation 9) or, in
        CW-QMIX, where the action is the best or y > Q*(s, best) (equation 8); elsewhere alpha.
        """
        c, (obs, first) = self.config, (batch["obs"], batch["first"])
        q, memory = net.agents(obs, batch.get("agents_memory"), first)
        _, chooser = next_values(net, target, batch, memory, c.double)
        central = net.central(obs, batch.get("central_memory"), first)[0]
        state, after = batch["obs"].flatten(-2), batch["next_obs"].flatten(-2)
        total = self.mix(net, taken(q, batch["action"]), state)
        true = net.central_mixer(taken(central, batch["action"]), state)
        with torch.no_grad():
            next_q = target.central(batch["next_obs"], batch.get("central_target_memory"))[0]
            goal = self.goal(batch, target.central_mixer(taken(next_q, chooser.argmax(-1)), after))
            if c.weighting == "optimistic":
                matters = goal > total
            else:
                best = (q.masked_fill(~batch["mask"], -torch.inf) if "mask" in batch else q).argmax(
                    -1
                )
                worth = net.central_mixer(taken(central, best), state)
                matters = (goal > worth) | (best == batch["action"]).all(-1)
            weight = torch.where(matters, 1.0, c.alpha)
        error = weight * (total - goal).square() + (true - goal).square()
        return error.mean(), {"weight": weight.mean()}
