"""A team's networks equal N single ones, each on its own rows, with and without memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from marl_lib.nn.encoders import Encoder
from marl_lib.nn.heads import PolicyHead, QHead
from marl_lib.nn.layers import Layers
from marl_lib.nn.team import Network, Team, joint_view
from marl_lib.spec import Tokens

OBS, OUT, AGENTS, STEPS = 4, 3, 3, 5
KINDS = {
    "mlp": {"hidden": (8,)},
    "gru": {"hidden": (8,), "memory_size": 5},
    "lstm": {"hidden": (8,), "memory_size": 5},
    "attention": {"hidden": (8,), "d_model": 8, "n_heads": 2},
    "pairs": {"hidden": (8,), "pair_hidden": (8,)},
}
every = pytest.mark.parametrize("kind", KINDS)
sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
leads = pytest.mark.parametrize("lead", [(), (6,), (2, 6)], ids=len)


def encoder(kind: str) -> Any:
    return Encoder.kinds()[kind](**KINDS[kind])


def team(kind: str, shared: bool, n: int = AGENTS, seed: int = 0, **more: Any) -> Team:
    torch.manual_seed(seed)
    given = {"n_agents": n, "shared": shared} | more
    return Team(encoder(kind), Layers(), OBS, lambda f: QHead(f, OUT), **given)


def single(of: Team, kind: str, i: int) -> Network:
    """Return the network of one agent as a module of its own."""
    ids = of.id_size
    built = encoder(kind).build(OBS + ids, Layers(), None, ids)
    net = Network(built, QHead(built.size, OUT))
    state = of.network.state_dict()
    net.load_state_dict({n: p if of.copies == 1 else p[i] for n, p in state.items()})
    return net


def own(of: Team, obs: Tensor, i: int) -> Tensor:
    """Return what agent i sees (..., 1, D), its id put on by hand."""
    seen = obs[..., i : i + 1, :]
    if not of.id_size:
        return seen
    mark = torch.zeros(*seen.shape[:-1], AGENTS)
    mark[..., i] = 1.0
    return torch.cat([seen, mark], -1)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@every
@sharing
@leads
def test_a_team_equals_single_networks(kind: str, shared: bool, lead: tuple[int, ...]) -> None:
    """In values, memories and gradients; separate agents each get their own network's gradient."""
    many = team(kind, shared)
    assert many.copies == (1 if shared else AGENTS)
    obs, memory = numbers(*lead, AGENTS, OBS), numbers(*lead, AGENTS, many.memory_size, seed=2)
    out, after = many(obs, memory)
    assert out.shape == (*lead, AGENTS, OUT) and after.shape == memory.shape
    out.square().sum().backward()
    nets = [single(many, kind, i) for i in range(AGENTS)]
    for i, net in enumerate(nets):
        one = slice(i, i + 1)
        found, then = net(own(many, obs, i), memory[..., one, :])
        torch.testing.assert_close(out[..., one, :], found)
        torch.testing.assert_close(after[..., one, :], then)
        found.square().sum().backward()
    for name, p in many.network.named_parameters():
        grads = [dict(net.named_parameters())[name].grad for net in nets]
        expected = torch.stack(grads).sum(0) if shared else torch.stack(grads)
        torch.testing.assert_close(p.grad, expected, msg=name, rtol=1e-4, atol=1e-5)


@every
@sharing
@leads
def test_along_sequences_it_equals_step_by_step(
    kind: str, shared: bool, lead: tuple[int, ...]
) -> None:
    many = team(kind, shared)
    obs = numbers(*lead, STEPS, AGENTS, OBS)
    memory = numbers(*lead, AGENTS, many.memory_size, seed=2)
    first = numbers(*lead, STEPS, seed=3) > 0.5
    out, after = many(obs, memory, first)
    assert out.shape == (*lead, STEPS, AGENTS, OUT)
    assert after.shape == (*lead, STEPS, AGENTS, many.memory_size)
    for t in range(STEPS):
        memory = memory * ~first[..., t, None, None]
        found, memory = many(obs[..., t, :, :], memory)
        torch.testing.assert_close(out[..., t, :, :], found)
        torch.testing.assert_close(after[..., t, :, :], memory)


@every
@sharing
def test_without_a_memory_given_it_is_empty(kind: str, shared: bool) -> None:
    many = team(kind, shared)
    obs, never = numbers(6, STEPS, AGENTS, OBS), torch.zeros(6, STEPS, dtype=torch.bool)
    for given in ((obs[:, 0], None), (obs, None, never)):
        empty = torch.zeros(6, AGENTS, many.memory_size)
        torch.testing.assert_close(many(*given), many(given[0], empty, *given[2:]))


@every
@sharing
@pytest.mark.filterwarnings("error")  # vmap warns where it falls back to a loop
def test_many_teams_at_once_equal_each_alone(kind: str, shared: bool) -> None:
    teams = [team(kind, shared, seed=seed) for seed in range(2)]
    obs, memory = numbers(2, 6, STEPS, AGENTS, OBS), numbers(2, 6, AGENTS, teams[0].memory_size)
    first = numbers(2, 6, STEPS, seed=3) > 0.5
    for one in teams:
        for part in one.modules():
            if hasattr(part, "fused"):
                part.fused = False
    names = [n for n, _ in teams[0].named_parameters()]
    params = {n: torch.stack([one.get_parameter(n) for one in teams]) for n in names}
    found = vmap(lambda p, *z: functional_call(teams[0], p, z))(params, obs, memory, first)
    for r, one in enumerate(teams):
        for many, alone in zip(found, one(obs[r], memory[r], first[r]), strict=True):
            torch.testing.assert_close(many[r], alone)


@pytest.mark.parametrize("shared", [True, False])
def test_one_agent_has_no_id(shared: bool) -> None:
    one = team("mlp", shared, n=1)
    assert one.id_size == 0
    assert one.network.encoder.body[0].weight.shape[-2:] == (8, OBS)
    assert one(numbers(6, 1, OBS))[0].shape == (6, 1, OUT)


@sharing
def test_agents_start_differently_and_from_the_seed(shared: bool) -> None:
    first, again, other = (team("mlp", shared, seed=s) for s in (0, 0, 1))
    weight, same, another = (one.network.head.advantage.weight for one in (first, again, other))
    assert torch.equal(weight, same) and not torch.allclose(weight, another)
    assert shared or not torch.allclose(weight[0], weight[1])


def test_attention_is_recorded_of_agents_that_share_parameters() -> None:
    many, obs = team("attention", True), numbers(6, AGENTS, OBS)
    weights = many.attention(obs)
    assert set(weights) == {"layer_0", "pooling"}
    assert weights["layer_0"].shape == (6, AGENTS, 2, OBS, OBS)
    alone = single(many, "attention", 1).encoder.attention(own(many, obs, 1))
    for name, w in weights.items():
        torch.testing.assert_close(w[:, 1:2], alone[name])
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))
    assert team("mlp", True).attention(obs) == {}
    with pytest.raises(ValueError, match="agents that share parameters"):
        team("attention", False).attention(obs)


@sharing
def test_what_stands_behind_the_tokens_is_read_beside_them(shared: bool) -> None:
    """Actions behind the observation of a critic, and the agent's id: none of them is a token."""
    torch.manual_seed(0)
    tokens = Tokens(2, OBS, ordered=True, flagged=False)
    critic = Team(
        encoder("attention"), Layers(), 2 * OBS + 3, lambda f: nn.Linear(f, 1),
        n_agents=2, shared=shared, tokens=tokens, extra=3,
    )  # fmt: skip
    x = numbers(6, 2, 2 * OBS + 3)
    assert critic(x)[0].shape == (6, 2, 1)
    width = critic.network.encoder.body[0].weight.shape[-1]
    assert width == 8 + 3 + (2 if shared else 0)
    other = x.clone()
    other[..., -3:] += 1.0
    changed = (critic(other)[0] - critic(x)[0]).abs()
    assert (changed > 1e-5).all()
    if shared:
        torch.testing.assert_close(critic.attention(other), critic.attention(x))


def test_a_policy_head_with_a_spread_is_stacked_too() -> None:
    torch.manual_seed(0)
    many = Team(encoder("mlp"), Layers("tanh"), OBS, lambda f: PolicyHead(f, 2, True), 3, False)
    assert many.network.head.log_std.shape == (3, 2)
    with torch.no_grad():
        many.network.head.log_std.copy_(torch.arange(6.0).view(3, 2))
    out, _ = many(numbers(5, 3, OBS))
    torch.testing.assert_close(out[..., 2:], torch.arange(6.0).view(3, 2).expand(5, 3, 2))


def test_a_copy_of_a_team_is_its_own() -> None:
    many = team("gru", False)
    twin, obs = copy.deepcopy(many), numbers(6, AGENTS, OBS)
    before = many(obs)[0].detach()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    torch.testing.assert_close(many(obs)[0], before)
    assert not torch.allclose(twin(obs)[0], before)


@pytest.mark.parametrize("turned", [False, True])
def test_the_joint_view_by_hand(turned: bool) -> None:
    obs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    rows = joint_view(obs.expand(7, 3, 2), turned)
    expected = torch.tensor([[1.0, 2, 3, 4, 5, 6], [3, 4, 5, 6, 1, 2], [5, 6, 1, 2, 3, 4]])
    expected = expected if turned else expected[:1].expand(3, 6)
    torch.testing.assert_close(rows, expected.expand(7, 3, 6))
