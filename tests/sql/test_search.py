"""Search in Postgres and search in Python give the same answer, for every text and every query.

Texts go to Postgres as literals of the library's own making, so this is also where a literal that
Postgres can't read, or reads as something else, would show.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventlog.errors import InvalidRequest
from eventlog.search import terms as search_terms
from eventlog.search.query import Query, parse_query, scopes_tsquery
from eventlog.search.terms import (
    PHRASE_POSITIONS_MAX,
    PLACES_MAX,
    TEXT_LENGTH_MAX,
    postings,
    quoted_scope,
    tsvector_text,
)

ASK: Final = """
    select array_agg(text::tsvector @@ query::tsquery order by n, m)
    from unnest($1::text[]) with ordinality t (text, n)
    cross join unnest($2::text[]) with ordinality q (query, m)
"""
FRAGMENTS: Final = (
    *("rate", "limit", "limits", "limited", "RATE", "ratelimit", "a", "to", "café", "cafe", "CAFÉ"),
    *(
        "get_user",
        "getUser",
        "get",
        "user",
        "#12",
        "12",
        "@ada",
        "c++",
        "c#",
        "v1.2",
        "foo.bar/baz",
    ),
    *(
        "中文",
        "中",
        "文字",
        "搜索中文",
        "ไทย",
        "ภาษาไทย",
        "서버가",
        "서버",
        "ガンダム",
        "ｶﾞ",
        "手机iPhone",
    ),
    *("हिन्दी", "السَّلام", "السلام", "Ещё", "еще", "🚀", "👩🏽\u200d💻", "\x1d", "ſtop", "stopped"),
)
"""Words that are parts, forms or beginnings of one another."""
MARKS: Final = (" ", " ", " ", "  ", ".", "-", "_", "/", "'", "\\", '"', "\n", "", " -", ' "', '" ')
SYNTAX: Final = "!&|():*<->'\\\" -=aé中\0\ud800"


def texts() -> st.SearchStrategy[str]:
    """Words that may match one another, and anything at all."""
    words = st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from(MARKS)).map("".join)
    anything = st.text(max_size=20) | st.text(SYNTAX, max_size=12)
    return st.lists(words | anything, max_size=12).map("".join)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[Query]]:
    """Texts, and queries of which many are made from what is in the texts."""
    asked = draw(st.lists(texts(), min_size=1, max_size=6))
    wanted = draw(st.lists(queries(" ".join(asked)), min_size=1, max_size=8))
    return asked, wanted


@st.composite
def queries(draw: st.DrawFn, said: str) -> Query:
    """Anything that can be asked, or something that was said, as words, phrase or exclusion."""
    if draw(st.booleans()):
        begin = draw(st.integers(0, len(said)))
        part = said[begin : begin + draw(st.integers(1, 25))]
        text = draw(st.sampled_from(('"{}"', "{}", "{}", 'limit -"{}"', "{} -limit"))).format(part)
    else:
        words = st.tuples(st.sampled_from(("", "", "", "-", '"')), st.sampled_from(FRAGMENTS))
        text = draw(st.lists(words.map("".join), max_size=3).map(" ".join) | texts())
    return draw(_parsed(text))


def _parsed(text: str) -> st.SearchStrategy[Query]:
    try:
        return st.just(parse_query(text))
    except InvalidRequest:
        return st.nothing()


@pytest.fixture
async def connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to a server under test."""
    opened = await asyncpg.connect(postgres_url)
    yield opened
    await opened.close()


async def ask(
    connection: asyncpg.Connection[Any], asked: list[str], wanted: list[Query]
) -> list[bool]:
    """What Postgres says to each query of each text."""
    vectors = [tsvector_text(text, ["=t:1"]) for text in asked]
    answer: list[bool] = await connection.fetchval(
        ASK, vectors, [query.tsquery(["=t:1"]) for query in wanted]
    )
    return answer


@settings(
    max_examples=300,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
    ],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(case=cases())
async def test_search_when_asked_anything_is_the_same_in_postgres_and_python(
    connection: asyncpg.Connection[Any], case: tuple[list[str], list[Query]]
) -> None:
    """No input makes an error; whatever is found here is found there, and highlighted."""
    asked, wanted = case
    expected = [query.matches(text) for text in asked for query in wanted]

    assert await ask(connection, asked, wanted) == expected
    for text in asked:
        for query in wanted:
            if query.matches(text):
                assert query.snippet(text).highlights


LONG: Final = {
    "words behind the positions": "x " * (PHRASE_POSITIONS_MAX - 1) + "one two three four",
    "the same word very often": "one two " * (PLACES_MAX + 50) + "one three",
    "beginnings very often": "onea two oneb two " * (PLACES_MAX + 50) + "onec three",
    "long words": "k" * 3000 + " " + "ж" * 300 + " one two",
    "more than is read": "one two " * TEXT_LENGTH_MAX + "three",
    "many words": " ".join(f"{nth:x}q" for nth in range(40_000)) + " one two",
    "many pairs": "".join(chr(0x4E00 + nth * 7919 % 20_000) for nth in range(200_000)),
    "many far letters": "".join(chr(0x20000 + nth * 7919 % 40_000) for nth in range(200_000)),
}


@pytest.mark.parametrize("name", LONG)
async def test_search_when_the_text_is_long_is_the_same_in_postgres_and_python(
    connection: asyncpg.Connection[Any], name: str
) -> None:
    """At every bound the text is still stored, and both still agree."""
    wanted = [
        parse_query(query)
        for query in (
            *('"one two"', '"two three"', '"three four"', "one/t", "one/three", "one three"),
            *("k" * 70, "k" * 64, "kkk", "жжж", "7q", "9c3fq", "-three one", "一", "丄丂", "𠀀"),
        )
    ]
    found = postings(LONG[name])
    expected = [query.matches_postings(found) for query in wanted]

    assert await ask(connection, [LONG[name]], wanted) == expected
    assert any(expected)


@pytest.mark.parametrize(
    ("bound", "name", "query"),
    [
        ("PHRASE_POSITIONS_MAX", "words behind the positions", '"three four"'),
        ("PLACES_MAX", "the same word very often", "one/three"),
    ],
)
async def test_search_when_a_bound_is_missing_in_python_is_not_the_same(
    connection: asyncpg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    name: str,
    query: str,
) -> None:
    """The control: Postgres has these bounds, so a text that passes them shows the difference."""
    wanted = parse_query(query)
    answer = await ask(connection, [LONG[name]], [wanted])
    monkeypatch.setattr(search_terms, bound, 10**9)

    assert answer == [False]
    assert wanted.matches(LONG[name])


async def test_scopes_when_asked_separate_what_is_found(
    connection: asyncpg.Connection[Any],
) -> None:
    """A scope is matched exactly, whatever is in it, and no text can pretend to be in it."""
    scopes = ["=u:ada", "=u:ad", "=u:o'neil", "=u:\\", "=u: ", "=u::*", "=u:ж & !x"]
    vectors = [tsvector_text("word", [scope]) for scope in scopes]
    vectors += [tsvector_text(f"word {scope}") for scope in scopes]
    expected = [vector == scope for vector in scopes for scope in scopes]
    expected += [False] * len(scopes) ** 2

    for asked in (scopes_tsquery, lambda each: parse_query("word").tsquery(each)):
        answer = await connection.fetchval(ASK, vectors, [asked([scope]) for scope in scopes])
        assert answer == expected
    stored = await connection.fetchval("select $1::text::tsvector::text", " ".join(vectors[:7]))
    assert all(quoted_scope(scope) in stored for scope in scopes)
