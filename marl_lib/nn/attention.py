"""Attention: scaled dot products, heads, blocks, pooling, positions.

Masks say where attention may go: True is allowed. A place that is masked gets a weight of exactly
zero, and a query that may look nowhere gets zeros instead of a mean over what it must not see.
(:class:`torch.nn.MultiheadAttention` means the opposite by True.)

Letters of shapes: L queries, S keys, E width of the model, H heads; ``...`` are batch axes.

Source: A. Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from marl_lib.config import choice, require

Weights = Tensor | None


def causal_mask(length: int, device: torch.device | str | None = None) -> Tensor:
    """Return the mask under which each place sees itself and what came before, (L, L) bool."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(QKᵀ / √d) (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    query : (..., L, d)
    key : (..., S, d)
    mask : bool, broadcastable to (..., L, S), or None
        True where a query may look.

    Returns
    -------
    Tensor (..., L, S)
        Rows sum to one; a row that is masked everywhere is zero.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (..., L, S)
    if mask is None:
        return scores.softmax(-1)
    # The lowest finite number, not -inf: a row without any place to look would become NaN.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) * mask


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    need_weights: bool = False,
    fused: bool = True,
) -> tuple[Tensor, Weights]:
    """Return the values averaged with attention weights, and the weights if asked for.

    Parameters
    ----------
    query, key, value : (..., L, d), (..., S, d), (..., S, e)
    mask : bool, broadcastable to (..., L, S), or None
    dropout : float
        Share of the weights set to zero (the rest is scaled up); 0 outside training.
    need_weights : bool
        Return the weights too, as they were before dropout.
    fused : bool
        Use torch's fused kernel where weights are not asked for. It cannot be used under
        ``torch.func.vmap``, for which it has no rule.

    Returns
    -------
    out : (..., L, e)
    weights : (..., L, S) or None
    """
    if fused and not need_weights:
        mask = None if mask is None else torch.atleast_2d(mask)  # the kernel wants (L, S) at least
        return F.scaled_dot_product_attention(query, key, value, mask, dropout), None
    weights = attention_weights(query, key, mask)
    out = F.dropout(weights, dropout) @ value if dropout else weights @ value
    return out, weights if need_weights else None


def unfused(module: nn.Module) -> None:
    """Keep a module off torch's fused kernels, for which ``torch.func.vmap`` has no rule."""
    for part in module.modules():
        if hasattr(part, "fused"):
            part.fused = False  # type: ignore[assignment]


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each in its own projection (Vaswani et al. 2017, section 3.2.2).

    Parameters
    ----------
    d_model : int
        Width E of the queries and of the output.
    n_heads : int
        Must divide ``d_model``.
    d_context : int or None
        Width of keys and values; by default that of the queries.
    dropout : float
        On the weights, in training mode.
    fused : bool
        See :func:`attend`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_context: int | None = None,
        dropout: float = 0.0,
        fused: bool = True,
    ):
        super().__init__()
        require(n_heads >= 1, "n_heads", n_heads, "at least 1")
        require(d_model % n_heads == 0, "d_model", d_model, f"a multiple of n_heads, {n_heads}")
        require(0 <= dropout < 1, "dropout", dropout, "in [0, 1)")
        d_context = d_model if d_context is None else d_context
        self.n_heads, self.dropout, self.fused = n_heads, dropout, fused
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_context, d_model)
        self.value = nn.Linear(d_context, d_model)
        self.out = nn.Linear(d_model, d_model)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Weights]:
        """Let every query look at the context.

        Parameters
        ----------
        query : (..., L, E)
        context : (..., S, d_context) or None
            What is looked at; None for the queries themselves.
        mask : bool, broadcastable to (..., L, S), or None
            The same for all heads. Which keys of each row exist, (B, S), goes in as
            ``mask[:, None]``; without that axis it would be read as (L, S). A query that may look
            nowhere gets the bias of the last layer.
        need_weights : bool

        Returns
        -------
        out : (..., L, E)
        weights : (..., H, L, S), or None unless asked for
        """
        context = query if context is None else context
        if mask is not None and mask.dim() > 2:
            mask = mask.unsqueeze(-3)  # (..., 1, L, S)
        out, weights = attend(
            self._split(self.query(query)),
            self._split(self.key(context)),
            self._split(self.value(context)),
            mask,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            fused=self.fused,
        )
        return self.out(out.transpose(-3, -2).flatten(-2)), weights

    def _split(self, x: Tensor) -> Tensor:
        """Return (..., L, E) as heads, (..., H, L, E / H)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)


class AttentionBlock(nn.Module):
    """Attention and a feed-forward network, each with a residual connection and LayerNorm.

    With a context it is cross-attention, without one self-attention. A block for cross-attention
    is given ``d_context``, the same as ``d_model`` or not: with ``norm="pre"`` it then has a
    LayerNorm for the context too.

    Parameters
    ----------
    d_model, n_heads, d_context, dropout, fused
        As for :class:`MultiHeadAttention`; dropout also acts on what is added to the residual.
    d_hidden : int or None
        Width of the feed-forward network; by default 2 × ``d_model``.
    norm : {"pre", "post"}
        Normalise what goes into a sub-layer (Xiong et al. 2020) or what comes out of the sum, as
        Vaswani et al. did.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_context: int | None = None,
        d_hidden: int | None = None,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "pre",
        fused: bool = True,
    ):
        super().__init__()
        choice("norm", norm, ("pre", "post"))
        d_hidden = 2 * d_model if d_hidden is None else d_hidden
        self.pre = norm == "pre"
        self.attention = MultiHeadAttention(d_model, n_heads, d_context, dropout, fused)
        self.norm_attention = nn.LayerNorm(d_model)
        self.norm_feed = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(
            nn.Linear(d_model, d_hidden), nn.ReLU(), nn.Linear(d_hidden, d_model)
        )
        self.norm_context = nn.LayerNorm(d_context) if self.pre and d_context is not None else None
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Weights]:
        """Return x (..., L, E) after both sub-layers, and the weights (..., H, L, S) or None."""
        if self.norm_context is not None and context is not None:
            context = self.norm_context(context)
        query = self.norm_attention(x) if self.pre else x
        out, weights = self.attention(query, context, mask, need_weights)
        x = x + self.drop(out)
        if self.pre:
            return x + self.drop(self.feed(self.norm_feed(x))), weights
        x = self.norm_attention(x)
        return self.norm_feed(x + self.drop(self.feed(x))), weights


class AttentionPooling(nn.Module):
    """One vector from a sequence of any length, by a learned score for each place and head.

    Head h scores place s with vₕᵀ tanh(W xₛ) and averages its share of the values; this is the
    additive attention of Bahdanau et al. (2015) with a learned question in place of a decoder.

    Parameters
    ----------
    d_model, n_heads : int
        ``n_heads`` must divide ``d_model``.
    """

    def __init__(self, d_model: int, n_heads: int = 1):
        super().__init__()
        require(n_heads >= 1, "n_heads", n_heads, "at least 1")
        require(d_model % n_heads == 0, "d_model", d_model, f"a multiple of n_heads, {n_heads}")
        self.n_heads = n_heads
        self.hidden = nn.Linear(d_model, d_model)
        self.score = nn.Linear(d_model, n_heads, bias=False)
        self.value = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Weights]:
        """Pool x (..., S, E) to (..., E); weights are (..., H, S).

        ``mask`` (..., S) is True where there is something. An empty sequence pools to zero.
        """
        scores = self.score(torch.tanh(self.hidden(x))).transpose(-2, -1)  # (..., H, S)
        if mask is not None:
            mask = mask.unsqueeze(-2)  # (..., 1, S)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights * mask
        value = self.value(x).unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)  # (..., H, S, d)
        pooled = (weights.unsqueeze(-2) @ value).squeeze(-2)  # (..., H, d)
        return pooled.flatten(-2), weights if need_weights else None


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Return the fixed encoding of places 0 to L - 1 (Vaswani et al. 2017, section 3.5), (L, E).

    Even columns hold sin(p / 10000^(2i/E)), odd ones the cosine of the same angle.
    """
    require(d_model % 2 == 0, "d_model", d_model, "even")
    rate = 10_000 ** (-torch.arange(0, d_model, 2) / d_model)  # (E / 2,)
    angle = torch.arange(length)[:, None] * rate  # (L, E / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class LearnedPositions(nn.Module):
    """Adds a learned vector to each place of a sequence of fixed length, (..., L, E).

    A sequence of another length raises ``ConfigError``.
    """

    def __init__(self, length: int, d_model: int):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(length, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + table."""
        length = len(self.table)
        require(x.shape[-2] == length, "length of the sequence", x.shape[-2], str(length))
        return x + self.table


class FeatureTokens(nn.Module):
    """Turns a vector of D numbers into D tokens: token i is xᵢ wᵢ + bᵢ.

    Attention over the features of an observation needs more than one token; each feature brings its
    own direction wᵢ and its own bias bᵢ, which tells it from the others (the tokenizer of
    Gorishniy et al., "Revisiting deep learning models for tabular data", 2021, section 3.3).
    A vector of another length raises ``ConfigError``.
    """

    def __init__(self, n_features: int, d_model: int):
        super().__init__()
        # The number must show in its token beside the bias: with weights as small as the bias, a
        # policy on CartPole learned to balance but did not see where its cart was.
        self.weight = nn.Parameter(torch.randn(n_features, d_model))
        self.bias = nn.Parameter(torch.randn(n_features, d_model) / math.sqrt(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (..., D, E) of x (..., D)."""
        size = len(self.weight)
        require(x.shape[-1] == size, "number of features", x.shape[-1], str(size))
        return x.unsqueeze(-1) * self.weight + self.bias


def load_torch_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """Copy the weights of torch's own multi-head attention into ours, to compare the two.

    ``theirs`` needs biases, as many heads, and keys and values of one width; else ``ConfigError``.
    """
    state: dict[str, Any] = theirs.state_dict()
    require("in_proj_bias" in state, "bias", False, "True")
    require("bias_k" not in state, "add_bias_kv", True, "False")
    require(theirs.num_heads == ours.n_heads, "num_heads", theirs.num_heads, str(ours.n_heads))
    require(theirs.kdim == theirs.vdim, "vdim", theirs.vdim, f"kdim, {theirs.kdim}")
    width = ours.query.out_features
    stacked = (
        state["in_proj_weight"].split(width)
        if "in_proj_weight" in state
        else [state[f"{n}_proj_weight"] for n in "qkv"]
    )
    biases = state["in_proj_bias"].split(width)
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        for layer, weight, bias in zip(layers, stacked, biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ours.out.weight.copy_(state["out_proj.weight"])
        ours.out.bias.copy_(state["out_proj.bias"])
