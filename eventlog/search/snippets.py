"""Why a text was found: the part of it that shows most of what was searched, with highlights.

    text ─ hits (places as written) ─ the window with most terms ─ cleaned, cut at blanks, marked

The text stays as it was written, apart from what would do harm in a terminal or a list: runs of
blanks and control characters become one blank, characters that turn the direction of writing go,
lone surrogates become U+FFFD. Markup isn't escaped: whoever shows it knows for what.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from eventlog.errors import InvalidRequest
from eventlog.search.terms import Piece, chunk_lexemes, chunks, pieces, run_places

if TYPE_CHECKING:
    from eventlog.search.query import Phrase, Slot

SNIPPET_LENGTH: Final = 160
"""Characters of a snippet, if the caller doesn't say."""
SNIPPET_LENGTH_MIN: Final = 20
"""Fewer show nothing."""
MARK: Final = "…"
"""Stands for what was cut off."""
HITS_MAX: Final = 256
"""Hits of a phrase that are weighed; later ones aren't highlighted."""
LOOK_EVERY: Final = 4_096
"""Positions after which a long text is left, if each term was seen by then."""
BORDER_LENGTH: Final = 24
"""Characters in which a blank is looked for, to cut there. Without one the cut is anywhere."""

_TURNS: Final = frozenset(
    "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
_UNCLEAN: Final = re.compile(
    rf"[^\S ]|\s\s|[\x00-\x1f\x7f-\x9f\ud800-\udfff{''.join(sorted(_TURNS))}]"
)
_SKIN_TONES: Final = range(0x1F3FB, 0x1F400)


class Snippet(msgspec.Struct, frozen=True):
    """Part of a text, and what in it was searched: first and behind-last character of each."""

    text: str
    highlights: list[tuple[int, int]] = []


class _Hit(NamedTuple):
    start: int
    end: int
    term: int


class _Place(NamedTuple):
    """Where a position is: which of the chunk's positions, and where the chunk begins."""

    start: int
    chunk: str
    nth: int


_SlotKey = tuple[int, int, int]  # of term, phrase, slot


def make_snippet(
    text: str, terms: Sequence[tuple[Phrase, ...]], *, length_max: int = SNIPPET_LENGTH
) -> Snippet:
    """The window of the text with most of the terms, the first of those with as many."""
    if length_max < SNIPPET_LENGTH_MIN:
        raise InvalidRequest(
            f"a snippet of {length_max} characters shows nothing; "
            f"ask for {SNIPPET_LENGTH_MIN} or more"
        )
    hits = sorted(find_hits(text, terms))
    room = length_max - 2 * len(MARK)
    first, last = _best_window(hits, room)
    return _cut(text, hits, first, last, length_max)


# --- hits ----------------------------------------------------------------------------------------


def find_hits(text: str, terms: Sequence[tuple[Phrase, ...]]) -> set[_Hit]:
    """Where the terms are, as written; of a long text its beginning, up to where all were seen."""
    search = _Search(terms)
    position, next_look = 0, LOOK_EVERY
    for match in chunks(text):
        chunk = match[0]
        for index, lexemes in enumerate(chunk_lexemes(chunk)):
            position += 1
            for lexeme in lexemes:
                if keys := search.slots_of(lexeme):
                    search.places[position] = _Place(match.start(), chunk, index)
                    for key in keys:
                        search.found.setdefault(key, {})[position] = None
        if position >= next_look:
            next_look += LOOK_EVERY
            hits = search.hits()
            if len({hit.term for hit in hits}) == len(terms):
                return hits
    return search.hits()


class _Search:
    """What was found of the terms so far."""

    def __init__(self, terms: Sequence[tuple[Phrase, ...]]) -> None:
        self.terms = terms
        self.places: dict[int, _Place] = {}
        self.found: dict[_SlotKey, dict[int, None]] = {}  # positions, ascending
        self._known: dict[str, tuple[_SlotKey, ...]] = {}
        self._words: dict[str, list[_SlotKey]] = {}
        self._beginnings: dict[str, list[_SlotKey]] = {}
        for number, phrases in enumerate(terms):
            for at, phrase in enumerate(phrases):
                for place, slot in enumerate(phrase):
                    for form in slot.forms:
                        forms = self._beginnings if form.prefix else self._words
                        forms.setdefault(form.lexeme, []).append((number, at, place))
        self._any_beginning = tuple(self._beginnings)

    def slots_of(self, lexeme: str) -> tuple[_SlotKey, ...]:
        """The slots of phrases that the lexeme fills."""
        known = self._known.get(lexeme)
        if known is None:
            keys = list(self._words.get(lexeme, ()))
            if lexeme.startswith(self._any_beginning):
                for beginning, its_keys in self._beginnings.items():
                    keys += its_keys if lexeme.startswith(beginning) else ()
            known = self._known[lexeme] = tuple(dict.fromkeys(keys))
        return known

    def hits(self) -> set[_Hit]:
        """Where whole phrases are."""
        return {
            hit
            for number, phrases in enumerate(self.terms)
            for at, phrase in enumerate(phrases)
            for hit in self._hits_of(phrase, (number, at))
        }

    def _hits_of(self, phrase: Phrase, key: tuple[int, int]) -> Iterator[_Hit]:
        filled = [self.found.get((*key, place), {}) for place in range(len(phrase))]
        count = 0
        for begin in filled[0]:
            if all(begin + slot.offset in filled[at] for at, slot in enumerate(phrase)):
                spans = [_span(self.places[begin + slot.offset], slot) for slot in phrase]
                yield _Hit(min(spans)[0], max(end for _, end in spans), key[0])
                count += 1
                if count == HITS_MAX:
                    return


def _span(place: _Place, slot: Slot) -> tuple[int, int]:
    """First and behind-last character of what fills a slot, in the text."""
    nth = place.nth
    inside = pieces(place.chunk)
    for at, piece in enumerate(inside):
        if nth < piece.width:
            lexeme = slot.forms[0].lexeme
            start, end = _written(place.chunk, piece, nth, len(lexeme))
            if piece.whole_count and lexeme == piece.whole:
                end = inside[at + piece.whole_count - 1].end
            return place.start + start, place.start + end
        nth -= piece.width
    raise AssertionError("a chunk has as many positions as its pieces")


def _written(chunk: str, piece: Piece, nth: int, length: int) -> tuple[int, int]:
    if piece.kind == "run":
        places = run_places(chunk[piece.start : piece.end], piece)
        if places is None:
            return piece.start, piece.end
        end = min(nth + length, len(piece.folded))
        while end < len(piece.folded) and places[end] == places[nth]:
            end += 1  # characters that were one as written
        return piece.start + places[nth], piece.start + places[end]
    start, end = piece.start, piece.end
    if piece.signed:
        start = 0 if piece.signed[0] in "#@" else start
        end = len(chunk) if piece.signed[-1] in "+#" else end
    elif piece.kind == "symbol":
        while end < len(chunk) and _goes_with(chunk[end]):
            end += 2 if chunk[end] == "\u200d" else 1
    return start, min(end, len(chunk))


def _goes_with(character: str) -> bool:
    """Whether a character belongs to the one before it."""
    return (
        unicodedata.category(character)[0] == "M"
        or character in "\u200c\u200d"
        or ord(character) in _SKIN_TONES
    )


# --- window --------------------------------------------------------------------------------------


def _best_window(hits: Sequence[_Hit], room: int) -> tuple[int, int]:
    """From the first to the last hit of the window that has most terms, then most hits."""
    best, window = (0, 0), (0, 0)
    for at, first in enumerate(hits):
        inside = [first]
        for hit in hits[at + 1 :]:
            if hit.start > first.start + room:
                break
            if hit.end <= first.start + room:
                inside.append(hit)
        worth = (len({hit.term for hit in inside}), len(inside))
        if worth > best:
            best, window = worth, (first.start, max(hit.end for hit in inside))
    return window


def _cut(text: str, hits: Iterable[_Hit], first: int, last: int, length_max: int) -> Snippet:
    """The window with what is around it, clean and marked."""
    low = max(0, first - 2 * length_max)
    high = min(len(text), min(last, first + 2 * length_max) + 2 * length_max)
    clean, places = _clean(text[low:high])

    def place(offset: int) -> int:
        return places[min(max(offset - low, 0), high - low)]

    begin, end = _extent(clean, place(first), place(last), length_max - 2 * len(MARK))
    if low == 0 and begin > 0 and place(last) <= length_max - len(MARK):
        begin, end = _extent(clean, 0, place(last), length_max - len(MARK))
    cut_before = low > 0 or bool(clean[:begin].strip())
    cut_behind = high < len(text) or bool(clean[end:].strip())
    shift = begin - cut_before * len(MARK)
    spans = [(place(hit.start), place(hit.end)) for hit in hits]
    inside = [span for span in spans if begin <= span[0] < span[1] <= end]
    if not inside:  # longer than the snippet
        inside = [(max(a, begin), min(b, end)) for a, b in spans if a < end and b > begin]
    return Snippet(
        MARK * cut_before + clean[begin:end] + MARK * cut_behind,
        [(a - shift, b - shift) for a, b in _merged(inside)],
    )


def _extent(clean: str, first: int, last: int, room: int) -> tuple[int, int]:
    """Where the snippet begins and ends: two thirds of what is left over go behind the window."""
    rest = max(0, room - (last - first))
    end = min(len(clean), max(0, first - rest // 3) + room)
    begin = max(0, end - room)
    if begin > first:  # the window is longer than the room: show its beginning
        begin, end = first, min(len(clean), first + room)
    if begin > 0:
        begin = _border(clean, range(begin, min(first, begin + BORDER_LENGTH) + 1)) or begin
        while begin < first and (clean[begin] == " " or _goes_with(clean[begin])):
            begin += 1
    if end < len(clean):
        kept = min(last, end)
        end = _border(clean, range(end, max(kept, end - BORDER_LENGTH) - 1, -1)) or end
        while end > kept and (clean[end - 1] == " " or _goes_with(clean[end])):
            end -= 1
    return begin + (clean[begin:end][:1] == " "), end - (clean[begin:end][-1:] == " ")


def _border(clean: str, places: range) -> int:
    """The first place beside a blank, or else where a word begins or ends; 0: there is none."""
    for place in places:
        if clean[place - 1] == " " or clean[place : place + 1] == " ":
            return place
    for place in places:
        if clean[place - 1].isalnum() != clean[place : place + 1].isalnum():
            return place
    return 0


def _clean(text: str) -> tuple[str, Sequence[int]]:
    """The text without what does harm, and where each of its characters went, and its end."""
    if not _UNCLEAN.search(text):
        return text, range(len(text) + 1)
    clean: list[str] = []
    places: list[int] = []
    for character in text:
        places.append(len(clean))
        category = unicodedata.category(character)
        if character.isspace() or category == "Cc":
            if clean and clean[-1] == " ":
                places[-1] -= 1
            else:
                clean.append(" ")
        elif category == "Cs":
            clean.append("\ufffd")
        elif character not in _TURNS:
            clean.append(character)
    return "".join(clean), [*places, len(clean)]


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that overlap as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
