"""The tokenizer: what is a word, in which scripts, how code is taken apart, what the bounds do."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.errors import InvalidRequest
from eventlog.search import terms as search_terms
from eventlog.search.terms import (
    LEXEME_LENGTH_MAX,
    PHRASE_POSITIONS_MAX,
    PLACES_MAX,
    POSITION_LAST,
    SCOPE_MARK,
    SEPARATOR,
    SIZE_MAX,
    TEXT_LENGTH_MAX,
    chunk_lexemes,
    chunks,
    pieces,
    postings,
    tsvector_text,
)

TSVECTOR_BYTES_MAX = 2**20
WORDS = {
    "Rate limits": {"rate": [1], "limits": [2]},
    "don't": {"don": [1], "t": [2]},
    "Straße": {"strasse": [1]},
    "Café cafe\u0301": {"cafe": [1, 2], "café": [1, 2]},
    "Ещё Ёлка": {"еще": [1], "ещё": [1], "елка": [2], "ёлка": [2]},
    "ＦＵＬＬ ﬁne": {"full": [1], "fine": [2]},
    "ΣΊΣΥΦΟΣ": {"σισυφοσ": [1], "σίσυφοσ": [1]},
    "Łódź Æsir": {"lodz": [1], "łódź": [1], "aesir": [2], "æsir": [2]},
    "السَّلام عليكم": {"السلام": [1], "السَّلام": [1], "عليكم": [2]},
    "हिन्दी में": {"हिन्दी": [1], "में": [2]},
    "co\u00adop": {"coop": [1]},
    "中文搜索": {"中文": [1], "文搜": [2], "搜索": [3], "索": [4]},
    "東京 タワー": {"東京": [1], "京": [2], "タワ": [3], "ワー": [4], "ー": [5]},
    "ｶﾞﾝ": {"ガン": [1], "ン": [2]},
    "서버가": {"서버": [1], "버가": [2], "가": [3]},
    "ไทย": {"ไท": [1], "ทย": [2], "ย": [3]},
    "iPhone手机": {"iphone": [1], "phone": [1], "手机": [2], "机": [3]},
    "ok 🚀👩🏽\u200d💻": {"ok": [1], "🚀": [2], "👩": [3], "💻": [4]},
    "get_user_name": {"get": [1], "get_user_name": [1], "user": [2], "name": [3]},
    "__init__ _x_": {"init": [1], "x": [2]},
    "getUserName": {"getusername": [1], "get": [1], "user": [1], "name": [1]},
    "HTTPServer2": {"httpserver2": [1], "http": [1], "server2": [1]},
    "error404": {"error404": [1], "404": [1]},
    "foo.bar/baz-qux": {"foo": [1], "bar": [2], "baz": [3], "qux": [4]},
    "--max-rows": {"max": [1], "rows": [2]},
    "#1234 @ada": {"1234": [1], "#1234": [1], "ada": [2], "@ada": [2]},
    "ada@example.com": {"ada": [1], "example": [2], "com": [3]},
    "C++ C# a+b a#b": {"c": [1, 2], "c++": [1], "c#": [2], "a": [3, 5], "b": [4, 6]},
    "v1.2.3": {"v1": [1], "1": [1], "2": [2], "3": [3]},
    "https://a.io/x?y=1": {"https": [1], "a": [2], "io": [3], "x": [4], "y": [5], "1": [6]},
    r"C:\new\table": {"c": [1], "new": [2], "table": [3]},
    f"one{SEPARATOR}two": {"one": [1], "two": [3]},
    "a\0b \ud800 \udfff": {"a": [1], "b": [2]},
    " \t\n.,;:!?\u3000。、": {},
}


def encodes(character: str) -> bool:
    """Whether Postgres can have the character."""
    return character != "\0" and not 0xD800 <= ord(character) <= 0xDFFF


@pytest.mark.parametrize("text", WORDS)
def test_postings_when_made_are_the_words_with_their_positions(text: str) -> None:
    """Scripts, identifiers, names, addresses: each gives what it can be found by."""

    assert postings(text) == WORDS[text]


def test_lexemes_when_made_from_any_character_need_no_quoting() -> None:
    """No character alone or in a word gives a lexeme with a quote, a blank or a scope's mark."""
    unwelcome = set("'\\\0 \t\n:*&|!()<>=" + SCOPE_MARK)

    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point)) in ("Cn", "Co"):
            continue  # nothing yet, or nothing public
        for lexeme in postings(f"x{chr(point)}Y {chr(point)}"):
            assert not unwelcome & set(lexeme), (hex(point), lexeme)
            assert all(map(encodes, lexeme)), (hex(point), lexeme)
            assert 0 < len(lexeme) <= LEXEME_LENGTH_MAX


def test_letters_when_searched_in_any_script_are_found() -> None:
    """Every letter and digit belongs to some lexeme; Arabic vowel signs alone are no letters."""
    lost = {
        unicodedata.name(chr(point))
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) in ("Lu", "Ll", "Lt", "Lo", "Nd")
        and not postings(chr(point))
    }
    signs = ("FATHA", "DAMMA", "KASRA", "SHADDA", "SUKUN")

    assert [name for name in lost if not any(sign in name for sign in signs)] == []


@given(st.text(max_size=60))
def test_lexemes_when_made_have_a_place_in_the_chunk(text: str) -> None:
    """Positions of lexemes and pieces agree: highlighting shows what was found."""
    for match in chunks(text):
        chunk = match[0]
        found = pieces(chunk)

        assert len(chunk_lexemes(chunk)) == sum(piece.width for piece in found)
        ends = [0, *(piece.end for piece in found)]
        assert all(end <= piece.start for end, piece in zip(ends, found, strict=False))
        assert ends[-1] <= len(chunk)


@given(st.text(max_size=40))
def test_postings_when_the_text_is_decomposed_are_the_same(text: str) -> None:
    """How accents were typed makes no difference to a Latin or Cyrillic text."""
    letters = "".join(each for each in text if unicodedata.category(each) in ("Ll", "Lu", "Zs"))
    composed = unicodedata.normalize("NFC", letters)

    assert postings(unicodedata.normalize("NFD", composed)) == postings(composed)


def test_tsvector_when_written_lists_scopes_and_positions() -> None:
    """The literal is what a person can read, and always the same."""
    assert (
        tsvector_text("to be or not to be", ["=u:o'neil\\", "=t:1"])
        == "'=t:1' '=u:o''neil\\\\' 'to':1,5 'be':2,6 'or':3 'not':4"
    )
    assert tsvector_text("") == ""


@pytest.mark.parametrize("scope", ["", "user", "=\0", "=\ud800", "=" + "x" * 255, "=" + "ж" * 128])
def test_scope_when_a_text_could_have_it_or_postgres_not_is_refused(scope: str) -> None:
    """A scope is never silently another one."""
    with pytest.raises(InvalidRequest, match="begin with '='"):
        tsvector_text("", [scope])


def test_words_when_longer_than_a_lexeme_are_found_by_their_beginning() -> None:
    """Keys and base64 neither fail nor fill the index."""
    assert postings("k" * 5000) == {"k" * LEXEME_LENGTH_MAX: [1]}
    assert list(postings("aB" * 30)) == ["ab" * 30]  # not thirty humps


def test_text_when_long_has_words_to_its_end_and_phrases_to_a_point() -> None:
    """Behind PHRASE_POSITIONS_MAX all words share the last position, far from the others."""
    text = "word " * PHRASE_POSITIONS_MAX + "near far"
    found = postings(text)

    assert found["near"] == found["far"] == [POSITION_LAST]
    assert found["word"] == [*range(1, PLACES_MAX + 1)]
    assert POSITION_LAST - PHRASE_POSITIONS_MAX > 2 * 500  # the longest query, all expanded


def test_text_when_too_long_is_read_to_a_point() -> None:
    """Ten megabytes cost as much as the part that is read."""
    text = "a " * (TEXT_LENGTH_MAX // 2) + "behind"

    assert list(postings(text)) == ["a"]
    assert list(postings("before" + text * 20)) == ["beforea", "a"]


@pytest.mark.parametrize("first", ["a", "я", "ก", "一", "가", "𠀀", "𐐀"])
def test_text_when_full_of_different_words_stays_below_postgres_limit(first: str) -> None:
    """The size is counted from above, whatever the script."""
    letters = random.Random(7).choices([chr(ord(first) + nth) for nth in range(300)], k=250_000)
    text = "".join(letter + " " * (nth % 6 == 0) for nth, letter in enumerate(letters))
    found = postings(text)
    taken = sum(len(lexeme.encode()) + 4 + 2 * len(its) for lexeme, its in found.items())

    assert len(found) > 10_000
    assert taken <= SIZE_MAX < TSVECTOR_BYTES_MAX


def test_chunks_when_remembered_are_bounded() -> None:
    """The memory for analysed chunks doesn't grow with the texts that were seen."""
    assert search_terms._remembered.cache_info().maxsize == search_terms.CACHED_COUNT_MAX
    assert search_terms.CACHED_COUNT_MAX * search_terms.CACHED_LENGTH_MAX < 2**21
