"""What decisions rest on, against captum, scipy, torch and networks whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeaturePermutation, InputXGradient, IntegratedGradients
from scipy import stats
from torch import Tensor, nn

from marl_lib import interpret
from marl_lib.algorithms.dqn import DQN, DQNConfig
from marl_lib.algorithms.maddpg import MADDPG, MADDPGConfig
from marl_lib.algorithms.ppo import PPO, AttentionPPOConfig, PPOConfig
from marl_lib.algorithms.pqn import PQN, PQNConfig
from marl_lib.algorithms.qmix import QMIX, WQMIX, QMIXConfig, WQMIXConfig
from marl_lib.algorithms.sac import SAC, SACConfig
from marl_lib.config import ConfigError
from marl_lib.interpret import ActionValues, Agent
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, SquashedGaussian
from marl_lib.nn.encoders import (
    AttentionEncoder,
    Encoder,
    GRUEncoder,
    MLPEncoder,
    PairsEncoder,
)
from marl_lib.nn.layers import Layers
from marl_lib.nn.team import Team
from marl_lib.spec import Spec, Tokens

PLAIN = {"gradient_input", "integrated_gradients", "permutation"}
BOUNDS = np.full(2, -2.0), np.full(2, 3.0)

MLP = MLPEncoder(hidden=(16,))
ATTENTION = AttentionEncoder(d_model=8, n_heads=2, n_layers=2, hidden=(16,))
POOLINGS = ("queries", "first", "last", "attention", "mean")


def squashed(output: Tensor) -> SquashedGaussian:
    return SquashedGaussian(output, *(torch.tensor(x, dtype=torch.float32) for x in BOUNDS))


def agent(
    encoder: Encoder, says: Any = Categorical, obs_dim: int = 4, seed: int = 0, **options: Any
) -> Agent:
    """Return one whose four outputs are far from uniform."""
    torch.manual_seed(seed)

    def head(size: int) -> nn.Module:
        made = nn.Linear(size, 4)
        nn.init.orthogonal_(made.weight, 2.0)
        return made

    team = Team(encoder, Layers("tanh", init="orthogonal"), obs_dim, head, **options)
    return Agent(team.eval(), says)


def states(n: int = 64, obs_dim: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, obs_dim, generator=torch.Generator().manual_seed(seed))


def output(asked: Agent) -> Any:
    return lambda x: asked.network(x.unsqueeze(1))[0].squeeze(1)


def score(asked: Agent) -> Any:
    """Return what captum is to explain: log-probabilities or values of all actions, (n, 4)."""
    out = output(asked)
    return (lambda x: out(x).log_softmax(-1)) if asked.says is Categorical else out


DECISIONS = {
    "policy, mlp": agent(MLP),
    "policy, attention": agent(ATTENTION),
    "policy, gru": agent(GRUEncoder(hidden=(16,))),
    "values, mlp": agent(MLP, ActionValues),
    "values, attention": agent(ATTENTION, ActionValues),
}
every_decision = pytest.mark.parametrize("asked", DECISIONS.values(), ids=DECISIONS.keys())


# Gradients ----------------------------------------------------------------------------------------


@every_decision
def test_gradient_times_input_is_that_of_captum(asked: Agent) -> None:
    x = states()
    theirs = InputXGradient(score(asked)).attribute(
        x.clone().requires_grad_(), target=output(asked)(x).argmax(-1)
    )
    torch.testing.assert_close(interpret.gradient_input(asked, x), theirs)
    found = interpret.feature_importance(asked, x)["gradient_input"]
    np.testing.assert_allclose(found, theirs.abs().mean(0).detach(), rtol=1e-5)
    assert min(found) > 1e-4


@every_decision
def test_integrated_gradients_are_those_of_captum_and_complete(asked: Agent) -> None:
    x, of = states(), score(asked)
    action = of(x).argmax(-1)
    ours = interpret.integrated_gradients(asked, x, points=256)
    theirs = IntegratedGradients(of).attribute(
        x, target=action, method="riemann_middle", n_steps=256
    )
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
    gained = (of(x) - of(torch.zeros_like(x))).gather(1, action[:, None]).squeeze(1)
    torch.testing.assert_close(ours.sum(1), gained, rtol=0, atol=0.02)
    assert gained.abs().mean() > 0.2  # ten times the tolerance
    plain = interpret.gradient_input(asked, x).sum(1)
    assert (plain - gained).abs().max() > 0.1  # which gradient × input does not add up to


@pytest.mark.parametrize("says", [DiagonalGaussian, squashed])
def test_gradients_of_a_continuous_policy_are_those_of_its_mean(says: Any) -> None:
    """At the mean the density is flat: its gradient would call every feature unimportant."""
    asked, x = agent(MLP, says), states()
    out = output(asked)
    mean = (lambda x: out(x)[:, :2]) if says is DiagonalGaussian else squash(out)
    theirs = InputXGradient(lambda x: mean(x).sum(1)).attribute(x.clone().requires_grad_())
    torch.testing.assert_close(interpret.gradient_input(asked, x), theirs)
    assert set(interpret.feature_importance(asked, x)) == PLAIN


def squash(out: Any) -> Any:
    return lambda x: 0.5 + 2.5 * out(x)[:, :2].tanh()  # between -2 and 3


def test_measuring_leaves_no_trace() -> None:
    asked, x = DECISIONS["policy, attention"], states()
    before, generator = x.clone(), torch.get_rng_state()
    interpret.feature_importance(asked, x)
    assert torch.equal(x, before) and not x.requires_grad
    assert all(p.grad is None for p in asked.network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


# Shuffling ----------------------------------------------------------------------------------------


def linear(weight: list[list[float]], says: Any) -> Agent:
    """Return an agent whose outputs are ``weight`` (A, D) times the observation."""
    made = agent(MLPEncoder(hidden=()), says, obs_dim=len(weight[0]))
    head = made.network.network.head = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
    return made


@pytest.mark.parametrize("says", [Categorical, ActionValues])
def test_every_measure_finds_the_feature_that_nothing_rests_on(says: Any) -> None:
    asked = linear([[2.0, 1.0, 0.0], [-2.0, -1.0, 0.0]], says)
    found = interpret.feature_importance(asked, states(512, 3))
    assert set(found) == PLAIN
    for values in found.values():
        assert values[0] > 1.1 * values[1] > 0 and values[2] == 0


def test_what_shuffling_costs_by_hand() -> None:
    """Action 1 is worth the first feature, action 0 nothing; the second is worth the same to both.

    With the first features of two states exchanged, both take the wrong action: the one gets 0 for
    3, the other -2 for 0.
    """
    asked = linear([[0.0, 1.0], [1.0, 1.0]], ActionValues)
    x = torch.tensor([[3.0, 10.0], [-2.0, 20.0]])
    seeds = range(20)
    found = torch.stack([interpret.permutation(asked, x, 1, seed) for seed in seeds])
    assert set(found[:, 0].tolist()) == {0.0, 2.5} and (found[:, 1] == 0).all()


@pytest.mark.parametrize("kind", ["policy, attention", "values, attention"])
def test_permutation_is_that_of_captum(kind: str) -> None:
    asked, x = DECISIONS[kind], states(32)
    with torch.no_grad():
        answer = asked(x)

    def mean_divergence(shuffled: Tensor) -> Tensor:
        return interpret.divergence(answer, asked(shuffled)).mean(0, keepdim=True)

    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))

    def shuffle(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.bool(), values[order], values)

    with torch.no_grad():
        theirs = FeaturePermutation(mean_divergence, perm_func=shuffle).attribute(x)
    ours = interpret.permutation(asked, x, shuffles=1, seed=5)
    torch.testing.assert_close(ours, -theirs[0])  # theirs is what is lost: 0 minus divergence
    assert ours.min() > 1e-3


def test_permutation_is_fixed_by_its_seed_and_steadier_with_more_shuffles() -> None:
    asked, x = DECISIONS["policy, mlp"], states()
    measure = interpret.permutation
    assert torch.equal(measure(asked, x, seed=3), measure(asked, x, seed=3))

    def spread(shuffles: int) -> float:
        found = torch.stack([measure(asked, x, shuffles, s) for s in range(20)])
        return float(found.std(0).mean())

    assert 0 < spread(9) < 0.6 * spread(1)  # a third of it in expectation


@pytest.mark.parametrize("kind", [Categorical, DiagonalGaussian, squashed])
def test_divergence_is_that_of_torch(kind: Any) -> None:
    ours: Any = [kind(x) for x in torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))]
    if kind is Categorical:
        theirs: Any = [torch.distributions.Categorical(logits=p.log_p) for p in ours]
    else:
        normal = [torch.distributions.Normal(p.mean, p.log_std.exp()) for p in ours]
        theirs = [torch.distributions.Independent(p, 1) for p in normal]
    torch.testing.assert_close(
        interpret.divergence(*ours), torch.distributions.kl_divergence(*theirs)
    )
    torch.testing.assert_close(
        interpret.divergence(ours[0], ours[0]), torch.zeros(20), rtol=0, atol=1e-6
    )


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", [Categorical, ActionValues])
@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_attention_is_shared_among_the_features(pooling: Any, memory: Any, says: Any) -> None:
    encoder = AttentionEncoder(
        (16,), d_model=8, n_heads=2, n_layers=2, pooling=pooling, n_queries=3, memory=memory
    )
    asked, x = agent(encoder, says), states()
    found = interpret.feature_importance(asked, x)
    assert set(found) == {"attention", "attention_rollout", *PLAIN}
    for name in ("attention", "attention_rollout"):
        assert sum(found[name]) == pytest.approx(1, abs=1e-5)
        assert min(found[name]) > 0 and max(found[name]) - min(found[name]) > 1e-3
    weights = asked.attention(x)
    last = weights["layer_1" if pooling == "mean" else "pooling"]  # a mean has no weights to learn
    assert last.shape[:2] == (64, 2) and last.shape[-1] == 4
    np.testing.assert_allclose(found["attention"], last.mean((0, 1, 2)), rtol=1e-5)


def test_attention_counts_only_where_features_are_tokens() -> None:
    assert set(interpret.feature_importance(agent(MLP), states())) == PLAIN
    for encoder in (MLP, PairsEncoder()):
        assert agent(encoder).attention(states()) == {}
    assert set(interpret.feature_importance(agent(PairsEncoder()), states())) == PLAIN
    entities = agent(ATTENTION, obs_dim=6, tokens=Tokens(2, 2, ordered=False))
    found = interpret.feature_importance(entities, states(obs_dim=6))
    assert set(found) == {"gradient_input", "permutation"}  # zero is "absent" there
    assert len(found["permutation"]) == 6
    assert entities.attention(states(obs_dim=6))["pooling"].shape == (64, 2, 1, 2)
    nothing = AttentionEncoder(d_model=8, n_heads=2, n_layers=0, pooling="mean")
    assert set(interpret.feature_importance(agent(nothing), states())) == PLAIN


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


# Learners -----------------------------------------------------------------------------------------


def test_it_measures_each_replicate_of_a_learner_in_what_it_sees() -> None:
    learner = PPO(Spec(4, 3), 2, [0, 1], AttentionPPOConfig(encoder=ATTENTION))
    obs = np.random.default_rng(0).normal(2, 3, (40, 4)).astype(np.float32)

    def measure(i: int) -> dict[str, list[float]]:
        return interpret.feature_importance(interpret.agent_of(learner, i), learner.seen_by(i, obs))

    found = [measure(i) for i in range(2)]
    assert found[0] != found[1] and measure(1) == found[1]


DISCRETE, CONTINUOUS = Spec(4, 3, n_agents=2), Spec(4, 2, n_agents=2, bounds=BOUNDS)
LEARNERS: dict[str, tuple[Any, Any, Spec, Any]] = {
    "PPO": (PPO, PPOConfig, DISCRETE, Categorical),
    "PPO, continuous": (PPO, PPOConfig, CONTINUOUS, DiagonalGaussian),
    "DQN": (DQN, DQNConfig, DISCRETE, ActionValues),
    "PQN": (PQN, PQNConfig, DISCRETE, ActionValues),
    "QMIX": (QMIX, QMIXConfig, DISCRETE, ActionValues),
    "WQMIX": (WQMIX, WQMIXConfig, DISCRETE, ActionValues),
    "MADDPG": (MADDPG, MADDPGConfig, DISCRETE, Categorical),
    "MADDPG, continuous": (MADDPG, MADDPGConfig, CONTINUOUS, DiagonalGaussian),
    "SAC": (SAC, SACConfig, CONTINUOUS, SquashedGaussian),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_can_be_asked(name: str, shared: bool) -> None:
    """What an agent answers is what the learner's own networks say of the whole team."""
    kind, config, spec, answers = LEARNERS[name]
    learner = kind(spec, 2, [0, 1], config(encoder=ATTENTION, share_parameters=shared))
    x = torch.stack([states(8)] * 2, dim=1)  # (n, N, D)
    said = learner.outputs(torch.stack([x, x]))[1]  # (n, N, out)
    for number in range(2):
        asked = interpret.agent_of(learner, 1, number)
        answer = asked(x[:, 0])
        assert isinstance(answer, answers)
        expected = said[:, number]
        if isinstance(answer, ActionValues):
            torch.testing.assert_close(answer.q, expected)
        elif isinstance(answer, Categorical):
            torch.testing.assert_close(answer.log_p, expected.log_softmax(-1))
        elif kind is MADDPG:
            torch.testing.assert_close(answer.mode(), expected.tanh())
        else:
            torch.testing.assert_close(answer.mode(), learner.pi(expected).mode())
        found = interpret.feature_importance(asked, x[:, 0], points=2)
        assert set(found) - PLAIN == ({"attention", "attention_rollout"} if shared else set())
        assert (
            found["gradient_input"]
            != interpret.feature_importance(
                interpret.agent_of(learner, 1, 1 - number), x[:, 0], points=2
            )["gradient_input"]
        )


def test_an_action_without_chance_diverges_by_half_its_squared_distance() -> None:
    learner = MADDPG(CONTINUOUS, 2, [0])
    asked, x = interpret.agent_of(learner), states(8)
    with torch.no_grad():
        ours, theirs = asked(x), asked(-x)
        expected = 0.5 * (ours.mode() - theirs.mode()).square().sum(-1)
        torch.testing.assert_close(interpret.divergence(ours, theirs), expected)


ASKED = DECISIONS["policy, mlp"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpret.feature_importance(ASKED, states()[0]), r"\(n, D\).*got \(4,\)"),
        (lambda: interpret.feature_importance(ASKED, states(1)), r"n > 1, got \(1, 4\)"),
        (lambda: ASKED(states()[None]), r"shape \(n, D\), got \(1, 64, 4\)"),
        (lambda: Agent(ASKED.network, Categorical, 1), r"agent must be in \[0, 1\), got 1"),
        (lambda: interpret.permutation(ASKED, states(), 0), "shuffles must be at least 1"),
        (lambda: interpret.integrated_gradients(ASKED, states(), 0), "points must be at"),
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
