"""What holds of every learner, whatever encodes its observations and however many seeds it runs."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import (
    ACTIONS,
    AGENTS,
    BOX,
    DISCRETE,
    ENCODERS,
    ENVS,
    LEARNERS,
    MEMORIES,
    OBS,
    OFF_POLICY,
    ON_POLICY,
    Play,
    full,
    learner,
    loss_of,
    replaced,
    same,
    scatter,
)
from scipy import stats
from torch import Tensor

from marl_lib.replicates import lift

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
every = pytest.mark.parametrize("name", LEARNERS)
# Both kinds of actions lead through the same lines there.
in_every_cell = pytest.mark.parametrize("name", [n for n in LEARNERS if n != "maddpg-box"])
off_policy = pytest.mark.parametrize("name", OFF_POLICY)
on_policy = pytest.mark.parametrize("name", ON_POLICY)
discrete = pytest.mark.parametrize("name", DISCRETE)
encoders = pytest.mark.parametrize("encoder", ENCODERS)
memories = pytest.mark.parametrize("encoder", MEMORIES)
sharing = pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
seeds = pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)


def learn(made: Any) -> Any:
    """Make one update now."""
    return made.learn_once() if hasattr(made, "learn_once") else made.update()


def losses(made: Any, batch: Any) -> dict[str, Tensor]:
    return {name: loss_of(made, batch, name).detach() for name in made.losses()}


def prepared(made: Any) -> Any:
    """Return a rollout ready to learn from, and leave the learner as it was."""
    state = made.state_dict()
    batch = made.prepare()
    made.load_state_dict(state)
    return batch


def goals(made: Any) -> Tensor:
    """Return what a rollout is learned towards, (R, T, B, V)."""
    batch = prepared(made)
    return whole(batch["advantage" if "advantage" in batch else "returns"])


def whole(x: Tensor) -> Tensor:
    """Return stretches (R, n, length, ...) as the rollout they are of, (R, T, B, ...)."""
    return x.unflatten(1, (-1, ENVS)).transpose(2, 3).flatten(1, 2)


# What moves ---------------------------------------------------------------------------------------


@every
@encoders
@sharing
@seeds
def test_every_parameter_moves(
    name: str, encoder: str, share: bool, seeds: tuple[int, ...]
) -> None:
    """Of each agent's network in each replicate; what has no gradient does not move.

    A bias of attention's keys shifts all scores of a query alike, so it has none.
    """
    made = full(name, encoder, seeds, share_parameters=share)
    if name in OFF_POLICY:
        replaced(made, batch_size=20)
    before = {n: net.flat.detach().clone() for n, net in made.nets.items()}
    figures = learn(made)
    for n, net in made.nets.items():
        networks = len(seeds) * net.copies
        assert net.copies in ((1,) if share else (1, AGENTS))
        for key, old in net.views(before[n]).items():
            moved = (net.params[key] != old).view(networks, -1).any(1)
            assert key.endswith("key.bias") or moved.all(), (n, key)
            assert net.params[key].isfinite().all(), (n, key)
    assert {x.shape for x in figures.values()} == {(len(seeds),)}


@off_policy
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
@sharing
def test_targets_move_when_asked_and_carry_no_gradient(
    name: str, encoder: str, share: bool
) -> None:
    copied = full(name, encoder, share_parameters=share)
    replaced(copied, target_every=3, tau=1.0)
    start = {n: net.target.clone() for n, net in copied.nets.items()}
    for _ in range(2):
        learn(copied)
        assert same(start, {n: net.target for n, net in copied.nets.items()})
    learn(copied)
    for n, net in copied.nets.items():
        torch.testing.assert_close(net.target, net.flat)
        assert not torch.equal(net.target, start[n])
        assert net.target.data_ptr() != net.flat.data_ptr()
        assert not net.target.requires_grad and net.target.grad is None
    replaced(copied, target_every=1, tau=0.25)
    start = {n: net.target.clone() for n, net in copied.nets.items()}
    learn(copied)
    for n, net in copied.nets.items():
        torch.testing.assert_close(net.target, 0.75 * start[n] + 0.25 * net.flat)


@on_policy
def test_what_a_rollout_is_learned_towards_carries_no_gradient_and_stays(name: str) -> None:
    made = full(name)
    kept = {n: x.clone() for n, x in made.data.items()}
    assert not any(x.requires_grad for x in prepared(made).values())
    made.update()
    assert same(kept, dict(made.data))


@off_policy
def test_each_loss_reaches_its_own_networks_alone(name: str) -> None:
    made = full(name)
    scatter(made)
    batch = made.sample()
    for loss, (learning, _) in made.losses().items():
        for net in made.nets.values():
            net.zero_grad()
        loss_of(made, batch, loss).sum().backward()
        for n, net in made.nets.items():
            reached = [bool(g.any()) for g in net.grads.values()]
            assert all(reached) if n in learning else not any(reached), (loss, n)


@every
def test_long_gradients_are_cut_network_by_network(name: str) -> None:
    made = full(name, max_grad_norm=1e-3, share_parameters=False)
    figures = learn(made)
    norms = [n for n in figures if n.endswith("grad_norm")]
    assert norms and all((torch.as_tensor(figures[n]) > 1e-3).all() for n in norms)
    for n, net in made.nets.items():
        rows = torch.cat([g.reshape(2 * net.copies, -1) for g in net.grads.values()], dim=1)
        assert (rows.norm(dim=1) < 1.01e-3).all(), n


@every
def test_learning_rates_go_down_to_zero_if_asked(name: str) -> None:
    """A replay is learned from as it stands now, a rollout as of the step it was begun with."""

    def rates(**given: Any) -> list[float]:
        made = learner(name, seeds=(0,), **given)
        play, found = Play(made), []
        for _ in range(5):  # of 16 steps each
            for _ in range(4):
                play.step()
            learn(made)
            rate = made.learning_rates()
            found.append({o.learning_rate / rate[n] for n, o in made.optimizers.items()})
        assert all(len(shares) == 1 for shares in found)  # the same share for every network
        return [shares.pop() for shares in found]

    left = [0.75, 0.5, 0.25, 0.0, 0.0] if name in OFF_POLICY else [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(anneal=True, total_steps=64) == pytest.approx(left)
    assert rates(anneal=True) == rates(anneal=False, total_steps=64) == [1.0] * 5


@off_policy
@pytest.mark.parametrize("num_envs", [3, 16, 50])
def test_updates_for_each_step_do_not_depend_on_the_number_of_environments(
    name: str, num_envs: int
) -> None:
    starts, every = 40, 16
    made = learner(
        name, "mlp", (0,), num_envs, learning_starts=starts, train_every=every, batch_size=2
    )
    play = Play(made)
    while made.steps < 200:
        play.step()
        figures = made.update()
        assert made.updates == max(0, made.steps - starts) // every
        assert not figures or {v.shape for v in figures.values()} == {(1,)}


@on_policy
def test_a_rollout_is_learned_from_when_it_is_full(name: str) -> None:
    made = learner(name)
    play = Play(made)
    for updates in range(2):
        for _ in range(4):
            assert made.update() == {} and made.updates == updates
            play.step()
        assert all(np.isfinite(x).all() for x in made.update().values())


# Going on, and replicates -------------------------------------------------------------------------


@in_every_cell
@encoders
@sharing
@seeds
def test_a_restored_learner_goes_on_bit_for_bit(
    name: str, encoder: str, share: bool, seeds: tuple[int, ...]
) -> None:
    """Stopped within a rollout, kept in a file without code, taken up by one of another start."""
    given: dict[str, Any] = {"share_parameters": share}
    given |= {"train_every": 3 * ENVS, "target_every": 2} if name in OFF_POLICY else {}
    first = learner(name, encoder, seeds, **given)
    play = Play(first)(6)
    state, file = first.state_dict(), io.BytesIO()
    kept = copy.deepcopy(state)
    torch.save(state, file)
    file.seek(0)
    second = learner(name, encoder, tuple(8 + s for s in seeds), **given)
    second.load_state_dict(torch.load(file, weights_only=True))
    other = Play(second)
    other.world.load_state_dict(copy.deepcopy(play.world.state_dict()))
    other.obs, other.info = play.obs, play.info
    for each in (play, other):
        each(4)
    assert same(play.action, other.action) and same(play.figures, other.figures)
    assert same(first.state_dict(), second.state_dict())
    assert same(state, kept) and not same(state, first.state_dict())  # a copy, not a view


@every
@encoders
@sharing
def test_one_of_several_seeds_equals_that_seed_alone(name: str, encoder: str, share: bool) -> None:
    """Start, acting, draws and learning; alone, other kernels run on other shapes."""
    given: dict[str, Any] = {"share_parameters": share}
    if name in OFF_POLICY:
        given |= {"train_every": 3 * ENVS, "target_every": 1, "tau": 0.5}
    plays = [Play(learner(name, encoder, seeds, **given)) for seeds in ((4, 7), (7,))]
    for play in plays:
        # Adam makes a step of full length even of a gradient that is nothing but rounding.
        for optimizer in play.learner.optimizers.values():
            optimizer.eps = 1e-3
        play(9)
    several, alone = (play.learner for play in plays)
    close = {"rtol": 1e-3, "atol": 1e-5}
    assert alone.updates >= 2
    for n, net in alone.nets.items():
        for key, p in net.params.items():
            torch.testing.assert_close(several.nets[n].params[key][1:], p, msg=key, **close)
        if net.target is not None:
            for key, p in net.views(net.target).items():
                among = several.nets[n].views(several.nets[n].target)[key][1:]
                torch.testing.assert_close(among, p, msg=key, **close)
    torch.testing.assert_close(several.memory[1:], alone.memory, **close)
    np.testing.assert_allclose(plays[0].action[ENVS:], plays[1].action, **close)
    for n, figure in plays[1].figures.items():
        np.testing.assert_allclose(plays[0].figures[n][1:], figure, err_msg=n, rtol=1e-2, atol=1e-4)
    assert not torch.allclose(
        several.nets[several.acting].flat.view(2, -1)[0], alone.nets[alone.acting].flat
    )


@every
def test_the_same_seed_gives_the_same_run_whatever_torchs_generator_says(name: str) -> None:
    states = []
    for start in (0, 1):
        torch.manual_seed(start)
        states.append(Play(learner(name))(9).learner.state_dict())
    assert same(*states)


@every
@sharing
def test_parameters_are_counted(name: str, share: bool) -> None:
    made = learner(name, "lstm", share_parameters=share)
    assert type(made.parameters) is int
    plain = [p.numel() for n in made.nets for p in made.network(1, n).parameters()]
    assert made.parameters == sum(plain)


# Teams --------------------------------------------------------------------------------------------


def permute(made: Any, order: list[int]) -> None:
    """Give the acting network of each agent, or its id, to another."""
    params = made.nets[made.acting].params
    with torch.no_grad():
        if made.config.share_parameters:
            ids = params["network.encoder.body.0.weight"][..., -len(order) :]
            ids.copy_(ids[..., order].clone())
        else:
            for p in params.values():
                p.copy_(p[:, order].clone())


@every
@encoders
@sharing
def test_permuting_agents_permutes_what_they_say(name: str, encoder: str, share: bool) -> None:
    spec = dataclasses.replace(LEARNERS[name][1], n_agents=3)
    made = learner(name, encoder, spec=spec, share_parameters=share)
    scatter(made)
    order = [2, 0, 1]
    obs = torch.randn(2, 6, 3, OBS, generator=torch.Generator().manual_seed(0))
    out = made.outputs(obs)[:, :, order]
    assert not torch.allclose(made.outputs(obs[:, :, order]), out, atol=1e-3)
    permute(made, order)
    torch.testing.assert_close(made.outputs(obs[:, :, order]), out)


@every
@sharing
def test_agents_act_on_their_own_observation_alone(name: str, share: bool) -> None:
    made = learner(name, "attention", share_parameters=share)
    scatter(made)
    obs = torch.randn(2, 6, AGENTS, OBS, generator=torch.Generator().manual_seed(0))
    out, other = made.outputs(obs), obs.clone()
    other[:, :, 1] += 1.0
    changed = (made.outputs(other) - out).abs().amax(-1)
    assert (changed[:, :, 0] < 1e-6).all() and (changed[:, :, 1] > 1e-3).all()
    alike = made.outputs(obs[:, :, :1].expand(-1, -1, AGENTS, -1))  # but they know who they are
    assert ((alike[:, :, 0] - alike[:, :, 1]).abs().amax(-1) > 1e-3).all()


@every
@sharing
def test_a_team_of_one_learns(name: str, share: bool) -> None:
    spec = dataclasses.replace(LEARNERS[name][1], n_agents=1)
    made = learner(name, spec=spec, share_parameters=share)
    assert made.nets[made.acting].params["network.encoder.body.0.weight"].shape == (2, 8, OBS)
    assert all(np.isfinite(x).all() for x in Play(made)(9).figures.values())


@every
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_the_order_of_what_is_learned_from_does_not_matter(name: str, encoder: str) -> None:
    made = full(name, encoder)
    scatter(made)
    if name in OFF_POLICY:
        batch = made.sample()
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        found = losses(made, batch)
        other = losses(made, {n: x[:, order] for n, x in batch.items()})
        for n, loss in found.items():
            torch.testing.assert_close(other[n], loss)
    else:  # environments side by side
        order = torch.tensor([2, 0, 3, 1])
        before = goals(made)
        for n, x in made.data.items():
            made.data[n] = x[:, :, order]
        made.start = made.start[:, order]
        torch.testing.assert_close(goals(made), before[:, :, order], rtol=1e-4, atol=1e-5)


# Ends ---------------------------------------------------------------------------------------------


@off_policy
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_after_an_end_nothing_counts_and_after_a_time_limit_all_does(
    name: str, encoder: str
) -> None:
    made = full(name, encoder, ends=0.4, max_steps=2, burn_in=0, batch_size=16)
    scatter(made)
    batch = made.sample()
    ended, cut = batch["terminated"], batch["truncated"] & ~batch["terminated"]
    assert (batch["truncated"] & ended).any() and cut.flatten(1).any(1).all()
    found = losses(made, batch)
    learned = [n for n in found if n != "actor_loss"]
    far = {**batch, "next_obs": torch.where(ended[..., None, None], 1e3, batch["next_obs"])}
    flipped = {**far, "truncated": ~batch["truncated"]}  # only the other flag has a say
    for other in (far, flipped):
        for n, loss in losses(made, other).items():
            torch.testing.assert_close(loss, found[n])
    far["next_obs"] = torch.where(cut[..., None, None], 1e3, batch["next_obs"])
    for n in learned:
        assert (losses(made, far)[n] - found[n]).abs().min() > 1e-3, n


@on_policy
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_a_rollout_is_judged_by_what_a_time_limit_cut_off_and_not_beyond_an_end(
    name: str, encoder: str
) -> None:
    made = full(name, encoder, ends=0.2, rollout=6, normalise_reward=False)
    scatter(made)
    before, d = goals(made), made.data
    d["next_obs"][d["terminated"]] += 5.0
    torch.testing.assert_close(goals(made), before)
    cut = d["truncated"] & ~d["terminated"]
    assert cut[:, :-1].flatten(1).any(1).all()
    d["next_obs"][cut] += 5.0
    changed = (goals(made) - before).abs().amax(-1) > 1e-5
    ended, earlier = d["truncated"] | d["terminated"], torch.zeros_like(cut[:, 0])
    for t in reversed(range(6)):  # it is told to the steps before it, of its own episode
        earlier = cut[:, t] | (earlier & ~ended[:, t])
        assert torch.equal(changed[:, t], earlier), t


# Memory -------------------------------------------------------------------------------------------


@every
@memories
def test_the_memory_begins_anew_with_each_episode(name: str, encoder: str) -> None:
    made = learner(name, encoder)
    play, both = Play(made, ends=0.3), 0
    for _ in range(6):
        play(1)
        ended = torch.from_numpy(play.info["_final_obs"]).view(2, ENVS)
        assert not made.memory[ended].any()
        assert made.memory[~ended].any(-1).all()
        both += bool(ended.any() and not ended.all())
    assert both


@every
@memories
def test_the_memory_of_a_policy_begins_anew_with_each_episode(name: str, encoder: str) -> None:
    """Where an episode ended it acts as a fresh one; and each has a memory of its own."""
    made = learner(name, encoder, num_envs=40)
    scatter(made, 1.0)
    with torch.no_grad():  # so that actions rest on what is remembered
        for key, p in made.nets[made.acting].params.items():
            if key.startswith("network.head") and key.endswith("bias"):
                p.zero_()
    play, acting = Play(made, ends=0.3), made.memory.clone()
    policy, fresh = made.policy(), made.policy()
    for _ in range(3):  # none of them ended
        policy(-play.obs, {**play.info, "_final_obs": np.zeros(80, bool)})
    play.step()
    made.memory.copy_(acting)
    ended = play.info["_final_obs"]
    on, anew = policy(play.obs, play.info), fresh(play.obs, play.info)
    np.testing.assert_allclose(on[ended], anew[ended], rtol=1e-5, atol=1e-6)
    assert not np.allclose(on[~ended], anew[~ended], atol=1e-3)
    assert torch.equal(made.memory, acting)
    first = play.world.reset(seed=0)  # and so it does after a reset
    np.testing.assert_allclose(policy(*first), made.policy()(*first), rtol=1e-5, atol=1e-6)


@off_policy
@memories
@sharing
def test_a_stretch_is_remembered_as_it_was_acted(name: str, encoder: str, share: bool) -> None:
    """Through the ends of episodes: the memories of acting, computed anew from the replay."""
    made = learner(name, encoder, share_parameters=share)
    play = Play(made, ends=0.2)
    acted = torch.stack([play.step()["memory"] for _ in range(9)], 2)  # (R, B, T, N, S)
    data = {n: x[:9].unflatten(1, (2, ENVS)).movedim(0, 2) for n, x in made.replay.data.items()}
    ended = data["terminated"] | data["truncated"]
    first = torch.cat([torch.zeros_like(ended[..., :1]), ended[..., :-1]], -1)
    assert first.flatten(1).any(1).all()
    seen = {"obs": data["obs"], "action": data["action"], "first": first}
    for burn_in in (0, 3):
        made.burn_in = burn_in
        found = made.lift(made.remembering, seen)
        before = torch.cat([torch.zeros_like(acted[:, :, :1]), acted[:, :, :-1]], 2)
        acting = made.acting
        torch.testing.assert_close(found[f"{acting}_memory"], before[:, :, burn_in])
        torch.testing.assert_close(found[f"{acting}_target_memory"], acted[:, :, burn_in:])
        assert found["obs"].shape[2] == 9 - burn_in


@off_policy
@memories
def test_every_network_is_run_through_what_only_fills_its_memory(name: str, encoder: str) -> None:
    """Step by step, each network with a memory, and its target, over what it looks at."""
    made = full(name, encoder, ends=0.3, burn_in=2)
    scatter(made)
    drawn, sample = {}, made.replay.sample
    made.replay.sample = lambda *a: drawn.update(sample(*a)) or dict(drawn)
    batch, first = made.sample(), drawn["first"]
    assert first.any() and not any(x.requires_grad for x in batch.values())
    for n, x in made.lift(lambda net, b: made.looked_at(b), drawn).items():
        for role in ("fixed", "target"):
            after: list[Tensor] = []
            for t in range(4):

                def step(net: Any, *row: Tensor, n: str = n, role: str = role) -> Any:
                    return getattr(net if role == "fixed" else net.target, n)(*row)[1]

                held = [x * ~first[:, :, t, None, None] for x in after[-1:]]
                if n == "critic" and not held:  # which is no plain team
                    held = [x.new_zeros(*x.shape[:2], x.shape[3], made.nets[n].module.memory_size)]
                after.append(made.lift(step, x[:, :, t], *held))
            if role == "target":
                expected = torch.stack(after[2:], 2)
                torch.testing.assert_close(batch[f"{n}_target_memory"], expected)
            else:
                torch.testing.assert_close(batch[f"{n}_memory"], after[1])
                if n != made.acting:
                    before = torch.stack(after[1:3], 2) * ~first[:, :, 2:, None, None]
                    torch.testing.assert_close(batch[f"{n}_before"], before)


@off_policy
@memories
def test_the_burn_in_fills_the_memory_and_teaches_nothing(name: str, encoder: str) -> None:
    made = full(name, encoder, ends=0.0, burn_in=2)
    scatter(made)
    drawn, draws = made.replay.sample(8, 4), made.draws.state_dict()

    def lost(field: str | None = None) -> dict[str, Tensor]:
        """Return the losses where a field was another in the first two of four steps."""
        changed = {n: x.clone() for n, x in drawn.items()}
        changed["first"][:] = False
        if field is not None:
            changed[field][:, :, :2] += 1.0
        made.replay.sample = lambda *_: changed
        made.draws.load_state_dict(draws)
        return losses(made, made.sample())

    found, paid, seen = lost(), lost("reward"), lost("obs")
    for n, loss in found.items():
        torch.testing.assert_close(paid[n], loss)
        assert ((seen[n] - loss).abs() > 1e-6).all(), n


@on_policy
@pytest.mark.parametrize(
    ("encoder", "length"),
    [("mlp", None), ("attention", None), *itertools.product(MEMORIES, (2, None))],
)
@sharing
def test_a_rollout_says_again_what_was_said_in_acting(
    name: str, encoder: str, share: bool, length: int | None
) -> None:
    """In a second rollout, which begins within episodes: so PPO's first ratio is one."""
    given = {"rollout": 6, "sequence_length": length}
    made = learner(name, encoder, share_parameters=share, **given)
    scatter(made)
    play = Play(made, ends=0.2)(6)
    made.update()
    assert not made.memory_size or made.memory.any()
    said = []
    for _ in range(6):
        seen = made.see(made.tensor(play.obs)), made.memory
        said.append(made.lift(lambda net, *x: getattr(net, made.acting)(*x)[0], *seen))
        play.step()
    assert (made.data["terminated"] | made.data["truncated"])[:, :-1].flatten(1).any(1).all()
    batch = made.prepare()
    rows = batch["obs"], batch[f"{made.acting}_memory"], batch["first"]
    again = made.lift(lambda net, *x: getattr(net, made.acting)(*x)[0], *rows)
    torch.testing.assert_close(whole(again), torch.stack(said, 1), rtol=1e-4, atol=1e-5)
    if "log_prob" in batch:
        figures = lift(lambda net, b: made.loss(net, b, 1e-4)[1], made.nets, batch)
        assert (figures["approx_kl"].abs() < 1e-6).all()
        assert (figures["clip_fraction"] == 0).all()


# Acting -------------------------------------------------------------------------------------------


@discrete
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
@pytest.mark.parametrize("starts", [0, 10**6])
def test_illegal_actions_are_never_taken(name: str, encoder: str, starts: int) -> None:
    given = {"learning_starts": starts} if name in OFF_POLICY else {}
    made = learner(name, encoder, num_envs=50, **given)
    scatter(made, 3.0)
    rng, taken = np.random.default_rng(0), np.zeros(ACTIONS)
    policies = [lambda *x: made.act(*x)[0], made.policy(), made.policy(sampled=True)]
    for _ in range(10):
        obs = rng.normal(size=(100, AGENTS, OBS)).astype(np.float32)
        mask = (rng.integers(1, 8, size=(100, AGENTS, 1)) >> np.arange(ACTIONS) & 1).astype(bool)
        for act in policies:
            action = act(obs, {"action_mask": mask, "_final_obs": np.zeros(100, bool)})
            assert action.shape == (100, AGENTS) and action.dtype == np.int64
            assert np.take_along_axis(mask, action[..., None], -1).all()
            taken += np.bincount(action.ravel(), minlength=ACTIONS)
    assert (taken > 100).all()


@discrete
@encoders
def test_judged_it_takes_the_legal_action_it_thinks_best(name: str, encoder: str) -> None:
    made = learner(name, encoder)
    scatter(made)
    obs, info = Play(made).world.reset(seed=5)
    said = made.outputs(made.see(made.tensor(obs))).flatten(0, 1)
    best = said.masked_fill(~torch.from_numpy(info["action_mask"]), -torch.inf).argmax(-1)
    np.testing.assert_array_equal(made.policy()(obs, info), best)


def make_a_prize_of_the_last_action(made: Any, role: str) -> None:
    """Let the acting networks, or their targets, think the last action the best by far."""
    for n in {made.acting, "central"} & made.nets.keys():
        for key, p in made.nets[n].roles[role].items():
            if key.endswith(("advantage.bias", "mean.bias", "network.head.bias")):
                p[..., -1] += 100.0


@pytest.mark.parametrize("name", [n for n in DISCRETE if n in OFF_POLICY])
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
@pytest.mark.parametrize("double", [True, False])
def test_illegal_actions_are_never_bootstrapped_from(name: str, encoder: str, double: bool) -> None:
    given: dict[str, Any] = {"dqn": {"dueling": False}}.get(name, {})
    made = full(name, encoder, **given if name == "maddpg" else given | {"double": double})
    scatter(made)
    batch = made.sample()
    batch["action"] = batch["action"].clamp(max=1)  # else its own value would enter the loss
    batch["mask"], batch["next_mask"] = batch["mask"].clone(), batch["next_mask"].clone()
    legal, batch["next_mask"][..., 0] = {**batch, "next_mask": batch["next_mask"] | True}, True
    batch["next_mask"][..., -1] = False
    for role in ("target", "fixed"):
        key = "critic_loss" if name == "maddpg" else "loss"
        found = losses(made, batch)[key]
        make_a_prize_of_the_last_action(made, role)
        torch.testing.assert_close(losses(made, batch)[key], found)
    assert (losses(made, legal)[key] - found).abs().min() > 1e-3


@pytest.mark.parametrize("name", ["pqn", "pqn_vdn"])
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_illegal_actions_are_no_part_of_returns(name: str, encoder: str) -> None:
    made = full(name, encoder, rollout=1, sequence_length=None, normalise_reward=False)
    made.data["next_mask"][..., 0], made.data["next_mask"][..., -1] = True, False
    found = goals(made)
    make_a_prize_of_the_last_action(made, "fixed")
    torch.testing.assert_close(goals(made), found)
    made.data["next_mask"][..., -1] = True
    going = ~made.data["terminated"]
    assert ((goals(made) - found).abs().amin(-1)[going] > 10).all()


@every
@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_judging_repeats_itself_and_disturbs_nothing(name: str, encoder: str) -> None:
    made = learner(name, encoder, num_envs=20)
    scatter(made)
    play = Play(made)
    for _ in range(2):
        play.step()
    state, runs = made.state_dict(), {}
    for sampled in (False, True):
        one, two = (
            [p(play.obs, play.info) for _ in range(3)]
            for p in (made.policy(sampled), made.policy(sampled))
        )
        np.testing.assert_array_equal(one, two)
        runs[sampled] = np.array(one)
    assert not np.allclose(runs[False], runs[True])  # it explores
    assert same(state, made.state_dict())


@pytest.mark.parametrize("name", [n for n in DISCRETE if "mappo" not in n])
def test_agents_explore_apart_and_evenly(name: str) -> None:
    """Agents, environments, replicates and steps are independent of each other."""
    many = 20
    spec = dataclasses.replace(LEARNERS[name][1], n_actions=many, action_masks=False)
    made = learner(name, num_envs=40, spec=spec)
    for net in made.nets.values():  # all actions are alike
        net.flat.detach().zero_()
    obs = np.zeros((80, AGENTS, OBS), np.float32)
    actions = np.stack([made.act(obs, {})[0] for _ in range(100)])  # (T, R × B, N)
    assert stats.chisquare(np.bincount(actions.ravel(), minlength=many)).pvalue > 1e-3
    few = actions % 4
    for a, b in [
        (few[..., 0], few[..., 1]),
        (few[:, 0], few[:, 1]),
        (few[:, :40], few[:, 40:]),
        (few[:-1], few[1:]),
    ]:
        table = stats.contingency.crosstab(a.ravel(), b.ravel()).count
        assert stats.chi2_contingency(table).pvalue > 1e-3


@every
@pytest.mark.parametrize("device", DEVICES)
def test_device_and_dtype(name: str, device: str) -> None:
    made = learner(name, "gru", device=device)
    play = Play(made)(9)
    assert play.figures and {x.dtype for x in play.figures.values()} == {np.dtype(np.float32)}
    tensors = [made.memory, *(net.flat for net in made.nets.values())]
    tensors += (made.replay.data if name in OFF_POLICY else made.data).values()
    assert {x.device.type for x in tensors} == {device}
    assert {x.dtype for x in tensors} <= {torch.float32, torch.int64, torch.bool}
    continuous = made.spec.bounds is not None
    assert play.action.dtype == (np.float32 if continuous else np.int64)
    assert play.action.shape == (2 * ENVS, AGENTS, *((2,) if continuous else ()))
    if continuous:
        assert (play.action >= BOX[0]).all() and (play.action <= BOX[1]).all()
