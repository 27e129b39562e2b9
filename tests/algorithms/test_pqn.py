"""PQN against numbers made by hand, plain networks, loops and exact values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from marl_lib.algorithms.pqn import PQN, NormedQNetwork, PQNConfig
from marl_lib.config import ConfigError
from marl_lib.envs import make
from marl_lib.planning import tabulate, value_iteration
from marl_lib.training import LoopConfig, Trainer

OBS, ACTIONS, AGENTS = 4, 3, 2
SMALL = PQNConfig(
    hidden=(8,), rollout=5, minibatches=2, epochs=2, anneal=False, normalise_reward=False,
    gamma=0.9, lam=0.7, epsilon_steps=100,
)  # fmt: skip
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
mixers = pytest.mark.parametrize("mixer", ["none", "sum"])
GIVEN = ("total_steps", "action_masks", "device", "n_agents")


def learner(seeds: tuple[int, ...] = (0, 3), num_envs: int = 4, **options: Any) -> PQN:
    given = {k: options.pop(k) for k in GIVEN if k in options}
    config = dataclasses.replace(SMALL, **options)
    return PQN(OBS, ACTIONS, given.pop("n_agents", AGENTS), num_envs, seeds, config, **given)


def masks(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """Return which actions are legal; one of them always is, and not always the same."""
    mask = rng.random((rows, n, ACTIONS)) < 0.5
    return mask | (np.arange(ACTIONS) == rng.integers(ACTIONS, size=(rows, n, 1)))


def feed(pqn: PQN, steps: int, seed: int = 0, ends: float = 0.15) -> None:
    """Let the learner act for so many steps in a world of random numbers, and learn in between."""
    rng, n = np.random.default_rng(seed), pqn.n_agents
    rows = len(pqn.seeds) * pqn.num_envs
    obs, mask = rng.normal(size=(rows, n, OBS)).astype(np.float32), masks(rng, rows, n)
    for t in range(steps):
        terminated, truncated = rng.random((2, rows)) < ends
        ended = (terminated | truncated)[:, None, None]
        led_to, other = rng.normal(size=(2, rows, n, OBS)).astype(np.float32)
        final_mask, new_mask = masks(rng, rows, n), masks(rng, rows, n)
        final_mask[terminated] = False  # where all is over, nothing need be legal
        action = pqn.act(obs, {"action_mask": mask})
        reward = rng.normal(size=(rows, n)).astype(np.float32)
        info = {"final_mask": final_mask}
        pqn.observe(obs, action, reward, led_to, terminated, truncated, info)
        obs, mask = np.where(ended, other, led_to), np.where(ended, new_mask, final_mask)
        if t < steps - 1:
            pqn.update()


def full(*args: Any, **options: Any) -> PQN:
    """Return a learner whose rollout is full, not learned from yet."""
    pqn = learner(*args, **options)
    feed(pqn, pqn.config.rollout)
    return pqn


def parameters(pqn: PQN, index: int) -> Tensor:
    """Return all weights of one replicate in one vector."""
    return torch.cat([p.detach()[index].flatten() for p in pqn.net.params.values()])


# The parts ----------------------------------------------------------------------------------------


def test_layers_are_normalised_before_every_relu() -> None:
    torch.manual_seed(0)
    net, x = NormedQNetwork(OBS, ACTIONS, (7, 5)), 100 * torch.randn(6, OBS)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    h = x
    for i in (0, 3):
        layer, norm = net.body[i], net.body[i + 1]
        h = h @ layer.weight.T + layer.bias
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        h = (h * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)
    assert [tuple(p.shape) for p in NormedQNetwork(4, 3, ()).parameters()] == [(3, 4), (3,)]


def test_values_equal_plain_networks_and_agents_see_only_their_own() -> None:
    pqn = learner(n_agents=3)
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    q = pqn.q_values(obs)
    for r in range(2):
        net = pqn.net.network(r)
        for agent in range(3):
            name = torch.eye(3)[agent].expand(6, 3)
            expected = net(torch.cat([obs[r, :, agent], name], -1))
            torch.testing.assert_close(q[r, :, agent], expected)
    other = obs.clone()
    other[:, :, 1] += 1.0
    assert torch.equal(pqn.q_values(other)[:, :, [0, 2]], q[:, :, [0, 2]])
    assert (pqn.q_values(other)[:, :, 1] != q[:, :, 1]).any(-1).all()


def test_permuting_agents_with_their_ids_permutes_values_and_keeps_the_sum() -> None:
    pqn, order = learner(n_agents=3, mixer="sum"), [2, 0, 1]
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    q = pqn.q_values(obs)
    assert not torch.allclose(pqn.q_values(obs[:, :, order]), q[:, :, order])
    pqn.ids = pqn.ids[order]
    moved = pqn.q_values(obs[:, :, order])
    torch.testing.assert_close(moved, q[:, :, order])
    torch.testing.assert_close(pqn.mix(moved.amax(-1)), pqn.mix(q.amax(-1)))


# Returns ------------------------------------------------------------------------------------------


@mixers
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masks"])
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_returns_equal_a_loop(mixer: str, masked: bool, seeds: tuple[int, ...]) -> None:
    """From each step's own next observation and its own mask; a time limit bootstraps."""
    pqn = learner(seeds, 8, mixer=mixer, action_masks=masked)
    feed(pqn, 5, seed=4, ends=0.05)
    d, c = pqn.data, pqn.config
    cut = (d["truncated"] & ~d["terminated"])[:, :-1]
    assert cut.flatten(1).any(1).all()
    assert not d["truncated"][:, :-1].any(2).any(0).all()  # at some steps nobody ran out of time
    assert d["terminated"].flatten(1).any(1).all()
    returns = pqn.prepare()["returns"]
    for r in range(len(seeds)):
        q = pqn.q_values(d["next_obs"].flatten(1, 2))[r].detach().view(5, 8, AGENTS, ACTIONS)
        if masked:
            q = q.masked_fill(~d["next_mask"][r], -torch.inf)
        best, reward = q.amax(-1), d["reward"][r]  # (T, B, N)
        if mixer == "sum":
            best, reward = best.sum(-1, keepdim=True), reward.sum(-1, keepdim=True)
        found = returns[r].view(reward.shape)
        for b in range(8):
            for k in range(reward.shape[-1]):
                after = None
                for t in reversed(range(5)):
                    if after is None or d["truncated"][r, t, b]:
                        after = best[t, b, k]
                    else:
                        after = c.lam * after + (1 - c.lam) * best[t, b, k]
                    over = d["terminated"][r, t, b]
                    after = reward[t, b, k] + (0.0 if over else c.gamma * after)
                    torch.testing.assert_close(found[t, b, k], after, atol=1e-5, rtol=1e-4)


@mixers
def test_what_follows_a_time_limit_counts_and_what_follows_an_end_does_not(mixer: str) -> None:
    pqn = full(mixer=mixer)
    before, d = pqn.prepare()["returns"], pqn.data
    d["next_obs"][d["terminated"]] += 5.0
    assert torch.equal(pqn.prepare()["returns"], before)
    cut = d["truncated"] & ~d["terminated"]
    d["next_obs"][cut] += 5.0
    changed = (pqn.prepare()["returns"] != before).view(*cut.shape, -1)
    at_or_before_one = cut.flip(1).cumsum(1).flip(1) > 0
    assert changed[cut].all() and not changed[~at_or_before_one].any()


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return() -> None:
    """Paid a hundred times as much, it learns the same; without the scale it does not."""
    for scaled in (True, False):
        flats = []
        for factor in (1.0, 100.0):
            pqn = full(normalise_reward=scaled, mixer="sum")
            pqn.data["reward"] *= factor
            pqn.update()
            flats.append(parameters(pqn, 0))
        assert torch.allclose(*flats, atol=1e-4) == scaled


# Loss and updates ---------------------------------------------------------------------------------


@mixers
@pytest.mark.parametrize("masked", [False, True], ids=["all legal", "masks"])
def test_loss_equals_a_loop(mixer: str, masked: bool) -> None:
    pqn = full(mixer=mixer, action_masks=masked)
    batch = pqn.prepare()
    loss, mean = pqn.loss(batch)
    q = pqn.q_values(batch["obs"])
    for r in range(2):
        errors, values = [], []
        for i in range(20):
            taken = [q[r, i, k, batch["action"][r, i, k]].item() for k in range(AGENTS)]
            taken = [sum(taken)] if mixer == "sum" else taken
            values += taken
            errors += [
                (x - y.item()) ** 2 for x, y in zip(taken, batch["returns"][r, i], strict=True)
            ]
        assert loss[r].item() == pytest.approx(np.mean(errors) / 2, rel=1e-4)
        assert mean[r].item() == pytest.approx(np.mean(values), rel=1e-4, abs=1e-5)


@mixers
def test_order_of_environments_does_not_matter(mixer: str) -> None:
    first, second = (full(num_envs=6, mixer=mixer) for _ in range(2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for name, x in second.data.items():
        second.data[name] = x[:, :, order]
    a, b = first.prepare(), second.prepare()
    for name, x in a.items():
        torch.testing.assert_close(b[name], x.unflatten(1, (5, 6))[:, :, order].flatten(1, 2))
    torch.testing.assert_close(first.loss(a), second.loss(b))


@mixers
def test_every_parameter_moves_and_nothing_else(mixer: str) -> None:
    pqn = full(mixer=mixer, num_envs=64)
    before = {name: p.detach().clone() for name, p in pqn.net.params.items()}
    kept = {name: x.clone() for name, x in pqn.data.items()}
    pqn.update()
    for name, p in pqn.net.params.items():
        assert (p != before[name]).all(), name
    assert all(torch.equal(x, kept[name]) for name, x in pqn.data.items())


@mixers
def test_targets_carry_no_gradient(mixer: str) -> None:
    """The gradient is that of the error with the targets as plain numbers."""
    pqn = full(mixer=mixer)
    batch = pqn.prepare()
    assert not any(x.requires_grad for x in batch.values())
    pqn.net.backward(pqn.loss(batch)[0])
    for r in range(2):
        net = pqn.net.network(r).requires_grad_()
        ids = torch.eye(AGENTS).expand(20, AGENTS, AGENTS)
        q = net(torch.cat([batch["obs"][r], ids], -1))
        q = q.gather(-1, batch["action"][r].unsqueeze(-1)).squeeze(-1)
        (0.5 * (pqn.mix(q) - batch["returns"][r]).square().mean()).backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(pqn.net.grads[name][r], p.grad, atol=1e-6, rtol=1e-4)


def test_gradients_are_clipped_by_each_replicate_s_own_norm() -> None:
    pqn = full(max_grad_norm=0.05, epochs=1, minibatches=1)
    batch = pqn.prepare()
    batch["returns"][1] *= 1e4
    seen: list[float] = []
    pqn.optimizer.step = lambda: seen.extend(  # type: ignore[method-assign]
        torch.cat([g[r].flatten() for g in pqn.net.grads.values()]).norm().item() for r in (0, 1)
    )
    norms = pqn._learn(batch)["grad_norm"].tolist()
    assert norms[1] > 100 * norms[0]
    assert seen == pytest.approx([min(n, 0.05) for n in norms], rel=1e-3)


def test_annealing_goes_down_to_zero() -> None:
    rates = []
    pqn = learner((0,), anneal=True, total_steps=100, learning_rate=0.01)
    for i in range(5):  # of 20 steps each
        feed(pqn, 5, seed=i)
        pqn.update()
        rates.append(pqn.optimizer.learning_rate)
    np.testing.assert_allclose(rates, 0.01 * np.array([1.0, 0.8, 0.6, 0.4, 0.2]))


# Acting -------------------------------------------------------------------------------------------


def test_explores_as_often_as_it_should_each_agent_on_its_own_coin() -> None:
    pqn = learner(num_envs=2000, epsilon_start=0.6, epsilon_end=0.6)
    obs = np.random.default_rng(0).normal(size=(4000, AGENTS, OBS)).astype(np.float32)
    action, greedy = pqn.act(obs, {}), pqn.policy()(obs, {})
    assert action.shape == (4000, AGENTS) and action.dtype == np.int64
    differ = action != greedy
    share = 0.6 * (1 - 1 / ACTIONS)
    both = differ.all(1).sum()
    assert stats.binomtest(int(differ.sum()), differ.size, share).pvalue > 1e-3
    assert stats.binomtest(int(both), 4000, share**2).pvalue > 1e-3
    shift = (action - greedy)[differ] % ACTIONS  # any other action is as likely
    assert stats.chisquare(np.bincount(shift, minlength=ACTIONS)[1:]).pvalue > 1e-3
    q = pqn.q_values(torch.from_numpy(obs).unflatten(0, (2, -1)))
    np.testing.assert_array_equal(greedy, q.argmax(-1).flatten(0, 1).numpy())
    torch.testing.assert_close(pqn.data["best"][:, 0], q.amax(-1))


def test_illegal_actions_are_never_taken() -> None:
    pqn = learner(num_envs=300, action_masks=True, epsilon_start=0.5)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        pqn.net.params["head.bias"].copy_(torch.tensor([-20.0, 0.0, 50.0]))
    for _ in range(5):
        obs = rng.normal(size=(600, AGENTS, OBS)).astype(np.float32)
        info = {"action_mask": masks(rng, 600, AGENTS)}
        for action in (pqn.act(obs, info), pqn.policy()(obs, info)):
            assert np.take_along_axis(info["action_mask"], action[..., None], -1).all()


def test_illegal_actions_are_never_bootstrapped() -> None:
    pqn = full(action_masks=True)
    d = pqn.data
    d["next_mask"][..., 2] = False
    d["next_mask"][..., 0] = True
    asked = d["truncated"].any(2).any(0)
    asked[-1] = True
    before = pqn._next_best()[:, asked]
    with torch.no_grad():
        pqn.net.params["head.bias"][:, 2] += 100.0  # an illegal action that looks like a prize
    assert torch.equal(pqn._next_best()[:, asked], before)
    pqn.update()
    assert torch.isfinite(pqn.net.flat).all()


@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(device: str) -> None:
    pqn = full(device=device)
    figures = pqn.update()
    assert set(figures) == {"loss", "q", "grad_norm"}
    assert all(x.shape == (2,) and x.dtype == np.float32 for x in figures.values())
    assert {x.device.type for x in (pqn.net.flat, *pqn.data.values())} == {device}
    feed(pqn, 4)
    before = parameters(pqn, 0)
    assert pqn.update() == {} and torch.equal(parameters(pqn, 0), before)


# Runs ---------------------------------------------------------------------------------------------

WORLD = {"size": 3, "max_steps": 7}  # ends and truncates
LOOP = LoopConfig(512, eval_every=256, eval_episodes=2, final_episodes=2)


def trainer(
    mixer: str, seeds: tuple[int, ...], folder: Path | None = None, loop: LoopConfig = LOOP
) -> Trainer:
    env = make("GridPredatorPrey", 1, WORLD)
    config = PQNConfig(mixer=mixer, rollout=8, epochs=3, hidden=(16,), epsilon_steps=400)
    pqn = PQN(env.obs_dim, env.n_actions, env.n_agents, 16, seeds, config, total_steps=1024)
    return Trainer(lambda n: make("GridPredatorPrey", n, WORLD), pqn, loop, folder, progress=False)


@mixers
def test_a_replicate_is_a_run_of_its_seed(mixer: str) -> None:
    together = trainer(mixer, (0, 4))
    together.train()
    for i, seed in enumerate((0, 4)):
        alone = trainer(mixer, (seed,))
        alone.train()
        ours, theirs = parameters(together.learner, i), parameters(alone.learner, 0)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.equal(parameters(together.learner, 0), parameters(together.learner, 1))


@mixers
@pytest.mark.parametrize("stop", [256, 320], ids=["between rollouts", "within a rollout"])
def test_a_resumed_run_ends_as_the_unbroken_one(mixer: str, stop: int, tmp_path: Path) -> None:
    unbroken = trainer(mixer, (0, 1))
    unbroken.train()
    begun = trainer(mixer, (0, 1), tmp_path, dataclasses.replace(LOOP, timesteps=stop))
    begun.train()
    assert (begun.learner.t > 0) == (stop == 320)
    goes_on = trainer(mixer, (0, 1), tmp_path)
    goes_on.resume()
    goes_on.train()
    ours, theirs = goes_on.learner.state_dict(), unbroken.learner.state_dict()
    assert torch.equal(ours["parameters"], theirs["parameters"])
    for key in ("scale", "data"):
        assert all(torch.equal(x, theirs[key][k]) for k, x in ours[key].items()), key
    assert goes_on.curve.values["episode_return"][-1] == unbroken.curve.values["episode_return"][-1]


# Learning -----------------------------------------------------------------------------------------


def test_a_small_world_is_learned_to_its_exact_values() -> None:
    """Every state and action of a 3 x 3 grid with one target, against value iteration."""
    world = {"grid_size": (3, 3), "n_agents": 1, "n_targets": 1, "max_steps": 20}
    config = PQNConfig(
        gamma=0.9, lam=0.0, learning_rate=3e-3, rollout=8, epochs=2, minibatches=4,
        epsilon_end=0.5, epsilon_steps=1, normalise_reward=False,
    )  # fmt: skip
    env = make("GridWorld", 1, world)
    pqn = PQN(env.obs_dim, env.n_actions, 1, 32, [0], config, total_steps=100_000)
    loop = LoopConfig(100_000, eval_every=10**9, eval_episodes=1, final_episodes=50)
    final = Trainer(lambda n: make("GridWorld", n, world), pqn, loop, progress=False).train().final
    table = tabulate(**world)
    exact = value_iteration(table, gamma=0.9)
    found = pqn.q_values(torch.from_numpy(table.obs)[None, :, None]).detach()[0, :, 0].numpy()
    np.testing.assert_allclose(found.max(1), exact.max(1), rtol=0.05)
    np.testing.assert_allclose(found, exact, rtol=0.12)
    best = np.take_along_axis(exact, found.argmax(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(best, exact.max(1), rtol=1e-6)  # every greedy move is optimal
    assert final["targets_collected"].mean() == 1.0


def test_the_sum_learns_the_best_fit_of_the_climbing_game() -> None:
    """Under uniform play a sum can only be the fit of rows and columns, which is known exactly."""
    payoff = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]]) / 10
    config = PQNConfig(
        mixer="sum", gamma=0.0, learning_rate=0.01, rollout=8, epochs=2, minibatches=2,
        epsilon_end=1.0, normalise_reward=False, hidden=(16,),
    )  # fmt: skip
    pqn = PQN(1, 3, 2, 64, [0, 1], config, total_steps=100_000)
    make_game = lambda n: make("MatrixGame", n, {"game": "climbing", "scale": 0.1})  # noqa: E731
    loop = LoopConfig(100_000, eval_every=10**9, eval_episodes=1, final_episodes=1)
    final = Trainer(make_game, pqn, loop, progress=False).train().final["episode_return"]
    q = pqn.q_values(torch.ones(2, 1, 2, 1)).detach()[:, 0].numpy()  # (R, N, A)
    fit = payoff.mean(1)[:, None] + payoff.mean(0) - payoff.mean()
    for r in range(2):
        np.testing.assert_allclose(q[r, 0][:, None] + q[r, 1], fit, atol=0.1)
    np.testing.assert_allclose(final, 0.5)  # the worst of the three equilibria, on the diagonal


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("lam", -0.1),
        ("learning_rate", 0.0),
        ("rollout", 0),
        ("epochs", 0),
        ("minibatches", 0),
        ("epsilon_end", 1.5),
        ("epsilon_steps", -1),
        ("max_grad_norm", 0.0),
        ("hidden", (8, 0)),
    ],
)
def test_impossible_settings_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        PQNConfig(**{key: value})


def test_unknown_mixers_and_too_many_minibatches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixer 'vdn' is not known.*choices: none, sum"):
        PQNConfig(mixer="vdn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="minibatches must be at most 20"):
        learner(minibatches=21)
