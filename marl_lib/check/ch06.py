"""The exercises of chapter 6, *Value decomposition*."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import elu

from marl_lib.check.core import Case, Exercise, Mistake

# Exercise 1: the largest legal value --------------------------------------------------------------


def _legal_best(q: Tensor, legal: Tensor) -> Tensor:
    return q.masked_fill(~legal, -torch.inf).max(-1).values


def _mask_forgotten(q: Tensor, legal: Tensor) -> Tensor:
    return q.max(-1).values


def _multiplied(q: Tensor, legal: Tensor) -> Tensor:
    return (q * legal).max(-1).values


def _mask_turned(q: Tensor, legal: Tensor) -> Tensor:
    return _legal_best(q, ~legal)


def _which_action(q: Tensor, legal: Tensor) -> Tensor:
    return q.masked_fill(~legal, -torch.inf).argmax(-1)


def _over_the_team(q: Tensor, legal: Tensor) -> Tensor:
    return q.masked_fill(~legal, -torch.inf).amax((1, 2))


def _summed_over_the_team(q: Tensor, legal: Tensor) -> Tensor:
    return _legal_best(q, legal).sum(-1)


ch06_ex1 = Exercise(
    "Exercise 6.1",
    [
        Case(
            (
                torch.tensor([[[3.0, 5.0, 1.0], [-4.0, -2.0, -3.0]]]),
                torch.tensor([[[True, False, True], [True, False, True]]]),
            )
        ),
        Case(
            (
                torch.tensor([[[0.5, 0.2], [-1.0, -2.0]], [[2.0, 7.0], [4.0, -6.0]]]),
                torch.tensor([[[True, True], [False, True]], [[True, False], [True, True]]]),
            )
        ),
    ],
    _legal_best,
    [
        Mistake(_mask_forgotten, "The mask has no part in this: an illegal action may win."),
        Mistake(
            _multiplied,
            "Multiplied by the mask, an illegal action is worth 0, and that is more than any "
            "negative value. What number is below all others?",
        ),
        Mistake(_mask_turned, "This is the largest illegal value: the mask is true where legal."),
        Mistake(_which_action, "These are the actions; asked for are their values."),
        Mistake(_over_the_team, "One value for each agent, please: the maximum is over actions."),
        Mistake(_summed_over_the_team, "That is already the team's value; leave the agents apart."),
    ],
)


# Exercise 2: is a table a sum? --------------------------------------------------------------------


def _additive(table: np.ndarray) -> np.ndarray:
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    return rows + columns - table.mean()


def _is_a_sum(table: np.ndarray) -> bool:
    return bool(np.allclose(_additive(table), table, atol=1e-6))


def _first_corner_alone(table: np.ndarray) -> bool:
    return bool(abs(table[0, 0] + table[1, 1] - table[0, 1] - table[1, 0]) < 1e-6)


def _outer_corners_alone(table: np.ndarray) -> bool:
    return bool(abs(table[0, 0] + table[-1, -1] - table[0, -1] - table[-1, 0]) < 1e-6)


def _is_a_product(table: np.ndarray) -> bool:
    return bool(np.linalg.matrix_rank(table) <= 1)


def _rank_two(table: np.ndarray) -> bool:
    return bool(np.linalg.matrix_rank(table) <= 2)


def _is_not_a_sum(table: np.ndarray) -> bool:
    return not _is_a_sum(table)


def _rises(table: np.ndarray) -> bool:
    return bool((np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all())


ch06_ex2 = Exercise(
    "Exercise 6.2",
    [
        Case((np.array([[0.0, 1.0], [1.0, 8.0]]),)),
        Case((np.array([[-3.0, 2.0], [1.0, 6.0]]),)),
        Case((np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 9.0]]),), "Look at all columns."),
        Case((np.array([[1.0, 5.0, 2.0], [3.0, 0.0, 4.0]]),)),
        Case((np.array([[4.0, 1.0, 3.0], [7.0, 4.0, 6.0], [0.0, -3.0, -1.0]]),)),
        Case((np.array([[1.0, 2.0], [2.0, 4.0]]),)),
        Case((np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 5.0, 5.0]]),)),
    ],
    _is_a_sum,
    [
        Mistake(
            _first_corner_alone,
            "The first two rows and columns are one case among many; the table may be larger.",
        ),
        Mistake(
            _outer_corners_alone,
            "The four corners may fit while something between them does not.",
        ),
        Mistake(
            _is_a_product, "Rank one is a product, u times v. What do two rows of a sum share?"
        ),
        Mistake(
            _rank_two,
            "Every sum has rank two at most, but not every table of rank two is a sum: each "
            "table of two rows has it.",
        ),
        Mistake(_is_not_a_sum, "Just the other way round."),
        Mistake(
            _rises,
            "That is whether a table rises along rows and columns. A sum need not, and what "
            "rises need not be a sum.",
        ),
    ],
)


# Exercise 3: the target of a team -----------------------------------------------------------------


def _team_target(*args: Any) -> Tensor:
    reward, terminated, _, online, target, gamma = args
    value = target.gather(-1, online.argmax(-1, keepdim=True)).squeeze(-1).sum(-1)
    total: Tensor = reward.sum(-1) + gamma * value.masked_fill(terminated, 0.0)
    return total


def _one_network_chooses_and_judges(*args: Any) -> Tensor:
    *ends, _, target, gamma = args
    return _team_target(*ends, target, target, gamma)


def _learner_judges_itself(*args: Any) -> Tensor:
    *ends, online, _, gamma = args
    return _team_target(*ends, online, online, gamma)


def _networks_swapped(*args: Any) -> Tensor:
    *ends, online, target, gamma = args
    return _team_target(*ends, target, online, gamma)


def _truncation_ends_too(*args: Any) -> Tensor:
    reward, terminated, truncated, *rest = args
    return _team_target(reward, terminated | truncated, truncated, *rest)


def _nothing_ends(*args: Any) -> Tensor:
    reward, terminated, *rest = args
    return _team_target(reward, torch.zeros_like(terminated), *rest)


def _mean_reward(*args: Any) -> Tensor:
    return _team_target(args[0].mean(-1, keepdim=True), *args[1:])


def _mean_value(*args: Any) -> Tensor:
    *rest, gamma = args
    return _team_target(*rest, gamma / args[0].shape[-1])


def _an_agent_a_target(*args: Any) -> Tensor:
    reward, terminated, _, online, target, gamma = args
    value = target.gather(-1, online.argmax(-1, keepdim=True)).squeeze(-1)
    return reward + gamma * value.masked_fill(terminated.unsqueeze(-1), 0.0)


def _no_discount(*args: Any) -> Tensor:
    return _team_target(*args[:-1], 1.0)


def _reward_alone(*args: Any) -> Tensor:
    return args[0].sum(-1)


_ONLINE = torch.tensor(
    [[[1.0, 2.0], [0.5, 0.0]], [[3.0, 1.0], [0.0, 4.0]], [[-1.0, 0.0], [2.0, 5.0]]]
)
_TARGET = torch.tensor(
    [[[4.0, 3.0], [-2.0, 1.0]], [[2.0, 6.0], [1.5, 0.5]], [[1.0, -3.0], [2.5, 0.5]]]
)

ch06_ex3 = Exercise(
    "Exercise 6.3",
    [
        Case(
            (
                torch.tensor([[1.0, 0.5], [0.0, -1.0], [2.0, 2.0]]),
                torch.tensor([False, True, False]),
                torch.tensor([False, False, True]),
                _ONLINE,
                _TARGET,
                0.9,
            )
        ),
        Case(
            (
                torch.tensor([[0.0, 3.0]]),
                torch.tensor([False]),
                torch.tensor([False]),
                _ONLINE[1:2],
                _TARGET[1:2],
                0.5,
            )
        ),
    ],
    _team_target,
    [
        Mistake(
            _one_network_chooses_and_judges,
            "The targets choose the actions and judge them as well; let the networks that learn "
            "choose (double Q-learning).",
        ),
        Mistake(
            _learner_judges_itself,
            "The networks that learn judge their own choice; the targets should judge it.",
        ),
        Mistake(
            _networks_swapped,
            "The two have changed places: the networks that learn choose, the targets judge.",
        ),
        Mistake(
            _truncation_ends_too,
            "Where time ran out yours adds no value; the world would have gone on.",
        ),
        Mistake(_nothing_ends, "After termination nothing follows, so no value is added there."),
        Mistake(_mean_reward, "The team is paid the sum of its rewards, not their mean."),
        Mistake(_mean_value, "The value of the team is the sum of its parts, not their mean."),
        Mistake(
            _an_agent_a_target,
            "These are targets of independent learners, one for each agent; the team has one.",
        ),
        Mistake(_no_discount, "The discount is missing."),
        Mistake(_reward_alone, "This is the reward alone, the first bug of the clinic above."),
    ],
)


# Exercise 4: a mixer by hand ----------------------------------------------------------------------


def _mixed(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return elu(q @ w1.abs() + b1) @ w2.abs() + b2


def _no_abs(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return elu(q @ w1 + b1) @ w2 + b2


def _abs_of_the_first_alone(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return elu(q @ w1.abs() + b1) @ w2 + b2


def _abs_of_the_second_alone(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return elu(q @ w1 + b1) @ w2.abs() + b2


def _abs_of_biases_too(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return _mixed(q, w1, b1.abs(), w2, b2.abs())


def _cut_at_zero(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return _mixed(q, w1.relu(), b1, w2.relu(), b2)


def _with_relu(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return (q @ w1.abs() + b1).relu() @ w2.abs() + b2


def _without_bend(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return (q @ w1.abs() + b1) @ w2.abs() + b2


def _bias_after_bend(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return (elu(q @ w1.abs()) + b1) @ w2.abs() + b2


def _abs_of_products(q: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return elu((q @ w1).abs() + b1) @ w2.abs() + b2


ch06_ex4 = Exercise(
    "Exercise 6.4",
    [
        Case(
            (
                torch.tensor([[1.0, -2.0], [0.5, 3.0], [-4.0, 0.0]]),
                torch.tensor([[0.5, -1.0, 0.2], [-0.3, 0.4, 1.0]]),
                torch.tensor([0.1, -2.0, 0.3]),
                torch.tensor([1.0, -0.5, 2.0]),
                torch.tensor(-0.7),
            )
        ),
        Case(
            (
                torch.tensor([[2.0, 1.0]]),
                torch.tensor([[-1.0, 1.0], [2.0, -3.0]]),
                torch.tensor([-3.0, 1.0]),
                torch.tensor([-2.0, 1.0]),
                torch.tensor(0.0),
            )
        ),
    ],
    _mixed,
    [
        Mistake(_no_abs, "No absolute values: this mixer may fall where an agent's value rises."),
        Mistake(
            _abs_of_the_first_alone,
            "w2 needs its absolute value too: a hidden unit that rises, taken negatively, falls.",
        ),
        Mistake(
            _abs_of_the_second_alone,
            "w1 needs its absolute value too: it is the slope of a hidden unit.",
        ),
        Mistake(
            _abs_of_biases_too,
            "Biases may have either sign: they shift the curve and do not turn it.",
        ),
        Mistake(
            _cut_at_zero,
            "Negative weights are cut off at zero here. That rises too, but the equation has "
            "absolute values.",
        ),
        Mistake(_with_relu, "That is ReLU; below zero, ELU goes on to fall, to -1."),
        Mistake(_without_bend, "Without ELU between them, two layers are one: a weighted sum."),
        Mistake(_bias_after_bend, "The first bias comes before the bend."),
        Mistake(
            _abs_of_products,
            "Take the absolute value of the weights, not of what they give: it would turn "
            "negative values of the agents round.",
        ),
    ],
)


# Exercise 5: the best sum under other weights -----------------------------------------------------


def _best_sum_played(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    by_row = (table * columns).sum(1, keepdims=True)
    by_column = (rows[:, None] * table).sum(0, keepdims=True)
    return np.asarray(by_row + by_column - rows @ table @ columns)


def _counted_alike(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _additive(table)


def _mean_not_taken_away(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _best_sum_played(table, rows, columns) + rows @ table @ columns


def _plain_mean_taken_away(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _mean_not_taken_away(table, rows, columns) - table.mean()


def _weights_weighed_twice(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.outer(rows, columns) * _best_sum_played(table, rows, columns)


def _weighted_table(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _additive(np.outer(rows, columns) * table)


def _the_other_s_play(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return _best_sum_played(table, columns, rows)


ch06_ex5 = Exercise(
    "Exercise 6.5",
    [
        Case((np.array([[0.0, 1.0], [1.0, 8.0]]), np.array([0.5, 0.5]), np.array([0.5, 0.5]))),
        Case((np.array([[0.0, 1.0], [1.0, 8.0]]), np.array([0.1, 0.9]), np.array([0.3, 0.7]))),
        Case((np.array([[2.0, -1.0], [0.0, 5.0]]), np.array([0.8, 0.2]), np.array([0.25, 0.75]))),
    ],
    _best_sum_played,
    [
        Mistake(
            _counted_alike,
            "Here all joint actions count alike; the probabilities have no part in it.",
        ),
        Mistake(
            _mean_not_taken_away,
            "Row and column means are right; the mean of all is in both of them and must be "
            "taken away once.",
        ),
        Mistake(
            _plain_mean_taken_away,
            "The mean of all should be weighted as well: by what is played.",
        ),
        Mistake(
            _weights_weighed_twice,
            "The probabilities say how much an error counts; they do not scale the values.",
        ),
        Mistake(
            _weighted_table,
            "This fits a sum to the payoffs times their probabilities; fit it to the payoffs, "
            "and weigh the errors.",
        ),
        Mistake(
            _the_other_s_play,
            "The mean of a row is over columns, so it is weighted by agent 2's probabilities; "
            "yours have changed places.",
        ),
    ],
)
