"""Returns of Q(λ) against numbers made by hand and the definition written out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from marl_lib.advantages import generalised_advantage, q_lambda_return


def slow_return(
    reward: Tensor, next_value: Tensor, terminated: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """Return the mean of n-step returns with weights (1 - λ) λⁿ⁻¹, the rest on the last, (T, B)."""
    out = torch.zeros_like(reward)
    for t, b in itertools.product(*map(range, reward.shape)):
        total, weight = 0.0, 1.0
        for later in range(t, len(reward)):
            n = later - t + 1
            total += gamma ** (n - 1) * reward[later, b].item()
            follows = 0.0 if terminated[later, b] else next_value[later, b].item()
            last = bool(ended[later, b]) or later == len(reward) - 1
            share = weight if last else weight * (1 - lam)
            out[t, b] += share * (total + gamma**n * follows)
            weight *= lam
            if last:
                break
    return out


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_return_equals_the_mean_of_n_step_returns(gamma: float, lam: float) -> None:
    g = torch.Generator().manual_seed(1)
    reward, next_value = torch.randn(2, 2, 12, 4, generator=g)  # of two replicates
    terminated, truncated = torch.rand(2, 2, 12, 4, generator=g) < 0.15
    given = (reward, next_value, terminated, terminated | truncated)
    found = q_lambda_return(*given, gamma, lam)
    for r in range(2):
        torch.testing.assert_close(found[r], slow_return(*(x[r] for x in given), gamma, lam))


def test_return_by_hand() -> None:
    """Three steps that pay 1, values of 4 everywhere, γ = λ = 1/2."""
    one, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
    middle = torch.tensor([[False], [True], [False]])

    def found(terminated: Tensor, ended: Tensor) -> list[float]:
        out = q_lambda_return(one, 4 * one, terminated, ended, 0.5, 0.5)
        return out[:, 0].tolist()

    # The last step is 1 + 0.5 × 4 = 3; before it, 1 + 0.5 (0.5 × 4 + 0.5 × what follows).
    assert found(no, no) == [1 + 0.5 * (2 + 0.5 * 2.75), 1 + 0.5 * (2 + 0.5 * 3), 3.0]
    assert found(no, middle) == [1 + 0.5 * (2 + 0.5 * 3), 3.0, 3.0]  # out of time: bootstrap
    assert found(middle, middle) == [1 + 0.5 * (2 + 0.5 * 1), 1.0, 3.0]  # the end: nothing follows


def test_an_end_without_legal_actions_is_worth_nothing() -> None:
    nothing = torch.full((2, 1), -torch.inf)
    over = torch.tensor([[True], [True]])
    out = q_lambda_return(torch.ones(2, 1), nothing, over, over, 0.9, 0.5)
    assert out.flatten().tolist() == [1.0, 1.0]


def test_one_policy_s_values_give_the_return_of_generalised_advantage() -> None:
    """Where max Q is V of the same policy, both say the same: A + V = G."""
    g = torch.Generator().manual_seed(2)
    value, reward = torch.randn(9, 3, generator=g), torch.randn(8, 3, generator=g)
    never = torch.zeros(8, 3, dtype=torch.bool)
    given = (value[1:], never, never, 0.9, 0.7)
    advantage = generalised_advantage(reward, value[:-1], *given)
    torch.testing.assert_close(q_lambda_return(reward, *given), advantage + value[:-1])
