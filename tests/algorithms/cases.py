"""Small learners of every kind, and a world of random numbers for them to play in."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.func import functional_call

from marl_lib.envs.base import BatchedParallelEnv
from marl_lib.learner import Learner
from marl_lib.off_policy import OffPolicy
from marl_lib.replicates import lift
from marl_lib.runs import ALGORITHMS
from marl_lib.spec import Spec

OBS, ACTIONS, AGENTS, ENVS = 4, 3, 2, 4
BOX = np.array([-2.0, 0.0], np.float32), np.array([2.0, 0.5], np.float32)
MASKED = Spec(OBS, ACTIONS, AGENTS, action_masks=True)
CONTINUOUS = Spec(OBS, 2, AGENTS, BOX)

ENCODERS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "hidden": (8,)},
    "gru": {"kind": "gru", "hidden": (8,), "memory_size": 5},
    "lstm": {"kind": "lstm", "hidden": (8,), "memory_size": 5},
    "attention": {"kind": "attention", "hidden": (8,), "d_model": 8, "n_heads": 2},
}
MEMORIES = ("gru", "lstm")
SMALL_REPLAY = {
    "batch_size": 8, "buffer_size": 400, "learning_starts": 0, "train_every": ENVS,
    "sequence_length": 4, "burn_in": 1,
}  # fmt: skip
BARE = {"normalise_obs": False, "normalise_reward": False, "normalise_advantage": False}
SMALL_ROLLOUT = {"rollout": 4, "epochs": 1, "batch_size": 8, "sequence_length": 2}

# Name of a case -> the algorithm, the world, settings of its own.
LEARNERS: dict[str, tuple[str, Spec, dict[str, Any]]] = {
    "dqn": ("dqn", MASKED, {"dueling": True}),
    "vdn": ("vdn", MASKED, {}),
    "qmix": ("qmix", MASKED, {"mixer_width": 4, "hyper_width": 6}),
    "wqmix": ("wqmix", MASKED, {"mixer_width": 4, "hyper_width": 6}),
    "pqn": ("pqn", MASKED, {}),
    "pqn_vdn": ("pqn_vdn", MASKED, {}),
    "ppo": ("ppo", CONTINUOUS, {"anneal": False}),
    "ippo": ("ippo", MASKED, {"anneal": False}),
    "mappo": ("mappo", MASKED, {"anneal": False}),
    "maddpg": ("maddpg", MASKED, {}),
    "maddpg-box": ("maddpg", CONTINUOUS, {}),
    "sac": ("sac", CONTINUOUS, {}),
}
OFF_POLICY = [n for n, (kind, *_) in LEARNERS.items() if issubclass(ALGORITHMS[kind][0], OffPolicy)]
ON_POLICY = [name for name in LEARNERS if name not in OFF_POLICY]
DISCRETE = [name for name, (_, spec, _) in LEARNERS.items() if spec.bounds is None]


def learner(
    name: str,
    encoder: str | dict[str, Any] = "mlp",
    seeds: tuple[int, ...] = (0, 3),
    num_envs: int = ENVS,
    *,
    spec: Spec | None = None,
    total_steps: int | None = None,
    device: str = "cpu",
    capture: bool = False,
    **changes: Any,
) -> Any:
    """Return an untrained learner of a case; ``changes`` to its settings."""
    algorithm, world, own = LEARNERS[name]
    kind, config = ALGORITHMS[algorithm]
    small = SMALL_REPLAY if name in OFF_POLICY else SMALL_ROLLOUT
    encoder = ENCODERS[encoder] if isinstance(encoder, str) else encoder
    given = {"encoder": encoder, **small, **own, **changes}
    spec = world if spec is None else spec
    where = {"device": device, "capture": capture}
    return kind(spec, num_envs, seeds, config(**given), total_steps=total_steps, **where)


class Noise(BatchedParallelEnv):
    """Random numbers are seen, and paid for actions; it ends by chance, or after four steps.

    In some steps only some actions are legal; where it has ended, none is.
    """

    state_arrays = ("_seen", "_legal")

    def __init__(self, num_envs: int, spec: Spec, ends: float = 0.15, max_steps: int | None = 4):
        space: Any = spaces.Discrete(spec.n_actions)
        if spec.bounds is not None:
            space = spaces.Box(*spec.bounds, dtype=np.float32)
        super().__init__(num_envs, spec.n_agents, spec.obs_dim, space, max_steps)
        self.spec, self.ends = spec, ends
        self._seen = np.zeros((num_envs, spec.n_agents, spec.obs_dim))
        self._legal = np.ones((num_envs, spec.n_agents, spec.n_actions), bool)
        self._over = np.zeros(num_envs, bool)

    def _uniform(self, shape: tuple[int, ...], rows: Any) -> np.ndarray:
        assert self.streams is not None
        return self.streams.uniform(int(np.prod(shape)), rows).reshape(-1, *shape)

    def _start(self, rows: Any) -> None:
        self._seen[rows] = 3 * self._uniform(self._seen.shape[1:], rows) - 1.5
        code = 1 + (self._uniform((self.n_agents, 1), rows) * (2**self.spec.n_actions - 1))
        self._legal[rows] = code.astype(int) >> np.arange(self.spec.n_actions) & 1

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        paid = action if action.ndim == 2 else action.sum(-1)
        reward = paid - self._seen.sum(-1)
        self._over = self._uniform((1,), slice(None))[:, 0] < self.ends
        self._start(slice(None))
        return reward.astype(np.float32), self._over

    def _observe(self, rows: Any) -> np.ndarray:
        return self._seen[rows].astype(np.float32)

    def _info(self) -> dict[str, np.ndarray]:
        return self._masks("final_mask", self._legal & ~self._over[:, None, None])

    def _info_after_reset(self) -> dict[str, np.ndarray]:
        return self._masks("action_mask", self._legal.copy())

    def _masks(self, name: str, mask: np.ndarray) -> dict[str, np.ndarray]:
        return {name: mask} if self.spec.action_masks else {}


class Play:
    """A learner at play: :class:`marl_lib.training.Trainer` without all that is around it."""

    def __init__(self, learner: Learner, **options: Any):
        self.learner = learner
        rows = learner.num_envs * learner.replicates
        self.world = Noise(rows, learner.spec, **options)
        self.obs, self.info = self.world.reset(seed=learner.seeds)
        self.figures: dict[str, np.ndarray] = {}

    def step(self) -> dict[str, Any]:
        """Make one step, without learning; return what was stored of acting."""
        self.action, stored = self.learner.act(self.obs, self.info)
        self.obs, reward, *ended, self.info = self.world.step(self.action)
        self.learner.observe(stored, reward, *ended, self.info)
        return stored

    def __call__(self, steps: int) -> Play:
        """Make so many steps, and learn before each."""
        for _ in range(steps):
            self.figures = self.learner.update() or self.figures
            self.step()
        return self


def full(
    name: str, *args: Any, ends: float = 0.15, max_steps: int | None = 4, **options: Any
) -> Any:
    """Return a learner that has enough to learn from, and has learned nothing yet."""
    made = learner(name, *args, **options)
    play = Play(made, ends=ends, max_steps=max_steps)
    for _ in range(made.config.rollout if name in ON_POLICY else 12):
        play.step()
    return made


def scatter(learner: Any, scale: float = 0.3) -> None:
    """Make networks and targets differ from each other and from their start."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for net in learner.nets.values():
            for flat in (net.flat, net.target):
                if flat is not None:
                    flat.add_(scale * torch.randn(flat.shape, generator=g).to(flat.device))


def loss_of(learner: Any, batch: Any, name: str = "loss") -> Tensor:
    """Return a loss of every replicate (R,), its gradients not taken."""
    learning, loss = learner.losses()[name]
    return lift(lambda net, b: loss(net, net.target, b)[0], learner.nets, batch, learning=learning)


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the last bit: of one and the same computation."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b))


def networks(
    learner: Any, name: str, r: int = 0, role: str = "fixed", part: str = ""
) -> list[Callable[[Tensor], Tensor]]:
    """Return what each agent's network of replicate r says of inputs (..., D), without memory.

    Each is called on its own, an agent's id put on by hand where one network serves all; their
    parameters, in attribute ``params``, take gradients. ``part`` names a team within the network.
    """
    team = learner.nets[name].network(r, role)
    team = getattr(team, part) if part else team
    params = {n: p.detach().clone().requires_grad_() for n, p in team.network.named_parameters()}

    def one(i: int) -> Callable[[Tensor], Tensor]:
        own = params if team.copies == 1 else {n: p[i] for n, p in params.items()}
        mark = torch.eye(team.n_agents)[i] if team.id_size else torch.zeros(0)

        def say(x: Tensor) -> Tensor:
            x = torch.cat([x, mark.expand(*x.shape[:-1], len(mark))], -1)
            row = x.unsqueeze(-2)  # of one agent
            return functional_call(team.network, own, (row, row[..., :0]))[0].squeeze(-2)

        say.params = params  # type: ignore[attr-defined]
        return say

    return [one(i) for i in range(team.n_agents)]


def replaced(learner: Any, **changes: Any) -> None:
    """Change the settings of a learner that exists."""
    learner.config = dataclasses.replace(learner.config, **changes)


def slow_advantage(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor,
    gamma: float, lam: float,
) -> Tensor:  # fmt: skip
    """Return equation 16 as a sum over later errors, for (T, B)."""
    out = torch.zeros_like(reward)
    for t, b in itertools.product(*map(range, reward.shape)):
        for later in range(t, len(reward)):
            follows = 0.0 if terminated[later, b] else gamma * next_value[later, b]
            delta = reward[later, b] + follows - value[later, b]
            out[t, b] += (gamma * lam) ** (later - t) * delta
            if ended[later, b]:
                break
    return out
