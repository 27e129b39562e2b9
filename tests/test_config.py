"""Configurations: filled strictly, and errors that say what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marl_lib.config import (
    Config,
    ConfigError,
    Count,
    Finite,
    Natural,
    NonNegative,
    Positive,
    Rule,
    Share,
    Unit,
    Variant,
    Widths,
    at_least,
    choice,
    convert,
    from_mapping,
    merge,
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


# Types --------------------------------------------------------------------------------------------


def is_even(n: int) -> bool:
    return n % 2 == 0


@dataclass(frozen=True)
class Typed(Config):
    gamma: Unit = 0.9
    tau: Share = 1
    learning_rate: Positive = 1e-3
    coef: NonNegative = 0.0
    reward: Finite = -1.0
    rollout: Count = 25
    seed: Natural = 0
    hidden: Widths = (64, 64)
    target_kl: Positive | None = None
    view: Count | None = None
    layers: Widths | None = None
    activation: Literal["relu", "tanh"] | None = None
    size: tuple[Count, Annotated[int, at_least(2), Rule("even", is_even)]] = (1, 2)
    betas: tuple[Unit, ...] = ()
    physics: dict[str, Positive | tuple[Unit, Unit]] = field(default_factory=dict)
    free: float = math.nan
    rate: Unit | Literal["auto"] = 0.5

    def check(self) -> None:
        super().check()
        require(self.tau >= self.coef, "tau", self.tau, f"at least coef, {self.coef}")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gamma", 0, 0.0),
        ("gamma", 1, 1.0),
        ("gamma", "5e-1", 0.5),
        ("gamma", np.float32(0.5), 0.5),
        ("tau", np.int64(1), 1.0),
        ("learning_rate", "3e-4", 3e-4),
        ("coef", 0, 0.0),
        ("reward", -3, -3.0),
        ("rollout", np.int32(1), 1),
        ("seed", 0, 0),
        ("hidden", [], ()),
        ("hidden", [np.int64(3), 4], (3, 4)),
        ("target_kl", None, None),
        ("target_kl", 1, 1.0),
        ("view", 3, 3),
        ("layers", [1], (1,)),
        ("activation", "tanh", "tanh"),
        ("size", [3, 4], (3, 4)),
        ("betas", [0, 1], (0.0, 1.0)),
        ("physics", {"a": 2, "b": [0, 1]}, {"a": 2.0, "b": (0.0, 1.0)}),
        ("free", "inf", math.inf),
        ("rate", "auto", "auto"),
        ("rate", 1, 1.0),
    ],
)
def test_a_config_converts_from_a_mapping_and_from_keywords_alike(name, value, expected):
    for made in (from_mapping(Typed, {name: value}), Typed(**{name: value})):
        assert same_types(getattr(made, name), expected)
        if isinstance(expected, tuple):
            assert all(map(same_types, getattr(made, name), expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gamma", 2, "gamma must be in [0, 1], got 2.0"),
        ("gamma", -0.1, "gamma must be in [0, 1], got -0.1"),
        ("gamma", math.nan, "gamma must be a finite number, got nan"),
        ("gamma", "high", "gamma must be of type float, got 'high'"),
        ("gamma", None, "gamma must be of type float, got None"),
        ("tau", 0, "tau must be in (0, 1], got 0.0"),
        ("learning_rate", -1, "learning_rate must be positive, got -1.0"),
        ("learning_rate", 0, "learning_rate must be positive, got 0.0"),
        ("learning_rate", math.inf, "learning_rate must be a finite number, got inf"),
        ("learning_rate", 10**400, f"learning_rate must be of type float, got {10**400}"),
        ("coef", -1e-9, "coef must be at least 0, got -1e-09"),
        ("reward", "-inf", "reward must be a finite number, got -inf"),
        ("rollout", 0, "rollout must be at least 1, got 0"),
        ("rollout", 1.0, "rollout must be of type int, got 1.0"),
        ("rollout", True, "rollout must be of type int, got True"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("hidden", (0,), "hidden must be widths of at least 1, got (0,)"),
        ("hidden", [8, "x"], "hidden[1] must be of type int, got 'x'"),
        ("hidden", 64, "hidden must be a list, got 64"),
        ("target_kl", -1, "target_kl must be positive or null, got -1.0"),
        ("target_kl", math.nan, "target_kl must be a finite number or null, got nan"),
        ("target_kl", "none", "target_kl must be float or null, got 'none'"),
        ("view", 0, "view must be at least 1 or null, got 0"),
        ("view", 1.5, "view must be int or null, got 1.5"),
        ("layers", [0], "layers must be widths of at least 1 or null, got (0,)"),
        ("layers", 3, "layers must be a list or null, got 3"),
        (
            "activation",
            "rellu",
            "activation 'rellu' is not known; did you mean 'relu'? (choices: relu, tanh, None)",
        ),
        ("size", [0, 2], "size[0] must be at least 1, got 0"),
        ("size", [1, 3], "size[1] must be even, got 3"),
        ("size", [1, 0], "size[1] must be at least 2, got 0"),
        ("betas", [0.5, 2], "betas[1] must be in [0, 1], got 2.0"),
        ("physics", {"a": -1}, "physics.a must be positive or tuple[float, float], got -1"),
        ("rate", 2, "rate must be in [0, 1] or Literal['auto'], got 2"),
        ("coef", 1.5, "tau must be at least coef, 1.5, got 1.0"),
    ],
)
def test_a_config_refuses_with_the_same_words_wherever_the_value_comes_from(name, value, message):
    text = yaml.safe_load(yaml.safe_dump(list(value) if isinstance(value, tuple) else value))
    for make in (
        lambda: Typed(**{name: value}),
        lambda: from_mapping(Typed, {name: text}),
        lambda: replace(Typed(), **{name: value}),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == message


def test_in_a_section_the_key_has_its_name_before_it():
    whole = make_dataclass("Whole", [("part", Typed, Typed())], bases=(Config,), frozen=True)
    for make in (lambda: from_mapping(whole, {"part": {"gamma": 2}}), lambda: whole({"gamma": 2})):
        with pytest.raises(ConfigError, match=r"^part\.gamma must be in \[0, 1\], got 2\.0$"):
            make()


def test_defaults_are_held_to_the_types_too():
    assert same_types(Typed().tau, 1.0)
    wrong = make_dataclass("Wrong", [("rollout", Count, 0)], bases=(Typed,), frozen=True)
    with pytest.raises(ConfigError, match="rollout must be at least 1, got 0"):
        wrong()


def test_a_section_in_parts_lies_over_the_default_one():
    default = Typed(gamma=0.5, rollout=3, free=0.0)
    whole = make_dataclass("Whole", [("part", Typed, default)], bases=(Config,), frozen=True)
    for made in (from_mapping(whole, {"part": {"rollout": 4}}), whole({"rollout": 4})):
        assert made.part == replace(default, rollout=4)


# Variants -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder(Variant):
    width: Count = 64


@dataclass(frozen=True)
class MLP(Encoder, kind="mlp"):
    pass


@dataclass(frozen=True)
class Recurrent(Encoder):
    memory: Count = 64


@dataclass(frozen=True)
class GRU(Recurrent, kind="gru"):
    pass


@dataclass(frozen=True)
class LSTM(Recurrent, kind="lstm"):
    inner: Encoder = GRU(memory=5)


@dataclass(frozen=True)
class Bonus(Variant):
    pass


@dataclass(frozen=True)
class CountBonus(Bonus, kind="count"):
    scale: Positive = 1.0


@dataclass(frozen=True)
class Learner(Config):
    encoder: Encoder = MLP(width=32)
    cell: Recurrent = GRU(memory=8)
    bonus: Bonus | None = None
    stack: tuple[Encoder, ...] = ()
    named: dict[str, Encoder] = field(default_factory=dict)


def test_kinds():
    assert Encoder.kinds() == {"mlp": MLP, "gru": GRU, "lstm": LSTM}
    assert Recurrent.kinds() == {"gru": GRU, "lstm": LSTM}
    assert Bonus.kinds() == {"count": CountBonus}
    assert (GRU().kind, GRU.kind, Recurrent.kind) == ("gru", "gru", "")


def test_a_kind_has_one_class_but_a_cell_may_run_again():
    family = type("Family", (Variant,), {})
    type("One", (family,), {}, kind="one")
    again = type("One", (family,), {}, kind="one")
    assert family.kinds() == {"one": again}
    with pytest.raises(TypeError, match="kind 'one' is already that of One"):
        type("Other", (family,), {}, kind="one")


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({}, "encoder", MLP(32)),
        ({"encoder": None}, "encoder", MLP(32)),
        ({"encoder": LSTM(1)}, "encoder", LSTM(1)),
        ({"encoder": "gru"}, "encoder", GRU(64, 64)),
        ({"encoder": "mlp"}, "encoder", MLP(32)),
        ({"encoder": {"kind": "gru", "memory": 3}}, "encoder", GRU(64, 3)),
        ({"encoder": {"kind": "mlp"}}, "encoder", MLP(32)),
        ({"encoder": {"width": 5}}, "encoder", MLP(5)),
        ({"cell": {"width": 5}}, "cell", GRU(5, 8)),
        ({"cell": {"kind": "lstm"}}, "cell", LSTM(64, 64)),
        ({"cell": {"kind": "lstm", "inner": {"width": 2}}}, "cell", LSTM(inner=GRU(2, 5))),
        ({"cell": {"kind": "lstm", "inner": "mlp"}}, "cell", LSTM(inner=MLP())),
        ({"bonus": None}, "bonus", None),
        ({"bonus": "count"}, "bonus", CountBonus()),
        ({"bonus": {"kind": "count", "scale": 2}}, "bonus", CountBonus(2.0)),
        ({"stack": ["gru", {"kind": "mlp", "width": 1}, LSTM()]}, "stack", (GRU(), MLP(1), LSTM())),
        ({"named": {"a": "mlp"}}, "named", {"a": MLP()}),
    ],
)
def test_a_variant_is_an_instance_a_name_or_a_mapping(given, name, expected):
    for made in (from_mapping(Learner, given), Learner(**given)):
        assert same_types(getattr(made, name), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"encoder": "gur"},
            "encoder 'gur' is not known; did you mean 'gru'? (choices: mlp, gru, lstm)",
        ),
        ({"encoder": {"kind": "gur"}}, "encoder 'gur' is not known; did you mean 'gru'?"),
        ({"encoder": {"kind": ["gru"]}}, "encoder ['gru'] is not known"),
        ({"encoder": {"memory": 3}}, "configuration key in encoder 'memory' is not known"),
        ({"encoder": {"kind": "gru", "memory": 0}}, "encoder.memory must be at least 1, got 0"),
        ({"encoder": 4}, "encoder must be a mapping, got 4"),
        ({"encoder": Encoder()}, "encoder must be a mapping, got Encoder(width=64)"),
        ({"encoder": CountBonus()}, "encoder must be a mapping, got CountBonus(scale=1.0)"),
        ({"cell": "mlp"}, "cell 'mlp' is not known (choices: gru, lstm)"),
        ({"bonus": {"scale": 2}}, "missing configuration key bonus.kind (choices: count)"),
        ({"bonus": "cuont"}, "bonus 'cuont' is not known; did you mean 'count'? (choices: count)"),
        ({"bonus": {"kind": "count", "scale": 0}}, "bonus.scale must be positive, got 0.0"),
        ({"stack": ["gur"]}, "stack[0] 'gur' is not known; did you mean 'gru'?"),
    ],
)
def test_a_wrong_variant_is_named(given, message):
    for make in (lambda: from_mapping(Learner, given), lambda: Learner(**given)):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_a_family_is_read_by_itself():
    assert from_mapping(Encoder, {"kind": "gru", "memory": 3}) == GRU(memory=3)
    assert from_mapping(GRU, {"memory": 3}) == GRU(memory=3)
    with pytest.raises(ConfigError, match=r"missing configuration key Encoder\.kind"):
        from_mapping(Encoder, {})


ENCODERS = st.recursive(
    st.builds(MLP, st.integers(1, 9)) | st.builds(GRU, st.integers(1, 9), st.integers(1, 9)),
    lambda inner: st.builds(LSTM, inner=inner),
    max_leaves=3,
)


@given(
    st.builds(
        Learner,
        encoder=ENCODERS,
        bonus=st.none() | st.builds(CountBonus, st.floats(0.1, 9)),
        stack=st.lists(ENCODERS, max_size=2).map(tuple),
        named=st.dictionaries(st.text("ab"), ENCODERS, max_size=2),
    )
)
def test_variants_survive_yaml_and_merging(config):
    written = to_mapping(config)
    assert list(written["encoder"])[0] == "kind"
    assert from_mapping(Learner, yaml.safe_load(yaml.safe_dump(written))) == config
    assert from_mapping(Learner, merge(to_mapping(Learner()), written)) == config


# Layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], {}),
        ([{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}}], {"a": 1, "b": {"c": 4, "d": 3}}),
        ([{"a": {"b": 1}}, {"a": None}], {"a": None}),
        ([{"a": None}, {"a": {"b": 1}}], {"a": {"b": 1}}),
        ([{"a": [1, 2]}, {"a": [3]}], {"a": [3]}),
        ([{"a": "x"}, {"a": "y"}], {"a": "y"}),
        # the name of a kind for the section
        ([{"a": {"kind": "x", "b": 1}}, {"a": "x"}], {"a": {"kind": "x", "b": 1}}),
        ([{"a": {"kind": "x", "b": 1}}, {"a": "y"}], {"a": {"kind": "y"}}),
        ([{"a": "x"}, {"a": {"kind": "x", "b": 1}}], {"a": {"kind": "x", "b": 1}}),
        ([{"a": "x"}, {"a": {"kind": "y", "b": 1}}], {"a": {"kind": "y", "b": 1}}),
        ([{"a": "x"}, {"a": {"b": 1}}], {"a": {"kind": "x", "b": 1}}),
        ([{"a": {"b": 1}}, {"a": "x"}], {"a": "x"}),
        # another kind starts anew, the same one goes on
        (
            [{"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y", "c": 2}}],
            {"a": {"kind": "y", "c": 2}},
        ),
        (
            [{"a": {"kind": "x", "b": 1}}, {"a": {"kind": "x", "c": 2}}],
            {"a": {"kind": "x", "b": 1, "c": 2}},
        ),
        ([{"a": {"kind": "x", "b": 1}}, {"a": {"b": 2}}], {"a": {"kind": "x", "b": 2}}),
        (
            [
                {"s": {"a": {"kind": "x", "b": 1}, "z": 0}},
                {"s": {"a": "y"}},
                {"s": {"a": {"c": 3}}},
            ],
            {"s": {"a": {"kind": "y", "c": 3}, "z": 0}},
        ),
    ],
)
def test_layers(layers: list[Mapping[str, Any]], expected: dict[str, Any]):
    before = repr(layers)
    merged = merge(*layers)
    assert merged == expected
    for section in merged.values():
        if isinstance(section, dict):
            section["new"] = 1
    assert repr(layers) == before


# Files --------------------------------------------------------------------------------------------


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
