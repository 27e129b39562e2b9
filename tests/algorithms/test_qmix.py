"""VDN, QMIX, Weighted QMIX: numbers made by hand, loops over plain networks and exact values."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import (
    ACTIONS,
    AGENTS,
    MEMORIES,
    OBS,
    full,
    learner,
    loss_of,
    scatter,
)
from torch import Tensor, nn
from torch.func import functional_call

from marl_lib.algorithms.qmix import QMIX, WQMIX, QMIXConfig, WQMIXConfig
from marl_lib.envs import make
from marl_lib.envs.matrix import GAMES, joint_values
from marl_lib.replicates import lift
from marl_lib.spec import Spec
from marl_lib.training import LoopConfig, Trainer

sharing = pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
weightings = pytest.mark.parametrize("weighting", ["optimistic", "central"])

# Losses by hand -----------------------------------------------------------------------------------


def constant(net: Any, bias: list[float], role: str = "fixed") -> None:
    """Make all agents value their actions alike, whatever they see."""
    for key, p in net.roles[role].items():
        p.detach().zero_()
        if key == "network.head.advantage.bias":
            p.copy_(torch.tensor(bias))


def rows(*given: tuple[tuple[int, int], float, bool, bool]) -> dict[str, Tensor]:
    """Return a batch of steps: actions, reward, terminated, truncated."""
    action, reward, terminated, truncated = zip(*given, strict=True)
    n = len(given)
    batch = {
        "action": torch.tensor(action),
        "reward": torch.tensor(reward).unsqueeze(-1),
        "terminated": torch.tensor(terminated),
        "truncated": torch.tensor(truncated),
        "discount": torch.full((n,), 0.5),
        "first": torch.zeros(n, dtype=torch.bool),
        "obs": torch.zeros(n, 2, OBS),
        "next_obs": torch.zeros(n, 2, OBS),
    }
    return {name: x.unsqueeze(0).unsqueeze(2) for name, x in batch.items()}


def test_targets_by_hand() -> None:
    vdn = learner("vdn", "mlp", (0,), spec=Spec(OBS, 3, 2))
    constant(vdn.nets["agents"], [0.0, 3.0, 0.0])
    constant(vdn.nets["agents"], [1.0, 2.0, 4.0], "target")
    batch = rows(*[((1, 0), 1.0, over, cut) for over, cut in ((0, 0), (1, 0), (0, 1))])
    # Q_tot = 3 + 0. The network takes action 1 next, which the target values at 2, for each agent:
    # 1 + 0.5 × 4 = 3, or 1 where it ended, so the errors are 0, 2, 0.
    batch["terminated"], batch["truncated"] = batch["terminated"] > 0, batch["truncated"] > 0
    assert loss_of(vdn, batch).tolist() == pytest.approx([2.0**2 / 3])


def sum_as(mixer: Any, role: str) -> None:
    """Make a ForwardMixer of two agents the sum: relu(x) - relu(-x) of x = q¹ + q²."""
    p = {key: value.detach() for key, value in mixer.roles[role].items()}
    for value in p.values():
        value.zero_()
    p["body.0.weight"][0, :2, :2] = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    p["body.2.weight"][0, :2, :2] = torch.eye(2)
    p["body.4.weight"][0, 0, :2] = torch.tensor([1.0, -1.0])


@pytest.mark.parametrize(
    ("weighting", "loss", "mean_weight"), [("optimistic", 4.4, 0.64), ("central", 4.895, 0.46)]
)
def test_weighted_losses_by_hand(weighting: str, loss: float, mean_weight: float) -> None:
    """Of sums: Q_tot from values 0 and 3, Q* from 1 and 2, its target from 4 and 5; γ = 1/2.

    The agents think (1, 1) best, for which Q* = 4 and its target 10, so y = r + 5, or r.

        action  y      Q_tot  weight OW, CW  Q*
        (1, 1)  4      6      0.1  1         4
        (0, 0)  1      0      1    0.1       2
        (0, 1)  2 end  3      0.1  0.1       3
        (1, 0)  6      3      1    1         3
        (0, 1)  3.5    3      1    0.1       3

    The weighted squares of y - Q_tot add up to 10.75 or 13.225, those of y - Q* to 11.25.
    """
    wqmix = learner(
        "wqmix", "mlp", (0,), spec=Spec(OBS, 2, 2), mixer="sum", weighting=weighting, alpha=0.1
    )
    constant(wqmix.nets["agents"], [0.0, 3.0])
    constant(wqmix.nets["agents"], [100.0, 0.0], "target")  # has no say
    constant(wqmix.nets["central"], [1.0, 2.0])
    constant(wqmix.nets["central"], [4.0, 5.0], "target")
    for role in ("fixed", "target"):
        sum_as(wqmix.nets["central_mixer"], role)
    batch = rows(
        ((1, 1), -1.0, False, False),
        ((0, 0), -4.0, False, True),  # out of time, which is no end
        ((0, 1), 2.0, True, False),
        ((1, 0), 1.0, False, False),
        ((0, 1), -1.5, False, False),
    )
    found, figures = lift(lambda net, b: wqmix.loss(net, net.target, b), wqmix.nets, batch)
    assert found.tolist() == pytest.approx([loss])
    assert figures["weight"].tolist() == pytest.approx([mean_weight])


# Losses against plain networks --------------------------------------------------------------------


def plain_agents(qmix: Any, name: str, r: int, role: str) -> list[Any]:
    """Return ``values(obs (T, D), first (T,)) -> (T, A)`` of each agent, by torch's own cells.

    All of them hold ``params``, the parameters, those of an agent along the first axis if each has
    its own.
    """
    team = qmix.nets[name].network(r, role)
    params = {n: x.detach().clone().requires_grad_() for n, x in team.network.named_parameters()}
    cells: dict[str, type[nn.Module]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}
    memory = qmix.config.encoder.memory

    def one(i: int) -> Any:
        p = params if team.copies == 1 else {n: x[i] for n, x in params.items()}
        mark = torch.eye(AGENTS)[i] if team.copies == 1 else torch.zeros(0)

        def values(obs: Tensor, first: Tensor) -> Tensor:
            state, out = None, []
            for x, new in zip(obs, first, strict=True):
                x = torch.cat([x, mark]) @ p["encoder.body.0.weight"].T + p["encoder.body.0.bias"]
                h = x.relu()
                if memory != "none":
                    cell = cells[memory](8, 5)
                    pairs = itertools.product(
                        (("ih", "input"), ("hh", "hidden")), ("weight", "bias")
                    )
                    own = {f"{k}_{to}": p[f"encoder.cell.{ours}.{k}"] for (to, ours), k in pairs}
                    state = functional_call(cell, own, (h[None], None if new else state))
                    h = (state if memory == "gru" else state[0])[0]
                out.append(h @ p["head.advantage.weight"].T + p["head.advantage.bias"])
            return torch.stack(out)

        values.params = params  # type: ignore[attr-defined]
        return values

    return [one(i) for i in range(AGENTS)]


def plain(qmix: Any, r: int) -> SimpleNamespace:
    """Return the networks of a replicate: lists of plain agents, mixers; targets too."""

    def mixer(name: str, role: str) -> Any:
        if name not in qmix.nets:
            return lambda q, state: q.sum()
        return qmix.nets[name].network(r, role).requires_grad_(role == "fixed")

    nets = SimpleNamespace()
    for role, prefix in (("fixed", ""), ("target", "target_")):
        for name in {"agents", "central"} & qmix.nets.keys():
            setattr(nets, prefix + name, plain_agents(qmix, name, r, role))
        for name in ("mixer", "central_mixer"):
            setattr(nets, prefix + name, mixer(name, role))
    return nets


def slow_loss(qmix: Any, batch: dict[str, Tensor], r: int) -> tuple[Tensor, SimpleNamespace]:
    """Return the loss of one replicate in loops over plain networks, and those networks.

    The batch is as it comes from the replay, the steps that only fill the memories included.
    """
    c, nets, losses = qmix.config, plain(qmix, r), []
    weighted = isinstance(qmix, WQMIX)
    remembers = c.encoder.remembers
    for b in range(batch["reward"].shape[1]):
        row = {name: value[r, b] for name, value in batch.items()}
        for t in range(qmix.burn_in, len(row["reward"])):
            seen = slice(0, t + 1) if remembers else slice(t, t + 1)
            chosen, true, worth, best, after = [], [], [], [], []
            for i in range(AGENTS):
                past, first = row["obs"][seen, i], row["first"][seen]
                q = nets.agents[i](past, first)[-1]
                chosen.append(q[row["action"][t, i]])
                legal = [a for a in range(ACTIONS) if row["mask"][t, i, a]]
                best.append(max(legal, key=lambda a, q=q: q[a]))
                if weighted:
                    central = nets.central[i](past, first)[-1]
                    true.append(central[row["action"][t, i]])
                    worth.append(central[best[-1]])
                then = row["next_obs"][t, i][None]
                if remembers:  # seen after all that is past
                    then, first = torch.cat([past, then]), torch.cat([first, first[:1] & False])
                judge = (nets.target_central if weighted else nets.target_agents)[i](then, first)
                target = nets.target_agents[i](then, first)[-1]
                chooser = nets.agents[i](then, first)[-1] if c.double else target
                legal = [a for a in range(ACTIONS) if row["next_mask"][t, i, a]] or [0]
                after.append(judge[-1][max(legal, key=lambda a, q=chooser: q[a])])
            state, next_state = row["obs"][t].flatten(), row["next_obs"][t].flatten()
            mix = nets.target_central_mixer if weighted else nets.target_mixer
            value = 0.0 if row["terminated"][t] else mix(torch.stack(after), next_state)
            goal = torch.as_tensor(row["reward"][t, 0] + row["discount"][t] * value).detach()
            total, weight = nets.mixer(torch.stack(chosen), state), 1.0
            if weighted:
                if c.weighting == "optimistic":
                    matters = goal > total
                else:
                    matters = goal > nets.central_mixer(torch.stack(worth), state)
                    matters = matters or best == row["action"][t].tolist()
                weight = 1.0 if matters else c.alpha
                losses.append((nets.central_mixer(torch.stack(true), state) - goal) ** 2)
            else:
                losses.append(torch.zeros(()))
            losses[-1] = losses[-1] + weight * (total - goal) ** 2
    return torch.stack(losses).mean(), nets


def equals_plain_networks(qmix: Any) -> None:
    scatter(qmix)
    drawn, sample = {}, qmix.replay.sample
    qmix.replay.sample = lambda *a: drawn.update(sample(*a)) or dict(drawn)
    batch = qmix.sample()
    for net in qmix.nets.values():
        net.zero_grad()
    found = loss_of(qmix, batch)
    found.sum().backward()
    for r in range(2):
        loss, nets = slow_loss(qmix, drawn, r)
        torch.testing.assert_close(found[r], loss)
        if qmix.burn_in:  # memories are cut off from it, which the slow loss does not do
            continue
        loss.backward()
        for n, net in qmix.nets.items():
            one = getattr(nets, n)
            params = one[0].params if isinstance(one, list) else dict(one.named_parameters())
            for key, p in params.items():
                grad = net.grads[f"network.{key}" if isinstance(one, list) else key][r]
                torch.testing.assert_close(grad, p.grad, msg=f"{n}.{key}")


@pytest.mark.parametrize("name", ["vdn", "qmix"])
@pytest.mark.parametrize("double", [False, True])
@sharing
def test_the_loss_and_its_gradient_equal_plain_networks(
    name: str, double: bool, share: bool
) -> None:
    equals_plain_networks(full(name, double=double, share_parameters=share))


@pytest.mark.parametrize("encoder", MEMORIES)
@pytest.mark.parametrize("burn_in", [0, 2])
@sharing
def test_with_memory_they_equal_plain_networks_run_step_by_step(
    encoder: str, burn_in: int, share: bool
) -> None:
    equals_plain_networks(full("qmix", encoder, burn_in=burn_in, share_parameters=share))


@weightings
@sharing
def test_weighted_losses_equal_plain_networks(weighting: str, share: bool) -> None:
    made = full("wqmix", weighting=weighting, share_parameters=share, alpha=0.3)
    equals_plain_networks(made)


@weightings
def test_with_a_weight_of_one_both_weightings_are_the_same(weighting: str) -> None:
    made = [full("wqmix", weighting=w, alpha=1.0) for w in (weighting, "optimistic")]
    for each in made:
        scatter(each)
    batch = made[0].sample()
    torch.testing.assert_close(*(loss_of(each, batch) for each in made))


def test_the_team_is_paid_the_sum() -> None:
    """With every value zero the loss is the square of the rewards: 2, or 2 (1 + γ + γ²)."""
    for n, total in [(1, 2.0), (3, 3.5)]:
        vdn = learner("vdn", "mlp", (0,), 1, n_step=n, gamma=0.5, spec=Spec(1, 2, 2))
        for flat in (vdn.nets["agents"].flat.detach(), vdn.nets["agents"].target):
            flat.zero_()
        obs, never = np.zeros((1, 2, 1), np.float32), np.zeros(1, bool)
        for _ in range(6):
            _, stored = vdn.act(obs, {})
            pay = np.array([[1.5, 0.5]], np.float32)
            vdn.observe(stored, pay, never, never, {"final_obs": obs})
        assert vdn.learn_once()["loss"].tolist() == pytest.approx([total**2])


# The joint table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoder", "share"),
    [("qmix", "mlp", True), ("vdn", "mlp", True), ("qmix", "gru", True), ("qmix", "mlp", False)],
)
def test_the_joint_table_is_the_value_of_every_joint_action(
    name: str, encoder: str, share: bool
) -> None:
    qmix = learner(name, encoder, share_parameters=share)
    obs = torch.randn(AGENTS, OBS, generator=torch.Generator().manual_seed(0))
    for r in range(2):
        table, nets = qmix.joint_table(obs.numpy(), r), plain(qmix, r)
        assert table.shape == (ACTIONS, ACTIONS)
        q = [nets.agents[i](obs[i][None], torch.tensor([True]))[0] for i in range(AGENTS)]
        for a, b in np.ndindex(ACTIONS, ACTIONS):
            total = nets.mixer(torch.stack([q[0][a], q[1][b]]), obs.flatten())
            assert table[a, b] == pytest.approx(total.item(), abs=1e-5)
        best = (int(q[0].argmax()), int(q[1].argmax()))
        assert table.max() == pytest.approx(table[best])  # each agent's best is the team's


def test_a_joint_table_is_for_two() -> None:
    with pytest.raises(ValueError, match="two agents, not 3"):
        learner("qmix", spec=Spec(OBS, 2, 3)).joint_table(np.zeros((3, OBS), np.float32))


# What is learned ----------------------------------------------------------------------------------


def two_step_game(mixer: str, memory: str = "none") -> tuple[QMIX, np.ndarray]:
    """Learn the two-step game on ten seeds from uniform play; return the greedy returns too."""
    config = QMIXConfig(
        mixer=mixer, learning_rate=3e-3, batch_size=32, buffer_size=4_000, learning_starts=100,
        train_every=10, target_every=40, epsilon_end=1.0, epsilon_steps=50_000,
        encoder={"kind": "mlp", "hidden": (32,), "memory": memory, "memory_size": 16},
        mixer_width=8, hyper_width=16, sequence_length=2, burn_in=0,
    )  # type: ignore[arg-type] # fmt: skip
    qmix = QMIX(Spec(3, 2, 2), 8, list(range(10)), config)
    loop = LoopConfig(timesteps=6_000, eval_every=10**9, eval_episodes=1, final_episodes=1)
    world = lambda n: make("MatrixGame", n, {"game": "two-step"})  # noqa: E731
    trainer = Trainer(world, qmix, loop, progress=False)
    return qmix, trainer.train().final["episode_return"].ravel()


def seen_in(state: int) -> np.ndarray:
    return np.repeat(np.eye(3, dtype=np.float32)[state : state + 1], 2, axis=0)


def test_qmix_finds_the_best_of_the_two_step_game_on_every_seed() -> None:
    qmix, returns = two_step_game("monotonic")
    assert returns.tolist() == [8.0] * 10
    exact = joint_values(GAMES["two-step"], gamma=qmix.config.gamma)
    for r, state in np.ndindex(10, 3):
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
    assert two_step_game("monotonic", "gru")[1].tolist() == [8.0] * 10


@pytest.mark.parametrize("memory", ["none", *MEMORIES])
def test_only_memory_solves_what_one_observation_does_not_tell(memory: str) -> None:
    """A cue is seen at the start alone; two steps later both agents must repeat it for a 1."""
    config = QMIXConfig(
        encoder={"kind": "mlp", "hidden": (16,), "memory": memory, "memory_size": 16},
        gamma=1.0, learning_rate=1e-2, batch_size=32, learning_starts=0, train_every=8,
        target_every=20, mixer_width=4, hyper_width=8, sequence_length=4, burn_in=1,
        epsilon_end=1.0,
    )  # type: ignore[arg-type] # fmt: skip
    b, rng = 16, np.random.default_rng(0)
    qmix, rows = QMIX(Spec(3, 2, 2), b, [0, 1], config), 2 * b

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
            action, stored = qmix.act(look(cue, t), {})
            end, info = np.full(rows, t == 2), {"final_obs": look(cue, t + 1)}
            qmix.observe(stored, pay(cue, action, t), end, np.zeros(rows, bool), info)
            qmix.update()
    cue, policy, going = np.tile([0, 1], b), qmix.policy(), {"_final_obs": np.zeros(rows, bool)}
    for t in range(3):
        total = pay(cue, policy(look(cue, t), going if t else {}), t).sum(1)
    won = total.reshape(2, b).mean(1).tolist()
    assert won == [1.0, 1.0] if memory != "none" else max(won) <= 0.5  # one answer for both cues


def climbing(kind: type[QMIX], config: Any) -> tuple[QMIX, list[float]]:
    """Learn the climbing game, paying a tenth, from uniform play; return the greedy returns too."""
    learner = kind(Spec(1, 3, 2), 8, list(range(5)), config)
    loop = LoopConfig(timesteps=4_000, eval_every=10**9, eval_episodes=1, final_episodes=1)
    world = lambda n: make("MatrixGame", n, {"game": "climbing", "scale": 0.1})  # noqa: E731
    final = Trainer(world, learner, loop, progress=False).train().final["episode_return"]
    return learner, (10 * final.ravel()).round().tolist()


UNIFORM: dict[str, Any] = {
    "learning_rate": 1e-2, "batch_size": 32, "buffer_size": 4_000, "learning_starts": 100,
    "train_every": 10, "target_every": 40, "epsilon_end": 1.0, "encoder": {"hidden": (32,)},
    "mixer_width": 8, "hyper_width": 16,
}  # fmt: skip


def test_qmix_does_not_reach_the_top_of_the_climbing_game() -> None:
    """A monotonic fit of all joint actions hides the 11 behind the -30 beside it."""
    _, returns = climbing(QMIX, QMIXConfig(**UNIFORM))
    assert max(returns) <= 7.0


@weightings
def test_weighted_qmix_reaches_the_top_of_the_climbing_game(weighting: str) -> None:
    """Where the weights of what does not matter are small enough, on every seed."""
    config = WQMIXConfig(**UNIFORM, weighting=weighting, alpha=0.01)  # type: ignore[arg-type]
    made, returns = climbing(WQMIX, config)
    assert returns == [11.0] * 5
    payoff = torch.tensor(0.1 * GAMES["climbing"].payoff[0], dtype=torch.float32)

    def table(net: Any, x: Tensor) -> Tensor:
        q = net.central(x)[0]  # (2, A)
        pairs = torch.stack(torch.broadcast_tensors(q[0, :, None], q[1]), -1)
        return net.central_mixer(pairs, x.flatten().expand(3, 3, -1))

    found = made.lift(table, torch.ones(5, 2, 1))  # Q* is any function: it fits them all
    torch.testing.assert_close(found, payoff.expand(5, 3, 3), atol=0.3, rtol=0)
