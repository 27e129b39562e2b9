"""What chapter 5 builds, taken out of the notebook and held against the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from marl_lib import interpret
from marl_lib.algorithms.ppo import PPO, PPOConfig, PPONetwork
from marl_lib.envs import BatchedCartPole, make
from marl_lib.interpret import attention_on

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
    layers = config.n_layers if n_layers is None else n_layers
    config = book["replace"](config, n_layers=layers)
    obs, env = book["some_observations"](world)
    given = {"n_heads": config.n_heads, "n_layers": layers}
    ours = book["Policy"](env.obs_dim, env.n_actions, config.pooling, env.tokens, **given)
    theirs = PPONetwork(env.obs_dim, env.n_actions, config, 1.0, env.tokens)
    theirs.load_state_dict(different(ours).state_dict())
    return ours, theirs, obs


# What is built ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_policy_is_the_librarys(book, case, n_layers):
    ours, theirs, obs = networks(book, case, n_layers)
    torch.testing.assert_close(ours(obs), theirs(obs), rtol=1e-4, atol=1e-4)
    weights = theirs.attention(obs)["pooling"].squeeze(-2)
    torch.testing.assert_close(ours.attention(obs), weights)
    assert weights.std() > 1e-2 and ours(obs).std() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_library_network_fits_the_chapters(book, case):
    world, config = book["CASES"][case]
    learner = book["fresh"](world, config)
    env = make(*(world[0], 1, world[1]))
    given = {"n_heads": config.n_heads, "n_layers": config.n_layers}
    ours = book["Policy"](env.obs_dim, env.n_actions, config.pooling, env.tokens, **given)
    ours.load_state_dict(learner.actor.network(0).state_dict())
    obs, _ = book["some_observations"](world)
    expected = learner.actor(obs.unsqueeze(0))[0]
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
    net = different(book["SumOfPairs"](env.tokens, 5))
    rows, expected = obs.unflatten(-1, (8, 11)), []
    for me, *others in rows:  # equation ch05-sum, one pair after the other
        total = torch.zeros(64)
        for other in others:
            if other[0] == 1:
                total = total + net.pair(torch.cat([me[1:], other[1:]]))
        expected.append(net.head(net.body(torch.cat([me[1:], total]))))
    torch.testing.assert_close(net(obs), torch.stack(expected), rtol=1e-4, atol=1e-4)
    mixed = rows[:, [0, 7, 3, 1, 2, 6, 4, 5]].flatten(-2)
    torch.testing.assert_close(net(mixed), net(obs), rtol=1e-4, atol=1e-4)


def test_put_in_trains_what_is_put_in(book):
    env = make("ColourMatch", 1)
    learner = PPO(env.obs_dim, 5, 64, [0], PPOConfig(rollout=4), tokens=env.tokens)
    book["put_in"](learner, lambda n: book["SumOfPairs"](env.tokens, n))
    before = [net.flat.clone() for net in (learner.actor, learner.critic)]
    assert learner.actor.flat.shape == learner.actor.flat.grad.shape
    book["fill"](learner, ("ColourMatch", {}))
    batch = learner.prepare()
    assert learner.actor(batch["obs"]).shape == (1, 256, 5)
    assert learner.critic(batch["obs"]).shape == (1, 256, 1)
    assert learner.actor(batch["obs"]).softmax(-1).std(-1).max() < 0.02  # near uniform
    learner.update()
    for net, old in zip((learner.actor, learner.critic), before, strict=True):
        assert (net.flat != old).float().mean() > 0.5


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
    present, _ = book["unpack"](obs, theirs.encoder.tokens)
    weights = even.attention(obs)["pooling"].mean((1, 2))
    torch.testing.assert_close(weights, present / present.sum(1, keepdim=True))
    assert theirs.attention(obs)["pooling"].mean((1, 2)).sub(weights).abs().max() > 0.05
    kept = {n: p for n, p in theirs.state_dict().items() if "cross.attention.key" not in n}
    for name, value in kept.items():
        assert torch.equal(even.state_dict()[name], value)
    assert theirs.encoder.cross.attention.key.weight.abs().min() > 0  # the original is untouched


def test_with_slots_gives_the_same_answers_where_the_new_slots_are_empty(book):
    """The tokens' number is in no weight: four slots of seven, or four, are the same world."""
    few = make("ColourMatch", 30, {"entities": (4, 4)})
    obs = torch.as_tensor(few.reset(seed=0)[0][:, 0])
    learner = book["fresh"](("ColourMatch", {"entities": (2, 4)}), book["ENTITIES"])
    network = learner.actor.network(0)
    copy = book["copy"].deepcopy(network)
    copy.encoder.tokens = type(few.tokens)(8, 10, ordered=False)
    wider = torch.cat([obs, torch.zeros(30, 3 * 11)], dim=1)
    torch.testing.assert_close(copy(wider), network(obs), rtol=1e-4, atol=1e-5)


# What a policy rests on ---------------------------------------------------------------------------


@pytest.mark.parametrize("attends", [False, True])
def test_importance(book, attends):
    config = book["FEATURES"] if attends else PPOConfig()
    network, x = different(PPONetwork(4, 2, config, 1.0)), torch.randn(200, 4)
    ours = book["gradient_input"](network, x)
    torch.testing.assert_close(ours, interpret.gradient_input(network, x))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    ours = book["shuffled_divergence"](network, x, order)
    theirs = interpret.permutation(network, x, shuffles=1, seed=3)
    torch.testing.assert_close(ours, theirs)
    assert ours.min() > 1e-4
    blind = PPONetwork(4, 2, PPOConfig(), 1.0)
    with torch.no_grad():
        blind.body[0].weight[:, 1] = 0.0
    assert book["shuffled_divergence"](blind, x, order)[1] == 0
    assert (book["gradient_input"](blind, x)[:, 1] == 0).all()


# The bug ------------------------------------------------------------------------------------------


def test_ratio_starts_at_one_and_dropout_in_the_actor_is_caught(book):
    assert book["starts_at_one"](PPO)
    assert not book["starts_at_one"](book["Careless"])

    class Noisy(PPO):
        """Forms the old log-probabilities with another network than the one that acted."""

        def prepare(self):
            batch = super().prepare()
            with torch.no_grad():
                self.actor.flat.add_(0.01 * torch.randn_like(self.actor.flat))
            return batch

    assert not book["starts_at_one"](Noisy)


def test_first_ratio_is_what_the_loss_sees(book):
    world = book["PAST"]
    learner = book["fresh"](world, book["DROPPING"], book["Careless"])
    with torch.no_grad():
        learner.actor.flat.mul_(2)
    torch.manual_seed(5)
    ratio = book["first_ratio"](learner, world)
    again = book["fresh"](world, book["DROPPING"], book["Careless"])
    with torch.no_grad():
        again.actor.flat.mul_(2)
    torch.manual_seed(5)
    book["fill"](again, world)
    batch = again.prepare()
    seen = again.losses(batch, 0.01)
    outside = (ratio - 1).abs() > 0.01
    assert 0.01 < outside.float().mean() < 0.99
    torch.testing.assert_close(seen["clip_fraction"][0], outside.float().mean())


def test_careless_differs_in_the_mode_of_the_actor_alone(book):
    careless = book["fresh"](book["PAST"], book["DROPPING"], book["Careless"])
    sound = book["fresh"](book["PAST"], book["DROPPING"])
    assert torch.equal(careless.actor.flat, sound.actor.flat)
    obs, _ = book["some_observations"](book["PAST"])
    x = obs.unsqueeze(0)
    torch.testing.assert_close(sound.actor(x), sound.actor(x))
    assert not torch.allclose(careless.actor(x), careless.actor(x))
    torch.testing.assert_close(careless.actor.network(0)(obs), sound.actor(x)[0])


# The claim ----------------------------------------------------------------------------------------


def test_attention_finds_the_thing_that_matters_and_an_mlp_does_not(book):
    """At a fraction of the chapter's budget: one seed, 25,000 steps."""
    book["EPISODES"] = 50
    learner, run = book["train"](book["SET"], book["ENTITIES"], 25_000)
    plain = PPOConfig(hidden=(128, 128), gamma=0.9, learning_rate=3e-3, normalise_obs=False)
    _, other = book["train"](book["SET"], plain, 25_000)
    assert run.final["found"].mean() > 0.7 > 0.35 > other.final["found"].mean()

    env = make("ColourMatch", 500)
    obs, info = env.reset(seed=3)
    seen = torch.as_tensor(obs[:, 0])
    network = learner.actor.network(0)
    present, _ = book["unpack"](seen, env.tokens)
    weights = network.attention(seen)["pooling"]
    on, uniform = attention_on(weights, info["relevant"], present)
    assert on.mean() > 2 * uniform.mean()
    assert isinstance(network, nn.Module) and not network.training
