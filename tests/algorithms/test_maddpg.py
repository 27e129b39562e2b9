"""MADDPG against numbers made by hand, plain networks and games whose best play is known."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from marl_lib.algorithms.maddpg import MADDPG, MADDPGConfig, replaced
from marl_lib.config import ConfigError
from marl_lib.envs import make
from marl_lib.envs.matrix import GAMES
from marl_lib.nn.distributions import gumbel, gumbel_softmax
from marl_lib.nn.layers import mlp
from marl_lib.replicates import Replicates
from marl_lib.training import LoopConfig, Trainer

OBS, AGENTS, BATCH = 4, 2, 6
BOUNDS = np.array([-2.0, 0.0]), np.array([2.0, 0.5])
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = MADDPGConfig(hidden=(8,), batch_size=16, buffer_size=400, learning_starts=0, train_every=1)
KINDS = pytest.mark.parametrize("continuous", [True, False])
SHARING = pytest.mark.parametrize(
    ("shared", "team_reward"), [(True, True), (True, False), (False, True), (False, False)]
)


def size(continuous: bool) -> int:
    return 2 if continuous else 3


def learner(
    continuous: bool = True, seeds: tuple[int, ...] = (0, 3), num_envs: int = 2, **changes: Any
) -> MADDPG:
    given = {k: changes.pop(k) for k in ("action_masks", "device", "total_steps") if k in changes}
    n = changes.pop("n_agents", AGENTS)
    config = dataclasses.replace(SMALL, **changes)
    bounds = BOUNDS if continuous else None
    return MADDPG(OBS, size(continuous), n, num_envs, seeds, config, bounds=bounds, **given)


def scatter_targets(team: MADDPG) -> None:
    """Make the target networks differ from the networks, as they do in training."""
    g = torch.Generator().manual_seed(9)
    for target in team.targets.values():
        target.add_(0.3 * torch.randn(target.shape, generator=g).to(target.device))


def random_batch(team: MADDPG, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return a batch as the replay gives it, (R, BATCH, ...), and uniform numbers."""
    g = torch.Generator().manual_seed(seed)
    n, a = team.n_agents, team.n_actions
    lead = (len(team.seeds), BATCH)
    low, high = (torch.from_numpy(x).float() for x in BOUNDS)
    action = torch.randint(a, (*lead, n), generator=g)
    if team.continuous:
        action = low + (high - low) * torch.rand(*lead, n, a, generator=g)
    batch = {
        "obs": torch.randn(*lead, n, OBS, generator=g),
        "action": action,
        "reward": torch.randn(*lead, n, generator=g),
        "next_obs": torch.randn(*lead, n, OBS, generator=g),
        "terminated": torch.rand(*lead, generator=g) < 0.3,
        "truncated": torch.rand(*lead, generator=g) < 0.3,
        "mask": torch.ones(*lead, n, a, dtype=torch.bool),
        "next_mask": torch.ones(*lead, n, a, dtype=torch.bool),
    }
    return batch, torch.rand(*lead, n, a, generator=g)


def actor_loss(team: MADDPG, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
    return team.actor_loss(batch, None if team.continuous else noise)


def feed(team: MADDPG, steps: int, seed: int = 0, rows: slice = slice(None)) -> None:
    """Give the learner ``steps`` random steps, of the chosen rows of four environments."""
    rng = np.random.default_rng(seed)
    n, a = team.n_agents, team.n_actions
    for _ in range(steps):
        step = (
            rng.normal(size=(4, n, OBS)).astype(np.float32),
            rng.uniform(*BOUNDS, size=(4, n, 2)).astype(np.float32)
            if team.continuous
            else rng.integers(a, size=(4, n)),
            rng.normal(size=(4, n)).astype(np.float32),
            rng.normal(size=(4, n, OBS)).astype(np.float32),
            rng.random(4) < 0.2,
            rng.random(4) < 0.2,
        )
        masks = rng.random((2, 4, n, a)) < 0.7
        masks[..., 0] = True
        info = {"final_mask": masks[1][rows], "action_mask": masks[0][rows]}
        if team.action_masks:
            team.act(step[0][rows], info)
        team.observe(*(x[rows] for x in step), info)


def constant(nets: Replicates, flat: Tensor, value: list[Any]) -> None:
    """Make networks say ``value`` whatever they see."""
    flat.detach().zero_()
    last = max(name for name in nets.params if name.endswith("bias"))
    nets.views(flat)[last].copy_(torch.tensor(value))


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("tau", 0.0),
        ("actor_learning_rate", 0.0),
        ("critic_learning_rate", -1.0),
        ("temperature", 0.0),
        ("max_grad_norm", 0.0),
        ("batch_size", 0),
        ("train_every", 0),
        ("learning_starts", -1),
        ("noise_start", -0.1),
        ("noise_steps", -1),
        ("actor_penalty", -1.0),
        ("hidden", (64, 0)),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        MADDPGConfig(**{key: value})


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="action_masks must be false for continuous actions"):
        learner(action_masks=True)
    with pytest.raises(ConfigError, match="buffer_size must be at least 9 here, got 8"):
        learner(num_envs=9, buffer_size=8)
    with pytest.raises(ConfigError, match="bounds must be finite and in order"):
        MADDPG(OBS, 1, 2, 1, [0], bounds=(np.array([-np.inf]), np.array([1.0])))


# Acting -------------------------------------------------------------------------------------------


def test_continuous_actions_are_uniform_first_and_then_noisy() -> None:
    team = learner(
        num_envs=500, learning_starts=1000, buffer_size=1000,
        noise_start=0.2, noise_end=0.1, noise_steps=2000,
    )  # fmt: skip
    obs = np.zeros((1000, AGENTS, OBS), np.float32)
    low, high = BOUNDS
    first = (team.act(obs, {}) - low) / (high - low)
    for i in range(AGENTS):
        for j in range(2):
            assert stats.kstest(first[:, i, j], "uniform").pvalue > 1e-3
    constant(team.actor, team.actor.flat, [0.2, -0.1])
    team.steps = 1000  # half way down
    scaled = 2 * (team.act(obs, {}) - low) / (high - low) - 1
    for j, mean in enumerate(np.tanh([0.2, -0.1])):
        assert stats.kstest(scaled[..., j].ravel(), stats.norm(mean, 0.15).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(scaled.reshape(1000, 4).T) - np.eye(4)).max() < 0.15
    exact = low + (high - low) * (np.tanh([0.2, -0.1]) + 1) / 2
    np.testing.assert_allclose(team.policy()(obs, {})[5, 1], exact, rtol=1e-5)


def test_discrete_actions_are_uniform_first_and_then_drawn_by_softmax() -> None:
    team = learner(False, num_envs=500, learning_starts=1000, buffer_size=1000)
    obs = np.zeros((1000, AGENTS, OBS), np.float32)
    assert stats.chisquare(np.bincount(team.act(obs, {}).ravel(), minlength=3)).pvalue > 1e-3
    logits = torch.tensor([0.0, 1.0, -1.0])
    constant(team.actor, team.actor.flat, logits.tolist())
    team.steps = 1000
    counts = np.bincount(team.act(obs, {}).ravel(), minlength=3)
    p = logits.double().softmax(0).numpy()
    assert stats.chisquare(counts, 2000 * p).pvalue > 1e-3
    assert (team.policy()(obs, {}) == 1).all()
    sampled = team.policy(sampled=True)(obs, {})
    assert stats.chisquare(np.bincount(sampled.ravel(), minlength=3), 2000 * p).pvalue > 1e-3
    np.testing.assert_array_equal(team.policy(sampled=True)(obs, {}), sampled)


def test_actions_never_leave_their_bounds() -> None:
    for shift in (-50.0, 50.0):
        team = learner(noise_start=2.0)
        constant(team.actor, team.actor.flat, [shift, shift])
        obs = np.zeros((4, AGENTS, OBS), np.float32)
        for act in (team.act, team.policy(), team.policy(sampled=True)):
            action = act(obs, {})
            assert (action >= BOUNDS[0].astype("f")).all()
            assert (action <= BOUNDS[1].astype("f")).all()


@pytest.mark.parametrize("starts", [0, 10**6])
def test_illegal_actions_are_never_taken(starts: int) -> None:
    team = learner(False, num_envs=64, action_masks=True, learning_starts=starts)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(128, AGENTS, OBS)).astype(np.float32)
    seen = np.zeros(3)
    for _ in range(60):
        code = rng.integers(1, 8, size=(128, AGENTS))
        mask = (code[..., None] >> np.arange(3) & 1).astype(bool)
        info = {"action_mask": mask}
        for act in (team.act, team.policy(), team.policy(sampled=True)):
            action = act(obs, info)
            assert np.take_along_axis(mask, action[..., None], -1).all()
        every = mask.all(-1)
        seen += np.bincount(team.act(obs, info)[every], minlength=3)
    assert (seen > 0).all()
    assert starts == 0 or stats.chisquare(seen).pvalue > 1e-3


def test_masks_are_stored_beside_what_they_belong_to() -> None:
    team = learner(False, action_masks=True)
    obs = np.zeros((4, AGENTS, OBS), np.float32)
    now, after = np.ones((2, 4, AGENTS, 3), bool)
    now[..., 1], after[..., 2] = False, False
    action = team.act(obs, {"action_mask": now})
    reset = {"final_mask": after, "action_mask": np.ones_like(now)}
    team.observe(obs, action, np.zeros((4, 2)), obs, np.zeros(4, bool), np.zeros(4, bool), reset)
    assert torch.equal(team.replay.data["mask"][0], torch.from_numpy(now))
    assert torch.equal(team.replay.data["next_mask"][0], torch.from_numpy(after))


@SHARING
def test_agents_act_on_their_own_observation_alone(shared: bool, team_reward: bool) -> None:
    team = learner(shared=shared, team_reward=team_reward)
    obs = random_batch(team)[0]["obs"]
    out, other = team.actor_output(obs), obs.clone()
    other[:, :, 1] += 1.0
    assert torch.equal(team.actor_output(other)[:, :, 0], out[:, :, 0])
    assert not torch.allclose(team.actor_output(other)[:, :, 1], out[:, :, 1])
    same = obs[:, :, :1].expand(-1, -1, AGENTS, -1)  # shared networks are told who asks
    out = team.actor_output(same)
    assert not torch.allclose(out[:, :, 0], out[:, :, 1])


# Losses -------------------------------------------------------------------------------------------


def test_only_ones_own_action_is_replaced() -> None:
    policy = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])  # one row, three agents
    replay = -policy
    joint = replaced(policy, replay)
    assert joint.shape == (1, 3, 3, 2)
    for i in range(3):
        for j in range(3):
            assert torch.equal(joint[0, i, j], policy[0, j] if i == j else replay[0, j])


def slow(team: MADDPG, name: str, flat: Tensor, r: int, i: int) -> Any:
    """Return a plain copy of one network: of replicate r, agent i."""
    nets: Replicates = getattr(team, name)
    index = r if team.one_network else r * team.n_agents + i
    own = {k: v[index].clone() for k, v in nets.views(flat).items()}
    net = mlp(own["0.weight"].shape[1], team.config.hidden, own["2.bias"].shape[0])
    net.load_state_dict(own)
    return net


def slow_losses(
    team: MADDPG, batch: dict[str, Tensor], noise: Tensor, r: int
) -> tuple[list[Any], list[Any], Tensor, Tensor]:
    """Return actors, critics and both losses of every agent of one replicate, in loops."""
    n, c = team.n_agents, team.config
    ids = torch.eye(n) if team.one_network and n > 1 else torch.zeros(n, 0)
    nets = {
        (kind, old): [slow(team, kind, flat, r, i) for i in range(n)]
        for kind in ("actor", "critic")
        for old, flat in ((False, getattr(team, kind).flat), (True, team.targets[kind]))
    }
    low, high = (torch.from_numpy(x).float() for x in BOUNDS)

    def vector(action: Tensor) -> Tensor:
        return 2 * (action - low) / (high - low) - 1 if team.continuous else torch.eye(3)[action]

    def judge(i: int, obs: Tensor, actions: list[Tensor], old: bool) -> Tensor:
        seen = [*obs, *actions] + ([] if team.one_value else [ids[i]])
        return nets["critic", old][i](torch.cat(seen)).squeeze()

    def say(i: int, obs: Tensor, old: bool) -> Tensor:
        out: Tensor = nets["actor", old][i](torch.cat([obs[i], ids[i]]))
        return out

    critic, actor = torch.zeros(n, BATCH), torch.zeros(n, BATCH)
    for b in range(BATCH):
        row = {name: x[r, b] for name, x in batch.items()}
        done = [vector(row["action"][i]) for i in range(n)]
        then = []
        for i in range(n):
            out = say(i, row["next_obs"], True)
            legal = [k for k in range(3) if team.continuous or row["next_mask"][i, k]]
            best = max(legal, key=lambda k, out=out: 0.0 if team.continuous else out[k].item())
            then.append(out.tanh() if team.continuous else torch.eye(3)[best])
        for i in range(n):
            value = 0.0 if row["terminated"] else judge(i, row["next_obs"], then, True)
            reward = row["reward"].sum() if c.team_reward else row["reward"][i]
            target = torch.as_tensor(reward + c.gamma * value).detach()
            critic[i, b] = (judge(i, row["obs"], done, False) - target) ** 2
            out = say(i, row["obs"], False)
            legal = out.masked_fill(~row["mask"][i], -torch.inf) if not team.continuous else out
            own = legal.tanh() if team.continuous else gumbel_softmax(legal, noise[r, b, i], 0.7)
            joint = [*done[:i], own, *done[i + 1 :]]
            penalty = c.actor_penalty * out.square().mean()
            actor[i, b] = penalty - judge(i, row["obs"], joint, False)
    return nets["actor", False], nets["critic", False], critic.mean(1), actor.mean(1)


@KINDS
@SHARING
@pytest.mark.parametrize("n_agents", [1, 3])
def test_losses_and_gradients_equal_plain_networks(
    continuous: bool, shared: bool, team_reward: bool, n_agents: int
) -> None:
    team = learner(
        continuous, shared=shared, team_reward=team_reward, n_agents=n_agents,
        temperature=0.7, actor_penalty=0.1, action_masks=not continuous,
    )  # fmt: skip
    scatter_targets(team)
    batch, noise = random_batch(team)
    if not continuous:
        batch["mask"][..., 1], batch["next_mask"][..., 2] = False, False
    critic_loss, policy_loss = team.critic_loss(batch), actor_loss(team, batch, noise)
    team.critic.backward(critic_loss)
    team.actor.backward(policy_loss)
    for r in range(2):
        actors, critics, *both = slow_losses(team, batch, noise, r)
        for kind, plain, found, exact in (
            ("critic", critics, critic_loss, both[0]),
            ("actor", actors, policy_loss, both[1]),
        ):
            for net in (*actors, *critics):
                net.zero_grad()
            if team.one_network:
                torch.testing.assert_close(found[r], exact.mean())
                exact.mean().backward()
            else:
                torch.testing.assert_close(found.view(2, n_agents)[r], exact)
                exact.sum().backward()
            for name, grad in getattr(team, kind).grads.items():
                grads = [dict(net.named_parameters())[name].grad for net in plain]
                if team.one_network:
                    torch.testing.assert_close(grad[r], torch.stack(grads).sum(0))
                else:
                    torch.testing.assert_close(grad.unflatten(0, (2, -1))[r], torch.stack(grads))


@SHARING
def test_ends_do_not_bootstrap_and_time_limits_do(shared: bool, team_reward: bool) -> None:
    """Where the target critics say 8, targets are r + γ 8, or r alone."""
    team = learner(seeds=(0,), shared=shared, team_reward=team_reward, gamma=0.5)
    constant(team.critic, team.targets["critic"], [[8.0]] * len(team.critic))
    batch, _ = random_batch(team)
    batch["reward"] = torch.tensor([1.0, 2.0]).expand(1, BATCH, 2)
    batch["terminated"] = torch.tensor([[False, True, False, True, False, False]])
    batch["truncated"] = torch.tensor([[False, False, True, True, True, False]])
    target = team.td_target(batch)
    rewards = [3.0] if team.one_value else [3.0, 3.0] if team_reward else [1.0, 2.0]
    going = [4.0, 0.0, 4.0, 0.0, 4.0, 4.0]
    assert target[0].tolist() == [[r + g for r in rewards] for g in going]


@KINDS
@SHARING
def test_each_loss_reaches_its_own_networks_alone(
    continuous: bool, shared: bool, team_reward: bool
) -> None:
    team = learner(continuous, shared=shared, team_reward=team_reward)
    scatter_targets(team)
    batch, noise = random_batch(team)
    for mine, loss in [
        ("critic", lambda: team.critic_loss(batch)),
        ("actor", lambda: actor_loss(team, batch, noise)),
    ]:
        team.actor.zero_grad()
        team.critic.zero_grad()
        loss().sum().backward()
        for name in ("actor", "critic"):
            reached = [bool((g != 0).any()) for g in getattr(team, name).grads.values()]
            assert all(reached) if name == mine else not any(reached), (mine, name)
            assert not team.targets[name].requires_grad and team.targets[name].grad is None


def test_an_actor_learns_from_its_own_action_alone() -> None:
    """A critic that reads agent 1's action only teaches agent 0 nothing."""
    team = learner(shared=False, actor_penalty=0.0)
    with torch.no_grad():
        first = team.critic.params["0.weight"]
        start = AGENTS * OBS  # of the actions
        first[..., start : start + 2] = 0.0
    batch, noise = random_batch(team)
    team.actor.backward(actor_loss(team, batch, noise))
    for grad in team.actor.grads.values():
        assert (grad[[0, 2]] == 0).all() and (grad[[1, 3]] != 0).any()


@KINDS
def test_order_of_the_batch_does_not_matter(continuous: bool) -> None:
    team = learner(continuous)
    batch, noise = random_batch(team)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    shuffled, other = {name: value[:, order] for name, value in batch.items()}, noise[:, order]
    torch.testing.assert_close(team.critic_loss(shuffled), team.critic_loss(batch))
    torch.testing.assert_close(actor_loss(team, shuffled, other), actor_loss(team, batch, noise))
    torch.testing.assert_close(team.td_target(shuffled), team.td_target(batch)[:, order])


# Learning -----------------------------------------------------------------------------------------


@KINDS
@SHARING
def test_what_should_move_moves_and_nothing_else(
    continuous: bool, shared: bool, team_reward: bool
) -> None:
    team = learner(
        continuous, shared=shared, team_reward=team_reward,
        tau=0.25, batch_size=256, max_grad_norm=1e-3,
    )  # fmt: skip
    feed(team, 100)
    nets = {"actor": team.actor, "critic": team.critic}
    before = {name: net.flat.clone() for name, net in nets.items()}
    target = {name: x.clone() for name, x in team.targets.items()}
    team.learn_once()
    for name, net in nets.items():
        for key, old in net.views(before[name]).items():
            assert (net.params[key] != old).all(), (name, key)
        torch.testing.assert_close(team.targets[name], 0.75 * target[name] + 0.25 * net.flat)
        norms = [g.reshape(len(net), -1).norm(dim=1) for g in net.grads.values()]
        # Clipped after the gradient was made, so it is short when the step is taken.
        assert (torch.stack(norms).norm(dim=0) < 1.01e-3).all()


def test_the_learning_rates_go_down_to_zero_if_asked() -> None:
    def rates(anneal: bool, total_steps: int | None) -> dict[str, list[float]]:
        given = {"actor_learning_rate": 0.5, "critic_learning_rate": 0.25, "batch_size": 2}
        team = learner(anneal=anneal, total_steps=total_steps, **given)
        found: dict[str, list[float]] = {"actor": [], "critic": []}
        for _ in range(5):  # of 2 environments each
            feed(team, 1)
            team.learn_once()
            for name, seen in found.items():
                seen.append(team.optimizers[name].learning_rate)
        return found

    left = np.array([0.75, 0.5, 0.25, 0.0, 0.0])
    assert rates(True, 8) == {"actor": list(0.5 * left), "critic": list(0.25 * left)}
    assert rates(True, None) == rates(False, 8) == {"actor": [0.5] * 5, "critic": [0.25] * 5}


@pytest.mark.parametrize("num_envs", [1, 3, 16, 50])
def test_updates_for_each_step_do_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    starts, every = 40, 16
    team = learner(True, (0,), num_envs, learning_starts=starts, train_every=every, batch_size=2)
    lead = (num_envs, AGENTS)
    while team.steps < 400:
        team.observe(
            np.zeros((*lead, OBS), np.float32), np.zeros((*lead, 2), np.float32),
            np.zeros(lead, np.float32), np.zeros((*lead, OBS), np.float32),
            np.zeros(num_envs, bool), np.zeros(num_envs, bool), {},
        )  # fmt: skip
        figures = team.update()
        assert team.updates == max(0, team.steps - starts) // every
        assert not figures or {v.shape for v in figures.values()} == {(1,)}


@KINDS
@pytest.mark.parametrize("shared", [True, False])
def test_a_replicate_is_a_run_of_its_seed_alone(continuous: bool, shared: bool) -> None:
    changes: dict[str, Any] = {"shared": shared, "action_masks": not continuous}
    together = learner(continuous, (4, 7), **changes)
    feed(together, 20)
    for _ in range(3):
        together.learn_once()
    obs = np.random.default_rng(2).normal(size=(4, AGENTS, OBS)).astype(np.float32)
    info = {"action_mask": np.ones((4, AGENTS, 3), bool)}
    joint = together.act(obs, info)
    for r, seed in enumerate((4, 7)):
        rows = slice(2 * r, 2 * r + 2)
        alone = learner(continuous, (seed,), **changes)
        feed(alone, 20, rows=rows)
        for _ in range(3):
            alone.learn_once()
        for name in ("actor", "critic"):
            one, both = getattr(alone, name), getattr(together, name)
            part = slice(len(one) * r, len(one) * (r + 1))
            for key, p in one.params.items():
                torch.testing.assert_close(both.params[key][part], p, rtol=1e-4, atol=1e-6)
        one_info = {"action_mask": info["action_mask"][rows]}
        np.testing.assert_allclose(alone.act(obs[rows], one_info), joint[rows], rtol=1e-4)


@KINDS
@pytest.mark.parametrize("shared", [True, False])
def test_a_restored_learner_goes_on_exactly(continuous: bool, shared: bool) -> None:
    changes: dict[str, Any] = {"shared": shared, "action_masks": not continuous}
    team = learner(continuous, **changes)
    feed(team, 20)
    team.learn_once()
    file = io.BytesIO()
    torch.save(team.state_dict(), file)
    file.seek(0)
    other = learner(continuous, (8, 9), **changes)
    other.load_state_dict(torch.load(file, weights_only=True))
    obs = np.random.default_rng(2).normal(size=(4, AGENTS, OBS)).astype(np.float32)
    info = {"action_mask": np.ones((4, AGENTS, 3), bool)}
    for each in (team, other):
        feed(each, 5, seed=1)
        each.learn_once()
    np.testing.assert_array_equal(team.act(obs, info), other.act(obs, info))
    for name in ("actor", "critic"):
        assert torch.equal(getattr(team, name).flat, getattr(other, name).flat)
        assert torch.equal(team.targets[name], other.targets[name])
    assert (team.steps, team.updates) == (other.steps, other.updates)


def test_a_state_is_a_copy() -> None:
    team = learner()
    feed(team, 20)
    state = team.state_dict()
    kept = {name: state[name].clone() for name in ("actor", "critic")}
    targets = {name: x.clone() for name, x in state["targets"].items()}
    team.learn_once()
    for name, value in kept.items():
        assert torch.equal(state[name], value) and torch.equal(
            state["targets"][name], targets[name]
        )
        assert not torch.equal(getattr(team, name).flat, value)


@pytest.mark.parametrize("device", DEVICES)
@KINDS
def test_device_and_dtype(device: str, continuous: bool) -> None:
    team = learner(continuous, device=device)
    feed(team, 10)
    assert {v.dtype for v in team.update().values()} == {np.dtype(np.float32)}
    tensors = [team.actor.flat, team.critic.flat, *team.targets.values()]
    assert {t.device.type for t in (*tensors, *team.replay.data.values())} == {device}
    action = team.act(np.zeros((4, AGENTS, OBS), np.float32), {})
    assert action.shape == ((4, AGENTS, 2) if continuous else (4, AGENTS))
    assert action.dtype == (np.float32 if continuous else np.int64)


def test_the_loop_resumes_bit_for_bit(tmp_path: Any) -> None:
    def trainer(folder: str | None, steps: int) -> Trainer:
        def make_env(n: int) -> Any:
            return make("CooperativeNavigation", n, {"continuous": True})

        box = make_env(1).single_action_space
        config = dataclasses.replace(SMALL, learning_starts=40, train_every=8)
        team = MADDPG(18, 2, 3, 4, [0, 1], config, bounds=(box.low, box.high))
        loop = LoopConfig(timesteps=steps, eval_episodes=2, final_episodes=2)
        return Trainer(make_env, team, loop, folder and tmp_path / folder, progress=False)

    whole = trainer(None, 200)
    whole.train()
    first = trainer("run", 120)
    first.train()
    second = trainer("run", 200)
    second.resume()
    second.train()
    assert whole.learner.updates == second.learner.updates == 20
    assert torch.equal(whole.learner.actor.flat, second.learner.actor.flat)
    assert torch.equal(whole.learner.critic.flat, second.learner.critic.flat)


# Known best play ----------------------------------------------------------------------------------


def play_once(team: MADDPG, reward_of: Any, steps: int) -> None:
    """Let the team act on a world of one step with the given rewards (B, N)."""
    rows = len(team.seeds) * team.num_envs
    obs, over = np.ones((rows, team.n_agents, 1), np.float32), np.ones(rows, bool)
    for _ in range(steps):
        action = team.act(obs, {})
        team.observe(obs, action, reward_of(action).astype(np.float32), obs, over, ~over, {})
        team.update()


def greedy(team: MADDPG) -> np.ndarray:
    """Return the team's own action in each replicate, (R, N[, A])."""
    return team.policy()(np.ones((len(team.seeds), team.n_agents, 1), np.float32), {})


QUICK = MADDPGConfig(
    actor_learning_rate=5e-3, critic_learning_rate=1e-2, hidden=(24,), batch_size=64, tau=0.02,
    buffer_size=20_000, learning_starts=640, train_every=16, noise_steps=8000, max_grad_norm=10.0,
)  # fmt: skip
BOX = (np.array([-2.0]), np.array([2.0]))


def test_separate_agents_find_the_equilibrium_of_their_own_rewards() -> None:
    """Rewards -(x - y/2 - 1)² and -(y + x/2)²: neither gains alone at x = 0.8, y = -0.4 only."""
    config = dataclasses.replace(QUICK, shared=False, team_reward=False)
    team = MADDPG(1, 1, 2, 16, [0, 1], config, bounds=BOX)

    def reward(action: np.ndarray) -> np.ndarray:
        x, y = action[:, 0, 0], action[:, 1, 0]
        return -np.stack([np.square(x - y / 2 - 1), np.square(y + x / 2)], axis=1)

    play_once(team, reward, 800)
    np.testing.assert_allclose(greedy(team)[..., 0], [[0.8, -0.4]] * 2, atol=0.15)


@pytest.mark.parametrize("team_reward", [True, False])
def test_the_sum_and_ones_own_reward_lead_to_different_play(team_reward: bool) -> None:
    """Agent 0 is paid -(x - 1)², agent 1 -(x + 1)² - y²: alone (1, 0) is best, together (0, 0)."""
    config = dataclasses.replace(QUICK, team_reward=team_reward, hidden=(24, 24))
    team = MADDPG(1, 1, 2, 16, [0, 1], config, bounds=BOX)

    def reward(action: np.ndarray) -> np.ndarray:
        x, y = action[:, 0, 0], action[:, 1, 0]
        return -np.stack([np.square(x - 1), np.square(x + 1) + np.square(y)], axis=1)

    play_once(team, reward, 800)
    best = 0.0 if team_reward else 1.0
    np.testing.assert_allclose(greedy(team)[..., 0], [[best, 0.0]] * 2, atol=0.2)


def test_a_discrete_game_with_one_best_answer_is_solved() -> None:
    """Each agent's action pays on its own: 0, 1, 0.5 for the first, 0.5, 0, 1 for the second."""
    pay = np.array([[0.0, 1.0, 0.5], [0.5, 0.0, 1.0]])
    team = MADDPG(1, 3, 2, 16, [0, 1], dataclasses.replace(QUICK, team_reward=True))
    play_once(team, lambda action: pay[np.arange(2), action], 600)
    assert greedy(team).tolist() == [[1, 2], [1, 2]]
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    q = team.q_values(torch.ones(2, 9, 2, 1), team._vector(joint).expand(2, 9, 2, 3))
    exact = pay[0][joint[:, 0]] + pay[1][joint[:, 1]]
    np.testing.assert_allclose(q.detach()[..., 0], [exact.tolist()] * 2, atol=0.25)


def test_the_penalty_game_is_played_safe() -> None:
    """The best answers, 10, stand beside -100; the team settles in the equilibrium that pays 2."""
    team = MADDPG(1, 3, 2, 16, [0, 1], dataclasses.replace(QUICK, team_reward=True))
    table = 0.1 * GAMES["penalty"].payoff[0]
    play_once(team, lambda a: np.repeat(table[a[:, :1], a[:, 1:]] / 2, 2, axis=1), 400)
    assert greedy(team).tolist() == [[1, 1], [1, 1]]


def test_gumbel_draws_follow_the_streams() -> None:
    """Acting is the maximum of logits and Gumbel numbers, not a draw from torch's generator."""
    one, two = learner(False), learner(False)
    obs = np.random.default_rng(0).normal(size=(4, AGENTS, OBS)).astype(np.float32)
    torch.manual_seed(0)
    first = one.act(obs, {})
    torch.manual_seed(1)
    noise = two._noise(two.streams["act"])
    expected = two.actor_output(torch.from_numpy(obs).unflatten(0, (2, 2))) + gumbel(noise)
    np.testing.assert_array_equal(first, expected.argmax(-1).flatten(0, 1))
