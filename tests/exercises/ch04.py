"""Wrong answers to the exercises of chapter 4, as readers write them, with a part of their hint.

They are written independently of :mod:`marl_lib.check`, and not always alike.
"""

import math

import torch

# Exercise 1 ---------------------------------------------------------------------------------------


def ex1_forgets_the_number(weight, n):
    return math.log(weight) - math.log(1 - weight)


def ex1_counts_all(weight, n):
    return math.log(n) + math.log(weight) - math.log(1 - weight)


def ex1_turned(weight, n):
    return math.log((1 - weight) / weight / (n - 1))


def ex1_odds(weight, n):
    return (n - 1) * weight / (1 - weight)


def ex1_decimal(weight, n):
    return math.log((n - 1) * weight / (1 - weight), 10)


def ex1_denominator(weight, n):
    return math.log(weight) + math.log(n - 1)


def ex1_binary(weight, n):
    return math.log2((n - 1) * weight / (1 - weight))


def ex1_torch_on_a_float(weight, n):
    return torch.log(weight * (n - 1) / (1 - weight))


# Exercise 2 ---------------------------------------------------------------------------------------


def _rows(lengths, size, rule):
    return torch.tensor([[[rule(s, int(n)) for s in range(size)]] for n in lengths])


def ex2_true_is_padding(lengths, size):
    return _rows(lengths, size, lambda s, n: s >= n)


def ex2_off_by_one(lengths, size):
    return _rows(lengths, size, lambda s, n: s < n + 1)


def ex2_right_aligned(lengths, size):
    return _rows(lengths, size, lambda s, n: s >= size - n)


def ex2_two_axes(lengths, size):
    mask = torch.zeros(len(lengths), size, dtype=torch.bool)
    for row, n in zip(mask, lengths, strict=True):
        row[:n] = True
    return mask


def ex2_column(lengths, size):
    return ex2_two_axes(lengths, size).unsqueeze(-1)


def ex2_last_only(lengths, size):
    return _rows(lengths, size, lambda s, n: s + 1 == n)


def ex2_no_broadcast(lengths, size):
    return torch.arange(size) < lengths


def ex2_every_query(lengths, size):
    return ex2_two_axes(lengths, size)[:, None].expand(-1, size, -1)


# Exercise 3 ---------------------------------------------------------------------------------------


def _grid(length, rule):
    return torch.tensor([[rule(i, j) for j in range(length)] for i in range(length)])


def ex3_window_and_itself(length, window):
    return _grid(length, lambda i, j: i - window <= j <= i)


def ex3_band(length, window):
    return _grid(length, lambda i, j: abs(i - j) < window)


def ex3_causal(length, window):
    return torch.ones(length, length).tril().bool()


def ex3_transposed(length, window):
    ones = torch.ones(length, length)
    return (ones.triu() - ones.triu(window)).bool()


def ex3_strictly_before(length, window):
    return _grid(length, lambda i, j: i - window <= j < i)


def ex3_forbidden(length, window):
    return _grid(length, lambda i, j: j > i or j <= i - window)


def ex3_old(length, window):
    return torch.ones(length, length).tril(-window).bool()


def ex3_diagonal(length, window):
    return torch.eye(length).bool()


# Exercise 4 ---------------------------------------------------------------------------------------


def _drop(x, j, axis):
    keep = [i for i in range(x.shape[axis]) if i != j]
    return x.index_select(axis, torch.tensor(keep, dtype=torch.int64))


def ex4_value_set_to_zero(weights, value, j):
    value = value.clone()
    value[j] = 0
    return weights @ value


def ex4_subtracts_the_value(weights, value, j):
    return torch.einsum("ls,sd->ld", weights, value) - value[j]


def ex4_even_shares(weights, value, j):
    rest = _drop(weights, j, 1)
    missing = 1 - rest.sum(1, keepdim=True)
    return (rest + missing / rest.shape[1]) @ _drop(value, j, 0)


def ex4_softmax_twice(weights, value, j):
    masked = weights.clone()
    masked[:, j] = -math.inf
    return masked.softmax(-1) @ value


def ex4_contribution(weights, value, j):
    return torch.outer(weights[:, j], value[j])


def ex4_change(weights, value, j):
    rest = _drop(weights, j, 1)
    return weights @ value - rest @ _drop(value, j, 0) / rest.sum(1, keepdim=True)


def ex4_drops_a_row(weights, value, j):
    return _drop(weights, j, 0) @ value


def ex4_divides_all_rows_alike(weights, value, j):
    rest = _drop(weights, j, 1)
    return rest @ _drop(value, j, 0) / rest.sum() * len(rest)


def ex4_forgets_the_value(weights, value, j):
    return _drop(weights, j, 1) @ value


# Exercise 5 ---------------------------------------------------------------------------------------


def ex5_yes(attend):
    return True


def ex5_no(attend):
    return False


def _agrees(attend, query, key, value, mask, expected):
    out = attend(*(torch.tensor(x) for x in (query, key, value)), torch.tensor(mask))
    return torch.allclose(out, torch.tensor(expected))


# scores ln 3 and 0 after division by 2: weights 3/4 and 1/4
QUERY, KEY, VALUE = [2.0, 0.0, 0.0, 0.0], math.log(3), [[4.0], [8.0], [100.0]]
KEYS = [[KEY, 0.0, 0.0, 0.0], [0.0] * 4, [5.0, 0.0, 0.0, 0.0]]


def ex5_forgets_to_scale(attend):
    first = 0.9 * 4 + 0.1 * 8
    return _agrees(attend, [QUERY], KEYS, VALUE, [[True, True, False]], [[first]])


def ex5_symmetric(attend):
    # each of two dials asks for itself; the table of scores is the same read either way
    dials = [[1.0, 0.0], [0.0, 1.0]]
    w = 1 / (1 + math.exp(-1 / math.sqrt(2)))
    mask = [[True, True], [True, True]]
    return _agrees(attend, dials, dials, [[1.0], [0.0]], mask, [[w], [1 - w]])


def ex5_rows_sum_to_one(attend):
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    out = attend(query, key, torch.ones(3, 1), torch.ones(3, 3, dtype=torch.bool))
    return torch.allclose(out, torch.ones(3, 1))


def ex5_width_one(attend):
    mask = [[True, True], [True, True]]
    return _agrees(
        attend, [[KEY], [0.0]], [[1.0], [0.0]], [[4.0], [8.0]], mask, [[5.0], [6.0]]
    )  # fmt: skip


def ex5_as_many_keys_as_features(attend):
    keys = [*KEYS[:2], [KEY, 0.0, 0.0, 0.0], [0.0] * 4]
    value = [[4.0], [8.0], [4.0], [8.0]]
    return _agrees(
        attend, [QUERY, [0.0] * 4], keys, value, [[True] * 4, [True] * 4], [[5.0], [6.0]]
    )


def ex5_masks_nothing(attend):
    mask = [[True, True], [True, True]]
    return _agrees(attend, [QUERY, [0.0] * 4], KEYS[:2], VALUE[:2], mask, [[5.0], [6.0]])


def ex5_masked_score_is_low(attend):
    keys = [*KEYS[:2], [-500.0, 0.0, 0.0, 0.0]]
    mask = [[True, True, False], [False, False, False]]
    return _agrees(attend, [QUERY, QUERY], keys, VALUE, mask, [[5.0], [0.0]])


def ex5_every_row_sees_something(attend):
    mask = [[True, True, False], [True, True, False]]
    return _agrees(attend, [QUERY, [0.0] * 4], KEYS, VALUE, mask, [[5.0], [6.0]])


def ex5_any_number_will_do(attend):
    query, key, value = torch.tensor([QUERY] * 2), torch.tensor(KEYS), torch.tensor(VALUE)
    out = attend(query, key, value, torch.tensor([[True, True, False], [False] * 3]))
    return bool(torch.isclose(out[0, 0], torch.tensor(5.0)) and torch.isfinite(out).all())


WRONG = {
    "ch04_ex1": {
        ex1_forgets_the_number: "There are n - 1",
        ex1_counts_all: "one of the n",
        ex1_turned: "The sign is turned",
        ex1_odds: "take the logarithm",
        ex1_decimal: "the natural one",
        ex1_denominator: "which brings in 1 - w",
        ex1_binary: "For (0.9, 10) the answer is 4.394, yours is 6.34",
        ex1_torch_on_a_float: "TypeError on its line",
    },
    "ch04_ex2": {
        ex2_true_is_padding: "True says where one may look",
        ex2_off_by_one: "One place too many",
        ex2_right_aligned: "come first",
        ex2_two_axes: "would be read as (L, S)",
        ex2_column: "not (B, S, 1)",
        ex2_last_only: "mark all of them",
        ex2_no_broadcast: "RuntimeError on its line",
        ex2_every_query: "The shape should be (3, 1, 5), yours is (3, 5, 5)",
    },
    "ch04_ex3": {
        ex3_window_and_itself: "one step too many",
        ex3_band: "as far ahead as back",
        ex3_causal: "does not forget",
        ex3_transposed: "into the future",
        ex3_strictly_before: "sees itself too",
        ex3_forbidden: "forbidden to look",
        ex3_old: "turn the comparison",
        ex3_diagonal: "the answer is",
    },
    "ch04_ex4": {
        ex4_value_set_to_zero: "no longer sum to one",
        ex4_subtracts_the_value: "not the whole of its value",
        ex4_even_shares: "keep their ratios",
        ex4_softmax_twice: "are no scores",
        ex4_contribution: "what is left without it",
        ex4_change: "return the new output",
        ex4_drops_a_row: "removes query j",
        ex4_divides_all_rows_alike: "the answer is",
        ex4_forgets_the_value: "RuntimeError on its line",
    },
    "ch04_ex5": {
        ex5_yes: "passes whatever",
        ex5_no: "fails whatever",
        ex5_forgets_to_scale: "refuses a right function",
        ex5_symmetric: "wrong axis",
        ex5_rows_sum_to_one: "does not divide",
        ex5_width_one: "does not divide",
        ex5_as_many_keys_as_features: "number of keys",
        ex5_masks_nothing: "sets masked scores to 0",
        ex5_masked_score_is_low: "masks after the softmax",
        ex5_every_row_sees_something: "gives NaN",
        ex5_any_number_will_do: "the mean of all values",
    },
}
