"""Text for terminals: what models and users wrote is shown, never obeyed.

A terminal takes orders from the text it shows: escape sequences set its title, write its clipboard,
hide text or make links; bidi controls show text in another order than it is read. So everything
that came from outside passes through `safe` (or `safe_line`, `safe_json`) before it is printed, and
the consoles made here interpret no markup. Bytes as they are stored go only where no terminal is.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any, Final

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console

PIPED_COLUMNS: Final = 120
"""Width of tables and rules where there is no terminal that says its own."""

_COLOURS: Final = re.compile(r"(?:\x1b\[|\x9b)[0-9;:]*m")
_CONTROLS: Final = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)]
_MISLEADING: Final = [
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # bidi
    *(0x2028, 0x2029, *range(0x206A, 0x2070), 0xFEFF),  # line ends and marks nobody sees
    *range(0xE0000, 0xE0080),  # "tags": text that only a model reads
]
_SURROGATES: Final = range(0xD800, 0xE000)
_SAFE: Final[dict[int, str | None]] = {
    **dict.fromkeys([*_CONTROLS, 0x0D], None),
    **{code: f"⟨U+{code:04X}⟩" for code in _MISLEADING},
    **dict.fromkeys(_SURROGATES, "\ufffd"),
}
_UNSAFE_IN_JSON: Final = re.compile(
    "[" + "".join(map(chr, [*range(0x7F, 0xA0), *_MISLEADING])) + "]"
)


def safe(text: str) -> str:
    """The text without anything that a terminal would obey; newlines and tabs stay.

    Colour sequences vanish whole. Of other sequences only the control characters do, and what they
    would have done can be read. Characters that mislead are shown by their number, `⟨U+202E⟩`.
    """
    return _COLOURS.sub("", text).translate(_SAFE)


def safe_line(text: str, columns: int | None = None) -> str:
    """The same as one line for titles, keys and table cells, cut to at most so many columns."""
    line = " ".join(safe(text).split())
    return line if columns is None else clip(line, columns)


def clip(line: str, columns: int) -> str:
    """One line of safe text, cut to a width."""
    if cell_len(line) <= columns:
        return line
    return set_cell_size(line, max(0, columns - 1)).rstrip() + "…"


def safe_json(value: Any) -> str:
    """A value as one line of JSON in which nothing but printable characters stands."""
    return escape_json(msgspec.json.encode(value).decode())


def escape_json(text: str) -> str:
    """JSON that means the same and holds no character that a terminal would obey."""
    return _UNSAFE_IN_JSON.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class _PlainConsole(Console):
    """A console that tells when the reader of its output went away, instead of exiting."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr that prints text as it is given, without any markup."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty()
    columns = shutil.get_terminal_size((PIPED_COLUMNS, 24)).columns if piped else None
    return _PlainConsole(stderr=stderr, width=columns, markup=False, highlight=False, emoji=False)


def print_line(text: str) -> None:
    """A line on stdout that is never wrapped, for what programs read."""
    sys.stdout.write(f"{text}\n")
