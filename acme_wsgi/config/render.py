"""A Config -> text: YAML or JSON that loads back as the same Config.

Its law: everything shown comes from the declarations; secrets are masked unless the caller says otherwise,
and where each value came from stands beside it when asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import yaml

from acme_wsgi.config import urls
from acme_wsgi.config.keys import Items, ListOf, Pairs, Spec, Table, specs
from acme_wsgi.config.kinds import Scalar
from acme_wsgi.config.references import escape
from acme_wsgi.config.schema import Config
from acme_wsgi.config.schema.cache import L2

MASK = urls.MASK

# Texts that are the same with and without quotes, whoever reads the YAML.
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+@:-]*")
_COMMENT_COLUMN = 44
# Keys of cache.l2 whose say `url` has, so that writing them too would contradict it.
_SAID_BY_URL = frozenset({"host", "port", "db", "password", "password_file"})


def to_yaml(config: Config, *, origins: bool = False, mask: bool = True) -> str:
    """`config` as YAML, every key written out.

    :param origins: a comment behind each value says where it came from
    :param mask: secrets as ``***``; without it the text loads back as an equal configuration
    """
    lines = _Yaml(config, origins, mask).section(config, "", 0)
    return "".join(f"{line}\n" for line in lines)


def to_json(config: Config, *, origins: bool = False, mask: bool = True) -> str:
    """`config` as JSON: durations in seconds, sizes in bytes, percentages as fractions.

    With `origins`: ``{"config": ..., "origins": {"server.port": "conf.d/10-server.yaml:3", ...}}``.
    """
    tree = _bare(config, mask)
    shown: object = {"config": tree, "origins": dict(config.origins)} if origins else tree
    return json.dumps(shown, indent=2) + "\n"


def masked(spec: Spec, value: Any) -> Any:
    """`value` as it may be shown: of a URL the password is hidden, of another secret everything."""
    if not spec.key.secret or value is None:
        return value
    if spec.key.check is None or not urlsplit(value).scheme:
        return MASK
    return urls.masked(value)


def shown_keys(section: Any) -> Iterator[tuple[Spec, Any]]:
    """The keys of a section that say something: no unset ones, no secret whose file is named."""
    values = {spec.name: getattr(section, spec.attribute) for spec in specs(type(section))}
    chosen = values.get("type")
    for spec in specs(type(section)):
        value = values[spec.name]
        if value is None or values.get(f"{spec.name}_file") is not None:
            continue
        if spec.key.only and chosen not in spec.key.only:
            continue
        if isinstance(section, L2) and section.url is not None and spec.name in _SAID_BY_URL:
            continue
        yield spec, value


class _Yaml:
    """Writes one configuration."""

    def __init__(self, config: Config, origins: bool, mask: bool) -> None:
        self.config = config
        self.origins = origins
        self.mask = mask

    def section(self, section: Any, dotted: str, indent: int) -> Iterator[str]:
        for spec, value in shown_keys(section):
            below = f"{dotted}.{spec.name}" if dotted else spec.name
            yield from self.entry(spec, value, below, indent)

    def entry(self, spec: Spec, value: Any, dotted: str, indent: int) -> Iterator[str]:
        pad = " " * indent
        if isinstance(spec.kind, Table):
            lines = list(self.section(value, dotted, indent + 2))
            yield f"{pad}{spec.name}:" if lines else f"{pad}{spec.name}: {{}}"
            yield from lines
        elif isinstance(spec.kind, Items) and value:
            yield f"{pad}{spec.name}:"
            for index, item in enumerate(value):
                yield from self.item(item, f"{dotted}[{index}]", indent + 2)
        elif isinstance(spec.kind, Pairs) and value:
            yield f"{pad}{spec.name}:"
            for name, text in value:
                yield self.line(f"{pad}  {quoted(name)}: {quoted(escape(text))}", f"{dotted}.{name}")
        else:
            yield self.line(f"{pad}{spec.name}: {self.value(spec, value)}", dotted)

    def item(self, item: Any, dotted: str, indent: int) -> Iterator[str]:
        """A section as an item of a list: its first line carries the dash."""
        first, *rest = self.section(item, dotted, indent + 2)
        yield " " * indent + "- " + first.lstrip()
        yield from rest

    def value(self, spec: Spec, value: Any) -> str:
        if isinstance(spec.kind, Items):
            return "[]"
        if isinstance(spec.kind, Pairs):
            return "{}"
        if isinstance(spec.kind, ListOf):
            return "[" + ", ".join(scalar(spec.kind.item, each) for each in value) + "]"
        assert isinstance(spec.kind, Scalar)
        return scalar(spec.kind, masked(spec, value) if self.mask else value)

    def line(self, text: str, dotted: str) -> str:
        if not self.origins:
            return text
        origin = self.config.origin(dotted)
        return f"{text:<{_COMMENT_COLUMN}}  # {origin}"


def scalar(kind: Scalar, value: Any) -> str:
    """One value as YAML."""
    text = kind.show(value)
    # Text-like kinds show what may hold anything; the others show their own few characters.
    return quoted(escape(text)) if isinstance(kind.bare(value), str) else text


def quoted(text: str) -> str:
    """`text` as a YAML scalar that every reader takes for exactly this text."""
    if _PLAIN.fullmatch(text) and not text.endswith(":"):
        guesses = yaml.SafeLoader.yaml_implicit_resolvers.get(text[0], [])
        if not any(pattern.match(text) for _, pattern in guesses):
            return text
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\U{ord(char):08x}"


def _bare(section: Any, mask: bool) -> dict[str, object]:
    return {spec.name: _bare_value(spec, value, mask) for spec, value in shown_keys(section)}


def _bare_value(spec: Spec, value: Any, mask: bool) -> object:
    if isinstance(spec.kind, Table):
        return _bare(value, mask)
    if isinstance(spec.kind, Items):
        return [_bare(item, mask) for item in value]
    if isinstance(spec.kind, Pairs):
        return {name: escape(text) for name, text in value}
    if isinstance(spec.kind, ListOf):
        return [_bare_scalar(spec.kind.item, each) for each in value]
    return _bare_scalar(spec.kind, masked(spec, value) if mask else value)


def _bare_scalar(kind: Scalar, value: Any) -> object:
    bare = kind.bare(value)
    return escape(bare) if isinstance(bare, str) else bare
