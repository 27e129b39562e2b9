"""Soft actor-critic against numbers made by hand, plain networks and exact optima."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import BOX, OBS, full, learner, loss_of, networks, scatter
from scipy import optimize, stats
from torch import Tensor

from marl_lib.algorithms.sac import SAC, SACConfig
from marl_lib.config import ConfigError
from marl_lib.nn.distributions import SquashedGaussian
from marl_lib.spec import Spec

LOW, HIGH = (torch.from_numpy(x) for x in BOX)
MIDDLE, HALF = (LOW + HIGH) / 2, (HIGH - LOW) / 2
ALONE = Spec(OBS, 2, 1, BOX)


def constant(net: Any, bias: list[float], role: str = "fixed", part: str = "") -> None:
    """Make networks say ``bias`` whatever they see."""
    for key, p in net.roles[role].items():
        if key.startswith(part):
            p.detach().zero_()
        if key == f"{part}network.head.bias":
            p.detach().copy_(torch.tensor(bias))


# Settings -----------------------------------------------------------------------------------------


def test_a_temperature_of_zero_can_be_fixed() -> None:
    assert SACConfig(alpha=0.0, learn_alpha=False).alpha == 0
    with pytest.raises(ConfigError, match="alpha must be at least 0, got -1"):
        SACConfig(alpha=-1.0, learn_alpha=False)
    with pytest.raises(ConfigError, match="alpha must be positive, got 0"):
        SACConfig(alpha=0.0)


def test_the_usual_target_entropy_is_that_of_actions_between_minus_one_and_one() -> None:
    expected = -2 + math.log(2.0) + math.log(0.25)
    assert learner("sac").target_entropy == pytest.approx(expected)
    assert learner("sac", target_entropy=0.7).target_entropy == 0.7


# Acting -------------------------------------------------------------------------------------------


def test_actions_are_uniform_first_and_then_drawn_from_the_policy() -> None:
    sac = learner("sac", num_envs=500, spec=ALONE, learning_starts=1000, buffer_size=1000)
    obs = np.zeros((1000, 1, OBS), np.float32)
    first = sac.act(obs, {})[0]
    for j, (low, high) in enumerate(zip(*BOX, strict=True)):
        found = (first[:, 0, j] - low) / (high - low)
        assert stats.kstest(found, "uniform").pvalue > 1e-3
    constant(sac.nets["actor"], [0.3, -0.2, -1.0, -2.0])
    sac.steps = 1000
    then = sac.act(obs, {})[0][:, 0]
    before = np.arctanh((then - MIDDLE.numpy()) / HALF.numpy())
    for j, (mean, log_std) in enumerate([(0.3, -1.0), (-0.2, -2.0)]):
        assert stats.kstest(before[:, j], stats.norm(mean, math.exp(log_std)).cdf).pvalue > 1e-3
    greedy = MIDDLE.numpy() + HALF.numpy() * np.tanh([0.3, -0.2])
    np.testing.assert_allclose(sac.policy()(obs, {})[0, 0], greedy, rtol=1e-5)


def test_saturated_actions_never_leave_their_bounds() -> None:
    for shift in (-50.0, 50.0):
        sac = learner("sac")
        constant(sac.nets["actor"], [shift, shift, 2.0, 2.0])
        obs = np.zeros((8, 2, OBS), np.float32)
        policies = sac.policy(), sac.policy(sampled=True)
        for action in (sac.act(obs, {})[0], *(policy(obs, {}) for policy in policies)):
            assert (action >= BOX[0]).all() and (action <= BOX[1]).all()


def test_standard_deviations_are_bounded() -> None:
    sac = learner("sac")
    assert sac.pi(torch.tensor([0.0, 0.0, 9.0, -90.0])).log_std.tolist() == [2.0, -20.0]


# Losses -------------------------------------------------------------------------------------------


def test_ends_do_not_bootstrap_and_time_limits_do() -> None:
    """Twins say 3 and 5, the policy is known, so the target is r, or r + γ (3 - α log π)."""
    sac = full("sac", "mlp", (0,), spec=ALONE, gamma=0.5)
    constant(sac.nets["critic"], [3.0], "target", "first.")
    constant(sac.nets["critic"], [5.0], "target", "second.")
    sac.nets["actor"].flat.detach().zero_()
    sac.nets["temperature"].flat.detach().fill_(math.log(0.2))
    batch = {n: x[:, :6] for n, x in sac.sample().items()}
    batch["reward"] = torch.ones(1, 6, 1, 1)
    batch["terminated"] = torch.tensor([0, 1, 0, 1, 0, 0]).bool().view(1, 6, 1)
    batch["truncated"] = torch.tensor([0, 0, 1, 1, 1, 0]).bool().view(1, 6, 1)
    # So that the action is the middle, where tanh has slope 1:
    batch["noise"] = torch.full_like(batch["noise"], 0.5)
    log_prob = -2 * 0.5 * math.log(2 * math.pi) - math.log(2.0) - math.log(0.25)
    on, over = 1 + 0.5 * (3 - 0.2 * log_prob), 1.0
    target = sac.lift(lambda net, b: sac.soft_target(net, net.target, b), batch)
    assert target.flatten().tolist() == pytest.approx([on, over, on, over, on, on])


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_losses_and_gradients_equal_plain_networks(share: bool) -> None:
    sac = full("sac", share_parameters=share)
    scatter(sac)
    batch = sac.sample()
    found = {}
    for name, learning in (("critic_loss", ["critic"]), ("actor_loss", ["actor", "temperature"])):
        for net in learning:
            sac.nets[net].zero_grad()
        found[name] = loss_of(sac, batch, name)
        found[name].sum().backward()
    for r in range(2):
        actors = networks(sac, "actor", r)
        parts = ("first", "second")
        critics, targets = (
            [networks(sac, "critic", r, role, part) for part in parts]
            for role in ("fixed", "target")
        )
        log_alpha = sac.nets["temperature"].flat[r].detach().clone().requires_grad_()
        row = {name: x[r, :, 0] for name, x in batch.items()}
        half = {"after": row["noise"].chunk(2, -1)[0], "now": row["noise"].chunk(2, -1)[1]}
        critic_loss, actor_loss, log_probs = [], [], []
        for i in range(2):

            def draw(obs: Tensor, when: str, i: int = i) -> tuple[Tensor, Tensor]:
                policy = SquashedGaussian(actors[i](obs), LOW, HIGH)  # noqa: B023
                return policy.sample_with_log_prob(half[when][:, i])  # noqa: B023

            def judge(nets: list[Any], obs: Tensor, action: Tensor, i: int = i) -> Tensor:
                x = torch.cat([obs, (action - MIDDLE) / HALF], dim=-1)
                return torch.stack([net[i](x).squeeze(-1) for net in nets])

            action, log_prob = draw(row["next_obs"][:, i], "after")
            value = judge(targets, row["next_obs"][:, i], action).amin(0)
            value = value - log_alpha.exp() * log_prob
            goal = row["reward"][:, i] + 0.99 * (~row["terminated"]).float() * value
            q = judge(critics, row["obs"][:, i], row["action"][:, i])
            critic_loss.append(0.5 * (q - goal.detach()).square().sum(0).mean())
            action, log_prob = draw(row["obs"][:, i], "now")
            q = judge(critics, row["obs"][:, i], action).amin(0)
            actor_loss.append((log_alpha.exp().detach() * log_prob - q).mean())
            log_probs.append(log_prob.detach().mean())
        whole = 0.5 if share else 1.0  # a network for all learns from the mean
        gap = torch.stack(log_probs).mean() + sac.target_entropy
        losses = {
            "critic_loss": whole * torch.stack(critic_loss).sum(),
            "actor_loss": whole * torch.stack(actor_loss).sum() - log_alpha.exp() * gap,
        }
        for name, loss in losses.items():
            torch.testing.assert_close(found[name][r], loss)
        losses["critic_loss"].backward()
        for part, critic in zip(parts, critics, strict=True):
            for key, p in critic[0].params.items():
                grad = sac.nets["critic"].grads[f"{part}.network.{key}"][r]
                torch.testing.assert_close(grad, p.grad, msg=key)
        losses["actor_loss"].backward()
        for key, p in actors[0].params.items():
            grad = sac.nets["actor"].grads[f"network.{key}"][r]
            torch.testing.assert_close(grad, p.grad, msg=key)
        grad = sac.nets["temperature"].grads["log_alpha"][r]
        torch.testing.assert_close(grad, log_alpha.grad)


def test_a_saturated_actor_still_learns() -> None:
    """Far out, tanh passes next to nothing back; the entropy of the true density does."""
    sac = full("sac", spec=ALONE)
    constant(sac.nets["actor"], [30.0, -30.0, 0.0, 0.0])
    loss = loss_of(sac, sac.sample(), "actor_loss")
    assert loss.isfinite().all()
    loss.sum().backward()
    gradient = sac.nets["actor"].grads["network.head.bias"]
    assert gradient.isfinite().all()
    assert (gradient[:, 0] > 1).all() and (gradient[:, 1] < -1).all()  # towards the middle


def alpha_of(sac: SAC) -> list[float]:
    found: list[float] = sac.nets["temperature"].flat.detach().exp().tolist()
    return found


def test_the_temperature_goes_where_the_entropy_asks() -> None:
    for goal, way in [(50.0, 1), (-50.0, -1)]:
        sac = full("sac", target_entropy=goal)
        assert alpha_of(sac) == [1.0, 1.0]
        sac.learn_once()
        assert [np.sign(a - 1.0) for a in alpha_of(sac)] == [way, way]
    sac = full("sac", alpha=0.3, learn_alpha=False)
    assert "temperature" not in sac.nets
    assert sac.learn_once()["alpha"].tolist() == pytest.approx([0.3, 0.3])


# Exact answers ------------------------------------------------------------------------------------

BEST = 0.5  # of the reward -(a - BEST)², for actions in [-2, 2]


def play_bandit(sac: SAC, steps: int) -> None:
    """Let the learner act on a world of one step with the reward -(a - BEST)²."""
    rows = sac.replicates * sac.num_envs
    obs, over = np.ones((rows, 1, 1), np.float32), np.ones(rows, bool)
    for _ in range(steps):
        action, stored = sac.act(obs, {})
        reward = -np.square(action[..., 0] - BEST)
        sac.observe(stored, reward, over, ~over, {"final_obs": obs})
        sac.update()


def solved_bandit(**changes: Any) -> tuple[SAC, SquashedGaussian]:
    """Return a learner that has played to the end, and its policies."""
    config = SACConfig(
        learning_rate=4e-3, critic_learning_rate=8e-3, alpha_learning_rate=1e-2,
        encoder={"hidden": (32, 32)}, batch_size=64, buffer_size=20_000, learning_starts=640,
        train_every=16, **changes,
    )  # type: ignore[arg-type] # fmt: skip
    box = np.array([-2.0], np.float32), np.array([2.0], np.float32)
    sac = SAC(Spec(1, 1, 1, box), 16, [0, 1], config)
    play_bandit(sac, 800)
    low = {name: rate / 10 for name, rate in sac.learning_rates().items()}
    sac.learning_rates = lambda: low  # type: ignore[method-assign]
    play_bandit(sac, 300)  # so that the last steps average over the noise
    return sac, sac.pi(sac.outputs(torch.ones(2, 1, 1, 1)))


def test_a_bandit_with_learned_temperature_is_solved() -> None:
    """A low target entropy leaves a narrow policy around the best action."""
    sac, policy = solved_bandit(target_entropy=-1.0, alpha=0.1)
    found = sac.policy()(np.ones((2, 1, 1), np.float32), {}).ravel()
    assert found == pytest.approx([BEST, BEST], abs=0.05)
    noise = torch.rand(2, 4000, 1, 1, generator=torch.Generator().manual_seed(0))
    _, log_prob = policy.sample_with_log_prob(noise)
    assert (-log_prob.mean((1, 2))).tolist() == pytest.approx([-1.0, -1.0], abs=0.2)
    # For a narrow Gaussian, entropy = ½ log(2 π e σ²) and σ² = α / 2: α is known as well.
    alpha = 2 * math.exp(2 * -1.0) / (2 * math.pi * math.e)
    assert alpha_of(sac) == pytest.approx([alpha, alpha], rel=0.4)


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
    _, policy = solved_bandit(alpha=alpha, learn_alpha=False)
    assert policy.mean.flatten().tolist() == pytest.approx([exact[0]] * 2, abs=0.03)
    assert policy.log_std.flatten().tolist() == pytest.approx([exact[1]] * 2, abs=0.15)
