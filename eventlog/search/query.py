"""What someone searches for: read from text, asked of Postgres or of a text in this process.

    rate limits            both words, as beginnings of words; simple English inflections also match
    "rate limit"           these words in this order, exactly as written
    -draft  -"rate limit"  not in the text; exactly this word or phrase
    get_user_name  src/a.py  +49-30-1234  中文搜索   parts in this order, the last as a beginning

A word matches as a beginning from `PREFIX_LENGTH_MIN` characters on, the last one, which may still
be typed, from `LAST_PREFIX_LENGTH_MIN` on. Diacritics count within quotes only. There is no OR: it
is a word like any other; ask twice. A minus excludes only in front of a term, so `--max-rows`,
`well-known` and `a - b` exclude nothing. A quotation mark opens a phrase only in front of a term.

English inflections are made from the word that is searched, not stored: `limits` also asks for
`limit`, `limited` and `limiting`, `cache` for `caching`. These are whole words, chosen by rule,
so that they find nothing unforeseen, and cost the index nothing.

`tsquery` and `matches` give the same answer for every text: both come from the same alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from eventlog.errors import InvalidRequest
from eventlog.search.snippets import SNIPPET_LENGTH, Snippet, make_snippet
from eventlog.search.terms import LEXEME_LENGTH_MAX, Piece, chunks, pieces, postings, quoted_scope

QUERY_LENGTH_MAX: Final = 500
"""Characters of a query; a longer one is refused. No phrase is as long as the gap of positions."""
PREFIX_LENGTH_MIN: Final = 3
"""Characters from which on a word is taken as the beginning of words."""
LAST_PREFIX_LENGTH_MIN: Final = 2
"""The same for the last word of a query."""
INFLECTED_LENGTH_MIN: Final = 4
"""Characters of the shortest word whose inflections are asked for."""

_TERM: Final = re.compile(
    r'(?P<minus>-(?=[^\s-]))?(?:["“”„](?P<phrase>[^"“”]*)["“”]?|(?P<words>\S+))'
)

_SHORT: Final = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
"""Words that double their last letter: stop, stopped."""


class Form(NamedTuple):
    """A lexeme, or the beginning of lexemes."""

    lexeme: str
    prefix: bool = False


class Slot(NamedTuple):
    """Any of these forms, so many positions behind the phrase's first."""

    offset: int
    forms: tuple[Form, ...]


Phrase = tuple[Slot, ...]
"""What must be at these distances from one another; mostly a single slot."""


class Term(NamedTuple):
    """Something that a text must have, or must not have: any of these phrases."""

    phrases: tuple[Phrase, ...]
    excluded: bool = False


class Query:
    """A parsed query; make it with `parse_query`."""

    __slots__ = ("terms",)

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms

    def tsquery(self, scopes: Sequence[str] = ()) -> str:
        """A literal for `::tsquery`; what is found has all of `scopes` (see `tsvector_text`)."""
        parts = [scopes_tsquery(scopes)] if scopes else []
        return " & ".join(parts + [_term_literal(term) for term in self.terms])

    def matches(self, text: str) -> bool:
        """Whether Postgres would find the text."""
        return self.matches_postings(postings(text))

    def matches_postings(self, found: Mapping[str, list[int]]) -> bool:
        """The same for a text whose `postings` are at hand."""
        return all(
            any(_occurs(phrase, found) for phrase in term.phrases) is not term.excluded
            for term in self.terms
        )

    def snippet(self, text: str, length_max: int = SNIPPET_LENGTH) -> Snippet:
        """The part of the text, as it was written, that shows best why it was found."""
        wanted = [term.phrases for term in self.terms if not term.excluded]
        return make_snippet(text, wanted, length_max=length_max)


def parse_query(text: str) -> Query:
    """Read a query. `InvalidRequest`: it is too long, or has no word that a text should have."""
    if len(text) > QUERY_LENGTH_MAX:
        raise InvalidRequest(
            f"a query has at most {QUERY_LENGTH_MAX} characters, not {len(text)}; "
            "search for a few words of it"
        )
    terms = list(_terms(text))
    if all(term.excluded for term in terms):
        raise InvalidRequest(
            f"query {text!r} has no word to search for; give at least one without a minus"
        )
    return Query(tuple(dict.fromkeys(terms)))


def scopes_tsquery(scopes: Sequence[str]) -> str:
    """A literal for `::tsquery`: everything in these scopes."""
    return " & ".join(quoted_scope(scope) for scope in scopes)


# --- reading -------------------------------------------------------------------------------------


def _terms(text: str) -> Iterator[Term]:
    matches = list(_TERM.finditer(text))
    for match in matches:
        written = match["words"] or match["phrase"] or ""
        found = [piece for chunk in chunks(written) for piece in pieces(chunk[0])]
        found = [piece for piece in found if piece.kind != "gap"]
        if not found:
            continue
        if match["minus"] or match["phrase"] is not None:
            yield Term((_exact(found),), excluded=bool(match["minus"]))
        else:
            yield Term(tuple(_loose(found, match is matches[-1])))


def _exact(found: list[Piece]) -> Phrase:
    """The words as written, identifiers as a whole, no beginnings."""
    slots: list[Slot] = []
    offset = within = 0
    for piece in found:
        if piece.kind == "run":
            slots += _run(piece.folded, offset)
        elif within <= 1:
            within = piece.whole_count + 1 if piece.whole else 1
            slots.append(Slot(offset, (Form(piece.signed or piece.whole or piece.exact),)))
        within -= 1
        offset += piece.width
    return tuple(slots)


def _loose(found: list[Piece], last: bool) -> Iterator[Phrase]:
    """The words in this order, the last as a beginning; a name may be written in another style."""
    length_min = LAST_PREFIX_LENGTH_MIN if last else PREFIX_LENGTH_MIN
    slots: list[Slot] = []
    offset = 0
    for piece in found:
        if piece.kind == "run":
            slots += _run(piece.folded, offset)
        else:
            ends = piece is found[-1]
            name = piece.signed if piece.signed and not piece.whole else piece.folded
            prefix = ends and _grows(piece, name) and len(name) >= length_min
            plain = prefix and len(found) == 1 and name == piece.exact and not piece.humps
            others = _inflections(name) if plain else ()
            slots.append(Slot(offset, (Form(name, prefix), *map(Form, others))))
        offset += piece.width
    yield tuple(slots)
    if len(found) == 1 and len(found[0].humps) > 1:  # getUserName, also get_user_name
        humps = found[0].humps
        if humps[-1].isdigit() and humps[-2].endswith(humps[-1]):
            humps = humps[:-1]
        yield tuple(
            Slot(at, (Form(hump, at == len(humps) - 1 and len(hump) >= length_min),))
            for at, hump in enumerate(humps)
        )
    if found[0].whole_count == len(found):  # get_user_name, also getUserName
        joined = "".join(piece.folded for piece in found)[:LEXEME_LENGTH_MAX]
        yield (Slot(0, (Form(joined, len(joined) >= length_min),)),)


def _grows(piece: Piece, name: str) -> bool:
    """Whether more may follow: not behind a sign like that of C++, nor behind an emoji."""
    return piece.kind == "word" and name[-1] not in "+#"


def _run(run: str, offset: int) -> Iterator[Slot]:
    """A run as pairs that cover it; a single character is the beginning of pairs."""
    if len(run) == 1:
        yield Slot(offset, (Form(run, prefix=True),))
    else:
        for at in [*range(0, len(run) - 2, 2), len(run) - 2]:
            yield Slot(offset + at, (Form(run[at : at + 2]),))


# --- inflections ---------------------------------------------------------------------------------


def _inflections(word: str) -> list[str]:
    """Other forms of an English word which don't begin with it."""
    if len(word) < INFLECTED_LENGTH_MIN or not (word.isascii() and word.isalpha()):
        return []
    forms = [form for base in _bases(word) for form in _forms(base)]
    return [form for form in dict.fromkeys(forms) if not form.startswith(word)]


def _bases(word: str) -> list[str]:
    """What the word may be a form of, itself first."""
    bases = [word]
    if word.endswith(("ies", "ied")) and len(word) > INFLECTED_LENGTH_MIN:
        bases.append(word[:-3] + "y")
    elif word.endswith(("ses", "xes", "zes", "ches", "shes")):
        bases += [word[:-2], word[:-1]]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        bases.append(word[:-1])
    elif word.endswith("ing"):
        bases += _without_ending(word[:-3])
    elif word.endswith("ed") and not word.endswith("eed"):
        bases += _without_ending(word[:-2])
    return bases


def _without_ending(stem: str) -> list[str]:
    """`stopp` may be of stop, `cach` of cache, `fail` of fail, `fill` of fill."""
    if len(stem) < 2 or not re.search("[aeiouy]", stem):
        return []
    if stem[-1] == stem[-2] and stem[-1] not in "aeiou":
        return [stem[:-1], stem] if stem[-1] in "lszf" else [stem[:-1]]
    return [stem, stem + "e"]


def _forms(base: str) -> list[str]:
    """The base and its regular forms."""
    if base.endswith("e"):
        return [base, base + "s", base + "d", base[:-1] + "ing"]
    if base.endswith("y") and base[-2] not in "aeiou":
        return [base, base[:-1] + "ies", base[:-1] + "ied", base + "ing"]
    doubled = base + base[-1] if _SHORT.fullmatch(base) else base
    return [base, base + "s", doubled + "ed", doubled + "ing"]


# --- asking --------------------------------------------------------------------------------------


def _term_literal(term: Term) -> str:
    phrases = " | ".join(_phrase_literal(phrase) for phrase in term.phrases)
    return f"!({phrases})" if term.excluded else f"({phrases})"


def _phrase_literal(phrase: Phrase) -> str:
    literal = _slot_literal(phrase[0])
    for before, slot in pairwise(phrase):
        literal += f" <{slot.offset - before.offset}> {_slot_literal(slot)}"
    return f"({literal})" if len(phrase) > 1 else literal


def _slot_literal(slot: Slot) -> str:
    forms = [f"'{form.lexeme}'{':*' * form.prefix}" for form in slot.forms]
    return f"({' | '.join(forms)})" if len(forms) > 1 else forms[0]


def _occurs(phrase: Phrase, found: Mapping[str, list[int]]) -> bool:
    first, *others = phrase
    if not others:
        return any(_has(form, found) for form in first.forms)
    begins = _places(first, found)
    for slot in others:
        if begins:
            places = _places(slot, found)
            begins = {begin for begin in begins if begin + slot.offset in places}
    return bool(begins)


def _has(form: Form, found: Mapping[str, list[int]]) -> bool:
    if form.lexeme in found:
        return True
    return form.prefix and any(lexeme.startswith(form.lexeme) for lexeme in found)


def _places(slot: Slot, found: Mapping[str, list[int]]) -> set[int]:
    places: set[int] = set()
    for form in slot.forms:
        if form.prefix:
            for lexeme, its_places in found.items():
                if lexeme.startswith(form.lexeme):
                    places.update(its_places)
        else:
            places.update(found.get(form.lexeme, ()))
    return places
