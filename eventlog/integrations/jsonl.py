"""Lines of a JSON Lines file that may be damaged, and fields of records that promise nothing.

`read_lines` goes through the file once and yields every line, numbered from 1, whatever is in it. A
line that is JSON but can't be stored exactly (a lone surrogate, NaN, an integer beyond 64 bits, too
deep a nesting, bytes that aren't UTF-8) yields a repaired record with `exact` false; what was wrong
is said in `faults`. A line that is no JSON object yields no record. Nothing is raised for contents.

The functions below it read one field each and answer with a plain value or nothing: transcripts are
written by many versions of other programs, and some of their fields hold anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from eventlog.codec import DEPTH_MAX, INTEGER_MAX, INTEGER_MIN

RECORD_DEPTH_MAX: Final = DEPTH_MAX - 16
"""Deepest nesting of a record: less than an event's, whose fields hold records further down."""
PROGRESS_BYTES: Final = 256 * 1024
"""How many bytes are read between two calls of `progress`."""
COUNT_MAX: Final = 2**53
"""Larger counts are taken for noise."""
ID_CHARS_MAX: Final = 200
"""Longer ids are taken for something else."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_SURROGATES: Final = re.compile("[\ud800-\udfff]")

Progress = Callable[[int, int], None]
"""Is told the bytes read so far and the size of the file."""


class Line(msgspec.Struct, kw_only=True):
    """One line. `raw` is without its end; `record` is None unless it holds a JSON object."""

    number: int
    raw: bytes
    record: dict[str, Any] | None = None
    exact: bool = True
    """`record` says what `raw` says."""
    faults: list[str] = []
    known_digest: str = ""

    @property
    def digest(self) -> str:
        """Names the line by its content."""
        if not self.known_digest:
            self.known_digest = hashlib.blake2b(self.raw, digest_size=8).hexdigest()
        return self.known_digest


def read_lines(path: Path, *, progress: Progress | None = None) -> Iterator[Line]:
    """Every line of the file, in order. Holds one line at a time."""
    total = path.stat().st_size
    done = told = 0
    carriage_returns = False
    with path.open("rb") as file:
        for number, whole in enumerate(file, start=1):
            done += len(whole)
            raw = whole.removesuffix(b"\n")
            faults = []
            if number == 1 and raw.startswith(_BYTE_ORDER_MARK):
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
                faults.append("the file begins with a byte order mark; it was skipped")
            if raw.endswith(b"\r"):
                raw = raw.removesuffix(b"\r")
                if not carriage_returns:
                    faults.append("lines end in CR LF; the CR was skipped here and below")
                carriage_returns = True
            yield _parse(number, raw, faults)
            if progress and done - told >= PROGRESS_BYTES:
                told = done
                progress(done, total)
    if progress:
        progress(done, max(done, total))


def _parse(number: int, raw: bytes, faults: list[str]) -> Line:
    line = Line(number=number, raw=raw, faults=faults)
    if not raw.strip():
        return line
    try:
        value = msgspec.json.decode(raw)
        flawed = _flawed(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(raw.decode(errors="replace"), strict=False)
            flawed = True
        except (ValueError, RecursionError) as error:
            faults.append(f"broken JSON ({error})")
            return line
    if not isinstance(value, dict):
        faults.append(f"a JSON {type(value).__name__} where an object is expected")
        return line
    if flawed:
        reasons = set() if _is_utf8(raw) else {"bytes that are not UTF-8"}
        value = _repaired(value, 1, reasons)
        line.exact = False
        faults.append(f"can't be stored exactly: {', '.join(sorted(reasons)) or 'odd JSON'}")
    line.record = value
    return line


def _flawed(value: object) -> bool:
    """Whether JSON that has been read holds what an event can't."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict | list):
            if depth > RECORD_DEPTH_MAX:
                return True
            inside = item.values() if isinstance(item, dict) else item
            stack.extend((each, depth + 1) for each in inside)
        elif isinstance(item, int) and not INTEGER_MIN <= item <= INTEGER_MAX:
            return True
    return False


def _repaired(value: Any, depth: int, reasons: set[str]) -> Any:
    """The nearest thing that can be stored; adds to `reasons` what had to be changed."""
    match value:
        case str():
            if _SURROGATES.search(value):
                reasons.add("a lone surrogate")
                return _SURROGATES.sub("\ufffd", value)
            return value
        case dict() | list() if depth > RECORD_DEPTH_MAX:
            reasons.add(f"nested deeper than {RECORD_DEPTH_MAX} levels")
            return "\u2026"
        case dict():
            return {
                _repaired(key, depth, reasons): _repaired(each, depth + 1, reasons)
                for key, each in value.items()
            }
        case list():
            return [_repaired(each, depth + 1, reasons) for each in value]
        case int() if not INTEGER_MIN <= value <= INTEGER_MAX:
            reasons.add("an integer beyond 64 bits")
            return str(value)
        case float() if not math.isfinite(value):
            reasons.add("a number that is not finite")
            return None
        case _:
            return value


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- fields of records ---------------------------------------------------------------------------


def text_of(value: object) -> str:
    """A string as it is; anything else is no text."""
    return value if isinstance(value, str) else ""


def dict_of(value: object) -> dict[str, Any]:
    """An object as it is; anything else is an empty one."""
    return value if isinstance(value, dict) else {}


def id_of(value: object) -> str:
    """An id as it is; empty for anything that can't be one, such as a sentence in its place."""
    text = text_of(value)
    return text if len(text) <= ID_CHARS_MAX and not re.search(r"\s", text) else ""


def count_of(value: object) -> int | None:
    """A whole number from 0, also when it is written as a string."""
    match value:
        case bool():
            return None
        case str() if value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        case float() if value.is_integer():
            value = int(value)
    return value if isinstance(value, int) and 0 <= value <= COUNT_MAX else None


def time_of(value: object) -> datetime | None:
    """A time in UTC, from ISO 8601 (without a zone: UTC) or from seconds or ms since 1970."""
    try:
        if isinstance(value, str) and not value.isdigit():
            parsed = datetime.fromisoformat(value)
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
        number = value if isinstance(value, float) else count_of(value)
        if number is None:
            return None
        return datetime.fromtimestamp(number / 1_000 if number > 10**11 else number, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def parts_of(value: object) -> list[dict[str, Any]]:
    """Content as a list of parts: a string and stray strings among them become text parts."""
    match value:
        case str():
            return [{"type": "text", "text": value}]
        case dict():
            return [value]
        case list():
            return [
                each if isinstance(each, dict) else {"type": "text", "text": _as_text(each)}
                for each in value
            ]
        case _:
            return []


def joined(parts: list[dict[str, Any]], glue: str) -> str | list[dict[str, Any]]:
    """One text when all parts are texts, else the parts themselves."""
    if all(set(each) >= {"type", "text"} and isinstance(each["text"], str) for each in parts):
        return glue.join(each["text"] for each in parts)
    return parts


def text_in(parts: list[dict[str, Any]]) -> str:
    """All text among the parts."""
    return "\n\n".join(text for each in parts if (text := text_of(each.get("text"))))


def json_text(value: object) -> str:
    """A value as JSON text; a string as it is."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _as_text(value: object) -> str:
    return "" if value is None else json_text(value)
