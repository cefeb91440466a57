"""Counts of texts, content, messages and contexts, against the tokenizer's own primitives."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from typing import Any

import pytest
import toktok
from hypothesis import given
from hypothesis import strategies as st

from eventlog.compaction import tokens
from eventlog.compaction.tokens import (
    CALL_TOKENS,
    MESSAGE_TOKENS,
    NAME_TOKENS,
    OPAQUE_TOKENS,
    TokenCount,
    count_content,
    count_dicts,
    count_each,
    count_message,
    count_messages,
    count_text,
)
from eventlog.entries import Message
from eventlog.events import ToolCall
from eventlog.rendering import message_dict
from tests.factories import BEGIN
from tests.strategies import ROLES, contents, json_values, tool_calls
from tests.unit.compaction.test_images import part, png, url

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
"""Text that may hold anything that a Python string can: NUL, and halves of characters."""
WORDS = "the session of an agent returns 42 tokens; für Größe 漢字 <|endoftext|> \n\t def f(x):"


def message(content: Any = "", **fields: Any) -> Message:
    """A message with this content."""
    given = {"message_id": "m1", "seq": 1, "role": "user", "recorded_at": BEGIN, **fields}
    return Message(**given, content=content)


def length(text: str, encoding: str = "o200k_base") -> int:
    """How many ids the tokenizer makes of the text: another way to count than the tested one."""
    return len(toktok._encoding(encoding).encode_ordinary(text))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message."""
    return message(
        draw(contents() | st.lists(parts(), max_size=3)),
        role=draw(st.sampled_from(ROLES)),
        name=draw(st.none() | ANY_TEXT),
        tool_calls=draw(tool_calls()),
        tool_call_id=draw(st.none() | st.just("call_1")),
        token_count=draw(st.none() | st.integers(-5, 2**40)),
    )


def parts() -> st.SearchStrategy[Any]:
    """Parts of the kinds that are known, with anything in their fields, and whole ones."""
    kinds = st.sampled_from(
        ["text", "refusal", "image_url", "input_audio", "file", "tool_result", "thinking"]
    )
    fields = st.sampled_from(["text", "refusal", "image_url", "input_audio", "file", "content"])
    damaged = st.builds(
        lambda kind, name, value: {"type": kind, name: value}, kinds, fields, json_values()
    )
    return damaged | st.builds(lambda text: {"type": "text", "text": text}, ANY_TEXT)


@pytest.mark.parametrize(
    ("model", "encoding"), [("gpt-4o", "o200k_base"), ("gpt-4", "cl100k_base")]
)
def test_text_when_tokenizer_is_known_is_counted_exactly(model: str, encoding: str) -> None:
    """As many tokens as the model's own tokenizer makes ids of it."""
    assert count_text(WORDS, model) == TokenCount(length(WORDS, encoding), exact=True)
    assert length(WORDS, "o200k_base") != length(WORDS, "cl100k_base")  # the control


def test_text_when_short_is_what_everyone_counts() -> None:
    """A few counts that can be looked up anywhere; a mark in a text is no mark."""
    assert count_text("hello world", "gpt-4o").tokens == 2
    assert count_text("tiktoken is great!", "gpt-4").tokens == 6
    assert count_text("", "gpt-4o").tokens == 0
    assert count_text("<|endoftext|>", "gpt-4o").tokens == 7


@pytest.mark.parametrize("model", [None, "claude-opus-5", "gemini-2.5-pro", "my-deployment"])
def test_text_when_tokenizer_is_another_is_an_estimate(model: str | None) -> None:
    """Counted all the same, and marked."""
    assert count_text(WORDS, model) == TokenCount(length(WORDS), exact=False)


@given(ANY_TEXT, st.sampled_from(["gpt-4o", "gpt-4", None]))
def test_text_when_it_is_anything_is_counted(text: str, model: str | None) -> None:
    """NUL, lone surrogates, marks: never an error, nothing negative, nothing for nothing."""
    count = count_text(text, model)

    assert count.tokens >= 0
    assert (count.tokens == 0) is (text == "")


def test_text_when_it_has_half_a_character_is_an_estimate() -> None:
    """No provider takes it as it is, so nobody can say what it counts as."""
    assert count_text("a\ud800b", "gpt-4o") == TokenCount(length("a�b"), exact=False)
    assert count_text("\ud83d\ude00", "gpt-4o").tokens == length("😀")


def test_text_when_very_long_is_estimated_from_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near what it would be, and marked; with the limit lifted it is exact."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(500)]
    text = " ".join(rng.choices(words, k=200_000))
    assert len(text) > 10 * 100_000

    estimate = count_text(text, "gpt-4o")
    monkeypatch.setattr(tokens, "TEXT_LENGTH_MAX", len(text))
    monkeypatch.setattr(tokens, "_memory", tokens._Memory())
    exact = count_text(text, "gpt-4o")

    assert exact == TokenCount(length(text), exact=True)
    assert not estimate.exact
    assert abs(estimate.tokens - exact.tokens) < exact.tokens * 0.02


def test_content_when_it_has_parts_is_their_sum() -> None:
    """Text in each provider's form, images by their rule; reasoning is not read again."""
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "one two"},
        {"type": "input_text", "text": "three"},
        {"type": "output_text", "text": "four", "annotations": [{"x": "not read"}]},
        {"type": "refusal", "refusal": "I can't"},
        {"type": "thinking", "thinking": "long and deep"},
        {"type": "reasoning", "summary": [{"text": "long and deep"}]},
        part(1024, 1024),
    ]
    texts = ["one two", "three", "four", "I can't"]

    count = count_content(content, "gpt-4o")

    assert count == TokenCount(sum(length(each) for each in texts) + 765, exact=True)


def test_content_when_a_part_is_unknown_is_an_estimate() -> None:
    """Its JSON is counted, but data inside it only as one thing: nobody reads it as text."""
    unknown = {"type": "new", "value": "some words"}
    with_data = {"type": "new", "value": base64.b64encode(bytes(range(256)) * 400).decode()}
    with_words = {"type": "new", "value": "some words " * 10_000}

    assert count_content([unknown]) == TokenCount(
        length('{"type": "new", "value": "some words"}'), exact=False
    )
    assert OPAQUE_TOKENS < count_content([with_data]).tokens < OPAQUE_TOKENS + 20
    assert count_content([with_words]).tokens > 20_000  # the control: text stays text


def test_content_when_a_part_holds_others_counts_those() -> None:
    """An image in a tool's result is an image, not as much text as its file has."""
    image = {
        "type": "image",
        "source": {"type": "base64", "data": url(png(900, 900)).split(",")[1]},
    }
    result = {"type": "tool_result", "content": [{"type": "text", "text": "see"}, image]}
    nested: dict[str, Any] = {"type": "tool_result", "content": []}
    for _ in range(100_000):
        nested = {"type": "tool_result", "content": [nested]}

    assert count_content([result], "gpt-4o") == TokenCount(length("see") + 765, exact=True)
    assert not count_content([nested], "gpt-4o").exact
    while nested["content"]:  # deeper than the interpreter takes apart by itself
        nested = nested["content"].pop()


def test_content_when_it_is_sound_or_a_file_is_an_estimate() -> None:
    """By its length; without the data, as about a page."""
    data = base64.b64encode(bytes(144_000)).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": data}}
    stored = {"type": "input_file", "file_id": "f"}
    plain = {"type": "document", "source": {"type": "text", "data": "plain words"}}

    assert count_content([sound], "gpt-4o") == TokenCount(90, exact=False)
    assert count_content([sound], "gemini-2.5-pro") == TokenCount(288, exact=False)
    assert count_content([file]) == TokenCount(36_000 + length("a.pdf"), exact=False)
    assert count_content([stored]) == TokenCount(OPAQUE_TOKENS, exact=False)
    assert count_content([plain]) == TokenCount(length("plain words"), exact=False)


def test_message_when_counted_has_the_frame_of_the_chat_format() -> None:
    """Three tokens around it, one for a name, its role and texts; ids and calls as they stand."""
    plain = message("How are you?")
    named = message("How are you?", name="ada")
    calling = message(
        "", role="assistant", tool_calls=[ToolCall(id="c1", name="look", arguments='{"x": 1}')]
    )
    output = message("done", role="tool", tool_call_id="c1")

    framed = MESSAGE_TOKENS + length("user") + length("How are you?")
    assert count_message(plain, "gpt-4o") == TokenCount(framed)
    assert count_message(named, "gpt-4o") == TokenCount(framed + NAME_TOKENS + length("ada"))
    assert count_message(calling, "gpt-4o") == TokenCount(
        MESSAGE_TOKENS + length("assistant") + CALL_TOKENS + length("look") + length('{"x": 1}')
    )
    assert count_message(output, "gpt-4o") == TokenCount(
        MESSAGE_TOKENS + length("tool") + length("done") + length("c1")
    )


def test_message_when_it_has_reasoning_is_as_large_as_without() -> None:
    """Nor are metadata and the provider's own item read again."""
    bare = message("hello", role="assistant")
    full = message(
        "hello", role="assistant", reasoning=WORDS, metadata={"a": WORDS}, native={"b": WORDS}
    )

    assert count_message(full, "gpt-4o") == count_message(bare, "gpt-4o")


def test_message_when_it_states_its_tokens_counts_as_that() -> None:
    """Whoever appended it knows better; a number that can't be is none at all."""
    assert count_message(message(WORDS, token_count=5)) == TokenCount(5, exact=True)
    assert count_message(message(WORDS, token_count=-5)) == TokenCount(0, exact=True)


@given(st.lists(messages(), max_size=6), st.sampled_from(["gpt-4o", "gpt-4", "claude-3", None]))
def test_messages_when_counted_together_are_as_each_alone(
    several: list[Message], model: str | None
) -> None:
    """A context's count is the sum of its messages', whichever way it is asked for."""
    alone = [count_message(each, model) for each in several]
    context = [message_dict(each) for each in several]
    unstated = [count_message(message_without_count(each), model) for each in several]

    assert count_messages(several, model) == alone
    assert count_each(context, model) == unstated
    assert count_dicts(context, model) == sum(unstated, TokenCount(0))
    assert all(each.tokens >= 0 for each in alone)


@given(st.lists(messages(), max_size=4), messages())
def test_context_when_a_message_is_added_never_shrinks(past: list[Message], new: Message) -> None:
    """Each message takes at least its frame."""
    before = count_dicts([message_dict(each) for each in past], "gpt-4o")
    after = count_dicts([message_dict(each) for each in (*past, new)], "gpt-4o")

    assert after.tokens >= before.tokens + MESSAGE_TOKENS


def test_context_when_it_comes_from_elsewhere_is_counted() -> None:
    """Null content, calls of another form, things that are no JSON: callers' dicts may hold it."""
    itself: dict[str, Any] = {"type": "new"}
    itself["self"] = itself
    context: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"input": "x"}}, 5]},
        {"role": "user", "content": ["text", 5, b"bytes", itself]},
        {"role": "user", "content": {"text": "x"}},
        {},
    ]

    assert all(each.tokens >= MESSAGE_TOKENS for each in count_each(context, "gpt-4o"))


def test_counts_when_asked_for_again_need_no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer texts are counted once; without the memory they are counted every time."""
    counted: list[str] = []

    def watched(texts: list[str], encoding: str, *, threads: int) -> list[int]:
        counted.extend(text for text in texts if len(text) > 1_000)
        counts: list[int] = toktok.batch_count(texts, encoding, threads=threads)
        return counts

    monkeypatch.setattr(tokens, "batch_count", watched)
    monkeypatch.setattr(tokens, "_memory", tokens._Memory())
    context = [{"role": "user", "content": f"{number} {WORDS * 20}"} for number in range(10)]

    first = count_dicts(context, "gpt-4o")
    again = count_dicts([dict(each) for each in context], "gpt-4o")
    assert (first, len(counted)) == (again, 10)
    count_dicts(context, "gpt-4")  # another tokenizer's counts are others
    assert len(counted) == 20

    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 0)
    monkeypatch.setattr(tokens, "_memory", tokens._Memory())
    count_dicts(context, "gpt-4o")
    count_dicts(context, "gpt-4o")
    assert len(counted) == 40


def test_memory_when_full_forgets_the_one_unused_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bounded, and holds no text."""
    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 2)
    memory = tokens._Memory()
    one, two, three = (name * 100 for name in "abc")

    memory.put("o200k_base", [(one, TokenCount(1)), (two, TokenCount(2))])
    memory.get("o200k_base", [one])
    memory.put("o200k_base", [(three, TokenCount(3))])

    assert memory.get("o200k_base", [one, two, three]) == [TokenCount(1), None, TokenCount(3)]
    assert not any(text in repr(vars(memory)) for text in (one, two, three))


@pytest.mark.parametrize("hidden", [True, False])
def test_counts_when_no_tokenizer_is_installed_are_estimates(hidden: bool) -> None:
    """A token is then taken for four bytes; with the tokenizer the same program counts exactly."""
    program = "\n".join(
        [
            "import sys",
            "sys.modules['toktok'] = None" if hidden else "",
            "from eventlog.compaction.tokens import count_text",
            "for text in ('hello world', '漢字', 'a\\ud800', ''):",
            "    print(count_text(text, 'gpt-4o').tokens, count_text(text, 'gpt-4o').exact)",
        ]
    )

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split("\n")

    if hidden:
        assert said[:4] == ["3 False", "2 False", "1 False", "0 False"]
    else:
        assert said[:2] == ["2 True", f"{length('漢字')} True"]


def message_without_count(message: Message) -> Message:
    """The same message without a number of tokens that it states."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return Message(**{**fields, "token_count": None})
