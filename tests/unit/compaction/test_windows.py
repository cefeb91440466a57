"""What is known of models by their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.compaction.windows import (
    ENCODINGS,
    WINDOWS,
    Encoding,
    encoding_of,
    window_of,
)


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o", 128_000),
        ("gpt-4o-2024-08-06", 128_000),
        ("openai/gpt-4o", 128_000),
        ("openrouter/openai/gpt-4o:extended", 128_000),
        ("ft:gpt-4o-mini-2024-07-18:org::abc", 128_000),
        ("GPT-4.1-Mini", 1_047_576),
        ("gpt-4-32k-0613", 32_768),
        ("gpt-4-0613", 8_192),
        ("gpt-5-mini", 272_000),
        ("gpt-5.1-codex-max", 272_000),
        ("gpt-5-chat-latest", 128_000),
        ("gpt-5.4-pro", 922_000),
        ("gpt-5.4-mini-2026-03-17", 272_000),
        ("o3-mini", 200_000),
        ("anthropic/claude-sonnet-4.5", 200_000),
        ("anthropic/claude-opus-4.6", 1_000_000),
        ("claude-opus-4-20250514", 200_000),
        ("claude-opus-4@20250514", 200_000),
        ("claude-sonnet-4-5[1m]", 1_000_000),
        ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", 200_000),
        ("anthropic.claude-v2:1", 200_000),
        ("anthropic.claude-v2", 100_000),
        ("models/gemini-2.5-pro", 1_048_576),
        ("gemini-1.5-pro-002", 2_097_152),
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072),
        ("us.meta.llama3-3-70b-instruct-v1:0", 131_072),
        ("deepseek-ai/DeepSeek-V3.1", 131_072),
    ],
)
def test_window_when_family_is_known_is_that_of_the_longest_match(model: str, tokens: int) -> None:
    """Dates, providers and upper case make no difference; a variant counts before its family."""
    assert window_of(model) == tokens


@pytest.mark.parametrize(
    "model",
    [None, "", "/", "o10", "gpt-4x", "gpt-7", "llama3.1:8b", "deepseek-r1:7b", "my-deployment"],
)
def test_window_when_name_only_looks_known_is_none(model: str | None) -> None:
    """A longer version isn't a shorter one, and a local server sets its own window."""
    assert window_of(model) is None


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", Encoding("o200k_base", exact=True)),
        ("openai/o3", Encoding("o200k_base", exact=True)),
        ("gpt-5-nano", Encoding("o200k_base", exact=True)),
        ("gpt-oss-120b", Encoding("o200k_base", exact=True)),
        ("ft:gpt-3.5-turbo-0125:org", Encoding("cl100k_base", exact=True)),
        ("gpt-4-turbo", Encoding("cl100k_base", exact=True)),
        ("gpt-4.1", Encoding("o200k_base", exact=True)),
        ("gpt-5.6-sol", Encoding("o200k_base", exact=False)),
        ("gpt-6-sol", Encoding("o200k_base", exact=False)),
        ("claude-opus-5", Encoding("o200k_base", exact=False)),
        ("my-deployment", Encoding("o200k_base", exact=False)),
        (None, Encoding("o200k_base", exact=False)),
    ],
)
def test_encoding_when_tokenizer_is_not_published_is_an_estimate(
    model: str | None, encoding: Encoding
) -> None:
    """Only where OpenAI says which tokenizer a model uses is a count exact."""
    assert encoding_of(model) == encoding


def test_names_when_in_a_table_find_themselves() -> None:
    """Every entry can be reached: none is written in a way that no name is looked up by."""
    assert [name for name in WINDOWS if window_of(name) != WINDOWS[name]] == []
    versions = {name: name + "9" if name.endswith(".") else name for name in ENCODINGS}
    assert [each for each in ENCODINGS if encoding_of(versions[each]) != ENCODINGS[each]] == []


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_names_when_they_are_any_text_are_looked_up(name: str) -> None:
    """A model's name comes from outside: nothing in it raises."""
    assert (window_of(name) or 1) > 0
    assert encoding_of(name).name in ("o200k_base", "cl100k_base")
