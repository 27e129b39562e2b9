"""Typical wrong answers to the exercises of chapter 6, with a part of the hint each must get.

They are written without a look at the checks' own code, as a reader might write them.
"""

import numpy as np
import torch
from torch.nn import functional as F

# Exercise 1 ---------------------------------------------------------------------------------------


def ex1_plain_maximum(q, legal):
    return q.amax(dim=2)


def ex1_times_mask(q, legal):
    return torch.max(q * legal.float(), dim=-1)[0]


def ex1_fills_the_legal(q, legal):
    return torch.where(legal, torch.tensor(float("-inf")), q).max(dim=-1).values


def ex1_argmax(q, legal):
    return torch.where(legal, q, torch.tensor(-1e9)).argmax(dim=-1)


def ex1_best_of_the_team(q, legal):
    return torch.where(legal, q, torch.tensor(-1e9)).flatten(1).max(-1).values


def ex1_sum_of_the_team(q, legal):
    return torch.where(legal, q, torch.tensor(-1e9)).max(-1).values.sum(1)


def ex1_numpy_on_a_tensor(q, legal):
    return q[legal].max(axis=-1)[1000]


# Exercise 2 ---------------------------------------------------------------------------------------


def ex2_two_by_two(table):
    return abs((table[0, 0] - table[0, 1]) - (table[1, 0] - table[1, 1])) < 1e-6


def ex2_corners(table):
    return bool(np.isclose(table[0, 0] + table[-1, -1], table[-1, 0] + table[0, -1]))


def ex2_rank_one(table):
    return bool(np.linalg.svd(table)[1][1] < 1e-9)


def ex2_rank_of_two(table):
    values = np.linalg.svd(table)[1]
    return len(values) < 3 or bool(values[2] < 1e-9)


def ex2_negated(table):
    return bool(np.abs(np.diff(np.diff(table, axis=0), axis=1)).max() > 1e-6)


def ex2_monotone(table):
    steps = [np.diff(table, axis=k).min() for k in (0, 1)]
    return bool(min(steps) >= 0)


def ex2_first_three_columns(table):
    if table.shape[1] < 3:
        return bool(np.allclose(np.diff(table, axis=1), np.diff(table, axis=1)[0]))
    return bool(np.allclose(np.diff(table[:, :2], axis=1), np.diff(table[:, :2], axis=1)[0]))


# Exercise 3 ---------------------------------------------------------------------------------------


def _target(reward, over, q, gamma):
    return reward.sum(1) + gamma * (1 - over.float()) * q


def _judged(judge, chooser):
    action = chooser.argmax(dim=2)
    b, n = torch.meshgrid(*map(torch.arange, action.shape), indexing="ij")
    return judge[b, n, action]


def ex3_plain_maximum_of_targets(reward, terminated, truncated, online, target, gamma):
    return _target(reward, terminated, target.amax(2).sum(1), gamma)


def ex3_no_targets(reward, terminated, truncated, online, target, gamma):
    return _target(reward, terminated, online.amax(2).sum(1), gamma)


def ex3_swapped(reward, terminated, truncated, online, target, gamma):
    return _target(reward, terminated, _judged(online, target).sum(1), gamma)


def ex3_any_end(reward, terminated, truncated, online, target, gamma):
    over = torch.logical_or(terminated, truncated)
    return _target(reward, over, _judged(target, online).sum(1), gamma)


def ex3_never_over(reward, terminated, truncated, online, target, gamma):
    return reward.sum(1) + gamma * _judged(target, online).sum(1)


def ex3_average_reward(reward, terminated, truncated, online, target, gamma):
    rest = _target(0 * reward, terminated, _judged(target, online).sum(1), gamma)
    return reward.mean(1) + rest


def ex3_average_value(reward, terminated, truncated, online, target, gamma):
    return _target(reward, terminated, _judged(target, online).mean(1), gamma)


def ex3_each_on_its_own(reward, terminated, truncated, online, target, gamma):
    alive = ~terminated[:, None]
    return reward + gamma * alive * _judged(target, online)


def ex3_undiscounted(reward, terminated, truncated, online, target, gamma):
    return _target(reward, terminated, _judged(target, online).sum(1), 1)


def ex3_only_what_is_paid(reward, terminated, truncated, online, target, gamma):
    return torch.sum(reward, dim=1)


def ex3_minus_a_bool(reward, terminated, truncated, online, target, gamma):
    return reward.sum(1) + gamma * (1 - terminated) * _judged(target, online).sum(1)


# Exercise 4 ---------------------------------------------------------------------------------------


def _mix(q, w1, b1, w2, b2, bend=F.elu):
    return (bend(torch.einsum("bn,nw->bw", q, w1) + b1) * w2).sum(1) + b2


def ex4_signs_kept(q, w1, b1, w2, b2):
    return _mix(q, w1, b1, w2, b2)


def ex4_first_layer_only(q, w1, b1, w2, b2):
    return _mix(q, torch.abs(w1), b1, w2, b2)


def ex4_second_layer_only(q, w1, b1, w2, b2):
    return _mix(q, w1, b1, torch.abs(w2), b2)


def ex4_everything_positive(q, w1, b1, w2, b2):
    return _mix(q, *(torch.abs(x) for x in (w1, b1, w2, b2)))


def ex4_clamped(q, w1, b1, w2, b2):
    return _mix(q, w1.clamp(min=0), b1, w2.clamp(min=0), b2)


def ex4_rectified(q, w1, b1, w2, b2):
    return _mix(q, w1.abs(), b1, w2.abs(), b2, bend=torch.relu)


def ex4_linear(q, w1, b1, w2, b2):
    return _mix(q, w1.abs(), b1, w2.abs(), b2, bend=lambda x: x)


def ex4_bias_late(q, w1, b1, w2, b2):
    return ((F.elu(q @ w1.abs()) + b1) * w2.abs()).sum(-1) + b2


def ex4_abs_late(q, w1, b1, w2, b2):
    return (F.elu(torch.abs(q @ w1) + b1) * w2.abs()).sum(-1) + b2


def ex4_transposed(q, w1, b1, w2, b2):
    return F.elu(q @ w1.abs().T + b1) @ w2.abs() + b2


# Exercise 5 ---------------------------------------------------------------------------------------


def ex5_uniform(table, rows, columns):
    return table.mean(1)[:, None] + table.mean(0)[None] - table.mean()


def _means(table, rows, columns):
    return np.average(table, axis=1, weights=columns), np.average(table, axis=0, weights=rows)


def ex5_no_mean(table, rows, columns):
    u, v = _means(table, rows, columns)
    return u[:, None] + v[None]


def ex5_unweighted_mean(table, rows, columns):
    u, v = _means(table, rows, columns)
    return u[:, None] + v[None] - np.mean(table)


def ex5_scaled_by_play(table, rows, columns):
    u, v = _means(table, rows, columns)
    return rows[:, None] * columns * (u[:, None] + v[None] - u @ rows)


def ex5_fit_of_the_products(table, rows, columns):
    return ex5_uniform(table * rows[:, None] * columns[None, :], rows, columns)


def ex5_own_play(table, rows, columns):
    u, v = table @ rows, columns @ table
    return u[:, None] + v[None] - columns @ table @ rows


def ex5_wrong_at_one_place(table, rows, columns):
    u, v = _means(table, rows, columns)
    return u[:, None] + v[None] - 2 * (u @ rows)


WRONG = {
    "ch06_ex1": {
        ex1_plain_maximum: "The mask has no part",
        ex1_times_mask: "more than any negative value",
        ex1_fills_the_legal: "the largest illegal value",
        ex1_argmax: "These are the actions",
        ex1_best_of_the_team: "One value for each agent",
        ex1_sum_of_the_team: "leave the agents apart",
        ex1_numpy_on_a_tensor: "raised",
    },
    "ch06_ex2": {
        ex2_two_by_two: "one case among many",
        ex2_corners: "something between them",
        ex2_rank_one: "u times v",
        ex2_rank_of_two: "each table of two rows has it",
        ex2_negated: "other way round",
        ex2_monotone: "A sum need not",
        ex2_first_three_columns: "Look at all columns",
    },
    "ch06_ex3": {
        ex3_plain_maximum_of_targets: "double Q-learning",
        ex3_no_targets: "judge their own choice",
        ex3_swapped: "changed places",
        ex3_any_end: "the world would have gone on",
        ex3_never_over: "nothing follows",
        ex3_average_reward: "the sum of its rewards",
        ex3_average_value: "the sum of its parts",
        ex3_each_on_its_own: "the team has one",
        ex3_undiscounted: "discount is missing",
        ex3_only_what_is_paid: "the reward alone",
        ex3_minus_a_bool: "RuntimeError on its line",
    },
    "ch06_ex4": {
        ex4_signs_kept: "No absolute values",
        ex4_first_layer_only: "w2 needs",
        ex4_second_layer_only: "w1 needs",
        ex4_everything_positive: "shift the curve",
        ex4_clamped: "cut off at zero",
        ex4_rectified: "That is ReLU",
        ex4_linear: "two layers are one",
        ex4_bias_late: "before the bend",
        ex4_abs_late: "not of what they give",
        ex4_transposed: "RuntimeError on its line",
    },
    "ch06_ex5": {
        ex5_uniform: "count alike",
        ex5_no_mean: "taken away once",
        ex5_unweighted_mean: "weighted as well",
        ex5_scaled_by_play: "how much an error counts",
        ex5_fit_of_the_products: "weigh the errors",
        ex5_own_play: "changed places",
        ex5_wrong_at_one_place: "the answer is",
    },
}
