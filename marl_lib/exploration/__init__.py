"""How learners try what they do not yet think best."""

from marl_lib.exploration.greedy import EpsilonConfig, EpsilonGreedy
from marl_lib.exploration.schedules import decay, epsilon_greedy, remaining

__all__ = ["EpsilonConfig", "EpsilonGreedy", "decay", "epsilon_greedy", "remaining"]
