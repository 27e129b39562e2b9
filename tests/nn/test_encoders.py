"""Encoders: their common face, what they are built of, and what tokens may and may not do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from marl_lib.config import ConfigError, from_mapping
from marl_lib.nn.encoders import (
    AttentionEncoder,
    Encoder,
    EncoderNetwork,
    GRUEncoder,
    LSTMEncoder,
    MLPEncoder,
    PairsEncoder,
)
from marl_lib.nn.layers import Layers
from marl_lib.replicates import Replicates
from marl_lib.spec import Tokens

OBS = 4
SETS = {"features": None, "entities": Tokens(3, 2, False), "history": Tokens(3, 2, True)}
POOLINGS = ("queries", "first", "last", "attention", "mean")
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gru": {},
    "lstm": {},
    "attention": {"d_model": 8, "n_heads": 2},
    "pairs": {"pair_hidden": (6, 7)},
}
every_set = pytest.mark.parametrize("tokens", SETS)
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def built(kind: str, tokens: str = "features", extra: int = 0, **settings: Any) -> EncoderNetwork:
    torch.manual_seed(0)
    config = Encoder.kinds()[kind](**{"hidden": (8,), **SMALL[kind], **settings})
    size = OBS if SETS[tokens] is None else 9
    network: EncoderNetwork = config.build(size + extra, Layers(), SETS[tokens], extra)
    return network.eval()


def observations(tokens: str, *shape: int, seed: int = 0) -> Tensor:
    """Return observations (*shape, D); of tokens, about a third are absent, the ends never."""
    g = torch.Generator().manual_seed(seed)
    if SETS[tokens] is None:
        return torch.randn(*shape, OBS, generator=g)
    blocks = torch.randn(*shape, 3, 3, generator=g)
    blocks[..., 0] = (torch.rand(*shape, 3, generator=g) < 0.6).float()
    blocks[..., [0, -1], 0] = 1.0
    return (blocks * blocks[..., :1]).flatten(-2)


def there(obs: Tensor) -> Tensor:
    return obs.unflatten(-1, (3, 3))[..., 0] > 0.5  # (..., L)


def says(net: EncoderNetwork, obs: Tensor) -> Tensor:
    """Return the features (..., F) of rows (..., D) with an empty memory."""
    obs = obs.unsqueeze(-2)
    found: Tensor = net(obs, obs.new_zeros(*obs.shape[:-1], net.memory_size))[0].squeeze(-2)
    return found


# The face -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
@every_set
def test_every_encoder_has_the_same_face(kind: str, memory: str, tokens: str) -> None:
    """Features and the memory after each step; along sequences as step by step."""
    net = built(kind, tokens, memory=memory, memory_size=5)
    assert net.size == (8 if memory == "none" else 5)
    assert net.memory_size == {"none": 0, "gru": 5, "lstm": 10}[memory]
    obs = observations(tokens, 6, 4, 2)  # (batch, T, N, D)
    memories = torch.randn(6, 2, net.memory_size)
    first = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    features, after = net(obs, memories, first)
    assert features.shape == (6, 4, 2, net.size) and after.shape == (6, 4, 2, net.memory_size)
    for t in range(4):
        memories = memories * ~first[:, t, None, None]
        now, memories = net(obs[:, t], memories)
        torch.testing.assert_close(features[:, t], now)
        torch.testing.assert_close(after[:, t], memories)


@pytest.mark.parametrize("kind", SMALL)
def test_remembering_is_said(kind: str) -> None:
    config = Encoder.kinds()[kind]()
    assert config.remembers == (kind in ("gru", "lstm"))
    assert Encoder.kinds()[kind](memory="lstm").remembers


def test_kinds_by_name() -> None:
    kinds = (MLPEncoder, GRUEncoder, LSTMEncoder, AttentionEncoder, PairsEncoder)
    assert list(Encoder.kinds().values()) == list(kinds)
    assert from_mapping(Encoder, {"kind": "gru", "memory_size": 8}) == GRUEncoder(memory_size=8)


# Layers -------------------------------------------------------------------------------------------


def test_hidden_layers_are_as_configured() -> None:
    shapes = [tuple(p.shape) for p in built("mlp", hidden=(7, 5)).parameters()]
    assert shapes == [(7, OBS), (7,), (5, 7), (5,)]
    bare = built("mlp", hidden=())
    obs = observations("features", 3)
    assert bare.size == OBS and torch.equal(says(bare, obs), obs)
    assert built("gru", hidden=(), memory_size=6).size == 6


@pytest.mark.parametrize("of_algorithm", [Layers(), Layers("tanh", True, "orthogonal")])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("layer_norm", [None, True, False])
def test_layers_are_the_algorithm_s_unless_asked_for(
    of_algorithm: Layers, activation: Any, layer_norm: bool | None
) -> None:
    torch.manual_seed(0)
    config = MLPEncoder(hidden=(8,), activation=activation, layer_norm=layer_norm)
    net, obs = config.build(OBS, of_algorithm), observations("features", 5)
    layer, h = net.body[0], obs @ net.body[0].weight.T + net.body[0].bias
    if of_algorithm.layer_norm if layer_norm is None else layer_norm:
        h = torch.nn.functional.layer_norm(h, (8,))
    act = {"relu": torch.relu, "tanh": torch.tanh}[activation or of_algorithm.activation]
    torch.testing.assert_close(says(net, obs), act(h))
    if of_algorithm.init == "orthogonal":  # of gain √2
        torch.testing.assert_close(layer.weight.T @ layer.weight, 2 * torch.eye(OBS))


@pytest.mark.parametrize("kind", ["attention", "pairs"])
@every_set
def test_what_is_no_part_of_the_observation_goes_round_the_tokens(kind: str, tokens: str) -> None:
    net = built(kind, tokens, extra=2)
    assert net.reader is not None
    obs, extra = observations(tokens, 5), torch.randn(5, 2)
    read = torch.cat([net.reader(obs)[0], extra], -1)
    torch.testing.assert_close(says(net, torch.cat([obs, extra], -1)), net.body(read))


# Attention ----------------------------------------------------------------------------------------


@every_set
@every_pooling
@pytest.mark.parametrize("n_layers", [0, 2])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_parameter_has_a_gradient(
    tokens: str, pooling: str, n_layers: int, norm: str
) -> None:
    """All but the keys' biases, which shift all scores of a query alike and so change nothing."""
    net = built("attention", tokens, pooling=pooling, n_layers=n_layers, norm=norm, n_queries=2)
    out = says(net, observations(tokens, 20))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, p in net.named_parameters():
        if not name.endswith("key.bias"):
            assert p.grad is not None and p.grad.abs().max() > 1e-7, name


@every_set
@every_pooling
@pytest.mark.parametrize("n_layers", [0, 2])
def test_attention_weights_are_weights(tokens: str, pooling: str, n_layers: int) -> None:
    net = built("attention", tokens, pooling=pooling, n_layers=n_layers, n_queries=2)
    obs = observations(tokens, 40, seed=2)
    found = net.attention(obs)
    expected = [f"layer_{i}" for i in range(n_layers)] + ["pooling"] * (pooling != "mean")
    assert list(found) == expected
    length = 4 if tokens == "features" else 3
    for name, weights in found.items():
        queries = length if name != "pooling" else 2 if pooling == "queries" else 1
        assert weights.shape == (40, 2, queries, length)
        total = weights.sum(-1)
        if tokens != "features":
            absent = ~there(obs)[:, None, None].expand_as(weights)
            assert absent.any() and not weights[absent].any()
            if name != "pooling":  # an absent token asks nothing that matters
                total = total.transpose(1, 2)[there(obs)]
        torch.testing.assert_close(total, torch.ones_like(total))
        if tokens == "history" and name != "pooling":
            assert not weights.triu(1).any()  # nobody looks ahead
        alike = obs if tokens == "features" else obs[there(obs).all(-1)]
        assert net.attention(alike)[name].std(0).max() > 1e-3, name  # it depends on the state


@every_pooling
def test_permuting_entities_permutes_their_weights(pooling: str) -> None:
    net, obs = built("attention", "entities", pooling=pooling), observations("entities", 20)
    order = {"first": [0, 2, 1], "last": [1, 0, 2]}.get(pooling, [2, 0, 1])  # who asks stays
    moved = obs.unflatten(-1, (3, 3))[:, order].flatten(1)
    before, after = net.attention(obs), net.attention(moved)
    for name, weights in before.items():
        expected = weights[..., order]
        if name != "pooling":
            expected = expected[..., order, :]
        torch.testing.assert_close(after[name], expected)
        assert not torch.allclose(after[name], weights, atol=1e-3)
    torch.testing.assert_close(says(net, moved), says(net, obs))


def test_the_order_of_a_history_matters() -> None:
    net, obs = built("attention", "history", pooling="last"), observations("history", 20)
    obs = obs[there(obs).all(-1)]
    torch.nn.init.normal_(net.reader.positions.table)  # type: ignore[union-attr, arg-type]
    moved = obs.unflatten(-1, (3, 3))[:, [1, 0, 2]].flatten(1)
    assert (says(net, moved) - says(net, obs)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "settings"), [*itertools.product(["attention"], POOLINGS), ("pairs", None)]
)
@pytest.mark.parametrize("tokens", ["entities", "history"])
def test_what_is_absent_has_no_say(kind: str, settings: str | None, tokens: str) -> None:
    net = built(kind, tokens, **({"pooling": settings} if settings else {}))
    obs = observations(tokens, 30)
    other = obs.clone().unflatten(-1, (3, 3))
    other[..., 1:][~there(obs)] = 100.0
    assert not torch.equal(other.flatten(1), obs)
    torch.testing.assert_close(says(net, other.flatten(1)), says(net, obs))


@pytest.mark.parametrize("kind", ["mlp", "gru", "pairs"])
def test_a_network_without_attention_has_no_weights(kind: str) -> None:
    assert not built(kind).attention(torch.zeros(2, OBS))


@every_set
def test_one_replicate_alone_computes_what_it_computes_among_others(tokens: str) -> None:
    """Alone it uses torch's fused attention, among others the products written out."""

    def make() -> EncoderNetwork:
        size = OBS if SETS[tokens] is None else 9
        config = AttentionEncoder(hidden=(8,), d_model=8, n_heads=2)
        return config.build(size, Layers(), SETS[tokens])

    several, alone = Replicates(make, [0, 3]), Replicates(make, [3])
    obs, empty = observations(tokens, 1, 9, 1), torch.zeros(1, 9, 1, 0)
    for other, one in zip(several(obs.expand(2, -1, -1, -1), empty.expand(2, -1, -1, -1)),
                          alone(obs, empty), strict=True):  # fmt: skip
        torch.testing.assert_close(other[1], one[0])
    plain: Any = several.network(1)
    ours: Any = alone.network(0)
    for name, weights in plain.attention(obs[0, :, 0]).items():
        torch.testing.assert_close(ours.attention(obs[0, :, 0])[name], weights)


# Pairs --------------------------------------------------------------------------------------------


@every_set
def test_pairs_are_summed_as_written_out(tokens: str) -> None:
    """The own token, first among entities or features and last in a history, with each other."""
    net: Any = built("pairs", tokens)
    obs, t = observations(tokens, 12), SETS[tokens]
    pair, own = net.reader.pair, 2 if tokens == "history" else 0
    for row, found in zip(obs, net.reader(obs)[0], strict=True):
        blocks = row.view(-1, 1) if t is None else row.view(3, 3)[:, 1:]
        if tokens != "entities":  # they know their places
            blocks = torch.cat([blocks, torch.eye(len(blocks))], -1)
        present = [True] * OBS if t is None else there(row).tolist()
        total = torch.zeros(7)
        for i, block in enumerate(blocks):
            if present[i]:
                total = total + pair(torch.cat([blocks[own], block]))
        torch.testing.assert_close(found, total)


def test_the_order_of_entities_is_nothing_to_pairs_and_that_of_a_history_is() -> None:
    for tokens, order in (("entities", [0, 2, 1]), ("history", [1, 0, 2])):
        net, obs = built("pairs", tokens), observations(tokens, 20)
        obs = obs[there(obs).all(-1)]
        moved = obs.unflatten(-1, (3, 3))[:, order].flatten(1)
        same = torch.allclose(says(net, moved), says(net, obs), atol=1e-5)
        assert same == (tokens == "entities")


@every_set
def test_pairs_are_learned(tokens: str) -> None:
    net, obs = built("pairs", tokens), observations(tokens, 20)
    says(net, obs).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (MLPEncoder, {"hidden": (8, 0)}, "hidden must be widths of at least 1"),
        (MLPEncoder, {"activation": "gelu"}, "activation 'gelu' is not known.*relu, tanh"),
        (GRUEncoder, {"memory": "rnn"}, "memory 'rnn' is not known.*none, gru, lstm"),
        (LSTMEncoder, {"memory_size": 0}, "memory_size must be at least 1"),
        (AttentionEncoder, {"pooling": "max"}, "pooling 'max' is not known.*queries, first, last"),
        (AttentionEncoder, {"norm": "middle"}, "norm 'middle' is not known"),
        (AttentionEncoder, {"n_heads": 0}, "n_heads must be at least 1"),
        (AttentionEncoder, {"n_layers": -1}, "n_layers must be at least 0"),
        (AttentionEncoder, {"d_model": 30, "n_heads": 4}, "d_model must be a multiple of n_heads"),
        (AttentionEncoder, {"n_queries": 0}, "n_queries must be at least 1"),
        (AttentionEncoder, {"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        (AttentionEncoder, {"d_hidden": 0}, "d_hidden must be at least 1"),
        (PairsEncoder, {"pair_hidden": ()}, "pair_hidden must be at least one width"),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind: Any, given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        kind(**given)
