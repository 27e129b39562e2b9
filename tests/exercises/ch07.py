"""Typical wrong answers to the exercises of chapter 7, with a part of the hint each must get.

They are written without a look at the checks' own code, as a reader might write them.
"""

import numpy as np

# Exercise 1 ---------------------------------------------------------------------------------------


def ex1_counts_down(obs):
    B, N, D = obs.shape
    out = np.zeros((B, N, N * D))
    for i in range(N):
        for k in range(N):
            out[:, i, k * D : (k + 1) * D] = obs[:, (i - k) % N]
    return out


def ex1_roll_the_wrong_way(obs):
    seen = [np.roll(obs, i, axis=1) for i in range(obs.shape[1])]
    return np.stack([x.reshape(len(obs), -1) for x in seen], axis=1)


def ex1_central(obs):
    B, N, D = obs.shape
    return np.broadcast_to(obs.reshape(B, 1, N * D), (B, N, N * D))


def ex1_swap_with_the_first(obs):
    B, N, D = obs.shape
    out = []
    for i in range(N):
        rest = np.delete(obs, i, axis=1)
        out.append(np.concatenate([obs[:, i : i + 1], rest], axis=1).reshape(B, N * D))
    return np.stack(out, axis=1)


def ex1_interleaved(obs):
    B, N, D = obs.shape
    turned = np.stack([np.roll(obs, -i, axis=1) for i in range(N)], axis=1)
    return np.transpose(turned, (0, 1, 3, 2)).reshape(B, N, N * D)


def ex1_still_four_axes(obs):
    return np.stack([np.roll(obs, -i, axis=1) for i in range(obs.shape[1])], axis=1)


def ex1_mates_alone(obs):
    B, N, D = obs.shape
    turned = np.stack([np.roll(obs, -i, axis=1) for i in range(N)], axis=1)
    return turned[:, :, 1:].reshape(B, N, (N - 1) * D)


def ex1_itself_again_and_again(obs):
    return np.concatenate([obs] * obs.shape[1], axis=-1)


def ex1_one_state(obs):
    return obs.reshape(len(obs), -1)


# Exercise 2 ---------------------------------------------------------------------------------------


def ex2_raw(reward, value, next_value, terminated, mean, std, gamma):
    return reward + gamma * (1 - terminated) * next_value - value


def ex2_scaled_only(reward, value, next_value, terminated, mean, std, gamma):
    return reward + gamma * (1 - terminated) * std * next_value - std * value


def ex2_shifted_only(reward, value, next_value, terminated, mean, std, gamma):
    return reward + gamma * (1 - terminated) * (next_value + mean) - (value + mean)


def ex2_wrong_direction(reward, value, next_value, terminated, mean, std, gamma):
    v, w = ((x - mean) / std for x in (value, next_value))
    return reward + gamma * (1 - terminated) * w - v


def ex2_masked_before_undoing(reward, value, next_value, terminated, mean, std, gamma):
    w = next_value * (1 - terminated)
    return reward + gamma * (w * std + mean) - (value * std + mean)


def ex2_no_end(reward, value, next_value, terminated, mean, std, gamma):
    return reward + gamma * (next_value * std + mean) - value * std - mean


def ex2_undo_the_error(reward, value, next_value, terminated, mean, std, gamma):
    return std * (reward + gamma * (1 - terminated) * next_value - value)


def ex2_target_alone(reward, value, next_value, terminated, mean, std, gamma):
    return reward + gamma * (1 - terminated) * (mean + std * next_value) - value


def ex2_reward_in_their_units(reward, value, next_value, terminated, mean, std, gamma):
    return (reward - mean) / std + gamma * (1 - terminated) * next_value - value


def ex2_plus(reward, value, next_value, terminated, mean, std, gamma):
    v, w = mean + std * value, mean + std * next_value
    return reward + gamma * (1 - terminated) * w + v


# Exercise 3 ---------------------------------------------------------------------------------------


def ex3_both_now(policy, replay):
    total = policy.sum(1, keepdims=True)
    return np.repeat(-2 * (total - 1), 2, axis=1)


def ex3_both_then(policy, replay):
    total = replay.sum(1, keepdims=True)
    return np.repeat(-2 * (total - 1), 2, axis=1)


def ex3_mate_now(policy, replay):
    return np.stack(
        [
            -2 * (replay[:, 0] + policy[:, 1] - 1),
            -2 * (policy[:, 0] + replay[:, 1] - 1),
        ][::1],
        axis=1,
    )


def ex3_same_column(policy, replay):
    return -2 * (policy + replay - 1)


def ex3_of_the_loss(policy, replay):
    return 2 * (policy + np.flip(replay, axis=1) - 1)


def ex3_values(policy, replay):
    mates = np.roll(replay, 1, axis=1)
    return -np.square(policy + mates - 1)


def ex3_no_factor(policy, replay):
    return 1 - policy - np.roll(replay, 1, axis=1)


def ex3_one_number(policy, replay):
    return -2 * (policy.sum(1) - 1)


# Exercise 4 ---------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x)
    return e / e.sum()


def ex4_forgets_the_outer_temperature(logits, gumbel, q, temperature):
    y = softmax((logits + gumbel) / temperature)
    return y * (q - (y * q).sum())


def ex4_without_temperature(logits, gumbel, q, temperature):
    y = softmax(logits + gumbel)
    return y * (q - (y * q).sum())


def ex4_without_gumbel(logits, gumbel, q, temperature):
    y = softmax(logits / temperature)
    return y * (q - (y * q).sum()) / temperature


def ex4_policy_gradient(logits, gumbel, q, temperature):
    pi = softmax(logits)
    return pi * (q - pi @ q)


def ex4_minus_what_was_drawn(logits, gumbel, q, temperature):
    y = softmax((logits + gumbel) / temperature)
    drawn = np.argmax(logits + gumbel)
    return y * (q - q[drawn]) / temperature


def ex4_diagonal(logits, gumbel, q, temperature):
    y = softmax((logits + gumbel) / temperature)
    return q * y * (1 - y) / temperature


def ex4_no_competition(logits, gumbel, q, temperature):
    return softmax((logits + gumbel) / temperature) * q / temperature


def ex4_truth(logits, gumbel, q, temperature):
    return np.zeros(len(logits))


def ex4_minus(logits, gumbel, q, temperature):
    y = softmax((logits + gumbel) / temperature)
    return -y * (q - y @ q) / temperature


# Exercise 5 ---------------------------------------------------------------------------------------


def summed_variance(weight, p, q):
    """Return the summed variances of what agent 0's plays say, the slow way."""
    plays = [(a, b) for a in range(len(p)) for b in range(len(q))]
    says = [(np.eye(len(p))[a] - p) * weight[a, b] for a, b in plays]
    chance = [p[a] * q[b] for a, b in plays]
    mean = sum(c * x for c, x in zip(chance, says, strict=True))
    return sum(c * ((x - mean) ** 2).sum() for c, x in zip(chance, says, strict=True))


def value(payoff, p, q):
    return p @ payoff @ q


def ex5_inverse(payoff, p, q):
    counter = summed_variance(payoff - p @ payoff, p, q)
    return counter / summed_variance(payoff - value(payoff, p, q), p, q)


def ex5_against_nothing(payoff, p, q):
    return summed_variance(payoff, p, q) / summed_variance(payoff - p @ payoff, p, q)


def ex5_over_the_mate(payoff, p, q):
    rows = np.array([[row @ q] for row in payoff])
    plain = summed_variance(payoff - value(payoff, p, q), p, q)
    return plain / summed_variance(payoff - rows, p, q)


def ex5_plain_column_means(payoff, p, q):
    plain = summed_variance(payoff - value(payoff, p, q), p, q)
    return plain / summed_variance(payoff - np.mean(payoff, axis=0), p, q)


def ex5_forgets_the_mean(payoff, p, q):
    def second(weight):
        return sum(
            p[a] * q[b] * (((np.eye(len(p))[a] - p) * weight[a, b]) ** 2).sum()
            for a in range(len(p))
            for b in range(len(q))
        )

    return second(payoff - value(payoff, p, q)) / second(payoff - p @ payoff)


def ex5_without_scores(payoff, p, q):
    chance = p[:, None] * q
    plain, counter = payoff - value(payoff, p, q), payoff - p @ payoff
    return np.sum(chance * plain**2) / np.sum(chance * counter**2)


def ex5_even_chances(payoff, p, q):
    p, q = np.ones(len(p)) / len(p), np.ones(len(q)) / len(q)
    plain = summed_variance(payoff - value(payoff, p, q), p, q)
    return plain / summed_variance(payoff - p @ payoff, p, q)


def ex5_standard_deviations(payoff, p, q):
    plain = summed_variance(payoff - value(payoff, p, q), p, q)
    return (plain / summed_variance(payoff - p @ payoff, p, q)) ** 0.5


WRONG = {
    "ch07_ex1": {
        ex1_counts_down: "the wrong way",
        ex1_roll_the_wrong_way: "to the left",
        ex1_central: "as in `central`",
        ex1_swap_with_the_first: "in the order of their numbers",
        ex1_interleaved: "dealt out in turns",
        ex1_still_four_axes: "side by side",
        ex1_mates_alone: "is missing",
        ex1_itself_again_and_again: "sees itself N times",
        ex1_one_state: "The shape should be",
    },
    "ch07_ex2": {
        ex2_raw: "as they are predicted",
        ex2_scaled_only: "the mean is not",
        ex2_shifted_only: "the deviation is not",
        ex2_wrong_direction: "normalised already",
        ex2_masked_before_undoing: "A *predicted* 0 means μ",
        ex2_no_end: "no value follows",
        ex2_undo_the_error: "scales the reward too",
        ex2_target_alone: "the present one too",
        ex2_reward_in_their_units: "brought the reward",
        ex2_plus: "the answer is",
    },
    "ch07_ex3": {
        ex3_both_now: "Both actions are the policies'",
        ex3_both_then: "Both actions are the replay's",
        ex3_mate_now: "The other way round",
        ex3_same_column: "its own old one",
        ex3_of_the_loss: "The sign",
        ex3_values: "These are the values",
        ex3_no_factor: "factor 2",
        ex3_one_number: "The shape should be",
    },
    "ch07_ex4": {
        ex4_forgets_the_outer_temperature: "the chain rule",
        ex4_without_temperature: "has no part in yours",
        ex4_without_gumbel: "Gumbel numbers are missing",
        ex4_policy_gradient: "an average over draws",
        ex4_minus_what_was_drawn: "not the value of the action that was drawn",
        ex4_diagonal: "the diagonal",
        ex4_no_competition: "what the other actions lose",
        ex4_truth: "the true derivative of a choice",
        ex4_minus: "the answer is",
    },
    "ch07_ex5": {
        ex5_inverse: "Upside down",
        ex5_against_nothing: "no baseline at all",
        ex5_over_the_mate: "mean of the *row*",
        ex5_plain_column_means: "weigh each by π(a)",
        ex5_forgets_the_mean: "second moments",
        ex5_without_scores: "compares the advantages",
        ex5_even_chances: "equally likely",
        ex5_standard_deviations: "not of deviations",
    },
}
