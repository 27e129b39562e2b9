"""PPO against numbers made by hand, slow references, plain networks and exact values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from scipy import stats
from torch import Tensor

from marl_lib.advantages import RewardScale, generalised_advantage
from marl_lib.algorithms.ppo import (
    POOLINGS,
    PPO,
    AttentionPPOConfig,
    PPOConfig,
    PPONetwork,
)
from marl_lib.config import ConfigError
from marl_lib.envs import BatchedParallelEnv, make
from marl_lib.envs.base import Tokens
from marl_lib.nn.distributions import Categorical, DiagonalGaussian
from marl_lib.nn.normalization import RunningNorm
from marl_lib.training import LoopConfig, Trainer

OBS, ACTIONS = 4, 3
SMALL = PPOConfig(hidden=(8,), rollout=5, batch_size=10, epochs=2, anneal=False)
ATTENTION = AttentionPPOConfig(
    hidden=(8,), rollout=5, batch_size=10, epochs=2, anneal=False, d_model=8, n_heads=2
)
BARE = {"normalise_obs": False, "normalise_reward": False, "normalise_advantage": False}
SETS = {"features": None, "entities": Tokens(3, 2, False), "history": Tokens(3, 2, True)}
every_kind = pytest.mark.parametrize("kind", SETS)
both = pytest.mark.parametrize("config", [SMALL, ATTENTION], ids=["mlp", "attention"])


def learner(
    seeds: tuple[int, ...] = (0, 3),
    num_envs: int = 4,
    config: PPOConfig = SMALL,
    kind: str = "features",
    **options: Any,
) -> PPO:
    given = {
        k: options.pop(k) for k in ("total_steps", "bounds", "n_actions", "device") if k in options
    }
    tokens, n_actions = SETS[kind], given.pop("n_actions", ACTIONS)
    size = OBS if tokens is None else tokens.count * (1 + tokens.size)
    config = dataclasses.replace(config, **options)
    return PPO(size, n_actions, num_envs, seeds, config, tokens=tokens, **given)


def random_obs(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return observations (*shape, D); of tokens, about a third are absent, the ends never."""
    rng, tokens = np.random.default_rng(seed), SETS[kind]
    if tokens is None:
        return rng.normal(size=(*shape, OBS)).astype(np.float32)
    blocks = rng.normal(size=(*shape, tokens.count, 1 + tokens.size)).astype(np.float32)
    blocks[..., 0] = rng.random((*shape, tokens.count)) < 0.6
    blocks[..., [0, -1], 0] = 1.0
    blocks *= blocks[..., :1]
    return blocks.reshape(*shape, -1)


def feed(ppo: PPO, steps: int, seed: int = 0, kind: str = "features", ends: float = 0.15) -> None:
    """Let the learner act for so many steps in a world of random numbers."""
    rng = np.random.default_rng(seed)
    rows = len(ppo.seeds) * ppo.num_envs
    seen = random_obs(kind, (2, steps + 1, rows, 1), seed)
    obs = seen[0, 0]
    for t in range(steps):
        terminated, truncated = rng.random((2, rows)) < ends
        ended = (terminated | truncated)[:, None, None]
        led_to = seen[1, t + 1]
        action = ppo.act(obs, {})
        reward = rng.normal(size=(rows, 1)).astype(np.float32)
        ppo.observe(obs, action, reward, led_to, terminated, truncated, {})
        obs = np.where(ended, seen[0, t + 1], led_to)  # after an end another episode begins
        if t < steps - 1:
            ppo.update()


def full(*args: Any, kind: str = "features", seed: int = 0, **options: Any) -> PPO:
    """Return a learner whose rollout is full, not learned from yet."""
    ppo = learner(*args, kind=kind, **options)
    feed(ppo, ppo.config.rollout, seed, kind)
    return ppo


def parameters(ppo: PPO, index: int) -> Tensor:
    """Return all weights of one replicate in one vector."""
    nets = (ppo.actor, ppo.critic)
    return torch.cat([p.detach()[index].flatten() for net in nets for p in net.params.values()])


# Advantages ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_advantage_equals_the_sum_written_out(gamma: float, lam: float) -> None:
    g = torch.Generator().manual_seed(1)
    numbers = torch.randn(3, 2, 12, 4, generator=g)  # of two replicates
    terminated, truncated = torch.rand(2, 2, 12, 4, generator=g) < 0.15
    given = (*numbers, terminated, terminated | truncated)
    found = generalised_advantage(*given, gamma, lam)
    for r in range(2):
        slow = slow_advantage(*(x[r] for x in given), gamma, lam)
        torch.testing.assert_close(found[r], slow)


def test_advantage_by_hand() -> None:
    """Three steps that pay 1, a critic that says 2 everywhere, γ = 1, λ = 1/2."""
    one, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
    last = torch.tensor([[False], [False], [True]])

    def found(terminated: Tensor, ended: Tensor) -> list[float]:
        return generalised_advantage(one, 2 * one, 2 * one, terminated, ended, 1.0, 0.5)[
            :, 0
        ].tolist()

    assert found(last, last) == [1.25, 0.5, -1.0]
    assert found(no, last) == found(no, no) == [1.75, 1.5, 1.0]
    middle = last.roll(-1, 0)
    assert found(middle, middle) == [0.5, -1.0, 1.0]  # what comes after is another episode
    assert found(no, middle) == [1.5, 1.0, 1.0]


@both
@pytest.mark.parametrize("seeds", [(0,), (0, 3, 5)], ids=len)
def test_a_time_limit_bootstraps_from_where_it_cut(
    config: PPOConfig, seeds: tuple[int, ...]
) -> None:
    """Against each replicate's own critic on each step's own next observation."""
    ppo = full(seeds, config=config, seed=3, **BARE)
    d, c = ppo.data, ppo.config
    assert (d["truncated"] & ~d["terminated"]).flatten(1).any(1).all()
    if len(seeds) > 1:  # or one gather for all replicates would not be put to the test
        assert d["truncated"].flatten(1).sum(1).unique().numel() > 1
    found = ppo.prepare()
    for r in range(len(seeds)):
        critic = ppo.critic.network(r)
        value = critic(d["obs"][r]).squeeze(-1)
        next_value = critic(d["next_obs"][r]).squeeze(-1)
        ended = d["terminated"][r] | d["truncated"][r]
        slow = slow_advantage(
            d["reward"][r], value, next_value, d["terminated"][r], ended, c.gamma, c.gae_lambda
        )
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(found["advantage"][r], slow.flatten(), **close)
        torch.testing.assert_close(found["returns"][r], (slow + value).flatten(), **close)
        torch.testing.assert_close(found["value"][r], value.flatten(), **close)


def test_what_follows_a_time_limit_counts_and_what_follows_an_end_does_not() -> None:
    ppo = full(**BARE)
    before, d = ppo.prepare()["advantage"], ppo.data
    d["next_obs"][d["terminated"]] += 5.0
    assert torch.equal(ppo.prepare()["advantage"], before)
    cut = d["truncated"] & ~d["terminated"]
    d["next_obs"][cut] += 5.0
    changed = (ppo.prepare()["advantage"] != before).view_as(cut)
    at_or_before_one = cut.flip(1).cumsum(1).flip(1) > 0
    assert changed[cut].all() and not changed[~at_or_before_one].any()


def test_time_running_out_is_no_news_about_the_last_action() -> None:
    """Two environments alike but for a time limit in the last step of the rollout."""
    ppo = learner((0,), num_envs=2)
    seen = random_obs("features", (6, 1, 1)).repeat(2, axis=1)
    for t in range(5):
        ppo.act(seen[t], {})
        late = np.array([False, t == 4])
        ppo.observe(seen[t], np.zeros(2), np.ones((2, 1)), seen[t + 1], np.zeros(2, bool), late, {})
    first, second = ppo.prepare()["advantage"].view(5, 2).T
    torch.testing.assert_close(first, second)


# Losses -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_losses_equal_plain_networks(config: PPOConfig, seeds: tuple[int, ...]) -> None:
    """After an update, so that ratios are not one, row by row."""
    ppo = full(seeds, config=config, clip_value=0.1, learning_rate=0.02, entropy_coef=0.1)
    batch = ppo.prepare()
    ppo.update()
    found = ppo.losses(batch, clip=0.1)
    for r in range(len(seeds)):
        log_p = ppo.actor.network(r)(batch["obs"][r]).log_softmax(-1)
        value = ppo.critic.network(r)(batch["obs"][r]).squeeze(-1)
        a = batch["advantage"][r]
        a = (a - a.mean()) / (a.std() + 1e-8)
        gain, error, kl, outside = [], [], [], []
        for i, action in enumerate(batch["action"][r].tolist()):
            ratio = (log_p[i, action] - batch["log_prob"][r, i]).exp().item()
            gain.append(min(ratio * a[i].item(), max(0.9, min(ratio, 1.1)) * a[i].item()))
            kl.append(ratio - 1 - np.log(ratio))
            outside.append(abs(ratio - 1) > 0.1)
            old, new, goal = (x[i].item() for x in (batch["value"][r], value, batch["returns"][r]))
            near = max(old - 0.1, min(new, old + 0.1))
            error.append(max((new - goal) ** 2, (near - goal) ** 2))
        entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
        figures = {n: x[r].item() for n, x in found.items()}
        assert 0 < np.mean(outside) < 1
        assert figures["policy_loss"] == pytest.approx(-np.mean(gain), abs=1e-5)
        assert figures["value_loss"] == pytest.approx(np.mean(error) / 2, rel=1e-4)
        assert figures["entropy"] == pytest.approx(entropy, rel=1e-4)
        assert figures["approx_kl"] == pytest.approx(np.mean(kl), rel=1e-2, abs=1e-6)
        assert figures["clip_fraction"] == pytest.approx(np.mean(outside))


def test_clip_value_holds_the_new_value_near_the_old_one() -> None:
    ppo = full(**BARE)
    batch = ppo.prepare()
    batch["returns"] = batch["value"] + 5.0
    with torch.no_grad():
        ppo.critic.params["head.bias"] += 1.0  # on the way to the goal, but further than allowed
    free = ppo.losses(batch, 0.2)["value_loss"]
    torch.testing.assert_close(free, torch.full((2,), 0.5 * 4.0**2))
    ppo.config = dataclasses.replace(ppo.config, clip_value=0.25)
    held = ppo.losses(batch, 0.2)["value_loss"]
    torch.testing.assert_close(held, torch.full((2,), 0.5 * 4.75**2))
    ppo.critic.zero_grad()
    held.sum().backward()
    assert (ppo.critic.flat.grad == 0).all()  # what is clipped has no more to learn


@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
@pytest.mark.parametrize(
    "config",
    [SMALL, ATTENTION, dataclasses.replace(ATTENTION, dropout=0.5)],
    ids=["mlp", "attention", "dropout"],
)
def test_first_ratio_is_one(config: PPOConfig, seeds: tuple[int, ...]) -> None:
    ppo = full(seeds, config=config)
    batch = ppo.prepare()
    found = ppo.losses(batch, 1e-5)
    assert (found["clip_fraction"] == 0).all()  # no ratio further from 1 than rounding
    assert (found["approx_kl"].abs() < 1e-6).all()
    log_prob = ppo.distribution(ppo.actor(batch["obs"])).log_prob(batch["action"])
    torch.testing.assert_close(log_prob, batch["log_prob"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
@every_kind
def test_dropout_acts_in_the_loss_of_the_critic_alone(kind: str, seeds: tuple[int, ...]) -> None:
    pair = [full(seeds, config=ATTENTION, kind=kind, dropout=p) for p in (0.0, 0.5)]
    for name, x in pair[0].data.items():
        assert torch.equal(x, pair[1].data[name]), name  # so it acted alike
    dry, wet = (ppo.prepare() for ppo in pair)
    for name, x in dry.items():
        assert torch.equal(x, wet[name]), name
    losses = [ppo.losses(dry, 0.2) for ppo in (*pair, pair[1])]
    for name in ("policy_loss", "entropy", "approx_kl"):
        assert torch.equal(losses[0][name], losses[1][name]), name
    assert (losses[0]["value_loss"] != losses[1]["value_loss"]).all()
    assert (losses[1]["value_loss"] != losses[2]["value_loss"]).all()  # drawn anew
    obs = random_obs(kind, (len(seeds) * 3, 1), seed=9)
    for ppo in pair:  # and it is off again
        first, again = (ppo.distribution_of(obs).probs for _ in range(2))
        assert torch.equal(first, again)
        value = [ppo.critic(dry["obs"]) for _ in range(2)]
        assert torch.equal(*value)


@both
def test_the_bonus_raises_the_entropy(config: PPOConfig) -> None:
    ppo = full(config=config, entropy_coef=1.0, learning_rate=0.01, epochs=5)
    with torch.no_grad():
        ppo.actor.params["head.bias"].copy_(torch.tensor([2.0, 0.0, 0.0]))
    batch = ppo.prepare()
    batch["advantage"] = torch.zeros_like(batch["advantage"])
    before = ppo.losses(batch, 0.2)["entropy"]
    ppo._learn(batch)
    assert (ppo.losses(batch, 0.2)["entropy"] > before + 0.01).all()


@both
def test_each_loss_moves_its_own_network(config: PPOConfig) -> None:
    ppo = full(config=config)
    batch = ppo.prepare()
    for name, moved, still in (
        ("policy_loss", ppo.actor, ppo.critic),
        ("entropy", ppo.actor, ppo.critic),
        ("value_loss", ppo.critic, ppo.actor),
    ):
        for net in (moved, still):
            net.zero_grad()
        ppo.losses(batch, 0.2)[name].sum().backward()
        assert (moved.flat.grad != 0).any() and (still.flat.grad == 0).all(), name


@every_kind
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_layers", [0, 2])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_parameter_has_a_gradient(kind: str, pooling: str, n_layers: int, norm: str) -> None:
    """All but the keys' biases, which shift all scores of a query alike and so change nothing."""
    ppo = full(
        config=ATTENTION, kind=kind, pooling=pooling, n_layers=n_layers, norm=norm, n_queries=2
    )
    batch = ppo.prepare()
    found = ppo.losses(batch, 0.2)
    for net in (ppo.actor, ppo.critic):
        net.zero_grad()
    (found["policy_loss"] + found["value_loss"]).sum().backward()
    for net in (ppo.actor, ppo.critic):
        for name, grad in net.grads.items():
            if not name.endswith("key.bias"):
                assert (grad.flatten(1).abs().amax(1) > 1e-9).all(), name
    before = [parameters(ppo, r) for r in range(2)]
    ppo.update()
    assert all((parameters(ppo, r) != before[r]).float().mean() > 0.8 for r in range(2))


def test_continuous_policies_learn_their_spread() -> None:
    bounds = np.full(2, -1.0, np.float32), np.ones(2, np.float32)
    ppo = full(n_actions=2, bounds=bounds)
    before = ppo.actor.params["log_std"].clone()
    ppo.update()
    assert (ppo.actor.params["log_std"] != before).all()


def test_order_of_environments_does_not_matter() -> None:
    first, second = full(num_envs=6), full(num_envs=6)
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


def test_advantages_are_normalised_within_the_minibatch() -> None:
    ppo = full()
    batch = ppo.prepare()
    other = {**batch, "advantage": 7 * batch["advantage"] + 3}
    torch.testing.assert_close(
        ppo.losses(batch, 0.2)["policy_loss"], ppo.losses(other, 0.2)["policy_loss"]
    )
    ppo.config = dataclasses.replace(ppo.config, normalise_advantage=False)
    assert (ppo.losses(batch, 0.2)["policy_loss"] != ppo.losses(other, 0.2)["policy_loss"]).all()


# Updates ------------------------------------------------------------------------------------------


def test_learns_when_the_rollout_is_full_and_reports() -> None:
    ppo = learner()
    for _ in range(2):
        feed(ppo, 4)
        before = parameters(ppo, 0)
        assert ppo.update() == {} and torch.equal(parameters(ppo, 0), before)
        feed(ppo, 1)
        batch = ppo.prepare()
        figures = ppo.update()
        assert (parameters(ppo, 0) != before).any()
        assert set(figures) == {
            "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm",
            "explained_variance",
        }  # fmt: skip
        assert all(x.shape == (2,) and np.isfinite(x).all() for x in figures.values())
        left = (batch["returns"] - batch["value"]).var(1)
        assert (figures["explained_variance"] <= 1).all() and (left > 0).all()


def test_explained_variance_of_a_critic_that_knows_and_of_one_that_does_not() -> None:
    ppo = full((0,), num_envs=8, gamma=0.0, **BARE)
    ppo.data["reward"] = ppo.data["obs"][..., 0].clone()  # the value is the first number
    with torch.no_grad():
        ppo.critic.flat.zero_()
    assert ppo.update()["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    ppo = full((0,), num_envs=8, gamma=0.0, hidden=(), **BARE)
    ppo.data["reward"] = ppo.data["obs"][..., 0].clone()
    with torch.no_grad():
        ppo.critic.flat.zero_()
        ppo.critic.params["head.weight"][0, 0, 0] = 1.0
    assert ppo.update()["explained_variance"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "batch_size, parts, size", [(10, 2, 10), (7, 2, 10), (64, 1, 20), (6, 3, 6)]
)
def test_minibatches_have_about_the_size_asked_for(
    batch_size: int, parts: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo, step, seen = full(batch_size=batch_size, epochs=2), PPO._step, []

    def watched(self: PPO, batch: dict[str, torch.Tensor], *rest: Any) -> Any:
        seen.append(batch["value"].shape)
        return step(self, batch, *rest)

    monkeypatch.setattr(PPO, "_step", watched)
    ppo.update()
    assert seen == [(2, size)] * parts * 2


def test_target_kl_stops_the_replicate_that_went_too_far_and_no_other() -> None:
    """Replicate 1 has no advantages, so its policy stays; its critic goes on learning."""

    def learn(**options: Any) -> PPO:
        ppo = full(learning_rate=0.05, normalise_reward=False, **options)
        batch = ppo.prepare()
        batch["advantage"][1] = 0.0
        ppo._learn(batch)
        return ppo

    once, stopped, free = learn(epochs=1), learn(epochs=4, target_kl=1e-4), learn(epochs=4)
    assert torch.equal(parameters(stopped, 0), parameters(once, 0))
    assert not torch.equal(parameters(free, 0), parameters(once, 0))
    torch.testing.assert_close(parameters(stopped, 1), parameters(free, 1))
    assert not torch.equal(parameters(stopped, 1), parameters(once, 1))


def test_passes_end_when_no_replicate_is_left() -> None:
    counts = {}
    for target in (None, 1e-9):
        ppo = full(learning_rate=0.05, epochs=6, target_kl=target)
        steps: list[Tensor] = []
        step = ppo._step
        ppo._step = lambda *a, s=step, n=steps: (n.append(a[2]), s(*a))[1]  # type: ignore
        ppo.update()
        counts[target] = len(steps)
    assert counts == {None: 12, 1e-9: 2}


def test_annealing_goes_down_to_zero() -> None:
    ppo = learner((0,), num_envs=4, anneal=True, total_steps=100, learning_rate=0.01)
    clips: list[float] = []
    losses = ppo.losses
    ppo.losses = lambda b, clip: (clips.append(clip), losses(b, clip))[1]  # type: ignore
    rates = []
    for i in range(5):  # of 20 steps each
        feed(ppo, 5, seed=i)
        ppo.update()
        rates.append([o.learning_rate for o in ppo.optimizers])
    left = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(rates, 0.01 * left[:, None].repeat(2, 1))
    np.testing.assert_allclose(clips[::4], 0.2 * left)
    before = parameters(ppo, 0)
    feed(ppo, 5)
    ppo.update()  # past the end
    assert torch.equal(parameters(ppo, 0), before)


def test_without_a_total_or_without_annealing_the_rate_stays() -> None:
    for ppo in (learner(anneal=True), learner(anneal=False, total_steps=20)):
        for _ in range(3):
            feed(ppo, 5)
            ppo.update()
        assert ppo.optimizers[0].learning_rate == ppo.config.learning_rate


def test_gradients_are_clipped_by_each_network_s_own_norm() -> None:
    ppo = full(max_grad_norm=0.5)
    batch = ppo.prepare()
    batch["returns"][1] *= 1e4  # one critic is far off; nobody else is held back by it
    norms = []
    for optimizer in ppo.optimizers:
        step = optimizer.step
        optimizer.step = lambda a, n=optimizer.nets, s=step: (  # type: ignore
            norms.append(
                [torch.cat([g[r].flatten() for g in n.grads.values()]).norm() for r in (0, 1)]
            ),
            s(a),
        )
    free = full(max_grad_norm=1e9)
    ppo._step(batch, 0.2, torch.tensor([True, True]))
    actor, critic = norms
    found = free.losses(batch, 0.2)
    free.actor.zero_grad()
    found["policy_loss"].sum().backward()
    for r in range(2):
        own = torch.cat([g[r].flatten() for g in free.actor.grads.values()]).norm()
        assert actor[r] == pytest.approx(min(own.item(), 0.5), rel=1e-4)
    assert critic[1] == pytest.approx(0.5, rel=1e-4)


# Scales -------------------------------------------------------------------------------------------


def test_running_norm_equals_numpy() -> None:
    rng, norm = np.random.default_rng(0), RunningNorm(2, 3, clip=3.0)
    x = rng.normal([1.0, 0.5, -300.0], [2.0, 1.0, 40.0], size=(2, 500, 3)).astype(np.float32)
    some = torch.from_numpy(x[:, :7])
    torch.testing.assert_close(norm(some), some.clamp(-3, 3))  # nothing seen, nothing changed
    for start, end in ((0, 1), (1, 64), (64, 65), (65, 500)):
        norm.update(torch.from_numpy(x[:, start:end]))
        seen = x[:, :end].astype(np.float64)
        if end > 1:
            expected = (seen - seen.mean(1, keepdims=True)) / seen.std(1, keepdims=True)
            found = norm(torch.from_numpy(x[:, :end])).numpy()
            np.testing.assert_allclose(found, expected.clip(-3, 3), atol=2e-3)
    other = RunningNorm(2, 3, clip=3.0)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(some), norm(some))


def test_tokens_are_normalised_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([1.0, -30.0], [2.0, 5.0], size=(2, 200, 4, 2)).astype(np.float32)
    there = rng.random((2, 200, 4, 1)) < 0.6
    there[1, :50] = False  # a replicate may see nothing at all at first
    obs = np.concatenate([there, x * there], -1).astype(np.float32)
    flat = torch.from_numpy(obs).flatten(2)
    norm = RunningNorm(2, 12, 4)
    for start, end in ((0, 50), (50, 51), (51, 200)):
        norm.update(flat[:, start:end])
    found = norm(flat).numpy().reshape(2, 200, 4, 3)
    np.testing.assert_array_equal(found[..., 0], there[..., 0])
    assert not found[..., 1:][~there[..., 0]].any()  # padding stays zero
    for r in range(2):
        seen = x[r][there[r, ..., 0]]
        expected = (seen - seen.mean(0)) / seen.std(0)
        np.testing.assert_allclose(found[r, ..., 1:][there[r, ..., 0]], expected, atol=1e-3)
    # Tokens shuffled within every observation: the same statistics, the same tokens.
    order = rng.random((2, 200, 4)).argsort(-1)[..., None]
    shuffled = torch.from_numpy(np.take_along_axis(obs, order, 2)).flatten(2)
    other = RunningNorm(2, 12, 4)
    other.update(shuffled)
    expected = np.take_along_axis(found, order, 2)
    np.testing.assert_allclose(other(shuffled).numpy().reshape(expected.shape), expected, atol=1e-5)


def test_reward_scale_equals_a_slow_one() -> None:
    rng, scale = np.random.default_rng(0), RewardScale(2, 3, 0.9, torch.device("cpu"))
    totals, running = [], np.zeros((2, 3))
    for _ in range(4):
        reward = rng.normal(1.0, 5.0, size=(2, 6, 3))
        ended = rng.random((2, 6, 3)) < 0.2
        found = scale(torch.tensor(reward, dtype=torch.float32), torch.from_numpy(ended))
        for t in range(6):
            running = 0.9 * running + reward[:, t]
            totals.append(running)
            running = running * ~ended[:, t]
        spread = np.stack(totals, 1).reshape(2, -1).std(1)
        np.testing.assert_allclose(found.numpy(), reward / spread[:, None, None], rtol=1e-3)


def test_statistics_of_observations_change_after_learning_and_never_in_between() -> None:
    """Else the ratio would compare two policies on two different inputs."""
    ppo = learner()
    feed(ppo, 5)
    assert not ppo.norm.count.any()
    ppo.update()
    assert (ppo.norm.count == 5 * 4).all()
    kept = ppo.norm.mean.clone()
    feed(ppo, 4)
    ppo.policy()(random_obs("features", (6, 1)), {})
    assert torch.equal(ppo.norm.mean, kept)


def test_flags_of_tokens_are_not_normalised() -> None:
    ppo = full(config=ATTENTION, kind="entities")
    ppo.update()
    obs = torch.from_numpy(random_obs("entities", (2, 10)))
    seen = ppo._seen(obs)
    assert torch.equal(seen[..., ::3], obs[..., ::3])
    assert not torch.allclose(seen[..., 1::3], obs[..., 1::3])


# Distributions ------------------------------------------------------------------------------------


def test_categorical_equals_torch_s() -> None:
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    action = torch.arange(50) % 4
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.probs, theirs.probs)
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_categorical_samples_as_often_as_it_should() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    dist = Categorical(p.log().expand(60_000, 4))
    noise = torch.rand(60_000, 1, generator=torch.Generator().manual_seed(0))
    counts = np.bincount(dist.sample(noise), minlength=4)
    assert counts[1] == 0
    expected = 60_000 * p.numpy()[[0, 2, 3]]
    assert stats.chisquare(counts[[0, 2, 3]], expected).pvalue > 1e-3
    ends = Categorical(p.log().expand(2, 4)).sample(torch.tensor([[0.0], [1 - 2**-24]]))
    assert ends.tolist() == [0, 3]
    first_never = Categorical(torch.tensor([[0.0, 1.0]]).log()).sample(torch.zeros(1, 1))
    assert first_never.tolist() == [1]


def test_gaussian_equals_torch_s() -> None:
    g = torch.Generator().manual_seed(0)
    output = torch.randn(40, 6, generator=g)
    ours = DiagonalGaussian(output)
    theirs = torch.distributions.Normal(output[:, :3], output[:, 3:].exp())
    action = torch.randn(40, 3, generator=g)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), output[:, :3])
    draws = DiagonalGaussian(torch.tensor([1.0, -0.5]).expand(50_000, 2))
    drawn = draws.sample(torch.rand(50_000, 1, generator=g)).numpy()
    assert stats.kstest(drawn[:, 0], "norm", (1.0, np.exp(-0.5))).pvalue > 1e-3
    assert torch.isfinite(draws.sample(torch.tensor([[0.0], [1.0]]).repeat(25_000, 1))).all()


# Acting -------------------------------------------------------------------------------------------


@both
def test_acts_by_its_probabilities_and_judges_by_its_mode(config: PPOConfig) -> None:
    ppo = learner(num_envs=500, config=config)
    obs = random_obs("features", (2, 1, 1), seed=4).repeat(500, axis=0)[:, 0]  # one a replicate
    with torch.no_grad():
        ppo.actor.params["head.weight"].mul_(100)
    obs = obs.reshape(1000, 1, OBS)
    probs = ppo.distribution_of(obs).probs[:, 0].double().numpy()
    assert not np.allclose(probs[0], probs[1], atol=0.01)
    counts = np.zeros((2, ACTIONS))
    for _ in range(20):
        action = ppo.act(obs, {})
        assert action.shape == (1000, 1) and action.dtype == np.int64
        assert torch.equal(ppo.data["action"][:, 0].flatten(), torch.from_numpy(action[:, 0]))
        for r in range(2):
            counts[r] += np.bincount(action.reshape(2, 500)[r], minlength=ACTIONS)
    for r in range(2):
        assert stats.chisquare(counts[r], 10_000 * probs[r] / probs[r].sum()).pvalue > 1e-3
    drawn = ppo.streams.state_dict()["count"].copy()
    greedy = ppo.policy()(obs, {})
    assert (greedy.reshape(2, 500) == probs.argmax(1)[:, None]).all()
    np.testing.assert_array_equal(ppo.streams.state_dict()["count"], drawn)


def test_what_a_replicate_sees_and_says() -> None:
    ppo = full()
    ppo.update()
    obs = random_obs("features", (7,))
    for r in range(2):
        expected = (torch.from_numpy(obs) - ppo.norm.mean[r]) * ppo.norm.scale[r]
        torch.testing.assert_close(ppo.seen_by(r, obs), expected.clamp(-10, 10))
    rows = np.concatenate([obs, obs])[:, None]
    probs = ppo.distribution_of(rows).probs  # (R, 7, A)
    for r in range(2):
        logits = ppo.actor.network(r)(ppo.seen_by(r, obs))
        torch.testing.assert_close(probs[r], logits.softmax(-1))


def test_continuous_actions_are_clipped_for_the_world_alone() -> None:
    bounds = np.array([-0.5, -1.0], np.float32), np.array([0.5, 0.2], np.float32)
    ppo = learner(num_envs=100, n_actions=2, bounds=bounds)
    obs = random_obs("features", (200, 1))
    action = ppo.act(obs, {})
    kept = ppo.data["action"][:, 0].flatten(0, 1).numpy()
    assert action.shape == (200, 1, 2)
    np.testing.assert_array_equal(action[:, 0], kept.clip(*bounds))
    assert (action >= bounds[0]).all() and (action <= bounds[1]).all()
    assert (kept != action[:, 0]).mean() > 0.3  # most of a wide spread lies outside
    mean = ppo.policy()(obs, {})
    expected = ppo.distribution_of(obs).mode().flatten(0, 1).numpy().clip(*bounds)
    np.testing.assert_array_equal(mean[:, 0], expected)


# Attention ----------------------------------------------------------------------------------------


def network(kind: str, **options: Any) -> PPONetwork:
    torch.manual_seed(0)
    tokens = SETS[kind]
    size = OBS if tokens is None else tokens.count * (1 + tokens.size)
    return PPONetwork(size, ACTIONS, dataclasses.replace(ATTENTION, **options), 1.0, tokens).eval()


def flags(obs: Tensor) -> Tensor:
    return obs.unflatten(-1, (3, 3))[..., 0] > 0.5  # (n, L)


@every_kind
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_layers", [0, 2])
def test_attention_weights_are_weights(kind: str, pooling: str, n_layers: int) -> None:
    net = network(kind, pooling=pooling, n_layers=n_layers, n_queries=2)
    obs = torch.from_numpy(random_obs(kind, (40,), seed=2))
    found = net.attention(obs)
    expected = [f"layer_{i}" for i in range(n_layers)] + ["pooling"] * (pooling != "mean")
    assert list(found) == expected
    length = 4 if kind == "features" else 3
    for name, weights in found.items():
        queries = length if name != "pooling" else 2 if pooling == "queries" else 1
        assert weights.shape == (40, 2, queries, length)
        total = weights.sum(-1)
        if kind != "features":
            present = flags(obs)
            absent = ~present[:, None, None].expand_as(weights)
            assert absent.any() and (weights[absent] == 0).all()
            if name != "pooling":  # an absent token asks nothing that matters
                total = total.transpose(1, 2)[present]
        torch.testing.assert_close(total, torch.ones_like(total))
        if kind == "history" and name != "pooling":
            assert (weights.triu(1) == 0).all()  # nobody looks ahead
        alike = obs if kind == "features" else obs[flags(obs).all(-1)]
        spread = net.attention(alike)[name].std(0)
        assert spread.max() > 1e-3, name  # it depends on the state


@pytest.mark.parametrize("pooling", POOLINGS)
def test_permuting_entities_permutes_their_weights(pooling: str) -> None:
    net = network("entities", pooling=pooling)
    obs = torch.from_numpy(random_obs("entities", (20,)))
    order = {"first": [0, 2, 1], "last": [1, 0, 2]}.get(pooling, [2, 0, 1])  # who asks stays
    moved = obs.unflatten(-1, (3, 3))[:, order].flatten(1)
    before, after = net.attention(obs), net.attention(moved)
    for name, weights in before.items():
        expected = weights[..., order]
        if name != "pooling":
            expected = expected[..., order, :]
        torch.testing.assert_close(after[name], expected)
        assert not torch.allclose(after[name], weights)
    torch.testing.assert_close(net(moved), net(obs))


def test_the_order_of_a_history_matters() -> None:
    obs = torch.from_numpy(random_obs("history", (20,)))
    obs = obs[flags(obs).all(-1)]
    net = network("history", pooling="last")
    with torch.no_grad():
        net.encoder.positions.table.normal_()  # type: ignore[union-attr]
    moved = obs.unflatten(-1, (3, 3))[:, [1, 0, 2]].flatten(1)
    assert (net(moved) - net(obs)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["entities", "history"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_absent_has_no_say(kind: str, pooling: str) -> None:
    net = network(kind, pooling=pooling)
    obs = torch.from_numpy(random_obs(kind, (30,)))
    other = obs.clone().unflatten(-1, (3, 3))
    other[..., 1:][~flags(obs)] = 100.0
    assert not torch.equal(other.flatten(1), obs)
    torch.testing.assert_close(net(other.flatten(1)), net(obs))


def test_a_plain_network_says_that_it_has_no_attention() -> None:
    with pytest.raises(ValueError, match="no attention"):
        PPONetwork(4, 2, SMALL, 1.0).attention(torch.zeros(1, 4))


@every_kind
def test_one_replicate_alone_computes_what_it_computes_among_others(kind: str) -> None:
    """Alone it uses torch's fused attention, among others the products written out."""
    several, alone = (learner(s, config=ATTENTION, kind=kind) for s in ((0, 3), (3,)))
    obs = torch.from_numpy(random_obs(kind, (1, 9)))
    torch.testing.assert_close(several.actor(obs.expand(2, -1, -1))[1], alone.actor(obs)[0])
    ours, plain = alone.actor.network(0).attention(obs[0]), several.actor.network(1)
    for name, weights in plain.attention(obs[0]).items():
        torch.testing.assert_close(ours[name], weights)


# Runs ---------------------------------------------------------------------------------------------

CART: Callable[[int], BatchedParallelEnv] = lambda n: make("CartPole-v1", n, {"max_steps": 30})  # noqa: E731
HALL: Callable[[int], BatchedParallelEnv] = lambda n: make("ColourMatch", n)  # noqa: E731
RUNS = {
    "mlp": (CART, PPOConfig(rollout=8, batch_size=32)),
    "features": (CART, dataclasses.replace(ATTENTION, rollout=8, batch_size=32)),
    "entities": (HALL, dataclasses.replace(ATTENTION, rollout=8, batch_size=32, pooling="first")),
}
LOOP = LoopConfig(512, eval_every=256, eval_episodes=2, final_episodes=2)


def trainer(
    name: str, seeds: tuple[int, ...], folder: Path | None = None, loop: LoopConfig = LOOP,
    **options: Any,
) -> Trainer:  # fmt: skip
    world, config = RUNS[name]
    env, config = world(1), dataclasses.replace(config, **options)
    ppo = PPO(env.obs_dim, env.n_actions, 16, seeds, config, total_steps=1024, tokens=env.tokens)
    return Trainer(world, ppo, loop, folder, progress=False)


@pytest.mark.parametrize("name", RUNS)
def test_a_replicate_is_a_run_of_its_seed(name: str) -> None:
    """Four updates, in a world that ends and truncates episodes."""
    together = trainer(name, (0, 4, 7))
    together.train()
    for i, seed in enumerate((0, 4, 7)):
        alone = trainer(name, (seed,))
        alone.train()
        torch.testing.assert_close(
            parameters(together.learner, i), parameters(alone.learner, 0), atol=1e-4, rtol=1e-4
        )


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    first, again, other = (trainer("mlp", seeds) for seeds in ((0, 1), (0, 1), (2, 3)))
    curves = [t.train().curve.values for t in (first, again, other)]
    assert curves[0] == curves[1] != curves[2]
    assert torch.equal(first.learner.actor.flat, again.learner.actor.flat)
    assert not torch.equal(parameters(first.learner, 0), parameters(first.learner, 1))


@pytest.mark.parametrize("stop", [256, 320], ids=["between rollouts", "within a rollout"])
@pytest.mark.parametrize("name, options", [("mlp", {}), ("entities", {"dropout": 0.2})])
def test_a_resumed_run_ends_as_the_unbroken_one(
    name: str, options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    unbroken = trainer(name, (0, 1), **options)
    unbroken.train()
    torch.manual_seed(0)
    begun = trainer(name, (0, 1), tmp_path, dataclasses.replace(LOOP, timesteps=stop), **options)
    begun.train()
    assert (begun.learner.t > 0) == (stop == 320)
    torch.manual_seed(99)  # what a new process might start with
    goes_on = trainer(name, (0, 1), tmp_path, **options)
    goes_on.resume()
    goes_on.train()
    ours, theirs = goes_on.learner.state_dict(), unbroken.learner.state_dict()
    assert ours["steps"] == theirs["steps"] == 512
    for key in ("actor", "critic"):
        assert torch.equal(ours[key], theirs[key])
    for key in ("norm", "scale", "data"):
        assert all(torch.equal(x, theirs[key][k]) for k, x in ours[key].items()), key
    assert goes_on.curve.values["episode_return"][-1] == unbroken.curve.values["episode_return"][-1]


# Learning -----------------------------------------------------------------------------------------


@both
def test_a_bandit_is_solved(config: PPOConfig) -> None:
    """Three arms that pay 0, 1 and 0.5, with noise."""
    ppo = learner(num_envs=32, config=config, rollout=4, batch_size=64, learning_rate=0.01)
    obs, rng = np.ones((64, 1, OBS), np.float32), np.random.default_rng(0)
    over, no = np.ones(64, bool), np.zeros(64, bool)
    for _ in range(80):
        action = ppo.act(obs, {})
        reward = np.array([0.0, 1.0, 0.5])[action] + 0.3 * rng.normal(size=(64, 1))
        ppo.observe(obs, action, reward.astype(np.float32), obs, over, no, {})
        ppo.update()
    probs = ppo.distribution_of(obs[:2]).probs[:, 0]
    assert (probs[:, 1] > 0.9).all(), probs


def test_a_chain_is_learned_to_its_exact_values() -> None:
    """Five cells in a row: 1 goes right, 0 left; leaving at the right pays 1, γ = 0.9.

    The critic is a table, and is compared with the exact values of the policy beside it.
    """
    n, gamma = 5, 0.9
    ppo = PPO(
        n, 2, 32, [0, 1],
        PPOConfig(gamma=gamma, learning_rate=0.02, rollout=16, batch_size=128, hidden=(),
                  **(BARE | {"normalise_advantage": True})),
        total_steps=16 * 32 * 60,
    )  # fmt: skip
    eye, rng = np.eye(n, dtype=np.float32), np.random.default_rng(0)
    cell, age = np.zeros(64, int), np.zeros(64, int)
    for _ in range(16 * 60):
        action = ppo.act(eye[cell][:, None], {})
        after = np.maximum(cell + 2 * action[:, 0] - 1, 0)
        left, age = after == n, age + 1
        late, after = age == 20, np.minimum(after, n - 1)
        reward = left.astype(np.float32)[:, None]
        ppo.observe(eye[cell][:, None], action, reward, eye[after][:, None], left, late, {})
        ppo.update()
        over = left | late
        cell, age = np.where(over, rng.integers(n, size=64), after), np.where(over, 0, age)
    right = ppo.distribution_of(np.concatenate([eye, eye])[:, None]).probs[..., 1].numpy()
    found = ppo.critic(torch.eye(n).expand(2, n, n)).squeeze(-1).detach().numpy()
    best = gamma ** np.arange(n - 1, -1, -1)
    for r in range(2):
        move = np.zeros((n, n))
        for s in range(n):
            move[s, max(s - 1, 0)] += 1 - right[r, s]
            if s < n - 1:
                move[s, s + 1] += right[r, s]
        pays = right[r] * (np.arange(n) == n - 1)
        exact = np.linalg.solve(np.eye(n) - gamma * move, pays)
        np.testing.assert_allclose(found[r], exact, atol=0.05)
        np.testing.assert_allclose(exact, best, atol=0.05)


class Aim(BatchedParallelEnv):
    """One throw at a mark x in [-1, 1]: the reward is minus the square of the miss."""

    def __init__(self, num_envs: int):
        super().__init__(num_envs, 1, 1, Box(-2.0, 2.0, (1,)), max_steps=None)
        self.mark = np.zeros((num_envs, 1))

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self.mark[rows] = 2 * self.streams.uniform(1, rows) - 1

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -((action[:, 0] - self.mark) ** 2), np.ones(self.num_envs, bool)

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.mark[rows, :, None].astype(np.float32)


def test_a_continuous_target_is_hit() -> None:
    bounds = np.array([-2.0], np.float32), np.array([2.0], np.float32)
    config = PPOConfig(hidden=(32,), learning_rate=5e-3, epochs=8, batch_size=256)
    ppo = PPO(1, 1, 64, [0, 1], config, bounds=bounds, total_steps=40_000)
    loop = LoopConfig(40_000, eval_every=40_000, eval_episodes=2, final_episodes=500)
    miss = -Trainer(Aim, ppo, loop, progress=False).train().final["episode_return"].mean(1)
    assert (miss < 0.01).all(), miss  # a throw at the middle misses by 1/3
    assert (ppo.actor.params["log_std"] < -0.7).all()


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
        ("batch_size", 0),
        ("clip_ratio", 0.0),
        ("clip_value", -0.2),
        ("entropy_coef", -1.0),
        ("max_grad_norm", 0.0),
        ("target_kl", 0.0),
        ("hidden", (8, 0)),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    for kind in (PPOConfig, AttentionPPOConfig):
        with pytest.raises(ConfigError, match=f"{key} must be .*got"):
            kind(**{key: value})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"pooling": "max"}, "pooling 'max' is not known.*queries, first, last, attention, mean"),
        ({"norm": "middle"}, "norm 'middle' is not known"),
        ({"n_heads": 0}, "n_heads must be at least 1"),
        ({"n_layers": -1}, "n_layers must be at least 0"),
        ({"d_model": 30, "n_heads": 4}, "d_model must be a multiple of n_heads, 4.*30"),
        ({"n_queries": 0}, "n_queries must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"d_hidden": 0}, "d_hidden must be"),
    ],
)
def test_impossible_attention_is_refused_by_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        AttentionPPOConfig(**given)


@both
def test_minibatches_of_one_step_are_not_normalised(config: PPOConfig) -> None:
    """The deviation of a single advantage is not a number."""
    with pytest.raises(ConfigError, match="batch_size must be at least 2, got 1"):
        dataclasses.replace(config, batch_size=1)
    ppo = full(config=config, batch_size=1, normalise_advantage=False)
    figures = ppo.update()
    assert all(np.isfinite(x).all() for x in figures.values())
    assert all(torch.isfinite(parameters(ppo, r)).all() for r in range(2))


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@both
def test_device_and_dtype(config: PPOConfig, device: str) -> None:
    ppo = full(config=config, device=device)
    assert all(x.dtype == np.float32 for x in ppo.update().values())
    kept = [ppo.actor.flat, ppo.critic.flat, ppo.norm.mean, *ppo.data.values()]
    assert {x.device.type for x in kept} == {device}
    assert {x.dtype for x in kept} == {torch.float32, torch.int64, torch.bool}
