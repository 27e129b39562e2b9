"""Squashed Gaussians and Gumbel-softmax against torch's own, integrals and frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform
from torch.distributions import TransformedDistribution as Transformed

from marl_lib.nn.distributions import (
    Categorical,
    SquashedGaussian,
    gumbel,
    gumbel_softmax,
    standard_normal,
)

LOW, HIGH = torch.tensor([-2.0, 0.0, -0.5]), torch.tensor([2.0, 0.1, 3.5])


def outputs(n: int = 50, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.6 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)


def reference(output: Tensor) -> Independent:
    mean, log_std = output.chunk(2, dim=-1)
    parts = [TanhTransform(cache_size=1), AffineTransform((HIGH + LOW) / 2, (HIGH - LOW) / 2)]
    return Independent(Transformed(Normal(mean, log_std.exp()), parts), 1)


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Squashed Gaussian --------------------------------------------------------------------------------


def test_the_density_is_torchs_transformed_distribution() -> None:
    output = outputs()
    ours, torchs = SquashedGaussian(output, LOW, HIGH), reference(output)
    action, log_prob = ours.sample_with_log_prob(uniform(50, 3))
    assert log_prob.shape == (50,)  # summed over the parts
    inside = ((action > LOW + 1e-9) & (action < HIGH - 1e-9)).all(-1)
    assert inside.sum() > 40
    for found in (log_prob, ours.log_prob(action)):
        torch.testing.assert_close(found[inside], torchs.log_prob(action)[inside])
    torch.testing.assert_close(ours.sample(uniform(50, 3)), action)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.0, -1.0), (-2.0, 0.5), (0.3, -3.0)])
def test_the_density_integrates_to_one_and_to_the_shares_drawn(mean: float, log_std: float) -> None:
    """The width of the bounds is in it: without, the integral over [-2, 2] would be 2."""
    low, high = torch.tensor([-2.0]).double(), torch.tensor([2.0]).double()
    policy = SquashedGaussian(torch.tensor([mean, log_std]).double(), low, high)

    def density(a: float) -> float:
        return float(policy.log_prob(torch.tensor([a], dtype=torch.float64)).exp())

    peak = float(policy.mode())
    total, _ = integrate.quad(density, -2, 2, points=[peak], limit=200)
    below, _ = integrate.quad(density, -2, peak, limit=200)
    assert total == pytest.approx(1, abs=1e-5)
    assert below == pytest.approx(0.5, abs=1e-5)  # the mode is the median
    drawn = policy.sample(uniform(4000, 1)).squeeze(-1)
    for a in np.linspace(-1.9, 1.9, 9):
        share, _ = integrate.quad(density, -2, a, points=[peak] if a > peak else None, limit=200)
        spread = np.sqrt(max(share * (1 - share), 0) / 4000)
        assert (drawn < a).double().mean().item() == pytest.approx(share, abs=4 * spread + 1e-5)


def test_the_log_density_is_finite_and_right_where_actions_saturate() -> None:
    low, high = torch.tensor([-2.0]), torch.tensor([2.0])
    for mean in (-60.0, -12.0, 12.0, 60.0):
        output = torch.tensor([[mean, -1.0]], requires_grad=True)
        action, log_prob = SquashedGaussian(output, low, high).sample_with_log_prob(
            torch.tensor([[0.7]])
        )
        assert action.abs() == 2.0  # saturated in float32
        u = mean + np.exp(-1.0) * stats.norm.ppf(0.7)
        log_slope = np.log(4.0) - 2 * abs(u) + np.log(2.0)  # of tanh far out, and the width
        exact = stats.norm.logpdf(u, mean, np.exp(-1.0)) - log_slope
        assert log_prob.item() == pytest.approx(exact, rel=1e-5)
        (gradient,) = torch.autograd.grad(log_prob.sum(), output)
        # d log π / d mean = 2 tanh(u): the way back from the bound is not cut off
        assert gradient[0, 0].item() == pytest.approx(2 * np.sign(mean), rel=1e-5)
        assert gradient.isfinite().all()
    policy = SquashedGaussian(torch.zeros(1, 2), low, high)
    for bound in (-2.0, 2.0):
        assert policy.log_prob(torch.tensor([[bound]])).isfinite().all()


def test_extreme_noise_stays_finite() -> None:
    noise = torch.tensor([0.0, 1e-30, 0.5, 1.0])
    for found in (standard_normal(noise), gumbel(noise)):
        assert found.isfinite().all()
        assert (found.diff() >= 0).all() and found[-1] > found[-2]


def test_gradients_of_a_draw_are_those_of_torch() -> None:
    ours, other = outputs().requires_grad_(), outputs().requires_grad_()
    action, log_prob = SquashedGaussian(ours, LOW, HIGH).sample_with_log_prob(uniform(50, 3))
    mean, log_std = other.chunk(2, dim=-1)
    u = mean + log_std.exp() * standard_normal(uniform(50, 3))
    a = (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * u.tanh()
    correction = ((HIGH - LOW) / 2 * (1 - u.tanh() ** 2)).log()
    expected = (Normal(mean, log_std.exp()).log_prob(u) - correction).sum(-1)
    weight = torch.linspace(-1, 1, 50)
    (weight * (log_prob + action.sum(-1))).sum().backward()
    (weight * (expected + a.sum(-1))).sum().backward()
    assert (u.abs() < 15).all()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_batch_does_not_matter() -> None:
    output, noise, order = outputs(), uniform(50, 3), torch.randperm(50)
    _, log_prob = SquashedGaussian(output, LOW, HIGH).sample_with_log_prob(noise)
    _, other = SquashedGaussian(output[order], LOW, HIGH).sample_with_log_prob(noise[order])
    torch.testing.assert_close(other, log_prob[order])


# Gumbel-softmax -----------------------------------------------------------------------------------


def test_draws_are_one_hot_and_as_frequent_as_softmax_says() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0])
    draws = gumbel_softmax(logits.expand(20_000, 5), uniform(20_000, 5).float(), 0.7)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.sum(-1) == 1).all()
    counts = draws.sum(0).numpy()
    assert counts[2] == 0
    legal = [0, 1, 3, 4]
    expected = logits.softmax(-1).double().numpy()[legal]
    assert stats.chisquare(counts[legal], 20_000 * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_way_back_is_that_of_the_soft_draw(temperature: float) -> None:
    noise, weight = uniform(7, 4), uniform(7, 4, seed=2)
    ours = outputs()[:7, :4].clone().requires_grad_()
    other = ours.detach().clone().requires_grad_()
    (weight * gumbel_softmax(ours, noise, temperature)).sum().backward()
    soft = ((other - (-noise.log()).log()) / temperature).softmax(-1)
    (weight * soft).sum().backward()
    assert other.grad is not None and other.grad.abs().min() > 0
    torch.testing.assert_close(ours.grad, other.grad)


def test_what_must_not_be_drawn_gets_no_gradient() -> None:
    logits = torch.zeros(6, 3, requires_grad=True)
    masked = logits.masked_fill(torch.tensor([False, True, False]), -torch.inf)
    (
        gumbel_softmax(masked, uniform(6, 3).float()) * torch.tensor([1.0, 5.0, -2.0])
    ).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[:, 1] == 0).all() and (logits.grad[:, 0] != 0).all()


def test_no_noise_draws_what_has_no_probability() -> None:
    """Not even a number that rounds to 1: the illegal actions of a mask often stand last."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2_000, 7, generator=generator)
    logits[:, 4:] = -torch.inf
    for noise in (1.0, 1 - 2**-24, 0.999999, 0.0):
        action = Categorical(logits).sample(torch.full((2_000, 1), noise))
        assert action.max() <= 3, noise
