"""Chapter 1's own definitions, taken out of the notebook and held equal to the library."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from agreement import flat

from marl_lib import planning
from marl_lib.algorithms import dqn
from marl_lib.envs import BatchedGridWorld
from marl_lib.nn.encoders import MLPEncoder
from marl_lib.replay import Replay
from marl_lib.runs import find_config, make_trainer, run_config
from marl_lib.spec import Spec


@pytest.fixture(scope="module")
def chapter(book):
    """Return what the notebook defines, with the table that its cells compute."""
    book["table"] = planning.tabulate(**book["WORLD"])
    book["v_star"] = planning.value_iteration(book["table"], book["GAMMA"]).max(1)
    return book


def learner(width, obs_dim=5, n_actions=5, **settings):
    """Return the library's learner for one agent, with one hidden layer."""
    config = dqn.DQNConfig(encoder={"hidden": (width,)}, **settings)
    return dqn.DQN(Spec(obs_dim, n_actions), 8, [0], config)


def batch(rows, seed=0, obs_dim=5, n_actions=5):
    g = torch.Generator().manual_seed(seed)
    return {
        "obs": torch.randn(rows, obs_dim, generator=g),
        "action": torch.randint(n_actions, (rows,), generator=g),
        "reward": torch.randn(rows, generator=g),
        "next_obs": torch.randn(rows, obs_dim, generator=g),
        "terminated": torch.rand(rows, generator=g) < 0.3,
    }


def test_its_settings_are_those_of_the_configuration_it_names(chapter):
    config = run_config(find_config("small-grid-dqn"))
    c = config.dqn
    options = vars(config.env_options)
    assert {key: options[key] for key in chapter["WORLD"]} == chapter["WORLD"]
    assert chapter["GAMMA"] == c.gamma
    assert chapter["ENVS"] == config.num_envs
    assert chapter["EPSILON"] == c.epsilon_start == c.epsilon_end
    assert chapter["CAPACITY"] == c.buffer_size
    assert chapter["BATCH"] == c.batch_size
    assert chapter["LEARNING_RATE"] == c.learning_rate
    assert chapter["LEARNING_STARTS"] == c.learning_starts
    assert chapter["UPDATES_PER_STEP"] == config.num_envs / c.train_every
    assert chapter["TARGET_EVERY"] == c.target_every
    width = inspect.signature(chapter["QNetwork"]).parameters["width"].default
    assert c.encoder == MLPEncoder(hidden=(width,))
    assert not c.double and not c.dueling and c.n_step == 1


@pytest.mark.parametrize(
    "options",
    [
        {"grid_size": (1, 4), "n_targets": 1},
        {"grid_size": (3, 4), "n_targets": 2},
        {"grid_size": (5, 5), "n_targets": 1, "walls": "four_rooms"},
    ],
    ids=["corridor", "two targets", "rooms"],
)
def test_value_iteration(chapter, options):
    table = planning.tabulate(n_agents=1, **options)
    ours = chapter["value_iteration"](table, 0.9)
    np.testing.assert_allclose(ours, planning.value_iteration(table, 0.9), atol=1e-8)


def test_q_learning_finds_what_value_iteration_computes(chapter):
    q, errors = chapter["q_learning"](120_000, alpha=1.0, epsilon=0.5, seed=1)
    np.testing.assert_allclose(q.max(1), chapter["v_star"], rtol=1e-6)
    assert errors[0] > 0.5 and errors[-1] < 1e-6


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_greedy_for_a_row_and_for_a_batch(chapter, epsilon):
    rng = np.random.default_rng(0)
    q = np.array([0.0, 3.0, 1.0, 2.0, -1.0])
    single = [chapter["epsilon_greedy"](q, epsilon, rng) for _ in range(4_000)]

    def net(obs):
        return torch.as_tensor(q).expand(len(obs), -1)

    together = chapter["act"](net, np.zeros((4_000, 5), np.float32), epsilon, rng)
    for actions in (single, together):
        share = np.bincount(actions, minlength=5) / 4_000
        expected = epsilon / 5 + (1 - epsilon) * (np.arange(5) == 1)
        np.testing.assert_allclose(share, expected, atol=0.03)


def test_network_gives_the_librarys_values_for_the_same_weights(chapter):
    ours, theirs = chapter["QNetwork"](7, 4, width=16), learner(16, 7, 4)
    theirs.nets["agents"].flat.copy_(flat(ours))
    obs = torch.randn(9, 7)
    torch.testing.assert_close(ours(obs), theirs.outputs(obs[None, :, None])[0, :, 0])


def test_td_target(chapter):
    b, next_q = batch(200), torch.randn(200, 5)
    ours = chapter["td_target"](b["reward"], b["terminated"], next_q, 0.9)
    theirs = dqn.td_target(b["reward"], torch.full((200,), 0.9), b["terminated"], next_q)
    torch.testing.assert_close(ours, theirs)
    careless = chapter["careless_target"](b["reward"], b["terminated"], next_q, 0.9)
    assert torch.equal(careless != ours, b["terminated"])


def test_replay_holds_what_the_librarys_holds_when_it_has_gone_round(chapter):
    fields = {
        "obs": ((5,), torch.float32),
        "action": ((), torch.int64),
        "next_obs": ((5,), torch.float32),
    }
    ours, theirs = chapter["Replay"](40, obs_dim=5), Replay(40, 8, [0], fields)
    for step in range(7):
        rows = batch(8, seed=step)
        ours.add(**rows)
        theirs.add(**rows, truncated=torch.zeros(8, dtype=torch.bool))
        assert ours.size == len(theirs)
    for name, values in ours.data.items():
        torch.testing.assert_close(values, theirs.data[name].flatten(0, 1))
    drawn = ours.sample(2_000)
    stored = {tuple(row.tolist()) for row in ours.data["obs"]}
    assert {tuple(row.tolist()) for row in drawn["obs"]} == stored
    assert drawn["terminated"].any()


def test_one_update_is_the_librarys(chapter):
    rate = 1e-2
    settings = {"double": False, "gamma": chapter["GAMMA"], "learning_rate": rate}
    theirs = learner(32, max_grad_norm=None, **settings)
    net, target_net = (chapter["QNetwork"](5, 5, width=32) for _ in range(2))
    agents = theirs.nets["agents"]
    agents.flat.copy_(flat(net))
    agents.target.copy_(flat(target_net))
    b = batch(64)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    ours = chapter["learn"](net, target_net, optimizer, b)

    one_step = {name: x[None, :, None] for name, x in b.items()}  # (R, batch, T, ...)
    for name in ("obs", "action", "reward", "next_obs"):
        one_step[name] = one_step[name].unsqueeze(3)  # of one agent
    one_step["discount"] = torch.full((1, 64, 1), chapter["GAMMA"])
    one_step["first"] = torch.zeros(1, 64, 1, dtype=torch.bool)
    found = theirs.descend(
        lambda net, batch: theirs.loss(net, net.target, batch), ("agents",), one_step
    )
    theirs.optimizers["agents"].step()
    assert ours == pytest.approx(found["loss"].item(), rel=1e-5)
    torch.testing.assert_close(flat(net), agents.flat)


def test_a_step_of_collecting_stores_where_it_led_and_not_where_the_next_episode_begins(chapter):
    world = BatchedGridWorld(64, **chapter["WORLD"])
    obs, _ = world.reset(seed=0)
    replay, net = chapter["Replay"](64 * 30, obs_dim=5), chapter["QNetwork"](5, 5)
    rng = np.random.default_rng(0)
    for _ in range(30):
        obs = chapter["collect"](world, net, replay, obs, rng)
    ended = replay.data["terminated"]
    assert ended.any() and replay.size == 64 * 30
    # on the target its offset is zero, in every terminal transition and in no other
    on_target = (replay.data["next_obs"][:, 3:5] == 0).all(1)
    assert torch.equal(on_target, ended)
    # time ran out for some, and they are not marked as terminated
    assert (replay.data["reward"][ended] > 9).all() and (replay.data["reward"][~ended] < 0).all()


def test_what_is_hidden_never_enters_the_blind_replay(chapter):
    table = chapter["table"]
    replay = chapter["BlindReplay"](600, obs_dim=5)
    rows = batch(600) | {"obs": torch.as_tensor(table.obs)}
    replay.add(**{name: values.numpy() for name, values in rows.items()})
    kept = {tuple(row.tolist()) for row in replay.data["obs"][: replay.size]}
    hidden = chapter["is_hidden"](table.targets[:, 0])
    assert replay.size == (~hidden).sum() == 600 - 24 * len(chapter["HIDDEN"])
    assert kept == {tuple(row) for row in table.obs[~hidden].tolist()}


def test_the_configuration_comes_within_5_percent_of_the_exact_value_in_every_state(chapter):
    trainer = make_trainer(run_config(find_config("small-grid-dqn")), progress=False)
    trainer.train()
    table, exact = chapter["table"], chapter["v_star"]
    q = trainer.learner.outputs(torch.as_tensor(table.obs)[None, :, None])[0, :, 0].numpy()
    assert (np.abs(q.max(1) - exact) / exact).max() < 0.05
    followed = planning.policy_value(table, q.argmax(1), chapter["GAMMA"])
    np.testing.assert_allclose(followed, exact, rtol=0.05)
