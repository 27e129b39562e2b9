"""The exercises of chapter 7, *Centralised critics*."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_lib.check.core import Case, Exercise, Mistake

# Exercise 1: the state, one's own part first ------------------------------------------------------


def _turned(obs: np.ndarray, step: int = 1) -> np.ndarray:
    n = obs.shape[1]
    order = (np.arange(n)[:, None] + step * np.arange(n)) % n
    return np.asarray(obs[:, order].reshape(len(obs), n, -1))


def _turned_backwards(obs: np.ndarray) -> np.ndarray:
    return _turned(obs, -1)


def _rolled_to_the_right(obs: np.ndarray) -> np.ndarray:
    n = obs.shape[1]
    order = (-np.arange(n)[:, None] + np.arange(n)) % n
    return np.asarray(obs[:, order].reshape(len(obs), n, -1))


def _same_for_all(obs: np.ndarray) -> np.ndarray:
    state = obs.reshape(len(obs), 1, -1)
    return np.repeat(state, obs.shape[1], axis=1)


def _own_then_the_rest_in_order(obs: np.ndarray) -> np.ndarray:
    n = obs.shape[1]
    order = np.array([[i, *(j for j in range(n) if j != i)] for i in range(n)])
    return np.asarray(obs[:, order].reshape(len(obs), n, -1))


def _not_flat(obs: np.ndarray) -> np.ndarray:
    batch, n, size = obs.shape
    return _turned(obs).reshape(batch, n, n, size)


def _numbers_mixed(obs: np.ndarray) -> np.ndarray:
    return _not_flat(obs).swapaxes(-1, -2).reshape(*obs.shape[:2], -1)


def _without_own(obs: np.ndarray) -> np.ndarray:
    return _turned(obs)[..., obs.shape[-1] :]


def _tiled(obs: np.ndarray) -> np.ndarray:
    return np.tile(obs, (1, 1, obs.shape[1]))


ch07_ex1 = Exercise(
    "Exercise 7.1",
    [
        Case((np.arange(12.0).reshape(2, 3, 2),)),
        Case((np.arange(12.0).reshape(1, 4, 3) ** 2,)),
        Case((np.arange(4.0).reshape(1, 2, 2),)),
    ],
    _turned,
    [
        Mistake(
            _turned_backwards,
            "The own part is first, but you go round the wrong way: after agent i comes agent "
            "i + 1.",
        ),
        Mistake(
            _rolled_to_the_right,
            "For agents beyond the first, the own part is not in front: turning by i to the right "
            "brings agent N - i there. Turn to the left.",
        ),
        Mistake(
            _same_for_all,
            "All agents see the same here, as in `central`. Turn it, so that each begins with its "
            "own.",
        ),
        Mistake(
            _own_then_the_rest_in_order,
            "The own part is first, but the others stand in the order of their numbers; for agent "
            "1 of three, agent 2 should come before agent 0.",
        ),
        Mistake(
            _numbers_mixed,
            "The right agents in the right order, but their numbers are dealt out in turns: keep "
            "the D numbers of one agent together.",
        ),
        Mistake(_not_flat, "Right, but for the shape: lay the last two axes side by side."),
        Mistake(_without_own, "The agent's own observation is missing; it comes first."),
        Mistake(_tiled, "Each agent sees itself N times; nobody sees the others."),
    ],
)


# Exercise 2: the temporal-difference error of a normalised critic ---------------------------------


def _td(
    reward: np.ndarray,
    value: np.ndarray,
    after: np.ndarray,
    terminated: np.ndarray,
    gamma: float,
) -> np.ndarray:
    return np.asarray(reward + gamma * np.where(terminated, 0.0, after) - value)


def _td_error(*args: Any) -> np.ndarray:
    r, v, w, d, mean, std, gamma = args
    return _td(r, mean + std * v, mean + std * w, d, gamma)


def _td_as_predicted(*args: Any) -> np.ndarray:
    r, v, w, d, _, _, gamma = args
    return _td(r, v, w, d, gamma)


def _td_without_mean(*args: Any) -> np.ndarray:
    r, v, w, d, _, std, gamma = args
    return _td(r, std * v, std * w, d, gamma)


def _td_without_scale(*args: Any) -> np.ndarray:
    r, v, w, d, mean, _, gamma = args
    return _td(r, mean + v, mean + w, d, gamma)


def _td_normalised_again(*args: Any) -> np.ndarray:
    r, v, w, d, mean, std, gamma = args
    return _td(r, (v - mean) / std, (w - mean) / std, d, gamma)


def _td_ends_at_the_mean(*args: Any) -> np.ndarray:
    r, v, w, d, mean, std, gamma = args
    after = mean + std * np.where(d, 0.0, w)
    return np.asarray(r + gamma * after - (mean + std * v))


def _td_never_ends(*args: Any) -> np.ndarray:
    r, v, w, _, mean, std, gamma = args
    return np.asarray(r + gamma * (mean + std * w) - (mean + std * v))


def _td_mean_cancels(*args: Any) -> np.ndarray:
    r, v, w, d, _, std, gamma = args
    normalised = gamma * np.where(d, 0.0, w) - v
    return np.asarray((r + normalised) * std)


def _td_next_alone(*args: Any) -> np.ndarray:
    r, v, w, d, mean, std, gamma = args
    return _td(r, v, mean + std * w, d, gamma)


def _reward_normalised(*args: Any) -> np.ndarray:
    r, v, w, d, mean, std, gamma = args
    return _td((r - mean) / std, v, w, d, gamma)


def _td_case(mean: float, std: float, gamma: float) -> Case:
    reward, value = np.array([-6.0, -5.0, -7.0, -4.0]), np.array([0.5, -1.0, 0.0, 2.0])
    after, over = np.array([-1.0, 0.25, 2.0, 1.0]), np.array([False, False, True, True])
    return Case((reward, value, after, over, mean, std, gamma))


ch07_ex2 = Exercise(
    "Exercise 7.2",
    [_td_case(-30.0, 8.0, 0.8), _td_case(5.0, 0.5, 0.99)],
    _td_error,
    [
        Mistake(
            _td_as_predicted,
            "Values of the critic are used as they are predicted. They have mean 0 and deviation "
            "1; the rewards do not.",
        ),
        Mistake(
            _td_without_mean,
            "The deviation is back, the mean is not. It would cancel only if γ were 1 and nothing "
            "ever ended.",
        ),
        Mistake(_td_without_scale, "The mean is back, but the deviation is not: V = μ + σ v."),
        Mistake(
            _td_normalised_again,
            "You normalise what is normalised already; the way back is V = μ + σ v.",
        ),
        Mistake(
            _td_ends_at_the_mean,
            "After termination nothing follows: 0 in units of reward. A *predicted* 0 means μ. "
            "Go back into units of reward first and take the value away then.",
        ),
        Mistake(_td_never_ends, "Where the episode has terminated, no value follows."),
        Mistake(
            _td_mean_cancels,
            "The error of the predictions times σ is not it: that scales the reward too, and "
            "leaves out μ.",
        ),
        Mistake(_td_next_alone, "The next value is back in units of reward; the present one too?"),
        Mistake(
            _reward_normalised,
            "You brought the reward to the critic's units, and with the statistics of returns. "
            "Bring the values to the units of the reward.",
        ),
    ],
)


# Exercise 3: slopes by one's own action -----------------------------------------------------------


def _own_slopes(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return np.asarray(-2 * (policy + replay[:, ::-1] - 1))


def _all_from_the_policy(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return _own_slopes(policy, policy)


def _all_from_the_replay(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return _own_slopes(replay, replay)


def _others_from_the_policy(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return _own_slopes(replay, policy)


def _own_twice(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return np.asarray(-2 * (policy + replay - 1))


def _downhill(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return -_own_slopes(policy, replay)


def _values(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return np.asarray(-((policy + replay[:, ::-1] - 1) ** 2))


def _half(policy: np.ndarray, replay: np.ndarray) -> np.ndarray:
    return _own_slopes(policy, replay) / 2


ch07_ex3 = Exercise(
    "Exercise 7.3",
    [
        Case((np.array([[0.2, 0.2]]), np.array([[0.9, 0.5]]))),
        Case((np.array([[0.0, 1.0], [-0.5, 0.3]]), np.array([[0.4, 0.1], [1.0, -1.0]]))),
    ],
    _own_slopes,
    [
        Mistake(
            _all_from_the_policy,
            "Both actions are the policies'. The mate's should be the one in the replay: what it "
            "did, not what it would do.",
        ),
        Mistake(
            _all_from_the_replay,
            "Both actions are the replay's, so the policy has no part in it and nothing could be "
            "learned. The own action is what the policy would do now.",
        ),
        Mistake(
            _others_from_the_policy,
            "The other way round: the own action is the policy's, the mate's is the replay's.",
        ),
        Mistake(
            _own_twice,
            "You add an agent's new action to its own old one. The mate stands in the other "
            "column.",
        ),
        Mistake(_downhill, "The sign: the slope of Q, along which the action should go up."),
        Mistake(_values, "These are the values at the right places; the slopes are asked for."),
        Mistake(_half, "The derivative of a square has a factor 2."),
    ],
)


# Exercise 4: the straight-through gradient --------------------------------------------------------


def _soft(scaled: np.ndarray) -> np.ndarray:
    y = np.exp(scaled - scaled.max())
    return np.asarray(y / y.sum())


def _slope(y: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.asarray(y * (q - y @ q))


def _through(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return _slope(_soft((x + g) / t), q) / t


def _not_divided(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return _slope(_soft((x + g) / t), q)


def _no_temperature(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return _slope(_soft(x + g), q)


def _no_gumbel(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return _slope(_soft(x / t), q) / t


def _policy_gradient(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return _slope(_soft(x), q)


def _hard_mean(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    y = _soft((x + g) / t)
    return np.asarray(y * (q - q[y.argmax()]) / t)


def _diagonal_alone(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    y = _soft((x + g) / t)
    return np.asarray(y * (1 - y) * q / t)


def _q_alone(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    y = _soft((x + g) / t)
    return np.asarray(y * q / t)


def _hard_jacobian(x: np.ndarray, g: np.ndarray, q: np.ndarray, t: float) -> np.ndarray:
    return np.zeros_like(q)


_A = (np.array([0.0, 0.0]), np.log([3.0, 1.0]), np.array([2.0, 6.0]), 1.0)
_B = (
    np.array([0.5, -1.0, 0.2]),
    np.array([-0.3, 1.5, 0.1]),
    np.array([1.0, 4.0, -2.0]),
    0.5,
)

ch07_ex4 = Exercise(
    "Exercise 7.4",
    [Case(_A), Case(_B)],
    _through,
    [
        Mistake(
            _not_divided,
            "Nearly: the logits are divided by the temperature before the softmax, so the chain "
            "rule divides the slope by it too.",
        ),
        Mistake(_no_temperature, "The temperature has no part in yours."),
        Mistake(
            _no_gumbel,
            "The Gumbel numbers are missing: the softmax on the way back is of the same sum whose "
            "maximum was taken on the way there.",
        ),
        Mistake(
            _policy_gradient,
            "This is the exact policy gradient, an average over draws. Asked for is what one draw "
            "says, with its Gumbel numbers and the temperature.",
        ),
        Mistake(
            _hard_mean,
            "The soft action stands in both places: what is subtracted is Σ y q, not the value of "
            "the action that was drawn.",
        ),
        Mistake(
            _diagonal_alone,
            "A logit moves all parts of a softmax. You have the diagonal of its derivative alone.",
        ),
        Mistake(_q_alone, "Where is what the other actions lose? Subtract Σ y q from q."),
        Mistake(
            _hard_jacobian,
            "That is the true derivative of a choice. Straight-through puts the softmax's in its "
            "place.",
        ),
    ],
)


# Exercise 5: how much noise the counterfactual baseline takes away --------------------------------


def _noise(advantage: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """Return the summed variances of score × advantage over all pairs of actions."""
    chance, scores = np.outer(p, q), np.eye(len(p)) - p
    says = scores[:, None] * advantage[..., None]  # (A, A', A)
    mean = np.einsum("ij,ijk->k", chance, says)
    return float(np.einsum("ij,ijk->", chance, (says - mean) ** 2))


def _noise_ratio(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    return _noise(payoff - p @ payoff @ q, p, q) / _noise(payoff - p @ payoff, p, q)


def _upside_down(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    return 1 / _noise_ratio(payoff, p, q)


def _without_baseline(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    return _noise(payoff, p, q) / _noise(payoff - p @ payoff, p, q)


def _mean_of_the_row(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    biased = payoff - (payoff @ q)[:, None]
    return _noise(payoff - p @ payoff @ q, p, q) / _noise(biased, p, q)


def _unweighted_columns(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    return _noise(payoff - p @ payoff @ q, p, q) / _noise(payoff - payoff.mean(0), p, q)


def _second_moments(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    chance, length = np.outer(p, q), ((np.eye(len(p)) - p) ** 2).sum(1)[:, None]

    def moment(advantage: np.ndarray) -> float:
        return float((chance * length * advantage**2).sum())

    return moment(payoff - p @ payoff @ q) / moment(payoff - p @ payoff)


def _of_advantages(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    chance = np.outer(p, q)
    plain, counter = payoff - p @ payoff @ q, payoff - p @ payoff
    return float((chance * plain**2).sum() / (chance * counter**2).sum())


def _as_if_uniform(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    even = np.full(len(p), 1 / len(p)), np.full(len(q), 1 / len(q))
    return _noise_ratio(payoff, *even)


def _deviations(payoff: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sqrt(_noise_ratio(payoff, p, q)))


ch07_ex5 = Exercise(
    "Exercise 7.5",
    [
        Case((np.array([[0.0, 8.0], [2.0, 14.0]]), np.full(2, 0.5), np.full(2, 0.5))),
        Case(
            (
                np.array([[11.0, -30, 0], [-30, 7, 6], [0, 0, 5]]),
                np.array([0.2, 0.5, 0.3]),
                np.array([0.1, 0.3, 0.6]),
            )
        ),
        Case(
            (
                np.array([[1.0, 4.0, 9.0], [0.0, 6.0, 7.0]]),
                np.array([0.7, 0.3]),
                np.array([0.5, 0.2, 0.3]),
            )
        ),
    ],
    _noise_ratio,
    [
        Mistake(_upside_down, "Upside down: the noise with V over the noise that is left."),
        Mistake(
            _without_baseline,
            "The numerator has no baseline at all. It should have V, the expected payoff.",
        ),
        Mistake(
            _mean_of_the_row,
            "You subtract the mean of the *row*, over the mate's actions. That depends on agent "
            "0's own action, so it is biased. Average over the own action, for the mate's given.",
        ),
        Mistake(
            _unweighted_columns,
            "The mean of the column counts every own action alike; weigh each by π(a).",
        ),
        Mistake(
            _second_moments,
            "These are second moments: the square of the mean, which is the gradient itself, must "
            "be taken off both.",
        ),
        Mistake(
            _of_advantages,
            "This compares the advantages. The noise is that of score times advantage.",
        ),
        Mistake(
            _as_if_uniform,
            "You average as if all actions were equally likely; use p and q.",
        ),
        Mistake(_deviations, "A ratio of variances is asked for, not of deviations."),
    ],
)
