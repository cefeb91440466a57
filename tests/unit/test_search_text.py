"""What of a message is searched, and what isn't."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.entries import Message
from eventlog.events import Content, ToolCall
from eventlog.search.query import parse_query
from eventlog.search.terms import SEPARATOR, TEXT_LENGTH_MAX, postings
from eventlog.search.text import searchable_text
from tests.factories import BEGIN
from tests.strategies import contents, json_values, tool_calls


def message(content: Content = "", **fields: Any) -> Message:
    """A message with this content."""
    return Message(
        **{"message_id": "m1", "seq": 1, "role": "assistant", "recorded_at": BEGIN, **fields},
        content=content,
    )


def found(message: Message) -> list[str]:
    """The texts that are searched."""
    return searchable_text(message).split(f"\n{SEPARATOR}\n")


def test_text_when_content_is_text_is_the_content() -> None:
    """As it was written, so that snippets show it so."""
    assert found(message("  Rate\n limits ")) == ["  Rate\n limits "]
    assert found(message('{"raw": "a\\nb"}')) == ['{"raw": "a\\nb"}']
    assert found(message("", name="ada")) == ["ada"]
    assert found(message("")) == [""]


def test_text_when_content_has_parts_is_what_is_for_reading() -> None:
    """Texts of any provider's parts; no addresses of images, no data, no thoughts."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "one"},
        {"type": "input_text", "text": {"value": "two", "annotations": []}},
        {"type": "refusal", "refusal": "three"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "text": "no"}},
        {
            "type": "input_audio",
            "input_audio": {"data": "no", "format": "wav"},
            "transcript": "four",
        },
        {"type": "file", "file": {"filename": "five.pdf", "file_data": "no"}},
        {"type": "tool_result", "tool_use_id": "no", "content": [{"type": "text", "text": "six"}]},
        {"type": "tool_result", "content": "seven"},
        {"type": "tool_use", "id": "no", "name": "eight", "input": {"city": "Köln", "days": [3]}},
        {"type": "thinking", "thinking": "no", "text": "no"},
        {"type": "image", "source": {"type": "base64", "data": "no"}},
        {"text": 5, "content": None},
    ]

    assert found(message(parts)) == [
        *("one", "two", "three", "four", "five.pdf", "six", "seven", "eight"),
        "city: Köln\ndays: 3",
    ]


def test_text_when_tools_are_called_has_names_and_arguments() -> None:
    """JSON is read: its escapes are what they stand for; what isn't JSON yet is taken as it is."""
    calls = [
        ToolCall(
            id="no", name="run_code", arguments='{"code": "import os\\nprint(\\"\\u00fc\\")"}'
        ),
        ToolCall(id="no", name="look_up", arguments='{"unfini'),
        ToolCall(id="no", name="now"),
    ]

    assert found(message("", tool_calls=calls)) == [
        *("run_code", 'code: import os\nprint("ü")', "look_up", '{"unfini', "now")
    ]


def test_text_when_a_tool_answered_with_json_is_its_keys_and_values() -> None:
    """What a tool found is found, without the escapes."""
    content = '[{"title": "a\\tb", "ok": true, "none": null, "deep": {"x": [1.5, "y"]}}]'

    assert found(message(content, role="tool")) == ["title: a\tb\nok: True\nnone\ndeep: x: 1.5\ny"]
    assert found(message("[not json", role="tool")) == ["[not json"]


def test_text_when_asked_leaves_out_what_nobody_said() -> None:
    """Reasoning, ids, metadata and the native item are not searched."""
    secret = message(
        "shown",
        reasoning="no",
        native={"text": "no"},
        metadata={"text": "no"},
        model="no",
        tool_call_id="no",
        agent="no",
    )

    assert found(secret) == ["shown"]


def test_text_when_it_has_base64_has_what_is_around_it() -> None:
    """An image pasted into a text neither fills the index nor hides what follows."""
    image = "iVBORw0KGgo/+AAA" * 30_000
    text = searchable_text(message(f"see data:image/png;base64,{image}== here"))

    assert text == "see data:image/png;base64, here"


def test_text_when_long_ends_where_search_does() -> None:
    """A message of ten megabytes is not copied."""
    assert len(searchable_text(message("word " * 2_000_000))) == TEXT_LENGTH_MAX
    many: list[dict[str, Any]] = [{"type": "text", "text": "word " * 1000}] * 2000
    assert len(searchable_text(message(many))) <= TEXT_LENGTH_MAX + 5000


def test_text_when_of_several_parts_has_no_phrase_across_them() -> None:
    """The end of one part and the beginning of the next weren't said in a row."""
    text = searchable_text(message([{"text": "rate"}, {"text": "limit"}]))

    assert parse_query("rate limit").matches(text)
    assert not parse_query('"rate limit"').matches(text)
    assert parse_query("rate limit").snippet(text).text == "rate limit"


@pytest.mark.parametrize("depth", [20, 2000])
def test_text_when_nested_too_deep_is_left_out(depth: int) -> None:
    """Depth costs nothing, whoever made it."""
    part: Any = "deep"
    for _ in range(depth):
        part = {"content": [part]}
    arguments = "[" * depth + "1" + "]" * depth
    call = ToolCall(id="c", name="tool", arguments=arguments)

    text = searchable_text(message([{"text": "flat"}, part], tool_calls=[call]))
    assert {"flat", "tool"} <= set(postings(text))
    assert "deep" not in postings(text)


@given(contents(), tool_calls(), json_values().map(lambda value: [{"content": value}]))
def test_text_when_made_of_any_message_is_text(
    content: Content, calls: list[ToolCall], parts: Content
) -> None:
    """Whatever a provider put into a message, it can be searched."""
    for each in (content, parts):
        for role in ("tool", "assistant"):
            text = searchable_text(message(each, tool_calls=calls, role=role))
            assert len(text) <= TEXT_LENGTH_MAX
            postings(text)


@given(st.text(max_size=50))
def test_text_when_a_tool_answers_anything_is_text(content: str) -> None:
    """What only looks like JSON is text."""
    assert searchable_text(message("{" + content, role="tool"))
