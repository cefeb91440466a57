"""What must be true of an answer before its text is used.

An endpoint can answer 200 and mean something else: a web page, an object without choices, half a
sentence because it stopped at its limit, a refusal. The `openai` package builds its types from all
of those without a word, so the bytes are decoded here, with types that are checked, and one answer
leaves this module: a text that a model finished of its own accord.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, NoReturn, TypeVar

import msgspec

from eventlog.compaction.summarizer import FailureKind, SummaryFailed
from eventlog.events import Usage

Api = Literal["chat", "responses"]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Decoded = TypeVar("_Decoded")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote, checked."""

    text: str
    usage: Usage | None = None
    """As reported; None: it was not, or not in a way that makes sense."""


# --- what the two APIs send, as far as it matters ------------------------------------------------


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _ChatUsage(msgspec.Struct, frozen=True):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _ResponsesUsage(msgspec.Struct, frozen=True):
    input_tokens: _Count
    output_tokens: _Count
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")
    usage: msgspec.Raw = msgspec.Raw(b"null")


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct, frozen=True):
    type: str
    content: list[_Part] | None = None


class _Reason(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Error(msgspec.Struct, frozen=True):
    code: str | int | None = None


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None
    output: list[_Item] | None = None
    incomplete_details: _Reason | None = None
    error: _Error | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


_completions: Final = msgspec.json.Decoder(_Completion)
_responses: Final = msgspec.json.Decoder(_Response)
_chat_usage: Final = msgspec.json.Decoder(_ChatUsage | None)
_responses_usage: Final = msgspec.json.Decoder(_ResponsesUsage | None)

STOPPED_EARLY: Final[dict[str | None, tuple[FailureKind, str]]] = {
    "length": ("truncated", "the model stopped at its limit before it was done"),
    "max_output_tokens": ("truncated", "the model stopped at its limit before it was done"),
    "content_filter": ("filtered", "a content filter of the endpoint stopped the answer"),
}
"""What the APIs say when an answer ended before its end."""


def check_answer(body: bytes, api: Api) -> Answer:
    """The answer in the body of a 200. Raises `SummaryFailed` with the usage that it reported."""
    return _check_completion(body) if api == "chat" else _check_response(body)


def _check_completion(body: bytes) -> Answer:
    completion = _decode(body, _completions)
    usage = _usage_of_chat(completion.usage)
    if not completion.choices:
        if bytes(completion.error) != b"null":
            _fail("server_error", "the endpoint answered 200 with an error in the body", usage)
        _fail("bad_answer", "the answer holds no choices", usage)
    choice = completion.choices[0]
    message = choice.message
    if message.refusal:
        _fail("refused", "the model refused to summarise", usage)
    if choice.finish_reason in STOPPED_EARLY:
        _fail(*STOPPED_EARLY[choice.finish_reason], usage)
    if message.tool_calls:
        _fail("bad_answer", "the model called a tool, though it was given none", usage)
    if choice.finish_reason != "stop":
        _fail("bad_answer", "the answer doesn't say that the model was done", usage)
    return _finished(message.content, usage)


def _check_response(body: bytes) -> Answer:
    response = _decode(body, _responses)
    usage = _usage_of_responses(response.usage)
    output = response.output or []
    parts = [part for item in output if item.type == "message" for part in item.content or ()]
    if any(part.type == "refusal" for part in parts):
        _fail("refused", "the model refused to summarise", usage)
    if response.status == "incomplete":
        reason = response.incomplete_details.reason if response.incomplete_details else None
        unknown: tuple[FailureKind, str] = ("bad_answer", "the answer is incomplete")
        _fail(*STOPPED_EARLY.get(reason, unknown), usage)
    if response.error is not None:
        kind: FailureKind = (
            "rate_limited" if response.error.code == "rate_limit_exceeded" else "server_error"
        )
        _fail(kind, "the endpoint answered 200 with an error in the body", usage)
    if any(item.type.endswith("_call") for item in output):
        _fail("bad_answer", "the model called a tool, though it was given none", usage)
    if response.status != "completed":
        _fail("bad_answer", "the answer doesn't say that the model was done", usage)
    if not parts:
        _fail("bad_answer", "the answer holds no message", usage)
    texts = [part.text or "" for part in parts if part.type == "output_text"]
    return _finished("".join(texts), usage)


_THOUGHT: Final = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""What local models think aloud before they answer. It is no part of the answer."""


def _finished(text: str | None, usage: Usage | None) -> Answer:
    """The text without a block of thoughts in front, and without white space around it."""
    text = _THOUGHT.sub("", text or "", count=1).strip()
    if not text:
        _fail("empty", "the answer holds no text", usage)
    if text.startswith("<think>"):
        _fail("bad_answer", "the model thought aloud, and came to no answer", usage)
    return Answer(text=text, usage=usage)


def _decode(body: bytes, decoder: msgspec.json.Decoder[_Decoded]) -> _Decoded:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:  # says types and a path, never a value
        raise SummaryFailed("bad_answer", f"the answer is not of this API: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SummaryFailed("bad_answer", "the answer is no JSON document") from None


def _usage_of_chat(raw: msgspec.Raw) -> Usage | None:
    try:
        usage = _chat_usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):  # what it cost is not worth an answer
        return None
    if usage is None:
        return None
    return _usage(
        (usage.prompt_tokens, usage.completion_tokens),
        (usage.prompt_tokens_details, usage.completion_tokens_details),
    )


def _usage_of_responses(raw: msgspec.Raw) -> Usage | None:
    try:
        usage = _responses_usage.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    if usage is None:
        return None
    return _usage(
        (usage.input_tokens, usage.output_tokens),
        (usage.input_tokens_details, usage.output_tokens_details),
    )


def _usage(counts: tuple[int, int], details: tuple[_Details | None, _Details | None]) -> Usage:
    return Usage(
        input_tokens=counts[0],
        output_tokens=counts[1],
        cached_tokens=(details[0] and details[0].cached_tokens) or 0,
        reasoning_tokens=(details[1] and details[1].reasoning_tokens) or 0,
    )


def _fail(kind: FailureKind, reason: str, usage: Usage | None) -> NoReturn:
    raise SummaryFailed(kind, reason, usage=usage)
