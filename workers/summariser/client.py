"""One request to a model: of either of OpenAI's APIs, through the `openai` package.

The package retries by itself, waits for each byte anew, and reads an answer of any size. Here a
request is sent once; the whole answer must come within one deadline; reading stops at
`ANSWER_BYTES_MAX`, in errors as well; a redirect is not followed, because the conversation goes
nowhere but where the settings say. Whatever happens is an `Answer` or a `SummaryFailed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpx2
import msgspec
import openai

from eventlog.compaction.summarizer import SummaryFailed
from eventlog.errors import InvalidSetting
from workers.summariser.answers import Answer, Api, check_answer
from workers.summariser.refusals import lost, refused

ANSWER_BYTES_MAX: Final = 1024 * 1024
"""A larger answer is cut off and counts as `bad_answer`; summaries have a few kilobytes."""
NO_KEY: Final = "none"
"""Sent to an endpoint of one's own that asks for no key: the package insists on having some."""
KIND_LENGTH_MAX: Final = 60
"""Characters of a content type that are repeated to people."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is asked: what it is to do, and the quoted data that it is to do it with."""

    system: str
    user: str
    answer_tokens_max: int
    """Where the model is stopped, thoughts included: a bound of the cost, not the length asked."""


class ModelClient:
    """Asks one model of one endpoint. Any number of questions may be under way at once."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None = None,
        key: str | None = None,
        api: Api = "chat",
        timeout_seconds: float = 120.0,
    ) -> None:
        _check_key(key)
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InvalidSetting(
                "EVENTLOG_COMPACTION_BASE_URL must begin with http:// or https://, "
                "like http://127.0.0.1:8080/v1"
            )
        self.model = model
        self._api: Api = api
        self._timeout_seconds = timeout_seconds
        try:
            self._client = openai.AsyncOpenAI(
                api_key=key or NO_KEY,
                base_url=base_url,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(
                    timeout=timeout_seconds,
                    follow_redirects=False,
                    # What was packed has no size that could be checked before it is unpacked.
                    headers={"accept-encoding": "identity"},
                    event_hooks={"response": [_limit]},
                ),
            )
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError):
            raise InvalidSetting(
                "EVENTLOG_COMPACTION_BASE_URL (or OPENAI_BASE_URL) is no URL that can be used"
            ) from None

    async def ask(self, question: Question) -> Answer:
        """Send one request, and check its answer. Raises `SummaryFailed`, with `calls` being 1."""
        try:
            answer = check_answer(await self._send(question), self._api)
            if answer.usage and answer.usage.output_tokens >= question.answer_tokens_max:
                # Some endpoints (llama.cpp's responses) call an answer that they cut completed.
                raise SummaryFailed(
                    "truncated",
                    "the model wrote until it was stopped, though the endpoint doesn't say so",
                    usage=answer.usage,
                )
            return answer
        except SummaryFailed as failure:
            failure.calls = 1
            raise

    async def _send(self, question: Question) -> bytes:
        """The body of the answer, whole and of the right type."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._request(question)
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
            raise SummaryFailed(
                "timeout", f"no whole answer came within {self._timeout_seconds:g} seconds"
            ) from None
        except openai.APIStatusError as error:
            raise refused(error) from None
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise lost(error) from None
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.endswith("json"):
            shown = ascii(kind[:KIND_LENGTH_MAX]) if kind else "no type"
            raise SummaryFailed("bad_answer", f"the endpoint answered with {shown}, not with JSON")
        return response.content

    async def _request(self, question: Question) -> httpx2.Response:
        if self._api == "chat":
            completion = await self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[
                    {"role": "system", "content": question.system},
                    {"role": "user", "content": question.user},
                ],
                max_completion_tokens=question.answer_tokens_max,
            )
            return completion.http_response
        response = await self._client.responses.with_raw_response.create(
            model=self.model,
            input=[
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            max_output_tokens=question.answer_tokens_max,
            store=False,  # else the provider keeps the conversation
        )
        return response.http_response

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.close()


class _Limited(httpx2.AsyncByteStream):
    """The bytes of an answer up to `ANSWER_BYTES_MAX`. An error's text simply ends there."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, of_error: bool) -> None:
        self._stream = stream
        self._of_error = of_error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        byte_count = 0
        async for piece in self._stream:
            byte_count += len(piece)
            if byte_count > ANSWER_BYTES_MAX:
                if self._of_error:
                    return
                raise SummaryFailed(
                    "bad_answer", f"the answer is larger than {ANSWER_BYTES_MAX:,} bytes"
                )
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _limit(response: httpx2.Response) -> None:
    """Runs when the head of an answer is there, and before its body is read by anyone."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        if response.is_success:
            raise SummaryFailed("bad_answer", "the answer is compressed, which was not asked for")
        del response.headers["content-encoding"]  # the status says enough: it stays packed
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Limited(response.stream, of_error=not response.is_success)


def _check_key(key: str | None) -> None:
    """A key that HTTP can't carry is refused here: errors further down would show it."""
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidSetting(
            "the model's key has characters that no key has; check EVENTLOG_COMPACTION_API_KEY, "
            "or OPENAI_API_KEY"
        )
