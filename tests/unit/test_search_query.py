"""Queries: what they find, what they exclude, and what is shown of a text that was found."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eventlog.errors import InvalidRequest
from eventlog.search.query import QUERY_LENGTH_MAX, Query, parse_query
from eventlog.search.snippets import SNIPPET_LENGTH_MIN, Snippet

TEXT = (
    "Please call get_user_name() before getUserById, see src/eventlog/search_text.py:12 and "
    "https://example.com/docs/rate-limits?x=1 for limited caching of policies; issue #1234, "
    "C++ v1.2.3 and error404. Write to ada@example.com. GitHub Actions: --max-rows 1,000,000."
)
FINDS = [
    (TEXT, "get_user_name", "get_user_name"),
    (TEXT, "getUserName", "get_user_name"),
    (TEXT, "get_user_by_id", "getUserById"),
    (TEXT, "get_user", "get_user"),
    (TEXT, '"get_user_name"', "get_user_name"),
    (TEXT, "search_text.py", "search_text.py"),
    (TEXT, "eventlog/search", "eventlog/search"),
    (TEXT, "https://example.com/docs", "https://example.com/docs"),
    (TEXT, "ada@example.com", "ada@example.com"),
    (TEXT, '"github actions"', "GitHub Actions"),
    (TEXT, "hub", "GitHub"),
    (TEXT, "--max-rows", "max-rows"),
    (TEXT, "1,000,000", "1,000,000"),
    (TEXT, "1.2.3", "v1.2.3"),
    (TEXT, "v1.2", "v1.2"),
    (TEXT, "#1234", "#1234"),
    (TEXT, "404", "error404"),
    (TEXT, "c++", "C++"),
    (TEXT, "limit -draft", "limits"),
    (TEXT, "limits", "limits"),
    (TEXT, "cache", "caching"),
    (TEXT, "policy", "policies"),
    (TEXT, "plea", "Please"),
    ("they stopped", "stopping", "stopped"),
    ("run it", "running", "run"),
    ("boxes of glass", "box glasses", "boxes"),
    ("Grüße aus München", "munchen", "München"),
    ("Grüße aus München", "MÜNCHEN grusse", "München"),
    ("Grüße aus München", '"münchen"', "München"),
    ("Ещё один поиск", "еще поис", "Ещё"),
    ("我们喜欢在中文里搜索单词。", "中文", "中文"),
    ("我们喜欢在中文里搜索单词。", "搜索单词", "搜索单词"),
    ("我们喜欢在中文里搜索单词。", "词", "词"),
    ("東京タワーに行きました", "タワーに", "タワーに"),
    ("ｶﾞﾝﾀﾞﾑ", "ガンダム", "ｶﾞﾝﾀﾞﾑ"),
    ("ฉันชอบภาษาไทย", "ภาษา", "ภาษา"),
    ("السَّلام عليكم", "السلام", "السَّلام"),
    ("हिन्दी में खोज", "हिन्दी", "हिन्दी"),
    ("주문서버에서 오류가 났다", "서버", "서버"),
    ("주문서버에서 오류가 났다", '"서버에서 오류"', "서버에서 오류"),
    ("ship it 🚀 👩🏽\u200d💻", "👩", "👩🏽\u200d💻"),
    ('{"name": "ada"}', '{"name":"ada"}', 'name": "ada'),
]
FINDS_NOT = [
    (TEXT, '"rate limit"'),
    (TEXT, '"limits rate"'),
    (TEXT, "limit -caching"),
    (TEXT, 'limit -"rate limits"'),
    (TEXT, "limit zebra"),
    (TEXT, "imits"),
    (TEXT, "#12345"),
    (TEXT, "@1234"),
    (TEXT, "C#"),
    (TEXT, "user_get"),
    (TEXT, "limit OR zebra"),
    ("of a", "o"),
    ("offer two", "of two"),
    ("status", "stat -status"),
    ("cafe", '"café"'),
    ("中国文化", "中文"),
    ("string", "str ing"),
]
WORDS = ["rate", "limits", "Ratelimit", "get_user", "中文", "ไทย", "Café", "ﬁx", "a", "#7", "🚀"]
BETWEEN = st.sampled_from([" ", "  ", "\n", ".", "", "-", "\0", "\u202e", " — ", "x" * 50])
TEXTS = st.text(max_size=80) | st.lists(
    st.tuples(st.sampled_from(WORDS) | st.text(max_size=4), BETWEEN), max_size=40
).map(lambda parts: "".join(word + between for word, between in parts))


def shown(snippet: Snippet) -> list[str]:
    """What is highlighted."""
    return [snippet.text[start:end] for start, end in snippet.highlights]


@pytest.mark.parametrize(("text", "query", "highlight"), FINDS)
def test_query_when_it_fits_finds_and_highlights(text: str, query: str, highlight: str) -> None:
    """What someone would type finds the text, and shows where."""
    parsed = parse_query(query)

    assert parsed.matches(text)
    assert highlight in shown(parsed.snippet(text, 1000))
    assert highlight in shown(parsed.snippet("before " * 50 + text + " behind" * 50, 600))


@pytest.mark.parametrize(("text", "query"), FINDS_NOT)
def test_query_when_something_is_missing_finds_nothing(text: str, query: str) -> None:
    """All words, in order within quotes, without those that are excluded."""
    assert not parse_query(query).matches(text)


def test_tsquery_when_written_begins_with_the_scopes() -> None:
    """The literal is what a person can read."""
    assert (
        parse_query('"Rate limit" café to -x').tsquery(["=u:o'neil"])
        == "'=u:o''neil' & (('rate' <1> 'limit')) & ('cafe':*) & ('to') & !('x')"
    )


@pytest.mark.parametrize("query", ["", "  ", "-a", '"', '""', '-"a b"', "!&|():*<->'\\", "-", "\0"])
def test_query_when_it_asks_for_nothing_is_refused(query: str) -> None:
    """What excludes only, or has no word at all, would find everything."""
    with pytest.raises(InvalidRequest, match="no word to search for"):
        parse_query(query)


def test_query_when_too_long_is_refused() -> None:
    """A pasted page isn't a query."""
    parse_query("a" * QUERY_LENGTH_MAX)
    with pytest.raises(InvalidRequest, match="at most 500 characters, not 501"):
        parse_query("a" * (QUERY_LENGTH_MAX + 1))


def query_or_none(text: str) -> Query | None:
    """The query, if it asks for anything."""
    try:
        return parse_query(text)
    except InvalidRequest:
        return None


@given(TEXTS, st.text(max_size=20) | st.sampled_from(WORDS), st.integers(SNIPPET_LENGTH_MIN, 90))
def test_snippet_when_made_of_anything_is_harmless_and_highlights(
    text: str, words: str, length_max: int
) -> None:
    """It fits, has no control character, and highlights something exactly if the text is found."""
    query = query_or_none(words)
    assume(query is not None)
    assert query is not None
    snippet = query.snippet(text, length_max)

    assert len(snippet.text) <= length_max
    assert "  " not in snippet.text
    assert not {"Cc", "Cs"} & {unicodedata.category(each) for each in snippet.text}
    assert not set("\u202e\u2066\u200f") & set(snippet.text)
    ends = [0, *(end for _, end in snippet.highlights)]
    for end, (start, its_end) in zip(ends, snippet.highlights, strict=False):
        assert end <= start < its_end <= len(snippet.text)
    if query.matches(text):
        assert snippet.highlights


@given(
    st.lists(st.sampled_from(["one", "limit", "limits", "rate", "中文字", "x" * 20]), max_size=60),
    st.sampled_from(["limit", "rate", '"rate limit"', "中文", '"one 中文字 one"']),
)
def test_highlights_when_searched_match_the_query(words: list[str], written: str) -> None:
    """Each highlighted part is found by the query on its own, and words aren't cut."""
    query = parse_query(written)
    snippet = query.snippet(" ".join(words), 80)

    for part in shown(snippet):
        assert query.matches(part)
    for word in snippet.text.strip("…").split():
        assert word in words or word in "中文字"


def test_snippet_when_the_terms_are_apart_shows_the_window_with_most() -> None:
    """Not the first hit, but the place where most of what was searched is together."""
    text = "limit " + "filler " * 60 + "the rate\n\tlimit\x1b[0m of requests " + "filler " * 60
    snippet = parse_query("rate limit requests").snippet(text, 80)

    assert snippet.text == (
        "…filler the rate limit [0m of requests filler filler filler filler filler…"
    )
    assert shown(snippet) == ["rate", "limit", "requests"]


def test_snippet_when_nothing_is_found_is_the_beginning() -> None:
    """A text that is shown for another reason still shows something."""
    assert parse_query("zebra").snippet("short") == Snippet("short")
    assert parse_query("zebra").snippet("word " * 10, 20) == Snippet("word word word…")
    assert parse_query("zebra").snippet("") == Snippet("")


def test_snippet_when_the_phrase_is_longer_than_it_shows_its_beginning() -> None:
    """What doesn't fit is cut, the highlight with it."""
    snippet = parse_query('"' + "word " * 20 + '"').snippet("word " * 40, 30)

    assert len(snippet.text) <= 30
    assert shown(snippet) == [snippet.text.strip("…")]


def test_snippet_when_too_short_is_refused() -> None:
    """Fewer characters than a word has show nothing."""
    with pytest.raises(InvalidRequest, match="ask for 20 or more"):
        parse_query("a").snippet("a", 19)
