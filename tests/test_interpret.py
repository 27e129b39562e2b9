"""What a policy rests on, against captum, scipy, torch and policies whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeaturePermutation, InputXGradient, IntegratedGradients
from scipy import stats
from torch import Tensor

from marl_lib import interpret
from marl_lib.algorithms.ppo import POOLINGS, PPO, AttentionPPOConfig, PPOConfig, PPONetwork
from marl_lib.config import ConfigError
from marl_lib.envs.base import Tokens
from marl_lib.nn.distributions import Categorical, DiagonalGaussian

PLAIN = {"gradient_input", "integrated_gradients", "permutation"}


def network(config: PPOConfig, obs_dim: int = 4, seed: int = 0, **options: Any) -> PPONetwork:
    """Return an actor of three actions whose policy is far from uniform."""
    torch.manual_seed(seed)
    return PPONetwork(obs_dim, 3, config, 2.0, **options).eval()


def states(n: int = 64, obs_dim: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, obs_dim, generator=torch.Generator().manual_seed(seed))


MLP = PPOConfig(hidden=(16,))
ATTENTION = AttentionPPOConfig(d_model=8, n_heads=2, n_layers=2, hidden=(16,))
NETWORKS = [network(MLP), network(ATTENTION)]


def log_prob(net: PPONetwork) -> Any:
    return lambda x: net(x).log_softmax(-1)


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETWORKS, ids=["mlp", "attention"])
def test_gradient_times_input_is_that_of_captum(net: PPONetwork) -> None:
    x = states()
    theirs = InputXGradient(log_prob(net)).attribute(
        x.clone().requires_grad_(), target=net(x).argmax(-1)
    )
    torch.testing.assert_close(interpret.gradient_input(net, x), theirs)
    found = interpret.feature_importance(net, x)["gradient_input"]
    np.testing.assert_allclose(found, theirs.abs().mean(0).detach(), rtol=1e-5)
    assert min(found) > 1e-4


@pytest.mark.parametrize("net", NETWORKS, ids=["mlp", "attention"])
def test_integrated_gradients_are_those_of_captum_and_complete(net: PPONetwork) -> None:
    x = states()
    action = net(x).argmax(-1)
    ours = interpret.integrated_gradients(net, x, points=256)
    theirs = IntegratedGradients(log_prob(net)).attribute(
        x, target=action, method="riemann_middle", n_steps=256
    )
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
    score = log_prob(net)
    gained = (score(x) - score(torch.zeros_like(x))).gather(1, action[:, None]).squeeze(1)
    torch.testing.assert_close(ours.sum(1), gained, rtol=0, atol=0.02)
    assert gained.abs().mean() > 0.2  # ten times the tolerance
    plain = interpret.gradient_input(net, x).sum(1)
    assert (plain - gained).abs().max() > 0.1  # which gradient × input does not add up to


def test_gradients_of_a_continuous_policy_are_those_of_its_mean() -> None:
    """At the mean the density is flat: its gradient would call every feature unimportant."""
    net, x = network(MLP, log_std=True), states()
    theirs = InputXGradient(lambda x: net(x)[:, :3].sum(1)).attribute(x.clone().requires_grad_())
    torch.testing.assert_close(interpret.gradient_input(net, x), theirs)
    assert set(interpret.feature_importance(net, x)) == PLAIN


def test_measuring_leaves_no_trace() -> None:
    net, x = network(ATTENTION), states()
    before, generator = x.clone(), torch.get_rng_state()
    interpret.feature_importance(net, x)
    assert torch.equal(x, before) and not x.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


# Shuffling ----------------------------------------------------------------------------------------


def linear_policy(weight: list[list[float]]) -> PPONetwork:
    """Return a policy whose logits are ``weight`` (A, D) times the observation."""
    net = PPONetwork(len(weight[0]), len(weight), PPOConfig(hidden=()), 1.0).eval()
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor(weight))
    return net


def test_every_measure_finds_the_feature_that_nothing_rests_on() -> None:
    net = linear_policy([[2.0, 1.0, 0.0], [-2.0, -1.0, 0.0]])
    found = interpret.feature_importance(net, states(512, 3))
    assert set(found) == PLAIN
    for values in found.values():
        assert values[0] > 1.1 * values[1] > 0 and values[2] == 0


def test_permutation_is_that_of_captum() -> None:
    net, x = network(ATTENTION), states(32)
    policy = Categorical(net(x).detach())

    def mean_divergence(shuffled: Tensor) -> Tensor:
        return interpret.divergence(policy, Categorical(net(shuffled))).mean(0, keepdim=True)

    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))

    def shuffle(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.bool(), values[order], values)

    with torch.no_grad():
        theirs = FeaturePermutation(mean_divergence, perm_func=shuffle).attribute(x)
    ours = interpret.permutation(net, x, shuffles=1, seed=5)
    torch.testing.assert_close(ours, -theirs[0])  # theirs is what is lost: 0 minus divergence
    assert ours.min() > 1e-3


def test_permutation_is_fixed_by_its_seed_and_steadier_with_more_shuffles() -> None:
    net, x = network(MLP), states()
    assert torch.equal(interpret.permutation(net, x, seed=3), interpret.permutation(net, x, seed=3))

    def spread(shuffles: int) -> float:
        return float(
            torch.stack([interpret.permutation(net, x, shuffles, s) for s in range(20)])
            .std(0)
            .mean()
        )

    assert 0 < spread(9) < 0.6 * spread(1)  # a third of it in expectation


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_divergence_is_that_of_torch(kind: str) -> None:
    a, b = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    ours: Any
    if kind == "categorical":
        ours = Categorical(a), Categorical(b)
        theirs: Any = [torch.distributions.Categorical(logits=x) for x in (a, b)]
    else:
        ours = DiagonalGaussian(a), DiagonalGaussian(b)
        theirs = [
            torch.distributions.Independent(torch.distributions.Normal(p.mean, p.log_std.exp()), 1)
            for p in ours
        ]
    torch.testing.assert_close(
        interpret.divergence(*ours), torch.distributions.kl_divergence(*theirs)
    )
    torch.testing.assert_close(
        interpret.divergence(ours[0], ours[0]), torch.zeros(20), rtol=0, atol=1e-6
    )


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_is_shared_among_the_features(pooling: str) -> None:
    config = AttentionPPOConfig(
        d_model=8, n_heads=2, n_layers=2, hidden=(16,), pooling=pooling, n_queries=3
    )
    net, x = network(config), states()
    found = interpret.feature_importance(net, x)
    assert set(found) == {"attention", "attention_rollout", *PLAIN}
    for name in ("attention", "attention_rollout"):
        assert sum(found[name]) == pytest.approx(1, abs=1e-5)
        assert min(found[name]) > 0 and max(found[name]) - min(found[name]) > 1e-3
    weights = net.attention(x)
    last = weights["layer_1" if pooling == "mean" else "pooling"]  # a mean has no weights to learn
    np.testing.assert_allclose(found["attention"], last.mean((0, 1, 2)).detach(), rtol=1e-5)


def test_attention_counts_only_where_features_are_tokens() -> None:
    assert set(interpret.feature_importance(network(MLP), states())) == PLAIN
    entities = network(ATTENTION, 6, tokens=Tokens(2, 2, ordered=False))
    found = interpret.feature_importance(entities, states(obs_dim=6))
    assert set(found) == {"gradient_input", "permutation"}  # zero is "absent" there
    assert len(found["permutation"]) == 6
    nothing = AttentionPPOConfig(d_model=8, n_heads=2, n_layers=0, pooling="mean")
    assert set(interpret.feature_importance(network(nothing), states())) == PLAIN


def test_rollout_by_hand() -> None:
    layer = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    pool = torch.tensor([[0.2, 0.8]])
    weights = {"layer_0": layer[None, None], "pooling": pool[None, None]}
    # Â = (A + I) / 2 = [[1, 0], [1/4, 3/4]]; [0.2, 0.8] Â = [0.4, 0.6]
    torch.testing.assert_close(
        interpret.attention_rollout(weights, "queries"), torch.tensor([[0.4, 0.6]])
    )
    # from the first token its residual counts: [0.6, 0.4] Â = [0.7, 0.3]; from the last [0.1, 0.9]
    torch.testing.assert_close(
        interpret.attention_rollout(weights, "first"), torch.tensor([[0.7, 0.3]])
    )
    torch.testing.assert_close(
        interpret.attention_rollout(weights, "last"), torch.tensor([[0.325, 0.675]])
    )
    # a plain mean: [0.5, 0.5] Â
    torch.testing.assert_close(
        interpret.attention_rollout({"layer_0": layer[None, None]}, "mean"),
        torch.tensor([[0.625, 0.375]]),
    )


def test_rollout_multiplies_the_layers_in_their_order() -> None:
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(5, 2, rows, 3, generator=rng).softmax(-1)
        for name, rows in (("layer_0", 3), ("layer_1", 3), ("pooling", 2))
    }
    for n in range(5):
        product = np.eye(3)
        for name in ("layer_0", "layer_1"):
            mean = weights[name][n].mean(0).numpy()
            product = (0.5 * mean + 0.5 * np.eye(3)) @ product
        row = weights["pooling"][n].mean((0, 1)).numpy() @ product
        ours = interpret.attention_rollout(weights, "queries")[n]
        np.testing.assert_allclose(ours, row, rtol=1e-5)


def test_attention_on_the_token_that_matters() -> None:
    weights = torch.tensor([[[[0.7, 0.3, 0.0]], [[0.5, 0.5, 0.0]]], [[[0.1, 0.2, 0.7]]] * 2])
    on, uniform = interpret.attention_on(weights, [0, 2])  # (n=2, H=2, queries=1, L=3)
    torch.testing.assert_close(on, torch.tensor([0.6, 0.7]))
    torch.testing.assert_close(uniform, torch.tensor([1 / 3, 1 / 3]))
    present = torch.tensor([[True, True, False], [True, True, True]])
    _, uniform = interpret.attention_on(weights, np.array([0, 2]), present)
    torch.testing.assert_close(uniform, torch.tensor([1 / 2, 1 / 3]))


# Comparing ----------------------------------------------------------------------------------------


def test_agreement_is_spearmans() -> None:
    table = np.random.default_rng(0).integers(0, 4, (5, 9)).astype(float)  # with ties
    importance = {str(i): row.tolist() for i, row in enumerate(table)}
    np.testing.assert_allclose(interpret.agreement(importance), stats.spearmanr(table.T).statistic)


@pytest.mark.filterwarnings("error")
def test_a_measure_that_orders_nothing_agrees_with_nothing() -> None:
    found = interpret.agreement({"a": [1, 2, 3], "b": [30, 20, 10], "same": [0.5, 0.5, 0.5]})
    np.testing.assert_allclose(found[:2, :2], [[1, -1], [-1, 1]])
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()


def test_shares_sum_to_one() -> None:
    np.testing.assert_allclose(interpret.shares([[1, 3], [0, 0]]), [[0.25, 0.75], [0.5, 0.5]])


def test_it_measures_each_replicate_of_a_learner() -> None:
    learner = PPO(4, 3, 2, [0, 1], ATTENTION)
    obs = np.random.default_rng(0).normal(2, 3, (40, 4)).astype(np.float32)
    found = [
        interpret.feature_importance(learner.actor.network(i), learner.seen_by(i, obs))
        for i in range(2)
    ]
    assert found[0] != found[1]
    again = interpret.feature_importance(learner.actor.network(1), learner.seen_by(1, obs))
    assert again == found[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpret.feature_importance(NETWORKS[0], states()[0]), r"\(n, D\).*got \(4,\)"),
        (lambda: interpret.feature_importance(NETWORKS[0], states(1)), r"n > 1, got \(1, 4\)"),
        (lambda: interpret.permutation(NETWORKS[0], states(), 0), "shuffles must be at least 1"),
        (lambda: interpret.integrated_gradients(NETWORKS[0], states(), 0), "points must be at"),
        (lambda: interpret.agreement({}), "at least one measure"),
        (lambda: interpret.attention_rollout({}, "mean"), "at least one attention"),
        (lambda: interpret.attention_on(torch.ones(2, 1, 1, 3), [0]), r"shape \(2,\), got \(1,\)"),
        (lambda: interpret.attention_on(torch.ones(2, 1, 1, 3), [0, 3]), r"in \[0, 3\), got"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_there_is_no_divergence_between_kinds() -> None:
    with pytest.raises(ValueError, match="no divergence between Categorical and DiagonalGaussian"):
        interpret.divergence(Categorical(torch.zeros(1, 2)), DiagonalGaussian(torch.zeros(1, 2)))
