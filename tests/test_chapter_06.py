"""What chapter 6 builds, taken out of the notebook and held against the library or the truth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from agreement import flat
from scipy.optimize import minimize

from marl_lib.advantages import q_lambda_return
from marl_lib.algorithms.qmix import QMIX, QMIXConfig, VDNConfig
from marl_lib.envs import BatchedMatrixGame
from marl_lib.envs.matrix import GAMES, joint_values
from marl_lib.nn.mixing import SumMixer
from marl_lib.spec import Spec

SIZES = Spec(obs_dim=3, n_actions=2, n_agents=2)
WIDE = {"encoder": {"hidden": (64,)}, "max_grad_norm": None}  # as the chapter's agents


@pytest.fixture(scope="module")
def everything(book):
    return book["transitions"](GAMES["two-step"])


# Tables -------------------------------------------------------------------------------------------


def test_exact_values_solve_the_bellman_equation():
    game = GAMES["two-step"]
    q = joint_values(game)  # (S, A, A)
    for s, a, b in np.ndindex(q.shape):
        after = game.successor[s, a, b]
        follows = 0.0 if after < 0 else q[after].max()
        assert q[s, a, b] == game.payoff[s, a, b] + follows


def test_what_an_agent_sees_alone_is_the_mean_over_its_mate(book):
    table = np.random.default_rng(0).normal(size=(3, 4))
    first, second = book["seen_alone"](table)
    assert first == pytest.approx([sum(row) / 4 for row in table])
    assert second == pytest.approx([sum(column) / 3 for column in table.T])


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 2)])
def test_best_sum_is_the_least_squares_solution(book, shape):
    table = np.random.default_rng(1).normal(size=shape)
    rows, columns = np.indices(shape).reshape(2, -1)
    uses = np.hstack([np.eye(shape[0])[rows], np.eye(shape[1])[columns]])
    parts, *_ = np.linalg.lstsq(uses, table.ravel(), rcond=None)
    np.testing.assert_allclose(book["best_sum"](table).ravel(), uses @ parts, atol=1e-12)


def rises(table):
    return (np.diff(table, axis=0) >= -1e-9).all() and (np.diff(table, axis=1) >= -1e-9).all()


def numerical_isotonic(table):
    n = len(table)
    steps = [
        {"type": "ineq", "fun": lambda x, axis=axis: np.diff(x.reshape(n, n), axis=axis).ravel()}
        for axis in (0, 1)
    ]
    start = np.add.outer(np.arange(n), np.arange(n)).ravel().astype(float)
    found = minimize(
        lambda x: ((x - table.ravel()) ** 2).sum(),
        start,
        jac=lambda x: 2 * (x - table.ravel()),
        constraints=steps,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return found.x.reshape(n, n)


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_regression_equals_a_numerical_solution(book, seed):
    table = np.random.default_rng(seed).normal(size=(3, 3))
    fitted = book["isotonic"](table)
    assert rises(fitted)
    np.testing.assert_allclose(fitted, numerical_isotonic(table), atol=1e-3)
    np.testing.assert_allclose(book["isotonic"](fitted), fitted)  # what rises stays


def test_best_monotonic_table_is_the_best_over_all_orders(book):
    table = GAMES["climbing"].payoff[0]
    fitted = book["best_monotonic"](table)
    error = ((fitted - table) ** 2).sum()
    rng = np.random.default_rng(0)
    for _ in range(20):  # no order gives less, by a method of its own
        order = rng.permutation(3), rng.permutation(3)
        other = table[np.ix_(*order)]
        assert ((numerical_isotonic(other) - other) ** 2).sum() >= error - 1e-3
    rows, columns = np.argsort(fitted.sum(1)), np.argsort(fitted.sum(0))
    assert rises(fitted[np.ix_(rows, columns)])
    assert table[np.unravel_index(fitted.argmax(), (3, 3))] == 5


# Networks and losses ------------------------------------------------------------------------------


def test_transitions_are_those_of_the_world(book, everything):
    world = BatchedMatrixGame(1)
    game, seen = world.game, 0
    for i in range(12):
        state = int(everything["obs"][i, 0].argmax())
        world.reset(seed=0)
        world._state[:] = state
        action = everything["action"][i].numpy()[None]
        _, reward, terminated, _, info = world.step(action)
        assert reward.sum() == everything["reward"][i]
        assert terminated[0] == everything["terminated"][i]
        if not terminated[0]:
            seen += 1
            np.testing.assert_array_equal(info["final_obs"][0], everything["next_obs"][i])
    assert seen == (game.successor >= 0).sum() == 4


def test_agents_equal_the_library_s(book):
    torch.manual_seed(0)
    ours = book["Agents"](3, 2)
    learner = QMIX(SIZES, 1, [0], QMIXConfig(**WIDE))
    learner.nets["agents"].flat.copy_(flat(ours))
    obs = torch.randn(7, 2, 3)
    torch.testing.assert_close(ours(obs), learner.outputs(obs[None])[0])


def test_mixers_equal_the_library_s(book):
    q, state = torch.randn(40, 2), torch.randn(40, 6)
    torch.testing.assert_close(book["Sum"]()(q, state), SumMixer()(q, state))
    for seed in range(3):
        torch.manual_seed(seed)
        ours = book["Mixer"]()
        torch.testing.assert_close(ours(q, state), book["as_in_library"](ours)(q, state))


@pytest.mark.parametrize("config", [VDNConfig, QMIXConfig])
def test_loss_and_its_gradient_equal_the_library_s(book, everything, config):
    torch.manual_seed(2)
    make = book["Sum"] if config is VDNConfig else book["Mixer"]
    nets, targets = (torch.nn.ModuleList([book["Agents"](3, 2), make()]) for _ in range(2))
    learner = QMIX(SIZES, 1, [0], config(gamma=0.9, **WIDE))
    for net, ours, still in zip(learner.nets.values(), nets, targets, strict=False):
        net.flat.copy_(book["weights_of"](ours))
        net.target.copy_(book["weights_of"](still))
    ours = book["team_loss"](nets, targets, everything, 0.9)
    torch.testing.assert_close(ours, book["loss_of"](learner, everything))
    ours.backward()
    learner.descend(
        lambda net, batch: learner.loss(net, net.target, batch),
        tuple(learner.nets),
        drawn(everything, 0.9),
    )
    mine = torch.cat([p.grad.flatten() for p in nets[0].parameters()])
    torch.testing.assert_close(mine, learner.nets["agents"].flat.grad, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in targets.parameters())


def drawn(batch, gamma):
    """Return a batch of the chapter's as a replay gives it, tensors (R, batch, T, ...)."""
    reward, terminated = batch["reward"], batch["terminated"]
    more = {"reward": reward[:, None], "first": torch.zeros_like(terminated)}
    stored = {**batch, **more, "discount": torch.full_like(reward, gamma)}
    return {name: x[None, :, None] for name, x in stored.items()}


def test_slopes_of_the_mixer_are_never_negative_and_of_the_free_one_are(book):
    torch.manual_seed(0)
    for _ in range(3):
        assert (book["slopes"](book["Mixer"]()) >= 0).all()
        assert (book["slopes"](book["BothWays"]()) >= 0).all()
        assert (book["slopes"](book["Free"]()) < 0).any()


def corners(mixer, count=2_000):
    """Return what a mixer says of both high, one, the other and none, (4, count)."""
    low = torch.randn(count, 2)
    high = low + torch.rand(count, 2) * 3
    state = torch.randn(count, 6)
    pairs = [high, torch.stack([high[:, 0], low[:, 1]], 1), torch.stack([low[:, 0], high[:, 1]], 1)]
    with torch.no_grad():
        return torch.stack([mixer(q, state) for q in (*pairs, low)])


def test_convex_units_cannot_say_that_one_is_enough(book):
    torch.manual_seed(1)
    both, one, other, none = corners(book["Mixer"]())
    assert (both + none - one - other > -1e-4).all()  # equation ch06-convex
    both, one, other, none = corners(book["BothWays"]())
    assert (both + none - one - other < -1e-3).any()


def test_igm_holds_for_the_mixer_and_not_for_the_free_one(book):
    torch.manual_seed(0)
    q = torch.randn(500, 2, 3)  # (B, N, A)
    state = torch.randn(500, 6)

    def agrees(mixer):
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # (9, N)
        joint = torch.stack([q[:, i, pairs[:, i]] for i in range(2)], dim=-1)  # (B, 9, N)
        with torch.no_grad():
            total = mixer(joint, state[:, None].expand(-1, 9, -1))  # (B, 9)
            greedy = mixer(q.max(-1).values, state)
        return (greedy >= total.max(1).values - 1e-5).float().mean()

    assert agrees(book["Mixer"]()) == 1
    assert agrees(book["Sum"]()) == 1
    assert agrees(book["Free"]()) < 0.9


def test_fit_finds_the_best_sum_and_qmix_the_exact_table(book, everything, monkeypatch):
    monkeypatch.setenv("MARL_BUDGET", "book")
    exact, right = joint_values(GAMES["two-step"]), book["RIGHT"]
    sums = book["table_of"](book["fit"](book["Sum"], everything, steps=800), everything)
    np.testing.assert_allclose(sums[right], [[-1.5, 2.5], [2.5, 6.5]], atol=0.2)
    assert sums[0, 0].min() > sums[0, 1].max()
    mixed = book["table_of"](book["fit"](book["Mixer"], everything, steps=800), everything)
    np.testing.assert_allclose(mixed, exact, atol=0.2)


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_lambda_returns_equal_the_library_s(book, lam):
    g = torch.Generator().manual_seed(0)
    reward, best = torch.randn(2, 25, 6, generator=g)
    terminated, truncated = torch.rand(2, 25, 6, generator=g) < 0.15
    given = (reward, best, terminated, terminated | truncated, 0.9, lam)
    torch.testing.assert_close(book["lambda_returns"](*given), q_lambda_return(*given))


def test_lamp_asks_for_what_it_showed_two_steps_ago(book):
    world = book["Lamp"](500)
    obs, _ = world.reset(seed=0)
    shown = obs[:, 0].argmax(1)
    assert set(shown) == {0, 1} and 0.4 < shown.mean() < 0.6
    for _ in range(2):
        obs, reward, terminated, _, _ = world.step(np.zeros((500, 2), int))
        assert (obs[..., 2] == 1).all() and not reward.any() and not terminated.any()
    half = np.arange(500) < 250
    action = np.repeat(shown[:, None], 2, axis=1)
    action[half, 1] = 1 - action[half, 1]  # one of the two says the wrong colour
    _, reward, terminated, _, _ = world.step(action)
    assert terminated.all()
    np.testing.assert_array_equal(reward.sum(1), ~half)


# The clinic ---------------------------------------------------------------------------------------


def with_everything(book, everything):
    book["everything"] = everything  # what the notebook's cells have made by then
    return book


def test_shortsighted_learner_is_caught_and_the_library_is_not(book, everything):
    check = with_everything(book, everything)["what_follows_counts"]
    assert check(QMIX) and not check(book["Shortsighted"])


def test_shortsighted_learner_fits_the_reward(book, everything):
    learner = book["Shortsighted"](SIZES, 1, [0], VDNConfig())
    q = learner.outputs(everything["obs"][None])[0]
    q = q.gather(-1, everything["action"].unsqueeze(-1)).squeeze(-1)
    expected = (q.sum(-1) - everything["reward"]).square().mean()
    torch.testing.assert_close(book["loss_of"](learner, everything), expected)


def test_leaky_loss_is_caught_and_ours_is_not(book, everything):
    check = with_everything(book, everything)["target_is_constant"]
    assert check(book["team_loss"]) and not check(book["leaky_loss"])


def test_leaky_loss_has_the_right_value_and_the_wrong_gradient(book, everything):
    torch.manual_seed(0)
    nets = torch.nn.ModuleList([book["Agents"](3, 2), book["Mixer"]()])
    right = book["team_loss"](nets, copy.deepcopy(nets), everything)
    leaky = book["leaky_loss"](nets, None, everything)
    torch.testing.assert_close(right, leaky)
    grads = [torch.autograd.grad(x, list(nets.parameters())) for x in (right, leaky)]
    assert any(not torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_slippery_floor_has_the_values_that_the_page_computes(book, everything):
    ice = book["slippery"](everything)
    left, right = 7.0, 8.0
    for door, expected in ((0, 7.25), (1, 7.75)):
        taken = ~ice["terminated"] & (ice["action"][:, 0] == door)
        room = ice["next_obs"][taken][:, 0].argmax(-1)
        value = torch.where(room == book["LEFT"], left, right).mean()
        assert value.item() == pytest.approx(expected)


def test_unmasked_learner_is_caught_and_the_library_is_not(book, everything):
    check = with_everything(book, everything)["illegal_is_invisible"]
    assert check(QMIX) and not check(book["Unmasked"])


def test_padded_world_reports_its_masks_and_pays_ten_less(book):
    world = book["Padded"](4)
    _, info = world.reset(seed=0)
    assert world.n_actions == 3
    assert info["action_mask"].tolist() == [[[True, True, False]] * 2] * 4
    _, reward, terminated, _, info = world.step(np.ones((4, 2), int))
    assert not reward.any() and not terminated.any()
    assert info["final_mask"].shape == (4, 2, 3)
    _, reward, terminated, _, _ = world.step(np.ones((4, 2), int))
    assert (reward.sum(1) == -2).all() and terminated.all()
