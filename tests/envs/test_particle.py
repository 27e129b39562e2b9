"""The particle worlds equal mpe2's, obey mechanics, and play as teams."""

from __future__ import annotations

import numpy as np
import pytest
from mpe2 import (
    simple_reference_v3,
    simple_speaker_listener_v4,
    simple_spread_v3,
    simple_tag_v3,
)

from marl_lib.envs.particle import (
    PUSHES,
    BatchedCooperativeNavigation,
    BatchedPredatorPrey,
    BatchedReference,
    BatchedSpeakerListener,
)

EPISODES, STEPS = 40, 25  # 1,000 steps

# ours, theirs, options of ours, options of theirs
PAIRS = {
    "spread": (BatchedCooperativeNavigation, simple_spread_v3, {}, {"local_ratio": 0.0}),
    "spread of five": (
        BatchedCooperativeNavigation,
        simple_spread_v3,
        {"n_agents": 5, "local_ratio": 0.5},
        {"N": 5, "local_ratio": 0.5},
    ),
    "tag": (BatchedPredatorPrey, simple_tag_v3, {}, {}),
    "tag of many": (
        BatchedPredatorPrey,
        simple_tag_v3,
        {"n_predators": 2, "n_prey": 3, "n_obstacles": 1},
        {"num_adversaries": 2, "num_good": 3, "num_obstacles": 1},
    ),
    "speaker and listener": (BatchedSpeakerListener, simple_speaker_listener_v4, {}, {}),
    "reference": (BatchedReference, simple_reference_v3, {}, {"local_ratio": 0.5}),
}


def their_state(world):
    """Return positions (E, 2) and velocities (M, 2) of mpe2's world."""
    position = np.array([body.state.p_pos for body in world.entities])
    return position, np.array([agent.state.p_vel for agent in world.agents])


def their_goals(name, world):
    """Return the goals of our world that stand for theirs."""
    goals = [world.landmarks.index(a.goal_b) for a in world.agents if a._goal_b is not None]
    return np.array(goals) if name == "reference" else goals[0]


def same_actions(name, rng, ours, their_env):
    """Return an action for ours (1, N[, A]) and the same for each agent of theirs."""
    agents = their_env.possible_agents
    if not ours.continuous:
        given = [int(rng.integers(their_env.action_space(a).n)) for a in agents]
        return np.array([given]), dict(zip(agents, given, strict=True))
    low, high = ours.single_action_space.low, ours.single_action_space.high
    given = rng.uniform(low, high, (1, len(agents), len(low))).astype(np.float32)
    theirs = {}
    for agent, (x, y, *words) in zip(agents, given[0], strict=True):
        push = [0.0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)]
        size = their_env.action_space(agent).shape[0]
        whole = push + list(words) if size > 3 else list(words)
        theirs[agent] = np.array(whole[:size], np.float32)
    return given, theirs


@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_thousand_steps_equal_mpe2(name, continuous):
    kind, module, options, their_options = PAIRS[name]
    ours = kind(1, autoreset=False, continuous=continuous, **options)
    theirs = module.parallel_env(max_cycles=STEPS, continuous_actions=continuous, **their_options)
    world = theirs.aec_env.unwrapped.world
    rng = np.random.default_rng(0)
    met = 0
    for episode in range(EPISODES):
        theirs.reset(seed=episode)
        ours.reset(seed=episode)
        if hasattr(ours, "goal"):
            ours.goal[0] = their_goals(name, world)
        position, velocity = their_state(world)
        if episode % 2:  # half of the episodes in a crowd, where bodies touch
            position *= 0.3
            for body, at in zip(world.entities, position, strict=True):
                body.state.p_pos = at.copy()
        ours.set_state(position[None], velocity[None])
        for _ in range(STEPS):
            mine, yours = same_actions(name, rng, ours, theirs)
            obs, reward, terminated, truncated, _ = ours.step(mine)
            expected, rewards, _, cut, _ = theirs.step(yours)
            position, velocity = their_state(world)
            np.testing.assert_allclose(ours.position[0], position, atol=1e-5)
            np.testing.assert_allclose(ours.velocity[0], velocity, atol=1e-5)
            for i, agent in enumerate(theirs.possible_agents):
                size = len(expected[agent])
                np.testing.assert_allclose(obs[0, i, :size], expected[agent], atol=1e-5)
                assert not obs[0, i, size:].any()
                assert reward[0, i] == pytest.approx(rewards[agent], abs=1e-5)
            met += bool(np.abs(ours._contact()).max() > 1e-3)
            assert not terminated[0]
            assert truncated[0] == cut[theirs.possible_agents[0]]
    if "spread" in name or "tag" in name:
        assert met > 50  # bodies did push each other


def test_velocities_can_be_hidden() -> None:
    """The last push stands in their place; nothing else changes."""
    shown, hidden = (BatchedCooperativeNavigation(3, velocities=v) for v in (True, False))
    rng = np.random.default_rng(0)
    seen, without = (world.reset(seed=4)[0] for world in (shown, hidden))
    for _ in range(30):  # over an end
        np.testing.assert_array_equal(seen[..., 2:], without[..., 2:])
        action = rng.integers(5, size=(3, 3))
        (seen, paid, *_), (without, same, *_) = (w.step(action) for w in (shown, hidden))
        np.testing.assert_array_equal(paid, same)
        last = PUSHES[action] * (hidden.elapsed > 0)[:, None, None]  # none at a beginning
        np.testing.assert_array_equal(without[..., :2], last)
    assert seen[..., :2].any()
