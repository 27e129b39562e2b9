"""The replay against a naive one made of Python lists, and the faults it must not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from marl_lib.replay import Replay, minibatches
from marl_lib.seeding import RandomStreams

GAMMA = 0.9
AGENTS = 2
FIELDS = {
    "obs": ((1,), torch.float32),
    "action": ((AGENTS,), torch.int64),
    "next_obs": ((1,), torch.float32),
    "next_mask": ((3,), torch.bool),
}


def history(steps: int, rows: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return ``steps`` random steps of ``rows`` environments; every observation is unique."""
    rng = np.random.default_rng(seed)
    made = []
    for t in range(steps):
        name = (1000.0 * t + np.arange(rows)).astype(np.float32)[:, None]
        terminated = rng.random(rows) < 0.15
        made.append(
            {
                "obs": name,
                "action": rng.integers(5, size=(rows, AGENTS)),
                "reward": rng.normal(size=(rows, AGENTS)).astype(np.float32),
                "next_obs": name + 0.5,
                "next_mask": rng.random((rows, 3)) < 0.5,
                "terminated": terminated,
                "truncated": ~terminated & (rng.random(rows) < 0.15),
            }
        )
    return made


def filled(steps: int, num_envs: int, seeds: list[int], capacity: int) -> tuple[Replay, list]:
    replay = Replay(capacity, num_envs, seeds, FIELDS, (AGENTS,))
    past = history(steps, num_envs * len(seeds))
    for step in past:
        replay.add(**step)
    return replay, past


def place(obs: Any) -> tuple[int, int]:
    """Return time and row of a transition, read off its observation."""
    return divmod(int(obs[0]), 1000)


def naive_n_step(past: list[dict[str, Any]], t: int, row: int, n: int) -> dict[str, Any]:
    """Return what Sutton and Barto's n-step return makes of one row from step t, in plain loops."""
    reward, discount = np.zeros(AGENTS), 1.0
    for k in range(t, t + n):
        step = past[k]
        reward += discount * step["reward"][row]
        discount *= GAMMA
        if step["terminated"][row] or step["truncated"][row]:
            break
    last = {name: step[name][row] for name in ("next_obs", "next_mask", "terminated", "truncated")}
    return {"reward": reward, "discount": discount, **last}


def numpy(batch: dict[str, Any], at: int | None = None) -> dict[str, np.ndarray]:
    """Return a draw as arrays; of all its stretches only step ``at``, if given."""
    steps = slice(None) if at is None else at
    return {name: value[:, :, steps].numpy() for name, value in batch.items()}


@pytest.mark.parametrize("steps", [9, 10, 11, 25, 40])  # not full, just full, wrapped around
@pytest.mark.parametrize("n_step", [1, 2, 3, 6])
def test_draws_equal_a_replay_of_lists(steps: int, n_step: int) -> None:
    num_envs, seeds, capacity = 3, [0, 5], 31  # ten steps of time: 31 is no multiple of 3
    replay, past = filled(steps, num_envs, seeds, capacity)
    batch = numpy(replay.sample(100, 1, n_step, GAMMA), at=0)
    kept = range(max(0, steps - 10), steps - n_step + 1)
    seen = set()
    for r in range(len(seeds)):
        for i in range(100):
            t, row = place(batch["obs"][r, i])
            seen.add(t)
            assert t in kept
            assert row // num_envs == r  # a replicate sees its own rows alone
            np.testing.assert_array_equal(batch["action"][r, i], past[t]["action"][row])
            for name, value in naive_n_step(past, t, row, n_step).items():
                assert batch[name][r, i] == pytest.approx(value, abs=1e-5), name
    assert seen == set(kept)
    assert batch["terminated"].any() and batch["truncated"].any()
    assert not batch["first"].any()


def test_one_step_draws_hand_back_what_was_stored() -> None:
    replay, past = filled(steps=4, num_envs=2, seeds=[0], capacity=100)
    drawn = replay.sample(100)
    assert all(x.shape[:3] == (1, 100, 1) for x in drawn.values())
    batch = numpy(drawn, at=0)
    assert (batch["discount"] == 1.0).all()
    for i in range(100):
        t, row = place(batch["obs"][0, i])
        for name, value in past[t].items():
            np.testing.assert_array_equal(batch[name][0, i], value[row])
    assert drawn["obs"].dtype == torch.float32 and drawn["action"].dtype == torch.int64


def test_terminal_transitions_are_drawn_as_often_as_others() -> None:
    """A published replay never handed out the end of an episode, where all the reward lay."""
    replay, past = filled(steps=50, num_envs=4, seeds=[3], capacity=200)
    stored = np.mean([step["terminated"] for step in past])
    drawn = replay.sample(20_000)["terminated"].float().mean().item()
    assert drawn == pytest.approx(stored, abs=4 * np.sqrt(stored * (1 - stored) / 20_000))


@pytest.mark.parametrize("n_step", [1, 3])
def test_draws_are_uniform(n_step: int) -> None:
    replay, _ = filled(steps=17, num_envs=4, seeds=[0, 1], capacity=40)
    obs = replay.sample(50_000, n_step=n_step)["obs"][:, :, 0]
    for r in range(2):
        counts = np.unique(obs[r].numpy(), return_counts=True)[1]
        assert len(counts) == (10 - n_step + 1) * 4
        assert stats.chisquare(counts).pvalue > 1e-3
    # Two draws in a row, and two replicates, are independent of each other.
    slot = obs[..., 0].numpy()
    for a, b in [(slot[0], slot[1]), (slot[0, ::2], slot[0, 1::2])]:
        table = stats.contingency.crosstab(a, b).count
        assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("length", [1, 4, 10])
@pytest.mark.parametrize("n_step", [1, 3])
def test_stretches_equal_a_replay_of_lists(length: int, n_step: int) -> None:
    steps, num_envs = 23, 2
    if length + n_step - 1 > 10:
        length -= n_step - 1
    replay, past = filled(steps, num_envs, [0, 1], capacity=20)
    batch = numpy(replay.sample(100, length, n_step, GAMMA))
    starts = set()
    for r, i in np.ndindex(2, 100):
        t, row = place(batch["obs"][r, i, 0])
        starts.add(t)
        assert row // num_envs == r
        ended = False
        for k in range(length):
            assert place(batch["obs"][r, i, k]) == (t + k, row)
            np.testing.assert_array_equal(batch["action"][r, i, k], past[t + k]["action"][row])
            for name, value in naive_n_step(past, t + k, row, n_step).items():
                assert batch[name][r, i, k] == pytest.approx(value, abs=1e-5), name
            assert batch["first"][r, i, k] == (k > 0 and ended)
            ended = past[t + k]["terminated"][row] | past[t + k]["truncated"][row]
    assert starts == set(range(steps - 10, steps - length - n_step + 2))
    assert length == 1 or batch["first"].any()


def test_the_draws_of_a_replicate_do_not_depend_on_its_neighbours() -> None:
    alone, _ = filled(steps=12, num_envs=2, seeds=[7], capacity=20)
    beside, _ = filled(steps=12, num_envs=2, seeds=[1, 7, 2], capacity=20)
    for _ in range(3):
        a, b = (replay.sample(32, 2)["obs"] for replay in (alone, beside))
        torch.testing.assert_close(a[0], b[1] - 2, rtol=0, atol=0)  # rows 2 and 3 of six


def test_capacity() -> None:
    with pytest.raises(ValueError, match="replay of 3 transitions.*4 environments"):
        Replay(3, 4, [0], FIELDS, (AGENTS,))
    replay = Replay(4, 4, [0], FIELDS, (AGENTS,))  # holds a single step
    with pytest.raises(ValueError, match="holds 0 steps, fewer than 1"):
        replay.sample(1)
    for step in history(5, 4):
        replay.add(**step)
        assert len(replay) == 4
    assert set(replay.sample(200)["obs"].flatten().tolist()) == {4000, 4001, 4002, 4003}
    with pytest.raises(ValueError, match="holds 1 steps, fewer than 2"):
        replay.sample(1, n_step=2)
    with pytest.raises(ValueError, match="holds 1 steps, fewer than 3"):
        replay.sample(1, 3)


@pytest.mark.parametrize("steps", [3, 10, 27])  # filling, full, wrapped
def test_a_restored_replay_goes_on_exactly(steps: int) -> None:
    replay, _ = filled(steps, num_envs=2, seeds=[0, 1], capacity=20)
    replay.sample(5)
    state = replay.state_dict()
    kept = {name: value.clone() for name, value in state["data"].items()}
    other = Replay(20, 2, [8, 9], FIELDS, (AGENTS,))
    other.load_state_dict(state)
    for step in history(4, 4, seed=1):
        replay.add(**step)
        other.add(**step)
        for a, b in [
            (replay.sample(16, 1, 3, GAMMA), other.sample(16, 1, 3, GAMMA)),
            (replay.sample(16, 2), other.sample(16, 2)),
        ]:
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(kept[name], state["data"][name]) for name in kept)  # a copy, not a view
    with pytest.raises(ValueError, match="capacity is 15 steps, not 10"):
        Replay(30, 2, [0, 1], FIELDS, (AGENTS,)).load_state_dict(state)


def test_what_does_not_fit_is_refused() -> None:
    replay = Replay(10, 2, [0], FIELDS, (AGENTS,))
    step = history(1, 2)[0]
    with pytest.raises(ValueError, match=r"expected the fields .*next_obs.*got \['obs'\]"):
        replay.add(obs=step["obs"])
    with pytest.raises(ValueError, match="expected the fields"):
        replay.add(**step, state=step["obs"])
    # Two environments and two agents: a reward (2,) would spread over the wrong axis in silence.
    with pytest.raises(ValueError, match=r"reward has shape \(2,\), expected \(2, 2\)"):
        replay.add(**{**step, "reward": step["reward"][:, 0]})
    assert len(replay) == 0


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_minibatches_part_a_rollout_and_keep_what_belongs_together(parts: int) -> None:
    total, size = 20, 20 // parts
    number = torch.arange(20).expand(2, total)
    batch = {"number": number, "each": number[..., None, None].expand(2, total, 3, 4)}
    streams = RandomStreams([5, 6], 1, "shuffle")
    passes = [list(minibatches(batch, parts, streams)) for _ in range(2)]
    for found in passes:
        assert len(found) == parts and all(x["each"].shape == (2, size, 3, 4) for x in found)
        for x in found:
            assert torch.equal(x["each"], x["number"][..., None, None].expand(2, size, 3, 4))
    rows = [torch.cat([x["number"] for x in found], 1) for found in passes]
    for row in torch.cat(rows):  # none twice
        assert row.unique().numel() == parts * size
    orders = [tuple(row.tolist()) for row in torch.cat(rows)]
    assert len(set(orders)) == 4  # each replicate and each pass in an order of its own
    alone = list(minibatches({"number": number[:1]}, parts, RandomStreams([6], 1, "shuffle")))
    assert torch.equal(torch.cat([x["number"] for x in alone], 1)[0], rows[0][1])
