"""The exercises of chapter 4, *Attention from scratch*."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from marl_lib.check.core import Case, Exercise, Mistake

# Exercise 1: how much higher the right score must be ----------------------------------------------


def _needed_score(weight: float, n: int) -> float:
    return math.log(weight * (n - 1) / (1 - weight))


def _one_other(weight: float, n: int) -> float:
    return math.log(weight / (1 - weight))


def _counts_itself(weight: float, n: int) -> float:
    return math.log(weight * n / (1 - weight))


def _upside_down(weight: float, n: int) -> float:
    return -_needed_score(weight, n)


def _no_logarithm(weight: float, n: int) -> float:
    return weight * (n - 1) / (1 - weight)


def _base_ten(weight: float, n: int) -> float:
    return math.log10(weight * (n - 1) / (1 - weight))


def _weight_alone(weight: float, n: int) -> float:
    return math.log(weight * (n - 1))


ch04_ex1 = Exercise(
    "Exercise 4.1",
    [Case((w, n)) for w, n in ((0.9, 10), (0.5, 2), (0.9, 2), (0.99, 12), (0.5, 11), (0.05, 5))],
    _needed_score,
    [
        Mistake(
            _one_other,
            "This is right for one other entity. There are n - 1, and each adds its own e⁰ to the "
            "sum in the denominator.",
        ),
        Mistake(
            _counts_itself,
            "The entity itself is one of the n, so the others are n - 1.",
        ),
        Mistake(
            _upside_down,
            "The sign is turned: a weight above 1/n asks for a score above that of the others.",
        ),
        Mistake(_no_logarithm, "That is e to the score; it remains to take the logarithm."),
        Mistake(_base_ten, "Softmax uses e, so the logarithm is the natural one."),
        Mistake(
            _weight_alone,
            "Solve w = eˢ / (eˢ + n - 1) once more: eˢ stands in the denominator too, which brings "
            "in 1 - w.",
        ),
    ],
)


# Exercise 2: a mask for padding -------------------------------------------------------------------


def _places(lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return torch.arange(size)[None, None, :], lengths[:, None, None]


def _padding_mask(lengths: Tensor, size: int) -> Tensor:
    place, length = _places(lengths, size)
    return place < length


def _true_on_padding(lengths: Tensor, size: int) -> Tensor:
    return ~_padding_mask(lengths, size)


def _one_too_many(lengths: Tensor, size: int) -> Tensor:
    place, length = _places(lengths, size)
    return place <= length


def _at_the_end(lengths: Tensor, size: int) -> Tensor:
    return _padding_mask(lengths, size).flip(-1)


def _no_axis_for_queries(lengths: Tensor, size: int) -> Tensor:
    return _padding_mask(lengths, size)[:, 0]


def _axis_at_the_end(lengths: Tensor, size: int) -> Tensor:
    return _padding_mask(lengths, size).transpose(1, 2)


def _one_place_each(lengths: Tensor, size: int) -> Tensor:
    place, length = _places(lengths, size)
    return place == length - 1


ch04_ex2 = Exercise(
    "Exercise 4.2",
    [
        Case((torch.tensor([3, 1, 5]), 5)),
        Case((torch.tensor([0, 2]), 4)),
    ],
    _padding_mask,
    [
        Mistake(
            _true_on_padding,
            "Yours is True on the padding. In this book True says where one may look.",
        ),
        Mistake(
            _one_too_many,
            "One place too many: places count from 0, so the last one of n entities is n - 1.",
        ),
        Mistake(_at_the_end, "The entities come first and the padding after them."),
        Mistake(
            _no_axis_for_queries,
            "The entries are right, but (B, S) would be read as (L, S): put an axis for the "
            "queries in between, (B, 1, S).",
        ),
        Mistake(
            _axis_at_the_end,
            "The axis for the queries comes before that of the keys: (B, 1, S), not (B, S, 1).",
        ),
        Mistake(_one_place_each, "This marks the last entity of each row; mark all of them."),
    ],
)


# Exercise 3: only the recent past -----------------------------------------------------------------


def _ago(length: int) -> Tensor:
    """Return how many steps before place i place j lies, (L, L)."""
    place = torch.arange(length)
    return place[:, None] - place


def _recent(length: int, window: int) -> Tensor:
    ago = _ago(length)
    return (ago >= 0) & (ago < window)


def _one_step_too_far(length: int, window: int) -> Tensor:
    return _recent(length, window + 1)


def _both_sides(length: int, window: int) -> Tensor:
    return _ago(length).abs() < window


def _all_of_the_past(length: int, window: int) -> Tensor:
    return _ago(length) >= 0


def _future(length: int, window: int) -> Tensor:
    return _recent(length, window).T


def _without_itself(length: int, window: int) -> Tensor:
    ago = _ago(length)
    return (ago > 0) & (ago <= window)


def _forbids(length: int, window: int) -> Tensor:
    return ~_recent(length, window)


def _the_long_ago(length: int, window: int) -> Tensor:
    return _ago(length) >= window


ch04_ex3 = Exercise(
    "Exercise 4.3",
    [Case((5, 2)), Case((4, 1)), Case((6, 3)), Case((3, 5))],
    _recent,
    [
        Mistake(
            _one_step_too_far,
            "This sees one step too many: the place itself is one of the `window`.",
        ),
        Mistake(
            _both_sides,
            "This looks as far ahead as back; nothing may be seen that comes after.",
        ),
        Mistake(_all_of_the_past, "This is the causal mask; it does not forget what is long past."),
        Mistake(
            _future,
            "Rows and columns have changed places: row i is the place that looks, and yours looks "
            "into the future.",
        ),
        Mistake(_without_itself, "A place sees itself too."),
        Mistake(_forbids, "Yours is True where it is forbidden to look; turn it."),
        Mistake(
            _the_long_ago,
            "This sees what is long past and not what is recent: turn the comparison.",
        ),
    ],
)


# Exercise 4: what if it had not been there --------------------------------------------------------


def _kept(weights: Tensor, j: int) -> Tensor:
    kept = weights.clone()
    kept[:, j] = 0
    return kept


def _without(weights: Tensor, value: Tensor, j: int) -> Tensor:
    kept = _kept(weights, j)
    return kept / kept.sum(-1, keepdim=True) @ value


def _not_normalised(weights: Tensor, value: Tensor, j: int) -> Tensor:
    return _kept(weights, j) @ value


def _takes_the_value_whole(weights: Tensor, value: Tensor, j: int) -> Tensor:
    return weights @ value - value[j]


def _spreads_evenly(weights: Tensor, value: Tensor, j: int) -> Tensor:
    freed = weights[:, j : j + 1] / (weights.shape[1] - 1)
    return _kept(weights + freed, j) @ value


def _softmax_again(weights: Tensor, value: Tensor, j: int) -> Tensor:
    rest = [s for s in range(weights.shape[1]) if s != j]
    return weights[:, rest].softmax(-1) @ value[rest]


def _its_part(weights: Tensor, value: Tensor, j: int) -> Tensor:
    return weights[:, j : j + 1] * value[j]


def _the_difference(weights: Tensor, value: Tensor, j: int) -> Tensor:
    return weights @ value - _without(weights, value, j)


def _removes_the_query(weights: Tensor, value: Tensor, j: int) -> Tensor:
    rest = [i for i in range(weights.shape[0]) if i != j]
    return weights[rest] @ value


_WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.7, 0.05]])
_VALUE = torch.tensor([[1.0, 0.0], [2.0, -4.0], [-3.0, 1.0]])

ch04_ex4 = Exercise(
    "Exercise 4.4",
    [Case((_WEIGHTS, _VALUE, j)) for j in (0, 2)]
    + [Case((torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[5.0], [6.0], [7.0], [9.0]]), 0))],
    _without,
    [
        Mistake(
            _not_normalised,
            "Without entity j the weights of a row no longer sum to one: softmax over the others "
            "would have been larger by 1 / (1 - w).",
        ),
        Mistake(
            _takes_the_value_whole,
            "Entity j added its value times its weight, not the whole of its value; and the "
            "weights of the others grow.",
        ),
        Mistake(
            _spreads_evenly,
            "The weight that is set free is not shared evenly: the others keep their ratios.",
        ),
        Mistake(
            _softmax_again,
            "The weights are no scores: they have been through softmax once. Divide the remaining "
            "ones by their sum.",
        ),
        Mistake(_its_part, "That is the part of entity j; asked for is what is left without it."),
        Mistake(_the_difference, "That is the change; return the new output."),
        Mistake(_removes_the_query, "This removes query j; remove the key and value, column j."),
    ],
)


# Exercise 5: a test for attention -----------------------------------------------------------------

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _scores(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    scores = query @ key.transpose(-2, -1) / scale
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _sound(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = _scores(query, key, mask, math.sqrt(query.shape[-1]))
    return (scores.softmax(-1) * mask) @ value


def _softmax_over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = _scores(query, key, mask, math.sqrt(query.shape[-1]))
    return (scores.softmax(-2) * mask) @ value


def _not_scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (_scores(query, key, mask, 1.0).softmax(-1) * mask) @ value


def _scaled_by_keys(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = _scores(query, key, mask, math.sqrt(key.shape[-2]))
    return (scores.softmax(-1) * mask) @ value


def _masked_with_zero(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~mask, 0.0).softmax(-1)
    return weights * mask.any(-1, keepdim=True) @ value


def _masked_afterwards(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return (scores.softmax(-1) * mask) @ value


def _nan_where_nothing_is_seen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ value


def _mean_where_nothing_is_seen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return _scores(query, key, mask, math.sqrt(query.shape[-1])).softmax(-1) @ value


ch04_ex5 = Exercise(
    "Exercise 4.5",
    [
        Case((_sound,), "Your test refuses a right function; work out one row by hand again."),
        Case(
            (_softmax_over_queries,),
            "Your test passes a softmax over the wrong axis: let there be more or "
            "fewer keys than queries, and compare the output with numbers worked out by hand.",
        ),
        Case(
            (_not_scaled,),
            "Your test passes one that does not divide by √d: let d be more than 1 and the scores "
            "of a row differ.",
        ),
        Case(
            (_scaled_by_keys,),
            "Your test passes one that divides by the root of the number of keys: let that number "
            "differ from d.",
        ),
        Case(
            (_masked_with_zero,),
            "Your test passes one that sets masked scores to 0, which softmax turns into a weight: "
            "mask a place in a row that sees others.",
        ),
        Case(
            (_masked_afterwards,),
            "Your test passes one that masks after the softmax, so that a row no longer sums to "
            "one: give a masked place a high score.",
        ),
        Case(
            (_nan_where_nothing_is_seen,),
            "Your test passes one that gives NaN where a query may look nowhere: have such a row.",
        ),
        Case(
            (_mean_where_nothing_is_seen,),
            "Your test passes one that gives the mean of all values to a query that may look "
            "nowhere: that row must be zero.",
        ),
    ],
    lambda attend: attend is _sound,
    [
        Mistake(lambda attend: True, "Your test passes whatever it is given."),
        Mistake(lambda attend: False, "Your test fails whatever it is given."),
    ],
)
