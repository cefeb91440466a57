"""The words of a text, as search knows them: one tokenizer for index, query and highlighting.

    text ─ chunks (no blank, no ASCII punctuation) ─ pieces ─ positions, each with its lexemes

Why not Postgres' own parser: it keeps paths, hosts and URLs as one token (`os.path.join` isn't
found by `join`) and cuts `foo.bar/baz-qux` into `foo.bar` and `/baz-qux`; it takes a Chinese,
Japanese or Thai sentence for one word; its lower case is that of the server's locale, so with
locale C `ПРИВЕТ` isn't found by `привет`. pg_trgm is an extension, sees no letter beyond ASCII with
locale C, and has nothing to look up for a word of two letters. With a tokenizer of our own the
answer depends on neither, the store in memory gives the same one, and what is highlighted is what
was found. Postgres keeps the lexemes (`tsvector` under GIN) and does the rest: and, not, phrases,
prefixes.

- **Words** are runs of letters, digits and marks of any script, NFKC and case folded. A word with
  diacritics has two lexemes, as written and folded (`café`, `cafe`).
- **Identifiers**: the parts of `get_user_name` are at consecutive positions, so are those of paths,
  hosts, URLs, e-mail addresses, versions, options; the whole is at its first part. The humps of
  `getUserName` (and `404` of `error404`) are at the word's own position: names like GitHub remain
  one word in a phrase. `#1234`, `@ada`, `C++`, `C#` have a lexeme with the sign. There is no lexeme
  for a whole path or URL: its parts as a phrase find the same, also within a longer one.
- **Scripts without spaces** (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and Korean, whose words
  are glued to their particles: overlapping pairs of characters, the last character alone. A single
  character is the beginning of a pair; longer strings are phrases of pairs. So every substring is
  found, and no dictionary is needed.
- **Emoji** are words. Skin tones, joiners and variation selectors don't count.

What is in the index of a text that is too long, see the bounds below. Another version of Python may
know newer characters (`unicodedata.unidata_version`); words that have none of them stay the same.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Final, Literal, NamedTuple

from eventlog.errors import InvalidRequest

TEXT_LENGTH_MAX: Final = 262_144
"""Characters of a text that are read; what follows is not found. Some 40,000 English words."""
LEXEME_LENGTH_MAX: Final = 64
"""Characters of a lexeme. Of longer words (keys, base64) the beginning is found."""
SIZE_MAX: Final = 900_000
"""Bytes a tsvector may take, estimated from above; Postgres refuses 2**20. The text ends there."""
PHRASE_POSITIONS_MAX: Final = 15_000
"""Words up to here have positions of their own. Words behind it are found, phrases of them not."""
POSITION_LAST: Final = 16_383
"""The last position Postgres has, which all words behind PHRASE_POSITIONS_MAX share. The gap
between them is wider than any query, so that no phrase spans it."""
PLACES_MAX: Final = 255
"""Positions that Postgres keeps of a lexeme; a phrase isn't found by later ones."""
HUMPS_MAX: Final = 8
"""A word with more humps is no name, but a key or base64, and isn't taken apart."""
CACHED_LENGTH_MAX: Final = 20
"""Characters of a chunk whose analysis is remembered."""
CACHED_COUNT_MAX: Final = 16_384
"""Chunks remembered: 5 MB if they are words, at most 50 MB if they are all Chinese."""
SCOPE_BYTES_MAX: Final = 255
"""UTF-8 bytes of a scope. Hash what may be longer."""

SCOPE_MARK: Final = "="
"""Every scope begins with it; no lexeme of a text contains it."""
SEPARATOR: Final = "\x1d"
"""Counts as a word that nothing finds: no phrase reaches from one side to the other."""

Kind = Literal["word", "run", "symbol", "gap"]
Lexemes = tuple[str, ...]

_RUNS: Final = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u1000-\u103f\u1050-\u109f\u1100-\u11ff"
    "\u1780-\u17d3\u17d7\u17dc\u17dd\ua960-\ua97f\ua9e0-\ua9ef\uaa60-\uaa7f"
    "\u2e80-\u2fd5\u3005-\u3007\u3021-\u302f\u3031-\u3035\u3038-\u303c\u3041-\u309a\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Hangul, Khmer, Han, Kana, Bopomofo: what is cut into pairs."""
_SYMBOLS: Final = (
    "\u203c\u2049\u231a-\u23ff\u25a0-\u27bf\u2934\u2935\u2b05-\u2b55"
    "\U0001f000-\U0001f0ff\U0001f10d-\U0001f3fa\U0001f400-\U0001faff"
)
_IGNORED: Final = (
    "\u00ad\u034f\u0640\u180b-\u180f\u200c\u200d\u20dd-\u20e4\u2060\ufe00-\ufe0f\ufeff"
)
"""Characters within words that make no difference: joiners, soft hyphens, variation selectors."""
_LETTERS: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t"})
_LETTERS.update(str.maketrans({"ı": "i", "æ": "ae", "œ": "oe", "þ": "th"}))
"""Letters with a stroke and the like, which Unicode doesn't decompose."""

_CHUNK: Final = re.compile(
    r"(?:(?<!\w)[#@])?[^\x00-\x1c\x1e-/:-@\[-^`{-\x7f\s]+(?:\+\+|#(?!\w))?|\x1d"
)
_ASCII_WORD: Final = re.compile(r"[0-9A-Za-z]+|(?P<gap>\x1d)")
_HUMPS: Final = re.compile(r"(?:[A-Z]+(?![a-z])|[A-Z]?[a-z]+)[0-9]*|[0-9]+")
_HAS_HUMPS: Final = re.compile(r"[a-z0-9][A-Z]|[A-Z]{2}[a-z]")
_NUMBER_AT_END: Final = re.compile(r"(?<=[A-Za-z])[0-9]{2,}$|(?<=^[Vv])[0-9]$")


class Piece(NamedTuple):
    """A word, a run of characters without spaces, a symbol or a gap, within its chunk."""

    start: int
    end: int
    kind: Kind
    exact: str
    """Normalised, as written. Of a run: all its characters, which are cut into pairs."""
    folded: str
    """And without diacritics."""
    humps: Lexemes = ()
    whole: str = ""
    """The identifier that begins with this piece."""
    whole_count: int = 0
    """How many pieces that identifier has."""
    signed: str = ""
    """The identifier with its sign: `#1234`."""

    @property
    def width(self) -> int:
        """Positions it takes."""
        return len(self.folded) if self.kind == "run" else 1


class _Patterns(NamedTuple):
    piece: re.Pattern[str]
    noise: re.Pattern[str]
    cluster: re.Pattern[str]


def chunks(text: str) -> Iterator[re.Match[str]]:
    """What the text is cut into first, with places."""
    return _CHUNK.finditer(text, 0, TEXT_LENGTH_MAX)


def chunk_lexemes(chunk: str) -> tuple[Lexemes, ...]:
    """The lexemes of a chunk, position by position."""
    return _remembered(chunk) if len(chunk) <= CACHED_LENGTH_MAX else _lexemes(chunk)


def postings(text: str) -> dict[str, list[int]]:
    """Each lexeme of a text with its positions, within the bounds: what Postgres has of it."""
    found: dict[str, list[int]] = {}
    room = SIZE_MAX
    position = 0
    remembered = _remembered
    for chunk in _CHUNK.findall(text, 0, TEXT_LENGTH_MAX):
        known = len(chunk) <= CACHED_LENGTH_MAX
        for lexemes in remembered(chunk) if known else _lexemes(chunk):
            position += 1
            place = position if position <= PHRASE_POSITIONS_MAX else POSITION_LAST
            for lexeme in lexemes:
                places = found.get(lexeme)
                if places is None:
                    room -= 4 * len(lexeme) + 8
                    if room < 0:
                        return found
                    found[lexeme] = [place]
                elif places[-1] != place and len(places) < PLACES_MAX:
                    room -= 2
                    places.append(place)
    return found


def tsvector_text(text: str, scopes: Sequence[str] = ()) -> str:
    """The text's lexemes as a literal for `::tsvector`; always the same, Postgres sorts it.

    `scopes` are further lexemes, which no text contains: an index entry for a tenant, a user, a
    session. They begin with `SCOPE_MARK`.
    """
    parts = [quoted_scope(scope) for scope in sorted(set(scopes))]
    parts += [
        f"'{lexeme}':{','.join(map(str, places)) if len(places) > 1 else places[0]}"
        for lexeme, places in postings(text).items()
    ]
    return " ".join(parts)


def quoted_scope(scope: str) -> str:
    """A scope as `tsvector` and `tsquery` read it. Lexemes of texts need no such care."""
    if not scope.startswith(SCOPE_MARK) or "\0" in scope or not _encodes(scope):
        raise InvalidRequest(
            f"scope {scope!r} can't be stored; let it begin with {SCOPE_MARK!r}, "
            f"have up to {SCOPE_BYTES_MAX} bytes, no NUL and no lone surrogate"
        )
    return "'" + scope.replace("\\", "\\\\").replace("'", "''") + "'"


def _encodes(scope: str) -> bool:
    try:
        return len(scope.encode()) <= SCOPE_BYTES_MAX
    except UnicodeEncodeError:
        return False


# --- from chunk to pieces ------------------------------------------------------------------------


def pieces(chunk: str) -> list[Piece]:
    """What a chunk consists of, with places in the chunk."""
    pattern = _ASCII_WORD if chunk.isascii() else _patterns().piece
    found: list[Piece] = []
    identifier: list[Piece] = []
    for match in pattern.finditer(chunk):
        piece = _piece(match)
        if not piece.folded:
            continue
        if identifier and not _joined(chunk, identifier[-1], piece):
            found += _identified(chunk, identifier)
            identifier = []
        identifier.append(piece)
    return found + _identified(chunk, identifier)


def _piece(match: re.Match[str]) -> Piece:
    start, end = match.span()
    written = match[0]
    match match.lastgroup:
        case "gap":
            return Piece(start, end, "gap", written, written)
        case "symbol":
            return Piece(start, end, "symbol", written, written)
        case "run":
            run = _normal(written)
            return Piece(start, end, "run", run, run)
        case _:
            if written.isascii():
                exact = folded = written.lower()
            else:
                exact = _normal(written)
                folded = _without_diacritics(exact)
            humps = _humps(written) if len(exact) <= LEXEME_LENGTH_MAX else ()
            exact, folded = exact[:LEXEME_LENGTH_MAX], folded[:LEXEME_LENGTH_MAX]
            return Piece(start, end, "word", exact, folded, humps)


def _joined(chunk: str, left: Piece, right: Piece) -> bool:
    """Whether two pieces are parts of one identifier: words with underscores between them."""
    between = chunk[left.end : right.start]
    return bool(between) and not between.strip("_") and left.kind == right.kind == "word"


def _identified(chunk: str, parts: list[Piece]) -> list[Piece]:
    """The parts of an identifier, the first with its whole and the form with its sign."""
    if not parts:
        return []
    whole = "_".join(part.folded for part in parts)[:LEXEME_LENGTH_MAX]
    first, last = parts[0], parts[-1]
    before = chunk[0] if chunk[0] in "#@" and not chunk[1 : first.start].strip("_") else ""
    after = chunk[last.end :] if chunk[last.end :] in ("++", "#") else ""
    if len(parts) > 1:
        first = first._replace(whole=whole, whole_count=len(parts))
    if before or after:
        first = first._replace(signed=f"{before}{whole}{after}")
    return [first, *parts[1:]]


def _humps(word: str) -> Lexemes:
    """The parts of a camel case word, and the number at its end; nothing if it has no parts."""
    shape = word
    if not word.isascii():
        word = unicodedata.normalize("NFC", word)
        shape = "".join(map(_shape, word))
    parts: list[tuple[int, int]] = []
    if _HAS_HUMPS.search(shape):
        parts = [match.span() for match in _HUMPS.finditer(shape)]
    if number := _NUMBER_AT_END.search(shape):
        parts.append(number.span())
    if len(parts) > HUMPS_MAX:
        return ()
    folded = (_without_diacritics(_normal(word[start:end])) for start, end in parts)
    return tuple(hump for hump in folded if len(hump) > 1 or hump.isdigit())


def _shape(character: str) -> str:
    if character.isupper():
        return "A"
    return "0" if character.isdigit() else "a"


def _normal(text: str) -> str:
    """NFKC and case folded, without what makes no difference; nothing but letters and the like."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _patterns().noise.sub("", folded)


def _without_diacritics(text: str) -> str:
    """Without accents, Arabic and Hebrew vowel signs; Indian vowels and viramas are letters."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text)
    kept = [each for each in decomposed if not _is_diacritic(unicodedata.combining(each))]
    return unicodedata.normalize("NFC", "".join(kept)).translate(_LETTERS)


def _is_diacritic(combining_class: int) -> bool:
    return combining_class >= 200 or 10 <= combining_class <= 36


def run_places(written: str, piece: Piece) -> list[int] | None:
    """Where each normalised character of a run begins as written, and the end of the last.

    None: the characters don't map one by one, only the whole run can be shown.
    """
    places: list[int] = []
    normal: list[str] = []
    for match in _patterns().cluster.finditer(written):
        cluster = _normal(match[0])
        places += [match.start()] * len(cluster)
        normal.append(cluster)
    return [*places, len(written)] if "".join(normal) == piece.folded else None


# --- from pieces to lexemes ----------------------------------------------------------------------


def _lexemes(chunk: str) -> tuple[Lexemes, ...]:
    if chunk.isascii() and chunk.isalpha() and not _HAS_HUMPS.search(chunk):
        return ((chunk[:LEXEME_LENGTH_MAX].lower(),),)  # most words of most texts
    found: list[Lexemes] = []
    for piece in pieces(chunk):
        match piece.kind:
            case "gap":
                found.append(())
            case "run":
                run = piece.folded
                found += [(run[at : at + 2],) for at in range(len(run))]
            case _:
                forms = (piece.folded, piece.exact, piece.whole, piece.signed, *piece.humps)
                found.append(tuple(dict.fromkeys(form for form in forms if form)))
    return tuple(found)


_remembered: Final = lru_cache(maxsize=CACHED_COUNT_MAX)(_lexemes)


@cache
def _patterns() -> _Patterns:
    """What takes ten milliseconds to make, and is needed only beyond ASCII."""
    marks = _marks()
    word = rf"[^\W_{_RUNS}][^\W_{_RUNS}]*(?:[{marks}{_IGNORED}]+[^\W_{_RUNS}]*)*"
    run = rf"[{_RUNS}][{_RUNS}{_IGNORED}]*"
    return _Patterns(
        piece=re.compile(
            rf"(?P<run>{run})|(?P<symbol>[{_SYMBOLS}])|(?P<word>{word})|(?P<gap>{SEPARATOR})"
        ),
        noise=re.compile(rf"[{_IGNORED}\U000e0100-\U000e01ef]|[^\w{marks}]|_"),
        cluster=re.compile(rf".[{marks}{_IGNORED}\uff9e\uff9f]*", re.DOTALL),
    )


def _marks() -> str:
    """The combining characters, as what stands between the brackets of a pattern."""
    points = [
        *range(0x300, 0x1F000),
        *range(0xE0100, 0xE01F0),
    ]
    ranges: list[list[int]] = []
    for point in points:
        if point <= sys.maxunicode and unicodedata.category(chr(point))[0] == "M":
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)
