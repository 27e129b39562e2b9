"""Encoders: from what an agent observes, and what it remembers, to features.

An encoder is a value of the configuration. Its module has one face, whatever it is made of:

    features, memory = encoder(obs, memory)           each row from the memory given for it
    features, memory = encoder(obs, memory, first)    along sequences, from the memory before them

With D features in, F out, N agents, memory of S numbers (0 for none), and T steps:
``obs (..., N, D)``, ``memory (..., N, S)``, ``features (..., N, F)``, or along sequences
``obs (..., T, N, D)``, ``first (..., T)`` where episodes begin, ``memory (..., N, S)`` before the
first step, and ``features (..., T, N, F)``. The memory that comes back is the one after each step.

The axis of agents is there for encoders that see the other agents; those here do not, and treat it
as part of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from marl_lib.config import Count, Natural, Variant, Widths, require
from marl_lib.nn.attention import (
    AttentionBlock,
    AttentionPooling,
    FeatureTokens,
    LearnedPositions,
    causal_mask,
)
from marl_lib.nn.layers import Activation, Layers, mlp
from marl_lib.nn.recurrent import CELLS, GRUCell, LSTMCell, run_cell
from marl_lib.spec import Tokens


@dataclass(frozen=True)
class Encoder(Variant):
    """How an observation becomes features: what reads it, hidden layers, memory.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the hidden layers.
    activation : {"relu", "tanh", "fast_tanh"} or None
        Of the hidden layers; None for what the algorithm's paper has.
    layer_norm : bool or None
        LayerNorm before every activation; None for what the algorithm's paper has.
    memory : {"none", "gru", "lstm"}
        A recurrent cell after the hidden layers.
    memory_size : int
        Length of its output.
    """

    hidden: Widths = (64, 64)
    activation: Activation | None = None
    layer_norm: bool | None = None
    memory: Literal["none", "gru", "lstm"] = "none"
    memory_size: Count = 64

    @property
    def remembers(self) -> bool:
        """Whether there is a memory."""
        return self.memory != "none"

    def build(
        self, size_in: int, layers: Layers, tokens: Tokens | None = None, extra: int = 0
    ) -> EncoderNetwork:
        """Return the module, freshly initialised.

        Parameters
        ----------
        size_in : int
            Length D of the input.
        layers : Layers
            What the algorithm's hidden layers are like, unless the configuration says otherwise.
        tokens : Tokens or None
            How the input is made of tokens, if it is.
        extra : int
            So many numbers at the input's end are no part of the observation (an agent's id).
        """
        if self.activation is not None:
            layers = replace(layers, activation=self.activation)
        if self.layer_norm is not None:
            layers = replace(layers, layer_norm=self.layer_norm)
        return EncoderNetwork(self, self.reader(size_in - extra, tokens), size_in, extra, layers)

    def reader(self, size_in: int, tokens: Tokens | None) -> Attention | Pairs | None:
        """Return what reads the observation before the hidden layers, or None for nothing."""
        return None


@dataclass(frozen=True)
class MLPEncoder(Encoder, kind="mlp"):
    """Hidden layers."""


@dataclass(frozen=True)
class GRUEncoder(Encoder, kind="gru"):
    """Hidden layers and a gated recurrent unit."""

    memory: Literal["none", "gru", "lstm"] = "gru"


@dataclass(frozen=True)
class LSTMEncoder(Encoder, kind="lstm"):
    """Hidden layers and long short-term memory."""

    memory: Literal["none", "gru", "lstm"] = "lstm"


@dataclass(frozen=True)
class AttentionEncoder(Encoder, kind="attention"):
    """Attention over the tokens of the observation, then hidden layers.

    What the tokens are depends on the world: past observations, entities, or, where it names none,
    the single features of the observation.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the layers after the pooling.
    d_model : int
        Width of the tokens.
    n_heads, n_layers : int
        Heads of each attention; self-attention blocks (may be 0).
    d_hidden : int or None
        Width of the blocks' feed-forward networks; None for twice ``d_model``.
    pooling : {"queries", "first", "last", "attention", "mean"}
        How tokens become one vector: cross-attention to all of them from learned queries, from the
        first token (the agent among entities) or from the last (the present in a history);
        learned scores; or the plain mean.
    n_queries : int
        Learned queries of ``pooling="queries"``.
    norm : {"pre", "post"}
        Where LayerNorm stands.
    dropout : float
        Acts in a critic's loss alone. In rollouts it would make the policy another one at each
        step, and in the ratio of PPO's objective it would compare two different networks.
    """

    hidden: Widths = (64,)
    d_model: Count = 32
    n_heads: Count = 4
    n_layers: Natural = 1
    d_hidden: Count | None = None
    pooling: Literal["queries", "first", "last", "attention", "mean"] = "queries"
    n_queries: Count = 1
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def check(self) -> None:
        """Refuse values that do not go together."""
        rule = f"a multiple of n_heads, {self.n_heads}"
        require(self.d_model % self.n_heads == 0, "d_model", self.d_model, rule)
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    def reader(self, size_in: int, tokens: Tokens | None) -> Attention:
        """Return the attention over tokens."""
        return Attention(size_in, self, tokens)


@dataclass(frozen=True)
class PairsEncoder(Encoder, kind="pairs"):
    """A sum over pairs of tokens (a relation network, Santoro et al. 2017), then hidden layers.

    Each pair of the agent's own token (the first, or in a history the last) and a token that is
    there goes through the same small network; what comes out is summed.

    Parameters
    ----------
    hidden : tuple of int
        Widths of the layers after the sum.
    pair_hidden : tuple of int
        Widths of the network that reads a pair, at least one.
    """

    hidden: Widths = (64,)
    pair_hidden: Widths = (64, 64)

    def check(self) -> None:
        """Refuse pairs that nothing reads."""
        require(len(self.pair_hidden) > 0, "pair_hidden", self.pair_hidden, "at least one width")

    def reader(self, size_in: int, tokens: Tokens | None) -> Pairs:
        """Return the sum over pairs."""
        return Pairs(size_in, self, tokens)


# Modules ------------------------------------------------------------------------------------------


class EncoderNetwork(nn.Module):
    """What an :class:`Encoder` builds: a reader if it has one, hidden layers, a cell if it has one.

    Attributes
    ----------
    size : int
        Number F of features.
    memory_size : int
        Numbers S of the memory, 0 without one.
    """

    def __init__(
        self,
        config: Encoder,
        reader: Attention | Pairs | None,
        size_in: int,
        extra: int,
        layers: Layers,
    ):
        super().__init__()
        self.reader, self.extra = reader, extra
        width = size_in if reader is None else reader.size + extra
        self.body = mlp(width, config.hidden, layers=layers)
        self.size, self.memory_size = [width, *config.hidden][-1], 0
        self.cell: GRUCell | LSTMCell | None = None
        if config.remembers:
            cell = CELLS[config.memory](self.size, config.memory_size)
            self.cell, self.size, self.memory_size = cell, config.memory_size, cell.state_size

    def forward(
        self, obs: Tensor, memory: Tensor, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the features and the memory after each step; shapes stand above."""
        # As rows of a matrix: what has more axes is multiplied more slowly, above all under vmap.
        rows, x = obs.shape[:-1], self.body(self._read(obs.flatten(0, -2)))
        if self.cell is None:
            after = memory if first is None else memory.new_zeros(*rows, 0)
            return x.unflatten(0, rows), after
        if first is None:
            after = self.cell(x, memory.flatten(0, -2)).unflatten(0, rows)
        else:
            gates = self.cell.input(x).unflatten(0, rows)
            after = run_cell(self.cell, gates, first, memory)
        return self.cell.output(after), after

    def _read(self, obs: Tensor) -> Tensor:
        if self.reader is None:
            return obs
        if not self.extra:
            return self.reader(obs)[0]
        own, extra = obs[..., : -self.extra], obs[..., -self.extra :]
        return torch.cat([self.reader(own)[0], extra], dim=-1)

    def attention(self, obs: Tensor) -> dict[str, Tensor]:
        """Return the weights of every attention, see :class:`Attention`; empty if there is none."""
        if self.reader is None:
            return {}
        own = obs[..., : -self.extra] if self.extra else obs
        weights: dict[str, Tensor] = self.reader(own, need_weights=True)[1]
        return weights


class Attention(nn.Module):
    """Reads an observation as tokens, lets them attend to each other, and pools them.

    Parameters
    ----------
    obs_dim : int
    config : AttentionEncoder
    tokens : Tokens or None
        How the world arranges its observation; None makes a token of every feature.
    """

    def __init__(self, obs_dim: int, config: AttentionEncoder, tokens: Tokens | None):
        super().__init__()
        c, e = config, config.d_model
        self.tokens, self.pooling = tokens, c.pooling
        self.embed: nn.Module
        if tokens is None:
            self.embed, length = FeatureTokens(obs_dim, e), obs_dim
        else:
            self.embed, length = nn.Linear(tokens.size, e), tokens.count
        ordered = tokens is not None and tokens.ordered
        self.positions = LearnedPositions(length, e) if ordered else None
        self.blocks = nn.ModuleList(
            AttentionBlock(e, c.n_heads, None, c.d_hidden, c.dropout, c.norm)
            for _ in range(c.n_layers)
        )
        self.norm = nn.LayerNorm(e) if c.norm == "pre" else nn.Identity()
        self.size = e
        if c.pooling in ("queries", "first", "last"):
            self.cross = AttentionBlock(e, c.n_heads, e, c.d_hidden, c.dropout, c.norm)
        if c.pooling == "queries":
            self.queries = nn.Parameter(torch.randn(c.n_queries, e) / math.sqrt(e))
            self.size = e * c.n_queries
        elif c.pooling == "attention":
            self.pool = AttentionPooling(e, c.n_heads)

    def forward(self, obs: Tensor, need_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (..., size) and, if asked for, the weights of every attention.

        Returns
        -------
        features : (..., size)
        weights : dict
            ``layer_0``, ... (..., H, L, L) and, where the pooling has any, ``pooling``
            (..., H, queries, L); empty unless asked for.
        """
        present, x = None, obs
        if self.tokens is not None:
            x = obs.unflatten(-1, (self.tokens.count, -1))
            if self.tokens.flagged:
                present, x = x[..., 0] > 0.5, x[..., 1:]  # (..., L), (..., L, size)
        x = self.embed(x)  # (..., L, E)
        if self.positions is not None:
            x = self.positions(x)
        mask = None if present is None else present.unsqueeze(-2)  # (..., 1, L)
        within = mask
        if mask is not None and self.positions is not None:
            within = mask & causal_mask(x.shape[-2], x.device)  # (..., L, L)
        weights = {}
        for i, block in enumerate(self.blocks):
            x, w = block(x, None, within, need_weights)
            weights[f"layer_{i}"] = w
        pooled, w = self._pool(self.norm(x), present, mask, need_weights)
        weights["pooling"] = w
        return pooled, {k: w for k, w in weights.items() if w is not None}

    def _pool(
        self, x: Tensor, present: Tensor | None, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.pooling in ("queries", "first", "last"):
            if self.pooling == "queries":
                query = self.queries.expand(*x.shape[:-2], *self.queries.shape)
            else:
                query = x[..., :1, :] if self.pooling == "first" else x[..., -1:, :]
            out, weights = self.cross(query, x, mask, need_weights)  # (..., queries, E)
            return out.flatten(-2), weights
        if self.pooling == "attention":
            out, weights = self.pool(x, present, need_weights)
            return out, None if weights is None else weights.unsqueeze(-2)
        if present is None:
            return x.mean(-2), None
        share = present.float().unsqueeze(-1)  # (..., L, 1)
        return (x * share).sum(-2) / share.sum(-2).clamp(min=1), None


class Pairs(nn.Module):
    """Reads an observation as tokens, and sums what each makes of the agent's own.

    Parameters
    ----------
    obs_dim : int
    config : PairsEncoder
    tokens : Tokens or None
        How the world arranges its observation; None makes a token of every feature: its number and
        which it is.
    """

    def __init__(self, obs_dim: int, config: PairsEncoder, tokens: Tokens | None):
        super().__init__()
        self.tokens, count = tokens, obs_dim if tokens is None else tokens.count
        self.own = count - 1 if tokens is not None and tokens.ordered and tokens.flagged else 0
        placed = tokens is None or tokens.ordered  # the place in the order means something
        self.places = count if placed else 0
        size = (1 if tokens is None else tokens.size) + self.places
        self.pair = mlp(2 * size, config.pair_hidden)
        self.size = config.pair_hidden[-1]

    def forward(self, obs: Tensor, need_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (..., size); there are no weights."""
        there, t = None, self.tokens
        x = obs.unsqueeze(-1) if t is None else obs.unflatten(-1, (t.count, -1))
        if t is not None and t.flagged:
            there, x = x[..., :1], x[..., 1:]  # (..., L, 1), (..., L, size)
        if self.places:
            place = torch.eye(self.places, device=obs.device).expand(*x.shape[:-1], -1)
            x = torch.cat([x, place], dim=-1)
        own = x[..., self.own : self.own + 1, :].expand_as(x)
        each = self.pair(torch.cat([own, x], dim=-1))  # (..., L, width)
        return (each if there is None else each * there).sum(-2), {}
