"""The kinds of single values: how each is read from the text written and shown again.

Its law: what a kind shows it reads back as the same value. Text is read by the kind that the key declares,
never by what YAML 1.1 would guess: ``off`` is a boolean for a boolean and three letters for a text, ``10:30``
isn't 630, ``010`` isn't 8. Every failure is a ValueError that says what is allowed.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple

from acme_wsgi import units

#: What a number may be at most where its key doesn't say: everything has a bound.
MAX_INT = 2**31 - 1
MAX_SIZE = 1 << 50
MAX_DURATION = 3650 * 86400.0
#: The longest text that one value may have, in characters.
MAX_TEXT = 4096

_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT = re.compile(r"-?[0-9]+(?:_[0-9]+)*")


class Arrow(NamedTuple):
    """`source` -> `target`: files that a pattern names, and the path they are served as."""

    source: str
    target: str


class Hinted(ValueError):
    """A refusal that knows what was probably meant."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Scalar:
    """A kind of value that one YAML scalar holds."""

    word = ""
    #: What a plain refusal says; any other message of `read` knows more than `allowed` does.
    refusal = ""

    def read(self, text: str, plain: bool) -> Any:
        """The value that `text` means; `plain` is False where it stood in quotes. Raises ValueError."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """`value` as it is written, in units that people read."""
        return str(value)

    def bare(self, value: Any) -> object:
        """`value` as JSON has it: seconds, bytes and fractions as numbers."""
        return value

    def limits(self, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
        """The bounds that hold for a key with these declared ones."""
        return minimum, maximum

    def allowed(self, minimum: float | None, maximum: float | None) -> str:
        """What may be written, in words."""
        low, high = self.limits(minimum, maximum)
        if low is None or high is None:
            return self.word
        return f"{self.word} from {self.show(low)} to {self.show(high)}"


class _Bool(Scalar):
    word = "true or false"

    def read(self, text: str, plain: bool) -> bool:
        if plain and text in _TRUE:
            return True
        if plain and text in _FALSE:
            return False
        raise ValueError(self.word)

    def show(self, value: Any) -> str:
        return "true" if value else "false"


class _Int(Scalar):
    word = "a whole number"

    def read(self, text: str, plain: bool) -> int:
        if not plain or not _INT.fullmatch(text) or len(text) > 20:
            raise ValueError(self.word)
        digits = text.lstrip("-").replace("_", "")
        if len(digits) > 1 and digits.startswith("0"):
            raise Hinted(self.word, f"a leading zero is ambiguous: write {digits.lstrip('0') or '0'}")
        return int(text.replace("_", ""))

    def show(self, value: Any) -> str:
        return str(int(value))

    def limits(self, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
        return 0 if minimum is None else minimum, MAX_INT if maximum is None else maximum


class _Duration(Scalar):
    word = "a duration (500ms, 30s, 5m, 2h, 30d or seconds)"
    refusal = units.DURATION_FORMS

    def read(self, text: str, plain: bool) -> float:
        return units.parse_duration(text)

    def show(self, value: Any) -> str:
        return units.format_duration(value)

    def limits(self, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
        return 0.0 if minimum is None else minimum, MAX_DURATION if maximum is None else maximum


class _Size(Scalar):
    word = "a size (10KB, 5MB, 1GB or bytes)"
    refusal = units.SIZE_FORMS

    def read(self, text: str, plain: bool) -> int:
        return units.parse_size(text)

    def show(self, value: Any) -> str:
        return units.format_size(value)

    def limits(self, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
        return 0 if minimum is None else minimum, MAX_SIZE if maximum is None else maximum


class _Percent(Scalar):
    word = "a percentage (90% or 0.9)"
    refusal = units.PERCENT_FORMS

    def read(self, text: str, plain: bool) -> float:
        return units.parse_percent(text)

    def show(self, value: Any) -> str:
        return units.format_percent(value)

    def limits(self, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
        return 0.0 if minimum is None else minimum, 1.0 if maximum is None else maximum


class _Text(Scalar):
    word = "a text"

    def read(self, text: str, plain: bool) -> str:
        if not text:
            raise ValueError("a text that isn't empty")
        if len(text) > MAX_TEXT:
            raise ValueError(f"a text of at most {MAX_TEXT} characters")
        if any(_forbidden(char) for char in text):
            raise ValueError("a text in one line, without control characters")
        return text


class _Arrow(Scalar):
    word = "a pattern, an arrow and a path (/static/css/*.css -> /static/bundle.css)"

    def read(self, text: str, plain: bool) -> Arrow:
        source, arrow, target = TEXT.read(text, plain).replace("→", "->").partition("->")
        source, target = source.strip(), target.strip()
        if not arrow or "->" in target or not source.startswith("/") or not target.startswith("/"):
            raise ValueError(self.word)
        return Arrow(source, target)

    def show(self, value: Any) -> str:
        return f"{value.source} -> {value.target}"

    def bare(self, value: Any) -> object:
        return self.show(value)


class Choice(Scalar):
    """One of the words (or numbers) of a Literal."""

    word = "one of"

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def read(self, text: str, plain: bool) -> Any:
        for value in self.values:
            if str(value) == text:
                return value
        near = nearest(text, [str(value) for value in self.values])
        raise Hinted(self.allowed(None, None), f"did you mean {near}?" if near else "")

    def allowed(self, minimum: float | None, maximum: float | None) -> str:
        return ", ".join(str(value) for value in self.values)


BOOL, INT, TEXT, ARROW = _Bool(), _Int(), _Text(), _Arrow()
DURATION, SIZE, PERCENT = _Duration(), _Size(), _Percent()


def nearest(word: str, words: list[str], cutoff: float = 0.6) -> str:
    """The one of `words` that `word` was probably meant to be, or an empty text.

    :param cutoff: how alike they must be, from 0 to 1
    """
    folded: dict[str, str] = {_fold(each): each for each in words}
    if _fold(word) in folded:
        return folded[_fold(word)]
    near = difflib.get_close_matches(_fold(word)[:64], list(folded), n=1, cutoff=cutoff)
    return folded[near[0]] if near else ""


def _fold(word: str) -> str:
    """`word` as it compares: keepAliveTimeout, keep-alive-timeout and keep_alive_timeout are one."""
    return word.lower().replace("_", "").replace("-", "")


def _forbidden(char: str) -> bool:
    """Controls of C0 and C1, line and paragraph separators, and halves of a surrogate pair."""
    point = ord(char)
    return point < 0x20 or 0x7F <= point < 0xA0 or point in (0x2028, 0x2029) or 0xD800 <= point < 0xE000
