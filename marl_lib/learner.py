"""What every learner is: networks, optimisers, random streams; how it acts, and what is kept of it.

An algorithm is written for one replicate. It says which networks it has (``networks``) and how an
action comes out of them (``choose``), as functions of networks and data that know nothing of
replicates; this class lifts them over all R at once (:func:`marl_lib.replicates.lift`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.capture import Captures
from marl_lib.config import Config, ConfigError, Positive, Unit
from marl_lib.exploration import remaining
from marl_lib.exploration.bonus import Bonus, NoBonus
from marl_lib.nn.encoders import Encoder, MLPEncoder
from marl_lib.nn.layers import Layers
from marl_lib.nn.team import Team
from marl_lib.replicates import Adam, Replicates, lift
from marl_lib.rollout import Policy
from marl_lib.seeding import RandomStreams
from marl_lib.spec import Spec
from marl_lib.state import has_state, kept, restored

Data = dict[str, Tensor]


@dataclass(frozen=True)
class LearnerConfig(Config):
    """Settings of any learner; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    encoder : Encoder
        How observations become features: mlp, gru, lstm or attention, with their own settings.
    share_parameters : bool
        One network for all agents, told apart by a one-hot id; otherwise one network each.
    gamma : float
        Discount, in [0, 1].
    learning_rate : float
        Of Adam.
    anneal : bool
        Let the learning rate go down linearly to zero over the whole training.
    max_grad_norm : float or None
        Longer gradients are scaled down, each network by its own norm; None leaves them.
    bonus : Bonus
        Reward of the learner's own making for what is new to it: none, or count.
    """

    encoder: Encoder = field(default_factory=MLPEncoder)
    share_parameters: bool = True
    gamma: Unit = 0.99
    learning_rate: Positive = 1e-3
    anneal: bool = False
    max_grad_norm: Positive | None = 10.0
    bonus: Bonus = field(default_factory=NoBonus)


class Learner:
    """R replicates of a learner, each on B environments of its own.

    Parameters
    ----------
    spec : Spec
        Sizes of the world.
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : dataclass or None
        Settings, of the class ``config_type``; None for the defaults.
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    device : torch device
    capture : bool
        Record the gradients' computation as a CUDA graph, see :mod:`marl_lib.capture`.

    Attributes
    ----------
    nets : dict of name to Replicates
    optimizers : dict of name to Adam
    memory : (R, B, N, S)
        What the agents remember as they act.
    """

    config_type: ClassVar[type[LearnerConfig]] = LearnerConfig
    layers: ClassVar[Layers] = Layers()  # what hidden layers are like, in the algorithm's paper
    acting: ClassVar[str] = "actor"  # the network that acts
    actions: ClassVar[str] = "discrete"  # kinds of actions it can take: or "continuous", or "any"
    with_targets: ClassVar[bool] = False
    adam_eps: ClassVar[float] = 1e-8
    purpose: ClassVar[str] = "act"  # names the random numbers that actions are chosen with
    noise_type: ClassVar[Any] = np.float32
    counts: ClassVar[tuple[str, ...]] = ("steps", "updates")

    def __init__(
        self,
        spec: Spec,
        num_envs: int,
        seeds: Sequence[int],
        config: Any = None,
        *,
        total_steps: int | None = None,
        device: str | torch.device = "cpu",
        capture: bool = False,
    ):
        self.captures = Captures() if capture else None
        self.config = self.config_type() if config is None else config
        self.spec, self.num_envs, self.seeds = spec, num_envs, list(seeds)
        self.total_steps, self.device = total_steps, torch.device(device)
        self.replicates = len(self.seeds)
        self.check_world()
        self.nets = {
            name: Replicates(make, self.seeds, self.device, self.with_targets)
            for name, make in self.networks().items()
        }
        rates = self.learning_rates()
        self.optimizers = {
            name: Adam(net, rates[name], self.adam_eps) for name, net in self.nets.items()
        }
        for net in self.nets.values():
            net.train(False)
        self.memory_size: int = getattr(self.nets[self.acting].module, "memory_size", 0)
        self.memory = self.no_memory(num_envs)
        self.streams = RandomStreams(self.seeds, num_envs, self.purpose)
        self.bonus = self.config.bonus.build(spec, self.seeds)
        self.steps = self.updates = 0  # environment steps of one replicate; steps of the optimisers

    # What an algorithm supplies -------------------------------------------------------------------

    def networks(self) -> Mapping[str, Callable[[], nn.Module]]:
        """Return what makes each network of one replicate."""
        raise NotImplementedError

    def choose(self, net: Any, seen: Data) -> Data:
        """Return the ``action`` of every agent and its ``memory`` after it, for one replicate.

        Parameters
        ----------
        net : namespace of networks
        seen : dict
            ``obs`` (any, N, D), ``memory`` (any, N, S); ``mask`` (any, N, A) where actions may be
            illegal; ``noise``, uniform numbers (any, ``noise_shape``), to act as in training, and
            without it as well as is known.
        """
        raise NotImplementedError

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the random numbers that a team's actions are drawn with."""
        return self.spec.n_agents, 1 if self.spec.bounds is None else self.spec.n_actions

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each network."""
        return dict.fromkeys(self.networks(), self.config.learning_rate)

    def see(self, obs: Tensor) -> Tensor:
        """Return observations (R, ..., D) as the networks see them."""
        return obs

    def to_env(self, action: Tensor) -> np.ndarray:
        """Return actions (R, any, N[, A]) as a world takes them, (R × any, ...), in its bounds."""
        out: np.ndarray = action.flatten(0, 1).numpy(force=True)
        return out if self.spec.bounds is None else np.clip(out, *self.spec.bounds)

    def check_world(self) -> None:
        """Refuse a world that the algorithm cannot learn in, with a ConfigError."""
        kind = "discrete" if self.spec.bounds is None else "continuous"
        if self.actions not in ("any", kind):
            name = type(self).__name__
            raise ConfigError(f"{name} needs {self.actions} actions, those here are {kind}")
        if self.spec.action_masks and kind == "continuous":
            raise ConfigError("action_masks must be false for continuous actions, got True")

    # Acting ---------------------------------------------------------------------------------------

    def team(self, head: Callable[[int], nn.Module], **more: Any) -> Team:
        """Return the networks of all agents, from their observations to what a head says.

        Parameters
        ----------
        head : callable
            ``head(F)`` returns the module that reads F features.
        more
            Other arguments of :class:`marl_lib.nn.team.Team` than the usual ones.
        """
        c, s = self.config, self.spec
        usual: dict[str, Any] = {
            "size_in": s.obs_dim,
            "n_agents": s.n_agents,
            "shared": c.share_parameters,
            "tokens": s.tokens,
        }
        return Team(c.encoder, self.layers, head=head, **(usual | more))

    def tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...) on the device."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (self.replicates, -1))

    def no_memory(self, rows: int) -> Tensor:
        """Return empty memories of so many rows, (R, rows, N, S)."""
        shape = (self.replicates, rows, self.spec.n_agents, self.memory_size)
        return torch.zeros(shape, device=self.device)

    def noise(self, streams: RandomStreams) -> Tensor:
        """Return the next random numbers of every row, (R, any, *noise_shape)."""
        shape = self.noise_shape
        drawn: np.ndarray = streams.uniform(int(np.prod(shape))).astype(self.noise_type)
        return self.tensor(drawn).unflatten(-1, shape)

    @torch.no_grad()
    def lift(self, function: Callable[..., Any], *data: Any) -> Any:
        """Run a function ``(net, *data)`` of one replicate for all, without gradients."""
        return lift(function, self.nets, *data)

    def _seen(self, obs: np.ndarray, info: Mapping[str, Any], memory: Tensor) -> Data:
        seen = {"obs": self.tensor(obs), "memory": memory}
        if self.spec.action_masks:
            seen["mask"] = self.tensor(info["action_mask"])
        return seen

    def _choose(self, seen: Data, streams: RandomStreams | None) -> Data:
        """Return what :meth:`choose` says, exploring if there are streams to draw from."""
        noise = {"noise": self.noise(streams)} if streams is not None else {}
        data = {**seen, **noise, "obs": self.see(seen["obs"])}
        chosen: Data = self.lift(self.choose, data)
        return chosen

    def act(self, obs: np.ndarray, info: Mapping[str, Any]) -> tuple[np.ndarray, Data]:
        """Act on observations (R × B, N, D) as training does.

        Returns
        -------
        action : (R × B, N[, A]), for the world
        stored : dict of tensors (R, B, ...)
            What :meth:`observe` is to be given with what comes of it.
        """
        seen = self._seen(obs, info, self.memory)
        chosen = self._choose(seen, self.streams)
        return self.to_env(chosen["action"]), {**seen, **chosen}

    def policy(self, sampled: bool = False) -> Policy:
        """Return the policy: ``(obs (R × any, N, D), info) -> action (R × any, N[, A])``.

        With a memory, an episode of a row begins with the first call, after a reset, and where
        ``info`` says that the one before has ended.

        Parameters
        ----------
        sampled : bool
            Act as in training, with what exploration there is now, from random streams of its own
            that are the same each time; otherwise as well as is known.
        """
        memory = streams = None

        def act(obs: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
            nonlocal memory, streams
            rows = len(obs) // self.replicates
            if memory is None or "_final_obs" not in info:
                memory = self.no_memory(rows)
            else:
                memory = self._forget(memory, info["_final_obs"])
            if sampled and streams is None:
                streams = RandomStreams(self.seeds, rows, "judge")
            chosen = self._choose(self._seen(obs, info, memory), streams)
            memory = chosen["memory"]
            return self.to_env(chosen["action"])

        return act

    def _forget(self, memory: Tensor, ended: np.ndarray) -> Tensor:
        """Return memories with those emptied whose episode has ended (R × any,)."""
        if not self.memory_size:
            return memory
        return memory.masked_fill(self.tensor(ended)[..., None, None], 0.0)

    # Learning -------------------------------------------------------------------------------------

    def observe(
        self,
        stored: Data,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: Mapping[str, Any],
    ) -> None:
        """Take in what came of an action.

        Parameters
        ----------
        stored : dict
            As :meth:`act` returned it.
        reward : (R × B, N)
        terminated, truncated : (R × B,) bool
        info : dict
            Its ``final_obs`` is the observation the action led to, before any reset.
        """
        raise NotImplementedError

    def update(self) -> dict[str, np.ndarray]:
        """Learn if it is time to; return figures (R,) of that, or nothing."""
        raise NotImplementedError

    def rewarded(self, stored: Data, reward: np.ndarray, info: Mapping[str, Any]) -> np.ndarray:
        """Return rewards (R × B, N) with the bonus of the learner's own, if it has one."""
        if self.bonus is None:
            return reward
        return reward + self.bonus.reward(stored, info["final_obs"])

    def remember(self, stored: Data, ended: np.ndarray) -> None:
        """Keep the memories for the next step."""
        self.memory = self._forget(stored["memory"], ended)
        self.steps += self.num_envs

    def mean(self, x: Tensor, copies: int | None = None) -> Tensor:
        """Return the mean of x (..., N) over batch and agents.

        Where each agent has a network of its own it is the sum of the agents' means, so that each
        network learns from its own mean, however many there are: ``copies``, or N if parameters are
        not shared.
        """
        if copies is None:
            copies = 1 if self.config.share_parameters else self.spec.n_agents
        if copies == 1:
            return x.mean()
        return x.flatten(0, -2).mean(0).sum()

    def descend(
        self, loss: Callable[..., tuple[Tensor, Data]], learning: tuple[str, ...], batch: Data
    ) -> Data:
        """Put the gradients of a loss of one replicate where the optimisers find them, clipped.

        Parameters
        ----------
        loss : callable
            ``loss(net, batch)`` returns the loss and a dict of figures to watch.
        learning : names of networks
            Those that learn from it; the others are held fixed.

        Returns
        -------
        dict of tensors (R,): the loss, the norm of the gradient before clipping, the figures.
        """
        if self.captures is not None and not self.captures.recording:
            return self.captures.run(learning, partial(self.descend, loss, learning), batch)
        value, figures = lift(loss, self.nets, batch, learning=learning)
        nets = [self.nets[name] for name in learning]
        for net in nets:
            net.zero_grad()
        value.sum().backward()
        norms = [net.clip_gradient(self.config.max_grad_norm) for net in nets]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)
        found = {"loss": value, "grad_norm": norm, **figures}
        return {name: figure.detach() for name, figure in found.items()}

    def number(self, name: str, value: float) -> float | Tensor:
        """Return a number for a loss that may be another one in the next update."""
        return value if self.captures is None else self.captures.number(name, value, self.device)

    def anneal(self, done: int) -> float:
        """Set the learning rates for ``done`` steps of the whole; return the share that is left."""
        left = remaining(done, self.total_steps if self.config.anneal else None)
        rates = self.learning_rates()
        for name, optimizer in self.optimizers.items():
            optimizer.learning_rate = left * rates[name]
        return left

    @property
    def work(self) -> int:
        """Multiplications of one pass of all networks over what an update learns from."""
        rows, nets = self.rows * self.spec.n_agents, self.nets.values()
        return sum(net.flat.numel() * rows // net.copies for net in nets)

    @property
    def rows(self) -> int:
        """Steps of a team that an update learns from."""
        config: Any = self.config
        return int(config.batch_size)

    # Keeping and looking --------------------------------------------------------------------------

    @property
    def team_reward(self) -> bool:
        """Whether the agents learn from the sum of all rewards, or each from its own."""
        return bool(getattr(self.config, "team_reward", False))

    @property
    def parameters(self) -> int:
        """How many numbers one replicate learns."""
        return sum(net.flat.numel() for net in self.nets.values()) // self.replicates

    def network(self, index: int = 0, name: str | None = None) -> nn.Module:
        """Return a network of one replicate as a plain module, to look into; None: what acts."""
        return self.nets[self.acting if name is None else name].network(index)

    def outputs(self, obs: Tensor) -> Tensor:
        """Return what the networks that act say about observations, with an empty memory.

        Parameters
        ----------
        obs : (R, any, N, D), as the networks see them

        Returns
        -------
        Tensor (R, any, N, ...): action values, or what a policy is made from.
        """
        found: Tensor = self.lift(lambda net, x: getattr(net, self.acting)(x)[0], obs)
        return found

    def seen_by(self, index: int, obs: np.ndarray) -> Tensor:
        """Return observations (n, D) as the networks of one replicate see them."""
        every = torch.as_tensor(obs, device=self.device).expand(self.replicates, *obs.shape)
        return self.see(every)[index]

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on: every part of the learner that has a state."""
        return {name: kept(part) for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the learner that wrote ``state`` stood."""
        parts = self._parts()
        if parts.keys() != state.keys():
            raise ValueError(f"expected the parts {sorted(parts)}, got {sorted(state)}")
        for name, part in parts.items():
            setattr(self, name, restored(part, state[name], self.device))

    def _parts(self) -> dict[str, Any]:
        parts = vars(self).items()
        return {name: part for name, part in parts if name in self.counts or has_state(part)}
