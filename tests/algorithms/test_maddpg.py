"""MADDPG against numbers made by hand, plain networks and games whose best play is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import BOX, OBS, Play, full, learner, networks, scatter
from scipy import stats
from torch import Tensor

from marl_lib.algorithms.maddpg import MADDPG, MADDPGConfig, replaced
from marl_lib.envs.matrix import GAMES
from marl_lib.nn.distributions import gumbel, gumbel_softmax
from marl_lib.replicates import lift
from marl_lib.spec import Spec

KINDS = pytest.mark.parametrize("name", ["maddpg", "maddpg-box"])
SHARING = pytest.mark.parametrize(
    ("share", "team_reward"), [(True, True), (True, False), (False, True), (False, False)]
)


def constant(net: Any, bias: list[float], role: str = "fixed") -> None:
    """Make networks say ``bias`` whatever they see."""
    for key, p in net.roles[role].items():
        p.detach().zero_()
        if key == "network.head.bias":
            p.detach().copy_(torch.tensor(bias))


# Acting -------------------------------------------------------------------------------------------


def test_continuous_actions_are_uniform_first_and_then_noisy() -> None:
    team = learner(
        "maddpg-box", num_envs=500, learning_starts=1000, buffer_size=1000,
        noise_start=0.2, noise_end=0.1, noise_steps=2000,
    )  # fmt: skip
    obs, (low, high) = np.zeros((1000, 2, OBS), np.float32), BOX
    first = (team.act(obs, {})[0] - low) / (high - low)
    for i, j in np.ndindex(2, 2):
        assert stats.kstest(first[:, i, j], "uniform").pvalue > 1e-3
    constant(team.nets["actor"], [0.2, -0.1])
    team.steps = 1000  # half way down
    scaled = 2 * (team.act(obs, {})[0] - low) / (high - low) - 1
    for j, mean in enumerate(np.tanh([0.2, -0.1])):
        assert stats.kstest(scaled[..., j].ravel(), stats.norm(mean, 0.15).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(scaled.reshape(1000, 4).T) - np.eye(4)).max() < 0.15
    exact = low + (high - low) * (np.tanh([0.2, -0.1]) + 1) / 2
    np.testing.assert_allclose(team.policy()(obs, {})[5, 1], exact, rtol=1e-5)


def test_discrete_actions_are_uniform_first_and_then_drawn_by_softmax() -> None:
    given = {"learning_starts": 1000, "buffer_size": 1000}
    team = learner("maddpg", num_envs=500, spec=Spec(OBS, 3, 2), **given)
    obs = np.zeros((1000, 2, OBS), np.float32)
    first = np.bincount(team.act(obs, {})[0].ravel(), minlength=3)
    assert stats.chisquare(first).pvalue > 1e-3
    logits = torch.tensor([0.0, 1.0, -1.0])
    constant(team.nets["actor"], logits.tolist())
    team.steps = 1000
    p = logits.double().softmax(0).numpy()
    for action in (team.act(obs, {})[0], team.policy(sampled=True)(obs, {})):
        assert stats.chisquare(np.bincount(action.ravel(), minlength=3), 2000 * p).pvalue > 1e-3
    assert (team.policy()(obs, {}) == 1).all()


def test_gumbel_draws_follow_the_streams() -> None:
    """Acting is the maximum of logits and Gumbel numbers, not a draw from torch's generator."""
    one, two = (learner("maddpg", spec=Spec(OBS, 3, 2)) for _ in range(2))
    obs = np.random.default_rng(0).normal(size=(8, 2, OBS)).astype(np.float32)
    drawn, _ = one.act(obs, {})
    noise = torch.from_numpy(two.streams.uniform(6).astype(np.float32)).view(2, 4, 2, 3)
    expected = two.outputs(two.tensor(obs)) + gumbel(noise)
    np.testing.assert_array_equal(drawn, expected.argmax(-1).flatten(0, 1))


def test_saturated_actions_never_leave_their_bounds() -> None:
    for shift in (-50.0, 50.0):
        team = learner("maddpg-box", noise_start=2.0)
        constant(team.nets["actor"], [shift, shift])
        obs = np.zeros((8, 2, OBS), np.float32)
        policies = team.policy(), team.policy(sampled=True)
        for action in (team.act(obs, {})[0], *(policy(obs, {}) for policy in policies)):
            assert (action >= BOX[0]).all() and (action <= BOX[1]).all()


def test_masks_are_stored_beside_what_they_belong_to() -> None:
    team = learner("maddpg")
    play = Play(team)
    now = play.info["action_mask"]
    play.step()
    data = team.replay.data
    np.testing.assert_array_equal(data["mask"][0], now)
    np.testing.assert_array_equal(data["next_mask"][0], play.info["final_mask"])


# Losses -------------------------------------------------------------------------------------------


def test_only_ones_own_action_is_replaced() -> None:
    policy = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])  # one row, three agents
    replay = -policy
    joint = replaced(policy, replay)
    assert joint.shape == (1, 3, 3, 2)
    for i, j in np.ndindex(3, 3):
        assert torch.equal(joint[0, i, j], policy[0, j] if i == j else replay[0, j])


@SHARING
def test_ends_do_not_bootstrap_and_time_limits_do(share: bool, team_reward: bool) -> None:
    """Where the target critics say 8, targets are r + γ 8, or r alone; γ = 1/2."""
    given = {"share_parameters": share, "team_reward": team_reward, "gamma": 0.5}
    team = full("maddpg-box", "mlp", (0,), **given)
    if share:
        constant(team.nets["critic"], [8.0], "target")
    else:
        constant(team.nets["critic"], [[8.0], [8.0]], "target")  # type: ignore[list-item]
    batch = {n: x[:, :6] for n, x in team.sample().items()}
    batch["reward"] = torch.tensor([1.0, 2.0]).expand(1, 6, 1, 2)
    batch["terminated"] = torch.tensor([0, 1, 0, 1, 0, 0]).bool().view(1, 6, 1)
    batch["truncated"] = torch.tensor([0, 0, 1, 1, 1, 0]).bool().view(1, 6, 1)
    target = team.lift(lambda net, b: team.td_target(net.target, b), batch)
    rewards = [3.0] if share and team_reward else [3.0, 3.0] if team_reward else [1.0, 2.0]
    going = [4.0, 0.0, 4.0, 0.0, 4.0, 4.0]
    np.testing.assert_allclose(target[0, :, 0], [[r + g for r in rewards] for g in going])


def slow_losses(team: Any, batch: dict[str, Tensor], r: int) -> tuple[Any, Any, Tensor, Tensor]:
    """Return actors, critics and both losses of every agent of one replicate, in loops."""
    n, c, continuous = team.spec.n_agents, team.config, team.spec.bounds is not None
    one_value = c.team_reward and c.share_parameters
    actors, old_actors = (networks(team, "actor", r, role) for role in ("fixed", "target"))
    critics, old_critics = (
        networks(team, "critic", r, role) * (n if one_value else 1) for role in ("fixed", "target")
    )
    low, high = (torch.from_numpy(x) for x in BOX)

    def vector(action: Tensor) -> Tensor:
        return 2 * (action - low) / (high - low) - 1 if continuous else torch.eye(3)[action]

    def judge(critic: Any, obs: Tensor, actions: list[Tensor]) -> Tensor:
        return critic(torch.cat([*obs, *actions])).squeeze()

    size = batch["reward"].shape[1]
    critic_loss, actor_loss = torch.zeros(n, size), torch.zeros(n, size)
    for b in range(size):
        row = {name: x[r, b, 0] for name, x in batch.items()}
        done, then = [vector(row["action"][i]) for i in range(n)], []
        for i in range(n):
            out = old_actors[i](row["next_obs"][i])
            if continuous:
                then.append(out.tanh())
            else:
                legal = [k for k in range(3) if row["next_mask"][i, k]] or [0]
                then.append(torch.eye(3)[max(legal, key=lambda k, out=out: out[k])])
        for i in range(n):
            value = 0.0 if row["terminated"] else judge(old_critics[i], row["next_obs"], then)
            reward = row["reward"].sum() if c.team_reward else row["reward"][i]
            goal = torch.as_tensor(reward + c.gamma * value).detach()
            critic_loss[i, b] = (judge(critics[i], row["obs"], done) - goal) ** 2
            out = actors[i](row["obs"][i])
            if continuous:
                own = out.tanh()
            else:
                legal_out = out.masked_fill(~row["mask"][i], -torch.inf)
                own = gumbel_softmax(legal_out, row["noise"][i], c.temperature)
            joint = [*done[:i], own, *done[i + 1 :]]
            penalty = c.actor_penalty * out.square().mean()
            actor_loss[i, b] = penalty - judge(critics[i], row["obs"], joint)
    return actors, critics, critic_loss.mean(1), actor_loss.mean(1)


@KINDS
@SHARING
@pytest.mark.parametrize("n_agents", [1, 3])
def test_losses_and_gradients_equal_plain_networks(
    name: str, share: bool, team_reward: bool, n_agents: int
) -> None:
    spec = dataclasses.replace(learner(name).spec, n_agents=n_agents)
    team = full(
        name, spec=spec, share_parameters=share, team_reward=team_reward, temperature=0.7,
        actor_penalty=0.1,
    )  # fmt: skip
    scatter(team)
    batch = team.sample()
    found = {}
    for kind in ("critic", "actor"):
        learning, loss = team.losses()[f"{kind}_loss"]
        team.nets[kind].zero_grad()
        found[kind] = lift(
            lambda net, b, loss=loss: loss(net, net.target, b), team.nets, batch, learning=learning
        )
        found[kind][0].sum().backward()
    for r in range(2):
        actors, critics, *slow = slow_losses(team, batch, r)
        for kind, plain, exact in zip(("critic", "actor"), (critics, actors), slow, strict=True):
            for p in (*actors[0].params.values(), *critics[0].params.values()):
                p.grad = None
            total = exact.mean() if share or n_agents == 1 else exact.sum()
            torch.testing.assert_close(found[kind][0][r], total)
            torch.testing.assert_close(found[kind][1]["loss"][r], exact.mean())
            total.backward(retain_graph=True)
            for key, p in plain[0].params.items():
                grad = team.nets[kind].grads[f"network.{key}"][r]
                torch.testing.assert_close(grad, p.grad, msg=key)


def test_an_actor_learns_from_its_own_action_alone() -> None:
    """A critic that reads agent 1's action only teaches agent 0 nothing."""
    team = full("maddpg-box", share_parameters=False, actor_penalty=0.0)
    with torch.no_grad():  # (R, N, hidden, state and actions)
        team.nets["critic"].params["network.encoder.body.0.weight"][..., 2 * OBS : 2 * OBS + 2] = 0
    team.descend(lambda net, b: team.actor_loss(net, net.target, b), ("actor",), team.sample())
    for grad in team.nets["actor"].grads.values():
        assert not grad[:, 0].any() and grad[:, 1].any()


# Known best play ----------------------------------------------------------------------------------


def play_once(team: MADDPG, reward_of: Any, steps: int) -> None:
    """Let the team act on a world of one step with the given rewards (B, N)."""
    rows = team.replicates * team.num_envs
    obs, over = np.ones((rows, team.spec.n_agents, 1), np.float32), np.ones(rows, bool)
    for _ in range(steps):
        action, stored = team.act(obs, {})
        reward = reward_of(action).astype(np.float32)
        team.observe(stored, reward, over, ~over, {"final_obs": obs})
        team.update()


def greedy(team: MADDPG) -> np.ndarray:
    """Return the team's own action in each replicate, (R, N[, A])."""
    return team.policy()(np.ones((team.replicates, team.spec.n_agents, 1), np.float32), {})


QUICK = MADDPGConfig(
    learning_rate=5e-3, critic_learning_rate=1e-2, encoder={"hidden": (24,)}, batch_size=64,
    tau=0.02, buffer_size=20_000, learning_starts=640, train_every=16, noise_steps=8000,
    max_grad_norm=10.0,
)  # type: ignore[arg-type] # fmt: skip
SQUARE = Spec(1, 1, 2, (np.array([-2.0]), np.array([2.0])))


def test_separate_agents_find_the_equilibrium_of_their_own_rewards() -> None:
    """Rewards -(x - y/2 - 1)² and -(y + x/2)²: neither gains alone at x = 0.8, y = -0.4 only."""
    config = dataclasses.replace(QUICK, share_parameters=False, team_reward=False)
    team = MADDPG(SQUARE, 16, [0, 1], config)

    def reward(action: np.ndarray) -> np.ndarray:
        x, y = action[:, 0, 0], action[:, 1, 0]
        return -np.stack([np.square(x - y / 2 - 1), np.square(y + x / 2)], axis=1)

    play_once(team, reward, 800)
    np.testing.assert_allclose(greedy(team)[..., 0], [[0.8, -0.4]] * 2, atol=0.15)


@pytest.mark.parametrize("team_reward", [True, False])
def test_the_sum_and_ones_own_reward_lead_to_different_play(team_reward: bool) -> None:
    """Agent 0 is paid -(x - 1)², agent 1 -(x + 1)² - y²: alone (1, 0) is best, together (0, 0)."""
    config = dataclasses.replace(QUICK, team_reward=team_reward, encoder={"hidden": (24, 24)})  # type: ignore[arg-type]
    team = MADDPG(SQUARE, 16, [0, 1], config)

    def reward(action: np.ndarray) -> np.ndarray:
        x, y = action[:, 0, 0], action[:, 1, 0]
        return -np.stack([np.square(x - 1), np.square(x + 1) + np.square(y)], axis=1)

    play_once(team, reward, 800)
    best = 0.0 if team_reward else 1.0
    np.testing.assert_allclose(greedy(team)[..., 0], [[best, 0.0]] * 2, atol=0.2)


def test_a_discrete_game_with_one_best_answer_is_solved() -> None:
    """Each agent's action pays on its own: 0, 1, 0.5 for the first, 0.5, 0, 1 for the second."""
    pay = np.array([[0.0, 1.0, 0.5], [0.5, 0.0, 1.0]])
    team = MADDPG(Spec(1, 3, 2), 16, [0, 1], dataclasses.replace(QUICK, team_reward=True))
    play_once(team, lambda action: pay[np.arange(2), action], 600)
    assert greedy(team).tolist() == [[1, 2], [1, 2]]
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # (9, N)
    x = torch.cat([torch.ones(9, 2), team.vector(joint).flatten(1)], -1)
    exact = pay[0][joint[:, 0]] + pay[1][joint[:, 1]]
    for r in range(2):
        q = networks(team, "critic", r)[0](x).detach().squeeze(-1)
        np.testing.assert_allclose(q, exact, atol=0.25)


def test_the_penalty_game_is_played_safe() -> None:
    """The best answers, 10, stand beside -100; the team settles in the equilibrium that pays 2."""
    team = MADDPG(Spec(1, 3, 2), 16, [0, 1], dataclasses.replace(QUICK, team_reward=True))
    table = 0.1 * GAMES["penalty"].payoff[0]
    play_once(team, lambda a: np.repeat(table[a[:, :1], a[:, 1:]] / 2, 2, axis=1), 400)
    assert greedy(team).tolist() == [[1, 1], [1, 1]]
