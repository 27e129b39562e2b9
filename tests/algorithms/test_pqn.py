"""PQN against numbers made by hand, plain networks, loops and exact values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import ACTIONS, AGENTS, OBS, full, networks
from torch import Tensor

from marl_lib.algorithms.pqn import PQN, PQNConfig, PQNVDNConfig
from marl_lib.envs import make
from marl_lib.nn.encoders import MLPEncoder
from marl_lib.nn.heads import QHead
from marl_lib.nn.team import Team
from marl_lib.planning import tabulate, value_iteration
from marl_lib.replicates import lift
from marl_lib.training import LoopConfig, Trainer

both = pytest.mark.parametrize("name", ["pqn", "pqn_vdn"])
sharing = pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
PLAIN = {"normalise_reward": False, "gamma": 0.9, "lam": 0.7}


def prepared(name: str, seeds: tuple[int, ...] = (0, 3), **options: Any) -> tuple[PQN, Any]:
    """Return a learner with a full rollout, and the rollout ready to learn from."""
    pqn = full(name, "mlp", seeds, **{**PLAIN, "rollout": 6, **options})
    return pqn, pqn.prepare()


# The parts ----------------------------------------------------------------------------------------


def test_layers_are_normalised_before_every_relu() -> None:
    torch.manual_seed(0)
    team = Team(MLPEncoder(hidden=(7, 5)), PQN.layers, OBS, lambda size: QHead(size, ACTIONS))
    x = 100 * torch.randn(6, 1, OBS)
    with torch.no_grad():
        for p in team.parameters():
            p.add_(0.1 * torch.randn_like(p))
    body, head, h = team.network.encoder.body, team.network.head.advantage, x
    for i in (0, 3):
        layer, norm = body[i], body[i + 1]
        h = h @ layer.weight.T + layer.bias
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = (h * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(team(x)[0], h @ head.weight.T + head.bias)


# Returns ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_returns_equal_a_loop(name: str, seeds: tuple[int, ...]) -> None:
    """From each step's own next observation and its own mask; a time limit bootstraps."""
    pqn, batch = prepared(name, seeds)
    d, c = pqn.data, pqn.config
    cut, over = d["truncated"] & ~d["terminated"], d["terminated"]
    assert cut[:, :-1].flatten(1).any(1).all() and over.flatten(1).any(1).all()
    q = pqn.outputs(d["next_obs"].flatten(1, 2)).view(*d["next_obs"].shape[:-1], ACTIONS)
    best = q.masked_fill(~d["next_mask"], -torch.inf).amax(-1).masked_fill(over[..., None], 0.0)
    reward = d["reward"]  # (R, T, B, N)
    if name == "pqn_vdn":
        best, reward = best.sum(-1, keepdim=True), reward.sum(-1, keepdim=True)
    found = batch["returns"].view(reward.shape)
    for r, b, k in np.ndindex(len(seeds), reward.shape[2], reward.shape[3]):
        after = None
        for t in reversed(range(6)):
            if after is None or d["truncated"][r, t, b]:
                after = best[r, t, b, k]
            else:
                after = c.lam * after + (1 - c.lam) * best[r, t, b, k]
            after = reward[r, t, b, k] + (0.0 if over[r, t, b] else c.gamma * after)
            torch.testing.assert_close(found[r, t, b, k], after, atol=1e-5, rtol=1e-4)


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return() -> None:
    """Paid a hundred times as much, it learns the same; without the scale it does not."""
    for scaled in (True, False):
        flats = []
        for factor in (1.0, 100.0):
            pqn = full("pqn_vdn", normalise_reward=scaled)
            pqn.data["reward"] *= factor
            pqn.update()
            flats.append(pqn.nets["agents"].flat.detach())
        assert torch.allclose(*flats, atol=1e-4) == scaled


# Loss ---------------------------------------------------------------------------------------------


@both
@sharing
def test_the_loss_and_its_gradient_equal_plain_networks(name: str, share: bool) -> None:
    """Half the mean square, of each agent's value or of their sum, with returns as numbers."""
    pqn, batch = prepared(name, share_parameters=share)
    net = pqn.nets["agents"]
    loss, figures = lift(pqn.loss, pqn.nets, batch, learning=("agents",))
    net.zero_grad()
    loss.sum().backward()
    for r in range(2):
        agents = networks(pqn, "agents", r)
        values: list[Tensor] = [
            torch.stack([agents[i](obs[0, i])[a[0, i]] for i in range(AGENTS)])
            for obs, a in zip(batch["obs"][r], batch["action"][r], strict=True)
        ]
        q = torch.stack(values)  # (n, N)
        q = q.sum(-1, keepdim=True) if name == "pqn_vdn" else q
        error = 0.5 * (q - batch["returns"][r, :, 0]).square()
        torch.testing.assert_close(figures["q"][r], q.mean().detach())
        apart = not share and name == "pqn"  # each network from the mean of its own
        total = error.mean(0).sum() if apart else error.mean()
        torch.testing.assert_close(loss[r], total)
        total.backward()
        for key, p in agents[0].params.items():
            torch.testing.assert_close(net.grads[f"network.{key}"][r], p.grad, msg=key)


# Learning -----------------------------------------------------------------------------------------


def test_a_small_world_is_learned_to_its_exact_values() -> None:
    """Every state and action of a 3 x 3 grid with one target, against value iteration."""
    world = {"grid_size": (3, 3), "n_agents": 1, "n_targets": 1, "max_steps": 20}
    config = PQNConfig(
        gamma=0.9, lam=0.0, learning_rate=3e-3, rollout=8, epochs=2, batch_size=64,
        epsilon_end=0.5, epsilon_steps=1, normalise_reward=False,
    )  # fmt: skip
    pqn = PQN(make("GridWorld", 1, world).sizes(), 32, [0], config, total_steps=100_000)
    loop = LoopConfig(100_000, eval_every=10**9, eval_episodes=1, final_episodes=50)
    final = Trainer(lambda n: make("GridWorld", n, world), pqn, loop, progress=False).train().final
    table = tabulate(**world)
    exact = value_iteration(table, gamma=0.9)
    found = pqn.outputs(torch.from_numpy(table.obs)[None, :, None])[0, :, 0].numpy()
    np.testing.assert_allclose(found.max(1), exact.max(1), rtol=0.05)
    np.testing.assert_allclose(found, exact, rtol=0.12)
    best = np.take_along_axis(exact, found.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(best, exact.max(1), rtol=1e-6)  # every greedy move is optimal
    assert final["targets_collected"].mean() == 1.0


def test_the_sum_learns_the_best_fit_of_the_climbing_game() -> None:
    """Under uniform play a sum can only be the fit of rows and columns, which is known exactly."""
    payoff = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]]) / 10
    config = PQNVDNConfig(
        gamma=0.0, learning_rate=0.01, rollout=8, epochs=2, batch_size=256, epsilon_end=1.0,
        normalise_reward=False, encoder={"hidden": (16,)},
    )  # type: ignore[arg-type] # fmt: skip
    make_game = lambda n: make("MatrixGame", n, {"game": "climbing", "scale": 0.1})  # noqa: E731
    pqn = PQN(make_game(1).sizes(), 64, [0, 1], config, total_steps=100_000)
    loop = LoopConfig(100_000, eval_every=10**9, eval_episodes=1, final_episodes=1)
    final = Trainer(make_game, pqn, loop, progress=False).train().final["episode_return"]
    q = pqn.outputs(torch.ones(2, 1, 2, 1))[:, 0].numpy()  # (R, N, A)
    fit = payoff.mean(1)[:, None] + payoff.mean(0) - payoff.mean()
    for r in range(2):
        np.testing.assert_allclose(q[r, 0][:, None] + q[r, 1], fit, atol=0.1)
    np.testing.assert_allclose(final, 0.5)  # the worst of the three equilibria, on the diagonal
