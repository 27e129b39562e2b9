"""What chapter 7 builds, taken out of the notebook and held against the library or the truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from agreement import flat, norm_equals_the_library_s

from marl_lib import check
from marl_lib.algorithms import maddpg
from marl_lib.algorithms.maddpg import MADDPG
from marl_lib.algorithms.ppo import PPO, MAPPOConfig
from marl_lib.envs import make
from marl_lib.nn.distributions import gumbel_softmax
from marl_lib.planning import random_actions
from marl_lib.spec import Spec

# What others do, and what a critic knows ----------------------------------------------------------


def test_copies_start_alike_and_only_what_varies_makes_them_differ(book):
    shape = (book["LENGTH"], book["STARTS"], book["COPIES"], 3)
    rng = np.random.default_rng(1)
    same = np.repeat(rng.integers(5, size=(*shape[:2], 1, 3)), shape[2], axis=2)
    reward = book["rewards_of"](same)
    assert reward.shape == shape[:3] and np.ptp(reward, axis=2).max() < 1e-6
    assert reward[0].std() > 0.1  # the starts differ
    assert book["spread"](same) == pytest.approx(0, abs=1e-9)
    one, two = same.copy(), same.copy()
    one[..., 0] = rng.integers(5, size=shape[:3])
    two[..., 1:] = rng.integers(5, size=(*shape[:3], 2))
    assert 0 < book["spread"](one) < book["spread"](two)


def test_discounted_counts_the_first_in_full(book):
    reward = np.array([[1.0, 2.0], [3.0, 0.0], [5.0, -1.0]])
    assert book["discounted"](reward, 0.5) == pytest.approx([1 + 1.5 + 1.25, 2 - 0.25])
    assert book["discounted"](reward, 1.0) == pytest.approx([9.0, 1.0])


def test_rollouts_hold_the_returns_of_ten_steps(book):
    world = make("CooperativeNavigation", 5)
    obs, target = book["rollouts"](world, random_actions(world))
    again = make("CooperativeNavigation", 5)
    seen, info = again.reset(seed=1)
    policy, paid, saw = random_actions(again), [], []
    for _ in range(25):
        saw.append(seen)
        seen, reward, *_, info = again.step(policy(seen, info))
        paid.append(reward.sum(1))
    begin = list(range(3, 16, 3))
    assert obs.shape == (len(begin), 5, 3, 18)
    for k, t in enumerate(begin):
        np.testing.assert_array_equal(obs[k], saw[t])
        expected = sum(book["GAMMA"] ** i * paid[t + i] for i in range(10))
        np.testing.assert_allclose(target[k], expected, rtol=1e-5)


def test_a_critic_explains_what_it_sees(book, monkeypatch):
    monkeypatch.setitem(book["explained"].__globals__, "FITS", 400)
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(3, 4_000, 2, generator=g), torch.randn(3, 4_000, generator=g)
    target = 2 * x[..., 0] + x[..., 1] + noise  # variances 4, 1 and 1
    assert book["explained"](x[..., :1], target) == pytest.approx(4 / 6, abs=0.04)
    assert book["explained"](x, target) == pytest.approx(5 / 6, abs=0.04)
    few = book["explained"](x, target, episodes=10)
    assert few < 0.8  # 30 rows are learned by heart


def test_what_critics_see(book):
    obs = torch.arange(36.0).view(2, 2, 3, 3)  # (T, B, N, D)
    alone, every = book["views"](obs).values()
    assert torch.equal(alone, obs[:, :, 0])
    assert every[1, 1].tolist() == list(range(27, 36))


# On paper -----------------------------------------------------------------------------------------


def test_estimates_of_the_game_are_the_ones_on_paper(book):
    payoff = book["PAYOFF"]
    assert book["judged"](payoff) == (1.0, 15.5)
    assert book["judged"](payoff - 6) == (1.0, 6.5)
    assert book["judged"](payoff - np.array([1.0, 11.0])) == (1.0, 0.25)


@pytest.mark.parametrize("p, q", [(0.5, 0.5), (0.3, 0.8), (0.9, 0.1)])
def test_gradient_is_exact_with_any_baseline_of_the_other_action(book, p, q):
    payoff = torch.tensor(book["PAYOFF"])
    theta = torch.tensor([0.0, np.log(p / (1 - p))], dtype=torch.float64, requires_grad=True)
    chances = torch.tensor([1 - q, q], dtype=torch.float64)
    (theta.softmax(0) @ payoff @ chances).backward()
    exact = theta.grad[1].item()
    for baseline in (0.0, np.array([3.0, -50.0]), np.array([1e3, 1e3])):
        found = book["gradient"](book["PAYOFF"], p, q, baseline)
        assert found == pytest.approx(exact)
    biased = book["gradient"](book["PAYOFF"], p, q, np.array([[0.0], [5.0]]))
    assert abs(biased - exact) > 0.1


# MAPPO and IPPO -----------------------------------------------------------------------------------


def test_norm_equals_the_library_s_and_can_be_undone(book):
    ours = book["Norm"](3, clip=10)
    x = norm_equals_the_library_s(ours)
    torch.testing.assert_close(ours.undo(ours(x)), x)
    assert ours(torch.full((3,), 1e9)).tolist() == [10.0] * 3


def test_central_shows_the_state_and_own_does_not(book):
    obs = torch.randn(4, 5, 3, 2)  # (T, B, N, D)
    state = book["central"](obs)
    assert state.shape == (4, 5, 3, 6)
    for i in range(3):
        torch.testing.assert_close(state[:, :, i], obs.flatten(-2))
    assert torch.equal(book["own"](obs), obs)
    named = book["with_names"](obs)
    assert torch.equal(named[..., :2], obs)
    assert torch.equal(named[2, 3, :, 2:], torch.eye(3))


def test_the_first_exercise_is_the_library_s_turned_critic(book):
    """The critic sees the right answer, and then the id."""
    obs = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    learner = PPO(Spec(4, 2, n_agents=3), 4, [0], MAPPOConfig(critic="turned"))
    shown = torch.as_tensor(check.ch07_ex1.right(obs))
    asked = torch.cat([shown, torch.eye(3).expand(5, 3, 3)], dim=-1)
    critic = learner.network(0, "critic").network
    expected = critic(asked, torch.zeros(5, 3, 0))[0].squeeze(-1)
    value, _ = learner.lift(learner.value, torch.as_tensor(obs)[None])
    torch.testing.assert_close(value[0], expected)


@pytest.mark.parametrize("kind", ["central", "own"])
def test_batch_losses_and_whole_updates_equal_the_library_s(book, kind):
    team, learner, nets = book["twins"](book[kind], num_envs=16)
    world = make("CooperativeNavigation", 16, {"max_steps": 7})
    obs, info = world.reset(seed=3)
    for _ in range(2):
        rollout, obs, info = book["collect"](world, team, obs, info)
        book["feed"](learner, rollout)
        scale, state = copy.deepcopy(team.value_norm), learner.state_dict()
        ours, theirs = book["prepare"](team, rollout), learner.prepare()
        assert theirs.keys() - ours.keys() == {"first", "actor_memory", "critic_memory"}
        book["compare"](ours, theirs)
        figures = book["library_losses"](learner, theirs, 0.2)
        book["compare"](book["losses"](team, ours, 0.2), figures)
        team.value_norm = scale
        learner.load_state_dict(state)
        before = flat(team.critic)
        explained = book["learn"](team, rollout, shuffle=book["shuffle_like"](learner))
        assert explained == pytest.approx(learner.update()["explained_variance"][0], abs=1e-3)
        assert (flat(team.critic) != before).any()
        for mine, same in nets:
            torch.testing.assert_close(flat(mine), same.flat, atol=1e-4, rtol=1e-4)


def test_truncation_bootstraps_and_termination_does_not(book):
    torch.manual_seed(0)
    team = book["Team"](2, 3, 2, book["central"])
    team.predict = lambda obs: torch.full(obs.shape[:-1], 2.0)  # (..., N)
    team.value_norm.mean, team.value_norm.std = torch.tensor([-10.0]), torch.tensor([4.0])
    zeros = torch.zeros(1, 2, 2)  # (T, B, N): one step, two environments
    rollout = {
        "obs": torch.zeros(1, 2, 2, 2),
        "next_obs": torch.zeros(1, 2, 2, 2),
        "action": zeros.long(),
        "reward": zeros - 3,
        "terminated": torch.tensor([[True, False]]),
        "truncated": torch.tensor([[False, True]]),
    }
    advantage = book["prepare"](team, rollout)["advantage"]  # (T·B, N)
    value = -10 + 4 * 2.0
    assert advantage[0].tolist() == pytest.approx([-6 - value] * 2)
    assert advantage[1].tolist() == pytest.approx([-6 + book["GAMMA"] * value - value] * 2)


def test_train_learns_navigation(book):
    team, (at, returns), explained = book["train"](book["central"], steps=32_000, seed=1)
    assert at[-1] == 32_000 and len(explained) == 10
    assert returns[-1] > -150 and returns[-1] > returns[0] + 20
    assert explained[-1] > explained[0] + 0.1


def test_library_s_team_sees_as_ours(book):
    assert book["SETTINGS"]["gamma"] == book["GAMMA"]
    for kind, size in (("central", 57), ("own", 21)):
        team, learner, _ = book["twins"](book[kind], num_envs=2)
        assert team.critic[0].in_features == size
        assert learner.config.critic == kind


# MADDPG -------------------------------------------------------------------------------------------


def test_replaced_equals_the_library_s(book):
    g = torch.Generator().manual_seed(0)
    policy, replay = torch.randn(2, 6, 4, 3, generator=g)
    assert torch.equal(book["replaced"](policy, replay), maddpg.replaced(policy, replay))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_straight_through_equals_the_library_s(book, temperature):
    g = torch.Generator().manual_seed(0)
    logits, q = torch.randn(2, 50, 5, generator=g)
    noise = torch.rand(50, 5, generator=g)
    grads = []
    for draw in (
        lambda x: book["straight_through"](x, -(-noise.log()).log(), temperature),
        lambda x: gumbel_softmax(x, noise, temperature),
    ):
        x = logits.clone().requires_grad_()
        action = draw(x)
        assert torch.equal(action.detach().sort(-1).values[..., -2:].sum(-1), torch.ones(50))
        (action * q).sum().backward()
        grads.append((action.detach(), x.grad))
    torch.testing.assert_close(*grads)


def test_straight_through_is_short_by_a_third(book):
    g = torch.Generator().manual_seed(0)
    logits = torch.zeros(100_000, 2, requires_grad=True)
    gumbel = -(-torch.rand(100_000, 2, generator=g).clamp(1e-7, 1 - 1e-7).log()).log()
    (book["straight_through"](logits, gumbel) @ book["PAYS"]).sum().backward()
    assert logits.grad[:, 1].mean().item() == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("discrete", [True, False])
def test_losses_and_updates_equal_the_library_s(book, discrete):
    learner, crew = book["library_crew"](discrete)
    for _ in range(5):
        drawn = book["next_batch"](learner)
        batch = book["as_ours"](drawn)
        gumbel = batch.get("gumbel")
        assert (gumbel is not None) == discrete
        for name, ours in (
            ("critic_loss", book["critic_loss"](crew, batch)),
            ("actor_loss", book["actor_loss"](crew, batch, gumbel)),
        ):
            torch.testing.assert_close(ours, book["library_loss"](learner, name, drawn))
        before = flat(crew.actor)
        book["improve"](crew, batch, gumbel)
        learner.learn_once()
        assert (flat(crew.actor) != before).any()
    ours = (crew.actor, crew.critic, *crew.slow)
    nets = learner.nets["actor"], learner.nets["critic"]
    theirs = [net.flat for net in nets] + [net.target for net in nets]
    for net, same in zip(ours, theirs, strict=True):
        torch.testing.assert_close(flat(net), same, atol=1e-4, rtol=1e-3)
    assert book["TAU"] == learner.config.tau and book["PENALTY"] == learner.config.actor_penalty
    assert learner.config.temperature == 1


def test_targets_get_no_gradient_and_termination_cuts_the_value(book):
    torch.manual_seed(0)
    crew = book["Crew"](4, 3, 2, discrete=True)
    batch = {
        "obs": torch.randn(6, 2, 4),
        "next_obs": torch.randn(6, 2, 4),
        "action": torch.eye(3)[torch.randint(3, (6, 2))],
        "reward": torch.randn(6, 2),
        "terminated": torch.ones(6, dtype=torch.bool),
    }
    value = book["worth"](crew.critic, batch["obs"], batch["action"].unsqueeze(1)).squeeze(1)
    expected = (value - batch["reward"].sum(1)).square().mean()
    loss = book["critic_loss"](crew, batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for net in crew.slow for p in net.parameters())
    assert all(p.grad is None for p in crew.actor.parameters())


# Bugs and evidence --------------------------------------------------------------------------------


def test_the_bugs_are_caught_and_the_library_is_not(book):
    assert book["leaves_the_critic_alone"](MADDPG)
    assert not book["leaves_the_critic_alone"](book["Flattered"])
    assert book["ratios_begin_at_one"](PPO)
    assert not book["ratios_begin_at_one"](book["Unmasked"])


def test_the_flattered_critic_moves_where_the_right_one_does_not(book):
    config = maddpg.MADDPGConfig(
        critic_learning_rate=1e-3, batch_size=16, learning_starts=1, buffer_size=100
    )
    said = {}
    for kind in (MADDPG, book["Flattered"]):
        world = make("CooperativeNavigation", 4)
        learner = kind(world.sizes(), 4, [0], config)
        obs, info = world.reset(seed=0)
        for _ in range(5):
            action, stored = learner.act(obs, info)
            obs, reward, *ends, info = world.step(action)
            learner.observe(stored, 0 * reward, *ends, info)
        for _ in range(60):
            metrics = learner.learn_once()
        said[kind] = -metrics["actor_loss"][0]
    assert said[book["Flattered"]] > said[MADDPG] + 0.3  # nothing was ever paid


def records(scores):
    return [{"evaluation": {"episode_return": [x]}} for x in scores]


def test_verdicts_say_what_the_interval_says(book):
    low, high = np.linspace(0, 1, 10), np.linspace(5, 6, 10)
    assert book["verdict"](records(high), records(low)).startswith("ahead by 5")
    assert book["verdict"](records(low), records(high)).startswith("behind by −5")
    assert "not to be told apart" in book["verdict"](records(low), records(low))
    assert book["best_of"]({"mappo": records(low), "vdn": records(high)}) == "vdn"
    assert book["shown"](np.array([-3.25])) == "-3.2"
