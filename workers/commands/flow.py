"""Text that arrives in pieces, shown as it arrives.

`Flow` indents it, wraps it at words and cuts it after some lines; `CutLine` shows what fits on one
line. A piece is shown at once, also when its last word goes on in the next piece. When that word
turns out too long for its line, it is taken back and written on the next. Where there is no
terminal nothing is wrapped: in a file lines are as long as they are.
"""

from __future__ import annotations

import re
from typing import Final

from rich.cells import cell_len
from rich.console import Console

from workers.commands.look import INDENT, QUIET, plural
from workers.terminal import safe

_PARTS: Final = re.compile(r"\n|[^\S\n]+|\S+")
_TAKE_BACK: Final = "\x1b[{cells}D\x1b[K"


class Flow:
    """One run of text. `write` pieces, then `end`. `continues`: it began somewhere above."""

    def __init__(
        self,
        console: Console,
        style: str = "",
        *,
        lines_max: int | None = None,
        continues: bool = False,
    ) -> None:
        self._console = console
        self._style = style
        self._lines_max = lines_max
        self._columns = max(10, console.width - INDENT - 1) if console.is_terminal else None
        self._skips_blanks = continues
        self._out: list[str] = []
        self._line = 0
        """Number of the line that is written on."""
        self._column = 0
        self._word = ""
        """What the line ends in and may go on."""

    def write(self, piece: str) -> None:
        """Show a piece of text."""
        for part in _PARTS.findall(safe(piece).expandtabs(4)):
            if self._skips_blanks and part.isspace():
                continue
            self._skips_blanks = False
            if part == "\n":
                self._break()
            elif part.isspace():
                self._word = ""
                if self._fits(part):
                    self._put(part)
            else:
                self._letters(part)
        self._send()

    def end(self) -> None:
        """Finish the last line, and say how many were left out."""
        if self._column and not self._is_cut():
            self._out.append("\n")
        self._send()
        if self._is_cut() and self._lines_max is not None:
            left_out = self._line - self._lines_max + (1 if self._column else 0)
            if left_out:
                more = f"{' ' * INDENT}… {plural(left_out, 'more line')}"
                self._console.print(more, style=QUIET)

    def _letters(self, part: str) -> None:
        if not self._fits(part):
            if self._word and self._column > cell_len(self._word) and self._fits_a_line(part):
                part = self._taken_back() + part
            if self._column and self._fits_a_line(part):
                self._break()
        if self._fits(part):
            self._put(part)
        else:
            for letter in part:  # longer than a line
                if not self._fits(letter):
                    self._break()
                self._put(letter)
        self._word += part

    def _taken_back(self) -> str:
        word, self._word = self._word, ""
        cells = cell_len(word)
        self._column -= cells
        if not self._is_cut():
            self._out.append(_TAKE_BACK.format(cells=cells))
        return word

    def _fits(self, part: str) -> bool:
        return self._columns is None or self._column + cell_len(part) <= self._columns

    def _fits_a_line(self, part: str) -> bool:
        return self._columns is None or cell_len(self._word + part) <= self._columns

    def _is_cut(self) -> bool:
        return self._lines_max is not None and self._line >= self._lines_max

    def _put(self, part: str) -> None:
        if not self._is_cut():
            self._out.append(part if self._column else " " * INDENT + part)
        self._column += cell_len(part)

    def _break(self) -> None:
        if not self._is_cut():
            self._out.append("\n")
        self._line += 1
        self._column = 0
        self._word = ""

    def _send(self) -> None:
        if self._out:
            self._console.out("".join(self._out), style=self._style, highlight=False, end="")
            self._out.clear()


class CutLine:
    """One line of something long, such as the arguments of a call."""

    def __init__(self, console: Console, style: str = "", *, mark: str = "") -> None:
        self._console = console
        self._style = style
        self._left = console.width - INDENT - cell_len(mark) - 1
        self._margin = " " * INDENT + mark
        self._begun = False

    def write(self, piece: str) -> None:
        """Show a piece of it, as long as there is room."""
        if self._left <= 0:
            return
        shown = self._margin if not self._begun else ""
        self._begun = True
        for letter in safe(piece).replace("\n", " ").replace("\t", " "):
            if cell_len(letter) >= self._left:
                shown += "…"
                self._left = 0
                break
            shown += letter
            self._left -= cell_len(letter)
        self._console.out(shown, style=self._style, highlight=False, end="")

    def end(self) -> None:
        """Finish the line."""
        if self._begun:
            self._console.out("")
