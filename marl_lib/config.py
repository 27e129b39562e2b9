"""Configuration: frozen dataclasses, filled strictly from YAML, the command line or keywords.

A field says by its type what it takes (``gamma: Unit``), a :class:`Config` holds itself to that,
and a :class:`Variant` is a configuration of one of several kinds. An unknown key, a wrong type or
an impossible value raises :class:`ConfigError` with a message that names the key, the value and the
choices.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the value and the choices."""


def choice(what: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``choices``, else raise ``ConfigError`` with the nearest."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join(str(c) for c in choices)
    raise ConfigError(f"{what} {value!r} is not known{hint} (choices: {names})")


def require(ok: bool, key: str, value: Any, rule: str) -> None:
    """Raise ``ConfigError`` that ``key`` must obey ``rule``, unless ``ok``."""
    if not ok:
        raise ConfigError(f"{key} must be {rule}, got {value!r}")


# Types --------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """What values of an annotated type must be: ``Annotated[int, Rule("even", is_even)]``."""

    text: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Rule:
    """Return the rule that a number is ``least`` or more."""
    return Rule(f"at least {least}", lambda x: x >= least)


Finite = Annotated[float, Rule("a finite number", math.isfinite)]
Unit = Annotated[Finite, Rule("in [0, 1]", lambda x: 0 <= x <= 1)]
Share = Annotated[Finite, Rule("in (0, 1]", lambda x: 0 < x <= 1)]
Positive = Annotated[Finite, Rule("positive", lambda x: x > 0)]
NonNegative = Annotated[Finite, at_least(0)]
Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Widths = Annotated[tuple[int, ...], Rule("widths of at least 1", lambda w: all(n >= 1 for n in w))]


# Configurations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Base of configurations: frozen dataclasses that convert and check their fields by type.

    Whether values come from YAML, the command line or keywords, they are converted as
    :func:`from_mapping` says, and refused with the same words.

    Raises
    ------
    ConfigError
        On a value that its field does not take.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in (f for f in dataclasses.fields(self) if f.init):
            value = _convert_field(getattr(self, field.name), field, hints, field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that do not go together; a subclass adds its rules to its base's."""


@dataclass(frozen=True)
class Variant(Config):
    """Base of a family of configurations that go by one name and differ in ``kind``.

    A direct subclass is a family; those of its subclasses that name a kind are its kinds. A field
    annotated with the family takes an instance, the name of a kind, or a mapping of ``kind`` and
    that kind's fields. Where a mapping names no kind, or that of the field's default value, it is
    laid over the default value.

    >>> @dataclass(frozen=True)
    ... class Encoder(Variant):
    ...     width: Count = 64
    >>> @dataclass(frozen=True)
    ... class GRU(Encoder, kind="gru"):
    ...     memory: Count = 64
    >>> from_mapping(Encoder, {"kind": "gru", "memory": 8})
    GRU(width=64, memory=8)
    """

    kind: ClassVar[str] = ""
    _family: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, kind: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls._family = {}
        cls.kind = kind
        if kind:
            other = cls._family.get(kind, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"kind {kind!r} is already that of {other.__qualname__}")
            cls._family[kind] = cls  # the same class anew, where a notebook's cell runs again

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """Return the kinds of this family by name, in the order they were declared."""
        return {kind: c for kind, c in cls._family.items() if issubclass(c, cls)}


@functools.lru_cache(256)
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)  # slow, so once for each class


# From and to mappings -----------------------------------------------------------------------------


def from_mapping(
    cls: type[T], values: Mapping[str, Any] | None, where: str = "", default: Any = None
) -> T:
    """Build the dataclass ``cls`` from a mapping such as YAML gives.

    Lists become tuples, integers become floats where a float is asked for, and text such as
    ``3e-4`` (which YAML reads as a string) is taken as the number it is. NumPy's numbers become
    Python's. Nothing else is converted.

    Parameters
    ----------
    cls : dataclass type
        For a :class:`Variant`, ``kind`` among the values says which class it is.
    values : mapping or None (taken as empty)
    where : str
        Prefix of keys in error messages.
    default : instance of ``cls`` or None
        Where other values come from; by default each field has its own.

    Raises
    ------
    ConfigError
        On an unknown key, a wrong type, or a value the dataclass itself refuses.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping, got {values!r}")
    if issubclass(cls, Variant):
        cls, values = _pick(cls, dict(values), where, default)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    filled = {}
    for key, value in values.items():
        choice("configuration key" + (f" in {where}" if where else ""), key, fields)
        name = f"{where}.{key}" if where else key
        filled[key] = _convert_field(value, fields[key], _hints(cls), name)  # type: ignore[arg-type]
    if type(default) is cls:
        filled = {name: getattr(default, name) for name in fields} | filled
    missing = [n for n, f in fields.items() if n not in filled and _default(f) is MISSING]
    if missing:
        raise ConfigError(f"missing configuration key {', '.join(missing)}")
    return cls(**filled)


def _pick(cls: type[Variant], values: dict[str, Any], where: str, default: Any) -> tuple[Any, dict]:
    """Return the class of the kind that is meant, and the values without ``kind``."""
    kinds = cls.kinds()
    kind = values.pop("kind", default.kind if isinstance(default, cls) else cls.kind)
    if kind == "":
        names = f"(choices: {', '.join(kinds)})"
        raise ConfigError(f"missing configuration key {where or cls.__name__}.kind {names}")
    return kinds[choice(where or "kind", kind, kinds)], values


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _convert_field(value: Any, field: dataclasses.Field, hints: Mapping[str, Any], key: str) -> Any:
    # A section that is given in parts lies over the default one.
    default = _default(field) if isinstance(value, Mapping | str | None) else None
    return convert(value, hints[field.name], key, default)


def convert(value: Any, kind: Any, key: str, default: Any = None, also: str = "") -> Any:
    """Return ``value`` as the type ``kind``, or raise ``ConfigError`` naming ``key``.

    Parameters
    ----------
    value
    kind : type annotation
    key : str
    default
        What a mapping, where ``kind`` is a dataclass, is laid over.
    also : str
        What else would do, for the message: " or null".
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        value = convert(value, args[0], key, default, also)
        for rule in (a for a in args[1:] if isinstance(a, Rule)):
            require(rule.holds(value), key, value, rule.text + also)
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, key, default)
    if origin is typing.Literal:
        return choice(key, value, (*args, None) if also else args)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)) and getattr(value, "kind", None) != "":
            return value
        if isinstance(value, str) and issubclass(kind, Variant):  # type: ignore[arg-type]
            value = {"kind": value}
        return from_mapping(kind, value, key, default)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_tuple(value, args, key, also)
    if origin is dict:
        if isinstance(value, Mapping):
            return {k: convert(v, args[1], f"{key}.{k}") for k, v in value.items()}
    elif kind is float:
        if isinstance(value, Real | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif kind is int:
        if isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
    elif isinstance(value, kind):
        return value
    what = "" if also else "of type "
    raise ConfigError(f"{key} must be {what}{describe(kind)}{also}, got {value!r}")


def _convert_union(value: Any, kinds: tuple, key: str, default: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    if len(kinds) == 2 and types.NoneType in kinds:  # the one type says best what is wrong
        (kind,) = (k for k in kinds if k is not types.NoneType)
        return convert(value, kind, key, default, " or null")
    for kind in kinds:
        try:
            return convert(value, kind, key, default)
        except ConfigError:
            continue
    names = " or ".join(describe(k, rules=True) for k in kinds)
    raise ConfigError(f"{key} must be {names}, got {value!r}")


def _convert_tuple(value: Any, kinds: tuple, key: str, also: str) -> tuple:
    require(isinstance(value, list | tuple), key, value, f"a list{also}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"{key} must have {len(kinds)} entries, got {value!r}")
    return tuple(
        convert(v, k, f"{key}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True))
    )


def describe(kind: Any, rules: bool = False) -> str:
    """Return a short name of a type annotation for messages, or its rule if it has one."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        rule = args[-1] if rules else None
        return rule.text if isinstance(rule, Rule) else describe(args[0])
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is Ellipsis else describe(a) for a in args)}]"
    if origin is typing.Literal:
        return str(kind).replace("typing.", "")
    return "null" if kind is types.NoneType else getattr(kind, "__name__", str(kind))


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain dicts and lists, ready for YAML or JSON; ``kind`` comes first."""
    kind = {"kind": config.kind} if isinstance(config, Variant) else {}
    fields = (f.name for f in dataclasses.fields(config) if f.init)
    return kind | {name: _plain(getattr(config, name)) for name in fields}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return mappings laid over each other, sections key by key.

    Of a section that is a :class:`Variant`, the name of a kind may stand for the whole. A kind
    other than that of the layers below replaces what they say: it starts from its own defaults.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, new in layer.items():
            old = merged.get(key)
            if isinstance(old, str) and isinstance(new, Mapping):
                old = {"kind": old}
            elif isinstance(new, str) and isinstance(old, Mapping) and "kind" in old:
                new = {"kind": new}
            if isinstance(new, Mapping):
                below = old if isinstance(old, Mapping) else {}
                kind = new.get("kind")
                another = kind is not None and below.get("kind", kind) != kind
                new = merge({} if another else below, new)
            merged[key] = new
    return merged


# Files --------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where PyYAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, or raise ``ConfigError`` naming the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8") from error
    try:
        values = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return values
