"""What decisions rest on: four ways to ask how much each feature of an observation matters.

They ask different things. Attention says where a network looks, not what it does with what it finds
there; gradients say what a small change would do; shuffling says what the decision is without the
feature. Where they disagree, none of them is the explanation (S. Jain and B. C. Wallace, "Attention
is not explanation", 2019; S. Wiegreffe and Y. Pinter, "Attention is not not explanation", 2019), so
:func:`agreement` says how far they rank the features alike.

What is asked is an :class:`Agent`: a network, whatever its encoder, and what its outputs stand for,
a policy or action values. :func:`agent_of` makes one of any learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from marl_lib.config import require
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, SquashedGaussian
from marl_lib.nn.encoders import Attention, Pairs
from marl_lib.nn.team import Team

Importance = dict[str, list[float]]


class ActionValues:
    """What each of A actions is worth, (..., A), to an agent that takes the best."""

    def __init__(self, output: Tensor):
        self.q = output

    def mode(self) -> Tensor:
        """Return the best actions (...)."""
        return self.q.argmax(-1)

    def of(self, action: Tensor) -> Tensor:
        """Return the values of actions (...)."""
        return self.q.gather(-1, action.unsqueeze(-1)).squeeze(-1)


Answer = Categorical | DiagonalGaussian | SquashedGaussian | ActionValues


@dataclass(frozen=True)
class Agent:
    """One agent of a team, to be asked about observations (n, D), with an empty memory.

    Parameters
    ----------
    network : Team
        In evaluation mode. Of a team, every other agent is shown the same observation.
    says : callable
        What an output of the network stands for: ``Categorical``, :class:`ActionValues`, ...
    number : int
        Which agent it is.
    """

    network: Team
    says: Callable[[Tensor], Answer]
    number: int = 0

    def __post_init__(self) -> None:
        n = self.network.n_agents
        require(0 <= self.number < n, "agent", self.number, f"in [0, {n})")

    def __call__(self, obs: Tensor) -> Answer:
        """Return its policy or its action values in n states."""
        return self.says(self.network(self._shown(obs))[0][:, self.number])

    @property
    def reader(self) -> Attention | Pairs | None:
        """What reads the observation in front of the hidden layers, if anything does."""
        encoder: Any = self.network.network.encoder
        reader: Attention | Pairs | None = encoder.reader
        return reader

    @torch.no_grad()
    def attention(self, obs: Tensor) -> dict[str, Tensor]:
        """Return the weights of every attention by name, (n, H, queries, keys) each.

        Empty if nothing attends. Agents with a network each do not record theirs.
        """
        if not isinstance(self.reader, Attention):
            return {}
        weights = self.network.attention(self._shown(obs))
        return {name: w[:, self.number] for name, w in weights.items()}

    def _shown(self, obs: Tensor) -> Tensor:
        require(obs.dim() == 2, "obs", tuple(obs.shape), "of shape (n, D)")
        return obs.unsqueeze(1).expand(-1, self.network.n_agents, -1)  # (n, N, D)


def agent_of(learner: Any, index: int = 0, number: int = 0) -> Agent:
    """Return an agent of one replicate of a learner; illegal actions are not masked.

    Parameters
    ----------
    learner : Learner
        What its networks put out is read by its method ``pi``, if it has one; otherwise outputs of
        an actor are logits, or actions before tanh, and others are action values.
    index : int
        Of the replicate.
    number : int
        Of the agent in the team.
    """
    if hasattr(learner, "pi"):
        says = learner.pi
    elif learner.acting != "actor":
        says = ActionValues
    else:
        says = Categorical if learner.spec.bounds is None else _sure
    return Agent(learner.network(index), says, number)


def _sure(output: Tensor) -> DiagonalGaussian:
    """Return a policy without chance as a normal one, to have a divergence: half a squared gap."""
    action = output.tanh()
    return DiagonalGaussian(torch.cat([action, torch.zeros_like(action)], dim=-1))


def feature_importance(
    agent: Agent, obs: Tensor, *, shuffles: int = 4, points: int = 32, seed: int = 0
) -> Importance:
    """Return how much decisions rest on each of D features, by every measure that applies.

    Parameters
    ----------
    agent : Agent
    obs : (n, D)
        States it meets, as its network sees them (``learner.seen_by``). At least 2.
    shuffles, points, seed
        See :func:`permutation` and :func:`integrated_gradients`.

    Returns
    -------
    dict of measure -> D numbers, at least 0
        ``attention`` and ``attention_rollout`` where every feature is a token (shares that sum to
        one); ``gradient_input``; ``integrated_gradients`` unless the network reads tokens, some of
        which may be absent; ``permutation``. Only shares of the same measure can be compared; see
        :func:`shares`.
    """
    require(obs.dim() == 2 and len(obs) > 1, "obs", tuple(obs.shape), "of shape (n, D), n > 1")
    reader, found = agent.reader, {}
    features = reader is None or reader.tokens is None  # and no tokens that may be absent
    if isinstance(reader, Attention) and features and agent.network.copies == 1:
        weights = agent.attention(obs)
        if weights:
            found["attention"] = _mean_weight(list(weights.values())[-1])
            found["attention_rollout"] = attention_rollout(weights, reader.pooling).mean(0)
    found["gradient_input"] = gradient_input(agent, obs).abs().mean(0)
    if features:
        found["integrated_gradients"] = integrated_gradients(agent, obs, points).abs().mean(0)
    found["permutation"] = permutation(agent, obs, shuffles, seed)
    return {name: [float(v) for v in values] for name, values in found.items()}


def shares(values: ArrayLike) -> np.ndarray:
    """Return importances divided by their sum over the last axis, ready to be compared.

    Where all are zero, the decision rests on nothing and each feature gets the same share.
    """
    x = np.asarray(values, float)
    total = x.sum(-1, keepdims=True)
    return np.where(total > 0, x / np.where(total > 0, total, 1), 1 / x.shape[-1])


def agreement(importance: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Return Spearman's rank correlation between each two measures, (measures, measures).

    1 means the same order of the features, -1 the opposite. A measure that gives all features the
    same orders nothing: its row is NaN.
    """
    from scipy.stats import rankdata  # takes 0.4 s to load

    require(len(importance) > 0, "importance", dict(importance), "at least one measure")
    ranks = np.array([rankdata(values) for values in importance.values()])  # (measures, D)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(ranks))


# Attention ----------------------------------------------------------------------------------------


def _mean_weight(weights: Tensor) -> Tensor:
    """Return the mean weight each token gets, (n, H, queries, L) -> (L,)."""
    return weights.mean((0, 1, 2))


def attention_rollout(weights: Mapping[str, Tensor], pooling: str) -> Tensor:
    """Return how far each token reaches the pooled vector through all layers.

    A token of a later layer is already a mixture of all tokens of the first. With the residual
    connection, half of what a layer puts out is what it took in: Â = (A + I) / 2, A the mean over
    heads; the layers multiply (S. Abnar and W. Zuidema, "Quantifying attention flow in
    transformers", 2020, section 3). The mixing by feed-forward networks and by the size of the
    values is left out of account.

    Parameters
    ----------
    weights : dict of (n, H, L, L), and ``pooling`` (n, H, queries, L) where it has weights
        As :meth:`Agent.attention` gives them, layers in order.
    pooling : str
        How the network pools; from a token of its own ("first", "last") the residual counts too.

    Returns
    -------
    (n, L)
        Shares that sum to one.
    """
    require(len(weights) > 0, "weights", dict(weights), "of at least one attention")
    n, _, _, length = next(iter(weights.values())).shape
    one = torch.eye(length, device=next(iter(weights.values())).device)
    row = torch.full((n, 1, length), 1 / length, device=one.device)  # of a plain mean
    if "pooling" in weights:
        row = weights["pooling"].mean(1)  # (n, queries, L)
    if pooling in ("first", "last"):
        row = (row + one[0 if pooling == "first" else -1]) / 2
    for name in reversed([name for name in weights if name != "pooling"]):
        row = row @ (weights[name].mean(1) + one) / 2
    return row.mean(1)


def attention_on(
    weights: Tensor, index: ArrayLike | Tensor, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return how much weight falls on one token of each state, beside the share of each by chance.

    Parameters
    ----------
    weights : (n, H, queries, L)
        Of one attention.
    index : (n,) int
        The token that matters in truth.
    present : (n, L) bool or None
        Which tokens there are; None for all.

    Returns
    -------
    on, uniform : (n,)
        The weight, mean over heads and queries; one over the number of tokens.
    """
    n, _, _, length = weights.shape
    at = torch.as_tensor(index, device=weights.device)
    require(at.shape == (n,), "index", tuple(at.shape), f"of shape ({n},)")
    inside = bool(((at >= 0) & (at < length)).all())
    require(inside, "index", at.tolist(), f"in [0, {length})")
    on = weights.mean((1, 2)).gather(1, at[:, None].long()).squeeze(1)
    count = torch.full_like(on, length) if present is None else present.sum(1).to(on)
    return on, 1 / count


# Gradients ----------------------------------------------------------------------------------------


def _score(answer: Answer, action: Tensor) -> Tensor:
    """Return what is explained, (n,): log π(a) or Q(a) of the chosen action.

    At the mean of a continuous action its density is flat, whatever the mean rests on; there it is
    the sum of the means.
    """
    if isinstance(answer, Categorical):
        return answer.log_prob(action)
    return answer.of(action) if isinstance(answer, ActionValues) else answer.mode().sum(-1)


def _gradient(agent: Agent, obs: Tensor, action: Tensor) -> Tensor:
    x = obs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_score(agent(x), action).sum(), x)
    return gradient


@torch.no_grad()
def _chosen(agent: Agent, obs: Tensor) -> Tensor:
    return agent(obs).mode()


def gradient_input(agent: Agent, obs: Tensor) -> Tensor:
    """Return x ⊙ ∂ log π(a*|x) / ∂x at the likeliest action a*, or x ⊙ ∂ Q(x, a*) / ∂x, (n, D).

    To first order, how much of the score is owed to each feature's not being zero, which is its
    mean where observations are normalised (A. Shrikumar et al., "Not just a black box", 2016).
    """
    return obs * _gradient(agent, obs, _chosen(agent, obs))


def integrated_gradients(agent: Agent, obs: Tensor, points: int = 32) -> Tensor:
    """Return gradient × input with the gradient averaged along the line from zero to x, (n, D).

    The parts of a state sum to the score of the chosen action in x less that in zero, such as
    log π(a*|x) - log π(a*|0), up to the error of the mean over ``points`` midpoints
    (M. Sundararajan et al., "Axiomatic attribution for deep networks", 2017, equation 1);
    gradient × input misses what has saturated.
    """
    require(points >= 1, "points", points, "at least 1")
    action, total = _chosen(agent, obs), torch.zeros_like(obs)
    for i in range(points):
        total += _gradient(agent, obs * ((i + 0.5) / points), action)
    return obs * total / points


# Shuffling ----------------------------------------------------------------------------------------


@torch.no_grad()
def permutation(agent: Agent, obs: Tensor, shuffles: int = 4, seed: int = 0) -> Tensor:
    """Return how far decisions move with one feature shuffled, (D,), see :func:`divergence`.

    The mean over states x of KL(π(x) ‖ π(x̃)), in nats, or of the value that is lost by doing in x
    what is best in x̃, where x̃ has the feature of another of the states (the idea of L. Breiman,
    "Random forests", 2001, section 10, with these in place of the loss of accuracy). Where features
    depend on each other, some x̃ cannot occur in the world.

    Parameters
    ----------
    shuffles : int
        Averaged over.
    seed : int
        Of the shuffles; the same for every feature.
    """
    require(shuffles >= 1, "shuffles", shuffles, "at least 1")
    answer, found = agent(obs), torch.zeros(obs.shape[1], device=obs.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(shuffles):
        order = torch.randperm(len(obs), generator=generator).to(obs.device)
        for feature in range(obs.shape[1]):
            changed = obs.clone()
            changed[:, feature] = obs[order, feature]
            found[feature] += divergence(answer, agent(changed)).mean()
    return found / shuffles


def divergence(p: Answer, q: Answer) -> Tensor:
    """Return KL(p ‖ q) in nats, or what p's values lose by q's choice, one for each state, (n,)."""
    if isinstance(p, Categorical) and isinstance(q, Categorical):
        return (p.probs * (p.log_p - q.log_p)).sum(-1)
    if isinstance(p, ActionValues) and isinstance(q, ActionValues):
        return p.q.amax(-1) - p.of(q.mode())
    # Squashing both alike leaves their divergence what it was.
    for kind in (DiagonalGaussian, SquashedGaussian):
        if isinstance(p, kind) and isinstance(q, kind):
            variance, distance = (2 * (p.log_std - q.log_std)).exp(), p.mean - q.mean
            scaled = distance.square() * (-2 * q.log_std).exp()
            return 0.5 * (variance + scaled - 1 - 2 * (p.log_std - q.log_std)).sum(-1)
    raise ValueError(f"no divergence between {type(p).__name__} and {type(q).__name__}")
