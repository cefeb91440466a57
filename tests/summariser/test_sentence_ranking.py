"""What a sentence is, which words are identifiers, and which sentences are central."""

from __future__ import annotations

import pytest

from workers.summariser import ranking
from workers.summariser.identifiers import identifiers_of, is_identifier
from workers.summariser.ranking import lexemes_of, overlap, rank
from workers.summariser.sentences import CLIPPED, clip, sentences_of

TEXTS = [
    "The relay copies rows from Postgres to Redis.",
    "Redis lost all rows when the machine went down.",
    "The relay found the gap and copied rows to Redis again.",
    "Lunch was pasta.",
    "Rows in Postgres were never lost.",
]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Is three?", ["One is here.", "Two is there!"]),
        (
            'She said: "Stop it now." Then she left us.',
            ['She said: "Stop it now."', "Then she left us."],
        ),
        ("Version 3.5 of it works, e.g. this one.", ["Version 3.5 of it works, e.g. this one."]),
        ("- **Bold** words of a list\n\n## A heading with words", ["Bold words of a list"]),
        ("系统启动了。日志正常！好吗？", ["系统启动了。", "日志正常！"]),
        ("「終わりました。」と言いました。", ["「終わりました。」", "と言いました。"]),
        ("word " * 3 + "\u2029next line is here", ["word word word", "next line is here"]),
        ("<note>Read the manual first.</note>", ["Read the manual first."]),
    ],
)
def test_sentences_when_split_end_where_people_see_an_end(text: str, sentences: list[str]) -> None:
    """Not at a point within a number or an abbreviation; at the stops of other scripts."""
    assert list(sentences_of(text))[: len(sentences)] == sentences


@pytest.mark.parametrize(
    "text", ["", "   ", "OK.", "x = [1, 2, 3]", "/usr/bin/env", "----", "1. 2."]
)
def test_sentences_when_there_is_no_prose_are_none(text: str) -> None:
    """Blanks, a word, code, a path and numbers say nothing by themselves."""
    assert list(sentences_of(text)) == []


def test_clip_when_in_the_middle_of_a_character_leaves_it_out() -> None:
    """The bound is in bytes, and what is left is whole characters."""
    assert clip("数据库" * 10, 20) == "数据库数据" + CLIPPED
    assert clip("short enough", 12) == "short enough"


@pytest.mark.parametrize(
    "word",
    [
        "/srv/app/config.toml",
        "~/notes.md",
        "./run.sh",
        "src/eventlog/log.py:120",
        "a/b/c",
        "C:\\Users\\ada\\file.txt",
        "config.toml",
        "https://example.com/a?page=2",
        "postgresql://localhost:5432/test",
        "018f0000-0000-7000-8000-000000000001",
        "d5b2d44",
        "9e107d9d372bb6826bd81d3542a419d6",
        "ENT-98",
        "#1234",
        "eventlog/eventlog#12",
        "compaction_model",
        "EVENTLOG_REDIS_URL",
    ],
)
def test_word_when_it_must_be_known_to_the_letter_is_an_identifier(word: str) -> None:
    """Paths, files, addresses, hashes, tickets, names."""
    assert is_identifier(word)


@pytest.mark.parametrize(
    "word",
    [
        "and/or",
        "24/7",
        "hello",
        "1234567",
        "facade",
        "__",
        "don't",
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "postgresql://ada:secret@localhost/test",
        "https://example.com/a?access_token=abc",
        "a_" * 81,
    ],
)
def test_word_when_ordinary_or_secret_is_no_identifier(word: str) -> None:
    """Words of a language are none, and no summary repeats what may be a key or a password."""
    assert word not in list(identifiers_of(f"See {word} there"))


def test_identifiers_when_in_a_sentence_come_without_its_punctuation() -> None:
    """Brackets, quotation marks and the stop at the end are not part of them."""
    text = 'Open "/srv/a.toml", then (see https://example.com/x/y). Was it `my_table`?'

    assert list(identifiers_of(text)) == ["/srv/a.toml", "https://example.com/x/y", "my_table"]
    assert list(identifiers_of(text, names=False)) == ["/srv/a.toml", "https://example.com/x/y"]


def test_rank_when_compared_with_pagerank_gives_its_numbers() -> None:
    """The library's answer is that of PageRank worked out by hand over the same graph."""
    lexemes = [lexemes_of(text) for text in TEXTS]
    priors = [1.0, 2.0, 1.0, 1.0, 0.5]
    graph = ranking._neighbours(lexemes)
    numbers = [0.0] * len(TEXTS)
    for _ in range(200):
        received = [(1 - ranking.DAMPING) * prior / sum(priors) for prior in priors]
        for place, similar in enumerate(graph):
            for other, weight in similar.items():
                share = weight / sum(similar.values())
                received[other] += ranking.DAMPING * numbers[place] * share
        numbers = received

    assert rank(lexemes, priors) == pytest.approx(numbers, abs=1e-4)


def test_rank_when_a_sentence_is_about_something_else_puts_it_last() -> None:
    """What has no word in common with the rest stands for nothing but itself."""
    standing = rank([lexemes_of(text) for text in TEXTS], [1.0] * len(TEXTS))

    assert min(range(len(TEXTS)), key=standing.__getitem__) == 3


def test_rank_when_there_is_nothing_or_nothing_in_common_still_answers() -> None:
    """No sentence, one without words, and sentences without a word in common."""
    assert rank([], []) == []
    assert rank([{}], [1.0]) == pytest.approx([0.15])
    assert len(set(rank([{"a": 1}, {"b": 1}], [1.0, 1.0]))) == 1


def test_overlap_when_the_shorter_is_in_the_longer_is_whole() -> None:
    """It is the share of the shorter one's words."""
    assert overlap({"a": 1}, {"a": 2, "b": 1}) == 1.0
    assert overlap({"a": 1, "c": 1}, {"a": 2, "b": 1}) == 0.5
    assert overlap({}, {"a": 1}) == 0.0
