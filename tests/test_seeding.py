"""Random streams: the published generator, and rows that know nothing of each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marl_lib.seeding import RandomStreams, check_seed


def with_keys(*keys: int) -> RandomStreams:
    """Return streams whose SplitMix64 states are given."""
    streams = RandomStreams(0, len(keys), "test")
    count = np.zeros(len(keys), np.int64)
    streams.load_state_dict({"key": np.array(keys, np.uint64).view(np.int64), "count": count})
    return streams


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # The figures that implementations of SplitMix64 are checked by.
        (
            1234567,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821,
            ],
        ),
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]),
    ],
)
def test_the_numbers_are_those_of_splitmix64(key, expected):
    assert with_keys(key).bits(len(expected))[0].tolist() == expected
    one_by_one = with_keys(key)
    assert [int(one_by_one.bits(1)[0, 0]) for _ in expected] == expected


def splitmix64(state: int, n: int) -> list[int]:
    """The generator in plain integers."""
    out = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.integers(0, 20))
def test_any_key_runs_through_splitmix64(keys, skip):
    streams = with_keys(*keys)
    streams.bits(skip)
    expected = [splitmix64(key, skip + 5)[skip:] for key in keys]
    assert streams.bits(5).tolist() == expected


def test_uniform_takes_the_upper_53_bits():
    bits = with_keys(5).bits(100)[0]
    expected = [int(b) // 2**11 / 2**53 for b in bits]
    assert with_keys(5).uniform(100)[0].tolist() == expected


def test_numbers_are_uniform_along_rows_and_across_them():
    numbers = RandomStreams(3, 400, "world").uniform(400)
    assert numbers.min() >= 0 and numbers.max() < 1
    for line in (numbers[0], numbers[:, 0], numbers[7], numbers[:, 399], numbers.ravel()):
        assert stats.kstest(line, "uniform").pvalue > 1e-3
    p_rows = [stats.kstest(row, "uniform").pvalue for row in numbers]
    assert stats.kstest(p_rows, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("purpose", ["world", "explore"])
def test_rows_seeds_and_purposes_are_independent(purpose):
    a = RandomStreams([0, 1, 2, 3], 25, purpose).uniform(2000)
    others = np.concatenate([a, RandomStreams(0, 5, "else").uniform(2000)])
    correlation = np.corrcoef(others)[np.triu_indices(len(others), 1)]
    # For independent rows it is normal with standard deviation 1 / sqrt(n).
    assert np.abs(correlation).max() < 5 / np.sqrt(2000)
    assert stats.kstest(correlation * np.sqrt(2000), "norm").pvalue > 1e-3
    lagged = np.mean((a[:, 1:] - 0.5) * (a[:, :-1] - 0.5)) * 12
    assert abs(lagged) < 5 / np.sqrt(a.size)


def test_no_number_comes_twice():
    bits = np.concatenate(
        [RandomStreams(range(40), 5, name).bits(100).ravel() for name in ("world", "explore")]
    )
    assert len(np.unique(bits)) == len(bits)


@given(st.integers(0, 2**40), st.integers(1, 5), st.integers(6, 20))
def test_a_row_does_not_depend_on_the_rows_beside_it(seed, few, many):
    some = RandomStreams(seed, few, "world").bits(6)
    np.testing.assert_array_equal(some, RandomStreams(seed, many, "world").bits(6)[:few])
    blocks = RandomStreams([seed + 1, seed], few, "world").bits(6)
    np.testing.assert_array_equal(some, blocks[few:])
    assert (blocks[:few] != blocks[few:]).all()
    assert (some != RandomStreams(seed, few, "explore").bits(6)).all()


@settings(max_examples=50)
@given(st.data())
def test_each_row_counts_for_itself(data):
    """Whatever rows are drawn from in whatever order, each goes through its own sequence."""
    streams, whole = RandomStreams(1, 6, "test"), RandomStreams(1, 6, "test").bits(60)
    taken = np.zeros(6, int)
    for _ in range(6):
        n = data.draw(st.integers(0, 5))
        chosen = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
        rows = np.array(chosen) if data.draw(st.booleans()) else np.flatnonzero(chosen)
        got = streams.bits(n, rows)
        for row, values in zip(np.flatnonzero(chosen), got, strict=True):
            np.testing.assert_array_equal(values, whole[row, taken[row] : taken[row] + n])
        taken[np.array(chosen)] += n


def test_integers_are_even_and_below_their_bound():
    streams = RandomStreams(2, 50, "test")
    drawn = streams.integers(7, 2000)
    assert drawn.dtype == np.int64 and stats.chisquare(np.bincount(drawn.ravel())).pvalue > 1e-3
    assert np.bincount(drawn.ravel()).shape == (7,)
    high = np.arange(1, 51)[:, None]
    each = streams.integers(high, 500)
    assert (
        (each < high).all() and (each.min(1) == 0).all() and (each.max(1) == high[:, 0] - 1).all()
    )


@pytest.mark.parametrize("high", [1, 2, 3, 5, 6, 10, 2**20 + 1, 2**31 - 1, 2**52 + 1, 2**53])
def test_the_largest_number_below_one_still_gives_an_integer_below_the_bound(high, monkeypatch):
    """Rounding must not carry the product up to the bound."""
    streams = RandomStreams(0, 1, "test")
    all_ones = np.full((1, 1), 2**64 - 1, np.uint64)
    monkeypatch.setattr(streams, "bits", lambda n, rows: all_ones)
    assert streams.uniform(1)[0, 0] < 1
    assert streams.integers(high, 1)[0, 0] == high - 1


def test_restored_streams_go_on_exactly():
    streams = RandomStreams([4, 5], 3, "test")
    streams.bits(11)
    streams.bits(2, np.array([1, 4]))
    kept = streams.state_dict()
    expected = streams.bits(9)
    for start in (RandomStreams(0, 6, "else"), RandomStreams(9, 2, "test")):
        start.load_state_dict(kept)
        assert len(start) == 6
        np.testing.assert_array_equal(start.bits(9), expected)
    start.load_state_dict(kept)  # what was kept is untouched by those who went on from it
    np.testing.assert_array_equal(start.bits(9), expected)


def test_drawing_makes_no_overflow_warning():
    with np.errstate(all="raise"):
        with_keys(2**64 - 1, 2**63).bits(50)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, None, float("nan")])
def test_seeds_are_whole_numbers_from_zero(seed):
    with pytest.raises(ValueError, match="a seed is an integer of at least 0"):
        check_seed(seed)
    with pytest.raises(ValueError, match="a seed is an integer of at least 0"):
        RandomStreams(seed, 1, "test")
    with pytest.raises(ValueError, match="a seed is an integer of at least 0"):
        RandomStreams([0, seed], 1, "test")


def test_seeds_may_be_numpys():
    np.testing.assert_array_equal(
        RandomStreams(np.array([3, 4]), 2, "t").bits(3), RandomStreams([3, 4], 2, "t").bits(3)
    )
    np.testing.assert_array_equal(
        RandomStreams(np.int64(3), 2, "t").bits(3), RandomStreams(3, 2, "t").bits(3)
    )
    assert type(check_seed(np.uint8(3))) is int
