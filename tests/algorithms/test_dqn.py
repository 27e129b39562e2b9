"""Deep Q-learning against numbers made by hand, loops over plain networks and exact values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import ACTIONS, AGENTS, full, learner, loss_of, networks, scatter
from torch import Tensor

from marl_lib.algorithms.dqn import DQN, DQNConfig, td_target
from marl_lib.nn.heads import QHead
from marl_lib.planning import tabulate, value_iteration
from marl_lib.runs import make_trainer, run_config
from marl_lib.spec import Spec

# The parts ----------------------------------------------------------------------------------------


def test_td_target_by_hand() -> None:
    reward = torch.tensor([1.0, 1.0, 1.0])
    discount = torch.tensor([0.5, 0.5, 0.25])
    terminated = torch.tensor([False, True, False])
    target_q = torch.tensor([[2.0, 6.0], [2.0, 6.0], [-4.0, -8.0]])
    online_q = torch.tensor([[9.0, 1.0], [9.0, 1.0], [0.0, 1.0]])
    plain = td_target(reward, discount, terminated, target_q)
    double = td_target(reward, discount, terminated, target_q, online_q)
    assert plain.tolist() == [1 + 0.5 * 6, 1.0, 1 + 0.25 * -4]
    assert double.tolist() == [1 + 0.5 * 2, 1.0, 1 + 0.25 * -8]


def test_a_terminal_state_without_legal_actions_has_no_value() -> None:
    nothing = torch.full((2, 3), -torch.inf)
    target = td_target(torch.ones(2), torch.ones(2), torch.tensor([True, True]), nothing, nothing)
    assert target.tolist() == [1.0, 1.0]


def test_dueling_is_equation_9() -> None:
    torch.manual_seed(0)
    head, features = QHead(5, ACTIONS, dueling=True), torch.randn(7, 5)
    assert head.value is not None
    value = features @ head.value.weight[0] + head.value.bias
    advantage = features @ head.advantage.weight.T + head.advantage.bias
    for i, a in np.ndindex(7, ACTIONS):
        mean = advantage[i].sum() / ACTIONS
        torch.testing.assert_close(head(features)[i, a], value[i] + (advantage[i, a] - mean))


# Loss ---------------------------------------------------------------------------------------------


def slow_losses(dqn: DQN, batch: dict[str, Tensor], r: int) -> tuple[list[Any], list[Tensor]]:
    """Return the networks of replicate r and the loss of each agent, in loops, step by step."""
    online, target = (networks(dqn, "agents", r, role) for role in ("fixed", "target"))
    losses = []
    for i in range(AGENTS):
        errors = []
        for b in range(batch["reward"].shape[1]):
            row = {name: value[r, b, 0] for name, value in batch.items()}
            q, after = online[i](row["obs"][i])[row["action"][i]], row["next_obs"][i]
            judge = target[i](after).detach()
            chooser = online[i](after).detach() if dqn.config.double else judge
            value: Any = 0.0
            if not row["terminated"]:
                legal = [a for a in range(ACTIONS) if row["next_mask"][i, a]]
                value = judge[max(legal, key=lambda a, values=chooser: values[a])]
            error = (q - (row["reward"][i] + row["discount"] * value)).abs()
            errors.append(0.5 * error**2 if error < 1 else error - 0.5)
        losses.append(torch.stack(errors).mean())
    return online, losses


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_losses_and_gradients_equal_plain_networks(
    double: bool, dueling: bool, n_step: int, share: bool
) -> None:
    """Each network learns from the mean of its own errors: those of an agent, or of all."""
    dqn = full("dqn", double=double, dueling=dueling, n_step=n_step, share_parameters=share)
    scatter(dqn)
    batch = dqn.sample()
    found = loss_of(dqn, batch)
    dqn.nets["agents"].zero_grad()
    found.sum().backward()
    for r in range(2):
        online, losses = slow_losses(dqn, batch, r)
        total = torch.stack(losses).mean() if share else torch.stack(losses).sum()
        torch.testing.assert_close(found[r], total)
        total.backward()
        for name, p in online[0].params.items():
            grad = dqn.nets["agents"].grads[f"network.{name}"][r]
            torch.testing.assert_close(grad, p.grad, msg=name)


def test_n_step_draws_reach_the_loss() -> None:
    """With every value zero the loss is that of the rewards alone: 1, or 1 + γ + γ²."""
    for n, total in [(1, 1.0), (3, 1.75)]:
        dqn = learner("dqn", "mlp", (0,), 1, n_step=n, gamma=0.5, spec=Spec(1, 2))
        for flat in (dqn.nets["agents"].flat.detach(), dqn.nets["agents"].target):
            flat.zero_()
        obs, never = np.zeros((1, 1, 1), np.float32), np.zeros(1, bool)
        for _ in range(6):
            _, stored = dqn.act(obs, {})
            dqn.observe(stored, np.ones((1, 1), np.float32), never, never, {"final_obs": obs})
        assert dqn.learn_once()["loss"].tolist() == pytest.approx([total - 0.5])  # beyond 1


# Exploring ----------------------------------------------------------------------------------------


def test_exploration_ends_with_epsilon() -> None:
    dqn = learner("dqn", spec=Spec(1, 40), epsilon_end=0.0, epsilon_steps=100, dueling=False)
    dqn.nets["agents"].flat.detach().zero_()
    dqn.nets["agents"].params["network.head.advantage.bias"].detach()[:, 0] = 1.0
    obs, never = np.zeros((8, 1, 1), np.float32), np.zeros(8, bool)
    explored = []
    for _ in range(50):  # of four environments
        action, stored = dqn.act(obs, {})
        explored.append((action > 0).mean())
        dqn.observe(stored, np.zeros((8, 1), np.float32), never, never, {"final_obs": obs})
    assert np.mean(explored[:5]) > 0.7 > np.mean(explored[12:20]) > 0.1
    assert not any(explored[25:])


# Exact answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_step", [1, 2])
def test_a_chain_is_learned_to_its_exact_values(double: bool, n_step: int) -> None:
    """Two states, two actions: 0 goes on (state 1 ends, paying 1), 1 stays, paying 0.1.

    With γ = 0.5: Q(1, go) = 1, Q(1, stay) = 0.1 + 0.5, Q(0, go) = 0.5, Q(0, stay) = 0.1 + 0.25.
    Two steps at once say the same only of what is followed by the best action, so there the data
    are those of the best policy, and only its values are compared.
    """
    config = DQNConfig(
        gamma=0.5, learning_rate=0.05, batch_size=64, buffer_size=256, learning_starts=0,
        train_every=4, target_every=20, encoder={"hidden": ()}, double=double, n_step=n_step,
        epsilon_end=1.0,
    )  # fmt: skip
    dqn = DQN(Spec(2, 2), 4, [0, 1], config)
    rng, eye = np.random.default_rng(0), np.eye(2, dtype=np.float32)
    state = np.zeros(8, int)
    for _ in range(300 if n_step == 1 else 60):
        action, stored = dqn.act(eye[state][:, None], {})
        if n_step > 1:
            stored["action"] = torch.zeros_like(stored["action"])
        action = stored["action"].flatten().numpy()
        over = (state == 1) & (action == 0)
        reward = np.where(action == 1, 0.1, over).astype(np.float32)[:, None]
        after = np.where(action == 0, 1, state)
        dqn.observe(stored, reward, over, np.zeros(8, bool), {"final_obs": eye[after][:, None]})
        dqn.update()
        state = np.where(over, rng.integers(2, size=8), after)
    for _ in range(200):
        dqn.learn_once()
    q = dqn.outputs(torch.eye(2).view(1, 2, 1, 2).expand(2, 2, 1, 2))[:, :, 0]
    exact = torch.tensor([[0.5, 0.35], [1.0, 0.6]]).expand(2, 2, 2)
    if n_step > 1:
        q, exact = q[..., 0], exact[..., 0]
    torch.testing.assert_close(q, exact, atol=5e-3, rtol=0)


def test_a_small_world_is_learned_to_its_exact_values() -> None:
    """Every state and action of a 3 x 3 grid with one target, against value iteration."""
    world = {"grid_size": (3, 3), "n_agents": 1, "n_targets": 1, "max_steps": 20}
    settings = {
        "gamma": 0.9, "learning_rate": 2e-3, "batch_size": 64, "buffer_size": 20_000,
        "learning_starts": 1_000, "train_every": 8, "target_every": 100, "epsilon_steps": 1,
        "epsilon_end": 0.5, "encoder": {"hidden": [64]},
    }  # fmt: skip
    config = run_config(
        {"num_envs": 32, "timesteps": 18_000, "eval_every": 10**9, "eval_episodes": 1},
        {"final_episodes": 50, "env_options": world, "dqn": settings},
    )
    trainer = make_trainer(config, progress=False)
    final = trainer.train().final
    table = tabulate(**world)
    exact = value_iteration(table, gamma=0.9)
    found = trainer.learner.outputs(torch.from_numpy(table.obs)[None, :, None])[0, :, 0].numpy()
    assert exact.shape == (72, 5) and exact.min() > 6  # so that a share of it makes sense
    np.testing.assert_allclose(found.max(1), exact.max(1), rtol=0.05)
    np.testing.assert_allclose(found, exact, rtol=0.12)
    best = np.take_along_axis(exact, found.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(best, exact.max(1), rtol=1e-6)  # every greedy move is optimal
    assert final["targets_collected"].mean() == 1.0
