"""What is known of models by their names: how much they can read, and how they cut text to tokens.

A name is looked up by the longest entry of a table that it begins with, so that dated versions
(`gpt-4o-2024-08-06`) are their family's; what names a provider (`openai/`, `us.anthropic.`, `ft:`)
is left out. What isn't known for certain isn't in the tables: of such a model the window is None,
and its tokens are counted by another model's tokenizer and are an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeVar

import msgspec

NAME_LENGTH_MAX: Final = 200
"""Characters of a model's name that are looked at."""
LONG_CONTEXT_SUFFIX: Final = "[1m]"
"""What coding agents append to a model's name that is asked for with a window of a million."""
LONG_CONTEXT_TOKENS: Final = 1_000_000

EncodingName = Literal["o200k_base", "cl100k_base"]
_Known = TypeVar("_Known")


class Encoding(msgspec.Struct, frozen=True):
    """The tokenizer to count with. Not `exact`: it is another model's, or may be."""

    name: EncodingName
    exact: bool


WINDOWS: Final[Mapping[str, int]] = {
    # Of these OpenAI states how much of the window is left for input.
    "gpt-6-sol": 922_000,
    "gpt-6-luna": 922_000,
    "gpt-5.6": 922_000,
    "gpt-5.5": 922_000,
    "gpt-5.4": 922_000,
    "gpt-5.4-mini": 272_000,
    "gpt-5.4-nano": 272_000,
    "gpt-5.3-codex-spark": 128_000,
    "gpt-5": 272_000,
    "gpt-5-chat": 128_000,
    "gpt-5.1-chat": 128_000,
    "gpt-5.2-chat": 128_000,
    "gpt-4.5": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-4o": 128_000,
    "chatgpt-4o": 128_000,
    "gpt-4-turbo": 128_000,
    "gpt-4-1106": 128_000,
    "gpt-4-0125": 128_000,
    "gpt-4-vision": 128_000,
    "gpt-4-32k": 32_768,
    "gpt-4": 8_192,
    "gpt-3.5-turbo": 16_385,
    "gpt-3.5-turbo-0301": 4_096,
    "gpt-3.5-turbo-0613": 4_096,
    "gpt-3.5-turbo-instruct": 4_096,
    "gpt-35-turbo": 16_385,
    "gpt-oss": 131_072,
    "codex-mini": 200_000,
    "computer-use-preview": 8_192,
    "o1": 200_000,
    "o1-mini": 128_000,
    "o1-preview": 128_000,
    "o3": 200_000,
    "o4-mini": 200_000,
    "claude": 200_000,
    "claude-instant": 100_000,
    "claude-2": 100_000,
    "claude-v2": 100_000,
    "claude-2-1": 200_000,
    "claude-v2:1": 200_000,
    "claude-opus-4-6": 1_000_000,
    "claude-opus-4-7": 1_000_000,
    "claude-opus-4-8": 1_000_000,
    "claude-opus-5": 1_000_000,
    "claude-sonnet-4-6": 1_000_000,
    "claude-sonnet-5": 1_000_000,
    "claude-haiku-5-5": 1_000_000,
    "claude-fable-5": 1_000_000,
    "gemini-1.0-pro": 30_720,
    "gemini-1.5-pro": 2_097_152,
    "gemini-1.5-flash": 1_048_576,
    "gemini-2.0": 1_048_576,
    "gemini-2.5": 1_048_576,
    "gemini-2.5-flash-image": 32_768,
    "gemini-3": 1_048_576,
    "gemini-3-pro-image": 65_536,
    "gemini-4-argon": 1_048_576,
    "llama-2": 4_096,
    "llama-3": 8_192,
    "llama-3.1": 131_072,
    "llama-3.2": 131_072,
    "llama-3.3": 131_072,
    "llama3-1": 131_072,
    "llama3-2": 131_072,
    "llama3-3": 131_072,
    "mistral-large": 131_072,
    "mistral-large-2402": 32_768,
    "mistral-nemo": 131_072,
    "mixtral-8x7b": 32_768,
    "mixtral-8x22b": 65_536,
    "qwen3-coder": 262_144,
    "deepseek-chat": 131_072,
    "deepseek-reasoner": 131_072,
    "deepseek-v3": 131_072,
    "deepseek-r1": 131_072,
}
"""Tokens of input, by the beginning of a name. Some of a family read more; none reads less."""

ENCODINGS: Final[Mapping[str, Encoding]] = {
    "gpt-5": Encoding("o200k_base", exact=True),
    # Nobody has published what the later ones use.
    "gpt-5.": Encoding("o200k_base", exact=False),
    "gpt-4.5": Encoding("o200k_base", exact=True),
    "gpt-4.1": Encoding("o200k_base", exact=True),
    "gpt-4o": Encoding("o200k_base", exact=True),
    "chatgpt-4o": Encoding("o200k_base", exact=True),
    "gpt-oss": Encoding("o200k_base", exact=True),  # its own has more marks, but the same words
    "o1": Encoding("o200k_base", exact=True),
    "o3": Encoding("o200k_base", exact=True),
    "o4-mini": Encoding("o200k_base", exact=True),
    "codex-mini": Encoding("o200k_base", exact=True),  # made from o4-mini
    "gpt-4": Encoding("cl100k_base", exact=True),
    "gpt-3.5-turbo": Encoding("cl100k_base", exact=True),
    "gpt-35-turbo": Encoding("cl100k_base", exact=True),
}
"""Tokenizers by the beginning of a name: those that OpenAI publishes, and for which models."""
UNKNOWN_ENCODING: Final = Encoding("o200k_base", exact=False)
"""What tokens of all other models are estimated with."""

_VENDOR: Final = re.compile(r"(?:[a-z]{2,6}\.)?(?:anthropic|deepseek|google|meta|mistral|openai)\.")
"""How Bedrock names whose a model is: `anthropic.claude-…`, `us.meta.llama3-1-…`."""


def window_of(model: str | None) -> int | None:
    """How many tokens this model can be given to read; None when that isn't known."""
    if not model:
        return None
    name = bare_name(model)
    if name.endswith(LONG_CONTEXT_SUFFIX):
        return LONG_CONTEXT_TOKENS
    return longest_match(WINDOWS, name)


def encoding_of(model: str | None) -> Encoding:
    """The tokenizer to count this model's tokens with."""
    return (longest_match(ENCODINGS, bare_name(model)) if model else None) or UNKNOWN_ENCODING


def bare_name(model: str) -> str:
    """A model's name in lower case, without what names a provider: `openai/GPT-4o` is `gpt-4o`."""
    name = model[:NAME_LENGTH_MAX].lower().strip().rpartition("/")[2].removeprefix("ft:")
    vendor = _VENDOR.match(name)
    if vendor is not None:
        name = name[vendor.end() :]
    return name.replace(".", "-") if name.startswith("claude") else name


def longest_match(table: Mapping[str, _Known], name: str) -> _Known | None:
    """What the longest key says that `name` is, or begins with before a `-` or the like.

    A version is no beginning of a longer one: `o1` says nothing of `o10`, `gpt-4` nothing of
    `gpt-4x`. Nor is a local server's tag one (`qwen3:8b`): there the server sets the window.
    """
    for length in range(len(name), 0, -1):
        key = name[:length]
        if key in table and _ends_there(name, length):
            return table[key]
    return None


def _ends_there(name: str, length: int) -> bool:
    following = name[length : length + 1]
    if following in ("", "-", "@", ".", "["):
        return True
    if following == ":":
        return name.startswith(("gpt-", "chatgpt-", "claude", "gemini", "o1", "o3", "o4"))
    return name[length - 1] == "."
