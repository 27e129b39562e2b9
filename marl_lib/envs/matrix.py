"""Games of two agents that fit on paper, with their exact solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Positive
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace

END = -1


@dataclass(frozen=True)
class Game:
    """A game in tables; it begins in state 0.

    Parameters
    ----------
    payoff : (S, A, A) array
        What the team gets for the actions of the first and the second agent.
    successor : (S, A, A) int array
        The state that follows, ``END`` for none.
    """

    payoff: np.ndarray
    successor: np.ndarray


def _one_shot(payoff: list[list[float]]) -> Game:
    table = np.array([payoff], float)
    return Game(table, np.full(table.shape, END))


def _two_step() -> Game:
    payoff, successor = np.zeros((3, 2, 2)), np.full((3, 2, 2), END)
    successor[0] = [[1, 1], [2, 2]]  # the first agent alone decides where it goes on
    payoff[1], payoff[2] = 7.0, [[0.0, 1.0], [1.0, 8.0]]
    return Game(payoff, successor)


# Climbing and penalty (with k = -100): C. Claus, C. Boutilier, "The dynamics of reinforcement
# learning in cooperative multiagent systems", 1998. Two-step: T. Rashid et al., "QMIX", 2018.
GAMES = {
    "climbing": _one_shot([[11, -30, 0], [-30, 7, 6], [0, 0, 5]]),
    "penalty": _one_shot([[-100, 0, 10], [0, 2, 0], [10, 0, -100]]),
    "two-step": _two_step(),
}


def joint_values(game: Game, gamma: float = 1.0) -> np.ndarray:
    """Return the optimal joint action values Q*(s, a¹, a²), exactly, (S, A, A).

    Q*(s, a) = r(s, a) + γ max_a' Q*(s', a'); the games have no way back, so as many sweeps as there
    are states are enough.
    """
    q = np.zeros_like(game.payoff)
    for _ in range(len(q)):
        best = np.r_[q.max((1, 2)), 0.0]  # the value of END, -1, stands last
        q = game.payoff + gamma * best[game.successor]
    return q


@dataclass(frozen=True)
class MatrixGameConfig(Config):
    """Options of the matrix games.

    Parameters
    ----------
    game : {"climbing", "penalty", "two-step"}
    scale : float
        Payoffs are multiplied by this.
    """

    game: Literal["climbing", "penalty", "two-step"] = "two-step"
    scale: Positive = 1.0


class BatchedMatrixGame(BatchedParallelEnv):
    """B games of two agents, who see which state they are in (one-hot) and are paid half each.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`MatrixGameConfig`
    """

    state_arrays = ("_state",)

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = MatrixGameConfig(**options)
        self.game = GAMES[self.config.game]
        states, actions, _ = self.game.payoff.shape
        super().__init__(num_envs, 2, states, spaces.Discrete(actions), states, autoreset)
        self._state = np.zeros(num_envs, np.int64)

    def _start(self, rows: np.ndarray) -> None:
        self._state[rows] = 0

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        seen = np.eye(len(self.game.payoff), dtype=np.float32)[self._state[rows]]
        return np.repeat(seen[:, None], 2, axis=1)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = self._state, action[:, 0], action[:, 1]
        reward, after = self.config.scale * self.game.payoff[at], self.game.successor[at]
        over = after == END
        self._state = np.where(over, self._state, after)
        return np.repeat(reward[:, None] / 2, 2, axis=1).astype(np.float32), over

    def scripted(self) -> np.ndarray:
        """Return the best joint actions (B, 2)."""
        q = joint_values(self.game)[self._state].reshape(self.num_envs, -1)
        return np.stack(np.divmod(q.argmax(1), self.n_actions), axis=1)

    def render_ansi(self, index: int = 0) -> str:
        """Return the payoffs of the state that environment ``index`` is in."""
        table = self.config.scale * self.game.payoff[self._state[index]]
        return "\n".join(" ".join(f"{value:7.1f}" for value in row) for row in table)


class MatrixGame(PettingZooFace):
    """One :class:`BatchedMatrixGame` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"ansi", "human", None}
    options : fields of :class:`MatrixGameConfig`
    """

    metadata = {
        **PettingZooFace.metadata,
        "name": "matrix_game",
        "render_modes": ["ansi", "human"],
    }

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedMatrixGame(1, False, **options), render_mode)
