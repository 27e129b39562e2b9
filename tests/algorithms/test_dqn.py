"""Deep Q-learning against numbers made by hand, plain networks and exact values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from marl_lib.algorithms.dqn import DQN, DQNConfig, QNetwork, td_target
from marl_lib.config import ConfigError
from marl_lib.planning import tabulate, value_iteration
from marl_lib.runs import make_trainer, run_config

OBS, ACTIONS, AGENTS, BATCH = 4, 3, 2, 6
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = DQNConfig(hidden=(8,), batch_size=16, buffer_size=400, learning_starts=0, train_every=1)


def learner(seeds: tuple[int, ...] = (0, 3), num_envs: int = 2, **changes: Any) -> DQN:
    given = {k: changes.pop(k) for k in ("action_masks", "device", "n_agents") if k in changes}
    config = dataclasses.replace(SMALL, **changes)
    return DQN(OBS, ACTIONS, given.pop("n_agents", AGENTS), num_envs, seeds, config, **given)


def scatter_target(dqn: DQN) -> None:
    """Make the target network differ from the network, as it does between copies."""
    noise = torch.randn(dqn.target.shape, generator=torch.Generator().manual_seed(9))
    dqn.target.add_(0.3 * noise.to(dqn.device))


def random_batch(dqn: DQN, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch as the replay gives it, (R, BATCH, ...)."""
    g = torch.Generator().manual_seed(seed)
    lead, n = (len(dqn.seeds), BATCH), dqn.n_agents
    batch = {
        "obs": torch.randn(*lead, n, OBS, generator=g),
        "action": torch.randint(ACTIONS, (*lead, n), generator=g),
        "reward": torch.randn(*lead, n, generator=g),
        "next_obs": torch.randn(*lead, n, OBS, generator=g),
        "discount": torch.rand(*lead, generator=g),
        "terminated": torch.rand(*lead, generator=g) < 0.3,
        "truncated": torch.rand(*lead, generator=g) < 0.3,
        "next_mask": torch.ones(*lead, n, ACTIONS, dtype=torch.bool),
    }
    return {name: value.to(dqn.device) for name, value in batch.items()}


def feed(dqn: DQN, steps: int, seed: int = 0) -> None:
    """Give the learner ``steps`` random steps of all its environments."""
    rng = np.random.default_rng(seed)
    rows, n = len(dqn.seeds) * dqn.num_envs, dqn.n_agents
    for _ in range(steps):
        masks = {"final_mask": rng.random((rows, n, ACTIONS)) < 0.7}
        masks["final_mask"][..., 0] = True
        dqn.observe(
            rng.normal(size=(rows, n, OBS)).astype(np.float32),
            rng.integers(ACTIONS, size=(rows, n)),
            rng.normal(size=(rows, n)).astype(np.float32),
            rng.normal(size=(rows, n, OBS)).astype(np.float32),
            rng.random(rows) < 0.2,
            np.zeros(rows, bool),
            masks,
        )


# The parts ----------------------------------------------------------------------------------------


def test_td_target_by_hand() -> None:
    reward = torch.tensor([1.0, 1.0, 1.0])
    discount = torch.tensor([0.5, 0.5, 0.25])
    terminated = torch.tensor([False, True, False])
    target_q = torch.tensor([[2.0, 6.0], [2.0, 6.0], [-4.0, -8.0]])
    online_q = torch.tensor([[9.0, 1.0], [9.0, 1.0], [0.0, 1.0]])
    plain = td_target(reward, discount, terminated, target_q)
    double = td_target(reward, discount, terminated, target_q, online_q)
    assert plain.tolist() == [1 + 0.5 * 6, 1.0, 1 + 0.25 * -4]
    assert double.tolist() == [1 + 0.5 * 2, 1.0, 1 + 0.25 * -8]


def test_a_terminal_state_without_legal_actions_has_no_value() -> None:
    nothing = torch.full((2, 3), -torch.inf)
    target = td_target(torch.ones(2), torch.ones(2), torch.tensor([True, True]), nothing, nothing)
    assert target.tolist() == [1.0, 1.0]


def test_dueling_is_equation_9() -> None:
    torch.manual_seed(0)
    net = QNetwork(OBS, ACTIONS, (5,), dueling=True)
    obs = torch.randn(7, OBS)
    features = torch.relu(obs @ net.body[0].weight.T + net.body[0].bias)
    assert net.value is not None
    value = features @ net.value.weight[0] + net.value.bias
    advantage = features @ net.head.weight.T + net.head.bias
    for i in range(7):
        mean = advantage[i].sum() / ACTIONS
        for a in range(ACTIONS):
            torch.testing.assert_close(net(obs)[i, a], value[i] + (advantage[i, a] - mean))


def test_layers_are_as_configured() -> None:
    shapes = [tuple(p.shape) for p in QNetwork(4, 3, (7, 5)).parameters()]
    assert shapes == [(7, 4), (7,), (5, 7), (5,), (3, 5), (3,)]
    assert [tuple(p.shape) for p in QNetwork(4, 3, ()).parameters()] == [(3, 4), (3,)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", -0.1),
        ("gamma", float("nan")),
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("train_every", 0),
        ("target_every", 0),
        ("n_step", 0),
        ("learning_starts", -1),
        ("epsilon_end", 1.5),
        ("hidden", (64, 0)),
        ("max_grad_norm", -1.0),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        DQNConfig(**{key: value})


def test_a_buffer_that_could_never_be_drawn_from_is_refused() -> None:
    """Without this a run with a short buffer would end well, having learned nothing."""
    with pytest.raises(ConfigError, match="buffer_size must be at least 6 here, got 5"):
        learner(num_envs=2, n_step=3, buffer_size=5)
    shortest = learner(num_envs=2, n_step=3, buffer_size=6)
    feed(shortest, 5)
    assert shortest.update()["loss"].shape == (2,)


# Acting -------------------------------------------------------------------------------------------


def always_first(dqn: DQN) -> None:
    """Make action 0 the greedy one everywhere."""
    with torch.no_grad():
        dqn.net.flat.zero_()
        dqn.net.params["head.bias"][:, 0] = 1.0


def test_each_agent_explores_on_its_own_coin() -> None:
    many, share = 40, 0.3  # with 40 actions, one that is not greedy was surely explored
    config = dataclasses.replace(SMALL, epsilon_start=share, epsilon_end=share)
    dqn = DQN(OBS, many, 2, 50, [0, 1], config)
    always_first(dqn)
    obs = np.zeros((100, 2, OBS), np.float32)
    actions = np.stack([dqn.act(obs, {}) for _ in range(300)])  # (300, R × B, N)
    explored = actions > 0
    rate = share * (many - 1) / many
    assert explored.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate / explored.size))
    # Agents, environments, replicates and steps are independent of each other.
    for a, b in [
        (explored[..., 0], explored[..., 1]),
        (explored[:, 0], explored[:, 1]),
        (explored[:, :50], explored[:, 50:]),
        (explored[:-1], explored[1:]),
    ]:
        table = stats.contingency.crosstab(a.ravel(), b.ravel()).count
        assert stats.chi2_contingency(table).pvalue > 1e-3
    counts = np.bincount(actions[explored], minlength=many)[1:]
    assert stats.chisquare(counts).pvalue > 1e-3  # uniform over the actions


def test_exploration_ends_with_epsilon() -> None:
    dqn = learner(epsilon_start=1.0, epsilon_end=0.0, epsilon_steps=100)
    always_first(dqn)
    obs = np.zeros((4, AGENTS, OBS), np.float32)
    assert np.mean([dqn.act(obs, {}) > 0 for _ in range(50)]) > 0.5
    feed(dqn, 50)  # 100 steps of each replicate
    assert not np.any([dqn.act(obs, {}) > 0 for _ in range(50)])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_illegal_actions_are_never_taken(share: float) -> None:
    dqn = learner(num_envs=64, action_masks=True, epsilon_start=share, epsilon_end=share)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(128, AGENTS, OBS)).astype(np.float32)
    counts = np.zeros((7, ACTIONS))
    for _ in range(60):
        code = rng.integers(1, 8, size=(128, AGENTS))
        mask = (code[..., None] >> np.arange(ACTIONS) & 1).astype(bool)
        for action in (
            dqn.act(obs, {"action_mask": mask}),
            dqn.policy()(obs, {"action_mask": mask}),
        ):
            assert np.take_along_axis(mask, action[..., None], -1).all()
        explored = dqn.act(obs, {"action_mask": mask})
        np.add.at(counts, (code.ravel() - 1, explored.ravel()), 1)
    if share == 1.0:  # uniform over what is legal
        for row in counts:
            several = row[row > 0]
            assert len(several) == 1 or stats.chisquare(several).pvalue > 1e-4
        assert [int((row > 0).sum()) for row in counts] == [1, 1, 2, 1, 2, 2, 3]


def test_greedy_actions_are_the_best_and_draw_no_numbers() -> None:
    dqn = learner()
    obs = np.random.default_rng(0).normal(size=(2 * 5, AGENTS, OBS)).astype(np.float32)
    before = dqn.streams.state_dict()["count"].copy()
    action = dqn.policy()(obs, {})  # any number of rows a replicate
    q = dqn.q_values(torch.from_numpy(obs).unflatten(0, (2, 5))).flatten(0, 1)
    np.testing.assert_array_equal(action, q.argmax(-1).numpy())
    np.testing.assert_array_equal(dqn.streams.state_dict()["count"], before)


# Values and loss ----------------------------------------------------------------------------------


def plain_networks(dqn: DQN, flat: Tensor) -> list[list[nn.Module]]:
    """Return every network as a module of its own: [replicate][agent]."""
    c, views = dqn.config, dqn.net.views(flat)
    inputs = views["body.0.weight"].shape[-1]
    networks: list[list[nn.Module]] = []
    for r in range(len(dqn.seeds)):
        networks.append([])
        for i in range(dqn.n_agents):
            g = r if dqn.one_network else r * dqn.n_agents + i
            net = QNetwork(inputs, ACTIONS, c.hidden, c.dueling)
            net.load_state_dict({name: p[g].clone() for name, p in views.items()})
            networks[-1].append(net)
    return networks


def slow_loss(
    dqn: DQN, batch: dict[str, Tensor]
) -> tuple[list[list[nn.Module]], list[list[Tensor]]]:
    """Return the loss of every replicate and agent, in loops over plain networks."""
    online, target = (plain_networks(dqn, flat) for flat in (dqn.net.flat, dqn.target))

    def see(obs: Tensor, i: int) -> Tensor:
        known = dqn.config.share_parameters and dqn.n_agents > 1
        return torch.cat([obs, torch.eye(dqn.n_agents)[i]]) if known else obs

    losses: list[list[Tensor]] = []
    for r in range(len(dqn.seeds)):
        losses.append([])
        for i in range(dqn.n_agents):
            errors = []
            for b in range(BATCH):
                row = {name: value[r, b] for name, value in batch.items()}
                q = online[r][i](see(row["obs"][i], i))[row["action"][i]]
                after = see(row["next_obs"][i], i)
                judge = target[r][i](after).detach()
                chooser = online[r][i](after).detach() if dqn.config.double else judge
                legal = [a for a in range(ACTIONS) if row["next_mask"][i, a]]
                best = max(legal, key=lambda a, values=chooser: values[a])
                value = 0.0 if row["terminated"] else judge[best]
                error = (q - (row["reward"][i] + row["discount"] * value)).abs()
                errors.append(0.5 * error**2 if error < 1 else error - 0.5)
            losses[-1].append(torch.stack(errors).mean())
    return online, losses


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("n_agents", [1, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_a_separate_team_equals_plain_networks(
    double: bool, dueling: bool, n_agents: int, masks: bool
) -> None:
    dqn = learner(
        double=double,
        dueling=dueling,
        n_agents=n_agents,
        action_masks=masks,
        share_parameters=False,
    )
    scatter_target(dqn)
    batch = random_batch(dqn)
    if masks:
        batch["next_mask"][..., 1:] = batch["next_obs"][..., :2] > 0
    networks, losses = slow_loss(dqn, batch)
    found = dqn.loss(batch)
    torch.testing.assert_close(found, torch.stack([x for row in losses for x in row]))
    dqn.net.backward(found)
    for r in range(2):
        for i in range(n_agents):
            losses[r][i].backward()
            for name, p in networks[r][i].named_parameters():
                torch.testing.assert_close(dqn.net.grads[name][r * n_agents + i], p.grad)


@pytest.mark.parametrize("double", [False, True])
def test_a_shared_network_learns_from_every_agent(double: bool) -> None:
    dqn = learner(double=double)
    scatter_target(dqn)
    batch = random_batch(dqn)
    networks, losses = slow_loss(dqn, batch)
    found = dqn.loss(batch)
    torch.testing.assert_close(found, torch.stack([torch.stack(row).mean() for row in losses]))
    dqn.net.backward(found)
    for r in range(2):
        torch.stack(losses[r]).mean().backward()
        for name, grad in dqn.net.grads.items():
            parts = [dict(net.named_parameters())[name].grad for net in networks[r]]
            torch.testing.assert_close(grad[r], torch.stack(parts).sum(0), msg=name)


def test_ends_do_not_bootstrap_and_time_limits_do() -> None:
    dqn = learner()
    scatter_target(dqn)
    batch = random_batch(dqn)
    loss = dqn.loss(batch)
    ended = batch["terminated"]
    assert ended.any() and (batch["truncated"] & ~ended).any()
    other = {**batch, "next_obs": batch["next_obs"].clone()}
    other["next_obs"][ended] = 1e3  # what comes after the end does not count
    assert torch.equal(dqn.loss(other), loss)
    other["next_obs"][batch["truncated"] & ~ended] = 1e3  # what comes after a time limit does
    assert (dqn.loss(other) != loss).all()
    assert torch.equal(dqn.loss({**batch, "truncated": ~batch["truncated"]}), loss)


def test_illegal_actions_are_never_bootstrapped() -> None:
    for double in (False, True):
        dqn = learner(action_masks=True, double=double)
        scatter_target(dqn)
        batch = random_batch(dqn)
        batch["next_mask"][..., 2] = False
        loss = dqn.loss(batch)
        for flat in (dqn.target, dqn.net.flat.data):  # an illegal action that looks like a prize
            view = dqn.net.views(flat)["head.bias"]
            mine = batch["action"] == 2
            batch["action"][mine] = 0  # else its own value would enter the loss
            loss = dqn.loss(batch)
            view[:, 2] += 100.0
            torch.testing.assert_close(dqn.loss(batch), loss, rtol=0, atol=0)
        assert loss.max() < 10


def test_order_of_the_batch_does_not_matter() -> None:
    dqn = learner()
    batch = random_batch(dqn)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] for name, value in batch.items()}
    torch.testing.assert_close(dqn.loss(shuffled), dqn.loss(batch))


def test_permuting_a_separate_team_permutes_its_values() -> None:
    dqn = learner(n_agents=3, share_parameters=False)
    obs = random_batch(dqn)["obs"]
    q = dqn.q_values(obs)
    order = [2, 0, 1]
    views = dqn.net.views(dqn.net.flat)
    params = {k: v.unflatten(0, (2, 3))[:, order].flatten(0, 1) for k, v in views.items()}
    torch.testing.assert_close(dqn.q_values(obs[:, :, order], params), q[:, :, order])
    assert not torch.allclose(dqn.q_values(obs[:, :, order]), q[:, :, order])


def test_a_shared_network_knows_whose_values_it_gives() -> None:
    dqn = learner()
    obs = random_batch(dqn)["obs"][:, :, :1].expand(-1, -1, AGENTS, -1)
    q = dqn.q_values(obs)  # both agents see the same
    assert not torch.allclose(q[:, :, 0], q[:, :, 1])
    with torch.no_grad():
        dqn.net.params["body.0.weight"][..., OBS:] = 0.0  # the id unplugged
    q = dqn.q_values(obs)
    torch.testing.assert_close(q[:, :, 0], q[:, :, 1])


def test_agents_see_only_their_own_observation() -> None:
    for shared in (True, False):
        dqn = learner(share_parameters=shared)
        obs = random_batch(dqn)["obs"]
        q, other = dqn.q_values(obs), obs.clone()
        other[:, :, 1] += 1.0
        assert torch.equal(dqn.q_values(other)[:, :, 0], q[:, :, 0])
        assert not torch.allclose(dqn.q_values(other)[:, :, 1], q[:, :, 1])


# Learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_what_should_move_moves_and_nothing_else(share: bool) -> None:
    dqn = learner(share_parameters=share, dueling=True, target_every=3, batch_size=256)
    feed(dqn, 100)
    before, target = dqn.net.flat.clone(), dqn.target.clone()
    assert torch.equal(before, target)
    for updates in (1, 2):
        dqn.learn_once()
        assert dqn.updates == updates
        assert torch.equal(dqn.target, target)
    for name, old in dqn.net.views(before).items():
        assert (dqn.net.params[name] != old).all(), name
    dqn.learn_once()
    assert torch.equal(dqn.target, dqn.net.flat)
    assert dqn.target.data_ptr() != dqn.net.flat.data_ptr()


def test_the_learning_rate_goes_down_to_zero_if_asked() -> None:
    def rates(anneal: bool, total_steps: int | None) -> list[float]:
        config = dataclasses.replace(SMALL, anneal=anneal, learning_rate=0.5, batch_size=2)
        dqn = DQN(OBS, ACTIONS, AGENTS, 2, [0, 3], config, total_steps=total_steps)
        found = []
        for _ in range(5):  # of 2 environments each
            feed(dqn, 1)
            dqn.learn_once()
            found.append(dqn.optimizer.learning_rate)
        return found

    assert rates(True, 8) == pytest.approx([0.375, 0.25, 0.125, 0.0, 0.0])
    assert rates(True, None) == rates(False, 8) == [0.5] * 5


@pytest.mark.parametrize("num_envs", [1, 3, 16, 50, 64])
def test_updates_for_each_step_do_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    starts, every = 40, 16
    dqn = learner((0,), num_envs, learning_starts=starts, train_every=every, batch_size=2)
    while dqn.steps < 400:
        feed(dqn, 1)
        figures = dqn.update()
        assert dqn.updates == max(0, dqn.steps - starts) // every
        assert not figures or figures["loss"].shape == figures["grad_norm"].shape == (1,)


def test_n_step_draws_reach_the_loss() -> None:
    """With every value zero the loss is that of the rewards alone: 1, or 1 + γ + γ²."""
    for n, total in [(1, 1.0), (3, 1.75)]:
        dqn = learner((0,), num_envs=1, n_step=n, gamma=0.5, max_grad_norm=1e9)
        dqn.net.flat.data.zero_()
        dqn.target.zero_()
        zeros = np.zeros((1, AGENTS, OBS), np.float32)
        for _ in range(6):
            dqn.observe(
                zeros,
                np.zeros((1, AGENTS), int),
                np.ones((1, AGENTS), np.float32),
                zeros,
                np.zeros(1, bool),
                np.zeros(1, bool),
                {},
            )
        assert dqn.learn_once()["loss"] == pytest.approx([total - 0.5])  # Huber beyond 1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("n_step", [1, 2])
def test_a_chain_is_learned_to_its_exact_values(double: bool, n_step: int) -> None:
    """Two states, two actions: 0 goes on (state 1 ends, paying 1), 1 stays, paying 0.1.

    With γ = 0.5: Q(1, go) = 1, Q(1, stay) = 0.1 + 0.5, Q(0, go) = 0.5, Q(0, stay) = 0.1 + 0.25.
    Two steps at once say the same only of what is followed by the best action, so there the data
    are those of the best policy, and only its values are compared.
    """
    config = DQNConfig(
        gamma=0.5, learning_rate=0.05, batch_size=64, buffer_size=256, learning_starts=0,
        train_every=4, target_every=20, hidden=(), double=double, n_step=n_step,
    )  # fmt: skip
    dqn = DQN(2, 2, 1, 4, [0, 1], config)
    rng, eye = np.random.default_rng(0), np.eye(2, dtype=np.float32)
    state = np.zeros(8, int)
    for _ in range(300 if n_step == 1 else 60):
        action = rng.integers(2, size=8) if n_step == 1 else np.zeros(8, int)
        over = (state == 1) & (action == 0)
        reward = np.where(action == 1, 0.1, over).astype(np.float32)
        after = np.where(action == 0, 1, state)
        dqn.observe(
            eye[state][:, None], action[:, None], reward[:, None], eye[after][:, None],
            over, np.zeros(8, bool), {},
        )  # fmt: skip
        dqn.update()
        state = np.where(over, rng.integers(2, size=8), after)
    for _ in range(200):
        dqn.learn_once()
    q = dqn.q_values(torch.eye(2).view(1, 2, 1, 2).expand(2, 2, 1, 2))[:, :, 0].detach()
    exact = torch.tensor([[0.5, 0.35], [1.0, 0.6]])
    if n_step == 1:
        torch.testing.assert_close(q, exact.expand(2, 2, 2), atol=5e-3, rtol=0)
    else:
        torch.testing.assert_close(q[..., 0], exact[:, 0].expand(2, 2), atol=5e-3, rtol=0)


def test_a_small_world_is_learned_to_its_exact_values() -> None:
    """Every state and action of a 3 x 3 grid with one target, against value iteration."""
    world = {"grid_size": (3, 3), "n_agents": 1, "n_targets": 1, "max_steps": 20}
    settings = {
        "gamma": 0.9, "learning_rate": 2e-3, "batch_size": 64, "buffer_size": 20_000,
        "learning_starts": 1_000, "train_every": 8, "target_every": 100, "epsilon_steps": 1,
        "epsilon_end": 0.5, "hidden": [64],
    }  # fmt: skip
    config = run_config(
        {"num_envs": 32, "timesteps": 18_000, "eval_every": 10**9, "eval_episodes": 1},
        {"final_episodes": 50, "env_options": world, "dqn": settings},
    )
    trainer = make_trainer(config, progress=False)
    final = trainer.train().final
    table = tabulate(**world)
    exact = value_iteration(table, gamma=0.9)
    obs = torch.from_numpy(table.obs)[None, :, None]
    found = trainer.learner.q_values(obs).detach()[0, :, 0].numpy()
    assert exact.shape == (72, 5) and exact.min() > 6  # so that a share of it makes sense
    np.testing.assert_allclose(found.max(1), exact.max(1), rtol=0.05)
    np.testing.assert_allclose(found, exact, rtol=0.12)
    best = np.take_along_axis(exact, found.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(best, exact.max(1), rtol=1e-6)  # every greedy move is optimal
    assert final["targets_collected"].mean() == 1.0


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(device: str) -> None:
    dqn = learner(device=device, action_masks=True)
    feed(dqn, 10)
    figures = dqn.update()
    assert all(value.dtype == np.float32 for value in figures.values())
    tensors = [dqn.net.flat, dqn.target, *dqn.net.params.values(), *dqn.replay.data.values()]
    assert {t.device.type for t in tensors} == {device}
    assert {t.dtype for t in tensors} == {torch.float32, torch.int64, torch.bool}
    obs = np.zeros((4, AGENTS, OBS), np.float32)
    mask = np.ones((4, AGENTS, ACTIONS), bool)
    action = dqn.act(obs, {"action_mask": mask})
    assert action.dtype == np.int64 and action.shape == (4, AGENTS)


@pytest.mark.parametrize("share", [True, False])
def test_a_restored_learner_goes_on_exactly(share: bool) -> None:
    dqn = learner(share_parameters=share)
    feed(dqn, 20)
    dqn.update()
    state = dqn.state_dict()
    other = learner((8, 9), share_parameters=share)
    other.load_state_dict(state)
    for each in (dqn, other):
        feed(each, 5, seed=1)
        each.update()
    obs = np.random.default_rng(2).normal(size=(4, AGENTS, OBS)).astype(np.float32)
    assert torch.equal(dqn.net.flat, other.net.flat) and torch.equal(dqn.target, other.target)
    np.testing.assert_array_equal(dqn.act(obs, {}), other.act(obs, {}))
    assert not torch.equal(state["parameters"], dqn.net.flat)  # a copy, not a view
