"""What chapter 5 builds, taken out of the notebook and held against the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl_lib import interpret
from marl_lib.algorithms.ppo import PPO, PPOConfig
from marl_lib.envs import BatchedCartPole, make
from marl_lib.interpret import agent_of, attention_on

CASES = ("features", "moments", "entities")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def different(network):
    """Give a network weights that are far from how it starts."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def networks(book, case, n_layers=None):
    """Return the chapter's policy and the library's on the same weights, and observations."""
    world, config = book["CASES"][case]
    if n_layers is not None:
        config = book["replace"](config, encoder=book["replace"](config.encoder, n_layers=n_layers))
    ours, theirs, obs = book["both"](world, config)
    copied(different(ours), theirs.network)
    return ours, theirs, obs


def copied(ours, theirs):
    """Give one module the weights of another, which has other names for them."""
    names = theirs.state_dict()
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))


# What is built ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_policy_is_the_librarys(book, case, n_layers):
    ours, theirs, obs = networks(book, case, n_layers)
    logits = theirs.network(obs[:, None])[0][:, 0]
    torch.testing.assert_close(ours(obs), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(obs).log_p, logits.log_softmax(-1))
    weights = theirs.attention(obs)["pooling"].squeeze(-2)
    torch.testing.assert_close(ours.attention(obs), weights)
    assert weights.std() > 1e-2 and ours(obs).std() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_library_network_fits_the_chapters(book, case):
    world, config = book["CASES"][case]
    learner = book["fresh"](world, config)
    ours, _, obs = book["both"](world, config)
    copied(learner.network(0), ours)
    expected = learner.outputs(obs[None, :, None])[0, :, 0]
    torch.testing.assert_close(ours(obs), expected, rtol=1e-4, atol=1e-5)


def test_unpack(book):
    env = make("ColourMatch", 50)
    obs, info = env.reset(seed=0)
    present, rows = book["unpack"](torch.as_tensor(obs[:, 0]), env.tokens)
    blocks = obs.reshape(50, 8, 11)
    np.testing.assert_array_equal(present, blocks[..., 0] == 1)
    np.testing.assert_array_equal(rows, blocks[..., 1:])


@pytest.mark.parametrize("case", CASES)
def test_weights_sum_to_one_and_leave_padding_alone(book, case):
    ours, _, obs = networks(book, case, 1)
    weights = ours.attention(obs)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    tokens = ours.encoder.tokens
    if tokens is not None:
        present, _ = book["unpack"](obs, tokens)
        absent = ~present.unsqueeze(1).expand_as(weights)
        assert absent.any() and (weights[absent] == 0).all()
        junk = obs.unflatten(-1, (tokens.count, -1)).clone()
        junk[..., 1:] += 50 * ~present[..., None]
        torch.testing.assert_close(ours(junk.flatten(-2)), ours(obs))


def test_only_a_set_has_no_order(book):
    order = torch.tensor([0, 4, 2, 7, 1, 6, 5, 3])
    ours, _, obs = networks(book, "entities", 1)
    mixed = obs.unflatten(-1, (8, -1))[:, order].flatten(-2)
    torch.testing.assert_close(ours(mixed), ours(obs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.attention(mixed), ours.attention(obs)[..., order])

    ours, _, obs = networks(book, "moments", 1)
    obs = obs[book["unpack"](obs, ours.encoder.tokens)[0].all(-1)]
    mixed = obs.unflatten(-1, (4, -1))[:, [1, 0, 2, 3]].flatten(-2)
    assert not torch.allclose(ours(mixed), ours(obs), atol=1e-3)


def test_sum_of_pairs(book):
    env = make("ColourMatch", 40)
    obs = torch.as_tensor(env.reset(seed=0)[0][:, 0])
    net = different(book["SumOfPairs"](env.tokens))
    rows, expected = obs.unflatten(-1, (8, 11)), []
    for me, *others in rows:  # equation ch05-sum, one pair after the other
        there = [other[1:] for other in (me, *others) if other[0] == 1]
        expected.append(sum(net.pair(torch.cat([me[1:], other])) for other in there))
    torch.testing.assert_close(net(obs), torch.stack(expected), rtol=1e-4, atol=1e-4)
    mixed = rows[:, [0, 7, 3, 1, 2, 6, 4, 5]].flatten(-2)
    torch.testing.assert_close(net(mixed), net(obs), rtol=1e-4, atol=1e-4)
    theirs = agent_of(book["fresh"](("ColourMatch", {}), PPOConfig(encoder="pairs"))).reader
    theirs.pair.load_state_dict(net.pair.state_dict())
    torch.testing.assert_close(net(obs), theirs(obs)[0])


# By hand ------------------------------------------------------------------------------------------


def test_both_ways_to_a_velocity_hold_for_any_two_positions():
    positions, tau = torch.randn(500, 2, dtype=torch.float64), 0.02
    velocity = (positions[:, 1] - positions[:, 0]) / tau
    heads = torch.tensor([[30.0, 0.0], [0.0, 30.0]], dtype=torch.float64).softmax(-1)
    past, present = (positions @ heads.T).unbind(-1)
    torch.testing.assert_close((present - past) / tau, velocity, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(2 / tau * (positions[:, 1] - positions.mean(1)), velocity)


def test_the_difference_of_positions_is_the_velocity_one_step_ago():
    cart = BatchedCartPole(100, autoreset=False)
    cart.reset(seed=1)
    rng = np.random.default_rng(1)
    for _ in range(8):
        old = cart.get_state()
        cart.step(rng.integers(2, size=100))
        moved = (cart.get_state() - old)[:, [0, 2]] / 0.02
        np.testing.assert_allclose(moved, old[:, [1, 3]], atol=1e-9)
        assert np.abs(moved - cart.get_state()[:, [1, 3]]).min() > 1e-3  # and not the present one


# Taking the choice away ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["moments", "entities"])
def test_without_choice_all_that_is_there_weighs_the_same(book, case):
    _, theirs, obs = networks(book, case)
    even = book["without_choice"](theirs)
    present, _ = book["unpack"](obs, theirs.reader.tokens)
    weights = even.attention(obs)["pooling"].mean((1, 2))
    torch.testing.assert_close(weights, present / present.sum(1, keepdim=True))
    assert theirs.attention(obs)["pooling"].mean((1, 2)).sub(weights).abs().max() > 0.05
    before, after = theirs.network.state_dict(), even.network.state_dict()
    for name in (name for name in before if "cross.attention.key" not in name):
        assert torch.equal(after[name], before[name])
    assert theirs.reader.cross.attention.key.weight.abs().min() > 0  # the original is untouched


def test_with_slots_gives_the_same_answers_where_the_new_slots_are_empty(book):
    """The tokens' number is in no weight: four slots of seven, or four, are the same world."""
    few = make("ColourMatch", 30, {"entities": (4, 4)})
    obs = torch.as_tensor(few.reset(seed=0)[0][:, 0])
    agent = agent_of(book["fresh"](("ColourMatch", {"entities": (2, 4)}), book["ENTITIES"]))
    wider = torch.cat([obs, torch.zeros(30, 3 * 11)], dim=1)
    found = agent(obs).log_p
    torch.testing.assert_close(with_slots(book, agent, 7)(wider).log_p, found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent(obs).log_p, found)  # which still has its four


def with_slots(book, agent, count):
    """Call the chapter's function, where the notebook has set what it needs by then."""
    book["set_tokens"] = make("ColourMatch").tokens
    return book["with_slots"](agent, count)


# What a policy rests on ---------------------------------------------------------------------------


@pytest.mark.parametrize("attends", [False, True])
def test_importance(book, attends):
    config = book["FEATURES"] if attends else PPOConfig()
    agent, x = agent_of(book["fresh"](book["POLE"], config)), torch.randn(200, 4)
    different(agent.network)
    ours = book["gradient_input"](agent, x)
    torch.testing.assert_close(ours, interpret.gradient_input(agent, x))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    ours = book["shuffled_divergence"](agent, x, order)
    theirs = interpret.permutation(agent, x, shuffles=1, seed=3)
    torch.testing.assert_close(ours, theirs)
    assert ours.min() > 1e-4


def test_what_nothing_rests_on_has_no_importance(book):
    blind, x = agent_of(book["fresh"](book["POLE"], PPOConfig())), torch.randn(200, 4)
    with torch.no_grad():
        blind.network.network.encoder.body[0].weight[:, 1] = 0.0
    assert book["shuffled_divergence"](blind, x, torch.randperm(200))[1] == 0
    assert (book["gradient_input"](blind, x)[:, 1] == 0).all()


# The bug ------------------------------------------------------------------------------------------


def test_ratio_starts_at_one_and_dropout_in_the_actor_is_caught(book):
    assert book["starts_at_one"](PPO)
    assert not book["starts_at_one"](book["Careless"])

    class Noisy(PPO):
        """Forms the old log-probabilities with another network than the one that acted."""

        def prepare(self):
            batch = super().prepare()
            flat = self.nets["actor"].flat
            flat.add_(0.01 * torch.randn_like(flat))
            return batch

    assert not book["starts_at_one"](Noisy)


def test_first_ratio_is_what_the_loss_sees(book):
    """The clip fraction counts the ratios that stray, so both must see the same dropout."""
    world = book["PAST"]

    def careless():
        learner = book["fresh"](world, book["DROPPING"], book["Careless"])
        learner.nets["actor"].flat.mul_(2)
        torch.manual_seed(5)
        return learner

    ratio, again = book["first_ratio"](careless(), world), careless()
    book["fill"](again, world)
    batch = again.prepare()
    _, seen = again.lift(lambda net, batch: again.loss(net, batch, 0.01), batch)
    outside = (ratio - 1).abs() > 0.01
    assert 0.01 < outside.float().mean() < 0.99
    torch.testing.assert_close(seen["clip_fraction"][0], outside.float().mean())


def test_careless_differs_in_the_mode_of_the_actor_alone(book):
    careless = book["fresh"](book["PAST"], book["DROPPING"], book["Careless"])
    sound = book["fresh"](book["PAST"], book["DROPPING"])
    for name in ("actor", "critic"):
        assert torch.equal(careless.nets[name].flat, sound.nets[name].flat)
    obs, _ = book["some_observations"](book["PAST"])
    x = obs[None, :, None]
    torch.testing.assert_close(sound.outputs(x), sound.outputs(x))
    assert not torch.allclose(careless.outputs(x), careless.outputs(x))
    torch.testing.assert_close(agent_of(careless)(obs).log_p, agent_of(sound)(obs).log_p)


# The claim ----------------------------------------------------------------------------------------


def test_attention_finds_the_thing_that_matters_and_an_mlp_does_not(book):
    """At a fraction of the chapter's budget: one seed, 25,000 steps."""
    book["EPISODES"] = 50
    learner, run = book["train"](book["SET"], book["ENTITIES"], 25_000)
    shared = {"gamma": 0.9, "learning_rate": 3e-3, "normalise_obs": False}
    plain = PPOConfig(encoder={"hidden": (128, 128)}, **shared)
    _, other = book["train"](book["SET"], plain, 25_000)
    assert run.final["found"].mean() > 0.7 > 0.35 > other.final["found"].mean()

    env = make("ColourMatch", 500)
    obs, info = env.reset(seed=3)
    seen = torch.as_tensor(obs[:, 0])
    present, _ = book["unpack"](seen, env.tokens)
    weights = agent_of(learner).attention(seen)["pooling"]
    on, uniform = attention_on(weights, info["relevant"], present)
    assert on.mean() > 2 * uniform.mean()
