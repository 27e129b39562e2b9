"""Wrong answers to the exercises of chapter 1, as readers write them, with a part of their hint.

They are written independently of :mod:`marl_lib.check`, and not always alike.
"""

import torch


def ex1_without_cost(distance, gamma):
    return 10 * gamma ** (distance - 1)


def ex1_discounts_the_first_reward(distance, gamma):
    return 10 * gamma**distance - sum(0.01 * gamma**k for k in range(distance))


def ex1_cost_not_discounted(distance, gamma):
    return 10 * gamma ** (distance - 1) - 0.01 * distance


def ex1_last_step_is_free(distance, gamma):
    value = 10.0
    for _ in range(distance - 1):
        value = -0.01 + gamma * value
    return value


def ex1_returns_nothing(distance, gamma):
    10 * gamma ** (distance - 1)


def ex1_adds_the_cost(distance, gamma):
    return 10 * gamma ** (distance - 1) + 0.01 * (1 - gamma**distance) / (1 - gamma)


def ex1_misspells(distance, gamma):
    return 10 * gama ** (distance - 1)  # noqa: F821


def ex2_below_zero(step, start, end, over):
    return start - (start - end) * step / over


def ex2_towards_zero(step, start, end, over):
    return max(start * (1 - step / over), end)


def ex2_backwards(step, start, end, over):
    fraction = min(1, step / over)
    return fraction * start + (1 - fraction) * end


def ex2_exponential(step, start, end, over):
    return start * (end / start) ** min(1, step / over)


def ex3_rewards_after_the_end(rewards, terminated, next_value, gamma):
    n = rewards.shape[1]
    total = sum(gamma**k * rewards[:, k] for k in range(n))
    return total + gamma**n * (1 - terminated.any(1).float()) * next_value


def ex3_bootstraps_after_the_end(rewards, terminated, next_value, gamma):
    n = rewards.shape[1]
    total, alive = torch.zeros(len(rewards)), torch.ones(len(rewards))
    for k in range(n):
        total = total + gamma**k * alive * rewards[:, k]
        alive = alive * ~terminated[:, k]
    return total + gamma**n * next_value


def ex3_last_column_only(rewards, terminated, next_value, gamma):
    n = rewards.shape[1]
    total = sum(gamma**k * rewards[:, k] for k in range(n))
    return total + gamma**n * torch.where(terminated[:, -1], 0.0, next_value)


def ex3_ignores_the_end(rewards, terminated, next_value, gamma):
    target = next_value
    for k in reversed(range(rewards.shape[1])):
        target = rewards[:, k] + gamma * target
    return target


def ex3_discounts_the_value_once(rewards, terminated, next_value, gamma):
    total, alive = torch.zeros(len(rewards)), torch.ones(len(rewards))
    for k in range(rewards.shape[1]):
        total = total + gamma**k * alive * rewards[:, k]
        alive = alive * ~terminated[:, k]
    return total + gamma * alive * next_value


def ex3_does_not_discount_rewards(rewards, terminated, next_value, gamma):
    total, alive = torch.zeros(len(rewards)), torch.ones(len(rewards))
    for k in range(rewards.shape[1]):
        total = total + alive * rewards[:, k]
        alive = alive * ~terminated[:, k]
    return total + gamma ** rewards.shape[1] * alive * next_value


def ex3_one_number(rewards, terminated, next_value, gamma):
    return rewards.sum() + gamma * next_value.sum()


def ex4_plain(reward, terminated, next_online, next_target, gamma):
    return reward + gamma * (1 - terminated.float()) * next_target.amax(1)


def ex4_online_judges(reward, terminated, next_online, next_target, gamma):
    rows = torch.arange(len(reward))
    return reward + gamma * ~terminated * next_online[rows, next_online.argmax(1)]


def ex4_swapped(reward, terminated, next_online, next_target, gamma):
    rows = torch.arange(len(reward))
    return reward + gamma * ~terminated * next_online[rows, next_target.argmax(1)]


def ex4_never_ends(reward, terminated, next_online, next_target, gamma):
    rows = torch.arange(len(reward))
    return reward + gamma * next_target[rows, next_online.argmax(1)]


def ex4_broadcasts(reward, terminated, next_online, next_target, gamma):
    choice = next_online.argmax(-1, keepdim=True)
    return reward + gamma * ~terminated * next_target.gather(-1, choice)


def ex4_minus_on_bool(reward, terminated, next_online, next_target, gamma):
    return reward + gamma * (1 - terminated) * next_target.amax(1)


VALUES = [[4.0, 2.0]] * 3


def _rows(target, reward, terminated, truncated, next_q):
    reward, terminated, truncated = map(torch.tensor, (reward, terminated, truncated))
    return target(reward, terminated, truncated, torch.tensor(next_q), 0.5)


def ex5_always_true(target):
    _rows(target, [1.0], [False], [False], [[4.0, 2.0]])
    return True


def ex5_always_false(target):
    return not _rows(target, [1.0], [False], [False], [[4.0, 2.0]]).isfinite().all()


def ex5_right_in_no_row(target):
    # takes the discount off the reward too, so it also refuses what is right, and nothing else
    got = _rows(target, [2.0, 2.0], [True, False], [False, True], [[4.0, 2.0], [4.0, 2.0]])
    return not torch.equal(got, torch.tensor([2.0, 4.0]))


def ex5_no_truncated_row(target):
    got = _rows(target, [1.0, 1.0], [True, False], [False, False], [[4.0, 2.0], [4.0, 2.0]])
    return torch.equal(got, torch.tensor([1.0, 3.0]))


def ex5_truncated_rows_are_terminated(target):
    got = _rows(
        target, [1.0, 1.0, 1.0], [True, False, True], [True, False, False], [[4.0, 2.0]] * 3
    )
    return torch.equal(got[:2], torch.tensor([1.0, 3.0]))


def ex5_no_terminated_row(target):
    got = _rows(target, [1.0, 1.0], [False, False], [False, True], [[4.0, 2.0], [4.0, 2.0]])
    return torch.equal(got, torch.tensor([3.0, 3.0]))


def ex5_terminal_reward_is_zero(target):
    got = _rows(
        target, [0.0, 1.0, 1.0], [True, False, False], [False, False, True], [[4.0, 2.0]] * 3
    )
    return torch.equal(got, torch.tensor([0.0, 3.0, 3.0]))


def ex5_equal_values(target):
    got = _rows(
        target, [1.0, 1.0, 1.0], [True, False, False], [False, True, False], [[4.0, 4.0]] * 3
    )
    return torch.equal(got, torch.tensor([1.0, 3.0, 3.0]))


def ex5_stops_at_truncation_itself(target):
    # right about termination, but lets truncated rows have any value
    got = _rows(target, [1.0, 1.0], [False, False], [True, False], [[4.0, 2.0], [4.0, 2.0]])
    other = _rows(target, [1.0], [True], [True], [[4.0, 2.0]])
    return torch.equal(torch.cat([got[1:], other]), torch.tensor([3.0, 1.0])) and got[0] in (1, 3)


WRONG = {
    "ch01_ex1": {
        ex1_without_cost: "take off the 0.01",
        ex1_discounts_the_first_reward: "d - 1 times",
        ex1_cost_not_discounted: "discounted like any other reward",
        ex1_last_step_is_free: "costs 0.01 too",
        ex1_returns_nothing: "is there a return",
        ex1_adds_the_cost: "For (1, 0.9) the answer is 9.99, yours is 10.01",
        ex1_misspells: "NameError on its line “return 10 * gama",
    },
    "ch01_ex2": {
        ex2_below_zero: "below 0",
        ex2_towards_zero: "too soon",
        ex2_backwards: "from the end value to the start",
        ex2_exponential: "For (25, 1, 0.1, 100) the answer is 0.775",
    },
    "ch01_ex3": {
        ex3_rewards_after_the_end: "belong to the next episode",
        ex3_bootstraps_after_the_end: "nothing follows it",
        ex3_last_column_only: "every column",
        ex3_ignores_the_end: "does not use `terminated`",
        ex3_discounts_the_value_once: "n times, not once",
        ex3_does_not_discount_rewards: "Discount the rewards too",
        ex3_one_number: "The shape should be (4,), yours is ()",
    },
    "ch01_ex4": {
        ex4_plain: "This is the plain target",
        ex4_online_judges: "the target network must judge",
        ex4_swapped: "changed places",
        ex4_never_ends: "Nothing follows",
        ex4_broadcasts: "The shape should be (3,), yours is (3, 3)",
        ex4_minus_on_bool: "RuntimeError on its line",
    },
    "ch01_ex5": {
        ex5_always_true: "passes whatever",
        ex5_always_false: "fails whatever",
        ex5_right_in_no_row: "refuses a right target",
        ex5_no_truncated_row: "truncated and not terminated",
        ex5_stops_at_truncation_itself: "truncated and not terminated",
        ex5_truncated_rows_are_terminated: "truncated and not terminated",
        ex5_no_terminated_row: "give it a row that is terminated",
        ex5_terminal_reward_is_zero: "a reward other than 0",
        ex5_equal_values: "the maximum: let",
    },
}
