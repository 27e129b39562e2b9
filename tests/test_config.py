"""Configurations: filled strictly, and errors that say what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marl_lib.config import (
    ConfigError,
    choice,
    convert,
    from_mapping,
    read_yaml,
    require,
    to_mapping,
)


@dataclass(frozen=True)
class Inner:
    width: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    steps: int
    rate: float = 0.1
    size: tuple[int, int] = (2, 3)
    kind: Literal["big", "small"] = "big"
    limit: int | None = None
    on: bool = False
    text: str = ""
    inner: Inner = Inner()
    physics: dict[str, float | tuple[float, float]] = field(default_factory=dict)
    anything: Any = None

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps", self.steps, "positive")


def same_types(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


@pytest.mark.parametrize(
    ("given", "attribute", "expected"),
    [
        ({"rate": 1}, "rate", 1.0),
        ({"rate": "3e-4"}, "rate", 3e-4),
        ({"rate": np.float32(0.5)}, "rate", 0.5),
        ({"steps": np.int64(4)}, "steps", 4),
        ({"size": [4, 5]}, "size", (4, 5)),
        ({"limit": None}, "limit", None),
        ({"limit": 7}, "limit", 7),
        ({"kind": "small"}, "kind", "small"),
        ({"on": True}, "on", True),
        ({"inner": {"names": ["a", "b"]}}, "inner", Inner(3, ("a", "b"))),
        ({"inner": Inner(5)}, "inner", Inner(5)),
        ({"inner": None}, "inner", Inner()),
        (
            {"physics": {"mass": 2, "length": [1, 2.5]}},
            "physics",
            {"mass": 2.0, "length": (1.0, 2.5)},
        ),
        ({"anything": [1, {"a": None}]}, "anything", [1, {"a": None}]),
    ],
)
def test_values_become_what_the_field_says(given, attribute, expected):
    value = getattr(from_mapping(Outer, {"steps": 1} | given), attribute)
    assert same_types(value, expected)
    if isinstance(expected, tuple):
        assert all(map(same_types, value, expected))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"stepps": 1},
            "configuration key 'stepps' is not known; did you mean 'steps'? (choices: steps,",
        ),
        ({1: 2}, "configuration key 1 is not known"),
        ({}, "missing configuration key steps"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"steps": 1.5}, "steps must be of type int, got 1.5"),
        ({"steps": 1.0}, "steps must be of type int, got 1.0"),
        ({"steps": "1"}, "steps must be of type int, got '1'"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"steps": None}, "steps must be of type int, got None"),
        ({"rate": "fast"}, "rate must be of type float, got 'fast'"),
        ({"rate": True}, "rate must be of type float, got True"),
        ({"rate": None}, "rate must be of type float, got None"),
        ({"rate": [1.0]}, "rate must be of type float, got [1.0]"),
        ({"size": 4}, "size must be a list, got 4"),
        ({"size": "45"}, "size must be a list, got '45'"),
        ({"size": [4]}, "size must have 2 entries, got [4]"),
        ({"size": [4, "x"]}, "size[1] must be of type int, got 'x'"),
        (
            {"kind": "bigger"},
            "kind 'bigger' is not known; did you mean 'big'? (choices: big, small)",
        ),
        ({"limit": "none"}, "limit must be int or null, got 'none'"),
        ({"on": 1}, "on must be of type bool, got 1"),
        ({"on": "yes"}, "on must be of type bool, got 'yes'"),
        ({"text": 3}, "text must be of type str, got 3"),
        (
            {"inner": {"widht": 2}},
            "configuration key in inner 'widht' is not known; did you mean 'width'",
        ),
        ({"inner": {"width": "x"}}, "inner.width must be of type int, got 'x'"),
        ({"inner": {"names": ["a", 1]}}, "inner.names[1] must be of type str, got 1"),
        ({"inner": 4}, "inner must be a mapping, got 4"),
        (
            {"physics": {"mass": "heavy"}},
            "physics.mass must be float or tuple[float, float], got 'heavy'",
        ),
        ({"physics": [1]}, "physics must be of type dict, got [1]"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    values = given if given in ({}, {1: 2}) or "steps" in given else {"steps": 1} | given
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        from_mapping(Outer, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[1], "steps: 1", 3])
def test_a_configuration_is_a_mapping(values):
    with pytest.raises(ConfigError, match="the configuration must be a mapping"):
        from_mapping(Outer, values)


def test_no_values_are_all_defaults():
    assert from_mapping(Inner, None) == from_mapping(Inner, {}) == Inner()


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Outer,
        steps=st.integers(1, 10**12),
        rate=NUMBERS,
        size=st.tuples(st.integers(), st.integers()),
        kind=st.sampled_from(["big", "small"]),
        limit=st.none() | st.integers(),
        on=st.booleans(),
        text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        inner=st.builds(Inner, st.integers(), st.lists(st.text("abc ü"), max_size=3).map(tuple)),
        physics=st.dictionaries(st.text("abc"), NUMBERS | st.tuples(NUMBERS, NUMBERS), max_size=3),
    )
)
def test_a_configuration_survives_yaml(config):
    written = yaml.safe_dump(to_mapping(config), allow_unicode=True)
    assert from_mapping(Outer, yaml.safe_load(written)) == config


def test_a_mapping_does_not_share_its_values():
    config = Outer(1, physics={"mass": 1.0})
    to_mapping(config)["physics"]["mass"] = 2.0
    assert config.physics == {"mass": 1.0}


def test_choice():
    assert choice("colour", "red", iter(["red", "blue"])) == "red"
    with pytest.raises(ConfigError, match=r"^colour 'gren' is not known; did you mean 'green'"):
        choice("colour", "gren", ["red", "green"])
    with pytest.raises(ConfigError, match=r"^colour \[\] is not known \(choices: red, green\)$"):
        choice("colour", [], ["red", "green"])


def test_convert_takes_anything_for_any():
    thing = object()
    assert convert(thing, Any, "key") is thing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold a mapping"),
        (b"- 1\n- 2\n", "must hold a mapping"),
        (b"just words", "must hold a mapping"),
        (b"a: [1, 2", "is not valid YAML"),
        (b"a: 1\n b: 2\n", "is not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"\xff\xfe\x00rubbish", "is not a text file in UTF-8"),
        (b"\x00\x01", "is not valid YAML"),
        (b"? [1]\n: 2\n", "is not valid YAML"),
        (b"a: {b: 1, c: 2, b: 3}", "the key 'b' stands twice"),
        (None, "cannot read .*No such file"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, content, message):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_configuration(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_yaml(tmp_path)


def test_a_good_file_is_read_as_utf_8(tmp_path: Path):
    path = tmp_path / "good.yaml"
    path.write_bytes("steps: 5\ntext: é\nrate: 1e-3\n".encode())
    assert from_mapping(Outer, read_yaml(path)) == Outer(5, rate=1e-3, text="é")


def test_a_key_given_twice_is_an_error(tmp_path: Path):
    """Of two lines, one would be silently without effect."""
    path = tmp_path / "twice.yaml"
    path.write_text("rate: 1\nsteps: 2\nrate: 3\n")
    with pytest.raises(ConfigError, match="twice.yaml.*rate"):
        read_yaml(path)
