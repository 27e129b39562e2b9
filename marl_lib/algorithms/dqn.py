"""Deep Q-learning (Mnih et al. 2015) for one agent or a team of independent learners.

Each agent of a team learns its own action values and treats the others as part of the world
(Tan 1993). Read from top to bottom: settings, network, acting, loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from marl_lib.config import Count
from marl_lib.exploration import EpsilonConfig, EpsilonGreedy
from marl_lib.learner import Data
from marl_lib.nn.heads import QHead
from marl_lib.off_policy import OffPolicy, OffPolicyConfig, next_values


@dataclass(frozen=True)
class DQNConfig(EpsilonConfig, OffPolicyConfig):
    """Settings of DQN.

    Parameters
    ----------
    double : bool
        Choose the next action with the network, judge it with the target (van Hasselt et al. 2016).
    dueling : bool
        Split Q into a state value and advantages (Wang et al. 2016, equation 9).
    n_step : int
        Rewards summed before the bootstrap (Sutton and Barto 2018, section 7.1); 1 with a memory.
    """

    double: bool = True
    dueling: bool = False
    n_step: Count = 1


def td_target(
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    chooser: Tensor | None = None,
) -> Tensor:
    """Return r + γⁿ (1 - terminated) max Q'(s', ·).

    Parameters
    ----------
    reward, discount, terminated : (...)
        Truncated transitions are not terminated: their value goes on.
    next_q : (..., A)
        Of the target network.
    chooser : (..., A) or None
        If given, it chooses the action and ``next_q`` judges it, as in double DQN.

    Source: Mnih et al. 2015; van Hasselt et al. 2016, equation 4.
    """
    best = (next_q if chooser is None else chooser).argmax(-1, keepdim=True)
    value = next_q.gather(-1, best).squeeze(-1)
    # Filled, not multiplied by zero: where no action is legal any more, the value is not finite.
    return reward + discount * value.masked_fill(terminated, 0.0)


class DQN(EpsilonGreedy, OffPolicy):
    """R replicates of a team of N independent Q-learners, see :class:`marl_lib.learner.Learner`."""

    config: DQNConfig
    config_type = DQNConfig

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the action values of the agents."""
        a, dueling = self.spec.n_actions, self.config.dueling
        return {"agents": lambda: self.team(lambda size: QHead(size, a, dueling))}

    def losses(self) -> dict[str, Any]:
        """Return the one loss."""
        return {"loss": (("agents",), self.loss)}

    def loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return the Huber loss of the temporal-difference error, mean over batch and agents.

        Parameters
        ----------
        net, target : namespaces of networks, of one replicate
        batch : dict of tensors (batch, T, ...)
        """
        q, memory = net.agents(batch["obs"], batch.get("agents_memory"), batch["first"])
        next_q, chooser = next_values(net, target, batch, memory, self.config.double)
        chosen = q.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)  # (batch, T, N)
        discount, ended = batch["discount"].unsqueeze(-1), batch["terminated"].unsqueeze(-1)
        goal = td_target(batch["reward"], discount, ended, next_q, chooser)
        error = smooth_l1_loss(chosen, goal, reduction="none")
        return self.mean(error), {"loss": error.mean()}
