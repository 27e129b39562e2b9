"""Attention against torch's own, against loops written out, and against what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from marl_lib.config import ConfigError
from marl_lib.nn.attention import (
    AttentionBlock,
    AttentionPooling,
    FeatureTokens,
    LearnedPositions,
    MultiHeadAttention,
    attend,
    attention_weights,
    causal_mask,
    load_torch_attention,
    sinusoidal_positions,
)
from marl_lib.replicates import Replicates

BOTH = pytest.mark.parametrize("fused", [True, False])
NORMS = pytest.mark.parametrize("norm", ["pre", "post"])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_mask(*shape: int, seed: int = 0) -> Tensor:
    """Return a random mask in which every row has at least one place to look."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fresh(module: nn.Module) -> nn.Module:
    """Return ``module`` with every parameter random, so that no part hides behind a zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


# Scaled dot products ------------------------------------------------------------------------------


def by_loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[list, list]:
    """Return output and weights of one head by equation 1, one number at a time."""
    out, weights = [], []
    for i in range(len(query)):
        row = [0.0] * len(key)
        places = [j for j in range(len(key)) if mask[i, j]]
        scores = {j: float(query[i] @ key[j]) / math.sqrt(query.shape[1]) for j in places}
        total = sum(math.exp(s) for s in scores.values())
        for j in places:
            row[j] = math.exp(scores[j]) / total
        weights.append(row)
        out.append([sum(w * float(v[c]) for w, v in zip(row, value, strict=True)) for c in (0, 1)])
    return out, weights


@given(
    length=st.integers(1, 4),
    keys=st.integers(1, 5),
    d=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_attend_is_equation_1_row_by_row(length: int, keys: int, d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(n, d, generator=g).double() for n in (length, keys))
    value = torch.randn(keys, 2, generator=g).double()
    mask = torch.rand(length, keys, generator=g) < 0.6  # rows with nowhere to look included
    expected_out, expected_weights = by_loops(query, key, value, mask)
    out, weights = attend(query, key, value, mask, need_weights=True)
    assert weights is not None
    np.testing.assert_allclose(weights, expected_weights, atol=1e-12)
    np.testing.assert_allclose(out, expected_out, atol=1e-12)
    fused, none = attend(query, key, value, mask)
    assert none is None
    np.testing.assert_allclose(fused, expected_out, atol=1e-12)


@given(scale=st.floats(0.1, 1e4), seed=st.integers(0, 2**31))
def test_rows_sum_to_one_and_masked_places_are_exactly_zero(scale: float, seed: int) -> None:
    query, key = scale * randn(2, 3, 4, 8, seed=seed), randn(2, 3, 5, 8, seed=seed + 1)
    mask = some_mask(2, 1, 4, 5, seed=seed)
    for given_mask in (None, mask):
        weights = attention_weights(query, key, given_mask)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    assert (weights[~mask.expand_as(weights)] == 0).all()
    assert (weights >= 0).all()


def test_without_a_mask_it_is_a_mask_of_true() -> None:
    query, key = randn(3, 4, 8), randn(3, 5, 8, seed=1)
    every = torch.ones(4, 5, dtype=torch.bool)
    torch.testing.assert_close(
        attention_weights(query, key), attention_weights(query, key, every), rtol=0, atol=0
    )


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_masked_value_cannot_be_seen_whatever_it_is(fused: bool, dtype: torch.dtype) -> None:
    query, key, value = (randn(2, n, 4, seed=n).to(dtype) for n in (3, 5, 5))
    mask = some_mask(2, 3, 5)
    mask[:, :, 2] = False
    changed_key, changed_value = key.clone(), value.clone()
    changed_key[:, 2], changed_value[:, 2] = 1e4, -1e4
    before = attend(query, key, value, mask, fused=fused)[0]
    after = attend(query, changed_key, changed_value, mask, fused=fused)[0]
    assert torch.equal(before, after)


@BOTH
@pytest.mark.parametrize("need_weights", [True, False])
def test_a_row_with_nowhere_to_look_is_zero_and_so_is_its_gradient(
    fused: bool, need_weights: bool
) -> None:
    query, key, value = (randn(2, n, 4, seed=n).requires_grad_() for n in (3, 5, 5))
    mask = some_mask(2, 3, 5)
    mask[0, 1], mask[1] = False, False
    out, weights = attend(query, key, value, mask, need_weights=need_weights, fused=fused)
    assert (out[0, 1] == 0).all() and (out[1] == 0).all() and (out[0, 0] != 0).any()
    if weights is not None:
        assert (weights[0, 1] == 0).all() and (weights[1] == 0).all()
    out.square().sum().backward()
    for x in (query, key, value):
        assert x.grad is not None and torch.isfinite(x.grad).all()
        assert (x.grad[0] != 0).any() and (x.grad[1] == 0).all()
    assert query.grad is not None and (query.grad[0, 1] == 0).all()


@pytest.mark.parametrize("shape", [(5,), (3, 5), (1, 5), (3, 1), (2, 1, 5), (2, 3, 5), (1, 1)])
@BOTH
def test_masks_broadcast(shape: tuple[int, ...], fused: bool) -> None:
    query, key, value = (randn(2, 2, n, 4, seed=n) for n in (3, 5, 5))
    query.requires_grad_()  # torch then takes another kernel, which is stricter about masks
    mask = some_mask(*shape)
    whole = attend(query, key, value, mask.expand(2, 2, 3, 5).clone(), fused=fused)[0]
    torch.testing.assert_close(attend(query, key, value, mask, fused=fused)[0], whole)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 4)])
def test_fused_equals_written_out(lead: tuple[int, ...]) -> None:
    inputs = [randn(*lead, n, 6, seed=n).requires_grad_() for n in (3, 5, 4)]
    query, key, value = inputs[0], inputs[1], inputs[2].repeat_interleave(2, -2)[..., :5, :]
    for mask in (None, some_mask(3, 5)):
        grads = []
        outs = []
        for fused in (True, False):
            out, _ = attend(query, key, value, mask, fused=fused)
            outs.append(out)
            grads.append(torch.autograd.grad(out.sin().sum(), inputs, retain_graph=True))
        torch.testing.assert_close(*outs)
        torch.testing.assert_close(*grads)


def test_causal_mask() -> None:
    expected = [[j <= i for j in range(5)] for i in range(5)]
    assert causal_mask(5).tolist() == expected
    assert causal_mask(1).tolist() == [[True]]


@BOTH
def test_under_a_causal_mask_the_future_changes_nothing_before_it(fused: bool) -> None:
    layer = fresh(MultiHeadAttention(8, 2, fused=fused))
    x = randn(2, 6, 8)
    out, _ = layer(x, mask=causal_mask(6))
    for t in range(1, 6):
        later = x.clone()
        later[:, t:] = randn(2, 6 - t, 8, seed=9)
        changed, _ = layer(later, mask=causal_mask(6))
        assert torch.equal(changed[:, :t], out[:, :t])
        assert not torch.isclose(changed[:, t:], out[:, t:]).all(-1).any()


# Heads, against torch's own -----------------------------------------------------------------------


def pair(d_model: int, heads: int, d_context: int | None, fused: bool = True) -> tuple:
    """Return ours and torch's multi-head attention with the same weights."""
    theirs = nn.MultiheadAttention(
        d_model, heads, kdim=d_context, vdim=d_context, batch_first=True
    ).eval()
    fresh(theirs)
    ours = MultiHeadAttention(d_model, heads, d_context, fused=fused).eval()
    load_torch_attention(ours, theirs)
    return ours, theirs


@BOTH
@pytest.mark.parametrize("d_context", [None, 5])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 6), (4, 1), (3, 7), (7, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_torch_multihead_attention(
    fused: bool, d_context: int | None, queries: int, keys: int, masked: bool
) -> None:
    ours, theirs = pair(12, 3, d_context, fused)
    query, context = randn(4, queries, 12), randn(4, keys, d_context or 12, seed=1)
    mask = some_mask(4, queries, keys) if masked else None
    # theirs: True forbids, and a mask for each row of the batch has an axis of heads in front
    forbidden = None if mask is None else (~mask).repeat_interleave(3, 0)
    expected, expected_weights = theirs(
        query, context, context, attn_mask=forbidden, average_attn_weights=False
    )
    out, weights = ours(query, context, mask, need_weights=True)
    assert weights.shape == (4, 3, queries, keys)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(ours(query, context, mask)[0], expected)


def test_equals_torch_on_a_mask_of_padding_and_a_causal_one() -> None:
    ours, theirs = pair(8, 2, None)
    x, lengths = randn(4, 6, 8), torch.tensor([1, 3, 5, 6])
    there = torch.arange(6) < lengths[:, None]  # (B, S)
    padding, future = {"key_padding_mask": ~there}, {"attn_mask": ~causal_mask(6)}
    for mask, forbidden in (
        (there[:, None], padding),
        (causal_mask(6), future),
        (there[:, None] & causal_mask(6), padding | future),
    ):
        torch.testing.assert_close(ours(x, mask=mask)[0], theirs(x, x, x, **forbidden)[0])


def test_gradients_equal_torchs() -> None:
    ours, theirs = pair(8, 2, None)
    query, context = randn(3, 4, 8), randn(3, 5, 8, seed=1)
    ours(query, context)[0].sin().sum().backward()
    theirs(query, context, context)[0].sin().sum().backward()
    stacked = torch.cat([layer.weight.grad for layer in (ours.query, ours.key, ours.value)])
    torch.testing.assert_close(stacked, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.out.weight.grad, theirs.out_proj.weight.grad)


def test_any_number_of_batch_axes() -> None:
    layer = fresh(MultiHeadAttention(8, 2, 6))
    query, context = randn(2, 3, 4, 8), randn(2, 3, 5, 6, seed=1)
    mask = some_mask(2, 3, 4, 5)
    out, weights = layer(query, context, mask, need_weights=True)
    for i, j in np.ndindex(2, 3):
        one, one_weights = layer(query[i, j], context[i, j], mask[i, j], need_weights=True)
        torch.testing.assert_close(out[i, j], one)
        torch.testing.assert_close(weights[i, j], one_weights)


@BOTH
def test_a_query_with_nowhere_to_look_gets_the_bias_of_the_last_layer(fused: bool) -> None:
    layer = fresh(MultiHeadAttention(8, 2, fused=fused))
    mask = torch.zeros(3, 1, 4, dtype=torch.bool)
    mask[0] = True
    out, _ = layer(randn(3, 4, 8), mask=mask)
    torch.testing.assert_close(out[1:], layer.out.bias.expand(2, 4, 8))
    assert not torch.isclose(out[0], layer.out.bias).all(-1).any()


def test_a_bias_of_the_keys_changes_nothing() -> None:
    """It adds the same to all scores of a row; this is why its gradient vanishes (below)."""
    layer = fresh(MultiHeadAttention(8, 2))
    before = layer(randn(2, 5, 8), need_weights=True)
    with torch.no_grad():
        layer.key.bias += 3.0
    torch.testing.assert_close(layer(randn(2, 5, 8), need_weights=True), before)


@pytest.mark.parametrize("seed", range(3))
def test_permuting_the_tokens_permutes_outputs_and_weights(seed: int) -> None:
    layer, x = fresh(MultiHeadAttention(8, 2)), randn(2, 6, 8, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    mask = some_mask(6, 6, seed=seed)
    out, weights = layer(x, mask=mask, need_weights=True)
    moved, moved_weights = layer(x[:, order], mask=mask[order][:, order], need_weights=True)
    torch.testing.assert_close(moved, out[:, order])
    torch.testing.assert_close(moved_weights, weights[..., order, :][..., order])
    # with positions the order is told
    told, _ = layer(x + sinusoidal_positions(6, 8))
    told_moved, _ = layer(x[:, order] + sinusoidal_positions(6, 8))
    assert not torch.allclose(told_moved, told[:, order], atol=1e-2)


def test_the_order_of_what_is_looked_at_does_not_matter() -> None:
    layer, query, context = fresh(MultiHeadAttention(8, 2)), randn(2, 3, 8), randn(2, 6, 8, seed=1)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    out, weights = layer(query, context, need_weights=True)
    moved, moved_weights = layer(query, context[:, order], need_weights=True)
    torch.testing.assert_close(moved, out)
    torch.testing.assert_close(moved_weights, weights[..., order])


# Dropout ------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("make", [MultiHeadAttention, AttentionBlock])
def test_dropout_acts_in_training_alone(make: type, fused: bool) -> None:
    plain = make(8, 2, fused=fused)
    dropping = make(8, 2, dropout=0.5, fused=fused)
    dropping.load_state_dict(plain.state_dict())
    x = randn(4, 5, 8)
    dropping.eval()
    torch.testing.assert_close(dropping(x)[0], plain(x)[0], rtol=0, atol=0)
    dropping.train()
    assert not torch.allclose(dropping(x)[0], dropping(x)[0])
    # what is shown are the weights as they were before dropout
    _, shown = dropping(x, need_weights=True)
    torch.testing.assert_close(shown, plain(x, need_weights=True)[1])


@BOTH
def test_dropout_takes_the_share_it_is_told_and_keeps_the_mean(fused: bool) -> None:
    n = 60
    query, key = torch.zeros(1, n, 4), torch.zeros(1, n, 4)
    out, _ = attend(query, key, torch.eye(n)[None], dropout=0.25, fused=fused)  # the weights
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / n / 0.75))


@pytest.mark.parametrize("part", ["attention", "feed"])
def test_dropout_acts_on_what_each_sub_layer_of_a_block_adds(part: str) -> None:
    block, x = fresh(AttentionBlock(8, 2, dropout=0.5)), randn(40, 5, 8)
    block.attention.dropout = 0.0
    silent = block.feed[2] if part == "attention" else block.attention.out
    with torch.no_grad():
        silent.weight.zero_(), silent.bias.zero_()
    whole = block.eval()(x)[0] - x
    added = block.train()(x)[0] - x
    kept = added.abs() > 1e-6
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(added[kept], 2 * whole[kept], atol=1e-5, rtol=1e-4)
    block.pre = False  # the other order drops too
    assert not torch.allclose(block.train()(x)[0], block.eval()(x)[0])


@BOTH
def test_weights_are_given_to_those_who_ask(fused: bool) -> None:
    x = randn(2, 5, 8)
    for module in (MultiHeadAttention(8, 2, fused=fused), AttentionBlock(8, 2, fused=fused)):
        assert module(x)[1] is None
        assert module(x, need_weights=True)[1].shape == (2, 2, 5, 5)
    assert AttentionPooling(8, 2)(x)[1] is None


# Blocks -------------------------------------------------------------------------------------------


@NORMS
@pytest.mark.parametrize("d_context", [None, 5])
def test_block_is_its_sub_layers_in_order(norm: str, d_context: int | None) -> None:
    block = fresh(AttentionBlock(8, 2, d_context, d_hidden=7, norm=norm))
    x, context = randn(2, 3, 8), None if d_context is None else randn(2, 4, 5, seed=1)
    out, weights = block(x, context, need_weights=True)
    attention, feed = block.attention, block.feed
    if norm == "pre":
        y = block.norm_attention(x)
        seen = y if context is None else block.norm_context(context)
        looked, expected_weights = attention(y, seen, need_weights=True)
        z = x + looked
        expected = z + feed(block.norm_feed(z))
    else:
        looked, expected_weights = attention(x, x if context is None else context, None, True)
        z = block.norm_attention(x + looked)
        expected = block.norm_feed(z + feed(z))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert feed[0].out_features == 7


def test_post_norm_block_equals_torchs_encoder_layer() -> None:
    for norm_first in (False, True):
        theirs = nn.TransformerEncoderLayer(
            8, 2, dim_feedforward=16, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        ours = AttentionBlock(8, 2, norm="pre" if norm_first else "post")
        fresh(theirs)
        load_torch_attention(ours.attention, theirs.self_attn)
        for mine, other in (
            (ours.norm_attention, theirs.norm1),
            (ours.norm_feed, theirs.norm2),
            (ours.feed[0], theirs.linear1),
            (ours.feed[2], theirs.linear2),
        ):
            mine.load_state_dict(other.state_dict())
        x, mask = randn(3, 5, 8), causal_mask(5)
        torch.testing.assert_close(ours(x, mask=mask)[0], theirs(x, src_mask=~mask))


def test_post_norm_output_is_normalised_and_pre_norm_passes_its_input_on() -> None:
    post, pre = AttentionBlock(16, 2, norm="post"), AttentionBlock(16, 2, norm="pre")
    x = 10 * randn(4, 3, 16)
    out, _ = post(x)
    torch.testing.assert_close(out.mean(-1), torch.zeros(4, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(4, 3), atol=1e-3, rtol=0)
    with torch.no_grad():  # sub-layers that have learned nothing
        for layer in (pre.attention.out, pre.feed[2]):
            layer.weight.zero_(), layer.bias.zero_()
    assert torch.equal(pre(x)[0], x)


# Pooling ------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_pooling_ignores_padding_its_content_and_its_length(lengths: list[int], seed: int) -> None:
    pooling, x = fresh(AttentionPooling(8, 2)), randn(len(lengths), 6, 8, seed=seed)
    there = torch.arange(6) < torch.tensor(lengths)[:, None]
    pooled, weights = pooling(x, there, need_weights=True)
    assert pooled.shape == (len(lengths), 8) and weights.shape == (len(lengths), 2, 6)
    assert (weights.masked_select(~there[:, None]) == 0).all()
    junk = torch.where(there[..., None], x, torch.full_like(x, 1e6))
    assert torch.equal(pooling(junk, there)[0], pooled)
    for row, length in enumerate(lengths):  # each alone, without any padding
        if length:
            alone, _ = pooling(x[row, :length])
            torch.testing.assert_close(pooled[row], alone)
            torch.testing.assert_close(weights[row].sum(-1), torch.ones(2))
        else:
            assert (pooled[row] == 0).all()


def test_pooling_is_bahdanaus_equation() -> None:
    pooling, x = fresh(AttentionPooling(4, 2)).double().requires_grad_(False), randn(5, 4).double()
    w, b = pooling.hidden.weight, pooling.hidden.bias
    for head in range(2):
        scores = [float(pooling.score.weight[head] @ torch.tanh(w @ row + b)) for row in x]
        share = np.exp(scores) / np.exp(scores).sum()
        values = np.array([pooling.value(row)[2 * head : 2 * head + 2].tolist() for row in x])
        pooled, weights = pooling(x, need_weights=True)
        np.testing.assert_allclose(weights[head], share, atol=1e-12)
        np.testing.assert_allclose(pooled[2 * head : 2 * head + 2], share @ values)


def test_pooling_does_not_see_the_order_unless_it_is_told() -> None:
    pooling, x = fresh(AttentionPooling(8, 2)), randn(3, 6, 8)
    pooled, backwards = pooling(x)[0], pooling(x.flip(1))[0]
    torch.testing.assert_close(backwards, pooled)
    at = sinusoidal_positions(6, 8)
    assert not torch.allclose(pooling(x + at)[0], pooling(x.flip(1) + at)[0], atol=1e-2)


# Positions and feature tokens ---------------------------------------------------------------------


@pytest.mark.parametrize(("length", "width"), [(1, 2), (7, 6), (40, 32)])
def test_sinusoids_by_an_independent_formula(length: int, width: int) -> None:
    expected = np.empty((length, width))
    for p in range(length):
        for column in range(width):
            angle = p / 10_000 ** (2 * (column // 2) / width)
            expected[p, column] = math.sin(angle) if column % 2 == 0 else math.cos(angle)
    np.testing.assert_allclose(sinusoidal_positions(length, width), expected, atol=2e-6)


def test_products_of_sinusoids_depend_on_the_distance_alone() -> None:
    table = sinusoidal_positions(30, 16)
    products = table @ table.T
    for distance in range(30):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)


def test_learned_positions_are_added_and_learned() -> None:
    positions, x = LearnedPositions(5, 8), randn(2, 5, 8)
    torch.testing.assert_close(positions(x) - x, positions.table.expand(2, 5, 8), atol=1e-6, rtol=0)
    assert 0.01 < positions.table.std() < 0.03
    positions(x).sum().backward()
    assert (positions.table.grad == 2).all()


def test_feature_tokens() -> None:
    tokens, x = FeatureTokens(3, 4), randn(2, 3)
    out = tokens(x)
    assert out.shape == (2, 3, 4)
    for b, i in np.ndindex(2, 3):
        torch.testing.assert_close(out[b, i], x[b, i] * tokens.weight[i] + tokens.bias[i])
    # equal numbers in two features make different tokens
    same = tokens(torch.ones(3))
    assert not torch.isclose(same[0], same[1]).any()
    many = FeatureTokens(400, 64)  # the number outweighs the bias: 1 against 1 / √64
    assert many.weight.std().item() == pytest.approx(1, abs=0.02)
    assert many.bias.std().item() == pytest.approx(1 / 8, abs=0.01)


# Learning, and many copies at once ----------------------------------------------------------------

MODULES = {
    "heads": lambda: MultiHeadAttention(8, 2, fused=False),
    "pre block": lambda: AttentionBlock(8, 2, fused=False),
    "post block": lambda: AttentionBlock(8, 2, norm="post", fused=False),
    "pooling": lambda: AttentionPooling(8, 2),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module = MODULES[name]()
    module(randn(4, 5, 8))[0].sin().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
        largest = parameter.grad.abs().max().item()
        if key.endswith("key.bias"):  # adds the same to all scores of a row
            assert largest < 1e-5
        else:
            assert largest > 1e-4, key


def test_cross_attention_block_and_tokens_get_gradients_too() -> None:
    tokens, block = FeatureTokens(5, 6), AttentionBlock(8, 2, d_context=6)
    block(randn(2, 3, 8), tokens(randn(2, 5)))[0].sin().sum().backward()
    for module in (tokens, block):
        for name, parameter in module.named_parameters():
            if not name.endswith("key.bias"):
                assert parameter.grad is not None and parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("name", MODULES)
def test_replicates_equal_modules_of_their_own(name: str) -> None:
    class Output(nn.Module):
        """What is lifted returns tensors, and no None for weights that nobody asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = MODULES[name]()

        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            if name == "pooling":
                return self.inner(x, mask[..., 0, :], need_weights=True)
            return self.inner(x, mask=mask, need_weights=True)

    nets = Replicates(Output, [3, 1, 4])
    x, mask = randn(3, 6, 5, 8), some_mask(3, 6, 1, 5)
    mask[0, 0] = False
    out, weights = nets(x, mask)
    nets.backward(out.square().mean((1, 2)) if name == "pooling" else out.square().mean((1, 2, 3)))
    for r in range(3):
        own = Output()
        own.load_state_dict({n: p[r].detach().clone() for n, p in nets.params.items()})
        expected, expected_weights = own(x[r], mask[r])
        torch.testing.assert_close(out[r], expected)
        torch.testing.assert_close(weights[r], expected_weights)
        expected.square().mean().backward()
        for n, p in own.named_parameters():
            torch.testing.assert_close(nets.grads[n][r], p.grad, atol=1e-6, rtol=1e-4)


def test_attention_over_one_token_is_a_linear_layer() -> None:
    """Why a sequence of length 1 is no use: weights of 1.0, nothing to learn in query and key."""
    layer = fresh(MultiHeadAttention(8, 2))
    x = randn(6, 1, 8)
    out, weights = layer(x, need_weights=True)
    assert (weights == 1).all()
    torch.testing.assert_close(out, layer.out(layer.value(x)))
    out.sin().sum().backward()
    assert (layer.query.weight.grad == 0).all() and (layer.key.weight.grad == 0).all()
    assert (layer.value.weight.grad != 0).any()


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiHeadAttention(8, 0), "n_heads must be at least 1, got 0"),
        (lambda: MultiHeadAttention(8, 3), "d_model must be a multiple of n_heads, 3, got 8"),
        (lambda: MultiHeadAttention(8, 2, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: MultiHeadAttention(8, 2, dropout=-0.1), r"dropout must be in \[0, 1\)"),
        (lambda: AttentionBlock(8, 3), "d_model must be a multiple of n_heads, 3, got 8"),
        (lambda: AttentionBlock(8, 2, norm="prae"), "did you mean 'pre'"),
        (lambda: AttentionPooling(8, 0), "n_heads must be at least 1, got 0"),
        (lambda: AttentionPooling(8, 3), "d_model must be a multiple of n_heads, 3, got 8"),
        (lambda: sinusoidal_positions(4, 3), "d_model must be even, got 3"),
        (lambda: LearnedPositions(5, 8)(randn(2, 1, 8)), "length of the sequence must be 5, got 1"),
        (lambda: FeatureTokens(5, 8)(randn(2, 1)), "number of features must be 5, got 1"),
        (
            lambda: load_torch_attention(MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 4)),
            "num_heads must be 2, got 4",
        ),
        (
            lambda: load_torch_attention(
                MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2, bias=False)
            ),
            "bias must be True, got False",
        ),
        (
            lambda: load_torch_attention(
                MultiHeadAttention(8, 2), nn.MultiheadAttention(8, 2, add_bias_kv=True)
            ),
            "add_bias_kv must be False, got True",
        ),
        (
            lambda: load_torch_attention(
                MultiHeadAttention(8, 2, 5), nn.MultiheadAttention(8, 2, kdim=5, vdim=4)
            ),
            "vdim must be kdim, 5, got 4",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
