"""Particle worlds (Mordatch, Abbeel 2018; Lowe et al. 2017), stepped as batches.

Discs with mass are pushed about on a plane, bump into each other, and some of them speak. The
dynamics, rewards and observations are those of the package mpe2; only the continuous action is
simpler, see :class:`BatchedParticles`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Count, Natural, Unit
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace
from marl_lib.envs.draw import PALETTE, Canvas

PAPER, SQUARE, INK = (250, 249, 245), (238, 236, 228), PALETTE["black"]
STONE = (150, 148, 142)
PUSHES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
DT, DAMPING, CONTACT_FORCE, CONTACT_MARGIN = 0.1, 0.25, 100.0, 1e-3


@dataclass(frozen=True)
class Bodies:
    """What acts and what stands about: M actors first, then landmarks, E bodies in all.

    Parameters
    ----------
    radius, collides : (E,) arrays
        Bodies that collide push each other away when they overlap.
    strength : (M,) array
        Force of a full push; 0 for an actor that cannot move.
    max_speed : (M,) array
        inf for none.
    """

    radius: np.ndarray
    collides: np.ndarray
    strength: np.ndarray
    max_speed: np.ndarray


class BatchedParticles(BatchedParallelEnv):
    """B planes with M actors each; a subclass says what is on them and what it is for.

    The first N of the actors are agents, the others follow a rule of the world.

    A discrete action is nothing, left, right, down or up (0 to 4), and where agents also speak,
    word k comes with the actions 5 k to 5 k + 4. A continuous one is a push (x, y) in [-1, 1]² and,
    for each word, a loudness in [0, 1]. All have mass 1. In a step of 0.1 s an agent first moves by
    its velocity, then loses a quarter of it, then gains force × 0.1 s.

    Parameters
    ----------
    num_envs : int
    bodies : Bodies
    n_agents, obs_dim : int
    words : int
        That the agents can say, 0 for a world without speech.
    choices : int
        Discrete actions.
    continuous : bool
    max_steps : int
    autoreset : bool
    """

    state_arrays: tuple[str, ...] = ("position", "velocity", "said")

    def __init__(
        self,
        num_envs: int,
        bodies: Bodies,
        n_agents: int,
        obs_dim: int,
        words: int,
        choices: int,
        continuous: bool,
        max_steps: int,
        autoreset: bool = True,
    ):
        self.words, self.bodies = words, bodies
        self.actors = m = len(bodies.strength)
        space: spaces.Discrete | spaces.Box = spaces.Discrete(choices)
        if continuous:
            low = np.r_[-np.ones(2), np.zeros(words)].astype(np.float32)
            space = spaces.Box(low, np.ones(2 + words, np.float32))
        super().__init__(num_envs, n_agents, obs_dim, space, max_steps, autoreset)
        self.continuous = continuous
        self.position = np.zeros((num_envs, len(bodies.radius), 2))
        self.velocity = np.zeros((num_envs, m, 2))
        self.said = np.zeros((num_envs, n_agents, words))
        every = np.array(list(itertools.combinations(range(len(bodies.radius)), 2)))
        meet = bodies.collides[every].all(1) & (every[:, 0] < m)  # landmarks stay where they are
        self._pairs = every[meet].T
        self._touch = bodies.radius[self._pairs].sum(0)
        self._reach = np.square(self._touch + 40 * CONTACT_MARGIN)[:, None]
        self._others = np.array([[j for j in range(m) if j != i] for i in range(n_agents)], int)
        self._limits = bool(np.isfinite(bodies.max_speed).any())

    def _rewards(self) -> np.ndarray:
        """Return the reward of every agent for the state that a step led to, (B, N)."""
        raise NotImplementedError

    def _by_rule(self) -> np.ndarray:
        """Return the pushes of the actors that are no agents, (B, M - N, 2)."""
        return np.zeros((self.num_envs, self.actors - self.n_agents, 2))

    def _decode(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pushes (B, N, 2) and words (B, N, words)."""
        if self.continuous:
            return action[..., :2], action[..., 2:]
        words = np.arange(self.words) == (action // 5)[..., None]
        return PUSHES[action % 5], words

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        push, self.said[:] = self._decode(action)
        if self.actors > self.n_agents:
            push = np.concatenate([push, self._by_rule()], axis=1)
        force = push * self.bodies.strength[:, None]
        force += self._contact()
        moves = (self.bodies.strength > 0)[:, None]
        self.position[:, : self.actors] += self.velocity * DT * moves
        self.velocity *= 1 - DAMPING
        self.velocity += force * DT * moves
        if self._limits:
            speed = np.linalg.norm(self.velocity, axis=-1, keepdims=True)
            self.velocity *= np.minimum(1, self.bodies.max_speed[:, None] / np.maximum(speed, 1e-9))
        return self._rewards().astype(np.float32), np.zeros(self.num_envs, bool)

    def _contact(self) -> np.ndarray:
        """Return the forces with which bodies that overlap push the actors apart, (B, M, 2).

        100 × overlap, with a soft beginning over a margin of a thousandth; where bodies are 40
        margins apart the force is below what a float can hold beside the others.
        """
        first, second = self._pairs
        place = _columns(self.position)
        delta = place[first] - place[second]  # (pairs, 2, B)
        squared = np.square(delta).sum(1)
        pair, b = np.nonzero(squared < self._reach)
        apart = np.sqrt(squared[pair, b])
        overlap = np.logaddexp(0, (self._touch[pair] - apart) / CONTACT_MARGIN) * CONTACT_MARGIN
        push = delta[pair, :, b] * (CONTACT_FORCE * overlap / apart)[:, None]
        force = np.zeros((self.num_envs, self.position.shape[1], 2))
        np.add.at(force, (b, first[pair]), push)
        np.add.at(force, (b, second[pair]), -push)
        return force[:, : self.actors]

    # What observations are made of, for the rows asked for ----------------------------------------

    def _landmarks(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return landmarks as each agent sees them, (rows, N, landmarks × 2)."""
        place = _columns(self.position[rows])
        return _rows(place[None, self.actors :] - place[: self.n_agents, None])

    def _team(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return the other actors as each agent sees them, (rows, N, (M - 1) × 2)."""
        place = _columns(self.position[rows])
        return _rows(place[self._others] - place[: self.n_agents, None])

    def _touching(self, first: slice, second: slice) -> np.ndarray:
        """Return whether actors of one kind overlap with actors of another, (B, first, second)."""
        a, b = self.position[:, first], self.position[:, second]
        radius = self.bodies.radius
        reach = radius[first, None] + radius[second]
        delta = a[:, :, None] - b[:, None]
        return np.einsum("bijd,bijd->bij", delta, delta) < reach**2

    # A hand-written policy ------------------------------------------------------------------------

    def scripted(self) -> np.ndarray:
        """Return the actions (B, N[, A]) of a hand-written policy that sees everything."""
        raise NotImplementedError

    def _steer(self, way: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return moves, as numbers or as pushes, that bring actors (B, k) to the end of their way.

        A push acts on where an actor is two steps later, and beyond; looking about three steps
        ahead (0.25 v, and 0.1 for a push) brakes in time. Found by trial; see the tests.
        """
        if self.continuous:
            return np.clip((way - 0.2 * velocity) / 0.07, -1, 1)
        ahead = (way - 0.25 * velocity)[..., None, :] - 0.1 * PUSHES  # (B, k, 5, 2)
        return np.square(ahead).sum(-1).argmin(-1)

    def _joint(self, moves: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return moves (B, N) or pushes (B, N, 2), with words (B, N), as actions."""
        if not self.continuous:
            return moves + 5 * words if self.words else moves
        said = np.arange(self.words) == words[..., None]
        return np.concatenate([moves, said], axis=-1).astype(np.float32)

    def set_state(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Place all bodies: positions (B, E, 2), velocities (B, M, 2); return the observations."""
        if self.streams is None:
            raise RuntimeError("call reset() before set_state()")
        self.position[:], self.velocity[:] = position, velocity
        return self._observe(slice(None))

    def _scatter(self, rows: np.ndarray, spread: float = 1.0) -> None:
        """Put the bodies of new episodes anywhere in [-1, 1]², landmarks in spread × that."""
        assert self.streams is not None
        count = 2 * self.position.shape[1]
        place = 2 * self.streams.uniform(count, rows) - 1
        self.position[rows] = place.reshape(len(rows), -1, 2)
        self.position[rows, self.actors :] *= spread
        self.velocity[rows] = 0.0
        self.said[rows] = 0.0

    # Pictures -------------------------------------------------------------------------------------

    def _colours(self, index: int) -> list[tuple[int, int, int]]:
        """Return the colour of every body of one environment."""
        landmarks = self.position.shape[1] - self.actors
        return [PALETTE["blue"]] * self.actors + [INK] * landmarks

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (280, 280, 3) uint8."""
        size, position = 280, self.position[index]
        widest = max(1.3, float(np.abs(position).max()) + 0.1)  # agents may leave the square
        scale = size / (2 * widest)
        canvas = Canvas(size, size, PAPER)
        edge = size / 2 - scale
        canvas.rectangle((edge, edge), 2 * scale, 2 * scale, SQUARE)
        colours = self._colours(index)
        order = [*range(self.actors, len(position)), *range(self.actors)]  # actors on top
        for k in order:
            at = (size / 2 + scale * position[k, 0], size / 2 - scale * position[k, 1])
            radius = max(scale * self.bodies.radius[k], 4.0)
            if k < self.actors or self.bodies.collides[k]:
                canvas.disc(at, radius, colours[k])
            else:  # a place, not an obstacle
                corner = at[0] - radius, at[1] - radius
                canvas.rectangle(corner, 2 * radius, 2 * radius, colours[k])
            if k < self.n_agents and self.words and self.said[index, k].any():
                word = chr(ord("A") + int(self.said[index, k].argmax()))
                canvas.text((at[0], at[1] - 16), word, 14, INK)
        return canvas.image()


def _columns(x: np.ndarray) -> np.ndarray:
    """Return (B, k, 2) as (k, 2, B): with the batch last, NumPy's loops are long and so fast."""
    return np.ascontiguousarray(x.transpose(1, 2, 0))


def _rows(x: np.ndarray) -> np.ndarray:
    """Return (N, k, 2, B) as (B, N, 2 k)."""
    return x.reshape(len(x), -1, x.shape[-1]).transpose(2, 0, 1)


# Cooperative navigation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CooperativeNavigationConfig(Config):
    """Options of cooperative navigation.

    Parameters
    ----------
    n_agents : int
        As many as landmarks.
    local_ratio : float
        Share of an agent's own reward (-1 for each collision) against the common one.
    continuous : bool
    velocities : bool
        Show an agent its velocity; otherwise its last push stands there, a part of what it adds
        up from.
    max_steps : int
    """

    n_agents: Count = 3
    local_ratio: Unit = 0.0
    continuous: bool = False
    velocities: bool = True
    max_steps: Count = 25


class BatchedCooperativeNavigation(BatchedParticles):
    """Cover all landmarks, each by somebody: mpe2's simple_spread.

    Each agent is paid minus the sum over landmarks of the distance to the nearest agent. An
    observation is (velocity, position, landmarks, other agents, 2 (N - 1) zeros in the place of
    what nobody says), 6 N numbers, all positions but its own relative to it.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`CooperativeNavigationConfig`
    """

    state_arrays = (*BatchedParticles.state_arrays, "pushed")

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = CooperativeNavigationConfig(**options)
        n = c.n_agents
        bodies = Bodies(
            radius=np.r_[np.full(n, 0.15), np.full(n, 0.05)],
            collides=np.arange(2 * n) < n,
            strength=np.full(n, 5.0),
            max_speed=np.full(n, np.inf),
        )
        super().__init__(num_envs, bodies, n, 6 * n, 0, 5, c.continuous, c.max_steps, autoreset)
        self.pushed = np.zeros((num_envs, n, 2))

    def _start(self, rows: np.ndarray) -> None:
        self._scatter(rows)
        self.pushed[rows] = 0.0

    def _decode(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.pushed[:], words = super()._decode(action)
        return self.pushed, words

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        n, velocity = self.n_agents, self.velocity[rows]
        out = np.zeros((len(velocity), n, 6 * n), np.float32)
        out[..., :2] = velocity if self.config.velocities else self.pushed[rows]
        out[..., 2:4] = self.position[rows, :n]
        out[..., 4 : 4 + 2 * n] = self._landmarks(rows)
        out[..., 4 + 2 * n : 2 + 4 * n] = self._team(rows)
        return out

    def distances(self) -> np.ndarray:
        """Return how far each agent is from each landmark, (B, N, N)."""
        return np.ascontiguousarray(self._distances().transpose(2, 0, 1))

    def _distances(self) -> np.ndarray:
        """Return the same with the batch last, (N, N, B)."""
        n, place = self.n_agents, _columns(self.position)
        return np.asarray(np.sqrt(np.square(place[:n, None] - place[None, n:]).sum(2)))

    def scripted(self) -> np.ndarray:
        """Return actions by which each agent goes to its landmark under the best assignment."""
        n = self.n_agents
        goal = _assignment(self.distances())[..., None]  # (B, N, 1)
        way = np.take_along_axis(self.position[:, n:], goal, axis=1) - self.position[:, :n]
        moves = self._steer(way, self.velocity)
        return self._joint(moves, np.zeros(moves.shape[:2], np.int64))

    def _rewards(self) -> np.ndarray:
        self._near = self._distances().min(0)  # (landmarks, B)
        ratio, common = self.config.local_ratio, -self._near.sum(0)[:, None]
        if ratio == 0:
            return np.broadcast_to(common, (self.num_envs, self.n_agents))
        team = slice(0, self.n_agents)
        hits = self._touching(team, team).sum(2) - 1  # not with oneself
        return (1 - ratio) * common - ratio * hits

    def _info(self) -> dict[str, Any]:
        covered = self._near < 0.15  # within an agent's radius
        return {"episode_metrics": {"covered": covered.mean(0)}}


def _assignment(cost: np.ndarray) -> np.ndarray:
    """Return each agent's landmark in the assignment that costs least, (B, N, N) -> (B, N)."""
    n = cost.shape[1]
    if n > 4:
        from scipy.optimize import linear_sum_assignment  # takes 0.4 s to load

        return np.stack([linear_sum_assignment(c)[1] for c in cost])
    every = np.array(list(itertools.permutations(range(n))))  # all at once, the batch over
    return np.asarray(every[cost[:, np.arange(n), every].sum(-1).argmin(1)])


# Predators and prey -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredatorPreyConfig(Config):
    """Options of predators and prey.

    Parameters
    ----------
    n_predators, n_prey, n_obstacles : int
    prey : {"agent", "flees"}
        Prey that acts like any agent, the last of them, or that runs away by a rule
        (:meth:`BatchedPredatorPrey.flee`), so that the predators are a team of their own.
    continuous : bool
    max_steps : int
    """

    n_predators: Count = 3
    n_prey: Count = 1
    n_obstacles: Natural = 2
    prey: Literal["agent", "flees"] = "agent"
    continuous: bool = False
    max_steps: Count = 25


class BatchedPredatorPrey(BatchedParticles):
    """Slow predators hunt faster prey around obstacles: mpe2's simple_tag.

    Each predator is paid 10 for every pair of predator and prey that touch, each prey loses 10 for
    every predator that touches it, and more the further it leaves the square. An observation is
    (velocity, position, obstacles, other actors, velocities of the other prey), all positions but
    its own relative to it; a prey's has one velocity less and ends in two zeros.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`PredatorPreyConfig`
    """

    state_arrays = (*BatchedParticles.state_arrays, "touches")

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = PredatorPreyConfig(**options)
        p, q, o = c.n_predators, c.n_prey, c.n_obstacles
        kinds = np.repeat([0, 1], [p, q])
        bodies = Bodies(
            radius=np.repeat([0.075, 0.05, 0.2], [p, q, o]),
            collides=np.ones(p + q + o, bool),
            strength=np.array([3.0, 4.0])[kinds],
            max_speed=np.array([1.0, 1.3])[kinds],
        )
        size = 4 + 2 * o + 2 * (p + q - 1) + 2 * q
        agents = p + q if c.prey == "agent" else p
        super().__init__(num_envs, bodies, agents, size, 0, 5, c.continuous, c.max_steps, autoreset)
        self.predators, self.prey = slice(0, p), slice(p, p + q)
        self.touches = np.zeros(num_envs)  # of the episode so far

    def _start(self, rows: np.ndarray) -> None:
        self._scatter(rows, spread=0.9)
        self.touches[rows] = 0.0

    def _colours(self, index: int) -> list[tuple[int, int, int]]:
        c = self.config
        predators, prey = [PALETTE["blue"]] * c.n_predators, [PALETTE["vermilion"]] * c.n_prey
        return [*predators, *prey, *[STONE] * c.n_obstacles]

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        c, n, m = self.config, self.n_agents, self.actors
        position, velocity = self.position[rows], self.velocity[rows]
        out = np.zeros((len(position), n, self.obs_dim), np.float32)
        out[..., :2], out[..., 2:4] = velocity[:, :n], position[:, :n]
        near, far = 4 + 2 * c.n_obstacles, 4 + 2 * c.n_obstacles + 2 * (m - 1)
        out[..., 4:near], out[..., near:far] = self._landmarks(rows), self._team(rows)
        fast = velocity[:, self.prey]  # (rows, prey, 2)
        out[:, self.predators, far:] = fast.reshape(len(fast), 1, -1)
        if n == m:
            others = self._others[c.n_predators :, c.n_predators :]  # other prey, each prey's
            mates = velocity[:, others]  # (rows, prey, other prey, 2)
            out[:, self.prey, far : self.obs_dim - 2] = mates.reshape(*mates.shape[:2], -1)
        return out

    def _rewards(self) -> np.ndarray:
        caught = self._touching(self.predators, self.prey)  # (B, P, Q)
        self.touches += caught.sum((1, 2))
        out = np.repeat(10.0 * caught.sum((1, 2))[:, None], self.n_agents, axis=1)
        if self.n_agents == self.actors:
            out[:, self.prey] = -10.0 * caught.sum(1)
            away = np.abs(self.position[:, self.prey])
            far = np.minimum(np.exp(2 * away - 2), 10)
            out[:, self.prey] -= np.where(away < 1, 10 * np.maximum(away - 0.9, 0), far).sum(-1)
        return out

    def _info(self) -> dict[str, Any]:
        return {"episode_metrics": {"touches": self.touches.copy()}}

    def flee(self) -> np.ndarray:
        """Return pushes (B, prey, 2): away from predators, the nearer the more, and from edges."""
        away = self.position[:, self.prey, None] - self.position[:, None, self.predators]
        distance = np.linalg.norm(away, axis=-1, keepdims=True)
        at = self.position[:, self.prey]
        push = (away / np.maximum(distance, 0.05) ** 3).sum(2) - 8 * at * np.abs(at) ** 7
        if self.continuous:
            return push / np.maximum(np.linalg.norm(push, axis=-1, keepdims=True), 1)
        return PUSHES[(push @ PUSHES.T).argmax(-1)]

    _by_rule = flee

    def scripted(self) -> np.ndarray:
        """Return actions: predators run to where the nearest prey will be, prey flees."""
        prey, speed = self.position[:, self.prey], self.velocity[:, self.prey]
        way = (prey + 0.3 * speed)[:, None] - self.position[:, self.predators, None]  # (B, P, Q, 2)
        nearest = np.square(way).sum(-1).argmin(2)[..., None, None]
        way = np.take_along_axis(way, nearest, axis=2)[:, :, 0]
        moves = self._steer(way, np.zeros_like(way))  # no need to stop
        if self.n_agents == self.actors:
            away = self.flee()
            mine = away if self.continuous else (away @ PUSHES.T).argmax(-1)
            moves = np.concatenate([moves, mine], axis=1)
        return self._joint(moves, np.zeros(moves.shape[:2], np.int64))


# Speech -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeakerListenerConfig(Config):
    """Options of speaker and listener.

    Parameters
    ----------
    continuous : bool
    max_steps : int
    """

    continuous: bool = False
    max_steps: Count = 25


class BatchedSpeakerListener(BatchedParticles):
    """One knows where to go and cannot move, the other can: mpe2's simple_speaker_listener.

    The speaker (agent 0) sees the colour of the goal, one of three landmarks, and says one of three
    words; its discrete actions 0 to 2 are the words, 3 and 4 say nothing. The listener (agent 1)
    sees (velocity, landmarks, word). Both are paid minus its squared distance to the goal. The
    speaker's observation is filled up with zeros to the length of the listener's, 11.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`SpeakerListenerConfig`
    """

    state_arrays = (*BatchedParticles.state_arrays, "goal")
    colours = 0.15 + 0.5 * np.eye(3)  # of the landmarks, red, green, blue

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = SpeakerListenerConfig(**options)
        bodies = Bodies(
            radius=np.repeat([0.075, 0.04], [2, 3]),
            collides=np.zeros(5, bool),
            strength=np.array([0.0, 5.0]),
            max_speed=np.full(2, np.inf),
        )
        super().__init__(num_envs, bodies, 2, 11, 3, 5, c.continuous, c.max_steps, autoreset)
        self.goal = np.zeros(num_envs, np.int64)  # a landmark

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self._scatter(rows)
        self.goal[rows] = self.streams.integers(3, 1, rows)[:, 0]

    def _decode(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.continuous:
            push, words = super()._decode(action)
        else:
            push, words = PUSHES[action], np.arange(3) == action[..., None]
        return push, words * np.array([[1], [0]])  # the listener is silent

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        goal = self.goal[rows]
        out = np.zeros((len(goal), 2, 11), np.float32)
        out[:, 0, :3] = self.colours[goal]
        out[:, 1, :2] = self.velocity[rows, 1]
        out[:, 1, 2:8] = self._landmarks(rows)[:, 1]
        out[:, 1, 8:] = self.said[rows, 0]
        return out

    def scripted(self) -> np.ndarray:
        """Return actions: the speaker names the goal, the listener goes there."""
        goal = self.position[np.arange(self.num_envs), 2 + self.goal]
        moves = self._steer((goal - self.position[:, 1])[:, None], self.velocity[:, 1:])
        if self.continuous:
            words = np.repeat(self.goal[:, None], 2, axis=1)
            return self._joint(np.concatenate([0 * moves, moves], axis=1), words)
        return np.concatenate([self.goal[:, None], moves], axis=1)

    def _rewards(self) -> np.ndarray:
        goal = self.position[np.arange(self.num_envs), 2 + self.goal]
        squared = np.square(self.position[:, 1] - goal).sum(1)
        return np.repeat(-squared[:, None], 2, axis=1)

    def _colours(self, index: int) -> list[tuple[int, int, int]]:
        landmarks = [PALETTE[name] for name in ("vermilion", "green", "sky")]
        return [landmarks[self.goal[index]], INK, *landmarks]


@dataclass(frozen=True)
class ReferenceConfig(Config):
    """Options of the reference world.

    Parameters
    ----------
    local_ratio : float
        Share of an agent's own reward against the mean of both.
    continuous : bool
    max_steps : int
    """

    local_ratio: Unit = 0.5
    continuous: bool = False
    max_steps: Count = 25


class BatchedReference(BatchedParticles):
    """Each of two agents knows the other's goal and has ten words: mpe2's simple_reference.

    An agent is paid minus the distance of the *other* one from the landmark that it alone knows of.
    An observation is (velocity, landmarks, colour of the other's goal, the other's word), 21.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`ReferenceConfig`
    """

    state_arrays = (*BatchedParticles.state_arrays, "goal")
    colours = 0.25 + 0.5 * np.eye(3)

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = ReferenceConfig(**options)
        bodies = Bodies(
            radius=np.full(5, 0.05),
            collides=np.zeros(5, bool),
            strength=np.full(2, 5.0),
            max_speed=np.full(2, np.inf),
        )
        super().__init__(num_envs, bodies, 2, 21, 10, 50, c.continuous, c.max_steps, autoreset)
        self.goal = np.zeros(
            (num_envs, 2), np.int64
        )  # what agent i knows: where the other is to go

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self._scatter(rows)
        self.goal[rows] = self.streams.integers(3, 2, rows)

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        parts = [
            self.velocity[rows],
            self._landmarks(rows),
            self.colours[self.goal[rows]],
            self.said[rows, ::-1],
        ]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def scripted(self) -> np.ndarray:
        """Return actions: each names the goal of the other and goes to its own."""
        goal = np.take_along_axis(self.position, 2 + self.goal[:, ::-1, None], axis=1)
        return self._joint(self._steer(goal - self.position[:, :2], self.velocity), self.goal)

    def _rewards(self) -> np.ndarray:
        goal = np.take_along_axis(self.position, 2 + self.goal[..., None], axis=1)  # (B, 2, 2)
        own = -np.linalg.norm(self.position[:, 1::-1] - goal, axis=-1)
        ratio = self.config.local_ratio
        return (1 - ratio) * own.mean(1, keepdims=True) + ratio * own

    def _colours(self, index: int) -> list[tuple[int, int, int]]:
        landmarks = [PALETTE[name] for name in ("vermilion", "green", "sky")]
        return [landmarks[k] for k in self.goal[index, ::-1]] + landmarks


# Single environments ------------------------------------------------------------------------------


class CooperativeNavigation(PettingZooFace):
    """One :class:`BatchedCooperativeNavigation` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`CooperativeNavigationConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "cooperative_navigation", "render_fps": 10}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedCooperativeNavigation(1, False, **options), render_mode)


class PredatorPrey(PettingZooFace):
    """One :class:`BatchedPredatorPrey` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`PredatorPreyConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "predator_prey", "render_fps": 10}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedPredatorPrey(1, False, **options), render_mode)


class SpeakerListener(PettingZooFace):
    """One :class:`BatchedSpeakerListener` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`SpeakerListenerConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "speaker_listener", "render_fps": 10}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedSpeakerListener(1, False, **options), render_mode)


class Reference(PettingZooFace):
    """One :class:`BatchedReference` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`ReferenceConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "reference", "render_fps": 10}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedReference(1, False, **options), render_mode)
