"""A model behind an HTTP API, on loopback, that answers well or misbehaves on demand.

It speaks HTTP/1.1 and both of OpenAI's APIs, `/v1/chat/completions` and `/v1/responses`:

    async with model_server() as server:
        server.base_url                                # http://127.0.0.1:…/v1
        server.behaviour = "rate_limited"              # for every request from now on
        server.behaviour = ["server_error", "good"]    # one request each, then "good"
        server.answer = lambda messages: "…"           # what a good answer says
        server.requests                                # what came in, oldest first
        server.pause(); await server.arrived(1); server.resume()

`MISBEHAVIOURS` are the fourteen ways in which real endpoints are known to fail, `ODDITIES` are
further ones. It records every request, and counts the bytes it could send, so that a test can
assert that a fault took place.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

MISBEHAVIOURS: Final = (
    "rate_limited",  # 429 with Retry-After
    "server_error",  # 500
    "hang",  # the request is read, and nothing comes
    "drop",  # the connection is cut in the middle of the body
    "drip",  # one byte after another, for ever
    "html",  # 200, and a web page
    "broken_json",  # 200, and half of a JSON object
    "empty_choices",  # 200, and nothing in the list
    "null_content",  # 200, and null for a text
    "length",  # stopped at its limit, half a summary
    "content_filter",  # stopped by a filter, half a summary
    "refusal",  # the model says no
    "huge",  # an answer of 10 MB
    "too_long",  # an answer that is longer than what it replaces
)
ODDITIES: Final = (
    "unauthorized",  # 401
    "overloaded",  # 503 with an HTML page and Retry-After as a date long ago
    "huge_error",  # 500 with 10 MB of text
    "redirect",  # 307 to another address
    "compressed",  # gzip, though nobody accepts it
    "bomb",  # 500 with a few kilobytes of gzip that unpack to `HUGE_BYTES`
    "blank",  # white space for a text
    "tool_call",  # calls a tool that nobody gave it
    "unfinished",  # ends for a reason that nobody knows
    "silent_length",  # stopped at its limit, and calls itself completed
    "surrogate",  # a text with half of a surrogate pair
    "error_in_200",  # 200, and an error for a body
    "no_usage",  # a good answer that doesn't say what it cost
    "thinking",  # a good answer behind what a local model thought
)
HUGE_BYTES: Final = 10_000_000
TOO_LONG_CHARACTERS_MAX: Final = 600_000
"""Longest text of `too_long`: an answer larger than it should be is another fault, `huge`."""
DRIP_SECONDS: Final = 0.02
"""Between two bytes of `drip`."""

JSON: Final = "application/json"
Messages = list[dict[str, Any]]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    behaviour: str
    """How it was answered."""

    @property
    def messages(self) -> Messages:
        """What the model was given, of either API."""
        found: Messages = self.body.get("messages") or self.body.get("input") or []
        return found

    @property
    def answer_tokens_max(self) -> int:
        """Where the model is to be stopped."""
        limit = self.body.get("max_completion_tokens") or self.body.get("max_output_tokens") or 0
        return int(limit)

    @property
    def api(self) -> str:
        """`chat` or `responses`."""
        return "chat" if self.path.endswith("/chat/completions") else "responses"


def answer_briefly(messages: Messages) -> str:
    """What a good answer says unless a test wants it otherwise."""
    return f"## Goal\nSummary of {len(messages)} messages."


class ModelServer:
    """One listening port. Made by `model_server()`."""

    def __init__(self) -> None:
        self.base_url = ""
        self.behaviour: str | list[str] = "good"
        """One of `MISBEHAVIOURS`, `ODDITIES` or `good`; or a list, one for each request."""
        self.answer: Callable[[Messages], str] = answer_briefly
        self.requests: list[ModelRequest] = []
        self.retry_after = "1"
        """Value of the header, with a 429."""
        self.input_tokens = 100
        self.output_tokens = 20
        """Usage that an answer reports."""
        self.sent_bytes = 0
        """Of the last body: how much of it the client let the server send."""
        self.under_way = 0
        self.under_way_max = 0
        """Most requests that were waiting for their answer at the same time."""
        self._running = asyncio.Event()
        self._running.set()
        self._changed = asyncio.Condition()
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    # --- for tests ---

    def pause(self) -> None:
        """Answer nothing from now on, until `resume()`."""
        self._running.clear()

    def resume(self) -> None:
        """Answer what is waiting, and what comes."""
        self._running.set()

    async def arrived(self, count: int) -> None:
        """Wait until so many requests have come in, since the server started."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)

    async def idle(self) -> None:
        """Wait until every request was answered, or given up by its client."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.under_way == 0)

    # --- serving ---

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = writer
        _send_little_ahead(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if await self._serve(reader, writer):
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()
            del self._links[task]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the client is to have all of the answer."""
        path, headers, raw = await _read_request(reader)
        if not path.endswith(("/chat/completions", "/responses")):
            await self._send(writer, _error("no such path", "not_found"), status=404)
            return True
        behaviour = self._next_behaviour()
        request = ModelRequest(
            path=path, headers=headers, body=msgspec.json.decode(raw), behaviour=behaviour
        )
        await self._count(request, 1)
        gone = asyncio.ensure_future(reader.read(1))  # nothing but the end can come
        work = asyncio.ensure_future(self._answer(request, writer))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else False
        finally:
            for each in (gone, work):
                each.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
            await self._count(None, -1)

    def _next_behaviour(self) -> str:
        if isinstance(self.behaviour, str):
            return self.behaviour
        return self.behaviour.pop(0) if self.behaviour else "good"

    async def _count(self, request: ModelRequest | None, change: int) -> None:
        async with self._changed:
            if request is not None:
                self.requests.append(request)
            self.under_way += change
            self.under_way_max = max(self.under_way_max, self.under_way)
            self._changed.notify_all()

    async def _answer(self, request: ModelRequest, writer: asyncio.StreamWriter) -> bool:
        await self._running.wait()
        match request.behaviour:
            case "rate_limited":
                await self._send(
                    writer,
                    _error("slow down", "rate_limit_exceeded"),
                    status=429,
                    headers={"retry-after": self.retry_after},
                )
            case "server_error":
                await self._send(writer, _error("it broke", "server_error"), status=500)
            case "unauthorized":
                key = request.headers.get("authorization", "")
                await self._send(writer, _error(f"no: {key}", "invalid_api_key"), status=401)
            case "overloaded":
                await self._send(
                    writer,
                    b"<html>come back</html>",
                    status=503,
                    kind="text/html",
                    headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"},
                )
            case "redirect":
                await self._send(
                    writer, b"", status=307, headers={"location": f"{self.base_url}/elsewhere"}
                )
            case "huge_error":
                await self._send(writer, b"x" * HUGE_BYTES, status=500, kind="text/plain")
            case "hang":
                await asyncio.Event().wait()
            case "drip":
                await self._drip(writer)
            case "drop":
                await self._drop(request, writer)
                return False
            case "html":
                page = b"<!doctype html><html><body>Sign in to go on</body></html>"
                await self._send(writer, page, kind="text/html")
            case "broken_json":
                body = self._body(request)
                await self._send(writer, body[: len(body) // 2])
            case "error_in_200":
                await self._send(writer, _error("upstream is down", "bad_gateway"))
            case "compressed":
                await self._send(writer, self._body(request), headers={"content-encoding": "gzip"})
            case "bomb":
                packed = gzip.compress(b" " * HUGE_BYTES)
                await self._send(writer, packed, status=500, headers={"content-encoding": "gzip"})
            case "surrogate":
                body = self._body(request).replace(b"Summary", b"\\ud800")
                await self._send(writer, body)
            case _:
                await self._send(writer, self._body(request))
        return True

    def _body(self, request: ModelRequest) -> bytes:
        """A body of the API that was asked, good or false in what it says."""
        text = self._text(request)
        build = _chat_body if request.api == "chat" else _responses_body
        output_tokens = self.output_tokens
        if request.behaviour == "silent_length":
            output_tokens = request.answer_tokens_max
        body = build(request, text, (self.input_tokens, output_tokens))
        if request.behaviour == "no_usage":
            body.pop("usage")
        return msgspec.json.encode(body)

    def _text(self, request: ModelRequest) -> str | None:
        match request.behaviour:
            case "null_content" | "refusal" | "tool_call":
                return None
            case "blank":
                return " \n\t"
            case "huge":
                return "long " * (HUGE_BYTES // 5)
            case "too_long":
                given = sum(len(str(each.get("content", ""))) for each in request.messages)
                return ("longer " * (given + 2_000))[:TOO_LONG_CHARACTERS_MAX]
            case "thinking":
                return f"<think>\nWhat do they want?\n</think>\n\n{self.answer(request.messages)}"
        return self.answer(request.messages)

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, JSON, 1_000_000, {}))
        while True:
            writer.write(
                b" "
            )  # white space before a JSON object is no error: only a deadline helps
            await writer.drain()
            await asyncio.sleep(DRIP_SECONDS)

    async def _drop(self, request: ModelRequest, writer: asyncio.StreamWriter) -> None:
        body = self._body(request)
        writer.write(_head(200, JSON, len(body), {}) + body[: len(body) // 2])
        await writer.drain()

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        body: bytes,
        *,
        status: int = 200,
        kind: str = JSON,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.sent_bytes = 0
        writer.write(_head(status, kind, len(body), headers or {}))
        for start in range(0, len(body), 65_536):
            piece = body[start : start + 65_536]
            writer.write(piece)
            await writer.drain()
            self.sent_bytes += len(piece)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve as long as the block lasts."""
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        try:
            yield
        finally:
            server.close()
            for writer in self._links.values():
                writer.transport.abort()  # whoever serves it notices
            await asyncio.gather(*self._links)


@contextlib.asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """A model server on a free port of loopback."""
    made = ModelServer()
    async with made.listening():
        yield made


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    path = head[0].split(" ")[1]
    return path, headers, await reader.readexactly(int(headers.get("content-length", "0")))


def _send_little_ahead(writer: asyncio.StreamWriter) -> None:
    """Keep buffers small: what was written is then about what the client has read."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    writer.transport.set_write_buffer_limits(high=65_536)


def _head(status: int, kind: str, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} -", f"content-type: {kind}", f"content-length: {length}"]
    lines += ["connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _error(message: str, code: str) -> bytes:
    error = {"message": message, "type": code, "param": None, "code": code}
    return msgspec.json.encode({"error": error})


def _chat_body(request: ModelRequest, text: str | None, tokens: tuple[int, int]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    finish_reason = "stop"
    match request.behaviour:
        case "refusal":
            message["refusal"] = "I can't help with that."
        case "length" | "content_filter":
            finish_reason = request.behaviour
        case "unfinished":
            finish_reason = "aborted"
        case "tool_call":
            finish_reason = "tool_calls"
            function = {"name": "search", "arguments": "{}"}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": request.body.get("model"),
        "choices": [] if request.behaviour == "empty_choices" else [choice],
        "usage": {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
            "prompt_tokens_details": {"cached_tokens": 7},
            "completion_tokens_details": {"reasoning_tokens": 5},
        },
    }


def _responses_body(
    request: ModelRequest, text: str | None, tokens: tuple[int, int]
) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    status, details = "completed", None
    match request.behaviour:
        case "refusal":
            part = {"type": "refusal", "refusal": "I can't help with that."}
        case "length":
            status, details = "incomplete", {"reason": "max_output_tokens"}
        case "content_filter":
            status, details = "incomplete", {"reason": "content_filter"}
        case "unfinished":
            status = "cancelled"
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": status}
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        message | {"content": [part]},
    ]
    match request.behaviour:
        case "empty_choices":
            output = []
        case "tool_call":
            output[1] = {"type": "function_call", "call_id": "call_1", "name": "search"}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": request.body.get("model"),
        "status": status,
        "incomplete_details": details,
        "error": None,
        "output": output,
        "usage": {
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "total_tokens": sum(tokens),
            "input_tokens_details": {"cached_tokens": 7},
            "output_tokens_details": {"reasoning_tokens": 5},
        },
    }
