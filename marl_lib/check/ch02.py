"""The exercises of chapter 2, *From one agent to many*."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marl_lib.check.core import Case, Exercise, Mistake

Array = np.ndarray

# Exercise 1: what the columns of a game are worth -------------------------------------------------

_GAME = np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [1.0, 2.0, 5.0]])


def _column_worth(payoff: Array, row_policy: Array) -> Array:
    return row_policy @ payoff


def _row_worth(payoff: Array, row_policy: Array) -> Array:
    return payoff @ row_policy


def _best_row(payoff: Array, row_policy: Array) -> Array:
    return payoff.max(0)


def _likeliest_row(payoff: Array, row_policy: Array) -> Array:
    return payoff[row_policy.argmax()]


def _plain_mean(payoff: Array, row_policy: Array) -> Array:
    return payoff.mean(0)


def _not_summed(payoff: Array, row_policy: Array) -> Array:
    return row_policy[:, None] * payoff


def _both_play_it(payoff: Array, row_policy: Array) -> Array:
    return np.asarray(row_policy @ payoff).sum(keepdims=True)[0]


ch02_ex1 = Exercise(
    "Exercise 2.1",
    [
        Case((_GAME, np.array([0.1, 0.3, 0.6]))),
        Case((_GAME, np.array([0.0, 1.0, 0.0]))),
        Case((np.array([[1.0, 2.0], [8.0, 4.0]]), np.array([0.25, 0.75]))),
    ],
    _column_worth,
    [
        Mistake(
            _row_worth,
            "That is what the rows are worth. The policy says how likely each row is, so sum over "
            "rows: the first axis of `payoff`.",
        ),
        Mistake(
            _best_row,
            "Agent 1 cannot count on the best row: weigh each row by how likely it is.",
        ),
        Mistake(
            _likeliest_row,
            "Agent 0 does not always play its likeliest row: weigh every row by its probability.",
        ),
        Mistake(
            _plain_mean,
            "This takes all rows to be equally likely; weigh them with `row_policy`.",
        ),
        Mistake(_not_summed, "The products are right; now sum them over the rows."),
        Mistake(_both_play_it, "One value for each column is asked for, not their sum."),
    ],
)


# Exercise 2: how often a mate explores ------------------------------------------------------------


def _some_mate(epsilon: float, n: int) -> float:
    return 1 - (1 - epsilon) ** (n - 1)


def _anyone(epsilon: float, n: int) -> float:
    return 1 - (1 - epsilon) ** n


def _added_up(epsilon: float, n: int) -> float:
    return epsilon * (n - 1)


def _added_up_with_self(epsilon: float, n: int) -> float:
    return epsilon * n


def _all_mates(epsilon: float, n: int) -> float:
    return epsilon ** (n - 1)


def _no_mate(epsilon: float, n: int) -> float:
    return (1 - epsilon) ** (n - 1)


def _exactly_one(epsilon: float, n: int) -> float:
    return (n - 1) * epsilon * (1 - epsilon) ** (n - 2)


ch02_ex2 = Exercise(
    "Exercise 2.2",
    [Case((e, n)) for e, n in ((0.05, 2), (0.05, 3), (0.3, 3), (0.5, 4), (0.05, 20))],
    _some_mate,
    [
        Mistake(
            _anyone,
            "This counts the agent itself among those who explore; it has n - 1 mates.",
        ),
        Mistake(
            _added_up,
            "Probabilities add only where events exclude each other, and two mates can explore at "
            "the same step: for many agents your sum passes 1.",
        ),
        Mistake(
            _added_up_with_self,
            "Probabilities add only where events exclude each other; and the agent is not a mate "
            "of its own.",
        ),
        Mistake(
            _all_mates, "That is the probability that all mates explore at once; one is enough."
        ),
        Mistake(_no_mate, "That is the probability that no mate explores; it remains to turn it."),
        Mistake(
            _exactly_one,
            "That is the probability of exactly one mate exploring; two or more count as well.",
        ),
    ],
)


# Exercise 3: a shared reward ----------------------------------------------------------------------


def _share(reward: Array) -> Array:
    return np.repeat(reward.mean(1, keepdims=True), reward.shape[1], 1)


def _sum_to_each(reward: Array) -> Array:
    return np.repeat(reward.sum(1, keepdims=True), reward.shape[1], 1)


def _one_a_team(reward: Array) -> Array:
    return reward.mean(1)


def _kept_axis(reward: Array) -> Array:
    return reward.mean(1, keepdims=True)


def _over_environments(reward: Array) -> Array:
    return np.repeat(reward.mean(0, keepdims=True), len(reward), 0)


def _over_everything(reward: Array) -> Array:
    return np.full_like(reward, reward.mean())


def _unshared(reward: Array) -> Array:
    return reward / reward.shape[1]


ch02_ex3 = Exercise(
    "Exercise 2.3",
    [
        Case((np.array([[10.0, -0.25, 0.0], [2.0, 3.0, 4.0]]),)),
        Case((np.array([[1.0, 3.0], [0.0, -2.0], [5.0, 5.0], [8.0, 0.0]]),)),
    ],
    _share,
    [
        Mistake(
            _sum_to_each,
            "All agents of a team receive the same, but together N times what the team earned: "
            "the sum must not change.",
        ),
        Mistake(
            _one_a_team,
            "The figures are right, one a team; every agent must be given its own, (B, N).",
        ),
        Mistake(
            _kept_axis,
            "The figures are right, but the shape is (B, 1); every agent must be given its own.",
        ),
        Mistake(
            _over_environments,
            "This shares between environments, which have nothing to do with each other; share "
            "between the agents of each, axis 1.",
        ),
        Mistake(
            _over_everything,
            "This is one figure for all environments; each team shares what it earned itself.",
        ),
        Mistake(_unshared, "Now each agent has a part of its own reward; add those of its mates."),
    ],
)


# Exercise 4: the hysteretic update ----------------------------------------------------------------


def _hysteretic(value: Array, reward: Array, up: float, down: float) -> Array:
    error = np.asarray(reward) - value
    return value + np.where(error >= 0, up, down) * error


def _rates_swapped(value: Array, reward: Array, up: float, down: float) -> Array:
    return _hysteretic(value, reward, down, up)


def _always_up(value: Array, reward: Array, up: float, down: float) -> Array:
    return _hysteretic(value, reward, up, up)


def _never_down(value: Array, reward: Array, up: float, down: float) -> Array:
    return _hysteretic(value, reward, up, 0.0)


def _sign_of_reward(value: Array, reward: Array, up: float, down: float) -> Array:
    reward = np.asarray(reward)
    return value + np.where(reward >= 0, up, down) * (reward - value)


def _falls_on_bad_news_upwards(value: Array, reward: Array, up: float, down: float) -> Array:
    error = np.asarray(reward) - value
    return value + np.where(error >= 0, up, -down) * error


def _just_the_change(value: Array, reward: Array, up: float, down: float) -> Array:
    return _hysteretic(value, reward, up, down) - value


ch02_ex4 = Exercise(
    "Exercise 2.4",
    [
        Case((2.0, 7.0, 0.1, 0.01)),
        Case((2.0, -30.0, 0.1, 0.01)),
        Case((5.0, 3.0, 0.5, 0.1)),
        Case((-4.0, -1.0, 0.5, 0.1)),
        Case((1.0, 1.0, 0.1, 0.01)),
        Case(
            (np.array([0.0, 5.0]), np.array([11.0, -30.0]), 0.1, 0.01),
            "Right for one value, but not for an array of them, each with its own rate: "
            "np.where chooses element by element.",
        ),
    ],
    _hysteretic,
    [
        Mistake(
            _rates_swapped,
            "The rates have changed places: `up` is for a reward better than expected.",
        ),
        Mistake(_always_up, "This always learns with the rate `up`; disappointments take `down`."),
        Mistake(_never_down, "Disappointments are not forgotten altogether: they take `down`."),
        Mistake(
            _sign_of_reward,
            "The rate depends on the sign of the reward here. It should depend on whether the "
            "reward is better or worse than the value expected.",
        ),
        Mistake(
            _falls_on_bad_news_upwards,
            "After a disappointment the value must fall, if slowly; yours rises.",
        ),
        Mistake(_just_the_change, "That is the change of the value; return the new value."),
    ],
)


# Exercise 5: to the nearest target ----------------------------------------------------------------

UP, DOWN, LEFT, RIGHT, STAY = range(5)


def _walk(
    targets: Array, choose: Callable[[Array, Array, Array], Array], columns_first: bool = False
) -> Array:
    """Return the move towards the target that ``choose`` puts first, rows before columns."""
    seen, down, right = np.moveaxis(targets, -1, 0)
    index = choose(seen, down, right).argmin(-1)[..., None]
    down, right = (np.take_along_axis(x, index, -1)[..., 0] for x in (down, right))
    vertical, horizontal = np.where(down < 0, UP, DOWN), np.where(right < 0, LEFT, RIGHT)
    if columns_first:
        action = np.where(right != 0, horizontal, vertical)
    else:
        action = np.where(down != 0, vertical, horizontal)
    return np.where((seen > 0).any(-1), action, STAY)


def _distance(seen: Array, down: Array, right: Array) -> Array:
    return np.where(seen > 0, np.abs(down) + np.abs(right), np.inf)


def _nearest_target(targets: Array) -> Array:
    return _walk(targets, _distance)


def _sees_what_is_gone(targets: Array, at_zero: int = STAY) -> Array:
    everything = np.concatenate([np.ones_like(targets[..., :1]), targets[..., 1:]], -1)
    return np.where((targets[..., 0] > 0).all(-1), _walk(everything, _distance), at_zero)


def _walks_from_what_is_gone(targets: Array) -> Array:
    return _sees_what_is_gone(targets, at_zero=RIGHT)


def _first_in_the_list(targets: Array) -> Array:
    return _walk(targets, lambda seen, down, right: np.where(seen > 0, 0.0, np.inf))


def _farthest(targets: Array) -> Array:
    return _walk(
        targets,
        lambda seen, down, right: np.where(seen > 0, -np.abs(down) - np.abs(right), np.inf),
    )


def _signed_distance(targets: Array) -> Array:
    return _walk(targets, lambda seen, down, right: np.where(seen > 0, down + right, np.inf))


def _wrong_way(targets: Array) -> Array:
    return np.array([DOWN, UP, RIGHT, LEFT, STAY])[_walk(targets, _distance)]


def _columns_first(targets: Array) -> Array:
    return _walk(targets, _distance, columns_first=True)


def _axes_swapped(targets: Array) -> Array:
    return _walk(targets[..., [0, 2, 1]], _distance)


_GONE = (0.0, 0.0, 0.0)
_SOME_LEFT = np.array(
    [
        [[(1, -2, 1), (1, 4, 4), (1, 0, 5)], [(1, 0, 3), (1, 2, 0), (1, -5, 1)]],
        [[(1, 1, -3), (1, -1, -2), _GONE], [_GONE, (1, 0, -6), _GONE]],
        [[(1, -5, 0), (1, 3, 3), _GONE], [(1, 5, -1), (1, 3, 1), (1, -6, 0)]],
    ]
)

ch02_ex5 = Exercise(
    "Exercise 2.5",
    [
        Case(
            (_SOME_LEFT,),
            "Some moves are not the first step towards the nearest target that is still there. "
            "Work out one agent by hand: its distances first, then the move.",
        ),
        Case(
            (np.array([[[_GONE, _GONE], [(1, -1, 0), _GONE]]]),),
            "Right while there is a target; an agent that sees none should stay.",
        ),
    ],
    _nearest_target,
    [
        Mistake(
            _sees_what_is_gone,
            "A collected target is (0, 0, 0) and so looks like the nearest of all: leave out those "
            "that are not seen.",
        ),
        Mistake(
            _walks_from_what_is_gone,
            "Leave out targets that are not seen: their (0, 0, 0) is no distance, and yours counts "
            "it as the least.",
        ),
        Mistake(_first_in_the_list, "This walks to the first target in the list, not the nearest."),
        Mistake(_farthest, "This walks to the farthest target."),
        Mistake(
            _signed_distance,
            "The distance is the sum of the *absolute* rows and columns away; yours is negative "
            "for targets above or to the left.",
        ),
        Mistake(
            _wrong_way,
            "Your agents walk away from their targets: a negative number of rows away means up.",
        ),
        Mistake(_columns_first, "Rows first, then columns: yours has the order the other way."),
        Mistake(
            _axes_swapped,
            "Rows and columns have changed places: the second number of a target is rows away.",
        ),
    ],
)
