"""Text from outside can't command a terminal: a table of what must not get through."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from rich.text import Text

from workers.commands.flow import CutLine, Flow
from workers.terminal import clip, escape_json, safe, safe_json, safe_line

ATTACKS = [
    ("red \x1b[31mtext\x1b[0m", "red text"),
    ("\x1b[2J\x1b[H", "[2J[H"),
    ("\x1b]0;new title\x07", "]0;new title"),
    ("\x1b]52;c;cm0gLXJm\x07", "]52;c;cm0gLXJm"),
    (
        "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
        "]8;;https://evil.example\\click]8;;\\",
    ),
    ('\x1bP$q"p\x1b\\', 'P$q"p\\'),
    ("\x1bc\x1b(0", "c(0"),
    ("\x9b2J\x9d0;title\x9c", "2J0;title"),
    ("\x9b31mred", "red"),
    ("\x1b\x1b[0m[2J", "[2J"),
    ("bell\x07 back\x08space\x00\x0b\x0c\x0e\x7f", "bell backspace"),
    ("over\rwritten", "overwritten"),
    ("a\u202egnp.exe", "a⟨U+202E⟩gnp.exe"),
    ("\u2066x\u2069 \u200f\u061c", "⟨U+2066⟩x⟨U+2069⟩ ⟨U+200F⟩⟨U+061C⟩"),
    ("line\u2028end\u2029", "line⟨U+2028⟩end⟨U+2029⟩"),
    ("hid\U000e0041den", "hid⟨U+E0041⟩den"),
    ("\ud800half", "\ufffdhalf"),
    ("[bold]markup[/bold] :smile:", "[bold]markup[/bold] :smile:"),
    ("tabs\tand\nnewlines 🎉 é 漢字 👩\u200d💻", "tabs\tand\nnewlines 🎉 é 漢字 👩\u200d💻"),
]
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize(("text", "shown"), ATTACKS)
def test_safe_when_text_commands_a_terminal_shows_it_instead(text: str, shown: str) -> None:
    """Controls go, what misleads is shown by number, everything else stays."""

    assert safe(text) == shown
    assert not OBEYED.search(safe(text))


def test_safe_when_given_any_character_leaves_none_that_is_obeyed() -> None:
    """Every character there is, one by one and all together."""

    everything = "".join(map(chr, range(0x110000)))

    assert not OBEYED.search(safe(everything))
    assert safe(everything).encode()  # no surrogates either


@pytest.mark.parametrize(("text", "_shown"), ATTACKS)
def test_safe_json_when_text_commands_a_terminal_means_the_same(text: str, _shown: str) -> None:
    """JSON for terminals holds escapes where controls were, and reads back the same."""

    text = text.replace("\ud800", "")
    shown = safe_json({"text": text})

    assert not OBEYED.search(shown)
    assert json.loads(shown) == {"text": text}
    assert json.loads(escape_json(json.dumps([text], ensure_ascii=False))) == [text]


def test_safe_line_when_text_is_long_is_one_line_that_fits() -> None:
    """Width counts cells: wide characters take two."""

    assert safe_line("a\n\tb\x1b[31m  c") == "a b c"
    assert safe_line("abcdefgh", 5) == "abcd…"
    assert clip("漢字漢字", 5) == "漢字…"
    assert clip("short", 5) == "short"


def test_text_when_printed_is_not_read_as_markup() -> None:
    """Consoles of the command line print brackets as brackets."""
    console, output = terminal(columns=40)

    console.print(Text(safe("[red]no[/red] [link=https://evil.example]x[/link]")))

    assert "[red]no[/red]" in output.getvalue()


def test_flow_when_words_arrive_in_pieces_wraps_between_words() -> None:
    """A word that turns out too long for its line moves to the next as a whole."""
    console, output = terminal(columns=20)
    flow = Flow(console)

    for piece in ["The quick", " brown", " fo", "x jum", "ps over", " the", " lazy dog"]:
        flow.write(piece)
    flow.end()

    assert screen(output) == ["  The quick brown", "  fox jumps over", "  the lazy dog"]


def test_flow_when_a_word_is_longer_than_a_line_cuts_it() -> None:
    """Nothing is lost, however the pieces fall."""
    console, output = terminal(columns=20)
    flow = Flow(console)

    for piece in ["x" * 10, "y" * 30, " ", "z" * 50]:
        flow.write(piece)
    flow.end()

    rows = screen(output)
    assert all(len(row) <= 20 for row in rows)
    assert "".join(rows).replace(" ", "") == "x" * 10 + "y" * 30 + "z" * 50


def test_flow_when_there_are_too_many_lines_counts_the_rest() -> None:
    """`lines_max` lines are shown, then how many there were."""
    console, output = terminal(columns=40)
    flow = Flow(console, lines_max=2)

    flow.write("one\ntwo\nthree\nfo")
    flow.write("ur\nfive")
    flow.end()

    assert screen(output) == ["  one", "  two", "  … 3 more lines"]


def test_flow_when_there_is_no_terminal_does_not_wrap() -> None:
    """In a file a line is as long as it is."""
    output = io.StringIO()
    flow = Flow(Console(file=output, width=20, highlight=False))

    for word in range(12):
        flow.write(f"word{word} ")
    flow.end()

    assert output.getvalue() == "  " + " ".join(f"word{n}" for n in range(12)) + " \n"


def test_cut_line_when_full_stops_at_the_edge() -> None:
    """Arguments of a call take one line, whatever they are."""
    console, output = terminal(columns=20)
    line = CutLine(console, mark="⋯ ")

    for piece in ['{"path":', '"/a\n/b', "/c" * 30, "more"]:
        line.write(piece)
    line.end()

    (row,) = screen(output)
    assert row.startswith('  ⋯ {"path":"/a /')
    assert row.endswith("…")
    assert len(row) <= 20


def terminal(*, columns: int) -> tuple[Console, io.StringIO]:
    """A console that believes to be a terminal, and what it was sent."""
    output = io.StringIO()
    return (
        Console(
            file=output,
            force_terminal=True,
            width=columns,
            color_system=None,
            markup=False,
            highlight=False,
            emoji=False,
        ),
        output,
    )


def screen(output: io.StringIO) -> list[str]:
    """The rows a terminal shows, for the few things that `Flow` sends."""
    rows = [""]
    for part in re.findall(r"\x1b\[\d+D|\x1b\[K|\n|[^\x1b\n]+", output.getvalue()):
        if part == "\n":
            rows.append("")
        elif part.endswith("D") and part.startswith("\x1b"):
            rows[-1] = rows[-1][: -int(part[2:-1])]
        elif part != "\x1b[K":
            rows[-1] += part
    return [row.rstrip() for row in rows if row.strip()]
