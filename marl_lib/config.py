"""Configuration: frozen dataclasses, filled strictly from YAML, the command line or keywords.

An unknown key, a wrong type or an impossible value raises :class:`ConfigError` with a message that
names the key, the value and the choices.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

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


def from_mapping(cls: type[T], values: Mapping[str, Any] | None, where: str = "") -> T:
    """Build the dataclass ``cls`` from a mapping such as YAML gives.

    Lists become tuples, integers become floats where a float is asked for, and text such as
    ``3e-4`` (which YAML reads as a string) is taken as the number it is. NumPy's numbers become
    Python's. Nothing else is converted.

    Parameters
    ----------
    cls : dataclass type
    values : mapping or None (taken as empty)
    where : str
        Prefix of keys in error messages.

    Raises
    ------
    ConfigError
        On an unknown key, a wrong type, or a value the dataclass itself refuses.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    filled = {}
    for key, value in values.items():
        choice("configuration key" + (f" in {where}" if where else ""), key, fields)
        filled[key] = convert(value, hints[key], f"{where}.{key}" if where else key)
    missing = [n for n, f in fields.items() if n not in filled and _has_no_default(f)]
    if missing:
        raise ConfigError(f"missing configuration key {', '.join(missing)}")
    return cls(**filled)


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def convert(value: Any, kind: Any, key: str) -> Any:
    """Return ``value`` as the type ``kind``, or raise ``ConfigError`` naming ``key``."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, key)
    if origin is typing.Literal:
        return choice(key, value, args)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else from_mapping(kind, value, key)  # type: ignore
    if origin is tuple:
        return _convert_tuple(value, args, key)
    if origin is dict:
        if isinstance(value, Mapping):
            return {k: convert(v, args[1], f"{key}.{k}") for k, v in value.items()}
    elif kind is float:
        if isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
    elif kind is int:
        if isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
    elif kind is types.NoneType:
        if value is None:
            return None
    elif isinstance(value, kind):
        return value
    name = "null" if kind is types.NoneType else getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{key} must be of type {name}, got {value!r}")


def _convert_union(value: Any, kinds: tuple, key: str) -> Any:
    for kind in kinds:
        try:
            return convert(value, kind, key)
        except ConfigError:
            continue
    names = " or ".join("null" if k is types.NoneType else describe(k) for k in kinds)
    raise ConfigError(f"{key} must be {names}, got {value!r}")


def _convert_tuple(value: Any, kinds: tuple, key: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} must be a list, got {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"{key} must have {len(kinds)} entries, got {value!r}")
    return tuple(
        convert(v, k, f"{key}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True))
    )


def describe(kind: Any) -> str:
    """Return a short name of a type annotation for messages."""
    return str(kind).replace("typing.", "") if typing.get_args(kind) else kind.__name__


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain dicts and lists, ready for YAML or JSON."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


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
