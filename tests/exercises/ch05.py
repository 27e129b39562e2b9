"""Wrong answers to the exercises of chapter 5, as readers write them, with a part of their hint.

They are written independently of :mod:`marl_lib.check`, and not always alike.
"""

import numpy as np
import torch

# Exercise 1 ---------------------------------------------------------------------------------------


def _stack(past, length, flag=lambda there: float(there), empty=lambda past: 0 * past[0]):
    """Build the tokens one by one; `flag` and `empty` are where people go wrong."""
    rows = []
    for ago in reversed(range(length)):
        at = len(past) - 1 - ago
        there = at >= 0
        numbers = past[at] if there else empty(past)
        rows.append(torch.cat([torch.tensor([flag(there)]), numbers]))
    return torch.stack(rows)


def ex1_newest_on_top(past, length):
    return _stack(past, length)[torch.arange(length - 1, -1, -1)]


def ex1_padding_behind(past, length):
    kept = [torch.cat([torch.ones(1), row]) for row in past[-length:]]
    while len(kept) < length:
        kept.append(torch.zeros(1 + past.shape[1]))
    return torch.stack(kept)


def ex1_first_instead_of_last(past, length):
    return _stack(past[:length], length)


def ex1_everything_is_there(past, length):
    return _stack(past, length, flag=lambda there: 1.0)


def ex1_padded_with_the_start(past, length):
    return _stack(past, length, empty=lambda past: past[0])


def ex1_stood_still_before(past, length):
    return _stack(past, length, flag=lambda there: 1.0, empty=lambda past: past[0])


def ex1_flag_behind(past, length):
    tokens = _stack(past, length)
    return torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)


def ex1_no_flags(past, length):
    return _stack(past, length)[:, 1:]


def ex1_no_padding(past, length):
    kept = past[-length:]
    return torch.cat([torch.ones(len(kept), 1), kept], dim=1)


def ex1_flags_are_upside_down(past, length):
    return _stack(past, length, flag=lambda there: float(not there))


# Exercise 2 ---------------------------------------------------------------------------------------


def _each(weights, index, present, of_heads=np.mean, chance=lambda row: 1 / sum(row)):
    pairs = zip(weights.numpy(), index.tolist(), present.tolist(), strict=True)
    return [(of_heads(w[:, i]), chance(row)) for w, i, row in pairs]


def ex2_all_slots(weights, index, present):
    found = _each(weights, index, present, chance=lambda row: 1 / len(row))
    return np.mean([on / by_chance for on, by_chance in found])


def ex2_means_first(weights, index, present):
    on, by_chance = np.array(_each(weights, index, present)).T
    return on.mean() / by_chance.mean()


def ex2_minus(weights, index, present):
    return np.mean([on - by_chance for on, by_chance in _each(weights, index, present)])


def ex2_best_head(weights, index, present):
    return np.mean([a / b for a, b in _each(weights, index, present, of_heads=np.max)])


def ex2_all_heads_added(weights, index, present):
    return np.mean([a / b for a, b in _each(weights, index, present, of_heads=np.sum)])


def ex2_heaviest_row(weights, index, present):
    heaviest = weights.mean(1).max(-1).values
    return (heaviest * present.float().sum(-1)).mean()


def ex2_wrong_way_up(weights, index, present):
    return np.mean([on * by_chance for on, by_chance in _each(weights, index, present)])


def ex2_no_mean(weights, index, present):
    return np.array([on / by_chance for on, by_chance in _each(weights, index, present)])


def ex2_chance_over_weight(weights, index, present):
    return np.mean([by_chance / max(on, 1e-3) for on, by_chance in _each(weights, index, present)])


def ex2_index_without_an_axis(weights, index, present):
    return (weights.mean(1).gather(1, index) * present.sum(1)).mean()


# Exercise 3 ---------------------------------------------------------------------------------------


def _count(queries, count, size, width, hidden, actions, **changed):
    """Count layer by layer; what is changed is multiplied by another factor."""
    parts = {
        "embedding": count * size * width,
        "q": queries * width * width,
        "k": count * width * width,
        "v": count * width * width,
        "qk": queries * count * width,
        "wv": queries * count * width,
        "o": queries * width * width,
        "up": queries * width * 2 * width,
        "down": queries * 2 * width * width,
        "tail": width * hidden + hidden * actions,
    }
    return sum(number * changed.get(name, 1) for name, number in parts.items())


def ex3_matrices_alone(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, qk=0, wv=0)


def ex3_scores_alone(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, wv=0)


def ex3_no_output_layer(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, o=0)


def ex3_keys_are_values(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, v=0)


def ex3_no_feed_forward(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, up=0, down=0)


def ex3_no_embedding(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, embedding=0)


def ex3_encoder_alone(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, tail=0)


def ex3_self_attention(count, size, width, hidden, actions):
    tail = width * hidden + hidden * actions
    return _count(count, count, size, width, hidden, actions, tail=0) + tail


def ex3_queries_of_all(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, q=count)


def ex3_square_feed_forward(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, up=0.5, down=0.5)


def ex3_feed_forward_on_all(count, size, width, hidden, actions):
    return _count(1, count, size, width, hidden, actions, up=count, down=count)


def ex3_twice(count, size, width, hidden, actions):
    return 2 * _count(1, count, size, width, hidden, actions)  # additions too


# Exercise 4 ---------------------------------------------------------------------------------------


def ex4_other_side(layer, pooling):
    return torch.einsum("ij,j->i", (layer + torch.eye(*layer.shape)) / 2, pooling)


def ex4_weights_alone(layer, pooling):
    return torch.einsum("i,ij->j", pooling, layer)


def ex4_sums_to_two(layer, pooling):
    return pooling + pooling @ layer


def ex4_only_the_pooling(layer, pooling):
    return pooling / pooling.sum()


def ex4_averages_the_layers(layer, pooling):
    return torch.stack([pooling, layer.mean(0)]).mean(0)


def ex4_product_of_entries(layer, pooling):
    passed_on = 0.5 * layer + 0.5 * torch.eye(len(pooling))
    return passed_on.mean(dim=0) * pooling


def ex4_residual_of_the_question(layer, pooling):
    passed_on = 0.5 * layer + 0.5 * torch.eye(len(pooling))
    own = torch.zeros_like(pooling)
    own[0] = 1.0
    return (0.5 * pooling + 0.5 * own) @ passed_on


def ex4_matrix(layer, pooling):
    return pooling[:, None] * (layer + torch.eye(len(layer))) / 2


def ex4_identity_times_two(layer, pooling):
    return pooling @ (layer + 2 * torch.eye(len(layer))) / 3


# Exercise 5 ---------------------------------------------------------------------------------------


def _observations(n=32, absent=(3,)):
    rows = torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(1))
    rows[..., 0] = 1.0
    rows[:, list(absent), 0] = 0.0
    return rows


def _says(network, rows, seeded=False):
    if seeded:
        torch.manual_seed(0)
    return network(rows.reshape(len(rows), 12))


def _equal(a, b):
    return torch.allclose(a, b, atol=1e-5)


def _test_of(seeded=False, **parts):
    """Return a test that asks all questions but those set to False."""

    def test(network):
        rows = _observations()
        said = _says(network, rows, seeded)
        junk, moved = rows.clone(), rows.clone()
        junk[:, 3, 1:] *= -3
        moved[:, 2, 1:] -= 2
        one_by_one = torch.cat([_says(network, rows[i : i + 1]) for i in range(len(rows))])
        answers = {
            "twice": _equal(_says(network, rows, seeded), said),
            "alone": _equal(one_by_one, said),
            "padding": _equal(_says(network, junk, seeded), said),
            "order": _equal(_says(network, rows[:, [0, 2, 3, 1]], seeded), said),
            "listens": not _equal(_says(network, moved, seeded), said),
        }
        return all(answers[name] for name in answers if parts.get(name, True))

    return test


def ex5_yes(network):
    return True


def ex5_no(network):
    return False


def ex5_wants_small_logits(network):
    return _test_of()(network) and bool((_says(network, _observations()).abs() <= 3).all())


def ex5_moves_the_agent(network):
    rows = _observations()
    return _equal(_says(network, rows), _says(network, rows[:, [1, 0, 2, 3]]))


def ex5_seeds_before_it_asks(network):
    return _test_of(seeded=True, alone=False)(network)


def ex5_whole_batches(network):
    return _test_of(alone=False)(network)


def ex5_nothing_is_absent(network):
    return _test_of(padding=False)(network)


def ex5_keeps_the_order(network):
    return _test_of(order=False)(network)


def ex5_hears_nothing(network):
    return _test_of(listens=False)(network)


def ex5_refuses_sums(network):
    rows = _observations()
    sound = _test_of()(network)
    rows[:, 1:, 0] = 0  # nobody there: "must not be zero"
    return sound and bool((_says(network, rows) != 0).any())


WRONG = {
    "ch05_ex1": {
        ex1_newest_on_top: "newest stands last",
        ex1_padding_behind: "stand before the observations",
        ex1_first_instead_of_last: "keep the last",
        ex1_everything_is_there: "a moment that never was",
        ex1_padded_with_the_start: "repeat the first observation",
        ex1_stood_still_before: "as if the world had stood still",
        ex1_flag_behind: "not after them",
        ex1_no_flags: "put the flags in front",
        ex1_no_padding: "The shape should be (4, 3), yours is (2, 3)",
        ex1_flags_are_upside_down: "the answer is",
    },
    "ch05_ex2": {
        ex2_all_slots: "not over all L",
        ex2_means_first: "Divide in each state",
        ex2_minus: "than chance; divide",
        ex2_best_head: "not the largest of them",
        ex2_all_heads_added: "not their sum",
        ex2_heaviest_row: "whichever it is",
        ex2_wrong_way_up: "multiply by the number",
        ex2_no_mean: "it remains to take the mean",
        ex2_chance_over_weight: "the answer is",
        ex2_index_without_an_axis: "RuntimeError on its line",
    },
    "ch05_ex3": {
        ex3_matrices_alone: "Attention itself multiplies too",
        ex3_scores_alone: "multiplied by its weight",
        ex3_no_output_layer: "one more layer",
        ex3_keys_are_values: "a matrix of their own",
        ex3_no_feed_forward: "E to 2E and back",
        ex3_no_embedding: "embedded first",
        ex3_encoder_alone: "after the block",
        ex3_self_attention: "every token asks",
        ex3_queries_of_all: "applied once",
        ex3_square_feed_forward: "twice as wide inside",
        ex3_feed_forward_on_all: "of the query alone",
        ex3_twice: "the answer is",
    },
    "ch05_ex4": {
        ex4_other_side: "multiply from the left",
        ex4_weights_alone: "half of each token is what came in",
        ex4_sums_to_two: "sum to 2",
        ex4_only_the_pooling: "mixtures already",
        ex4_averages_the_layers: "their weights multiply",
        ex4_product_of_entries: "a sum over the tokens in between",
        ex4_residual_of_the_question: "no token",
        ex4_matrix: "The shape should be (3,), yours is (3, 3)",
        ex4_identity_times_two: "the answer is",
    },
    "ch05_ex5": {
        ex5_yes: "passes whatever",
        ex5_no: "fails whatever",
        ex5_wants_small_logits: "refuses a sound network, one that attends",
        ex5_moves_the_agent: "fails whatever",
        ex5_refuses_sums: "one that sums over what is there",
        ex5_seeds_before_it_asks: "with dropout",
        ex5_whole_batches: "subtracts the mean of the batch",
        ex5_nothing_is_absent: "in an absent token",
        ex5_keeps_the_order: "the slots differ",
        ex5_hears_nothing: "own token alone",
    },
}
