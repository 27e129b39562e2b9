"""How often, and among what, learners draw at random."""

from __future__ import annotations

import numpy as np
import pytest

from marl_lib.exploration import decay, epsilon_greedy, remaining


def test_a_decay_is_a_straight_line_and_then_flat() -> None:
    found = [decay(1.0, 0.1, 100, done) for done in (0, 50, 100, 200, 10_000)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])
    assert decay(1.0, 0.1, 0, 0) == pytest.approx(0.1)


def test_what_remains_of_a_training_falls_to_nothing() -> None:
    assert [remaining(done, 100) for done in (0, 25, 100, 200)] == [1.0, 0.75, 0.0, 0.0]
    assert remaining(10_000, None) == 1.0


def test_each_agent_explores_on_its_own_and_evenly() -> None:
    rng = np.random.default_rng(0)
    greedy = np.full((50_000, 2), 3)
    action = epsilon_greedy(greedy, 0.4, rng.random((50_000, 4)), 4, {})
    share = np.stack([(action == a).mean(0) for a in range(4)])
    np.testing.assert_allclose(share, np.array([[0.1], [0.1], [0.1], [0.7]]) + [0, 0], atol=0.01)
    other = action != 3
    both = (other[:, 0] & other[:, 1]).mean()
    assert both == pytest.approx(0.3**2, abs=0.01)  # and not together


def test_without_epsilon_nothing_changes() -> None:
    greedy = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(epsilon_greedy(greedy, 0.0, np.zeros((3, 4)), 6, {}), greedy)


def test_random_actions_are_legal_and_evenly_drawn_among_the_legal() -> None:
    rng = np.random.default_rng(0)
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    info = {"action_mask": np.broadcast_to(mask, (30_000, 2, 5))}
    greedy = np.tile([0, 4], (30_000, 1))
    action = epsilon_greedy(greedy, 1.0, rng.random((30_000, 4)), 5, info)
    shares = [(action[:, 0] == a).mean() for a in range(5)]
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3, 0], atol=0.01)
    assert (action[:, 1] == 4).all()
    edge = epsilon_greedy(greedy, 1.0, np.full((30_000, 4), 1 - 1e-16), 5, info)
    assert (edge[:, 0] == 3).all()
