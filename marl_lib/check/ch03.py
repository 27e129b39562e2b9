"""The exercises of chapter 3, *Policy gradients to PPO*."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from marl_lib.check.core import Case, Exercise, Mistake

# Exercise 1: the discounted reward to go ----------------------------------------------------------


def _to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    returns, after = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        returns[t] = after = rewards[t] + gamma * after
    return returns


def _to_go_undiscounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return _to_go(rewards, 1.0)


def _what_came_before(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return _to_go(rewards[::-1], gamma)[::-1]


def _plain_sum_so_far(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return np.cumsum(rewards)


def _whole_return(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return np.full(len(rewards), _to_go(rewards, gamma)[0])


def _counted_from_the_start(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return _to_go(gamma ** np.arange(len(rewards)) * rewards, 1.0)


def _without_its_own(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return _to_go(rewards, gamma) - rewards


def _discounts_its_own(rewards: np.ndarray, gamma: float) -> np.ndarray:
    return gamma * _to_go(rewards, gamma)


ch03_ex1 = Exercise(
    "Exercise 3.1",
    [
        Case((np.array([1.0, 0.0, 2.0, 4.0]), 0.5)),
        Case((np.array([3.0]), 0.9)),
        Case((np.array([-1.0, -1.0, 10.0]), 1.0)),
    ],
    _to_go,
    [
        Mistake(
            _to_go_undiscounted,
            "This is the sum that is still to come, but nothing in it is discounted.",
        ),
        Mistake(
            _what_came_before,
            "This adds up what came before each step. What an action cannot have caused is left "
            "out; go through the episode from its end.",
        ),
        Mistake(
            _plain_sum_so_far,
            "A running sum from the start is what was earned so far; the reward to go is a sum "
            "from the end, and discounted.",
        ),
        Mistake(
            _whole_return,
            "Every step has the return of the whole episode; each should begin with its own "
            "reward.",
        ),
        Mistake(
            _counted_from_the_start,
            "Rewards are discounted from the start of the episode. Seen from step t, the reward "
            "of step t counts in full: the exponent is k - t.",
        ),
        Mistake(
            _without_its_own,
            "The reward of the step itself is missing: it is the first that the action earned.",
        ),
        Mistake(
            _discounts_its_own,
            "One discount too many: the reward of the step itself counts in full.",
        ),
    ],
)


# Exercise 2: which samples the clip lets speak ----------------------------------------------------


def _has_a_say(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    good = (advantage > 0) & (ratio < 1 + clip)
    return good | ((advantage < 0) & (ratio > 1 - clip))


def _inside_alone(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return (ratio - 1).abs() < clip


def _inside_and_not_zero(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return _inside_alone(ratio, advantage, clip) & (advantage != 0)


def _outside(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return ~_inside_alone(ratio, advantage, clip)


def _turned(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return ~_has_a_say(ratio, advantage, clip)


def _signs_swapped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return _has_a_say(ratio, -advantage, clip)


def _upper_corner_alone(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return ratio < 1 + clip


def _every_one(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return advantage != 0


def _zero_is_good(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return torch.where(advantage >= 0, ratio < 1 + clip, ratio > 1 - clip)


def _zero_is_bad(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    return torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)


_ZERO = "A sample with advantage 0 moves nothing, whatever its ratio is."

ch03_ex2 = Exercise(
    "Exercise 3.2",
    [
        Case(
            (
                torch.tensor([0.5, 1.0, 1.15, 1.5, 0.5, 0.9, 1.0, 1.5, 0.5, 1.0, 1.5]),
                torch.tensor([2.0, 2.0, 0.1, 2.0, -1.0, -0.1, -1.0, -3.0, 0.0, 0.0, 0.0]),
                0.2,
            )
        ),
        Case((torch.tensor([1.15, 0.85, 0.5]), torch.tensor([1.0, -1.0, 1.0]), 0.1)),
    ],
    _has_a_say,
    [
        Mistake(
            _inside_alone,
            "Not every ratio outside of the interval is clipped: the minimum keeps the slope of a "
            "good action that has become unlikely. Look at the figure left of 0.8 and right of "
            "1.2, in both panels. (And what of advantage 0?)",
        ),
        Mistake(
            _inside_and_not_zero,
            "Not every ratio outside of the interval is clipped. Look at the left panel below 0.8 "
            "and at the right one above 1.2.",
        ),
        Mistake(_outside, "These are the ratios outside of the interval, of good and bad alike."),
        Mistake(_turned, "These are the samples that have nothing more to say; turn it round."),
        Mistake(
            _signs_swapped,
            "Good and bad have changed places: a good action (advantage above 0) is flat above "
            "1 + ε, a bad one below 1 - ε.",
        ),
        Mistake(
            _upper_corner_alone,
            "That is the corner of the good actions. Bad ones have theirs at 1 - ε.",
        ),
        Mistake(_every_one, "This is the objective without clip: where is the curve flat?"),
        Mistake(_zero_is_good, f"Almost. {_ZERO} Here it counts as good."),
        Mistake(_zero_is_bad, f"Almost. {_ZERO} Here it counts as bad."),
    ],
)


# Exercise 3: an estimate of the divergence --------------------------------------------------------


def _k3(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    log_ratio = log_prob - old_log_prob
    return (log_ratio.exp() - 1 - log_ratio).mean()


def _k3_turned(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return _k3(old_log_prob, log_prob)


def _k1(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return (old_log_prob - log_prob).mean()


def _k1_turned(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return (log_prob - old_log_prob).mean()


def _k2(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return 0.5 * (log_prob - old_log_prob).square().mean()


def _k3_without_one(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return _k3(log_prob, old_log_prob) + 1


def _k3_summed(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    return _k3(log_prob, old_log_prob) * len(log_prob)


def _k3_plus(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    log_ratio = log_prob - old_log_prob
    return (log_ratio.exp() - 1 + log_ratio).mean()


def _ratio_of_logs(log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    ratio = log_prob / old_log_prob
    return (ratio - 1 - ratio.log()).mean()


ch03_ex3 = Exercise(
    "Exercise 3.3",
    [
        Case((torch.tensor([0.1, 0.7, 0.25]).log(), torch.tensor([0.4, 0.6, 0.2]).log())),
        Case((torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0]))),
        Case((torch.tensor([-1.0, -2.0, -0.5, -1.0]), torch.tensor([-1.0, -2.0, -0.5, -1.0]))),
    ],
    _k3,
    [
        Mistake(
            _k3_turned,
            "Old and new have changed places: ρ is new over old, because it is the old policy "
            "that chose the actions.",
        ),
        Mistake(
            _k1,
            "This is the mean of -log ρ: right on average, but noisy and negative half of the "
            "time. Add ρ - 1.",
        ),
        Mistake(_k1_turned, "This is the mean of log ρ; its mean is minus the divergence."),
        Mistake(
            _k2,
            "Half the mean square of log ρ is another estimate, and a biased one; write "
            "ρ - 1 - log ρ.",
        ),
        Mistake(
            _k3_without_one,
            "For two equal policies yours gives 1 and not 0: the -1 is missing.",
        ),
        Mistake(_k3_summed, "A mean over the batch, not a sum: the result is for one state."),
        Mistake(_k3_plus, "The sign of log ρ: it is subtracted."),
        Mistake(
            _ratio_of_logs,
            "ρ is the ratio of the probabilities, not of their logarithms: e to the difference.",
        ),
    ],
)


# Exercise 4: the λ-return -------------------------------------------------------------------------


def _lambda_return(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
    *,
    last: Tensor | None = None,
    own: float | None = None,
) -> Tensor:
    """Return the λ-return; ``last`` stands for R after the rollout, ``own`` for 1 - λ."""
    returns, after = torch.empty_like(reward), next_value[-1] if last is None else last
    own = 1 - lam if own is None else own
    for t in reversed(range(len(reward))):
        after = next_value[t] if ended[t] else after
        mixed = own * next_value[t] + lam * after
        returns[t] = after = reward[t] + gamma * ~terminated[t] * mixed
    return returns


def _stops_at_time_limits(
    r: Tensor, v: Tensor, terminated: Tensor, ended: Tensor, g: float, lam: float
) -> Tensor:
    return _lambda_return(r, v, ended, ended, g, lam)


def _runs_on(r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float) -> Tensor:
    return _lambda_return(r, v, d, torch.zeros_like(ended), g, lam)


def _runs_through_time_limits(
    r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float
) -> Tensor:
    return _lambda_return(r, v, torch.zeros_like(d), ended, g, lam)


def _nothing_after_the_rollout(
    r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float
) -> Tensor:
    return _lambda_return(r, v, d, ended, g, lam, last=torch.zeros(()))


def _lambda_swapped(r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float) -> Tensor:
    return _lambda_return(r, v, d, ended, g, 1 - lam)


def _one_step(r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float) -> Tensor:
    return _lambda_return(r, v, d, ended, g, 0.0)


def _no_critic(r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float) -> Tensor:
    return _lambda_return(r, v, d, ended, g, 1.0)


def _shares_do_not_add_up(
    r: Tensor, v: Tensor, d: Tensor, ended: Tensor, g: float, lam: float
) -> Tensor:
    return _lambda_return(r, v, d, ended, g, lam, own=1.0)


def _return_case(terminated: list[int], truncated: list[int]) -> Case:
    d, cut = torch.tensor(terminated, dtype=torch.bool), torch.tensor(truncated, dtype=torch.bool)
    reward = torch.tensor([1.0, -2.0, 4.0, 0.5, 3.0])
    next_value = torch.tensor([10.0, 3.0, -5.0, 8.0, 6.0])
    return Case((reward, next_value, d, d | cut, 0.9, 0.7))


ch03_ex4 = Exercise(
    "Exercise 3.4",
    [
        _return_case([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        _return_case([0, 0, 1, 0, 0], [0, 0, 0, 0, 0]),
        _return_case([0, 0, 0, 0, 0], [0, 1, 0, 0, 0]),
        _return_case([0, 1, 0, 0, 1], [1, 0, 0, 1, 0]),
    ],
    _lambda_return,
    [
        Mistake(
            _stops_at_time_limits,
            "Where time ran out yours adds no value, as if the episode had terminated. `ended` "
            "cuts the sum; only `terminated` takes the value away.",
        ),
        Mistake(
            _runs_on,
            "Where an episode ended by time, yours goes on with the return of the next row, which "
            "belongs to another episode: take the value of the next state there.",
        ),
        Mistake(
            _runs_through_time_limits,
            "Where the episode terminated, yours still adds the value of what follows; nothing "
            "follows.",
        ),
        Mistake(
            _nothing_after_the_rollout,
            "The end of the rollout is not the end of the world: there R after the last step is "
            "its next value, not 0.",
        ),
        Mistake(
            _lambda_swapped,
            "λ and 1 - λ have changed places: with λ = 0 the critic is asked after one step.",
        ),
        Mistake(_one_step, "Yours is the target of one step; λ has no part in it."),
        Mistake(_no_critic, "Yours asks the critic only where the sum is cut, as with λ = 1."),
        Mistake(
            _shares_do_not_add_up,
            "The shares of V and R should add up to 1: V counts with 1 - λ.",
        ),
    ],
)


# Exercise 5: the best baseline of a bandit --------------------------------------------------------


def _squares(probs: np.ndarray) -> np.ndarray:
    """Return ‖∇ log π(a)‖² for every arm, (A,)."""
    return ((np.eye(len(probs)) - probs) ** 2).sum(1)


def _average(weight: np.ndarray, rewards: np.ndarray) -> float:
    return float((weight * rewards).sum() / weight.sum())


def _best_baseline(probs: np.ndarray, rewards: np.ndarray) -> float:
    return _average(probs * _squares(probs), rewards)


def _expected_reward(probs: np.ndarray, rewards: np.ndarray) -> float:
    return float(probs @ rewards)


def _mean_of_arms(probs: np.ndarray, rewards: np.ndarray) -> float:
    return float(rewards.mean())


def _without_probabilities(probs: np.ndarray, rewards: np.ndarray) -> float:
    return _average(_squares(probs), rewards)


def _length_not_squared(probs: np.ndarray, rewards: np.ndarray) -> float:
    return _average(probs * np.sqrt(_squares(probs)), rewards)


def _own_entry_alone(probs: np.ndarray, rewards: np.ndarray) -> float:
    return _average(probs * (1 - probs) ** 2, rewards)


def _not_divided(probs: np.ndarray, rewards: np.ndarray) -> float:
    return float((probs * _squares(probs) * rewards).sum())


def _best_arm(probs: np.ndarray, rewards: np.ndarray) -> float:
    return float(rewards.max())


ch03_ex5 = Exercise(
    "Exercise 3.5",
    [
        Case((np.array([0.5, 0.5]), np.array([2.0, 6.0]))),
        Case((np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 5.0]))),
        Case((np.array([0.25, 0.05, 0.6, 0.1]), np.array([-1.0, 4.0, 0.0, 2.0]))),
    ],
    _best_baseline,
    [
        Mistake(
            _expected_reward,
            "The expected reward is a good baseline, and the best one for two equal arms, but not "
            "in general. Write the expectation as a parabola in b and find where it is lowest.",
        ),
        Mistake(
            _mean_of_arms,
            "This averages over arms as if each were pulled equally often.",
        ),
        Mistake(
            _without_probabilities,
            "The squared lengths are right, but the expectation is over the agent's own pulls: "
            "weigh each arm by its probability too.",
        ),
        Mistake(
            _length_not_squared,
            "The length of the gradient enters squared: it is the norm's square that is averaged.",
        ),
        Mistake(
            _own_entry_alone,
            "∇ log π(a) has an entry for every arm, not only for the one that was pulled.",
        ),
        Mistake(
            _not_divided,
            "The derivative of the parabola is zero where b × E‖∇ log π‖² = E[‖∇ log π‖² r]: "
            "divide.",
        ),
        Mistake(_best_arm, "The best arm's reward is no average: then every other arm is bad."),
    ],
)
