"""What chapter 3 builds, taken out of the notebook and held against the library or the truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from agreement import flat, norm_equals_the_library_s
from torch.distributions import Categorical

from marl_lib.advantages import generalised_advantage
from marl_lib.algorithms.ppo import PPO, PPOConfig
from marl_lib.envs import BatchedCartPole
from marl_lib.nn.distributions import DiagonalGaussian
from marl_lib.spec import Spec

CARTPOLE = Spec(obs_dim=4, n_actions=2)


def test_its_settings_are_the_library_s(book):
    c = PPOConfig()
    assert (book["ROLLOUT"], book["EPOCHS"], book["BATCH"]) == (c.rollout, c.epochs, c.batch_size)
    assert (book["GAMMA"], book["LAMBDA"], book["CLIP"]) == (c.gamma, c.gae_lambda, c.clip_ratio)
    assert book["LEARNING_RATE"] == c.learning_rate and book["MAX_NORM"] == c.max_grad_norm
    assert book["ENTROPY"] == c.entropy_coef
    assert c.anneal and c.normalise_obs and c.normalise_reward and c.normalise_advantage
    assert c.clip_value is None and c.target_kl is None


@pytest.mark.parametrize("name, out_dim, gain", [("actor", 2, 0.01), ("critic", 1, 1.0)])
def test_networks_start_as_the_library_s(book, name, out_dim, gain):
    torch.manual_seed(3)
    ours = book["network"](4, out_dim, gain)
    theirs = PPO(CARTPOLE, 1, seeds=[3]).network(0, name)
    torch.testing.assert_close(flat(ours), flat(theirs))
    obs = torch.randn(6, 1, 4)  # (B, N, D)
    torch.testing.assert_close(ours(obs), theirs(obs)[0])


@pytest.mark.parametrize("baseline", [-3.0, 0.0, 4.0, 7.5])
def test_score_function_has_the_exact_gradient_with_any_baseline(book, baseline):
    pays, theta = book["PAYS"], torch.zeros(2, requires_grad=True)
    (exact,) = torch.autograd.grad((theta.softmax(0) * pays).sum(), theta)
    book.update(scores=torch.eye(2) - 0.5)
    low, high = book["estimates"](baseline)
    assert (low + high) / 2 == pytest.approx(exact[1].item())
    assert ((high - low) / 2) ** 2 == pytest.approx((4 - baseline) ** 2 / 4)


def test_weights_of_reinforce(book):
    reward = torch.tensor([[1.0, 2.0], [0.5, 0.0], [4.0, 0.0]])  # (T, B)
    value = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    assert book["whole_return"](reward, value).tolist() == [[5.5, 2.0]] * 3
    to_go = [[5.5, 2.0], [4.5, 0.0], [4.0, 0.0]]
    assert book["reward_to_go"](reward, value).tolist() == to_go
    above = book["above_baseline"](reward, value)
    assert torch.equal(above, torch.tensor(to_go) - value)


def test_policy_loss_has_the_policy_gradient_and_leaves_the_weight_alone(book):
    torch.manual_seed(0)
    actor, weight = book["network"](4, 3, 1.0), torch.randn(20, requires_grad=True)
    obs, action = torch.randn(20, 4), torch.randint(3, (20,))
    book["policy_loss"](actor, obs, action, weight).backward()
    ours = [p.grad.clone() for p in actor.parameters()]
    assert weight.grad is None
    total = [torch.zeros_like(p) for p in actor.parameters()]
    for row in range(20):
        log_prob = actor(obs[row]).log_softmax(-1)[action[row]]
        for grad, g in zip(total, torch.autograd.grad(log_prob, actor.parameters()), strict=True):
            grad -= weight[row].item() * g / 20
    torch.testing.assert_close(ours, total)


def test_episodes_end_where_they_end(book):
    torch.manual_seed(0)
    world = BatchedCartPole(8, max_steps=12)
    world.reset(seed=0)
    obs, action, reward, live = book["episodes"](world, book["network"](4, 2, 0.01))
    assert obs.shape == (*live.shape, 4) and action.shape == reward.shape == live.shape
    assert live[0].all() and (live[1:] <= live[:-1]).all() and live.shape[0] <= 12
    torch.testing.assert_close(reward, live / 100)
    lean = obs[..., 2].abs() < BatchedCartPole.max_angle
    assert lean[live].all()  # nobody acts after the fall


def test_reinforce_learns(book):
    class Bar:
        def update(self, n):
            assert n > 0

    _, _, returns = book["reinforce"](book["above_baseline"], 12_000, 0, Bar())
    assert returns.shape == (21,) and returns[-1] > 3 * returns[0]


def random_rollout(seed=0, shape=(30, 7)):
    g = torch.Generator().manual_seed(seed)
    numbers = torch.randn(3, *shape, generator=g)
    terminated, truncated = torch.rand(2, *shape, generator=g) < 0.1
    return (*numbers, terminated, terminated | truncated)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantages_equal_the_library_s_and_the_sum(book, lam):
    given = (*random_rollout(), 0.9, lam)
    ours = book["advantages"](*given)
    torch.testing.assert_close(ours, generalised_advantage(*given))
    torch.testing.assert_close(ours, book["written_out"](*given))


def test_the_walk_is_the_chain_it_is_said_to_be(book):
    P, pay, v = book["P"], book["PAY"], book["V_EXACT"]
    out = np.zeros(book["CELLS"])
    out[-1] = book["FORWARD"]
    np.testing.assert_allclose(P.sum(1) + out, 1)
    np.testing.assert_allclose(v, pay + book["WALK_GAMMA"] * P @ v)
    reward, value, _, out = book["walk"](20_000)
    first = out.int().argmax(0)  # the step that leaves
    steps = np.arange(len(reward))[:, None]
    assert (reward.numpy()[steps > first.numpy()] == 0).all()
    discounted = (reward.numpy() * book["WALK_GAMMA"] ** steps).sum(0)
    assert discounted.mean() == pytest.approx(v[0], abs=4 * discounted.std() / 20_000**0.5)
    assert (value[0] == v[0] / 2).all()
    assert book["exact_mean"](1.0) == pytest.approx(v[0])
    one_step = pay[0] + book["WALK_GAMMA"] * P[0] @ v / 2
    assert book["exact_mean"](0.0) == pytest.approx(one_step)


def test_clipped_objective_is_equation_7(book):
    ratio, advantage = 2 * torch.rand(500), torch.randn(500)
    for r, a, found in zip(
        ratio, advantage, book["clipped_objective"](ratio, advantage, 0.2), strict=True
    ):
        assert found.item() == pytest.approx(min(r * a, max(0.8, min(r, 1.2)) * a).item())


def test_running_norm_and_reward_scale_equal_the_library_s(book):
    norm_equals_the_library_s(book["RunningNorm"](3))
    learner = PPO(CARTPOLE, book["ENVS"], [0])
    scale = book["RewardScale"]()
    for seed in range(3):
        reward, _, _, _, ended = random_rollout(seed, (32, book["ENVS"]))
        torch.testing.assert_close(
            scale(reward, ended), learner.scale(reward[None], ended[None])[0]
        )


@pytest.fixture
def twins(book):
    """Return the notebook's agent and the library's learner with the same weights, and rollouts."""
    torch.manual_seed(1)
    agent, world = book["Agent"](4, 2), BatchedCartPole(book["ENVS"], max_steps=20)
    learner = PPO(CARTPOLE, book["ENVS"], [5], PPOConfig(anneal=False))
    learner.nets["actor"].flat.copy_(flat(agent.actor))
    learner.nets["critic"].flat.copy_(flat(agent.critic))
    obs, _ = world.reset(seed=1)
    return agent, learner, world, obs


def test_collect_keeps_where_a_step_led(book, twins):
    agent, _, world, obs = twins
    rollout, after = book["collect"](world, agent, obs)
    T, B = book["ROLLOUT"], book["ENVS"]
    assert {x.shape[:2] for x in rollout.values()} == {(T, B)}
    ended = rollout["terminated"] | rollout["truncated"]
    goes_on = ~ended[:-1]
    assert torch.equal(rollout["next_obs"][:-1][goes_on], rollout["obs"][1:][goes_on])
    assert ended.any() and (rollout["next_obs"][:-1] != rollout["obs"][1:])[ended[:-1]].any()
    assert torch.equal(rollout["next_obs"][-1][~ended[-1]], torch.as_tensor(after)[~ended[-1]])
    fallen = rollout["next_obs"][..., 2].abs() > BatchedCartPole.max_angle
    assert torch.equal(fallen, rollout["terminated"])


def test_batch_losses_and_whole_updates_equal_the_library_s(book, twins):
    agent, learner, world, obs = twins
    for _ in range(3):
        rollout, obs = book["collect"](world, agent, obs)
        book["feed"](learner, rollout)
        scale, state = copy.deepcopy(agent.scale), learner.state_dict()
        ours, theirs = book["prepare"](agent, rollout), learner.prepare()
        assert ours.keys() == theirs.keys() - {"first", "actor_memory", "critic_memory"}
        book["compare"](ours, theirs)
        found = book["losses"](agent, ours, 0.2)
        assert found["approx_kl"].item() == pytest.approx(0, abs=1e-6)
        loss, figures = learner.lift(lambda net, b: learner.loss(net, b, 0.2), theirs)
        book["compare"](found, figures)
        assert loss.item() == pytest.approx((found["policy_loss"] + found["value_loss"]).item())
        agent.scale = scale
        learner.load_state_dict(state)
        before = flat(agent.actor)
        book["learn"](agent, rollout, shuffle=book["shuffle_like"](learner))
        learner.update()
        assert (flat(agent.actor) != before).any()
        for name, net in learner.nets.items():
            weights = flat(getattr(agent, name))
            torch.testing.assert_close(weights, net.flat, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(agent.norm.mean, learner.norm.mean[0])


def test_annealing_lowers_both_the_rate_and_the_clip(book, twins):
    agent, _, world, obs = twins
    rollout, _ = book["collect"](world, agent, obs)
    before = flat(agent.actor)
    book["learn"](agent, rollout, left=0.0)
    assert torch.equal(flat(agent.actor), before)


def test_agent_tosses_coins_and_shows_its_best(book):
    torch.manual_seed(0)
    agent = book["Agent"](4, 2)
    with torch.no_grad():
        agent.actor[-1].bias.copy_(torch.tensor([0.0, np.log(3.0)]))
        agent.actor[-1].weight.zero_()
    obs = np.zeros((20_000, 4), np.float32)
    assert agent.act(obs).mean() == pytest.approx(0.75, abs=0.015)
    assert (agent.greedy(obs[:5, None], {}) == 1).all()


def test_log_normal_equals_the_library_s(book):
    action, mean = torch.randn(2, 50)
    log_std = torch.full((50,), 0.3)
    theirs = DiagonalGaussian(torch.stack([mean, log_std], -1)).log_prob(action[:, None])
    torch.testing.assert_close(book["log_normal"](action, mean, log_std), theirs)


def test_the_throw_is_best_where_it_is_said_to_be(book):
    world = book["Throw"](100)
    obs, _ = world.reset(seed=0)  # (B, 1, 1)
    _, best, terminated, _, _ = world.step(obs - obs**2 / 2)
    assert best == pytest.approx(np.zeros((100, 1)), abs=1e-10)
    assert terminated.all() and np.ptp(obs) > 1.8
    obs, _ = world.reset(seed=0)
    _, other, _, _, _ = world.step(obs - obs**2 / 2 + 0.1)
    assert other == pytest.approx(np.full((100, 1), -0.01), abs=1e-6)


def test_the_bug_is_caught_and_the_library_is_not(book):
    assert book["time_is_no_news"](PPO)
    assert not book["time_is_no_news"](book["Careless"])


def test_the_bug_is_the_one_line(book):
    pair = [kind(CARTPOLE, 3, [0], PPOConfig(rollout=1)) for kind in (PPO, book["Careless"])]
    for learner in pair:
        obs = np.zeros((3, 1, 4), np.float32)
        _, stored = learner.act(obs, {})
        dead, late = np.array([True, False, False]), np.array([False, True, False])
        paid = np.zeros((3, 1), np.float32)
        learner.observe(stored, paid, dead, late, {"final_obs": obs})
    assert pair[0].data["terminated"][0, 0].tolist() == [True, False, False]
    assert pair[1].data["terminated"][0, 0].tolist() == [True, True, False]
    assert torch.equal(pair[0].data["truncated"], pair[1].data["truncated"])


def test_estimate_of_the_divergence_is_right_on_average(book):
    torch.manual_seed(0)
    old, agent = Categorical(logits=torch.tensor([0.5, -0.5])), book["Agent"](4, 2)
    with torch.no_grad():
        agent.actor[-1].bias.copy_(torch.tensor([-0.4, 0.3]))
        agent.actor[-1].weight.zero_()
    action = old.sample((50_000,))
    batch = {
        "obs": torch.zeros(50_000, 4),
        "action": action,
        "log_prob": old.log_prob(action),
        "advantage": torch.randn(50_000),
        "returns": torch.zeros(50_000),
    }
    new = Categorical(logits=torch.tensor([-0.4, 0.3]))
    exact = torch.distributions.kl_divergence(old, new).item()
    assert book["losses"](agent, batch, 0.2)["approx_kl"].item() == pytest.approx(exact, rel=0.05)
