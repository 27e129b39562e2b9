"""Typical wrong answers to the exercises of chapter 3, with a part of the hint each must get.

They are written without a look at the checks' own code, as a reader might write them.
"""

import numpy as np
import torch

# Exercise 1 ---------------------------------------------------------------------------------------


def ex1_reversed_cumsum(rewards, gamma):
    return rewards[::-1].cumsum()[::-1]


def ex1_forwards(rewards, gamma):
    out, total = [], 0.0
    for r in rewards:
        total = r + gamma * total
        out.append(total)
    return np.array(out)


def ex1_cumsum(rewards, gamma):
    return np.cumsum(rewards)


def ex1_same_for_all(rewards, gamma):
    total = sum(gamma**k * r for k, r in enumerate(rewards))
    return np.array([total] * len(rewards))


def ex1_absolute_time(rewards, gamma):
    T = len(rewards)
    return np.array([sum(gamma**k * rewards[k] for k in range(t, T)) for t in range(T)])


def ex1_strictly_later(rewards, gamma):
    T = len(rewards)
    return np.array([sum(gamma ** (k - t) * rewards[k] for k in range(t + 1, T)) for t in range(T)])


def ex1_one_step_late(rewards, gamma):
    T = len(rewards)
    return np.array([sum(gamma ** (k - t + 1) * rewards[k] for k in range(t, T)) for t in range(T)])


def ex1_one_step_ahead(rewards, gamma):
    return rewards + gamma * np.append(rewards[1:], 0.0)


def ex1_only_a_number(rewards, gamma):
    return sum(gamma**k * r for k, r in enumerate(rewards))


# Exercise 2 ---------------------------------------------------------------------------------------


def ex2_within_the_interval(ratio, advantage, clip):
    return (1 - clip < ratio) & (ratio < 1 + clip)


def ex2_within_and_some_advantage(ratio, advantage, clip):
    return torch.logical_and(ratio.clamp(1 - clip, 1 + clip) == ratio, advantage.abs() > 0)


def ex2_beyond(ratio, advantage, clip):
    return (ratio > 1 + clip) | (ratio < 1 - clip)


def ex2_silent_ones(ratio, advantage, clip):
    flat_good = (advantage >= 0) & (ratio > 1 + clip)
    flat_bad = (advantage <= 0) & (ratio < 1 - clip)
    return flat_good | flat_bad | (advantage == 0)


def ex2_good_and_bad_swapped(ratio, advantage, clip):
    return ((advantage > 0) & (ratio > 1 - clip)) | ((advantage < 0) & (ratio < 1 + clip))


def ex2_one_corner(ratio, advantage, clip):
    return ratio <= 1 + clip


def ex2_no_clip(ratio, advantage, clip):
    return advantage.sign() != 0


def ex2_zero_with_the_good(ratio, advantage, clip):
    return ((advantage >= 0) & (ratio < 1 + clip)) | ((advantage < 0) & (ratio > 1 - clip))


def ex2_zero_with_the_bad(ratio, advantage, clip):
    return ((advantage > 0) & (ratio < 1 + clip)) | ((advantage <= 0) & (ratio > 1 - clip))


def ex2_fixed_clip(ratio, advantage, clip):
    return ((advantage > 0) & (ratio < 1.2)) | ((advantage < 0) & (ratio > 0.8))


def ex2_python_and(ratio, advantage, clip):
    return (advantage > 0 and ratio < 1 + clip) or (advantage < 0 and ratio > 1 - clip)


# Exercise 3 ---------------------------------------------------------------------------------------


def ex3_old_over_new(log_prob, old_log_prob):
    ratio = (old_log_prob - log_prob).exp()
    return (ratio - 1 - ratio.log()).mean()


def ex3_minus_log_ratio(log_prob, old_log_prob):
    return -(log_prob - old_log_prob).mean()


def ex3_log_ratio(log_prob, old_log_prob):
    return (log_prob.exp() / old_log_prob.exp()).log().mean()


def ex3_square(log_prob, old_log_prob):
    return ((log_prob - old_log_prob) ** 2).mean() / 2


def ex3_forgets_the_one(log_prob, old_log_prob):
    d = log_prob - old_log_prob
    return (d.exp() - d).mean()


def ex3_sum(log_prob, old_log_prob):
    d = log_prob - old_log_prob
    return torch.sum(torch.exp(d) - 1 - d)


def ex3_wrong_sign(log_prob, old_log_prob):
    d = log_prob - old_log_prob
    return torch.mean(torch.exp(d) - 1 + d)


def ex3_logs_divided(log_prob, old_log_prob):
    rho = log_prob / old_log_prob
    return torch.mean(rho - 1 - torch.log(rho))


def ex3_one_a_sample(log_prob, old_log_prob):
    d = log_prob - old_log_prob
    return d.exp() - 1 - d


# Exercise 4 ---------------------------------------------------------------------------------------


def _backwards(reward, step, start):
    out, after = [], start
    for t in reversed(range(len(reward))):
        after = step(t, after)
        out.insert(0, after)
    return torch.stack(out)


def ex4_ended_for_terminated(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        if ended[t]:
            return reward[t]
        return reward[t] + gamma * ((1 - lam) * next_value[t] + lam * after)

    return _backwards(reward, step, next_value[-1])


def ex4_crosses_episodes(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        mixed = (1 - lam) * next_value[t] + lam * after
        return reward[t] + gamma * mixed * (1 - terminated[t].float())

    return _backwards(reward, step, next_value[-1])


def ex4_never_terminates(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        ahead = next_value[t] if ended[t] else (1 - lam) * next_value[t] + lam * after
        return reward[t] + gamma * ahead

    return _backwards(reward, step, next_value[-1])


def ex4_starts_from_zero(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        ahead = next_value[t] if ended[t] else (1 - lam) * next_value[t] + lam * after
        return reward[t] + gamma * ahead * ~terminated[t]

    return _backwards(reward, step, torch.tensor(0.0))


def ex4_lambda_for_the_value(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        ahead = next_value[t] if ended[t] else lam * next_value[t] + (1 - lam) * after
        return reward[t] + gamma * ahead * ~terminated[t]

    return _backwards(reward, step, next_value[-1])


def ex4_td_target(reward, next_value, terminated, ended, gamma, lam):
    return reward + gamma * ~terminated * next_value


def ex4_monte_carlo(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        return reward[t] + gamma * (next_value[t] if ended[t] else after) * ~terminated[t]

    return _backwards(reward, step, next_value[-1])


def ex4_whole_value(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        after = next_value[t] if ended[t] else after
        return reward[t] + gamma * ~terminated[t] * (next_value[t] + lam * after)

    return _backwards(reward, step, next_value[-1])


def ex4_no_discount(reward, next_value, terminated, ended, gamma, lam):
    def step(t, after):
        ahead = next_value[t] if ended[t] else (1 - lam) * next_value[t] + lam * after
        return reward[t] + ahead * ~terminated[t]

    return _backwards(reward, step, next_value[-1])


def ex4_not_of_a_bool(reward, next_value, terminated, ended, gamma, lam):
    return reward + gamma * (1 - terminated) * next_value


# Exercise 5 ---------------------------------------------------------------------------------------


def _norms(probs):
    return [sum(((i == a) - p) ** 2 for i, p in enumerate(probs)) for a in range(len(probs))]


def ex5_policy_mean(probs, rewards):
    return sum(p * r for p, r in zip(probs, rewards, strict=True))


def ex5_plain_mean(probs, rewards):
    return np.mean(rewards)


def ex5_norms_alone(probs, rewards):
    return np.average(rewards, weights=_norms(probs))


def ex5_root(probs, rewards):
    return np.average(rewards, weights=probs * np.array(_norms(probs)) ** 0.5)


def ex5_diagonal(probs, rewards):
    return np.average(rewards, weights=probs * (1 - probs) ** 2)


def ex5_numerator(probs, rewards):
    return np.sum(probs * _norms(probs) * rewards)


def ex5_maximum(probs, rewards):
    return np.max(rewards)


def ex5_minimum(probs, rewards):
    return np.min(rewards)


WRONG = {
    "ch03_ex1": {
        ex1_reversed_cumsum: "nothing in it is discounted",
        ex1_forwards: "from its end",
        ex1_cumsum: "what was earned so far",
        ex1_same_for_all: "begin with its own reward",
        ex1_absolute_time: "the exponent is k - t",
        ex1_strictly_later: "reward of the step itself is missing",
        ex1_one_step_late: "One discount too many",
        ex1_one_step_ahead: "the answer is",
        ex1_only_a_number: "The shape should be (4,), yours is ().",
    },
    "ch03_ex2": {
        ex2_within_the_interval: "And what of advantage 0?",
        ex2_within_and_some_advantage: "Look at the left panel below 0.8",
        ex2_beyond: "of good and bad alike",
        ex2_silent_ones: "turn it round",
        ex2_good_and_bad_swapped: "have changed places",
        ex2_one_corner: "Bad ones have theirs at 1 - ε",
        ex2_no_clip: "where is the curve flat",
        ex2_zero_with_the_good: "counts as good",
        ex2_zero_with_the_bad: "counts as bad",
        ex2_fixed_clip: "the answer is",
        ex2_python_and: "RuntimeError on its line",
    },
    "ch03_ex3": {
        ex3_old_over_new: "ρ is new over old",
        ex3_minus_log_ratio: "Add ρ - 1",
        ex3_log_ratio: "minus the divergence",
        ex3_square: "a biased one",
        ex3_forgets_the_one: "gives 1 and not 0",
        ex3_sum: "not a sum",
        ex3_wrong_sign: "it is subtracted",
        ex3_logs_divided: "not of their logarithms",
        ex3_one_a_sample: "The shape should be (), yours is (3,).",
    },
    "ch03_ex4": {
        ex4_ended_for_terminated: "Where time ran out yours adds no value",
        ex4_crosses_episodes: "belongs to another episode",
        ex4_never_terminates: "nothing follows",
        ex4_starts_from_zero: "not the end of the world",
        ex4_lambda_for_the_value: "λ and 1 - λ have changed places",
        ex4_td_target: "the target of one step",
        ex4_monte_carlo: "as with λ = 1",
        ex4_whole_value: "V counts with 1 - λ",
        ex4_no_discount: "the answer is",
        ex4_not_of_a_bool: "RuntimeError on its line",
    },
    "ch03_ex5": {
        ex5_policy_mean: "not in general",
        ex5_plain_mean: "pulled equally often",
        ex5_norms_alone: "weigh each arm by its probability",
        ex5_root: "enters squared",
        ex5_diagonal: "an entry for every arm",
        ex5_numerator: "divide",
        ex5_maximum: "no average",
        ex5_minimum: "the answer is",
    },
}
