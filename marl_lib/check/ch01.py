"""The exercises of chapter 1, *A Q-network from scratch*."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from marl_lib.check.core import Case, Exercise, Mistake

REWARD, COST = 10.0, 0.01  # of the target, and of a step


# Exercise 1: the value at a distance, in closed form ----------------------------------------------


def _value_at(distance: int, gamma: float) -> float:
    return gamma ** (distance - 1) * REWARD - COST * (1 - gamma**distance) / (1 - gamma)


def _no_cost(distance: int, gamma: float) -> float:
    return gamma ** (distance - 1) * REWARD


def _one_discount_too_many(distance: int, gamma: float) -> float:
    return gamma**distance * REWARD - COST * (1 - gamma**distance) / (1 - gamma)


def _cost_not_discounted(distance: int, gamma: float) -> float:
    return gamma ** (distance - 1) * REWARD - COST * distance


def _last_step_free(distance: int, gamma: float) -> float:
    return gamma ** (distance - 1) * REWARD - COST * (1 - gamma ** (distance - 1)) / (1 - gamma)


ch01_ex1 = Exercise(
    "Exercise 1.1",
    [Case((d, gamma)) for gamma in (0.9, 0.5) for d in (1, 2, 3, 8)],
    _value_at,
    [
        Mistake(_no_cost, "The reward is right; now take off the 0.01 that every step costs."),
        Mistake(
            _one_discount_too_many,
            "The reward of the first step is not discounted at all, so the target at distance d "
            "is discounted d - 1 times.",
        ),
        Mistake(
            _cost_not_discounted,
            "The cost of step k lies k steps ahead and is discounted like any other reward.",
        ),
        Mistake(_last_step_free, "The step that reaches the target costs 0.01 too."),
    ],
)


# Exercise 2: a schedule for epsilon ---------------------------------------------------------------


def _linear(step: int, start: float, end: float, over: int) -> float:
    return start + min(step / over, 1.0) * (end - start)


def _never_stops(step: int, start: float, end: float, over: int) -> float:
    return start + step / over * (end - start)


def _towards_zero(step: int, start: float, end: float, over: int) -> float:
    return max(end, start * (1 - step / over))


def _backwards(step: int, start: float, end: float, over: int) -> float:
    return end + min(step / over, 1.0) * (start - end)


ch01_ex2 = Exercise(
    "Exercise 1.2",
    [Case((step, 1.0, 0.1, 100)) for step in (0, 25, 50, 95, 100, 101, 300)]
    + [Case((30, 0.5, 0.2, 60))],
    _linear,
    [
        Mistake(
            _never_stops,
            "Right as far as the last step of the schedule, but it goes on falling after that: "
            "a probability below 0 in the end.",
        ),
        Mistake(
            _towards_zero,
            "Your line runs towards 0 and is cut off at the end value, which it reaches too soon. "
            "It should meet the end value at step `over` exactly.",
        ),
        Mistake(_backwards, "Your schedule goes from the end value to the start value."),
    ],
)


# Exercise 3: the n-step target --------------------------------------------------------------------


def _n_step(rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    target = next_value
    for k in reversed(range(rewards.shape[1])):
        target = rewards[:, k] + gamma * ~terminated[:, k] * target
    return target


def _discounts(rewards: Tensor, gamma: float) -> Tensor:
    return gamma ** torch.arange(rewards.shape[1])


def _alive(terminated: Tensor) -> Tensor:
    """Return whether the episode was still on before each step."""
    return torch.cumsum(terminated, 1) - terminated.long() == 0


def _adds_after_the_end(
    rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float
) -> Tensor:
    total = (_discounts(rewards, gamma) * rewards).sum(1)
    return total + gamma ** rewards.shape[1] * ~terminated.any(1) * next_value


def _bootstraps_after_the_end(
    rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float
) -> Tensor:
    total = (_discounts(rewards, gamma) * _alive(terminated) * rewards).sum(1)
    return total + gamma ** rewards.shape[1] * next_value


def _looks_at_the_last_step_only(
    rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float
) -> Tensor:
    total = (_discounts(rewards, gamma) * rewards).sum(1)
    return total + gamma ** rewards.shape[1] * ~terminated[:, -1] * next_value


def _never_ends(rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    total = (_discounts(rewards, gamma) * rewards).sum(1)
    return total + gamma ** rewards.shape[1] * next_value


def _discounts_the_value_once(
    rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float
) -> Tensor:
    total = (_discounts(rewards, gamma) * _alive(terminated) * rewards).sum(1)
    return total + gamma * ~terminated.any(1) * next_value


def _rewards_not_discounted(
    rewards: Tensor, terminated: Tensor, next_value: Tensor, gamma: float
) -> Tensor:
    total = (_alive(terminated) * rewards).sum(1)
    return total + gamma ** rewards.shape[1] * ~terminated.any(1) * next_value


ch01_ex3 = Exercise(
    "Exercise 1.3",
    [
        Case(
            (
                torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [3.0, 0.0, 1.0]]),
                torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool),
                torch.tensor([10.0, 20.0, 30.0, 40.0]),
                0.5,
            )
        ),
        Case((torch.tensor([[1.0]]), torch.tensor([[False]]), torch.tensor([2.0]), 0.9)),
    ],
    _n_step,
    [
        Mistake(
            _adds_after_the_end,
            "Rewards after the end belong to the next episode: stop the sum where the episode "
            "terminated.",
        ),
        Mistake(
            _bootstraps_after_the_end,
            "The sum is right, but where the episode terminated nothing follows it: there the "
            "value of the last state is not added.",
        ),
        Mistake(
            _looks_at_the_last_step_only,
            "An episode can end before the last of the n steps: look at every column of "
            "`terminated`, not at the last one alone.",
        ),
        Mistake(_never_ends, "This target does not use `terminated`: an episode can end."),
        Mistake(
            _discounts_the_value_once,
            "The value lies n steps ahead, so it is discounted n times, not once.",
        ),
        Mistake(
            _rewards_not_discounted,
            "Discount the rewards too, the one at step k by gamma to the k.",
        ),
    ],
)


# Exercise 4: double Q-learning --------------------------------------------------------------------


def _double(
    reward: Tensor, terminated: Tensor, online: Tensor, target: Tensor, gamma: float
) -> Tensor:
    choice = online.argmax(-1, keepdim=True)
    return reward + gamma * ~terminated * target.gather(-1, choice).squeeze(-1)


def _plain(
    reward: Tensor, terminated: Tensor, online: Tensor, target: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * ~terminated * target.max(-1).values


def _online_alone(
    reward: Tensor, terminated: Tensor, online: Tensor, target: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * ~terminated * online.max(-1).values


def _swapped(
    reward: Tensor, terminated: Tensor, online: Tensor, target: Tensor, gamma: float
) -> Tensor:
    return _double(reward, terminated, target, online, gamma)


def _double_without_end(
    reward: Tensor, terminated: Tensor, online: Tensor, target: Tensor, gamma: float
) -> Tensor:
    return _double(reward, torch.zeros_like(terminated), online, target, gamma)


ch01_ex4 = Exercise(
    "Exercise 1.4",
    [
        Case(
            (
                torch.tensor([1.0, 2.0, -1.0]),
                torch.tensor([False, True, False]),
                torch.tensor([[1.0, 5.0, 3.0], [9.0, 1.0, 0.0], [0.0, 2.0, 7.0]]),
                torch.tensor([[8.0, 2.0, 4.0], [1.0, 6.0, 3.0], [5.0, 0.0, 3.0]]),
                0.9,
            )
        )
    ],
    _double,
    [
        Mistake(
            _plain,
            "This is the plain target: the target network both chooses the action and judges it. "
            "Let the online network choose.",
        ),
        Mistake(
            _online_alone,
            "The online network chooses the action, but the target network must judge it.",
        ),
        Mistake(_swapped, "The two networks have changed places: the online one chooses."),
        Mistake(_double_without_end, "Nothing follows where the episode terminated."),
    ],
)


# Exercise 5: a test that catches the bug ----------------------------------------------------------

Target = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def _sound(
    reward: Tensor, terminated: Tensor, truncated: Tensor, next_q: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * ~terminated * next_q.max(-1).values


def _stops_at_truncation(
    reward: Tensor, terminated: Tensor, truncated: Tensor, next_q: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * ~(terminated | truncated) * next_q.max(-1).values


def _never_stops_at_all(
    reward: Tensor, terminated: Tensor, truncated: Tensor, next_q: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * next_q.max(-1).values


def _drops_the_last_reward(
    reward: Tensor, terminated: Tensor, truncated: Tensor, next_q: Tensor, gamma: float
) -> Tensor:
    return ~terminated * (reward + gamma * next_q.max(-1).values)


def _takes_the_mean(
    reward: Tensor, terminated: Tensor, truncated: Tensor, next_q: Tensor, gamma: float
) -> Tensor:
    return reward + gamma * ~terminated * next_q.mean(-1)


ch01_ex5 = Exercise(
    "Exercise 1.5",
    [
        Case((_sound,), "Your test refuses a right target; work out one row of it by hand again."),
        Case(
            (_stops_at_truncation,),
            "Your test passes a target that stops at truncation: give "
            "it a row that is truncated and not terminated.",
        ),
        Case(
            (_never_stops_at_all,),
            "Your test passes the careless target of this chapter: give it a row that is "
            "terminated.",
        ),
        Case(
            (_drops_the_last_reward,),
            "Your test passes a target that loses the reward of the terminal step: let a "
            "terminated row have a reward other than 0.",
        ),
        Case(
            (_takes_the_mean,),
            "Your test passes a target with the mean over actions in place of the maximum: let "
            "the action values of a row differ.",
        ),
    ],
    lambda target: target is _sound,
    [
        Mistake(lambda target: True, "Your test passes whatever it is given."),
        Mistake(lambda target: False, "Your test fails whatever it is given."),
    ],
)
