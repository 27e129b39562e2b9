"""Soft actor-critic against numbers made by hand, plain networks and exact optima."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from marl_lib.algorithms.sac import SAC, SACConfig
from marl_lib.config import ConfigError
from marl_lib.nn.distributions import SquashedGaussian
from marl_lib.nn.layers import mlp
from marl_lib.replicates import Replicates

OBS, ACTIONS, BATCH = 3, 2, 6
BOUNDS = np.array([-2.0, 0.0]), np.array([2.0, 0.5])
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = SACConfig(hidden=(8,), batch_size=16, buffer_size=400, learning_starts=0)


def learner(seeds: tuple[int, ...] = (0, 3), num_envs: int = 2, **changes: Any) -> SAC:
    device = changes.pop("device", "cpu")
    config = dataclasses.replace(SMALL, **changes)
    return SAC(OBS, ACTIONS, num_envs, seeds, config, bounds=BOUNDS, device=device)


def feed(sac: SAC, steps: int, seed: int = 0, rows: slice = slice(None)) -> None:
    """Give the learner ``steps`` random steps, of the chosen rows of four environments."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        step = (
            rng.normal(size=(4, 1, OBS)).astype(np.float32),
            rng.uniform(*BOUNDS, size=(4, 1, ACTIONS)).astype(np.float32),
            rng.normal(size=(4, 1)).astype(np.float32),
            rng.normal(size=(4, 1, OBS)).astype(np.float32),
            rng.random(4) < 0.2,
            rng.random(4) < 0.2,
        )
        sac.observe(*(x[rows] for x in step), {})


def random_batch(sac: SAC, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return a batch as the replay gives it, (R, BATCH, ...), and uniform numbers."""
    g = torch.Generator().manual_seed(seed)
    lead = (len(sac.seeds), BATCH)
    low, high = (torch.from_numpy(x).float() for x in BOUNDS)
    batch = {
        "obs": torch.randn(*lead, OBS, generator=g),
        "action": low + (high - low) * torch.rand(*lead, ACTIONS, generator=g),
        "reward": torch.randn(*lead, generator=g),
        "next_obs": torch.randn(*lead, OBS, generator=g),
        "terminated": torch.rand(*lead, generator=g) < 0.3,
        "truncated": torch.rand(*lead, generator=g) < 0.3,
    }
    return batch, torch.rand(*lead, ACTIONS, generator=g)


def scatter(sac: SAC) -> None:
    """Make targets and temperatures differ from where they begin."""
    g = torch.Generator().manual_seed(9)
    sac.target.add_(0.3 * torch.randn(sac.target.shape, generator=g))
    with torch.no_grad():
        sac.temperature.flat.copy_(torch.tensor([-1.0, -0.5])[: len(sac.seeds)])


def constant(nets: Replicates, flat: Tensor, value: list[float]) -> None:
    """Make networks say ``value`` whatever they see."""
    flat.detach().zero_()
    last = max(name for name in nets.params if name.endswith("bias"))
    nets.views(flat)[last].copy_(torch.tensor(value))


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("tau", 0.0),
        ("tau", 1.5),
        ("learning_rate", 0.0),
        ("critic_learning_rate", -1.0),
        ("alpha_learning_rate", 0.0),
        ("batch_size", 0),
        ("train_every", 0),
        ("learning_starts", -1),
        ("alpha", 0.0),
        ("target_entropy", float("inf")),
        ("hidden", (64, 0)),
        ("max_grad_norm", 0.0),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        SACConfig(**{key: value})


def test_a_temperature_of_zero_can_be_fixed() -> None:
    assert SACConfig(alpha=0.0, learn_alpha=False).alpha == 0
    with pytest.raises(ConfigError, match="alpha must be at least 0, got -1"):
        SACConfig(alpha=-1.0, learn_alpha=False)


@pytest.mark.parametrize("low", [-np.inf, 2.0, np.nan])
def test_bounds_must_be_finite_and_in_order(low: float) -> None:
    with pytest.raises(ConfigError, match="bounds must be finite and in order"):
        SAC(OBS, 1, 1, [0], bounds=(np.array([low]), np.array([2.0])))


def test_a_buffer_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="buffer_size must be at least 9 here, got 8"):
        learner(num_envs=9, buffer_size=8)


def test_the_usual_target_entropy_is_that_of_actions_between_minus_one_and_one() -> None:
    assert learner().target_entropy == pytest.approx(-2 + math.log(2.0) + math.log(0.25))
    assert learner(target_entropy=0.7).target_entropy == 0.7


# Acting -------------------------------------------------------------------------------------------


def test_actions_are_uniform_first_and_then_drawn_from_the_policy() -> None:
    sac = learner(num_envs=500, learning_starts=1000, buffer_size=1000)
    obs = np.zeros((1000, 1, OBS), np.float32)
    first = sac.act(obs, {})
    assert first.shape == (1000, 1, ACTIONS) and first.dtype == np.float32
    for j, (low, high) in enumerate(zip(*BOUNDS, strict=True)):
        found = (first[:, 0, j] - low) / (high - low)
        assert stats.kstest(found, "uniform").pvalue > 1e-3
    constant(sac.actor, sac.actor.flat, [0.3, -0.2, -1.0, -2.0])
    sac.steps = 1000
    then = sac.act(obs, {})[:, 0]
    middle, half = (BOUNDS[0] + BOUNDS[1]) / 2, (BOUNDS[1] - BOUNDS[0]) / 2
    before = np.arctanh((then - middle) / half)
    for j, (mean, log_std) in enumerate([(0.3, -1.0), (-0.2, -2.0)]):
        assert stats.kstest(before[:, j], stats.norm(mean, math.exp(log_std)).cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        sac.policy()(obs, {})[0, 0], middle + half * np.tanh([0.3, -0.2]), rtol=1e-5
    )


def test_actions_never_leave_their_bounds() -> None:
    for shift in (-50.0, 50.0):
        sac = learner()
        constant(sac.actor, sac.actor.flat, [shift, shift, 2.0, 2.0])
        obs = np.zeros((4, 1, OBS), np.float32)
        for act in (sac.act, sac.policy(), sac.policy(sampled=True)):
            action = act(obs, {})
            assert (action >= BOUNDS[0].astype("f")).all()
            assert (action <= BOUNDS[1].astype("f")).all()


def test_judging_disturbs_nothing_and_is_the_same_each_time() -> None:
    sac = learner()
    obs = np.random.default_rng(0).normal(size=(10, 1, OBS)).astype(np.float32)
    before = {k: v.state_dict()["count"].copy() for k, v in sac.streams.items()}
    runs = [[sac.policy(sampled=s)(obs, {}) for _ in range(2)] for s in (False, True)]
    for twice in runs:
        np.testing.assert_array_equal(*twice)
    assert not np.allclose(runs[0][0], runs[1][0])
    for name, streams in sac.streams.items():
        np.testing.assert_array_equal(streams.state_dict()["count"], before[name])


def test_standard_deviations_are_bounded_and_reach_the_draws() -> None:
    sac = learner()
    constant(sac.actor, sac.actor.flat, [0.0, 0.0, 9.0, -90.0])
    assert sac.pi(torch.zeros(2, 1, OBS)).log_std[0, 0].tolist() == [2.0, -20.0]


# Losses -------------------------------------------------------------------------------------------


def test_ends_do_not_bootstrap_and_time_limits_do() -> None:
    """Twins say 3 and 5, the policy is known, so the target is r, or r + γ (3 - α log π)."""
    sac = learner((0,), gamma=0.5)
    sac.target.zero_()
    for name, value in (("first", 3.0), ("second", 5.0)):
        sac.critic.views(sac.target)[f"{name}.2.bias"].fill_(value)
    constant(sac.actor, sac.actor.flat, [0.0, 0.0, 0.0, 0.0])
    with torch.no_grad():
        sac.temperature.flat.fill_(math.log(0.2))
    batch, noise = random_batch(sac)
    batch["reward"] = torch.ones(1, BATCH)
    batch["terminated"] = torch.tensor([[False, True, False, True, False, False]])
    batch["truncated"] = torch.tensor([[False, False, True, True, True, False]])
    noise = torch.full_like(noise, 0.5)  # so that the action is the middle, where tanh has slope 1
    log_prob = -2 * 0.5 * math.log(2 * math.pi) - math.log(2.0) - math.log(0.25)
    on, over = 1 + 0.5 * (3 - 0.2 * log_prob), 1.0
    target = sac.soft_target(batch, noise)
    assert target[0].tolist() == pytest.approx([on, over, on, over, on, on])


def slow(sac: SAC, r: int) -> tuple[Any, list[Any], list[Any]]:
    """Return plain networks of replicate r: the actor, the critics, their targets."""

    def load(nets: Replicates, flat: Tensor, part: str, *sizes: Any) -> Any:
        net = mlp(*sizes)
        views = {k: v[r].clone() for k, v in nets.views(flat).items() if k.startswith(part)}
        net.load_state_dict({k.removeprefix(part): v for k, v in views.items()})
        return net

    h = sac.config.hidden
    actor = load(sac.actor, sac.actor.flat, "", OBS, h, 2 * ACTIONS)
    critics, targets = (
        [load(sac.critic, flat, part, OBS + ACTIONS, h, 1) for part in ("first.", "second.")]
        for flat in (sac.critic.flat, sac.target)
    )
    return actor, critics, targets


def test_losses_and_gradients_equal_plain_networks() -> None:
    sac = learner()
    scatter(sac)
    batch, noise = random_batch(sac)
    low, high = (torch.from_numpy(x).float() for x in BOUNDS)
    middle, half = (low + high) / 2, (high - low) / 2
    critic_loss = sac.critic_loss(batch, noise)
    sac.critic.backward(critic_loss)
    actor_loss, log_pi = sac.actor_loss(batch, noise)
    sac.actor.backward(actor_loss)
    for r in range(2):
        actor, critics, targets = slow(sac, r)
        alpha = sac.temperature.flat[r].detach().exp()
        row = {name: x[r] for name, x in batch.items()}

        def draw(obs: Tensor, r: int = r, actor: Any = actor) -> tuple[Tensor, Tensor]:
            policy = SquashedGaussian(actor(obs), low, high)
            return policy.sample_with_log_prob(noise[r])

        def judge(nets: list[Any], obs: Tensor, action: Tensor) -> Tensor:
            x = torch.cat([obs, (action - middle) / half], dim=-1)
            return torch.stack([net(x).squeeze(-1) for net in nets])

        action, log_prob = draw(row["next_obs"])
        value = judge(targets, row["next_obs"], action).amin(0) - alpha * log_prob
        going = (~row["terminated"]).float()
        target = (row["reward"] + 0.99 * going * value).detach()
        q = judge(critics, row["obs"], row["action"])
        losses = 0.5 * (q - target).square().mean(1)
        torch.testing.assert_close(critic_loss[r], losses.sum())
        losses.sum().backward()
        for part, critic in zip(("first", "second"), critics, strict=True):
            for name, p in critic.named_parameters():
                torch.testing.assert_close(sac.critic.grads[f"{part}.{name}"][r], p.grad)
        action, log_prob = draw(row["obs"])
        actor.zero_grad()
        loss = (alpha * log_prob - judge(critics, row["obs"], action).amin(0)).mean()
        torch.testing.assert_close(actor_loss[r], loss)
        torch.testing.assert_close(log_pi[r], log_prob.mean())
        loss.backward()
        for name, p in actor.named_parameters():
            torch.testing.assert_close(sac.actor.grads[name][r], p.grad)


def test_each_loss_reaches_its_own_network_alone() -> None:
    sac = learner()
    scatter(sac)
    batch, noise = random_batch(sac)
    nets = {"actor": sac.actor, "critic": sac.critic, "temperature": sac.temperature}
    log_prob = torch.zeros(2)
    for mine, loss in [
        ("critic", lambda: sac.critic_loss(batch, noise)),
        ("actor", lambda: sac.actor_loss(batch, noise)[0]),
        ("temperature", lambda: sac.temperature_loss(log_prob)),
    ]:
        for net in nets.values():
            net.zero_grad()
        loss().sum().backward()
        for name, net in nets.items():
            assert net.flat.grad is not None
            reached = [bool((g != 0).any()) for g in net.grads.values()]
            assert all(reached) if name == mine else not any(reached), (mine, name)
        assert not sac.target.requires_grad and sac.target.grad is None


def test_a_saturated_actor_still_learns() -> None:
    """Far out, tanh passes next to nothing back; the entropy of the true density does."""
    sac = learner()
    constant(sac.actor, sac.actor.flat, [30.0, -30.0, 0.0, 0.0])
    loss, _ = sac.actor_loss(*random_batch(sac))
    assert loss.isfinite().all()
    sac.actor.backward(loss)
    gradient = sac.actor.grads["2.bias"]
    assert gradient.isfinite().all()
    assert (gradient[:, 0] > 1).all() and (gradient[:, 1] < -1).all()  # towards the middle


def test_order_of_the_batch_does_not_matter() -> None:
    sac = learner()
    batch, noise = random_batch(sac)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] for name, value in batch.items()}
    other = noise[:, order]
    torch.testing.assert_close(sac.critic_loss(shuffled, other), sac.critic_loss(batch, noise))
    torch.testing.assert_close(sac.actor_loss(shuffled, other), sac.actor_loss(batch, noise))
    torch.testing.assert_close(
        sac.soft_target(shuffled, other), sac.soft_target(batch, noise)[:, order]
    )


# Learning -----------------------------------------------------------------------------------------


def test_what_should_move_moves_and_nothing_else() -> None:
    sac = learner(tau=0.25, batch_size=256, max_grad_norm=1e-3)
    feed(sac, 100)
    nets = (sac.actor, sac.critic, sac.temperature)
    before, target = [net.flat.clone() for net in nets], sac.target.clone()
    sac.learn_once()
    for net, old in zip(nets, before, strict=True):
        for name, view in net.views(old).items():
            assert (net.params[name] != view).all(), name
    torch.testing.assert_close(sac.target, 0.75 * target + 0.25 * sac.critic.flat)
    norms = [g.reshape(2, -1).norm(dim=1) for g in sac.critic.grads.values()]
    # Clipped after the gradient was made, so it is as short as asked for when the step is taken.
    torch.testing.assert_close(
        torch.stack(norms).norm(dim=0), torch.full((2,), 1e-3), rtol=0.01, atol=0
    )


def test_the_temperature_goes_where_the_entropy_asks() -> None:
    for goal, way in [(50.0, 1), (-50.0, -1)]:
        sac = learner(target_entropy=goal)
        feed(sac, 20)
        before = sac.alpha()
        assert before.tolist() == [[1.0], [1.0]]
        sac.learn_once()
        assert ((sac.alpha() - before).sign() == way).all()
    sac = learner(alpha=0.3, learn_alpha=False)
    feed(sac, 20)
    assert sac.learn_once()["alpha"] == pytest.approx([0.3, 0.3])
    assert sac.alpha().flatten().tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize("num_envs", [1, 3, 16, 50])
def test_updates_for_each_step_do_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    starts, every = 40, 16
    sac = learner((0,), num_envs, learning_starts=starts, train_every=every, batch_size=2)
    rows = (num_envs, 1)
    while sac.steps < 400:
        sac.observe(
            np.zeros((*rows, OBS), np.float32), np.zeros((*rows, ACTIONS), np.float32),
            np.zeros(rows, np.float32), np.zeros((*rows, OBS), np.float32),
            np.zeros(num_envs, bool), np.zeros(num_envs, bool), {},
        )  # fmt: skip
        figures = sac.update()
        assert sac.updates == max(0, sac.steps - starts) // every
        assert not figures or {v.shape for v in figures.values()} == {(1,)}


def test_a_replicate_is_a_run_of_its_seed_alone() -> None:
    together = learner((4, 7))
    feed(together, 20)
    for _ in range(3):
        together.learn_once()
    obs = np.random.default_rng(2).normal(size=(4, 1, OBS)).astype(np.float32)
    joint = together.act(obs, {})
    for r, seed in enumerate((4, 7)):
        rows = slice(2 * r, 2 * r + 2)
        alone = learner((seed,))
        feed(alone, 20, rows=rows)
        for _ in range(3):
            alone.learn_once()
        for name in ("actor", "critic", "temperature"):
            one, both = getattr(alone, name), getattr(together, name)
            for key, p in one.params.items():
                torch.testing.assert_close(both.params[key][r], p[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(alone.act(obs[rows], {}), joint[rows], rtol=1e-4, atol=1e-6)


def test_a_restored_learner_goes_on_exactly() -> None:
    sac = learner()
    feed(sac, 20)
    sac.learn_once()
    file = io.BytesIO()
    torch.save(sac.state_dict(), file)
    file.seek(0)
    other = learner((8, 9))
    other.load_state_dict(torch.load(file, weights_only=True))
    obs = np.random.default_rng(2).normal(size=(4, 1, OBS)).astype(np.float32)
    for each in (sac, other):
        feed(each, 5, seed=1)
        each.learn_once()
    np.testing.assert_array_equal(sac.act(obs, {}), other.act(obs, {}))
    for name in ("actor", "critic", "temperature"):
        assert torch.equal(getattr(sac, name).flat, getattr(other, name).flat)
    assert torch.equal(sac.target, other.target)
    assert (sac.steps, sac.updates) == (other.steps, other.updates)


def test_a_state_is_a_copy() -> None:
    sac = learner()
    feed(sac, 20)
    state = sac.state_dict()
    kept = {k: state[k].clone() for k in ("actor", "critic", "target", "temperature")}
    sac.learn_once()
    for name, value in kept.items():
        assert torch.equal(state[name], value)
    assert not torch.equal(sac.actor.flat, kept["actor"])


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(device: str) -> None:
    sac = learner(device=device)
    feed(sac, 10)
    assert {v.dtype for v in sac.update().values()} == {np.dtype(np.float32)}
    nets = (sac.actor, sac.critic, sac.temperature)
    tensors = [*(net.flat for net in nets), sac.target, *sac.replay.data.values()]
    assert {t.device.type for t in tensors} == {device}
    action = sac.act(np.zeros((4, 1, OBS), np.float32), {})
    assert action.dtype == np.float32 and action.shape == (4, 1, ACTIONS)


# Exact answers ------------------------------------------------------------------------------------

BEST = 0.5  # of the reward -(a - BEST)², for actions in [-2, 2]


def solve_bandit(sac: SAC) -> None:
    """Let the learner act on a world of one step with the reward -(a - BEST)², to the end."""
    play_bandit(sac, 800)
    for optimizer in sac.optimizers.values():
        optimizer.learning_rate /= 10  # so that the last steps average over the noise
    play_bandit(sac, 300)


def play_bandit(sac: SAC, steps: int) -> None:
    rows = len(sac.seeds) * sac.num_envs
    obs, over = np.ones((rows, 1, 1), np.float32), np.ones(rows, bool)
    for _ in range(steps):
        action = sac.act(obs, {})
        reward = -np.square(action[..., 0] - BEST)
        sac.observe(obs, action, reward, obs, over, ~over, {})
        sac.update()


def bandit(**changes: Any) -> SAC:
    config = SACConfig(
        learning_rate=4e-3, critic_learning_rate=8e-3, alpha_learning_rate=1e-2, hidden=(32, 32),
        batch_size=64, buffer_size=20_000, learning_starts=640, train_every=16, **changes,
    )  # fmt: skip
    return SAC(1, 1, 16, [0, 1], config, bounds=(np.array([-2.0]), np.array([2.0])))


def test_a_bandit_with_learned_temperature_is_solved() -> None:
    """A low target entropy leaves a narrow policy around the best action."""
    sac = bandit(target_entropy=-1.0, alpha=0.1)
    solve_bandit(sac)
    found = sac.policy()(np.ones((2, 1, 1), np.float32), {}).ravel()
    assert found == pytest.approx([BEST, BEST], abs=0.05)
    _, entropy = sac.pi(torch.ones(2, 4000, 1)).sample_with_log_prob(torch.rand(2, 4000, 1))
    assert (-entropy.mean(1)).tolist() == pytest.approx([-1.0, -1.0], abs=0.2)
    # For a narrow Gaussian, entropy = ½ log(2 π e σ²) and σ² = α / 2: α is known as well.
    alpha = 2 * math.exp(2 * -1.0) / (2 * math.pi * math.e)
    assert sac.alpha().flatten().tolist() == pytest.approx([alpha, alpha], rel=0.4)


def test_a_bandit_with_fixed_temperature_has_the_exact_entropy_regularised_policy() -> None:
    """The best squashed Gaussian for E[reward] + α entropy, found by quadrature and search."""
    alpha = 0.1
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = weight / weight.sum()

    def cost(x: np.ndarray) -> float:
        u = x[0] + np.exp(x[1]) * z
        log_pi = stats.norm.logpdf(z) - x[1] - np.log(2 * (1 - np.tanh(u) ** 2))
        return float(weight @ (alpha * log_pi + (2 * np.tanh(u) - BEST) ** 2))

    exact = optimize.minimize(cost, np.array([0.1, -1.0]), method="Nelder-Mead", tol=1e-8).x
    # Nearly Gaussian, of variance α / 2, in the units of the action:
    assert 2 * np.tanh(exact[0]) == pytest.approx(BEST, abs=0.02)
    assert 2 * np.exp(exact[1]) == pytest.approx(math.sqrt(alpha / 2), rel=0.1)
    sac = bandit(alpha=alpha, learn_alpha=False)
    solve_bandit(sac)
    policy = sac.pi(torch.ones(2, 1, 1))
    assert policy.mean.flatten().tolist() == pytest.approx([exact[0]] * 2, abs=0.03)
    assert policy.log_std.flatten().tolist() == pytest.approx([exact[1]] * 2, abs=0.15)
