"""Teams: N agents with a network each, or one for all, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from marl_lib.nn.attention import unfused
from marl_lib.nn.encoders import Encoder, EncoderNetwork
from marl_lib.nn.layers import Layers
from marl_lib.spec import Tokens


class Network(nn.Module):
    """An encoder and a head, with the face of :mod:`marl_lib.nn.encoders`."""

    def __init__(self, encoder: EncoderNetwork, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(
        self, obs: Tensor, memory: Tensor, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what the head says (..., N, out) and the memory after each step."""
        features, memory = self.encoder(obs, memory, first)
        return self.head(features.flatten(0, -2)).unflatten(0, features.shape[:-1]), memory


class Team(nn.Module):
    """The networks of N agents.

    Where one network serves all, it is told by a one-hot id, behind the observation, whose it is to
    be; otherwise each agent has parameters of its own, stacked along a first axis.

    Parameters
    ----------
    encoder : Encoder
    layers : Layers
        What the algorithm's hidden layers are like.
    size_in : int
        Length D of the input, without the id.
    head : callable
        ``head(F)`` returns the module that turns features into what is asked for.
    n_agents : int
        N.
    shared : bool
        One network for all.
    tokens : Tokens or None
        How the input is made of tokens.
    extra : int
        So many numbers at its end are none of them: actions, for a critic.

    Attributes
    ----------
    copies : int
        Networks inside: N, or 1 if shared.
    memory_size : int
        Numbers of an agent's memory.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Layers,
        size_in: int,
        head: Callable[[int], nn.Module],
        n_agents: int = 1,
        shared: bool = True,
        tokens: Tokens | None = None,
        extra: int = 0,
    ):
        super().__init__()
        self.n_agents = n_agents
        self.copies = 1 if shared else n_agents
        self.id_size = n_agents if shared and n_agents > 1 else 0

        def make() -> Network:
            size, more = size_in + self.id_size, extra + self.id_size
            network = encoder.build(size, layers, tokens, more)
            return Network(network, head(network.size))

        self.network = make() if self.copies == 1 else stacked([make() for _ in range(n_agents)])
        self.memory_size: int = self.network.encoder.memory_size

    def forward(
        self, obs: Tensor, memory: Tensor | None = None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what every agent's network says, and the memory after each step.

        Parameters
        ----------
        obs : (..., N, D), or (..., T, N, D) along sequences
        memory : (..., N, S) or None for an empty one
        first : (..., T) bool or None
            With it, ``obs`` are sequences; True where an episode begins.
        """
        if memory is None:
            rows = obs.shape[:-1] if first is None else (*obs.shape[:-3], obs.shape[-2])
            memory = obs.new_zeros(*rows, self.memory_size)
        if self.copies == 1:
            out, memory = self.network(self._with_ids(obs), memory, first)
            return out, memory
        return self._each(obs, memory, first)

    def _with_ids(self, obs: Tensor) -> Tensor:
        if not self.id_size:
            return obs
        ids = torch.eye(self.id_size, device=obs.device)
        return torch.cat([obs, ids.expand(*obs.shape[:-1], self.id_size)], dim=-1)

    def _each(self, obs: Tensor, memory: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the network of each agent on its own rows."""

        def one(params: dict[str, Tensor], x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            rows = (x.unsqueeze(-2), m.unsqueeze(-2), first)
            out, after = functional_call(self.network, params, rows)
            return out.squeeze(-2), after.squeeze(-2)

        params: dict[str, Tensor] = dict(self.network.named_parameters())
        return vmap(one, (0, -2, -2), (-2, -2))(params, obs, memory)

    def attention(self, obs: Tensor) -> dict[str, Tensor]:
        """Return the attention weights of a shared network, by name; empty if it has none.

        Parameters
        ----------
        obs : (..., N, D)

        Returns
        -------
        dict of (..., N, H, queries, keys)
        """
        if self.copies > 1:
            raise ValueError("attention can be recorded of agents that share parameters")
        return self.network.encoder.attention(self._with_ids(obs))


def stacked(modules: Sequence[Network]) -> Network:
    """Return the first of some modules, its parameters those of all, (len(modules), ...)."""
    first, *_ = modules
    for name, _ in list(first.named_parameters()):
        *path, last = name.split(".")
        every = torch.stack([m.get_parameter(name).detach() for m in modules])
        setattr(first.get_submodule(".".join(path)), last, nn.Parameter(every))
    unfused(first)
    return first


def joint_view(obs: Tensor, turned: bool = False) -> Tensor:
    """Return the state as every agent's critic is shown it, (..., N, D) -> (..., N, N D).

    Parameters
    ----------
    obs : (..., N, D)
    turned : bool
        Row i has the observation of agent i first, then those of the agents after it; otherwise all
        rows are alike, in the order of the agents.
    """
    if not turned:
        return obs.flatten(-2).unsqueeze(-2).expand(*obs.shape[:-1], -1)
    agents = torch.arange(obs.shape[-2], device=obs.device)
    return obs[..., (agents[:, None] + agents) % len(agents), :].flatten(-2)
