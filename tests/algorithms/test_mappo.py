"""PPO for teams: who sees what, what is paid, values in deviations of the returns, small games."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import (
    AGENTS,
    BARE,
    OBS,
    Play,
    full,
    learner,
    networks,
    scatter,
    slow_advantage,
)
from torch import Tensor

from marl_lib.algorithms.ppo import PPO, MAPPOConfig
from marl_lib.envs import make
from marl_lib.replicates import lift
from marl_lib.spec import Spec
from marl_lib.training import LoopConfig, Trainer

critics = pytest.mark.parametrize("critic", ["own", "central", "turned", "state"])
sharing = pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])


def judge(mappo: Any, r: int, obs: Tensor) -> Tensor:
    """Return the critics' values (..., N) of observations (..., N, D), put together by hand.

    One shown the state once has no ids; it says a value for each agent, or, of its team, one.
    """
    says = networks(mappo, "critic", r)
    sees = {
        "own": lambda i: obs[..., i, :],
        "central": lambda i: torch.cat(obs.unbind(-2), -1),
        "state": lambda i: torch.cat(obs.unbind(-2), -1),
        "turned": lambda i: torch.cat(obs.roll(-i, -2).unbind(-2), -1),
    }[mappo.config.critic]
    assert len(says) == (1 if seen_once(mappo) else obs.shape[-2])
    return for_each(torch.cat([say(sees(i)) for i, say in enumerate(says)], -1).detach(), obs)


def seen_once(mappo: Any) -> bool:
    """Return whether the critic is shown a step once, and not once for each agent."""
    return bool(mappo.config.critic == "state")


def for_each(value: Tensor, obs: Tensor) -> Tensor:
    """Return values (..., V) for each of N agents."""
    return value.expand(*value.shape[:-1], obs.shape[-2])


def value(mappo: Any, obs: Tensor) -> Tensor:
    """Return what the learner's critics say of observations (R, n, N, D), (R, n, N)."""
    memory = torch.zeros(*obs.shape[:-1], 0)
    found: Tensor = mappo.lift(lambda net, *x: mappo.value(net, *x)[0], obs, memory)
    return for_each(found, obs)


# Who sees what ------------------------------------------------------------------------------------


@critics
@sharing
def test_critics_see_what_they_are_to_see(critic: str, share: bool) -> None:
    spec = Spec(OBS, 2, 3)
    mappo = learner("mappo", critic=critic, spec=spec, share_parameters=share)
    scatter(mappo)
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    found = value(mappo, obs)
    for r in range(2):
        torch.testing.assert_close(found[r], judge(mappo, r, obs[r]))
    other = obs.clone()
    other[:, :, 1] += 1.0
    changed = ((value(mappo, other) - found).abs() > 1e-4).flatten(0, 1)
    assert changed[:, 1].all()
    assert not changed[:, [0, 2]].any() if critic == "own" else changed.all()


@pytest.mark.parametrize(("critic", "order"), [("own", [1, 0, 2]), ("turned", [2, 0, 1])])
def test_permuting_agents_with_their_ids_permutes_values(critic: str, order: list[int]) -> None:
    """In any order if the critics see their own alone, turned as a ring if they see all that way.

    One that sees the agents in their own order is not made to be symmetric.
    """
    mappo = learner("mappo", critic=critic, spec=Spec(OBS, 2, 3))
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    before = value(mappo, obs)[:, :, order]
    assert not torch.allclose(value(mappo, obs[:, :, order]), before, atol=1e-3)
    with torch.no_grad():
        ids = mappo.nets["critic"].params["network.encoder.body.0.weight"][..., -3:]
        ids.copy_(ids[..., order].clone())
    torch.testing.assert_close(value(mappo, obs[:, :, order]), before)


# Advantages ---------------------------------------------------------------------------------------


@critics
@sharing
@pytest.mark.parametrize("team", [True, False], ids=["team", "own reward"])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_time_limit_bootstraps_from_where_it_cut(
    critic: str, share: bool, team: bool, normalise: bool
) -> None:
    """Each agent's advantage, against a slow sum over its critic's own values."""
    mappo = full(
        "mappo", critic=critic, share_parameters=share, team_reward=team, rollout=6,
        normalise_value=normalise, normalise_obs=False,
    )  # fmt: skip
    mean, deviation = torch.zeros(2), torch.ones(2)
    if normalise:  # as if returns had been seen
        mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
        mappo.value_norm.count.fill_(1e9)
        mappo.value_norm.mean[:, 0], mappo.value_norm.scale[:, 0] = mean, 1 / deviation
        mappo.value_norm.square[:, 0] = 1e9 * deviation.square()
    d, c = mappo.data, mappo.config
    cut = (d["truncated"] & ~d["terminated"])[:, :-1]
    assert cut.flatten(1).any(1).all() and d["terminated"].flatten(1).any(1).all()
    assert not d["truncated"][:, :-1].any(2).any(0).all()  # at some steps nobody ran out of time
    found = mappo.prepare()
    for r in range(2):
        v, follows = (
            judge(mappo, r, d[name][r]) * deviation[r] + mean[r] for name in ("obs", "next_obs")
        )
        over, reward = d["terminated"][r], d["reward"][r]
        if team:
            reward = reward.sum(-1, keepdim=True).expand(-1, -1, AGENTS)
        for i in range(AGENTS):
            rows = reward[..., i], v[..., i], follows[..., i], over, over | d["truncated"][r]
            slow = slow_advantage(*rows, c.gamma, c.gae_lambda)
            close = {"atol": 1e-4, "rtol": 1e-4}
            advantage, returns = (found[name][r, :, 0] for name in ("advantage", "returns"))
            assert advantage.shape[-1] == (1 if seen_once(mappo) and team else AGENTS)
            torch.testing.assert_close(
                for_each(advantage, d["obs"][r])[:, i], slow.flatten(), **close
            )
            returns = for_each(returns, d["obs"][r])[:, i] * deviation[r] + mean[r]
            torch.testing.assert_close(returns, (slow + v[..., i]).flatten(), **close)


def test_the_team_s_reward_is_the_sum() -> None:
    """At γ = 0 and with a critic that says 0 the advantage is the reward."""
    for team in (True, False):
        mappo = full("mappo", gamma=0.0, team_reward=team, normalise_value=False, **BARE)
        mappo.nets["critic"].flat.detach().zero_()
        reward = mappo.data["reward"].flatten(1, 2)
        expected = reward.sum(-1, keepdim=True).expand_as(reward) if team else reward
        torch.testing.assert_close(mappo.prepare()["advantage"][:, :, 0], expected)


def test_equal_pay_makes_team_and_own_reward_the_same() -> None:
    """With both normalisations; this is why the default may be the team's."""
    flats = []
    for team in (True, False):
        mappo = full("mappo", seeds=(0,), team_reward=team, learning_rate=0.01)
        mappo.data["reward"][..., 1] = mappo.data["reward"][..., 0]
        with torch.no_grad():  # the value is zero in any unit
            mappo.nets["critic"].params["network.head.weight"].zero_()
        mappo.update()
        flats.append(torch.cat([net.flat.detach() for net in mappo.nets.values()]))
    torch.testing.assert_close(*flats, atol=1e-4, rtol=1e-3)


# Normalised values --------------------------------------------------------------------------------


def test_values_are_learned_in_deviations_of_the_returns() -> None:
    mappo = full("mappo", normalise_obs=False)
    seen = []
    for _ in range(2):
        norm = mappo.value_norm
        before = [norm.scale.clone(), norm.mean.clone()]  # under which the critic's numbers mean:
        obs = mappo.data["obs"].flatten(1, 2)
        raw = value(mappo, obs) / before[0][..., None] + before[1][..., None]
        found = mappo.prepare()
        back = {n: found[n] / norm.scale[:, None, None, :] + norm.mean[:, None, None, :]
                for n in ("returns", "value")}  # fmt: skip
        torch.testing.assert_close(back["value"][:, :, 0], raw, atol=1e-5, rtol=1e-4)
        seen.append(back["returns"].flatten(1))
        every = torch.cat(seen, 1)
        torch.testing.assert_close(norm.mean[:, 0], every.mean(1), atol=1e-4, rtol=1e-4)
        deviation = every.std(1, correction=0)
        torch.testing.assert_close(1 / norm.scale[:, 0], deviation, atol=1e-4, rtol=1e-4)


def test_far_values_are_learned_as_fast_with_normalisation() -> None:
    """Returns of 1,000 ± 30: normalised they are near, in their own units out of reach."""
    left = {}
    for normalise in (True, False):
        mappo = learner(
            "mappo", "mlp", (0,), 8, spec=Spec(OBS, 2), gamma=0.0, normalise_value=normalise,
            epochs=10, batch_size=16,
        )  # fmt: skip
        play = Play(mappo)
        for _ in range(30):
            for _ in range(4):
                play.step()
            mappo.data["reward"] = 1000 + 30 * mappo.data["obs"][..., 0]
            figures = mappo.update()
        left[normalise] = figures["explained_variance"].item()
    assert left[True] > 0.5 > left[False], left


# Losses -------------------------------------------------------------------------------------------


@critics
@sharing
@pytest.mark.parametrize("team", [True, False], ids=["team", "own reward"])
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_losses_equal_loops_over_agents(
    critic: str, share: bool, team: bool, seeds: tuple[int, ...]
) -> None:
    """After an update, so that ratios are not one; with networks each, sums of their means."""
    mappo = full(
        "mappo", seeds=seeds, critic=critic, share_parameters=share, clip_value=0.1,
        learning_rate=0.02, entropy_coef=0.1, team_reward=team,
    )  # fmt: skip
    batch = mappo.prepare()
    mappo.learn(batch)
    loss, found = lift(lambda net, b: mappo.loss(net, b, 0.1), mappo.nets, batch)
    for r in range(len(seeds)):
        row = {name: x[r, :, 0] for name, x in batch.items() if x.dim() > 3 and x.numel()}
        for name in ("advantage", "value", "returns"):
            row[name] = for_each(row[name], row["obs"])
        a = batch["advantage"][r]
        a = for_each((a - a.mean()) / (a.std() + 1e-8), row["obs"])[:, 0]
        new = judge(mappo, r, row["obs"])
        gain, error, entropy = np.zeros((3, len(a), AGENTS))
        for b, i in np.ndindex(gain.shape):
            says = networks(mappo, "actor", r)[i](row["obs"][b, i]).detach()
            log_p = says.masked_fill(~row["mask"][b, i], -torch.inf).double().log_softmax(-1)
            ratio = (log_p[row["action"][b, i]] - row["log_prob"][b, i]).exp().item()
            mine = a[b, i].item()
            gain[b, i] = min(ratio * mine, max(0.9, min(ratio, 1.1)) * mine)
            old, goal = row["value"][b, i].item(), row["returns"][b, i].item()
            near = max(old - 0.1, min(new[b, i].item(), old + 0.1))
            error[b, i] = max((new[b, i].item() - goal) ** 2, (near - goal) ** 2)
            p = log_p.exp()
            entropy[b, i] = -(p[p > 0] * p[p > 0].log()).sum().item()
        whole = 1 if share else AGENTS
        figures = {n: x[r].item() for n, x in found.items()}
        assert 0 < figures["clip_fraction"] < 1
        critics = 1 if seen_once(mappo) else whole
        parts = [-gain.mean() * whole, error.mean() / 2 * critics, entropy.mean() * whole]
        if share:
            found_parts = [figures[n] for n in ("policy_loss", "value_loss", "entropy")]
            assert found_parts == pytest.approx(parts, rel=1e-4, abs=1e-5)
        expected = parts[0] + parts[1] - 0.1 * parts[2]
        assert loss[r].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


# Learning -----------------------------------------------------------------------------------------


@critics
def test_the_two_step_game_is_solved_or_settles_for_the_safe_seven(critic: str) -> None:
    """Its equilibria pay 8 (coordinated) and 7 (safe); anything else is no equilibrium."""
    config = MAPPOConfig(
        critic=critic, rollout=4, epochs=4, batch_size=128, learning_rate=5e-3,
        encoder={"hidden": (32,)},
    )  # type: ignore[arg-type] # fmt: skip
    mappo = PPO(Spec(3, 2, 2), 64, [0, 1, 2], config, total_steps=30_000)
    loop = LoopConfig(30_000, eval_every=30_000, eval_episodes=1, final_episodes=1)
    world = lambda n: make("MatrixGame", n, {"game": "two-step"})  # noqa: E731
    final = Trainer(world, mappo, loop, progress=False).train().final["episode_return"]
    assert np.isin(final, [7.0, 8.0]).all(), final


@critics
@sharing
def test_a_team_learns_to_say_what_each_must_say(critic: str, share: bool) -> None:
    """One state, a common reward of the share of agents that name their own number: best is 1.

    A network for all can only tell the agents apart by their ids.
    """
    mappo = learner(
        "mappo", num_envs=32, spec=Spec(OBS, 3, 3), epochs=4, batch_size=64, learning_rate=0.01,
        critic=critic, gamma=0.5, entropy_coef=0.0, normalise_obs=False, share_parameters=share,
    )  # fmt: skip
    obs, over, no = np.ones((64, 3, OBS), np.float32), np.ones(64, bool), np.zeros(64, bool)
    for _ in range(100):
        action, stored = mappo.act(obs, {})
        reward = (action == np.arange(3)).mean(1, keepdims=True).repeat(3, 1) / 3
        mappo.observe(stored, reward.astype(np.float32), over, no, {"final_obs": obs})
        mappo.update()
    probs = mappo.pi(mappo.outputs(torch.ones(2, 1, 3, OBS))).probs[:, 0]
    right = probs[:, torch.arange(3), torch.arange(3)]  # (R, N)
    assert (right > 0.9).all(), probs
    known = value(mappo, torch.ones(2, 1, 3, OBS))[:, 0]
    known = known / mappo.value_norm.scale + mappo.value_norm.mean
    torch.testing.assert_close(known, right.mean(1, keepdim=True).expand(2, 3), atol=0.05, rtol=0)
