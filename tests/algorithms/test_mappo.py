"""MAPPO and IPPO against PPO itself, plain networks, slow references and exact values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from marl_lib.algorithms.mappo import MAPPO, MAPPOConfig
from marl_lib.algorithms.ppo import PPO, PPOConfig
from marl_lib.config import ConfigError
from marl_lib.envs import make
from marl_lib.training import LoopConfig, Trainer

OBS, ACTIONS, AGENTS = 4, 3, 2
SMALL = MAPPOConfig(hidden=(8,), rollout=5, minibatches=2, epochs=2, anneal=False)
BARE = {"normalise_obs": False, "normalise_value": False, "normalise_advantage": False}
BOUNDS = np.full(2, -1.0, np.float32), np.ones(2, np.float32)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
critics = pytest.mark.parametrize("critic", ["central", "turned", "own"])
GIVEN = ("total_steps", "bounds", "action_masks", "device", "n_agents", "n_actions")


def learner(seeds: tuple[int, ...] = (0, 3), num_envs: int = 4, **options: Any) -> MAPPO:
    given = {k: options.pop(k) for k in GIVEN if k in options}
    config = dataclasses.replace(SMALL, **options)
    sizes = given.pop("n_actions", ACTIONS), given.pop("n_agents", AGENTS)
    return MAPPO(OBS, *sizes, num_envs, seeds, config, **given)


def feed(mappo: Any, steps: int, seed: int = 0) -> None:
    """Let a learner act for so many steps in a world of random numbers, and learn in between."""
    rng = np.random.default_rng(seed)
    n = getattr(mappo, "n_agents", 1)
    rows = len(mappo.seeds) * mappo.num_envs
    obs, mask = rng.normal(size=(rows, n, OBS)).astype(np.float32), masks(rng, rows, n)
    for t in range(steps):
        terminated, truncated = rng.random((2, rows)) < 0.15
        ended = (terminated | truncated)[:, None, None]
        led_to, other = rng.normal(size=(2, rows, n, OBS)).astype(np.float32)
        action = mappo.act(obs, {"action_mask": mask})
        reward = rng.normal(size=(rows, n)).astype(np.float32)
        mappo.observe(obs, action, reward, led_to, terminated, truncated, {})
        obs, mask = np.where(ended, other, led_to), masks(rng, rows, n)
        if t < steps - 1:
            mappo.update()


def masks(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Return which actions are legal; one of them always is, and not always the same."""
    mask = rng.random((rows, n, ACTIONS)) < 0.5
    sure = rng.integers(ACTIONS, size=(rows, n, 1))
    return mask | (np.arange(ACTIONS) == sure)


def full(*args: Any, **options: Any) -> MAPPO:
    """Return a learner whose rollout is full, not learned from yet."""
    mappo = learner(*args, **options)
    feed(mappo, mappo.config.rollout)
    return mappo


def parameters(mappo: MAPPO, index: int) -> Tensor:
    """Return all weights of one replicate in one vector."""
    nets = (mappo.actor, mappo.critic)
    return torch.cat([p.detach()[index].flatten() for net in nets for p in net.params.values()])


def slow_advantage(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor,
    gamma: float, lam: float,
) -> Tensor:  # fmt: skip
    """Return the sum over later errors (Schulman et al. 2016, equation 16), for (T,)."""
    out = torch.zeros_like(reward)
    for t in range(len(reward)):
        for later in range(t, len(reward)):
            follows = 0.0 if terminated[later] else gamma * next_value[later]
            out[t] += (gamma * lam) ** (later - t) * (reward[later] + follows - value[later])
            if ended[later]:
                break
    return out


# A team of one is PPO -----------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [None, BOUNDS], ids=["discrete", "continuous"])
@critics
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_a_team_of_one_is_ppo(seeds: tuple[int, ...], critic: str, bounds: Any) -> None:
    """The same weights, acts, losses and, after updates, the same weights again."""
    same = {
        "gamma": 0.9, "gae_lambda": 0.8, "learning_rate": 0.01, "rollout": 5, "epochs": 2,
        "clip_value": 0.3, "entropy_coef": 0.05, "max_grad_norm": 0.5, "hidden": (8,),
    }  # fmt: skip
    ppo_config = PPOConfig(batch_size=10, normalise_reward=False, **same)
    config = MAPPOConfig(
        critic=critic, minibatches=2, normalise_value=False, activation="tanh", **same
    )
    size = ACTIONS if bounds is None else 2
    options = {"total_steps": 100, "bounds": bounds}
    ppo = PPO(OBS, size, 4, seeds, ppo_config, **options)
    mappo = MAPPO(OBS, size, 1, 4, seeds, config, **options)
    for rollout in range(2):
        for each in (ppo, mappo):
            feed(each, 5, seed=rollout)
        assert torch.equal(mappo.data["action"].squeeze(3), ppo.data["action"])
        ours, theirs = mappo.prepare(), ppo.prepare()
        for name, x in theirs.items():
            torch.testing.assert_close(ours[name].squeeze(2), x, msg=name)
        found, expected = mappo.losses(ours, 0.1), ppo.losses(theirs, 0.1)
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, msg=name)
        figures, reported = mappo.update(), ppo.update()
        assert figures.keys() == reported.keys()
        for name, y in reported.items():
            np.testing.assert_allclose(figures[name], y, rtol=1e-3, atol=1e-5, err_msg=name)
        for one, other in ((mappo.actor, ppo.actor), (mappo.critic, ppo.critic)):
            torch.testing.assert_close(one.flat, other.flat, atol=1e-5, rtol=1e-4)


# Who sees what ------------------------------------------------------------------------------------


def test_the_actor_sees_its_own_observation_and_the_central_critic_all_of_them() -> None:
    for critic in ("central", "turned", "own"):
        mappo = learner(critic=critic)
        obs = torch.randn(2, 7, AGENTS, OBS, generator=torch.Generator().manual_seed(0))
        other = obs.clone()
        other[:, :, 1] += 1.0
        before, after = mappo.pi(obs), mappo.pi(other)
        assert torch.equal(before.log_p[:, :, 0], after.log_p[:, :, 0])
        assert (before.log_p[:, :, 1] != after.log_p[:, :, 1]).any(-1).all()
        changed = mappo.value(obs) != mappo.value(other)
        assert changed[:, :, 1].all()
        assert not changed[:, :, 0].any() if critic == "own" else changed[:, :, 0].all()


@critics
def test_networks_equal_plain_ones_on_inputs_put_together_by_hand(critic: str) -> None:
    mappo = learner(critic=critic, n_agents=3)
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    log_p, value = mappo.pi(obs).log_p, mappo.value(obs)
    for r in range(2):
        actor, judge = mappo.actor.network(r), mappo.critic.network(r)
        for i in range(6):
            for agent in range(3):
                name = torch.tensor([float(j == agent) for j in range(3)])
                own = torch.cat([obs[r, i, agent], name])
                torch.testing.assert_close(log_p[r, i, agent], actor(own).log_softmax(-1))
                parts = obs[r, i] if critic == "central" else obs[r, i].roll(-agent, 0)
                seen = own if critic == "own" else torch.cat([*parts, name])
                torch.testing.assert_close(value[r, i, agent], judge(seen).squeeze())


@critics
def test_order_of_environments_does_not_matter(critic: str) -> None:
    first, second = (full(num_envs=6, critic=critic) for _ in range(2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for name, x in second.data.items():
        second.data[name] = x[:, :, order]
    a, b = first.prepare(), second.prepare()
    for name, x in a.items():
        shuffled = x.unflatten(1, (5, 6))[:, :, order].flatten(1, 2)
        torch.testing.assert_close(b[name], shuffled)
    found, same = first.losses(a, 0.2), second.losses(b, 0.2)
    for name, x in found.items():
        torch.testing.assert_close(same[name], x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("critic", "order"), [("own", [1, 0, 2]), ("turned", [2, 0, 1])])
def test_permuting_agents_with_their_ids_permutes_policies_and_values(
    critic: str, order: list[int]
) -> None:
    """In any order if the critics see their own alone, turned as a ring if they see all that way.

    One that sees the agents in their own order is not made to be symmetric.
    """
    mappo = learner(critic=critic, n_agents=3)
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    log_p, value = mappo.pi(obs).log_p[:, :, order], mappo.value(obs)[:, :, order]
    assert not torch.allclose(mappo.pi(obs[:, :, order]).log_p, log_p)
    mappo.ids = mappo.ids[order]
    torch.testing.assert_close(mappo.pi(obs[:, :, order]).log_p, log_p)
    torch.testing.assert_close(mappo.value(obs[:, :, order]), value)


# Advantages ---------------------------------------------------------------------------------------


@critics
@pytest.mark.parametrize("team", [True, False], ids=["team", "own reward"])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_time_limit_bootstraps_from_where_it_cut(
    critic: str, team: bool, normalise: bool
) -> None:
    """Each agent's advantage, against a slow sum over its critic's own values."""
    mappo = full(critic=critic, team_reward=team, normalise_value=normalise, normalise_obs=False)
    mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    if normalise:  # as if returns had been seen
        mappo.value_norm.count.fill_(1e9)
        mappo.value_norm.mean[:, 0], mappo.value_norm.scale[:, 0] = mean, 1 / deviation
        mappo.value_norm.square[:, 0] = 1e9 * deviation.square()
    else:
        mean, deviation = torch.zeros(2), torch.ones(2)
    d, c = mappo.data, mappo.config
    assert (d["truncated"] & ~d["terminated"])[:, :-1].flatten(1).any(1).all()
    assert d["terminated"].flatten(1).any(1).all()
    assert not d["truncated"][:, :-1].any(2).any(0).all()  # at some steps nobody ran out of time
    value, next_value = (mappo.value(d[x].flatten(1, 2)).detach() for x in ("obs", "next_obs"))
    found = mappo.prepare()
    for r in range(2):
        v, follows = (
            (x[r] * deviation[r] + mean[r]).view(5, 4, AGENTS) for x in (value, next_value)
        )
        over = d["terminated"][r]
        ended = over | d["truncated"][r]
        reward = d["reward"][r]
        if team:
            reward = reward.sum(-1, keepdim=True).expand(-1, -1, AGENTS)
        for b in range(4):
            for agent in range(AGENTS):
                one = (slice(None), b, agent)
                slow = slow_advantage(
                    reward[one], v[one], follows[one], over[:, b], ended[:, b],
                    c.gamma, c.gae_lambda,
                )  # fmt: skip
                close = {"atol": 1e-4, "rtol": 1e-4}
                a = found["advantage"][r].view(5, 4, AGENTS)[one]
                torch.testing.assert_close(a, slow, **close)
                g = found["returns"][r].view(5, 4, AGENTS)[one] * deviation[r] + mean[r]
                torch.testing.assert_close(g, slow + v[one], **close)


def test_what_follows_a_time_limit_counts_and_what_follows_an_end_does_not() -> None:
    mappo = full(**BARE)
    before, d = mappo.prepare()["advantage"], mappo.data
    d["next_obs"][d["terminated"]] += 5.0
    assert torch.equal(mappo.prepare()["advantage"], before)
    cut = d["truncated"] & ~d["terminated"]
    d["next_obs"][cut] += 5.0
    changed = (mappo.prepare()["advantage"] != before).view(*cut.shape, AGENTS)
    at_or_before_one = cut.flip(1).cumsum(1).flip(1) > 0
    assert changed[cut].all() and not changed[~at_or_before_one].any()


def test_the_team_s_reward_is_the_sum() -> None:
    """At γ = 0 and with a critic that says 0 the advantage is the reward."""
    for team in (True, False):
        mappo = full(gamma=0.0, team_reward=team, **BARE)
        with torch.no_grad():
            mappo.critic.flat.zero_()
        reward = mappo.data["reward"].flatten(1, 2)
        expected = reward.sum(-1, keepdim=True).expand_as(reward) if team else reward
        torch.testing.assert_close(mappo.prepare()["advantage"], expected)


def test_equal_pay_makes_team_and_own_reward_the_same() -> None:
    """With both normalisations; this is why the default may be the team's."""
    flats = []
    for team in (True, False):
        mappo = full((0,), team_reward=team, learning_rate=0.01)
        mappo.data["reward"][..., 1] = mappo.data["reward"][..., 0]
        with torch.no_grad():
            mappo.critic.params["head.weight"].zero_()  # the value is zero in any unit
        mappo.update()
        flats.append(parameters(mappo, 0))
    torch.testing.assert_close(flats[0], flats[1], atol=1e-4, rtol=1e-3)


# Normalised values --------------------------------------------------------------------------------


def test_values_are_learned_in_deviations_of_the_returns() -> None:
    mappo = full(normalise_obs=False)
    plain = full(normalise_obs=False, normalise_value=False)
    seen = []
    for _ in range(2):
        # Under the statistics so far the critic's numbers mean:
        raw = mappo._denormalised(mappo.value(mappo.data["obs"].flatten(1, 2))).detach()
        found = mappo.prepare()
        returns = (
            found["returns"] / mappo.value_norm.scale[..., None] + mappo.value_norm.mean[..., None]
        )
        seen.append(returns.flatten(1))
        every = torch.cat(seen, 1)
        torch.testing.assert_close(mappo.value_norm.mean[:, 0], every.mean(1))
        deviation = every.std(1, correction=0)
        torch.testing.assert_close(1 / mappo.value_norm.scale[:, 0], deviation)
        for r in range(2):
            expected = (returns[r] - every[r].mean()) / deviation[r]
            torch.testing.assert_close(found["returns"][r], expected)
        torch.testing.assert_close(mappo._denormalised(found["value"]), raw, atol=1e-5, rtol=1e-5)
    first = plain.prepare()
    torch.testing.assert_close(seen[0], first["returns"].flatten(1))  # nothing was seen before
    assert not plain.value_norm.count.any()


def test_far_values_are_learned_as_fast_with_normalisation() -> None:
    """Returns of 1,000 ± 30: normalised they are near, in their own units out of reach."""
    left = {}
    for normalise in (True, False):
        mappo = learner((0,), 8, n_agents=1, gamma=0.0, normalise_value=normalise, epochs=10)
        for i in range(30):
            feed(mappo, 5, seed=i)
            mappo.data["reward"] = 1000 + 30 * mappo.data["obs"][..., 0]
            figures = mappo.update()
        left[normalise] = figures["explained_variance"].item()
    assert left[True] > 0.5 > left[False], left


def test_statistics_of_observations_change_after_learning_and_never_in_between() -> None:
    mappo = learner()
    feed(mappo, 5)
    assert not mappo.norm.count.any()
    mappo.update()
    assert (mappo.norm.count == 5 * 4 * AGENTS).all()
    kept = mappo.norm.mean.clone()
    feed(mappo, 4)
    assert torch.equal(mappo.norm.mean, kept)


# Losses -------------------------------------------------------------------------------------------


@critics
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masks"])
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_losses_equal_loops_over_agents(critic: str, masked: bool, seeds: tuple[int, ...]) -> None:
    """After an update, so that ratios are not one."""
    mappo = full(seeds, critic=critic, action_masks=masked, clip_value=0.1, learning_rate=0.02)
    batch = mappo.prepare()
    mappo.update()
    found = mappo.losses(batch, clip=0.1)
    for r in range(len(seeds)):
        a = batch["advantage"][r]
        a = (a - a.mean()) / (a.std() + 1e-8)
        log_p = mappo.pi(batch["obs"], batch.get("mask")).log_p[r].double()
        value = mappo.value(batch["obs"])[r]
        gain, error, entropy = [], [], []
        for i in range(20):
            for agent in range(AGENTS):
                action = batch["action"][r, i, agent]
                ratio = (log_p[i, agent, action] - batch["log_prob"][r, i, agent]).exp().item()
                mine = a[i, agent].item()
                gain.append(min(ratio * mine, max(0.9, min(ratio, 1.1)) * mine))
                old, goal = batch["value"][r, i, agent].item(), batch["returns"][r, i, agent].item()
                new = value[i, agent].item()
                near = max(old - 0.1, min(new, old + 0.1))
                error.append(max((new - goal) ** 2, (near - goal) ** 2))
                p = log_p[i, agent].exp()
                p = p[p > 0]
                entropy.append(-(p * p.log()).sum().item())
        figures = {n: x[r].item() for n, x in found.items()}
        assert 0 < figures["clip_fraction"] < 1
        assert figures["policy_loss"] == pytest.approx(-np.mean(gain), abs=1e-5)
        assert figures["value_loss"] == pytest.approx(np.mean(error) / 2, rel=1e-4)
        assert figures["entropy"] == pytest.approx(np.mean(entropy), rel=1e-4)


@critics
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masks"])
def test_first_ratio_is_one(critic: str, masked: bool) -> None:
    mappo = full(critic=critic, action_masks=masked)
    found = mappo.losses(mappo.prepare(), 1e-5)
    assert (found["clip_fraction"] == 0).all()
    assert (found["approx_kl"].abs() < 1e-6).all()


@critics
def test_each_loss_moves_its_own_network(critic: str) -> None:
    mappo = full(critic=critic)
    batch = mappo.prepare()
    for name, moved, still in (
        ("policy_loss", mappo.actor, mappo.critic),
        ("entropy", mappo.actor, mappo.critic),
        ("value_loss", mappo.critic, mappo.actor),
    ):
        for net in (moved, still):
            net.zero_grad()
        mappo.losses(batch, 0.2)[name].sum().backward()
        assert (moved.flat.grad != 0).any() and (still.flat.grad == 0).all(), name


@critics
@pytest.mark.parametrize("bounds", [None, BOUNDS], ids=["discrete", "continuous"])
def test_every_parameter_moves(critic: str, bounds: Any) -> None:
    n_actions = ACTIONS if bounds is None else 2
    mappo = full(critic=critic, bounds=bounds, n_actions=n_actions, activation="tanh", num_envs=32)
    before = [{k: p.detach().clone() for k, p in net.params.items()}
              for net in (mappo.actor, mappo.critic)]  # fmt: skip
    kept = {name: x.clone() for name, x in mappo.data.items()}
    mappo.update()
    for net, old in zip((mappo.actor, mappo.critic), before, strict=True):
        for name, p in net.params.items():
            assert (p != old[name]).all(), name
    assert all(torch.equal(x, kept[name]) for name, x in mappo.data.items())


def test_targets_carry_no_gradient() -> None:
    batch = full(action_masks=True).prepare()
    assert not any(x.requires_grad for x in batch.values())


def test_gradients_are_clipped_by_each_network_s_own_norm() -> None:
    mappo = full(max_grad_norm=0.05)
    batch = mappo.prepare()
    batch["returns"][1] *= 1e4  # one critic is far off; nobody else is held back by it
    norms = []
    for optimizer in mappo.optimizers:
        optimizer.step = lambda n=optimizer.nets: norms.append(  # type: ignore
            [torch.cat([g[r].flatten() for g in n.grads.values()]).norm().item() for r in (0, 1)]
        )
    mappo._step(batch, 0.2)
    free = full(max_grad_norm=1e9)
    found = free.losses(batch, 0.2)
    free.actor.zero_grad()
    (found["policy_loss"] - free.config.entropy_coef * found["entropy"]).sum().backward()
    (actor, critic) = norms
    for r in range(2):
        own = torch.cat([g[r].flatten() for g in free.actor.grads.values()]).norm().item()
        assert actor[r] == pytest.approx(min(own, 0.05), rel=1e-3)
    assert critic[1] == pytest.approx(0.05, rel=1e-3)


def test_annealing_goes_down_to_zero() -> None:
    mappo = learner((0,), anneal=True, total_steps=100, learning_rate=0.01)
    clips: list[float] = []
    losses = mappo.losses
    mappo.losses = lambda b, clip: (clips.append(clip), losses(b, clip))[1]  # type: ignore
    rates = []
    for i in range(5):  # of 20 steps each
        feed(mappo, 5, seed=i)
        mappo.update()
        rates.append([o.learning_rate for o in mappo.optimizers])
    left = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(rates, 0.01 * left[:, None].repeat(2, 1))
    np.testing.assert_allclose(clips[::4], 0.2 * left)


# Acting -------------------------------------------------------------------------------------------


def test_acts_by_its_probabilities_and_judges_by_its_mode() -> None:
    mappo = learner(num_envs=500)
    with torch.no_grad():
        mappo.actor.params["head.weight"].mul_(100)
    obs = np.random.default_rng(0).normal(size=(2, 1, AGENTS, OBS)).astype(np.float32)
    obs = obs.repeat(500, axis=1).reshape(1000, AGENTS, OBS)
    probs = mappo.distribution_of(obs, {}).probs[:, 0].double().numpy()  # (R, N, A)
    counts = np.zeros_like(probs)
    for _ in range(10):
        action = mappo.act(obs, {})
        assert action.shape == (1000, AGENTS) and action.dtype == np.int64
        assert torch.equal(mappo.data["action"][:, 0].flatten(0, 1), torch.from_numpy(action))
        counts += (action.reshape(2, 500, AGENTS, 1) == np.arange(ACTIONS)).sum(1)
    for r in range(2):
        for agent in range(AGENTS):
            expected = 5_000 * probs[r, agent] / probs[r, agent].sum()
            assert stats.chisquare(counts[r, agent], expected).pvalue > 1e-3
    greedy = mappo.policy()(obs, {}).reshape(2, 500, AGENTS)
    assert (greedy == probs.argmax(-1)[:, None]).all()
    before = mappo.streams.state_dict()["count"].copy()
    drawn = [mappo.policy(sampled=True)(obs, {}) for _ in range(2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert 0.01 < (drawn[0].reshape(greedy.shape) != greedy).mean() < 0.9
    np.testing.assert_array_equal(mappo.streams.state_dict()["count"], before)


def test_illegal_actions_are_never_taken_and_get_no_probability() -> None:
    mappo = learner(num_envs=300, action_masks=True)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        mappo.actor.params["head.bias"].copy_(torch.tensor([-20.0, 0.0, 50.0]))
    policies = [mappo.act, mappo.policy(), mappo.policy(sampled=True)]
    for _ in range(20):
        obs = rng.normal(size=(600, AGENTS, OBS)).astype(np.float32)
        info = {"action_mask": masks(rng, 600, AGENTS)}
        for choose in policies:
            action = choose(obs, info)
            assert np.take_along_axis(info["action_mask"], action[..., None], -1).all()
        probs = mappo.distribution_of(obs, info).probs.flatten(0, 1).numpy()
        assert (probs[~info["action_mask"]] == 0).all()
        np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)


def test_a_random_number_next_to_one_takes_no_illegal_action() -> None:
    mappo = learner((0,), num_envs=50, action_masks=True)
    mappo.streams.uniform = lambda n: np.full((50, n), 1 - 2.0**-53)  # type: ignore
    mask = np.ones((50, AGENTS, ACTIONS), bool)
    mask[..., -1] = False
    obs = np.random.default_rng(0).normal(size=(50, AGENTS, OBS)).astype(np.float32)
    assert (mappo.act(obs, {"action_mask": mask}) == ACTIONS - 2).all()


def test_illegal_actions_get_no_gradient_and_finite_losses() -> None:
    mappo = full(action_masks=True)
    batch = mappo.prepare()
    batch["mask"] = batch["mask"].clone()
    batch["mask"][..., 2] = False
    batch["mask"][..., 0] = True
    batch["action"][batch["action"] == 2] = 0
    found = mappo.losses(batch, 0.2)
    (found["policy_loss"] + found["entropy"]).sum().backward()
    grad = mappo.actor.grads["head.bias"]
    assert torch.isfinite(mappo.actor.flat.grad).all()
    assert (grad[:, 2] == 0).all() and (grad[:, 0] != 0).all()
    figures = mappo.update()
    assert all(np.isfinite(x).all() for x in figures.values())


def test_continuous_actions_are_clipped_for_the_world_alone() -> None:
    mappo = learner(num_envs=100, n_actions=2, bounds=BOUNDS)
    obs = np.random.default_rng(0).normal(size=(200, AGENTS, OBS)).astype(np.float32)
    action = mappo.act(obs, {})
    kept = mappo.data["action"][:, 0].flatten(0, 1).numpy()
    assert action.shape == (200, AGENTS, 2)
    np.testing.assert_array_equal(action, kept.clip(*BOUNDS))
    assert (kept != action).mean() > 0.2
    mean = mappo.policy()(obs, {})
    expected = mappo.distribution_of(obs, {}).mode().flatten(0, 1).numpy().clip(*BOUNDS)
    np.testing.assert_array_equal(mean, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(device: str) -> None:
    mappo = full(device=device)
    figures = mappo.update()
    assert set(figures) == {
        "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm",
        "explained_variance",
    }  # fmt: skip
    assert all(x.shape == (2,) and x.dtype == np.float32 for x in figures.values())
    assert {x.device.type for x in (mappo.actor.flat, *mappo.data.values())} == {device}
    feed(mappo, 4)
    before = parameters(mappo, 0)
    assert mappo.update() == {} and torch.equal(parameters(mappo, 0), before)


# Runs ---------------------------------------------------------------------------------------------

WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "discrete": ("GridPredatorPrey", {"size": 3, "max_steps": 7}),  # ends and truncates
    "continuous": ("CooperativeNavigation", {"n_agents": 2, "continuous": True, "max_steps": 7}),
}
LOOP = LoopConfig(512, eval_every=256, eval_episodes=2, final_episodes=2)


def trainer(
    name: str, seeds: tuple[int, ...], folder: Path | None = None, loop: LoopConfig = LOOP,
    **options: Any,
) -> Trainer:  # fmt: skip
    world, settings = WORLDS[name]
    env = make(world, 1, settings)
    space: Any = env.single_action_space
    bounds = (space.low, space.high) if name == "continuous" else None
    n_actions = 2 if bounds else env.n_actions
    config = MAPPOConfig(rollout=8, minibatches=2, epochs=3, hidden=(16,), **options)
    mappo = MAPPO(
        env.obs_dim, n_actions, env.n_agents, 16, seeds, config, total_steps=1024, bounds=bounds
    )
    return Trainer(lambda n: make(world, n, settings), mappo, loop, folder, progress=False)


@pytest.mark.parametrize("name", WORLDS)
@critics
def test_a_replicate_is_a_run_of_its_seed(name: str, critic: str) -> None:
    together = trainer(name, (0, 4), critic=critic)
    together.train()
    for i, seed in enumerate((0, 4)):
        alone = trainer(name, (seed,), critic=critic)
        alone.train()
        ours, theirs = parameters(together.learner, i), parameters(alone.learner, 0)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.equal(parameters(together.learner, 0), parameters(together.learner, 1))


@pytest.mark.parametrize("stop", [256, 320], ids=["between rollouts", "within a rollout"])
def test_a_resumed_run_ends_as_the_unbroken_one(stop: int, tmp_path: Path) -> None:
    unbroken = trainer("discrete", (0, 1))
    unbroken.train()
    begun = trainer("discrete", (0, 1), tmp_path, dataclasses.replace(LOOP, timesteps=stop))
    begun.train()
    assert (begun.learner.t > 0) == (stop == 320)
    goes_on = trainer("discrete", (0, 1), tmp_path)
    goes_on.resume()
    goes_on.train()
    ours, theirs = goes_on.learner.state_dict(), unbroken.learner.state_dict()
    for key in ("actor", "critic"):
        assert torch.equal(ours[key], theirs[key])
    for key in ("norm", "value_norm", "data"):
        assert all(torch.equal(x, theirs[key][k]) for k, x in ours[key].items()), key
    assert goes_on.curve.values["episode_return"][-1] == unbroken.curve.values["episode_return"][-1]


# Learning -----------------------------------------------------------------------------------------


@critics
def test_the_two_step_game_is_solved_or_settles_for_the_safe_seven(critic: str) -> None:
    """Its equilibria pay 8 (coordinated) and 7 (safe); anything else is no equilibrium."""
    config = MAPPOConfig(
        critic=critic, rollout=4, epochs=4, minibatches=2, hidden=(32,), learning_rate=5e-3
    )
    mappo = MAPPO(3, 2, 2, 64, [0, 1, 2], config, total_steps=30_000)
    loop = LoopConfig(30_000, eval_every=30_000, eval_episodes=1, final_episodes=1)
    world = lambda n: make("MatrixGame", n, {"game": "two-step"})  # noqa: E731
    final = Trainer(world, mappo, loop, progress=False).train().final["episode_return"]
    assert np.isin(final, [7.0, 8.0]).all(), final


@critics
def test_a_team_learns_to_say_what_each_must_say(critic: str) -> None:
    """One state, a common reward of the share of agents that name their own number: best is 1.

    Only a network that knows the id can tell the agents apart; the exact value is the policy's.
    """
    mappo = learner(
        num_envs=32, n_agents=3, rollout=4, epochs=4, learning_rate=0.01, critic=critic,
        gamma=0.5, entropy_coef=0.0, normalise_obs=False,
    )  # fmt: skip
    obs, over, no = np.ones((64, 3, OBS), np.float32), np.ones(64, bool), np.zeros(64, bool)
    for _ in range(100):
        action = mappo.act(obs, {})
        reward = (action == np.arange(3)).mean(1, keepdims=True) / 3
        mappo.observe(obs, action, reward.repeat(3, 1).astype(np.float32), obs, over, no, {})
        mappo.update()
    probs = mappo.distribution_of(obs[:2], {}).probs[:, 0]
    right = probs[:, torch.arange(3), torch.arange(3)]  # (R, N)
    assert (right > 0.9).all(), probs
    value = mappo._denormalised(mappo.value(torch.ones(2, 1, 3, OBS)))[:, 0]
    torch.testing.assert_close(value, right.mean(1, keepdim=True).expand(2, 3), atol=0.05, rtol=0)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("gae_lambda", -0.1),
        ("learning_rate", 0.0),
        ("rollout", 0),
        ("epochs", 0),
        ("minibatches", 0),
        ("clip_ratio", 0.0),
        ("clip_value", -0.2),
        ("entropy_coef", -1.0),
        ("max_grad_norm", 0.0),
        ("hidden", (8, 0)),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        MAPPOConfig(**{key: value})


def test_unknown_choices_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'central'"):
        MAPPOConfig(critic="centra")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choices: relu, tanh"):
        MAPPOConfig(activation="gelu")  # type: ignore[arg-type]


def test_what_does_not_fit_the_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="minibatches must be at most 20"):
        learner(minibatches=21)
    with pytest.raises(ConfigError, match="action_masks"):
        learner(n_actions=2, bounds=BOUNDS, action_masks=True)
