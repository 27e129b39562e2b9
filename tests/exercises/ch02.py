"""Wrong answers to the exercises of chapter 2, as readers write them, with a part of their hint.

They are written independently of :mod:`marl_lib.check`, and not always alike.
"""

import math

import numpy as np


def ex1_rows(payoff, row_policy):
    return np.einsum("rc,c->r", payoff, row_policy)


def ex1_best(payoff, row_policy):
    return np.max(payoff, axis=0)


def ex1_likeliest(payoff, row_policy):
    return payoff[np.argmax(row_policy), :]


def ex1_uniform(payoff, row_policy):
    return payoff.sum(axis=0) / len(payoff)


def ex1_products(payoff, row_policy):
    return payoff * row_policy.reshape(-1, 1)


def ex1_total(payoff, row_policy):
    return np.einsum("r,rc->", row_policy, payoff)


def ex1_prints(payoff, row_policy):
    print(row_policy @ payoff)


def ex2_counts_itself(epsilon, n):
    return 1 - math.prod(1 - epsilon for _ in range(n))


def ex2_adds(epsilon, n):
    return sum(epsilon for _ in range(n - 1))


def ex2_adds_all(epsilon, n):
    return n * epsilon


def ex2_all_at_once(epsilon, n):
    return math.prod([epsilon] * (n - 1))


def ex2_nobody(epsilon, n):
    return math.exp((n - 1) * math.log(1 - epsilon))


def ex2_exactly_one(epsilon, n):
    return math.comb(n - 1, 1) * epsilon * (1 - epsilon) ** (n - 2)


def ex2_capped(epsilon, n):
    return min(1, (n - 1) * epsilon)


def ex3_everybody_gets_all(reward):
    return reward.sum(axis=1, keepdims=True) * np.ones_like(reward)


def ex3_team(reward):
    return reward.sum(-1) / reward.shape[-1]


def ex3_column(reward):
    return np.mean(reward, axis=1, keepdims=True)


def ex3_wrong_axis(reward):
    return np.ones_like(reward) * reward.mean(axis=0)


def ex3_all(reward):
    return np.ones_like(reward) * np.mean(reward)


def ex3_part(reward):
    return np.array([[r / len(row) for r in row] for row in reward])


def ex3_unchanged(reward):
    return reward


def ex4_swapped(value, reward, up, down):
    rate = np.where(reward > value, down, up)
    return value + rate * (reward - value)


def ex4_ordinary(value, reward, up, down):
    return (1 - up) * value + up * np.asarray(reward)


def ex4_only_up(value, reward, up, down):
    return value + up * np.maximum(np.asarray(reward) - value, 0)


def ex4_looks_at_the_reward(value, reward, up, down):
    rate = np.where(np.asarray(reward) < 0, down, up)
    return (1 - rate) * value + rate * np.asarray(reward)


def ex4_absolute(value, reward, up, down):
    better = np.asarray(reward) > value
    return value + np.where(better, up, down) * np.abs(np.asarray(reward) - value)


def ex4_change(value, reward, up, down):
    error = np.asarray(reward) - value
    return np.where(error > 0, up, down) * error


def ex4_if(value, reward, up, down):
    error = reward - value
    return value + (up if error >= 0 else down) * error


def ex4_all_or_nothing(value, reward, up, down):
    error = np.asarray(reward) - value
    return value + (up if (error >= 0).all() else down) * error


def _moves(targets, pick, rows_first=True):
    """Return what a loop over agents gives, ``pick`` choosing one of the targets that are there."""
    actions = np.full(targets.shape[:2], 4)
    for b, n in np.ndindex(actions.shape):
        there = [(down, right) for seen, down, right in targets[b, n] if seen]
        if not there:
            continue
        down, right = pick(there)
        moves = [0 if down < 0 else 1] * int(down != 0) + [2 if right < 0 else 3] * int(right != 0)
        actions[b, n] = moves[0 if rows_first else -1]
    return actions


def _length(offset):
    return abs(offset[0]) + abs(offset[1])


def ex5_ignores_seen(targets):
    actions = np.full(targets.shape[:2], 4)
    for b, n in np.ndindex(actions.shape):
        _, down, right = min(targets[b, n], key=lambda t: abs(t[1]) + abs(t[2]))
        if down:
            actions[b, n] = 0 if down < 0 else 1
        elif right:
            actions[b, n] = 2 if right < 0 else 3
    return actions


def ex5_ignores_seen_with_arrays(targets):
    _, down, right = np.moveaxis(targets, -1, 0)
    nearest = (abs(down) + abs(right)).argmin(-1)
    b, n = np.indices(nearest.shape)
    down, right = down[b, n, nearest], right[b, n, nearest]
    return np.select([down < 0, down > 0, right < 0], [0, 1, 2], default=3)


def ex5_walks_right_when_done(targets):
    actions = _moves(targets, lambda there: min(there, key=_length))
    return np.where(targets[..., 0].sum(-1) == 0, 3, actions)


def ex5_walks_up_when_done(targets):
    actions = _moves(targets, lambda there: min(there, key=_length))
    return np.where(targets[..., 0].sum(-1) == 0, 0, actions)


def ex5_first(targets):
    return _moves(targets, lambda there: there[0])


def ex5_farthest(targets):
    return _moves(targets, lambda there: max(there, key=_length))


def ex5_no_absolute(targets):
    return _moves(targets, lambda there: min(there, key=sum))


def ex5_away(targets):
    turned = targets * np.array([1, -1, -1])
    return _moves(turned, lambda there: min(there, key=_length))


def ex5_columns_first(targets):
    return _moves(targets, lambda there: min(there, key=_length), rows_first=False)


def ex5_transposed(targets):
    return _moves(targets[..., [0, 2, 1]], lambda there: min(there, key=_length))


def ex5_straight_line(targets):
    return _moves(targets, lambda there: min(there, key=lambda o: max(abs(o[0]), abs(o[1]))))


def ex5_one_environment(targets):
    return _moves(targets, lambda there: min(there, key=_length))[0]


WRONG = {
    "ch02_ex1": {
        ex1_rows: "sum over rows",
        ex1_best: "cannot count on the best row",
        ex1_likeliest: "does not always play",
        ex1_uniform: "equally likely",
        ex1_products: "now sum them",
        ex1_total: "not their sum",
        ex1_prints: "is there a return",
    },
    "ch02_ex2": {
        ex2_counts_itself: "it has n - 1 mates",
        ex2_adds: "your sum passes 1",
        ex2_adds_all: "not a mate of its own",
        ex2_all_at_once: "all mates explore at once",
        ex2_nobody: "no mate explores",
        ex2_exactly_one: "exactly one mate",
        ex2_capped: "For (0.05, 3) the answer is 0.0975, yours is 0.1",
    },
    "ch02_ex3": {
        ex3_everybody_gets_all: "N times what the team earned",
        ex3_team: "one a team",
        ex3_column: "the shape is (B, 1)",
        ex3_wrong_axis: "shares between environments",
        ex3_all: "one figure for all environments",
        ex3_part: "add those of its mates",
        ex3_unchanged: "the answer is",
    },
    "ch02_ex4": {
        ex4_swapped: "changed places",
        ex4_ordinary: "always learns with the rate `up`",
        ex4_only_up: "not forgotten altogether",
        ex4_looks_at_the_reward: "sign of the reward",
        ex4_absolute: "yours rises",
        ex4_change: "return the new value",
        ex4_if: "ValueError on its line",
        ex4_all_or_nothing: "element by element",
    },
    "ch02_ex5": {
        ex5_ignores_seen: "looks like the nearest of all",
        ex5_ignores_seen_with_arrays: "is no distance",
        ex5_walks_right_when_done: "sees none should stay",
        ex5_walks_up_when_done: "sees none should stay",
        ex5_first: "first target in the list",
        ex5_farthest: "farthest",
        ex5_no_absolute: "absolute",
        ex5_away: "walk away",
        ex5_columns_first: "Rows first",
        ex5_transposed: "changed places",
        ex5_straight_line: "not the first step",
        ex5_one_environment: "The shape should be (3, 2), yours is (2,)",
    },
}
