"""QMIX and VDN against loops over plain networks, numbers made by hand and exact values."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from marl_lib.algorithms.qmix import QMIX, Agent, QMIXConfig
from marl_lib.config import ConfigError
from marl_lib.envs import make
from marl_lib.envs.matrix import GAMES, joint_values
from marl_lib.nn.mixing import MonotonicMixer
from marl_lib.training import LoopConfig, Trainer

OBS, ACTIONS, AGENTS, BATCH, LENGTH = 4, 3, 2, 6, 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = QMIXConfig(
    hidden=(8,), memory=7, mixer_width=4, hyper_width=6, batch_size=16, buffer_size=400,
    learning_starts=0, train_every=1, sequence_length=LENGTH, burn_in=2,
)  # fmt: skip
KINDS = pytest.mark.parametrize(
    "changes",
    [
        {"mixer": mixer, "recurrent": recurrent, "share_parameters": share}
        for mixer in ("monotonic", "sum")
        for recurrent in (False, True)
        for share in (True, False)
    ],
    ids=lambda c: "-".join(str(v) for v in c.values()),
)


def learner(seeds: tuple[int, ...] = (0, 3), num_envs: int = 2, **changes: Any) -> QMIX:
    given = {k: changes.pop(k) for k in ("action_masks", "device", "n_agents") if k in changes}
    config = dataclasses.replace(SMALL, **changes)
    return QMIX(OBS, ACTIONS, given.pop("n_agents", AGENTS), num_envs, seeds, config, **given)


def scatter_targets(qmix: QMIX) -> None:
    """Make the target networks differ from the networks, as they do between copies."""
    g = torch.Generator().manual_seed(9)
    for target in qmix.targets:
        target.add_(0.3 * torch.randn(target.shape, generator=g).to(qmix.device))


def random_batch(qmix: QMIX, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch as the replay gives it: (R, BATCH, ...), with memory (R, BATCH, T, ...)."""
    g = torch.Generator().manual_seed(seed)
    recurrent, n = qmix.config.recurrent, qmix.n_agents
    lead = (len(qmix.seeds), BATCH, *([LENGTH] if recurrent else []))
    batch = {
        "obs": torch.randn(*lead, n, OBS, generator=g),
        "action": torch.randint(ACTIONS, (*lead, n), generator=g),
        "reward": torch.randn(*lead, generator=g),
        "next_obs": torch.randn(*lead, n, OBS, generator=g),
        "terminated": torch.rand(*lead, generator=g) < 0.2,
        "truncated": torch.rand(*lead, generator=g) < 0.2,
        "next_mask": torch.rand(*lead, n, ACTIONS, generator=g) < 0.7,
    }
    batch["next_mask"][..., 0] = True
    if recurrent:  # what follows a step is the next one, but where an episode ended
        ended = batch["terminated"] | batch["truncated"]
        goes_on = ~ended[:, :, :-1, None, None]
        after, next_obs = batch["obs"][:, :, 1:], batch["next_obs"][:, :, :-1]
        batch["next_obs"][:, :, :-1] = torch.where(goes_on, after, next_obs)
        batch["first"] = torch.zeros(lead, dtype=torch.bool)
        batch["first"][:, :, 1:] = ended[:, :, :-1]
    else:
        batch["discount"] = torch.rand(*lead, generator=g)
    return {name: value.to(qmix.device) for name, value in batch.items()}


def random_step(qmix: QMIX, rng: np.random.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return random arguments of ``observe``, but for the masks of ``info``, and the masks."""
    rows, n = len(qmix.seeds) * qmix.num_envs, qmix.n_agents
    mask = rng.random((rows, n, ACTIONS)) < 0.7
    mask[..., 0] = True
    values = (
        rng.normal(size=(rows, n, OBS)).astype(np.float32),
        rng.integers(ACTIONS, size=(rows, n)),
        rng.normal(size=(rows, n)).astype(np.float32),
        rng.normal(size=(rows, n, OBS)).astype(np.float32),
        rng.random(rows) < 0.2,
        rng.random(rows) < 0.2,
    )
    return values, {"final_mask": mask}


def feed(qmix: QMIX, steps: int, seed: int = 0) -> None:
    """Give the learner ``steps`` random steps of all its environments."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        values, info = random_step(qmix, rng)
        qmix.observe(*values, info)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("learning_rate", 0.0),
        ("batch_size", 0),
        ("train_every", 0),
        ("target_every", 0),
        ("n_step", 0),
        ("memory", 0),
        ("mixer_width", 0),
        ("hyper_width", 0),
        ("learning_starts", -1),
        ("epsilon_end", 1.5),
        ("hidden", (64, 0)),
        ("max_grad_norm", -1.0),
        ("sequence_length", 0),
        ("burn_in", 16),
        ("burn_in", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        QMIXConfig(**{key: value})


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="mixer 'sun' is not known; did you mean 'sum'"):
        QMIXConfig(mixer="sun")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_step must be 1 if recurrent, got 3"):
        QMIXConfig(recurrent=True, n_step=3)
    with pytest.raises(ConfigError, match="buffer_size must be at least 10 here, got 9"):
        learner(recurrent=True, buffer_size=9)
    with pytest.raises(ConfigError, match="buffer_size must be at least 6 here, got 5"):
        learner(n_step=3, buffer_size=5)


# Acting -------------------------------------------------------------------------------------------


def always_first(qmix: QMIX) -> None:
    """Make action 0 the greedy one everywhere."""
    with torch.no_grad():
        qmix.agents.flat.zero_()
        qmix.agents.params["head.bias"][:, 0] = 1.0


def test_each_agent_explores_on_its_own_coin() -> None:
    many, share = 40, 0.3  # with 40 actions, one that is not greedy was surely explored
    config = dataclasses.replace(SMALL, epsilon_start=share, epsilon_end=share)
    qmix = QMIX(OBS, many, 2, 50, [0, 1], config)
    always_first(qmix)
    obs = np.zeros((100, 2, OBS), np.float32)
    explored = np.stack([qmix.act(obs, {}) for _ in range(300)]) > 0  # (300, R × B, N)
    rate = share * (many - 1) / many
    assert explored.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate / explored.size))
    for a, b in [
        (explored[..., 0], explored[..., 1]),  # not one draw for the team
        (explored[:, 0], explored[:, 1]),
        (explored[:, :50], explored[:, 50:]),
        (explored[:-1], explored[1:]),
    ]:
        both = (a & b).mean()
        assert both == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 / a.size))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_illegal_actions_are_never_taken(share: float, recurrent: bool) -> None:
    qmix = learner(
        num_envs=64,
        action_masks=True,
        epsilon_start=share,
        epsilon_end=share,
        recurrent=recurrent,
        buffer_size=1000,
    )
    rng, policy = np.random.default_rng(0), qmix.policy()
    taken = np.zeros(ACTIONS)
    for _ in range(20):
        obs = 5 * rng.normal(size=(128, AGENTS, OBS)).astype(np.float32)
        mask = (rng.integers(1, 8, size=(128, AGENTS, 1)) >> np.arange(ACTIONS) & 1).astype(bool)
        for act in (qmix.act, policy):
            action = act(obs, {"action_mask": mask})
            assert np.take_along_axis(mask, action[..., None], -1).all()
            taken += np.bincount(action.ravel(), minlength=ACTIONS)
    assert (taken > 100).all()


@KINDS
def test_greedy_actions_are_the_best_of_plain_networks(changes: dict[str, Any]) -> None:
    qmix = learner(**changes)
    obs = np.random.default_rng(0).normal(size=(3, 2, 5, AGENTS, OBS)).astype(np.float32)
    before = qmix.streams.state_dict()["count"].copy()
    policy = qmix.policy()
    found = [policy(step.reshape(10, AGENTS, OBS), {}).reshape(2, 5, AGENTS) for step in obs]
    for r, row, i in np.ndindex(2, 5, AGENTS):
        seen = torch.stack([see(qmix, torch.from_numpy(o[r, row, i]), i) for o in obs])
        q = plain_values(plain_agent(qmix, qmix.agents.flat, r, i), seen, torch.zeros(3))
        assert [int(action[r, row, i]) for action in found] == q.argmax(-1).tolist()
    np.testing.assert_array_equal(qmix.streams.state_dict()["count"], before)


def test_agents_see_only_their_own_observation() -> None:
    for share in (True, False):
        qmix = learner(share_parameters=share)
        obs = random_batch(qmix)["obs"]
        q, other = qmix.q_values(obs), obs.clone()
        other[:, :, 1] += 1.0
        assert torch.equal(qmix.q_values(other)[:, :, 0], q[:, :, 0])
        assert not torch.allclose(qmix.q_values(other)[:, :, 1], q[:, :, 1])


def test_a_shared_network_knows_whose_values_it_gives() -> None:
    qmix = learner()
    obs = random_batch(qmix)["obs"][:, :, :1].expand(-1, -1, AGENTS, -1)
    q = qmix.q_values(obs)
    assert not torch.allclose(q[:, :, 0], q[:, :, 1])


# Memory -------------------------------------------------------------------------------------------


def test_the_memory_begins_anew_with_each_episode() -> None:
    """Acting through an episode's end is acting in two runs, row by row."""
    qmix = learner(recurrent=True, epsilon_start=0.0, epsilon_end=0.0)
    fresh = learner(recurrent=True, epsilon_start=0.0, epsilon_end=0.0)
    rng = np.random.default_rng(0)
    values, _ = random_step(qmix, rng)
    terminated, truncated = np.eye(4, dtype=bool)[0], np.eye(4, dtype=bool)[3]
    never = np.zeros(4, bool)
    ended = terminated | truncated
    qmix.act(values[0], {})
    qmix.observe(*values[:4], terminated, truncated, {})
    assert not qmix.memory.flatten(0, 1)[ended].any()  # after termination, and truncation
    assert (qmix.memory.flatten(0, 1)[~ended] != 0).any(-1).all()
    qmix.observe(*values[:4], never, never, {})
    kept = qmix.memory.clone()
    obs = random_step(qmix, rng)[0][0]
    qmix.act(obs, {})
    fresh.act(obs, {})
    rows, others = (x.memory.flatten(0, 1) for x in (qmix, fresh))
    torch.testing.assert_close(rows[ended], others[ended])
    assert (rows[~ended] != others[~ended]).any(-1).all()
    assert not torch.equal(kept, qmix.memory)


def test_a_policy_has_a_memory_of_its_own() -> None:
    qmix = learner(recurrent=True)
    obs = np.random.default_rng(0).normal(size=(4, AGENTS, OBS)).astype(np.float32)
    policy, acting = qmix.policy(), qmix.memory.clone()
    calls = [policy(obs, {}) for _ in range(30)]
    assert torch.equal(qmix.memory, acting)
    again = qmix.policy()
    np.testing.assert_array_equal([again(obs, {}) for _ in range(30)], calls)
    # with one memory for all, the second policy would have gone on where the first stood


@pytest.mark.parametrize("burn_in", [0, 2])
def test_the_burn_in_fills_the_memory_and_learns_nothing(burn_in: int) -> None:
    qmix = learner(recurrent=True, burn_in=burn_in)
    batch = random_batch(qmix)
    for name in ("terminated", "truncated", "first"):
        batch[name] = torch.zeros_like(batch[name])
    obs = batch["obs"].requires_grad_()
    loss = qmix.loss(batch)
    (slope,) = torch.autograd.grad(loss.sum(), obs)
    assert not slope[:, :, :burn_in].any()
    assert slope[:, :, burn_in:].flatten(3).any(-1).all()
    for name in ("action", "reward"):
        other = {**batch, name: batch[name].clone()}
        other[name][:, :, :burn_in] = 0
        torch.testing.assert_close(qmix.loss(other), loss, rtol=0, atol=0)
    if burn_in:  # but it is seen
        other = {**batch, "obs": batch["obs"].detach().clone()}
        other["obs"][:, :, :burn_in] += 1.0
        assert (qmix.loss(other) != loss).all()


# Values and loss ----------------------------------------------------------------------------------


def see(qmix: QMIX, obs: Tensor, i: int) -> Tensor:
    return torch.cat([obs, torch.eye(AGENTS)[i]]) if qmix.config.share_parameters else obs


def plain_agent(qmix: QMIX, flat: Tensor, r: int, i: int) -> Agent:
    """Return the network of one agent as a module of its own."""
    c, views = qmix.config, qmix.agents.views(flat)
    inputs = OBS + (AGENTS if c.share_parameters else 0)
    net = Agent(inputs, ACTIONS, c.hidden, c.memory if c.recurrent else None)
    g = r if c.share_parameters else r * AGENTS + i
    net.load_state_dict({name: p[g].clone() for name, p in views.items()})
    return net


def plain_values(net: Agent, seen: Tensor, first: Tensor) -> Tensor:
    """Return the values along one agent's sequence (T, D), step by step, by torch's own cell."""
    if net.cell is None:
        return torch.stack([net.head(net.body(x)) for x in seen])
    torchs = torch.nn.GRUCell(net.cell.input.in_features, net.head.in_features)
    torchs.weight_ih, torchs.bias_ih = net.cell.input.weight, net.cell.input.bias
    torchs.weight_hh, torchs.bias_hh = net.cell.hidden.weight, net.cell.hidden.bias
    state, values = torch.zeros(net.head.in_features), []
    for x, new in zip(seen, first, strict=True):
        state = torchs(net.body(x), torch.zeros_like(state) if new else state)
        values.append(net.head(state))
    return torch.stack(values)


def plain_mixer(qmix: QMIX, flat: Tensor, r: int) -> MonotonicMixer:
    assert qmix.mixer is not None
    net = MonotonicMixer(AGENTS, AGENTS * OBS, qmix.config.mixer_width, qmix.config.hyper_width)
    net.load_state_dict({name: p[r].clone() for name, p in qmix.mixer.views(flat).items()})
    return net


def slow_loss(qmix: QMIX, batch: dict[str, Tensor], r: int) -> tuple[Tensor, list[Any]]:
    """Return the loss of one replicate in loops over plain networks, and those that learn."""
    c = qmix.config
    online = [plain_agent(qmix, qmix.agents.flat, r, i) for i in range(AGENTS)]
    target = [plain_agent(qmix, qmix.targets[0], r, i) for i in range(AGENTS)]
    mixers: list[Any] = [lambda q, _: q.sum()] * 2
    if qmix.mixer is not None:
        mixers = [plain_mixer(qmix, flat, r) for flat in (qmix.mixer.flat, qmix.targets[1])]
    if not c.recurrent:  # as sequences of one step
        batch = {name: value.unsqueeze(2) for name, value in batch.items()}
        batch["first"] = torch.zeros_like(batch["terminated"])
    losses = []
    for b in range(BATCH):
        row = {name: value[r, b] for name, value in batch.items()}
        for t in range(c.burn_in if c.recurrent else 0, len(row["reward"])):
            chosen, best = [], []
            for i in range(AGENTS):
                past = torch.stack([see(qmix, x[i], i) for x in row["obs"][: t + 1]])
                q = plain_values(online[i], past, row["first"][: t + 1])[-1]
                chosen.append(q[row["action"][t, i]])
                after = torch.cat([past, see(qmix, row["next_obs"][t, i], i)[None]])
                after, first = (after, row["first"][: t + 1]) if c.recurrent else (after[1:], [])
                first = torch.tensor([*first, False])
                judge = plain_values(target[i], after, first)[-1].detach()
                chooser = plain_values(online[i], after, first)[-1] if c.double else judge
                legal = [a for a in range(ACTIONS) if row["next_mask"][t, i, a]]
                best.append(judge[max(legal, key=lambda a, values=chooser: values[a])])
            total = mixers[0](torch.stack(chosen), row["obs"][t].flatten())
            value = mixers[1](torch.stack(best), row["next_obs"][t].flatten()).detach()
            discount = c.gamma if c.recurrent else row["discount"][t]
            goal = row["reward"][t] + (0.0 if row["terminated"][t] else discount * value)
            losses.append((total - goal) ** 2)
    return torch.stack(losses).mean(), [*online, mixers[0]]


@KINDS
@pytest.mark.parametrize("double", [False, True])
def test_the_loss_and_its_gradient_equal_plain_networks(
    changes: dict[str, Any], double: bool
) -> None:
    # The memory is cut off from the burn-in, which the slow loss does not do.
    qmix = learner(**changes, double=double, action_masks=True, burn_in=0)
    scatter_targets(qmix)
    batch = random_batch(qmix)
    found = qmix.loss(batch)
    found.sum().backward()
    for r in range(2):
        loss, nets = slow_loss(qmix, batch, r)
        torch.testing.assert_close(found[r], loss)
        loss.backward()
        for name, grad in qmix.agents.grads.items():
            parts = [dict(net.named_parameters())[name].grad for net in nets[:-1]]
            if qmix.config.share_parameters:
                torch.testing.assert_close(grad[r], torch.stack(parts).sum(0), msg=name)
            else:
                mine = grad.unflatten(0, (2, AGENTS))[r]
                torch.testing.assert_close(mine, torch.stack(parts), msg=name)
        if qmix.mixer is not None:
            for name, p in nets[-1].named_parameters():
                torch.testing.assert_close(qmix.mixer.grads[name][r], p.grad, msg=name)


@pytest.mark.parametrize("mixer", ["monotonic", "sum"])
def test_the_value_after_a_burn_in_equals_plain_networks(mixer: str) -> None:
    qmix = learner(mixer=mixer, recurrent=True, burn_in=2, action_masks=True)
    scatter_targets(qmix)
    batch = random_batch(qmix)
    expected = torch.stack([slow_loss(qmix, batch, r)[0] for r in range(2)])
    torch.testing.assert_close(qmix.loss(batch), expected)


def test_targets_by_hand() -> None:
    """With all weights zero the values are the biases: the errors can be counted."""
    qmix = learner((0,), mixer="sum", gamma=0.5)
    qmix.agents.flat.data.zero_()
    qmix.targets[0].zero_()
    qmix.agents.views(qmix.targets[0])["head.bias"][:] = torch.tensor([1.0, 2.0, 4.0])
    qmix.agents.params["head.bias"].data[:] = torch.tensor([0.0, 3.0, 0.0])
    batch = {name: value[:, :3] for name, value in random_batch(qmix).items()}
    batch["action"][:] = torch.tensor([1, 0])  # Q_tot = 3 + 0
    batch["reward"][:] = 1.0
    batch["discount"][:] = 0.5
    batch["terminated"][:] = torch.tensor([False, True, False])
    batch["truncated"][:] = torch.tensor([False, False, True])
    # The network takes action 1 next, which the target values at 2, for each of the two agents.
    goals = torch.tensor([1 + 0.5 * 4, 1.0, 1 + 0.5 * 4])
    assert goals.tolist() == [3.0, 1.0, 3.0]
    assert qmix.loss(batch).item() == pytest.approx(2.0**2 / 3)  # errors 0, 2, 0


@pytest.mark.parametrize("recurrent", [False, True])
def test_ends_do_not_bootstrap_and_time_limits_do(recurrent: bool) -> None:
    qmix = learner(recurrent=recurrent, burn_in=0)
    scatter_targets(qmix)
    batch = random_batch(qmix)
    batch["terminated"][:, :3], batch["terminated"][:, 3:] = True, False
    batch["truncated"][:, :4], batch["truncated"][:, 4:] = False, True
    loss, ended, cut = qmix.loss(batch), batch["terminated"], batch["truncated"]
    other = {**batch, "next_obs": batch["next_obs"].clone()}
    other["next_obs"][ended] = 1e3  # what comes after the end does not count
    assert torch.equal(qmix.loss(other), loss)
    other["next_obs"][cut] = 1e3  # what comes after a time limit does
    assert (qmix.loss(other) != loss).all()


@pytest.mark.parametrize("recurrent", [False, True])
def test_illegal_actions_are_never_bootstrapped(recurrent: bool) -> None:
    for double in (False, True):
        qmix = learner(action_masks=True, double=double, recurrent=recurrent)
        scatter_targets(qmix)
        batch = random_batch(qmix)
        batch["next_mask"][..., 2] = False
        batch["action"][batch["action"] == 2] = 0  # else its own value would enter the loss
        loss = qmix.loss(batch)
        for flat in (qmix.targets[0], qmix.agents.flat.data):  # illegal, and looks like a prize
            qmix.agents.views(flat)["head.bias"][:, 2] += 100.0
            torch.testing.assert_close(qmix.loss(batch), loss, rtol=0, atol=0)
        batch["next_mask"][..., 2] = True
        assert (qmix.loss(batch) > loss + 1).all()


def test_a_team_without_legal_actions_at_its_end_has_a_finite_loss() -> None:
    qmix = learner(action_masks=True)
    batch = random_batch(qmix)
    batch["next_mask"][batch["terminated"]] = False
    assert qmix.loss(batch).isfinite().all()


@KINDS
def test_order_of_the_batch_does_not_matter(changes: dict[str, Any]) -> None:
    qmix = learner(**changes)
    batch = random_batch(qmix)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] for name, value in batch.items()}
    torch.testing.assert_close(qmix.loss(shuffled), qmix.loss(batch))
    if qmix.config.recurrent:
        empty, first = torch.zeros(2, BATCH, AGENTS, 7), batch["first"]
        q = qmix.q_sequence(batch["obs"], first, empty)[0]
        torch.testing.assert_close(
            qmix.q_sequence(batch["obs"][:, order], first[:, order], empty)[0], q[:, order]
        )
    else:
        q = qmix.q_values(batch["obs"])
        torch.testing.assert_close(qmix.q_values(batch["obs"][:, order]), q[:, order])


def test_the_joint_table_is_the_value_of_every_joint_action() -> None:
    for changes in ({}, {"mixer": "sum"}, {"recurrent": True}, {"share_parameters": False}):
        qmix = learner(**changes)
        obs = torch.randn(AGENTS, OBS, generator=torch.Generator().manual_seed(0))
        for r in range(2):
            table = qmix.joint_table(obs.numpy(), r)
            assert table.shape == (ACTIONS, ACTIONS)
            mixer = None if qmix.mixer is None else plain_mixer(qmix, qmix.mixer.flat, r)
            q = [
                plain_values(
                    plain_agent(qmix, qmix.agents.flat, r, i),
                    see(qmix, obs[i], i)[None],
                    torch.zeros(1),
                )[0]
                for i in range(AGENTS)
            ]
            for a, b in np.ndindex(ACTIONS, ACTIONS):
                pair = torch.stack([q[0][a], q[1][b]])
                total = pair.sum() if mixer is None else mixer(pair, obs.flatten())
                assert table[a, b] == pytest.approx(total.item(), abs=1e-5)
            best = (int(q[0].argmax()), int(q[1].argmax()))
            assert table.max() == pytest.approx(table[best])  # each agent's best is the team's
    with pytest.raises(ValueError, match="two agents, not 3"):
        learner(n_agents=3).joint_table(np.zeros((3, OBS), np.float32))


# Learning -----------------------------------------------------------------------------------------


@KINDS
def test_what_should_move_moves_and_nothing_else(changes: dict[str, Any]) -> None:
    qmix = learner(**changes, target_every=3, batch_size=256)
    feed(qmix, 100)
    before = [net.flat.clone() for net in qmix.nets]
    for net, target in zip(qmix.nets, qmix.targets, strict=True):
        assert torch.equal(net.flat, target) and not target.requires_grad
    for _ in range(2):
        qmix.learn_once()
        for old, target in zip(before, qmix.targets, strict=True):
            assert torch.equal(target, old)
    for net, old in zip(qmix.nets, before, strict=True):
        for name, values in net.views(old).items():
            assert (net.params[name] != values).any(-1).all(), name
    qmix.learn_once()
    for net, target in zip(qmix.nets, qmix.targets, strict=True):
        assert torch.equal(target, net.flat) and target.data_ptr() != net.flat.data_ptr()
        assert target.grad is None


def test_a_team_of_one_has_no_id_and_learns() -> None:
    for share in (True, False):
        qmix = learner(n_agents=1, share_parameters=share)
        assert qmix.agents.params["body.0.weight"].shape == (2, 8, OBS)
        feed(qmix, 10)
        assert np.isfinite(qmix.learn_once()["loss"]).all()


def test_the_team_is_paid_the_sum() -> None:
    """With every value zero the loss is the square of the rewards: 2, or 2 (1 + γ + γ²)."""
    for n, total in [(1, 2.0), (3, 3.5)]:
        qmix = learner((0,), 1, mixer="sum", n_step=n, gamma=0.5, max_grad_norm=1e9)
        qmix.agents.flat.data.zero_()
        qmix.targets[0].zero_()
        values, info = random_step(qmix, np.random.default_rng(0))
        pay, never = np.array([[1.5, 0.5]], np.float32), np.zeros(1, bool)
        for _ in range(6):
            qmix.observe(values[0], values[1], pay, values[3], never, never, info)
        assert qmix.learn_once()["loss"] == pytest.approx([total**2])


def test_the_learning_rate_goes_down_to_zero_if_asked() -> None:
    def rates(anneal: bool, total_steps: int | None) -> list[float]:
        config = dataclasses.replace(SMALL, anneal=anneal, learning_rate=0.5, batch_size=2)
        qmix = QMIX(OBS, ACTIONS, AGENTS, 2, [0], config, total_steps=total_steps)
        found = []
        for _ in range(5):  # of 2 environments each
            feed(qmix, 1)
            qmix.learn_once()
            found.append(qmix.optimizers[1].learning_rate)
        return found

    assert rates(True, 8) == pytest.approx([0.375, 0.25, 0.125, 0.0, 0.0])
    assert rates(True, None) == rates(False, 8) == [0.5] * 5


@pytest.mark.parametrize("num_envs", [1, 3, 16, 50])
def test_updates_for_each_step_do_not_depend_on_the_number_of_environments(num_envs: int) -> None:
    starts, every = 40, 16
    qmix = learner((0,), num_envs, learning_starts=starts, train_every=every, batch_size=2)
    while qmix.steps < 300:
        feed(qmix, 1)
        figures = qmix.update()
        assert qmix.updates == max(0, qmix.steps - starts) // every
        assert not figures or {v.shape for v in figures.values()} == {(1,)}


@KINDS
def test_one_of_several_seeds_equals_that_seed_alone(changes: dict[str, Any]) -> None:
    """In a world, with acting, drawing, learning and copying of targets."""
    config = dataclasses.replace(SMALL, **changes, epsilon_steps=60, target_every=4, train_every=4)

    def run(seeds: list[int]) -> QMIX:
        env = make("GridPredatorPrey", 3 * len(seeds), {"size": 3})
        qmix = QMIX(env.obs_dim, env.n_actions, env.n_agents, 3, seeds, config)
        Trainer(
            lambda n: make("GridPredatorPrey", n, {"size": 3}),
            qmix,
            LoopConfig(timesteps=60, eval_every=1000, eval_episodes=1, final_episodes=1),
            progress=False,
        ).train()
        return qmix

    team, alone = run([0, 1, 2]), run([1])
    assert alone.updates > 10
    data, own = team.replay.data, alone.replay.data
    for name in own:
        assert torch.equal(data[name][:, 3:6], own[name]), name
    for many, one in zip(team.nets, alone.nets, strict=True):
        for name, p in one.params.items():
            rows = many.params[name].unflatten(0, (3, -1))[1]
            torch.testing.assert_close(rows, p, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(team.memory[1:2], alone.memory, rtol=1e-3, atol=1e-5)


@KINDS
def test_a_restored_learner_goes_on_exactly(changes: dict[str, Any]) -> None:
    qmix, rng = learner(**changes), np.random.default_rng(2)
    feed(qmix, 20)
    obs = [rng.normal(size=(4, AGENTS, OBS)).astype(np.float32) for _ in range(3)]
    qmix.act(obs[0], {})
    qmix.update()
    file = io.BytesIO()
    torch.save(qmix.state_dict(), file)
    file.seek(0)
    other = learner((8, 9), **changes)
    other.load_state_dict(torch.load(file, weights_only=True))
    state = qmix.state_dict()
    acted = []
    for each in (qmix, other):
        first = each.act(obs[1], {})
        feed(each, 5, seed=1)
        each.update()
        acted.append([first, each.act(obs[2], {})])
    np.testing.assert_array_equal(*acted)
    for a, b in zip(
        [*(n.flat for n in qmix.nets), *qmix.targets, qmix.memory],
        [*(n.flat for n in other.nets), *other.targets, other.memory],
        strict=True,
    ):
        assert torch.equal(a, b)
    assert not torch.equal(state["agents"]["parameters"], qmix.agents.flat)  # a copy, not a view


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(device: str) -> None:
    for recurrent in (False, True):
        qmix = learner(device=device, action_masks=True, recurrent=recurrent)
        feed(qmix, 10)
        figures = qmix.update()
        assert set(figures) == {"loss", "grad_norm", "mixer_grad_norm"}
        assert all(value.dtype == np.float32 for value in figures.values())
        tensors = [*qmix.targets, qmix.memory, *qmix.replay.data.values()]
        assert {t.device.type for t in tensors} == {device}
        mask = np.ones((4, AGENTS, ACTIONS), bool)
        action = qmix.act(np.zeros((4, AGENTS, OBS), np.float32), {"action_mask": mask})
        assert action.dtype == np.int64 and action.shape == (4, AGENTS)


# What is learned ----------------------------------------------------------------------------------


def two_step_game(mixer: str, recurrent: bool = False) -> tuple[QMIX, np.ndarray]:
    """Learn the two-step game on ten seeds from uniform play; return the greedy returns too."""
    config = QMIXConfig(
        mixer=mixer, recurrent=recurrent, learning_rate=3e-3, batch_size=32,
        buffer_size=4_000, learning_starts=100, train_every=10, target_every=40, epsilon_end=1.0,
        hidden=(32,), memory=16, mixer_width=8, hyper_width=16, sequence_length=2, burn_in=0,
    )  # type: ignore[arg-type] # fmt: skip
    qmix = QMIX(3, 2, 2, 8, list(range(10)), config)
    loop = LoopConfig(timesteps=6_000, eval_every=10**9, eval_episodes=1, final_episodes=1)
    trainer = Trainer(
        lambda n: make("MatrixGame", n, {"game": "two-step"}), qmix, loop, progress=False
    )
    return qmix, trainer.train().final["episode_return"].ravel()


def seen_in(state: int) -> np.ndarray:
    return np.repeat(np.eye(3, dtype=np.float32)[state : state + 1], 2, axis=0)


def test_qmix_finds_the_best_of_the_two_step_game_on_every_seed() -> None:
    qmix, returns = two_step_game("monotonic")
    assert returns.tolist() == [8.0] * 10
    exact = joint_values(GAMES["two-step"], gamma=qmix.config.gamma)
    for r in range(10):
        for state in range(3):
            np.testing.assert_allclose(qmix.joint_table(seen_in(state), r), exact[state], atol=0.4)


def test_vdn_cannot_represent_the_two_step_game_and_takes_the_safe_branch() -> None:
    """Under uniform play its values are the least-squares sums: best 6.5 where 8 is possible."""
    qmix, returns = two_step_game("sum")
    assert returns.tolist() == [7.0] * 10
    nearest = np.array([[-1.5, 2.5], [2.5, 6.5]])  # row mean + column mean - mean of the payoffs
    tables = np.mean([qmix.joint_table(seen_in(2), r) for r in range(10)], axis=0)
    np.testing.assert_allclose(tables, nearest, atol=0.3)
    start = np.mean([qmix.joint_table(seen_in(0), r) for r in range(10)], axis=0)
    np.testing.assert_allclose(start, 0.99 * np.array([[7.0, 7.0], [6.5, 6.5]]), atol=0.2)


def test_agents_with_memory_learn_the_two_step_game_too() -> None:
    assert two_step_game("monotonic", recurrent=True)[1].tolist() == [8.0] * 10


def test_only_memory_solves_what_one_observation_does_not_tell() -> None:
    """A cue is seen at the start alone; two steps later both agents must repeat it for a 1."""
    returns = {}
    for recurrent in (True, False):
        config = QMIXConfig(
            recurrent=recurrent, gamma=1.0, learning_rate=1e-2, batch_size=32,
            learning_starts=0, train_every=8, target_every=20, hidden=(16,), memory=16,
            mixer_width=4, hyper_width=8, sequence_length=4, burn_in=1,
        )  # fmt: skip
        qmix, rng, b = QMIX(3, 2, 2, 16, [0, 1], config), np.random.default_rng(0), 16
        rows = 2 * b

        def look(cue: np.ndarray, t: int) -> np.ndarray:
            seen = np.zeros((len(cue), 2, 3), np.float32)
            seen[:, :, 2] = t
            if t == 0:
                seen[np.arange(len(cue)), :, cue] = 1.0
            return seen

        def pay(cue: np.ndarray, action: np.ndarray, t: int) -> np.ndarray:
            right = (action == cue[:, None]).all(1) & (t == 2)
            return np.repeat(right[:, None] / 2, 2, axis=1).astype(np.float32)

        for _ in range(60):
            cue = rng.integers(2, size=rows)
            for t in range(3):
                obs, after = look(cue, t), look(cue, t + 1)
                action = rng.integers(2, size=(rows, 2))
                qmix.act(obs, {})
                end = np.full(rows, t == 2)
                qmix.observe(obs, action, pay(cue, action, t), after, end, np.zeros(rows, bool), {})
                qmix.update()
        cue, policy = np.tile([0, 1], b), qmix.policy()
        for t in range(3):
            total = pay(cue, policy(look(cue, t), {}), t).sum(1)
        returns[recurrent] = total.reshape(2, b).mean(1).tolist()
    assert returns[True] == [1.0, 1.0]
    assert max(returns[False]) <= 0.5  # one answer, whatever the cue
