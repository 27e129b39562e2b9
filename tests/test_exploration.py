"""How often, and among what, learners draw at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_lib.exploration import decay, epsilon_greedy, remaining


def noise(rows: int, agents: int, seed: int = 0) -> Tensor:
    """Return uniform numbers (rows, 2, agents)."""
    return torch.rand(rows, 2, agents, generator=torch.Generator().manual_seed(seed))


def values(best: list[int], n_actions: int, rows: int) -> Tensor:
    """Return values (rows, N, A) by which each agent's best action is the given one."""
    return torch.eye(n_actions)[torch.tensor(best)].expand(rows, -1, -1)


def test_a_decay_is_a_straight_line_and_then_flat() -> None:
    found = [decay(1.0, 0.1, 100, done) for done in (0, 50, 100, 200, 10_000)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])
    assert decay(1.0, 0.1, 0, 0) == pytest.approx(0.1)


def test_what_remains_of_a_training_falls_to_nothing() -> None:
    assert [remaining(done, 100) for done in (0, 25, 100, 200)] == [1.0, 0.75, 0.0, 0.0]
    assert remaining(10_000, None) == 1.0


def test_each_agent_explores_on_its_own_and_evenly() -> None:
    action = epsilon_greedy(values([3, 3], 4, 50_000), noise(50_000, 2), 0.4).numpy()
    share = np.stack([(action == a).mean(0) for a in range(4)])
    expected = np.array([[0.1], [0.1], [0.1], [0.7]]).repeat(2, 1)
    np.testing.assert_allclose(share, expected, atol=0.01)
    other = action != 3
    both = (other[:, 0] & other[:, 1]).mean()
    assert both == pytest.approx(0.3**2, abs=0.01)  # and not together


def test_without_epsilon_or_noise_the_best_is_taken() -> None:
    q = torch.randn(30, 2, 5, generator=torch.Generator().manual_seed(0))
    for found in (epsilon_greedy(q, noise(30, 2), 0.0), epsilon_greedy(q, None, 1.0)):
        assert torch.equal(found, q.argmax(-1))


def test_random_actions_are_legal_and_evenly_drawn_among_the_legal() -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]).bool().expand(30_000, 2, 5)
    q = values([0, 4], 5, 30_000)
    action = epsilon_greedy(q, noise(30_000, 2), 1.0, mask).numpy()
    shares = [(action[:, 0] == a).mean() for a in range(5)]
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3, 0], atol=0.01)
    assert (action[:, 1] == 4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_greatest_random_number_below_one_takes_the_last_legal_action(
    dtype: torch.dtype,
) -> None:
    edge = torch.full((1, 2, 1), 1 - torch.finfo(dtype).eps / 2, dtype=dtype)
    mask = torch.tensor([[[1, 0, 1, 1, 0]]]).bool()
    assert epsilon_greedy(values([0], 5, 1), edge, 1.0, mask).tolist() == [[3]]
    assert epsilon_greedy(values([0], 5, 1), edge, 1.0).tolist() == [[4]]
