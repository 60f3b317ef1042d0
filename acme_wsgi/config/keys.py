"""The words in which a configuration key is declared, and the one reader of such declarations.

Its law: a key is declared once, as a field of a frozen dataclass, and everything that anybody wants to know
of it (type, default, unit, bounds, meaning, whether a reload applies it, whether the feature is built,
whether its value is a secret) stands in that declaration. Loader, messages, rendering, manual pages and
reference read it through ``specs()``. Knows no section, no file and no YAML.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

from acme_wsgi.config.kinds import (
    ARROW,
    BOOL,
    DURATION,
    INT,
    PERCENT,
    SIZE,
    TEXT,
    Arrow,
    Choice,
    Scalar,
)

T = TypeVar("T")

Unit = Literal["", "duration", "size", "percent"]

#: The default of a key that must be written.
REQUIRED: Any = object()

_META = "acme"

# Type hints are resolved once for each section, when it is first asked for.
_SPECS: dict[type[Any], dict[str, Spec]] = {}


class Section(Protocol):
    """A group of keys: a frozen dataclass. In a list its items are told apart by the keys in IDENTITY."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make of `cls` a section: a frozen dataclass with slots, whose repr shows no secret."""
    made = dataclass(frozen=True, slots=True, kw_only=True, repr=False)(cls)
    made.__repr__ = _repr  # type: ignore[method-assign]
    return made


def _repr(self: Any) -> str:
    """The keys that differ from their defaults, for a person who debugs; secrets masked."""
    shown = []
    for spec in specs(type(self)):
        value = getattr(self, spec.attribute)
        if value != spec.default:
            shown.append(f"{spec.attribute}={'***' if spec.key.secret else repr(value)}")
    return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Key:
    """What is declared of one key besides its name, type and default."""

    text: str
    unit: Unit = ""
    minimum: float | None = None
    maximum: float | None = None
    live: bool = True
    built: bool = True
    unbuilt: tuple[object, ...] = ()
    secret: bool = False
    check: Callable[[str], object] | None = None
    check_value: Callable[[str], object] | None = None
    normal: Callable[[str], str] | None = None
    inherit: str = ""
    same_as: str = ""
    only: tuple[str, ...] = ()
    default_text: str = ""
    example: str = ""


def key(
    default: T,
    text: str,
    *,
    unit: Unit = "",
    minimum: float | None = None,
    maximum: float | None = None,
    live: bool = True,
    built: bool = True,
    unbuilt: tuple[object, ...] = (),
    secret: bool = False,
    check: Callable[[str], object] | None = None,
    check_value: Callable[[str], object] | None = None,
    normal: Callable[[str], str] | None = None,
    inherit: str = "",
    same_as: str = "",
    only: tuple[str, ...] = (),
    default_text: str = "",
    example: str = "",
) -> T:
    """Declare a key as a dataclass field.

    :param default: what holds when nothing is written; REQUIRED for a key that must be
    :param text: its meaning in one line
    :param unit: how a number is written: ``duration`` (float, seconds), ``size`` (int, bytes) or ``percent``
        (float, 0.0 to 1.0)
    :param minimum: least value allowed, inclusive, in seconds, bytes, ... ; `maximum`: the greatest
    :param live: a reload applies a change; False: it needs a restart
    :param built: the feature exists; False: ``validate`` warns when the key differs from its default
    :param unbuilt: the values whose feature doesn't exist yet, where the key's other values' do
    :param secret: masked wherever it is shown; in a text that is a URL, only its password is
    :param check: raises ValueError for a text (or an item of a list of texts, or a name of a mapping) that
        isn't allowed; `check_value`: likewise for the texts of a mapping
    :param normal: the one spelling, of those that mean the same, in which a text that passed is kept
    :param inherit: dotted section whose values hold for what this section leaves out
    :param same_as: dotted key whose value holds while this one isn't written
    :param only: values of the sibling key ``type`` with which this key may be written
    :param default_text: how the default reads in the reference where the value itself doesn't say it
    :param example: a value for the reference
    """
    meta = Key(
        text,
        unit,
        minimum,
        maximum,
        live,
        built,
        unbuilt,
        secret,
        check,
        check_value,
        normal,
        inherit,
        same_as,
        only,
        default_text,
        example,
    )
    if default is REQUIRED:
        return cast(T, dataclasses.field(metadata={_META: meta}))
    return dataclasses.field(default=default, metadata={_META: meta})


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of scalars; a list of one may be written as a scalar."""

    item: Scalar


@dataclass(frozen=True, slots=True)
class Table:
    """A section: a mapping with the keys that `cls` declares."""

    cls: type[Section]


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sections, which merging knows by their identity."""

    cls: type[Section]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping of free names to texts, kept in the order written."""

    item: Scalar


Kind = Scalar | ListOf | Table | Items | Pairs


@dataclass(frozen=True, slots=True)
class Spec:
    """One declared key, as its readers see it."""

    name: str
    attribute: str
    kind: Kind
    optional: bool
    default: object
    key: Key

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def specs(cls: type[Any]) -> tuple[Spec, ...]:
    """The keys that the section `cls` declares, in the order declared."""
    return tuple(spec_by_name(cls).values())


def spec_by_name(cls: type[Any]) -> dict[str, Spec]:
    """The keys of `cls` by the name they are written with."""
    if cls not in _SPECS:
        hints = typing.get_type_hints(cls)
        found = [
            _spec(field, hints[field.name]) for field in dataclasses.fields(cls) if _META in field.metadata
        ]
        _SPECS[cls] = {spec.name: spec for spec in found}
    return _SPECS[cls]


def identity(cls: type[Section]) -> tuple[str, ...]:
    """Names of the keys by which a list's item is known; empty for none."""
    return cast(tuple[str, ...], getattr(cls, "IDENTITY", ()))


def short_key(cls: type[Section]) -> str:
    """Name of the key that a scalar or a list written in place of the mapping means; empty for none."""
    return cast(str, getattr(cls, "SHORT", ""))


def aliases(cls: type[Section]) -> dict[str, str]:
    """Older names of keys and the names they have now."""
    return cast(dict[str, str], getattr(cls, "ALIASES", {}))


def walk(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """Every key below `cls` with its dotted name, sections and list items (``routes[].path``) included."""
    for spec in specs(cls):
        dotted = f"{prefix}{spec.name}"
        yield dotted, spec
        if isinstance(spec.kind, Table):
            yield from walk(spec.kind.cls, dotted + ".")
        elif isinstance(spec.kind, Items):
            yield from walk(spec.kind.cls, dotted + "[].")


def _spec(field: dataclasses.Field[Any], hint: object) -> Spec:
    meta: Key = field.metadata[_META]
    optional = type(None) in typing.get_args(hint) and isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    default = REQUIRED if field.default is dataclasses.MISSING else field.default
    # `from` is a Python keyword: the attribute is from_, the key is from.
    return Spec(field.name.rstrip("_"), field.name, _kind(hint, meta.unit), optional, default, meta)


def _kind(hint: object, unit: Unit) -> Kind:
    if dataclasses.is_dataclass(hint):
        return Table(cast(type[Section], hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(item):
            return Items(cast(type[Section], item))
        if typing.get_origin(item) is tuple:
            return Pairs(TEXT)
        return ListOf(_scalar(item, unit))
    return _scalar(hint, unit)


def _scalar(hint: object, unit: Unit) -> Scalar:
    if typing.get_origin(hint) is Literal:
        return Choice(typing.get_args(hint))
    if unit:
        return {"duration": DURATION, "size": SIZE, "percent": PERCENT}[unit]
    by_type: dict[object, Scalar] = {bool: BOOL, int: INT, str: TEXT, Arrow: ARROW}
    return by_type[hint]
