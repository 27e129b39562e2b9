"""ε-greedy acting: how learners of action values explore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from marl_lib.config import Config, Natural, Unit
from marl_lib.exploration.schedules import decay, epsilon_greedy


@dataclass(frozen=True)
class EpsilonConfig(Config):
    """Settings of ε-greedy acting.

    Parameters
    ----------
    epsilon_start, epsilon_end : float
        Probability of a random action, for each agent and environment on its own coin, going down
        linearly ...
    epsilon_steps : int
        ... over this many steps.
    """

    epsilon_start: Unit = 1.0
    epsilon_end: Unit = 0.05
    epsilon_steps: Natural = 10_000


class EpsilonGreedy:
    """What a learner inherits that acts by the values of a network ``agents``."""

    acting: ClassVar[str] = "agents"
    purpose: ClassVar[str] = "explore"
    noise_type: ClassVar[Any] = np.float64
    config: Any
    spec: Any
    steps: int

    @property
    def noise_shape(self) -> tuple[int, int]:
        """For each agent, whether it explores, and with which action."""
        return 2, self.spec.n_agents

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        c = self.config
        return decay(c.epsilon_start, c.epsilon_end, c.epsilon_steps, self.steps)

    def legal_values(self, net: Any, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the values (any, N, A), -∞ where an action is illegal, and the memories."""
        q, memory = net.agents(seen["obs"], seen["memory"])
        return q.masked_fill(~seen["mask"], -torch.inf) if "mask" in seen else q, memory

    def choose(self, net: Any, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the best action, or now and then a random one, and the ``best`` value."""
        q, memory = self.legal_values(net, seen)
        action = epsilon_greedy(q, seen.get("noise"), self.epsilon, seen.get("mask"))
        return {"action": action, "memory": memory, "best": q.amax(-1)}
