"""Chapter 4's own definitions, taken out of the notebook and held equal to the library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from marl_lib.nn import attention as library
from marl_lib.replicates import Replicates


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def scenes(book):
    return book["make_scenes"](500, [3, 7, 12], book["dice"](0))


def same_weights(ours, theirs):
    """Give both modules the same weights, none of them zero."""
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


# The hall -----------------------------------------------------------------------------------------


def test_a_scene_has_one_parcel_with_the_hour_of_the_ticket(book, scenes):
    parcels, own, seen = scenes["parcels"], scenes["own"], scenes["seen"]
    assert sorted(seen.sum(1).unique().tolist()) == [3, 7, 12]
    assert (parcels[~seen] == 0).all()
    assert (seen == (seen.int().cummin(1).values == 1)).all()  # the first places are filled
    fits = torch.isclose(parcels[..., 2:], own[:, None, 2:], atol=1e-6).all(-1) & seen
    assert (fits.sum(1) == 1).all()
    assert torch.equal(fits.int().argmax(1), scenes["mine"])
    place = parcels[torch.arange(500), scenes["mine"], :2]
    torch.testing.assert_close(own[:, :2] + scenes["goal"], place)
    for hours in scenes["hour"]:
        assert sorted(hours.tolist()) == list(range(12))
    # each parcel is as likely as another to be the one
    three = (seen.sum(1) == 3).numpy()
    share = np.bincount(scenes["mine"].numpy()[three], minlength=3) / three.sum()
    np.testing.assert_allclose(share, 1 / 3, atol=0.12)


def test_dials_are_clocks(book):
    twelve, three, six, nine = book["DIALS"][[0, 3, 6, 9]]
    for dial, hand in ((twelve, (0, 1)), (three, (1, 0)), (six, (0, -1)), (nine, (-1, 0))):
        np.testing.assert_allclose(dial, hand, atol=1e-6)


def test_half_of_the_tickets_are_nobodys(book):
    plain = book["make_scenes"](2_000, range(3, 9), book["dice"](4))
    half = book["half_unclaimed"](2_000, range(3, 9), book["dice"](4))
    nobody = half["nobody"]
    assert 0.45 < nobody.float().mean() < 0.55
    fits = torch.isclose(half["parcels"][..., 2:], half["own"][:, None, 2:], atol=1e-6).all(-1)
    assert not (fits & half["seen"])[nobody].any()
    assert (half["own"][nobody, 2:].norm(dim=-1) - 1).abs().max() < 1e-6  # an hour all the same
    assert (half["goal"][nobody] == 0).all()
    for name in ("own", "parcels", "seen", "goal", "mine"):
        assert torch.equal(half[name][~nobody], plain[name][~nobody])


def test_hours_off(book, scenes):
    off = book["hours_off"](scenes)
    assert (off.gather(1, scenes["mine"][:, None]) == 0).all()
    for row in off:
        assert sorted(row.tolist()) == list(range(-5, 7))
    ticket = scenes["own"][:, None, 2:]
    cosine = (book["DIALS"][scenes["hour"]] * ticket).sum(-1)
    torch.testing.assert_close(cosine, torch.cos(off * 2 * math.pi / 12), atol=1e-5, rtol=0)


# What is built ------------------------------------------------------------------------------------


def test_attend(book):
    query, key, value = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 5)
    mask = torch.rand(3, 1, 4, 6) < 0.5
    mask[0, :, 1] = False
    for m in (None, mask):
        ours = book["attend"](query, key, value, m)
        theirs = library.attend(query, key, value, m, need_weights=True)
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        book["softmax_rows"](query, key), library.attention_weights(query, key)
    )
    assert (ours[1][~mask.expand(3, 2, 4, 6)] == 0).all() and (ours[0][0, :, 1] == 0).all()


@pytest.mark.parametrize("d_context", [None, 5])
def test_multi_head_is_the_librarys_and_torchs(book, d_context):
    theirs = nn.MultiheadAttention(12, 3, kdim=d_context, vdim=d_context, batch_first=True)
    ours = book["MultiHead"](12, 3, d_context)
    librarys = library.MultiHeadAttention(12, 3, d_context)
    for layer in (ours, librarys):
        library.load_torch_attention(layer, theirs)
    x, context = torch.randn(4, 3, 12), torch.randn(4, 7, d_context or 12)
    there = torch.arange(7) < torch.tensor([1, 3, 5, 7])[:, None]
    out, weights = ours(x, context, there[:, None])
    expected = theirs(x, context, context, ~there, average_attn_weights=False)
    torch.testing.assert_close((out, weights), expected)
    torch.testing.assert_close((out, weights), librarys(x, context, there[:, None], True))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block(book, norm):
    ours, theirs = same_weights(
        book["Block"](16, 2, norm), library.AttentionBlock(16, 2, norm=norm)
    )
    x, mask = torch.randn(4, 6, 16), library.causal_mask(6)
    torch.testing.assert_close(ours(x, mask), theirs(x, mask=mask)[0])


def test_pooling(book):
    ours, theirs = same_weights(book["Pooling"](16, 4), library.AttentionPooling(16, 4))
    x, there = torch.randn(5, 6, 16), torch.arange(6) < torch.tensor([0, 1, 3, 5, 6])[:, None]
    torch.testing.assert_close(ours(x, there), theirs(x, there, need_weights=True))
    torch.testing.assert_close(ours(x), theirs(x, need_weights=True))


def test_tokens_positions_and_causal_mask(book):
    ours, theirs = same_weights(book["Tokens"](5, 8), library.FeatureTokens(5, 8))
    x = torch.randn(4, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(book["sinusoids"](20, 8), library.sinusoidal_positions(20, 8))
    assert torch.equal(book["causal_mask"](7), library.causal_mask(7))


def test_gradient_size_is_the_trace_of_the_jacobian(book):
    scores = torch.randn(9, 5, dtype=torch.float64)
    for row, size in zip(scores, book["gradient_size"](scores.softmax(-1)), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: z.softmax(-1), row)
        torch.testing.assert_close(size, jacobian.trace())


# The networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "knows_no_order"), [("Finder", True), ("SharedSum", True), ("ListMLP", False)]
)
def test_which_network_knows_an_order(book, scenes, name, knows_no_order):
    network = book[name]()
    order = torch.randperm(12)
    rows = [scenes[key][:, order] for key in ("parcels", "seen")]
    before, *_ = book["ask"](network, scenes)
    after, *_ = network(scenes["own"], *rows)
    assert torch.allclose(before, after, atol=1e-5) == knows_no_order


@pytest.mark.parametrize("name", ["Finder", "SharedSum"])
def test_what_is_padded_is_not_seen(book, scenes, name):
    network = book[name]()
    junk = torch.where(scenes["seen"][..., None], scenes["parcels"], 1e3)
    before, *_ = book["ask"](network, scenes)
    after, *_ = book["ask"](network, scenes | {"parcels": junk})
    assert torch.equal(before, after)


class Oracle(nn.Module):
    """Answers rightly, or with what is farthest from right; one parameter, so it replicates."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, own, parcels, seen):
        fits = (parcels[..., 2:] * own[..., None, 2:]).sum(-1).masked_fill(~seen, -9)
        mine = torch.nn.functional.one_hot((self.sign * fits).argmax(-1), 12)
        place = (parcels[..., :2] * mine[..., None]).sum(-2)
        return (place - own[..., :2],)


def test_share_right(book, scenes):
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        nets = Replicates(lambda sign=sign: Oracle(sign), [0, 1])
        exam = scenes if sign > 0 else book["make_scenes"](200, [12], book["dice"](0))
        assert book["share_right"](nets, exam).tolist() == [expected] * 2


def test_effect_is_1_for_what_is_pointed_at_and_0_for_all_else(book, scenes):
    nets = Replicates(Oracle, [0, 1])
    mine = book["effect"](nets, scenes, scenes["mine"])
    torch.testing.assert_close(mine, torch.ones(2, 500), atol=1e-4, rtol=0)
    other = (scenes["mine"] + 1) % scenes["seen"].sum(1)
    assert (book["effect"](nets, scenes, other) == 0).all()
    by_replicate = torch.stack([scenes["mine"], other])
    torch.testing.assert_close(
        book["effect"](nets, scenes, by_replicate)[1], torch.zeros(500), atol=1e-4, rtol=0
    )


def test_training_is_adam_on_the_squared_distance(book):
    nets = Replicates(book["Finder"], [3])
    at, shares = book["train"](nets, 20, seed=7)
    assert at == tuple(range(21)) and shares.shape == (1, 21)

    torch.manual_seed(3)
    network, dice = book["Finder"](), book["dice"](7)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for update in range(21):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - 0.95 * min(update, 20) / 20)
        scene = book["make_scenes"](64, book["SIZES"], dice)
        answer, _ = book["ask"](network, scene)
        optimizer.zero_grad()
        (answer - scene["goal"]).square().sum(-1).mean().backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(nets.params[name][0], parameter, atol=2e-4, rtol=1e-3)


def test_attention_finds_the_parcel_that_matters_and_the_others_do_not(book):
    """The claim of the book, at a fraction of its budget: two seeds, 400 updates."""
    held_out = book["make_scenes"](1_000, range(9, 13), book["dice"](8))
    shares = {}
    for name in ("Finder", "SharedSum", "ListMLP"):
        nets = Replicates(book[name], [0, 1])
        book["train"](nets, 400)
        shares[name] = book["share_right"](nets, held_out)
        if name == "Finder":
            _, weights = book["ask"](nets, book["for_all"](nets, held_out))
            largest = weights.mean(2).argmax(-1)
            singled = (largest == held_out["mine"]).float().mean(1)
    assert shares["Finder"].min() > 0.9 and singled.min() > 0.9
    assert shares["SharedSum"].max() < 0.4 and shares["ListMLP"].max() < 0.2


# The bug ------------------------------------------------------------------------------------------


def test_one_token_is_a_linear_layer_and_is_caught(book):
    twelve = book["make_scenes"](32, [12], book["dice"](0))
    network = book["OneToken"]()
    answer, weights = book["ask"](network, twelve)
    assert weights.shape == (32, 4, 1) and (weights == 1).all()
    layer = network.attention
    embedded = network.embed(book["as_list"](twelve["own"], twelve["parcels"], twelve["seen"]))
    torch.testing.assert_close(answer, network.head(layer.out(layer.value(embedded))))
    answer.square().sum().backward()
    assert all((p.weight.grad == 0).all() for p in (layer.query, layer.key))
    assert (layer.value.weight.grad != 0).any()
    assert not book["really_attends"](book["OneToken"](), twelve)


def test_the_test_of_the_clinic_passes_attention_and_refuses_an_even_spread(book):
    twelve = book["make_scenes"](32, [12], book["dice"](0))
    assert book["really_attends"](book["Finder"](), twelve)
    blind = book["Finder"]()
    with torch.no_grad():  # every key alike: it looks at all and sees no difference
        blind.attention.key.weight.zero_()
    assert not book["really_attends"](blind, twelve)


def test_what_goes_through_the_heads_adds_up(book, scenes):
    """With a linear head, and weights that do not change, the two parts are the whole."""
    network = book["Finder"]()
    network.head = nn.Linear(64, 2)
    with torch.no_grad():
        network.attention.key.weight.zero_()  # places change no weights
    parts = sum(book["through_head"](network, scenes, scenes["mine"], h) for h in (0, 1))
    moved = scenes | {"parcels": book["move"](scenes["parcels"], scenes["mine"])}
    change = book["ask"](network, moved)[0] - book["ask"](network, scenes)[0]
    torch.testing.assert_close(parts, change @ torch.tensor([3.0, 4.0]), atol=1e-5, rtol=1e-4)
    assert parts.abs().max() > 1e-3
