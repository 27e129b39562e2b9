"""What chapter 2 builds, taken out of the notebook and held against the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from marl_lib.algorithms.dqn import DQN, DQNConfig
from marl_lib.envs import BatchedGridWorld
from marl_lib.planning import Planner
from marl_lib.replicates import lift
from marl_lib.rollout import play
from marl_lib.training import EVALUATION_SEED, LoopConfig, Trainer

KINDS = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


def learner(shared, seeds=(0,), n_agents=3):
    """Return the library's learner for 16 grid worlds; three agents observe 17 numbers each."""
    config = DQNConfig(
        encoder={"hidden": (64, 64)}, share_parameters=shared, learning_starts=100, gamma=0.9,
        n_step=2, batch_size=64,
    )  # fmt: skip
    return DQN(BatchedGridWorld(1, n_agents=n_agents).sizes(), 16, seeds, config)


def networks(book, shared, team):
    """Return the notebook's network and target network with the weights of the library's."""
    kind, agents = book["SharedQ" if shared else "SeparateQ"], team.nets["agents"]
    made = [kind(team.spec.obs_dim, 5, team.spec.n_agents) for _ in range(2)]
    for network, flat in zip(made, (agents.flat, agents.target), strict=True):
        book["copy_weights"](network, agents.views(flat))
    return made


@KINDS
@pytest.mark.parametrize("n_agents", [2, 5])
def test_networks_equal_the_library_s(book, shared, n_agents):
    team = learner(shared, n_agents=n_agents)
    network, _ = networks(book, shared, team)
    obs = torch.randn(1, 7, n_agents, team.spec.obs_dim)
    torch.testing.assert_close(network(obs[0]), team.outputs(obs)[0])


def test_agents_of_a_shared_network_differ_by_name_alone(book):
    network = book["SharedQ"](17, 5, 3)
    obs = torch.randn(4, 1, 17).expand(4, 3, 17)  # all agents see the same
    q = network(obs)
    assert not torch.allclose(q[:, 0], q[:, 1])
    with torch.no_grad():
        network.net[0].weight[:, 17:] = 0.0
    q = network(obs)
    torch.testing.assert_close(q[:, 0], q[:, 1])


@KINDS
def test_loss_and_gradient_equal_the_library_s(book, shared):
    team, rng = learner(shared), np.random.default_rng(0)
    agents = team.nets["agents"]
    agents.target.normal_()  # unlike the network's, or a mix-up would go unseen
    obs = rng.standard_normal((16, 3, 17)).astype(np.float32)
    for _ in range(20):
        _, stored = team.act(obs, {})
        obs = rng.standard_normal((16, 3, 17)).astype(np.float32)
        reward, ends = rng.standard_normal((16, 3)), rng.random((2, 16)) < 0.3
        team.observe(stored, reward, *ends, {"final_obs": obs})
    drawn = team.sample()
    network, target_network = networks(book, shared, team)
    one = {name: x[0, :, 0] for name, x in drawn.items()}
    loss = book["team_loss"](network, target_network, one)

    theirs, _ = lift(
        lambda net, b: team.loss(net, net.target, b), team.nets, drawn, learning=("agents",)
    )
    theirs = theirs[0] / agents.copies
    torch.testing.assert_close(loss, theirs)
    loss.backward()
    theirs.backward()
    grad = agents.grads["network.encoder.body.0.weight"][0]  # (out, in), stacked if separate
    if shared:
        torch.testing.assert_close(network.net[0].weight.grad, grad)
    else:
        torch.testing.assert_close(network.layers[0].weight.grad, grad.mT)


def test_each_agent_explores_on_its_own_coin(book):
    q = np.zeros((50_000, 3, 5))
    q[..., 2] = 1.0
    explore, rng = book["explore"], np.random.default_rng(0)
    assert (explore(q, 0.0, rng) == 2).all()
    strayed = explore(q, 0.5, rng) != 2  # (B, N), each with probability 0.4
    assert strayed.mean(0) == pytest.approx([0.4] * 3, abs=0.01)
    assert np.corrcoef(strayed.T) == pytest.approx(np.eye(3), abs=0.02)
    counts = np.bincount(explore(q, 1.0, rng).ravel(), minlength=5) / 150_000
    assert counts == pytest.approx([0.2] * 5, abs=0.01)


@KINDS
def test_the_loop_equals_the_library_s(book, shared):
    def make_env(num_envs):
        return BatchedGridWorld(num_envs, n_agents=3, max_steps=7)

    ours, theirs, seen = learner(shared, seeds=(3, 4)), learner(shared, seeds=(3, 4)), []
    book["train_team"](make_env(32), ours, 800, seen.append, every=400)
    Trainer(make_env, theirs, LoopConfig(800, eval_every=800), progress=False).train()
    assert ours.updates == theirs.updates > 100
    assert torch.equal(ours.nets["agents"].flat, theirs.nets["agents"].flat)
    assert seen == [0, 400, 800]


def test_worth_is_the_expectation(book):
    rng = np.random.default_rng(0)
    payoff, mate = rng.standard_normal((3, 4)), rng.dirichlet(np.ones(4))
    expected = [sum(mate[b] * payoff[a, b] for b in range(4)) for a in range(3)]
    assert book["worth"](payoff, mate) == pytest.approx(expected)
    assert book["epsilon_greedy"](1, 0.3) == pytest.approx([0.1, 0.8, 0.1])


def test_the_game_is_the_climbing_game(book):
    payoff = book["PAYOFF"]
    assert payoff.tolist() == [[11, -30, 0], [-30, 7, 6], [0, 0, 5]]
    q, policies = book["play_game"](payoff, seed=1, rounds=200)
    assert q.shape == (2, 3)
    assert policies.sum(1) == pytest.approx(np.ones(200))
    assert policies[0] == pytest.approx(np.full(3, 1 / 3))


def test_references_are_played_on_the_worlds_of_the_evaluation(book):
    world = BatchedGridWorld(200, **book["WORLD"])
    planned = play(world, Planner(world), EVALUATION_SEED)
    assert np.array_equal(book["reference"](Planner).returns, planned.returns)


def test_beside_mixes_the_ages_of_weights(book):
    team = learner(shared=False, seeds=(0, 1))
    agents = team.nets["agents"]
    old, new = agents.flat.clone(), torch.randn_like(agents.flat)
    book.update(agents=agents)
    obs = np.random.default_rng(0).standard_normal((6, 3, 17)).astype(np.float32)

    def greedy(weights):
        agents.flat.copy_(weights)
        return team.policy()(obs, {})

    mixed = greedy(book["beside"](old, new))
    assert np.array_equal(mixed[:, 0], greedy(old)[:, 0])
    assert np.array_equal(mixed[:, 1:], greedy(new)[:, 1:])
    assert not np.array_equal(greedy(old), greedy(new))
    assert torch.equal(book["beside"](new, new), new)


def test_discounted_returns_stop_with_the_first_episode(book):
    book.update(seeds=[0])
    world = BatchedGridWorld(50, **book["WORLD"])
    obs, info = world.reset(seed=EVALUATION_SEED)
    total, gamma = np.zeros((50, 3)), book["SETTINGS"]["gamma"]
    weight = np.ones(50)
    right = np.full((50, 3), 3)
    for _ in range(world.max_steps):
        _, reward, terminated, truncated, _ = world.step(right)
        total += weight[:, None] * reward
        weight *= gamma * ~(terminated | truncated)
    got = book["discounted_returns"](lambda obs, info: np.full(obs.shape[:2], 3), episodes=50)
    assert got == pytest.approx(total.mean(0)[None])


def test_shared_rewards_sum_to_the_same(book):
    actions = np.random.default_rng(0).integers(5, size=(20, 30, 3))
    own, shared = book["rewards_of"](actions), book["rewards_of"](actions, shared_reward=True)
    assert own.sum(-1) == pytest.approx(shared.sum(-1), abs=1e-4)
    assert (shared == shared[..., :1]).all()


def test_the_bug_is_caught_and_the_sound_world_is_not(book):
    assert book["contradictions"](BatchedGridWorld, steps=100) == 0
    assert book["contradictions"](book["ForgetfulWorld"], steps=100) > 0


def test_the_bug_hides_the_flag_and_nothing_else(book):
    worlds = BatchedGridWorld(8), book["ForgetfulWorld"](8)
    for world in worlds:
        world.reset(seed=0)
        obs = world.place(collected=[True, False, False])
        targets = obs[..., world.obs_layout["targets"]].reshape(8, 2, 3, 3)
        assert (targets[..., 0, 0] == (world is worlds[1])).all()
        assert world.collected[:, 0].all()  # the bug spoils the picture, not the world
