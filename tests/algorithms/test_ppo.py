"""PPO against numbers made by hand, slow references, plain networks and exact values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import (
    ACTIONS,
    BARE,
    OBS,
    Play,
    full,
    learner,
    networks,
    replaced,
    slow_advantage,
)
from gymnasium.spaces import Box
from scipy import stats
from torch import Tensor

from marl_lib.advantages import RewardScale, generalised_advantage
from marl_lib.algorithms.ppo import PPO, PPOConfig
from marl_lib.config import ConfigError
from marl_lib.envs.base import BatchedParallelEnv
from marl_lib.nn.distributions import Categorical, DiagonalGaussian
from marl_lib.nn.normalization import RunningNorm
from marl_lib.replicates import lift
from marl_lib.spec import Spec, Tokens
from marl_lib.training import LoopConfig, Trainer

ALONE = Spec(OBS, ACTIONS)
both = pytest.mark.parametrize("encoder", ["mlp", "attention"])


def losses(ppo: Any, batch: Any, clip: float = 0.2) -> dict[str, Tensor]:
    """Return what the loss of each replicate is made of, with gradients."""
    figures = lift(
        lambda net, b: ppo.loss(net, b, clip)[1], ppo.nets, batch, learning=("actor", "critic")
    )
    assert isinstance(figures, dict)
    return figures


def parameters(ppo: Any, r: int) -> Tensor:
    """Return all weights of one replicate in one vector."""
    return torch.cat(
        [p[r].detach().flatten() for n in ppo.nets.values() for p in n.params.values()]
    )


# Advantages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_advantage_equals_the_sum_written_out(gamma: float, lam: float) -> None:
    g = torch.Generator().manual_seed(1)
    numbers = torch.randn(3, 2, 12, 4, generator=g)  # of two replicates
    terminated, truncated = torch.rand(2, 2, 12, 4, generator=g) < 0.15
    given = (*numbers, terminated, terminated | truncated)
    found = generalised_advantage(*given, gamma, lam)
    for r in range(2):
        torch.testing.assert_close(found[r], slow_advantage(*(x[r] for x in given), gamma, lam))


def test_advantage_by_hand() -> None:
    """Three steps that pay 1, a critic that says 2 everywhere, γ = 1, λ = 1/2."""
    one, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
    last = torch.tensor([[False], [False], [True]])

    def found(terminated: Tensor, ended: Tensor) -> list[float]:
        return generalised_advantage(one, 2 * one, 2 * one, terminated, ended, 1.0, 0.5)[
            :, 0
        ].tolist()

    assert found(last, last) == [1.25, 0.5, -1.0]
    assert found(no, last) == found(no, no) == [1.75, 1.5, 1.0]
    middle = last.roll(-1, 0)
    assert found(middle, middle) == [0.5, -1.0, 1.0]  # what comes after is another episode
    assert found(no, middle) == [1.5, 1.0, 1.0]


def test_time_running_out_is_no_news_about_the_last_action() -> None:
    """Two environments alike but for a time limit in the last step of the rollout."""
    ppo = learner("ppo", "mlp", (0,), 2, spec=ALONE)
    seen = np.random.default_rng(0).normal(size=(5, 1, 1, OBS)).astype(np.float32).repeat(2, 1)
    for t in range(4):
        _, stored = ppo.act(seen[t], {})
        stored["action"] = torch.zeros_like(stored["action"])
        late, paid = np.array([False, t == 3]), np.ones((2, 1), np.float32)
        ppo.observe(stored, paid, np.zeros(2, bool), late, {"final_obs": seen[t + 1]})
    first, second = ppo.prepare()["advantage"].view(4, 2).T
    torch.testing.assert_close(first, second)


# Losses -------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    """A uniform policy of three actions, a critic that says 0, ratios of 3/2 and 1/2, ε = 0.2.

    For advantages 1, -1, 1, -1 the gains are min(1.5, 1.2), min(-1.5, -1.2), min(0.5, 0.8) and
    min(-0.5, -0.8), which sum up to -0.6; returns 2, 0, 0, 2 leave a mean square of 2.
    """
    ppo = learner("ppo", "mlp", (0,), spec=ALONE, entropy_coef=0.1, **BARE)
    for net in ppo.nets.values():
        net.flat.detach().zero_()
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    batch = {
        "obs": torch.zeros(4, 1, 1, OBS),
        "first": torch.zeros(4, 1, dtype=torch.bool),
        "actor_memory": torch.zeros(4, 1, 0),
        "critic_memory": torch.zeros(4, 1, 0),
        "action": torch.tensor([0, 1, 2, 0]).view(4, 1, 1),
        "log_prob": (-math.log(3) - ratio.log()).view(4, 1, 1),
        "advantage": torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1),
        "returns": torch.tensor([2.0, 0.0, 0.0, 2.0]).view(4, 1, 1),
        "value": torch.zeros(4, 1, 1),
    }
    batch = {name: x.unsqueeze(0) for name, x in batch.items()}
    loss, figures = lift(lambda net, b: ppo.loss(net, b, 0.2), ppo.nets, batch)
    found = {name: x.item() for name, x in figures.items()}
    assert found["policy_loss"] == pytest.approx(0.15)
    assert found["value_loss"] == pytest.approx(1.0)
    assert found["entropy"] == pytest.approx(math.log(3))
    assert found["approx_kl"] == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2)
    assert found["clip_fraction"] == 1.0
    assert loss.item() == pytest.approx(0.15 + 1.0 - 0.1 * math.log(3))


@both
@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_losses_equal_plain_networks(encoder: str, seeds: tuple[int, ...]) -> None:
    """After an update, so that ratios are not one, row by row."""
    rate = 0.05 if encoder == "mlp" else 0.01
    ppo = full("ppo", encoder, seeds, spec=ALONE, clip_value=0.1, learning_rate=rate)
    batch = ppo.prepare()
    ppo.learn(batch)
    found = losses(ppo, batch, 0.1)
    for r in range(len(seeds)):
        obs = batch["obs"][r, :, 0, 0]
        log_p = networks(ppo, "actor", r)[0](obs).log_softmax(-1)
        value = networks(ppo, "critic", r)[0](obs).squeeze(-1)
        row = {name: x[r].flatten() for name, x in batch.items() if x.numel()}
        a = (row["advantage"] - row["advantage"].mean()) / (row["advantage"].std() + 1e-8)
        gain, error, kl, outside = [], [], [], []
        for i, action in enumerate(row["action"].tolist()):
            ratio = (log_p[i, action] - row["log_prob"][i]).exp().item()
            gain.append(min(ratio * a[i].item(), max(0.9, min(ratio, 1.1)) * a[i].item()))
            kl.append(ratio - 1 - np.log(ratio))
            outside.append(abs(ratio - 1) > 0.1)
            old, new, goal = (x[i].item() for x in (row["value"], value, row["returns"]))
            near = max(old - 0.1, min(new, old + 0.1))
            error.append(max((new - goal) ** 2, (near - goal) ** 2))
        entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
        figures = {n: x[r].item() for n, x in found.items()}
        assert 0 < np.mean(outside) < 1
        assert figures["policy_loss"] == pytest.approx(-np.mean(gain), abs=1e-5)
        assert figures["value_loss"] == pytest.approx(np.mean(error) / 2, rel=1e-4)
        assert figures["entropy"] == pytest.approx(entropy, rel=1e-4)
        assert figures["approx_kl"] == pytest.approx(np.mean(kl), rel=1e-2, abs=1e-6)
        assert figures["clip_fraction"] == pytest.approx(np.mean(outside))


def test_clip_value_holds_the_new_value_near_the_old_one() -> None:
    ppo = full("ppo", spec=ALONE, **BARE)
    batch = ppo.prepare()
    batch["returns"] = batch["value"] + 5.0
    with torch.no_grad():
        ppo.nets["critic"].params["network.head.bias"] += 1.0  # nearer, but further than allowed
    free = losses(ppo, batch)["value_loss"]
    torch.testing.assert_close(free, torch.full((2,), 0.5 * 4.0**2))
    replaced(ppo, clip_value=0.25)
    held = losses(ppo, batch)["value_loss"]
    torch.testing.assert_close(held, torch.full((2,), 0.5 * 4.75**2))
    ppo.nets["critic"].zero_grad()
    held.sum().backward()
    assert not ppo.nets["critic"].flat.grad.any()  # what is clipped has no more to learn


@both
@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_each_part_of_the_loss_moves_its_own_network(encoder: str, share: bool) -> None:
    ppo = full("ippo", encoder, share_parameters=share)
    batch = ppo.prepare()
    for name, moved, still in (
        ("policy_loss", "actor", "critic"),
        ("entropy", "actor", "critic"),
        ("value_loss", "critic", "actor"),
    ):
        for net in ppo.nets.values():
            net.zero_grad()
        losses(ppo, batch)[name].sum().backward()
        assert ppo.nets[moved].flat.grad.any() and not ppo.nets[still].flat.grad.any(), name


@pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
def test_dropout_acts_in_the_loss_of_the_critic_alone(seeds: tuple[int, ...]) -> None:
    pair = []
    for p in (0.0, 0.5):
        encoder = {"kind": "attention", "d_model": 8, "n_heads": 2, "dropout": p}
        pair.append(learner("ippo", encoder, seeds, learning_rate=1e-12))
        Play(pair[-1])(4)
    dry, wet = (ppo.prepare() for ppo in pair)
    for name, x in dry.items():  # so it acted and judged alike
        torch.testing.assert_close(x, wet[name], msg=name)
    (once, again), (dropped, anew) = ([ppo.learn(dry) for _ in range(2)] for ppo in pair)
    for name in ("policy_loss", "entropy", "approx_kl"):
        torch.testing.assert_close(once[name], dropped[name], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(once["value_loss"], again["value_loss"])
    for one, other in ((once, dropped), (dropped, anew)):  # drawn anew each time
        assert ((one["value_loss"] - other["value_loss"]).abs() > 1e-5).all()
    one, other = (losses(pair[1], dry)["value_loss"] for _ in range(2))  # and it is off again
    torch.testing.assert_close(one, other)


@both
def test_the_bonus_raises_the_entropy(encoder: str) -> None:
    ppo = full("ppo", encoder, spec=ALONE, entropy_coef=1.0, learning_rate=0.01, epochs=10)
    with torch.no_grad():
        ppo.nets["actor"].params["network.head.mean.bias"].copy_(torch.tensor([2.0, 0.0, 0.0]))
    batch = ppo.prepare()
    batch["advantage"] = torch.zeros_like(batch["advantage"])
    before = losses(ppo, batch)["entropy"]
    ppo.learn(batch)
    assert (losses(ppo, batch)["entropy"] > before + 0.01).all()


def test_advantages_are_normalised_within_the_minibatch() -> None:
    ppo = full("ppo", spec=ALONE)
    batch = ppo.prepare()
    ppo.learn(batch)  # so that ratios are not one
    other = {**batch, "advantage": 7 * batch["advantage"] + 3}
    found = [losses(ppo, b)["policy_loss"] for b in (batch, other)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    replaced(ppo, normalise_advantage=False)
    found = [losses(ppo, b)["policy_loss"] for b in (batch, other)]
    assert ((found[0] - found[1]).abs() > 1e-2).all()


def test_illegal_actions_get_no_gradient_and_finite_losses() -> None:
    ppo = full("ippo", entropy_coef=0.1)
    batch = ppo.prepare()
    batch["mask"] = batch["mask"].clone()
    batch["mask"][..., 2], batch["mask"][..., 0] = False, True
    batch["action"] = torch.where(batch["action"] == 2, 0, batch["action"])
    found = losses(ppo, batch)
    (found["policy_loss"] + found["entropy"]).sum().backward()
    grad = ppo.nets["actor"].grads["network.head.mean.bias"]
    assert grad.isfinite().all() and not grad[:, 2].any() and grad[:, 0].all()


def test_illegal_actions_have_no_probability_however_the_draw_falls() -> None:
    ppo = learner("ippo", num_envs=30)
    with torch.no_grad():
        ppo.nets["actor"].params["network.head.mean.bias"].copy_(torch.tensor([-20.0, 0.0, 50.0]))
    ppo.streams.uniform = lambda n: np.full((60, n), 1 - 2.0**-53)
    obs = np.random.default_rng(0).normal(size=(60, 2, OBS)).astype(np.float32)
    mask = np.ones((60, 2, ACTIONS), bool)
    mask[..., -1] = False
    assert (ppo.act(obs, {"action_mask": mask})[0] == ACTIONS - 2).all()
    policy = ppo.pi(ppo.outputs(ppo.tensor(obs)), ppo.tensor(mask))
    assert not policy.probs[..., -1].any()
    torch.testing.assert_close(policy.probs.sum(-1), torch.ones(2, 30, 2))


# Updates ------------------------------------------------------------------------------------------


def test_explained_variance_of_a_critic_that_knows_and_of_one_that_does_not() -> None:
    given = {"spec": ALONE, "gamma": 0.0, "encoder": {"hidden": ()}, **BARE}
    for knows in (0.0, 1.0):
        ppo = full("ppo", seeds=(0,), **given)
        ppo.data["reward"] = ppo.data["obs"][..., 0].clone()  # the value is the first number
        ppo.nets["critic"].flat.detach().zero_()
        ppo.nets["critic"].params["network.head.weight"].detach()[..., 0] = knows
        assert ppo.update()["explained_variance"] == pytest.approx(knows, abs=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "length", "parts"),
    [(8, None, 2), (7, None, 2), (64, None, 1), (5, None, 3), (8, 2, 2), (5, 2, 3), (2, 4, 4)],
)
def test_minibatches_have_about_the_size_asked_for(
    batch_size: int, length: int | None, parts: int
) -> None:
    """Of 16 steps; in stretches, with a memory."""
    encoder, seen = "mlp" if length is None else "gru", []
    ppo = full("ippo", encoder, batch_size=batch_size, sequence_length=length, epochs=2)
    descend = ppo.descend
    ppo.descend = (
        lambda loss, nets, part: (  # type: ignore[method-assign]
            seen.append(part["value"].shape[:3]),
            descend(loss, nets, part),
        )[1]
    )
    ppo.update()
    rows = 16 // (length or 1)
    assert seen == [(2, rows // parts, length or 1)] * parts * 2


def test_target_kl_stops_the_replicate_that_went_too_far_and_no_other() -> None:
    """Replicate 1 has no advantages, so its policy stays; its critic goes on learning."""

    def learn(**options: Any) -> Any:
        ppo = full("ppo", spec=ALONE, learning_rate=0.05, normalise_reward=False, **options)
        batch = ppo.prepare()
        batch["advantage"][1] = 0.0
        ppo.learn(batch)
        return ppo

    once, stopped, free = learn(epochs=1), learn(epochs=4, target_kl=1e-4), learn(epochs=4)
    torch.testing.assert_close(parameters(stopped, 0), parameters(once, 0))
    assert not torch.allclose(parameters(free, 0), parameters(once, 0), atol=1e-3)
    torch.testing.assert_close(parameters(stopped, 1), parameters(free, 1))
    assert not torch.allclose(parameters(stopped, 1), parameters(once, 1), atol=1e-3)


def test_passes_end_when_no_replicate_is_left() -> None:
    counts = {}
    for target in (None, 1e-9):
        ppo = full("ppo", spec=ALONE, learning_rate=0.05, epochs=6, target_kl=target)
        descend, seen = ppo.descend, []
        ppo.descend = lambda *a, d=descend, n=seen: (n.append(1), d(*a))[1]  # type: ignore
        ppo.update()
        counts[target] = len(seen)
    assert counts == {None: 12, 1e-9: 2}


def test_the_clip_ratio_is_annealed_with_the_learning_rate() -> None:
    ppo = learner("ppo", "mlp", (0,), spec=ALONE, anneal=True, total_steps=64)
    clips, loss = [], ppo.loss
    ppo.loss = lambda net, b, clip: (clips.append(clip), loss(net, b, clip))[1]
    play = Play(ppo)(20)
    play.learner.update()
    np.testing.assert_allclose(clips[::2], 0.2 * np.array([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_a_rollout_of_one_step_is_refused() -> None:
    """A single advantage has no deviation, a single return no variance; two environments do."""
    with pytest.raises(ConfigError, match="rollout must be"):
        learner("ppo", "mlp", (0,), 1, spec=ALONE, rollout=1, sequence_length=None)
    ppo = learner("ppo", "mlp", (0,), 2, spec=ALONE, rollout=1, sequence_length=None)
    assert all(np.isfinite(x).all() for x in Play(ppo)(3).figures.values())


# Scales -------------------------------------------------------------------------------------------


def test_running_norm_equals_numpy() -> None:
    rng, norm = np.random.default_rng(0), RunningNorm(2, 3, clip=3.0)
    x = rng.normal([1.0, 0.5, -300.0], [2.0, 1.0, 40.0], size=(2, 500, 3)).astype(np.float32)
    some = torch.from_numpy(x[:, :7])
    torch.testing.assert_close(norm(some), some.clamp(-3, 3))  # nothing seen, nothing changed
    for start, end in ((0, 1), (1, 64), (64, 65), (65, 500)):
        norm.update(torch.from_numpy(x[:, start:end]))
        seen = x[:, :end].astype(np.float64)
        if end > 1:
            expected = (seen - seen.mean(1, keepdims=True)) / seen.std(1, keepdims=True)
            found = norm(torch.from_numpy(x[:, :end])).numpy()
            np.testing.assert_allclose(found, expected.clip(-3, 3), atol=2e-3)
    other = RunningNorm(2, 3, clip=3.0)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(some), norm(some))


def test_tokens_are_normalised_wherever_they_stand() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal([1.0, -30.0], [2.0, 5.0], size=(2, 200, 4, 2)).astype(np.float32)
    there = rng.random((2, 200, 4, 1)) < 0.6
    there[1, :50] = False  # a replicate may see nothing at all at first
    obs = np.concatenate([there, x * there], -1).astype(np.float32)
    flat = torch.from_numpy(obs).flatten(2)
    norm = RunningNorm(2, 12, Tokens(4, 2, ordered=False))
    for start, end in ((0, 50), (50, 51), (51, 200)):
        norm.update(flat[:, start:end])
    found = norm(flat).numpy().reshape(2, 200, 4, 3)
    np.testing.assert_array_equal(found[..., 0], there[..., 0])  # flags stay
    assert not found[..., 1:][~there[..., 0]].any()  # and so does padding
    for r in range(2):
        seen = x[r][there[r, ..., 0]]
        expected = (seen - seen.mean(0)) / seen.std(0)
        np.testing.assert_allclose(found[r, ..., 1:][there[r, ..., 0]], expected, atol=1e-3)
    # Tokens shuffled within every observation: the same statistics, the same tokens.
    order = rng.random((2, 200, 4)).argsort(-1)[..., None]
    shuffled = torch.from_numpy(np.take_along_axis(obs, order, 2)).flatten(2)
    other = RunningNorm(2, 12, Tokens(4, 2, ordered=False))
    other.update(shuffled)
    expected = np.take_along_axis(found, order, 2)
    np.testing.assert_allclose(other(shuffled).numpy().reshape(expected.shape), expected, atol=1e-5)


def test_reward_scale_equals_a_slow_one() -> None:
    rng, scale = np.random.default_rng(0), RewardScale(2, 3, 0.9, torch.device("cpu"))
    totals, running = [], np.zeros((2, 3))
    for _ in range(4):
        reward = rng.normal(1.0, 5.0, size=(2, 6, 3))
        ended = rng.random((2, 6, 3)) < 0.2
        found = scale(torch.tensor(reward, dtype=torch.float32), torch.from_numpy(ended))
        for t in range(6):
            running = 0.9 * running + reward[:, t]
            totals.append(running)
            running = running * ~ended[:, t]
        spread = np.stack(totals, 1).reshape(2, -1).std(1)
        np.testing.assert_allclose(found.numpy(), reward / spread[:, None, None], rtol=1e-3)


def test_statistics_of_observations_change_after_learning_and_never_in_between() -> None:
    """Else the ratio would compare two policies on two different inputs."""
    ppo = learner("ppo", spec=Spec(6, ACTIONS, tokens=Tokens(2, 2, False)))
    play = Play(ppo)(4)
    play.world._seen[..., ::3] = 1.0
    assert not ppo.norm.count.any()
    ppo.update()
    assert ppo.norm.count.all()
    kept = ppo.norm.mean.clone()
    for _ in range(3):
        play.step()
    ppo.policy()(play.obs, play.info)
    assert torch.equal(ppo.norm.mean, kept)


def test_what_a_replicate_sees_and_says() -> None:
    ppo = Play(learner("ppo", spec=ALONE))(5).learner
    obs = np.random.default_rng(0).normal(size=(7, OBS)).astype(np.float32)
    every = ppo.pi(ppo.outputs(ppo.see(torch.from_numpy(obs).expand(2, 7, OBS)[:, :, None])))
    for r in range(2):
        expected = (torch.from_numpy(obs) - ppo.norm.mean[r]) * ppo.norm.scale[r]
        torch.testing.assert_close(ppo.seen_by(r, obs), expected.clamp(-10, 10))
        logits = networks(ppo, "actor", r)[0](ppo.seen_by(r, obs))
        torch.testing.assert_close(every.probs[r, :, 0], logits.softmax(-1))


# Distributions ------------------------------------------------------------------------------------


def test_categorical_equals_torch_s() -> None:
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    action = torch.arange(50) % 4
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.probs, theirs.probs)
    assert torch.equal(ours.mode(), logits.argmax(-1))


def test_categorical_samples_as_often_as_it_should() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    dist = Categorical(p.log().expand(60_000, 4))
    noise = torch.rand(60_000, 1, generator=torch.Generator().manual_seed(0))
    counts = np.bincount(dist.sample(noise), minlength=4)
    assert counts[1] == 0
    expected = 60_000 * p.numpy()[[0, 2, 3]]
    assert stats.chisquare(counts[[0, 2, 3]], expected).pvalue > 1e-3
    ends = Categorical(p.log().expand(2, 4)).sample(torch.tensor([[0.0], [1 - 2**-24]]))
    assert ends.tolist() == [0, 3]
    first_never = Categorical(torch.tensor([[0.0, 1.0]]).log()).sample(torch.zeros(1, 1))
    assert first_never.tolist() == [1]


def test_gaussian_equals_torch_s() -> None:
    g = torch.Generator().manual_seed(0)
    output = torch.randn(40, 6, generator=g)
    ours = DiagonalGaussian(output)
    theirs = torch.distributions.Normal(output[:, :3], output[:, 3:].exp())
    action = torch.randn(40, 3, generator=g)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), output[:, :3])
    draws = DiagonalGaussian(torch.tensor([1.0, -0.5]).expand(50_000, 2))
    drawn = draws.sample(torch.rand(50_000, 1, generator=g)).numpy()
    assert stats.kstest(drawn[:, 0], "norm", (1.0, np.exp(-0.5))).pvalue > 1e-3
    assert torch.isfinite(draws.sample(torch.tensor([[0.0], [1.0]]).repeat(25_000, 1))).all()


# Acting -------------------------------------------------------------------------------------------


def test_acts_by_its_probabilities_and_judges_by_its_mode() -> None:
    ppo = learner("ippo", num_envs=500, spec=Spec(OBS, ACTIONS, 2))
    with torch.no_grad():
        ppo.nets["actor"].params["network.head.mean.weight"].mul_(100)
    obs = np.random.default_rng(4).normal(size=(2, 1, 2, OBS)).astype(np.float32)
    obs = obs.repeat(500, axis=1).reshape(1000, 2, OBS)  # one a replicate
    probs = ppo.pi(ppo.outputs(ppo.tensor(obs))).probs[:, 0].double().numpy()  # (R, N, A)
    assert not np.allclose(probs[0], probs[1], atol=0.01)
    counts = np.zeros_like(probs)
    for _ in range(10):
        action, stored = ppo.act(obs, {})
        assert torch.equal(stored["action"].flatten(0, 1), torch.from_numpy(action))
        counts += (action.reshape(2, 500, 2, 1) == np.arange(ACTIONS)).sum(1)
    for r, i in np.ndindex(2, 2):
        expected = 5_000 * probs[r, i] / probs[r, i].sum()
        assert stats.chisquare(counts[r, i], expected).pvalue > 1e-3
    greedy = ppo.policy()(obs, {}).reshape(2, 500, 2)
    assert (greedy == probs.argmax(-1)[:, None]).all()


def test_continuous_actions_are_clipped_for_the_world_alone() -> None:
    bounds = np.array([-0.5, -1.0], np.float32), np.array([0.5, 0.2], np.float32)
    ppo = learner("ppo", num_envs=100, spec=Spec(OBS, 2, 2, bounds))
    obs = np.random.default_rng(0).normal(size=(200, 2, OBS)).astype(np.float32)
    action, stored = ppo.act(obs, {})
    kept = stored["action"].flatten(0, 1).numpy()
    np.testing.assert_allclose(action, kept.clip(*bounds))
    assert (kept != action).mean() > 0.3  # most of a wide spread lies outside
    mean = ppo.outputs(ppo.tensor(obs)).chunk(2, -1)[0].flatten(0, 1).numpy()
    np.testing.assert_allclose(ppo.policy()(obs, {}), mean.clip(*bounds), rtol=1e-5, atol=1e-6)


# Learning -----------------------------------------------------------------------------------------


@both
def test_a_bandit_is_solved(encoder: str) -> None:
    """Three arms that pay 0, 1 and 0.5, with noise."""
    ppo = learner("ppo", encoder, num_envs=32, spec=ALONE, batch_size=64, learning_rate=0.01)
    obs, rng = np.ones((64, 1, OBS), np.float32), np.random.default_rng(0)
    over, no = np.ones(64, bool), np.zeros(64, bool)
    for _ in range(80):
        action, stored = ppo.act(obs, {})
        reward = np.array([0.0, 1.0, 0.5])[action] + 0.3 * rng.normal(size=(64, 1))
        ppo.observe(stored, reward.astype(np.float32), over, no, {"final_obs": obs})
        ppo.update()
    probs = ppo.pi(ppo.outputs(ppo.see(torch.ones(2, 1, 1, OBS)))).probs[:, 0, 0]
    assert (probs[:, 1] > 0.9).all(), probs


def test_a_chain_is_learned_to_its_exact_values() -> None:
    """Five cells in a row: 1 goes right, 0 left; leaving at the right pays 1, γ = 0.9.

    The critic is a table, and is compared with the exact values of the policy beside it.
    """
    n, gamma = 5, 0.9
    bare = {"normalise_obs": False, "normalise_reward": False}
    config = PPOConfig(
        gamma=gamma, learning_rate=0.02, rollout=16, batch_size=128, encoder={"hidden": ()}, **bare
    )  # type: ignore[arg-type]
    ppo = PPO(Spec(n, 2), 32, [0, 1], config, total_steps=16 * 32 * 60)
    eye, rng = np.eye(n, dtype=np.float32), np.random.default_rng(0)
    cell, age = np.zeros(64, int), np.zeros(64, int)
    for _ in range(16 * 60):
        action, stored = ppo.act(eye[cell][:, None], {})
        after = np.maximum(cell + 2 * action[:, 0] - 1, 0)
        left, age = after == n, age + 1
        late, after = age == 20, np.minimum(after, n - 1)
        reward = left.astype(np.float32)[:, None]
        ppo.observe(stored, reward, left, late, {"final_obs": eye[after][:, None]})
        ppo.update()
        over = left | late
        cell, age = np.where(over, rng.integers(n, size=64), after), np.where(over, 0, age)
    every = torch.eye(n).expand(2, n, n)[:, :, None]
    right = ppo.pi(ppo.outputs(every)).probs[:, :, 0, 1].numpy()
    best = gamma ** np.arange(n - 1, -1, -1)
    for r in range(2):
        found = networks(ppo, "critic", r)[0](torch.eye(n)).squeeze(-1).detach().numpy()
        move = np.zeros((n, n))
        for s in range(n):
            move[s, max(s - 1, 0)] += 1 - right[r, s]
            if s < n - 1:
                move[s, s + 1] += right[r, s]
        pays = right[r] * (np.arange(n) == n - 1)
        exact = np.linalg.solve(np.eye(n) - gamma * move, pays)
        np.testing.assert_allclose(found, exact, atol=0.05)
        np.testing.assert_allclose(exact, best, atol=0.05)


class Aim(BatchedParallelEnv):
    """One throw at a mark x in [-1, 1]: the reward is minus the square of the miss."""

    def __init__(self, num_envs: int):
        super().__init__(num_envs, 1, 1, Box(-2.0, 2.0, (1,)), max_steps=None)
        self.mark = np.zeros((num_envs, 1))

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self.mark[rows] = 2 * self.streams.uniform(1, rows) - 1

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -((action[:, 0] - self.mark) ** 2), np.ones(self.num_envs, bool)

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.mark[rows, :, None].astype(np.float32)


def test_a_continuous_target_is_hit() -> None:
    config = PPOConfig(encoder={"hidden": (32,)}, learning_rate=5e-3, epochs=8, batch_size=256)  # type: ignore[arg-type]
    ppo = PPO(Aim(1).sizes(), 64, [0, 1], config, total_steps=40_000)
    loop = LoopConfig(40_000, eval_every=40_000, eval_episodes=2, final_episodes=500)
    miss = -Trainer(Aim, ppo, loop, progress=False).train().final["episode_return"].mean(1)
    assert (miss < 0.01).all(), miss  # a throw at the middle misses by 1/3
    assert (ppo.nets["actor"].params["network.head.log_std"] < -0.7).all()
