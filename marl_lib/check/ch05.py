"""The exercises of chapter 5, on what attention is good for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_lib.check.core import Case, Exercise, Mistake

# Exercise 1: the tokens of a history --------------------------------------------------------------


def _history(past: Tensor, length: int) -> Tensor:
    tokens = torch.zeros(length, 1 + past.shape[1])
    last = past[-length:]
    tokens[length - len(last) :, 0] = 1
    tokens[length - len(last) :, 1:] = last
    return tokens


def _newest_first(past: Tensor, length: int) -> Tensor:
    return _history(past, length).flip(0)


def _empty_at_the_end(past: Tensor, length: int) -> Tensor:
    tokens = _history(past, length)
    return torch.cat([tokens[tokens[:, 0] == 1], tokens[tokens[:, 0] == 0]])


def _the_first_ones(past: Tensor, length: int) -> Tensor:
    return _history(past[:length], length)


def _flags_everywhere(past: Tensor, length: int) -> Tensor:
    tokens = _history(past, length)
    tokens[:, 0] = 1
    return tokens


def _repeats_the_first(past: Tensor, length: int) -> Tensor:
    tokens = _history(past, length)
    tokens[tokens[:, 0] == 0, 1:] = past[0]
    return tokens


def _repeats_with_flags(past: Tensor, length: int) -> Tensor:
    return _flags_everywhere(_repeats_the_first(past, length)[:, 1:], length)


def _flag_last(past: Tensor, length: int) -> Tensor:
    return _history(past, length).roll(-1, dims=1)


def _without_flags(past: Tensor, length: int) -> Tensor:
    return _history(past, length)[:, 1:]


ch05_ex1 = Exercise(
    "Exercise 5.1",
    [
        Case((torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 2)),
        Case((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 4)),
        Case((torch.tensor([[7.0]]), 1)),
        Case((torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [4.0, 0.0, 0.0]]), 3)),
    ],
    _history,
    [
        Mistake(_newest_first, "Yours has the newest first; the newest stands last."),
        Mistake(
            _empty_at_the_end,
            "The empty places stand before the observations: the present is always the last row.",
        ),
        Mistake(
            _the_first_ones,
            "Of a longer past you keep the first observations; keep the last.",
        ),
        Mistake(
            _flags_everywhere,
            "A flag of 1 says that there is something. Where the episode is younger, it is 0, or "
            "the policy would look at a moment that never was.",
        ),
        Mistake(
            _repeats_the_first,
            "The empty places are all zeros; yours repeat the first observation.",
        ),
        Mistake(
            _repeats_with_flags,
            "Yours repeats the first observation as if the world had stood still before it: no "
            "velocity. Leave these places empty, zeros with flag 0.",
        ),
        Mistake(_flag_last, "The flag comes before the numbers, not after them."),
        Mistake(_without_flags, "The numbers are right; put the flags in front, (length, 1 + D)."),
    ],
)


# Exercise 2: a weight beside chance ---------------------------------------------------------------


def _on(weights: Tensor, index: Tensor) -> Tensor:
    return weights.mean(1).gather(1, index[:, None]).squeeze(1)


def _times_chance(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return (_on(weights, index) * present.sum(1)).mean()


def _counts_padding(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return (_on(weights, index) * present.shape[1]).mean()


def _ratio_of_means(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _on(weights, index).mean() / (1 / present.sum(1)).mean()


def _difference_to_chance(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return (_on(weights, index) - 1 / present.sum(1)).mean()


def _largest_head(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _times_chance(weights.amax(1, keepdim=True), index, present)


def _sum_of_heads(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _times_chance(weights.sum(1, keepdim=True), index, present)


def _largest_row(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _times_chance(weights, weights.mean(1).argmax(-1), present)


def _divides_by_the_number(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return (_on(weights, index) / present.sum(1)).mean()


def _one_a_state(weights: Tensor, index: Tensor, present: Tensor) -> Tensor:
    return _on(weights, index) * present.sum(1)


_SEEN = torch.tensor([[True, True, True, False], [True, False, True, False]])
_TWO_HEADS = torch.tensor(
    [
        [[0.2, 0.3, 0.5, 0.0], [0.1, 0.8, 0.1, 0.0]],
        [[0.3, 0.0, 0.7, 0.0], [0.9, 0.0, 0.1, 0.0]],
    ]
)

ch05_ex2 = Exercise(
    "Exercise 5.2",
    [
        Case((_TWO_HEADS, torch.tensor([1, 2]), _SEEN)),
        Case((_TWO_HEADS[:, :1], torch.tensor([0, 0]), _SEEN)),
        Case((torch.full((1, 3, 5), 0.2), torch.tensor([4]), torch.ones(1, 5, dtype=torch.bool))),
    ],
    _times_chance,
    [
        Mistake(
            _counts_padding,
            "An even spread goes over the rows that are there, not over all L: padding has no "
            "weight in any case.",
        ),
        Mistake(
            _ratio_of_means,
            "That is the ratio of two means. Divide in each state, then take the mean.",
        ),
        Mistake(_difference_to_chance, "That is how much more it is than chance; divide."),
        Mistake(_largest_head, "Take the mean over the heads, not the largest of them."),
        Mistake(
            _sum_of_heads, "The weights of each head sum to one; take their mean, not their sum."
        ),
        Mistake(
            _largest_row,
            "That is the row with the largest weight, whichever it is; asked is the one that "
            "matters.",
        ),
        Mistake(
            _divides_by_the_number,
            "Chance is one over the number of rows, so to divide by it is to multiply by the "
            "number.",
        ),
        Mistake(_one_a_state, "That is right for each state; it remains to take the mean."),
    ],
)


# Exercise 3: multiplications ----------------------------------------------------------------------


def _parts(count: int, size: int, width: int, hidden: int, actions: int) -> dict[str, int]:
    return {
        "embed": count * size * width,
        "query": width**2,
        "keys": count * width**2,
        "values": count * width**2,
        "scores": count * width,
        "mixing": count * width,
        "output": width**2,
        "feed": 4 * width**2,
        "behind": width * hidden + hidden * actions,
    }


def _multiplications(count: int, size: int, width: int, hidden: int, actions: int) -> int:
    return sum(_parts(count, size, width, hidden, actions).values())


Count = Callable[[int, int, int, int, int], int]


def _less(*names: str) -> Count:
    """Return a count that leaves something out."""

    def count(*given: int) -> int:
        parts = _parts(*given)
        return sum(parts.values()) - sum(parts[name] for name in names)

    return count


def _every_token_asks(count: int, size: int, width: int, hidden: int, actions: int) -> int:
    right = _multiplications(count, size, width, hidden, actions)
    asking = width**2 + 2 * count * width + width**2 + 4 * width**2
    return right + (count - 1) * asking


def _query_of_every_token(count: int, size: int, width: int, hidden: int, actions: int) -> int:
    return _multiplications(count, size, width, hidden, actions) + (count - 1) * width**2


def _not_wider_inside(count: int, size: int, width: int, hidden: int, actions: int) -> int:
    return _multiplications(count, size, width, hidden, actions) - 2 * width**2


def _feeds_every_token(count: int, size: int, width: int, hidden: int, actions: int) -> int:
    return _multiplications(count, size, width, hidden, actions) + (count - 1) * 4 * width**2


ch05_ex3 = Exercise(
    "Exercise 5.3",
    [
        Case((4, 2, 32, 64, 2)),
        Case((8, 10, 32, 64, 5)),
        Case((1, 3, 16, 8, 2)),
        Case((100, 1, 8, 4, 3)),
    ],
    _multiplications,
    [
        Mistake(
            _less("scores", "mixing"),
            "That counts the matrices. Attention itself multiplies too: each score is a product of "
            "two vectors, and each value is multiplied by its weight.",
        ),
        Mistake(
            _less("mixing"), "The scores are there; each value is also multiplied by its weight."
        ),
        Mistake(_less("output"), "Behind the heads stands one more layer, their output."),
        Mistake(_less("values"), "Keys and values each have a matrix of their own."),
        Mistake(_less("feed"), "The block has a network behind the attention: E to 2E and back."),
        Mistake(_less("embed"), "Every token is embedded first, from size to width."),
        Mistake(_less("behind"), "The hidden layer and the head come after the block."),
        Mistake(
            _every_token_asks,
            "That is self-attention, in which every token asks. Here there is one query.",
        ),
        Mistake(
            _query_of_every_token,
            "Only one token asks, so the query's matrix is applied once.",
        ),
        Mistake(
            _not_wider_inside,
            "The network of the block is twice as wide inside: E · 2E, and 2E · E back.",
        ),
        Mistake(
            _feeds_every_token,
            "The network of the block is applied to the row of the query alone, not to every "
            "token.",
        ),
    ],
)


# Exercise 4: attention through two layers ---------------------------------------------------------


def _rolled_out(layer: Tensor, pooling: Tensor) -> Tensor:
    return pooling @ (layer + torch.eye(len(layer))) / 2


def _turned(layer: Tensor, pooling: Tensor) -> Tensor:
    return (layer + torch.eye(len(layer))) @ pooling / 2


def _no_residual(layer: Tensor, pooling: Tensor) -> Tensor:
    return pooling @ layer


def _not_halved(layer: Tensor, pooling: Tensor) -> Tensor:
    return pooling @ (layer + torch.eye(len(layer)))


def _top_layer_alone(layer: Tensor, pooling: Tensor) -> Tensor:
    return pooling


def _mean_of_both(layer: Tensor, pooling: Tensor) -> Tensor:
    return (pooling + layer.mean(0)) / 2


def _entry_by_entry(layer: Tensor, pooling: Tensor) -> Tensor:
    return pooling * ((layer + torch.eye(len(layer))) / 2).mean(0)


def _question_is_a_token(layer: Tensor, pooling: Tensor) -> Tensor:
    first = torch.eye(len(layer))[0]
    return _rolled_out(layer, (pooling + first) / 2)


_LAYER = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.3, 0.3, 0.4]])
_QUESTION = torch.tensor([0.6, 0.3, 0.1])

ch05_ex4 = Exercise(
    "Exercise 5.4",
    [
        Case((_LAYER, _QUESTION)),
        Case((_LAYER.flip(0), torch.tensor([0.0, 1.0, 0.0]))),
        Case((torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0.25, 0.75]))),
    ],
    _rolled_out,
    [
        Mistake(
            _turned,
            "Row i of the layer says what token i is made of. Yours sums over what a token looks "
            "at instead of over the tokens that the question looks at: multiply from the left.",
        ),
        Mistake(_no_residual, "The residual is missing: half of each token is what came in."),
        Mistake(_not_halved, "The shares sum to 2; a layer passes on (A + I) / 2."),
        Mistake(
            _top_layer_alone,
            "These are the weights on the tokens of the upper layer, which are mixtures already.",
        ),
        Mistake(_mean_of_both, "The layers follow each other, so their weights multiply."),
        Mistake(
            _entry_by_entry,
            "Yours multiplies entry by entry; it takes a matrix product, a sum over the tokens "
            "in between.",
        ),
        Mistake(
            _question_is_a_token,
            "The question is a learned vector and no token, so its own residual leads to none.",
        ),
    ],
)


# Exercise 5: a test for a policy ------------------------------------------------------------------

Network = Callable[[Tensor], Tensor]


def _rows(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return who is there (B, 4, 1), the agent (B, 1, 2) and the other tokens (B, 3, 2)."""
    rows = obs.unflatten(-1, (4, 3))
    return (rows[..., :1] > 0.5).float(), rows[:, :1, 1:], rows[:, 1:, 1:]


def _chooses(obs: Tensor) -> Tensor:
    there, me, others = _rows(obs)
    scores = (me * others).sum(-1).masked_fill(there[:, 1:, 0] == 0, -1e9)
    weights = scores.softmax(-1) * there[:, 1:, 0]
    return (weights.unsqueeze(1) @ others).squeeze(1) + me.squeeze(1)


def _sums(obs: Tensor) -> Tensor:
    there, me, others = _rows(obs)
    return ((me - others).tanh() * there[:, 1:]).sum(1)


def _drops_out(obs: Tensor) -> Tensor:
    return torch.nn.functional.dropout(_chooses(obs), 0.5)


def _mixes_the_batch(obs: Tensor) -> Tensor:
    out = _sums(obs)
    return out - out.mean(0)


def _reads_padding(obs: Tensor) -> Tensor:
    _, me, others = _rows(obs)
    return (me - others).tanh().sum(1)


def _knows_the_slots(obs: Tensor) -> Tensor:
    there, me, others = _rows(obs)
    slot = torch.tensor([[1.0], [2.0], [3.0]])
    return ((me - others).tanh() * there[:, 1:] * slot).sum(1)


def _looks_at_itself(obs: Tensor) -> Tensor:
    return _rows(obs)[1].squeeze(1).tanh()


ch05_ex5 = Exercise(
    "Exercise 5.5",
    [
        Case((_chooses,), "Your test refuses a sound network, one that attends."),
        Case((_sums,), "Your test refuses a sound network, one that sums over what is there."),
        Case(
            (_drops_out,),
            "Your test passes a network with dropout: ask it the same thing twice.",
        ),
        Case(
            (_mixes_the_batch,),
            "Your test passes a network that subtracts the mean of the batch: ask for one row "
            "alone, or for the rest in another company.",
        ),
        Case(
            (_reads_padding,),
            "Your test passes a network that reads what stands in an absent token: change those "
            "numbers and leave the flag at 0.",
        ),
        Case(
            (_knows_the_slots,),
            "Your test passes a network for which the slots differ: let the tokens behind the "
            "agent change places, with their flags.",
        ),
        Case(
            (_looks_at_itself,),
            "Your test passes a network that looks at the agent's own token alone: change one that "
            "is there, and the logits must change.",
        ),
    ],
    lambda network: network in (_chooses, _sums),
    [
        Mistake(lambda network: True, "Your test passes whatever it is given."),
        Mistake(lambda network: False, "Your test fails whatever it is given."),
    ],
)
