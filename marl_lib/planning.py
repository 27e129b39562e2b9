"""What the grid world allows at best: exact values where it is small, a planner where not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import shortest_path

from marl_lib.config import require
from marl_lib.envs.gridworld import ACTIONS, BatchedGridWorld

STAY = ACTIONS.index("stay")


class Planner:
    """Sends each agent to a target by optimal assignment, along a shortest path.

    Every step, the targets that are left are given to agents so that the sum of path lengths is
    least (Kuhn 1955, by ``scipy.optimize.linear_sum_assignment``); agents without a target go to
    the nearest goal they have not reached, or stay. With at least as many agents as targets this
    is close to the best play there is: the time at which the last agent arrives, the order of
    visits beyond one target an agent, and collisions that only a detour avoids are not optimised.

    Parameters
    ----------
    world : BatchedGridWorld
    """

    def __init__(self, world: BatchedGridWorld):
        self.world = world
        self.distance = _path_lengths(world)

    def act(self, obs: np.ndarray | None = None, info: dict[str, Any] | None = None) -> np.ndarray:
        """Return the planned actions (B, N); the observation is not needed: a planner sees all."""
        return np.stack([self._plan(b) for b in range(self.world.num_envs)])

    __call__ = act

    def _plan(self, b: int) -> np.ndarray:
        w = self.world
        agents, aims = w.agents[b], self._aims(b)
        action = np.full(w.n_agents, STAY)
        planned: list[int] = []  # cells that agents will stand on
        for i in np.argsort(aims >= 0, kind="stable"):  # first those that will not move
            if aims[i] >= 0:
                reach = agents[i] + w._moves
                length = self.distance[reach, aims[i]]  # from inside a wall: inf
                taken = np.isin(reach, planned)
                action[i] = np.lexsort((taken, length))[0]
            planned.append(agents[i] + w._moves[action[i]])
        return action

    def _aims(self, b: int) -> np.ndarray:
        """Return the cell each agent of environment ``b`` should go to, -1 for none."""
        w = self.world
        agents, left = w.agents[b], np.flatnonzero(~w.collected[b])
        aims = np.full(w.n_agents, -1)
        if w.config.targets != "shared":
            aims[left] = w.targets[b, left]
        elif len(left):
            cost = self.distance[agents[:, None], w.targets[b, left]]
            i, k = linear_sum_assignment(cost)
            aims[i] = w.targets[b, left[k]]
        if w.config.n_goals:
            for i in np.flatnonzero((aims < 0) & ~w.reached[b]):
                aims[i] = w.goals[b, np.argmin(self.distance[agents[i], w.goals[b]])]
        return aims


def _path_lengths(world: BatchedGridWorld) -> np.ndarray:
    """Return the moves between any two cells of the padded grid, inf where there is no way."""
    cells = world._free_cells
    to = cells[:, None] + world._moves[:STAY]  # (cells, 4)
    ok = ~world._blocked[to]
    start = np.repeat(cells, ok.sum(1))
    n = world._blocked.size
    graph = coo_matrix((np.ones(len(start)), (start, to[ok])), shape=(n, n))
    return shortest_path(graph.tocsr(), unweighted=True)


def random_actions(world: Any, seed: int = 0) -> Any:
    """Return a policy that draws uniformly among legal actions: the lower reference.

    Continuous actions are uniform between their bounds.
    """
    rng, space = np.random.default_rng(seed), world.single_action_space
    if isinstance(space, Box):
        return lambda obs, info: rng.uniform(
            space.low, space.high, (*obs.shape[:-1], *space.shape)
        ).astype(space.dtype)

    def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        score = rng.random((*obs.shape[:-1], world.n_actions))
        if "action_mask" in info:
            score[~info["action_mask"]] = -1.0
        return score.argmax(-1)

    return act


@dataclass(frozen=True)
class Table:
    """A small grid world with one agent, written out state by state.

    Attributes
    ----------
    agent : int array (S, 2), row and column of the agent
    targets : int array (S, K, 2)
    collected : bool array (S, K)
    obs : float32 array (S, D), what the agent sees in each state
    next_state : int array (S, A)
    reward : float array (S, A)
    terminated : bool array (S, A)
    """

    agent: np.ndarray
    targets: np.ndarray
    collected: np.ndarray
    obs: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def tabulate(max_states: int = 200_000, **options: Any) -> Table:
    """Write out a one-agent grid world, by playing every action in every state.

    Parameters
    ----------
    max_states : int
        Refuse worlds with more states than this.
    **options
        As for :class:`~marl_lib.envs.gridworld.GridWorldConfig`, with ``n_agents=1``, no goals.

    Raises
    ------
    ValueError
        If the world has several agents, goals, or too many states.
    """
    probe = BatchedGridWorld(1, **options)
    if probe.n_agents != 1 or probe.config.n_goals:
        raise ValueError("only worlds of one agent and no goals are written out")
    cells, k = probe._free_cells, probe.config.n_targets
    count = len(cells) ** (k + 1) * 2**k
    if count > 20 * max_states:
        raise ValueError(f"about {count} states, more than max_states={max_states}")
    rows = [
        (agent, *targets, *collected)
        for targets in itertools.permutations(cells, k)
        for collected in itertools.product((0, 1), repeat=k)
        for agent in cells
        if not all(collected)
        and all(c or t != agent for t, c in zip(targets, collected, strict=True))
    ]
    if len(rows) > max_states:
        raise ValueError(f"{len(rows)} states, more than max_states={max_states}")
    return _play_all(np.array(rows), k, options)


def _play_all(states: np.ndarray, k: int, options: dict[str, Any]) -> Table:
    n_states, n_actions = len(states), len(ACTIONS)
    world = BatchedGridWorld(n_states * n_actions, autoreset=False, **options)
    world.reset(seed=0)
    _write_states(world, np.repeat(states, n_actions, 0), k)
    obs = world._observe(slice(None))[::n_actions, 0]
    action = np.tile(np.arange(n_actions), n_states)
    _, reward, terminated, _, _ = world.step(action[:, None])
    after = np.concatenate([world.agents, world.targets, world.collected], axis=1)
    base = world._blocked.size ** np.arange(after.shape[1])  # mixed radix: one number a state
    code, code_after = states @ base, after @ base
    order = np.argsort(code)
    found = order[np.minimum(np.searchsorted(code[order], code_after), n_states - 1)]
    return Table(
        agent=world.row_col(states[:, 0]),
        targets=world.row_col(states[:, 1 : 1 + k]),
        collected=states[:, 1 + k :].astype(bool),
        obs=obs,
        next_state=np.where(terminated, 0, found).reshape(n_states, n_actions),
        reward=reward.astype(float).reshape(n_states, n_actions),
        terminated=terminated.reshape(n_states, n_actions),
    )


def _write_states(world: BatchedGridWorld, states: np.ndarray, k: int) -> None:
    world.agents[:] = states[:, :1]
    world.targets[:] = states[:, 1 : 1 + k]
    world.collected[:] = states[:, 1 + k :]


def value_iteration(table: Table, gamma: float, tolerance: float = 1e-9) -> np.ndarray:
    """Return the optimal action values Q* (S, A) of a table.

    Repeats Q(s, a) = r + γ max_a' Q(s', a') until no value moves by more than ``tolerance``
    (Bellman 1957).

    Raises
    ------
    ConfigError
        If ``gamma`` is not in [0, 1): the values of play that never ends need not be finite.
    """
    require(0 <= gamma < 1, "gamma", gamma, "in [0, 1)")
    q = np.zeros_like(table.reward)
    while True:
        new = table.reward + gamma * ~table.terminated * q.max(1)[table.next_state]
        if np.abs(new - q).max() < tolerance:
            return new
        q = new


def policy_value(
    table: Table, action: np.ndarray, gamma: float, tolerance: float = 1e-9
) -> np.ndarray:
    """Return the value (S,) of always taking ``action`` (S,): what a greedy policy is worth.

    Raises
    ------
    ConfigError
        If ``gamma`` is not in [0, 1].
    ValueError
        If ``gamma`` is 1 and the sum of rewards is not finite, as the policy never ends.
    """
    require(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")
    s = np.arange(len(action))
    reward, after = table.reward[s, action], table.next_state[s, action]
    goes_on = gamma * ~table.terminated[s, action]
    value = np.zeros(len(action))
    # Without discount, play that ends at all ends before it comes to a state twice.
    sweeps: Iterable[int] = range(len(action) + 1) if gamma == 1 else itertools.count()
    for _ in sweeps:
        new = reward + goes_on * value[after]
        if np.abs(new - value).max() < tolerance:
            return new
        value = new
    raise ValueError("gamma is 1 and from some states the policy never ends: no finite value")
