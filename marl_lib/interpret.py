"""What a policy rests on: four ways to ask how much each feature of an observation matters.

They ask different things. Attention says where a network looks, not what it does with what it finds
there; gradients say what a small change would do; shuffling says what the policy is without the
feature. Where they disagree, none of them is the explanation (S. Jain and B. C. Wallace, "Attention
is not explanation", 2019; S. Wiegreffe and Y. Pinter, "Attention is not not explanation", 2019), so
:func:`agreement` says how far they rank the features alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from marl_lib.config import require
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, Distribution

Importance = dict[str, list[float]]


def feature_importance(
    network: Any, obs: Tensor, *, shuffles: int = 4, points: int = 32, seed: int = 0
) -> Importance:
    """Return how much a policy rests on each of D features, by every measure that applies.

    Parameters
    ----------
    network : PPONetwork
        An actor, in evaluation mode.
    obs : (n, D)
        States the policy meets, as the network sees them (normalised). At least 2.
    shuffles, points, seed
        See :func:`permutation` and :func:`integrated_gradients`.

    Returns
    -------
    dict of measure -> D numbers, at least 0
        ``attention`` and ``attention_rollout`` where every feature is a token (shares that sum to
        one); ``gradient_input``; ``integrated_gradients`` unless the world arranges tokens, some of
        which may be absent; ``permutation`` (nats). Only shares of the same measure can be
        compared; see :func:`shares`.
    """
    require(obs.dim() == 2 and len(obs) > 1, "obs", tuple(obs.shape), "of shape (n, D), n > 1")
    encoder = network.encoder
    found = {}
    if encoder is not None and encoder.tokens is None:
        weights = _attention(network, obs)
        if weights:
            found["attention"] = _mean_weight(list(weights.values())[-1])
            found["attention_rollout"] = attention_rollout(weights, encoder.pooling).mean(0)
    found["gradient_input"] = gradient_input(network, obs).abs().mean(0)
    if encoder is None or encoder.tokens is None:
        found["integrated_gradients"] = integrated_gradients(network, obs, points).abs().mean(0)
    found["permutation"] = permutation(network, obs, shuffles, seed)
    return {name: [float(v) for v in values] for name, values in found.items()}


def shares(values: ArrayLike) -> np.ndarray:
    """Return importances divided by their sum over the last axis, ready to be compared.

    Where all are zero, the policy rests on nothing and each feature gets the same share.
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


@torch.no_grad()
def _attention(network: Any, obs: Tensor) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = network.attention(obs)
    return weights


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
        As :meth:`marl_lib.algorithms.ppo.PPONetwork.attention` gives them, layers in order.
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


def _distribution(network: Any, obs: Tensor) -> Distribution:
    kind = Categorical if network.log_std is None else DiagonalGaussian
    return kind(network(obs))


def _chosen(network: Any, obs: Tensor) -> Tensor | None:
    """Return the likeliest action of each state (n,), or None where actions are continuous."""
    with torch.no_grad():
        return None if network.log_std is not None else _distribution(network, obs).mode()


def _score(network: Any, obs: Tensor, action: Tensor | None) -> Tensor:
    """Return what is explained, (n,): log π(a) of the chosen action.

    At the mean of a continuous action its density is flat, whatever the mean rests on; there it is
    the sum of the means.
    """
    policy = _distribution(network, obs)
    return policy.mode().sum(-1) if action is None else policy.log_prob(action)


def _gradient(network: Any, obs: Tensor, action: Tensor | None) -> Tensor:
    x = obs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_score(network, x, action).sum(), x)
    return gradient


def gradient_input(network: Any, obs: Tensor) -> Tensor:
    """Return x ⊙ ∂ log π(a*|x) / ∂x at the likeliest action a*, (n, D).

    To first order, how much of the log-probability is owed to each feature's not being zero, which
    is its mean where observations are normalised (A. Shrikumar et al., "Not just a black box",
    2016).
    """
    return obs * _gradient(network, obs, _chosen(network, obs))


def integrated_gradients(network: Any, obs: Tensor, points: int = 32) -> Tensor:
    """Return gradient × input with the gradient averaged along the line from zero to x, (n, D).

    The parts of a state sum to log π(a*|x) - log π(a*|0), up to the error of the mean over
    ``points`` midpoints (M. Sundararajan et al., "Axiomatic attribution for deep networks", 2017,
    equation 1); gradient × input misses what has saturated.
    """
    require(points >= 1, "points", points, "at least 1")
    action, total = _chosen(network, obs), torch.zeros_like(obs)
    for i in range(points):
        total += _gradient(network, obs * ((i + 0.5) / points), action)
    return obs * total / points


# Shuffling ----------------------------------------------------------------------------------------


@torch.no_grad()
def permutation(network: Any, obs: Tensor, shuffles: int = 4, seed: int = 0) -> Tensor:
    """Return the divergence of the policy from itself with one feature shuffled, in nats, (D,).

    The mean over states x of KL(π(x) ‖ π(x̃)), where x̃ has the feature of another of the states
    (the idea of L. Breiman, "Random forests", 2001, section 10, with the divergence in place of the
    loss of accuracy). Where features depend on each other, some x̃ cannot occur in the world.

    Parameters
    ----------
    shuffles : int
        Averaged over.
    seed : int
        Of the shuffles; the same for every feature.
    """
    require(shuffles >= 1, "shuffles", shuffles, "at least 1")
    policy, found = _distribution(network, obs), torch.zeros(obs.shape[1], device=obs.device)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(shuffles):
        order = torch.randperm(len(obs), generator=generator).to(obs.device)
        for feature in range(obs.shape[1]):
            changed = obs.clone()
            changed[:, feature] = obs[order, feature]
            found[feature] += divergence(policy, _distribution(network, changed)).mean()
    return found / shuffles


def divergence(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(p ‖ q) in nats, one for each state, (n,)."""
    if isinstance(p, Categorical) and isinstance(q, Categorical):
        return (p.probs * (p.log_p - q.log_p)).sum(-1)
    if isinstance(p, DiagonalGaussian) and isinstance(q, DiagonalGaussian):
        variance, distance = (2 * (p.log_std - q.log_std)).exp(), p.mean - q.mean
        scaled = distance.square() * (-2 * q.log_std).exp()
        return 0.5 * (variance + scaled - 1 - 2 * (p.log_std - q.log_std)).sum(-1)
    raise ValueError(f"no divergence between {type(p).__name__} and {type(q).__name__}")
