"""What a client and the supervisor say to each other: one JSON object per line, both ways.

A client's first line says what it wants; each line gets one answer, in order. The connection
itself is the important part: the supervisor runs its servers as long as one is open, and the
kernel closes a client's when the client ends, however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

import msgspec

from eventlog.errors import ServerStartFailed

ServerName = Literal["postgres", "valkey"]
ServerState = Literal["down", "starting", "up", "stopped", "failed"]
"""`stopped`: on purpose, until started again; `failed`: given up, a new client tries again."""

LINE_BYTES_MAX = 64 * 1024
"""Longest line; an error with the end of a log is about 5 kB."""


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one embedded server is."""

    name: ServerName
    state: ServerState
    pid: int | None = None
    restarts: int = 0
    """How often it was started again after it had died by itself."""


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Run these servers for me until I am gone."""

    servers: tuple[ServerName, ...]


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """I need them no more. The last one to leave may wait until all has ended."""


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Stop this server and leave it stopped."""

    server: ServerName


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Start this server if it isn't up."""

    server: ServerName


class AskStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """How are the servers?"""


Request = Attach | Leave | Stop | Start | AskStatus


class RunningServer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server that was asked for can be reached."""

    url: str
    origin: str


class Attached(msgspec.Struct, frozen=True, kw_only=True, tag="attached"):
    """They accept connections (except one that was stopped on purpose)."""

    servers: Mapping[ServerName, RunningServer]


class Left(msgspec.Struct, frozen=True, kw_only=True, tag="left"):
    """`stopping`: you were the last; the end of the connection is the end of the servers."""

    stopping: bool


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """What was asked has happened."""


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """Every server that was ever asked for."""

    servers: tuple[ServerStatus, ...]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It could not be done; the text is for the user."""

    message: str


class Ending(msgspec.Struct, frozen=True, kw_only=True, tag="ending"):
    """This supervisor is shutting down. `by_order`: somebody told it to; don't start another."""

    by_order: bool


Reply = Attached | Left | Done | Status | Failed | Ending

_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


async def send(writer: asyncio.StreamWriter, message: Request | Reply) -> None:
    """Send one message."""
    writer.write(_encoder.encode(message) + b"\n")
    await writer.drain()


async def receive_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request; None when the client is gone."""
    line = await _line(reader)
    return None if line is None else _requests.decode(line)


async def receive_reply(reader: asyncio.StreamReader) -> Reply | None:
    """The next answer; None when the supervisor is gone."""
    line = await _line(reader)
    try:
        return None if line is None else _replies.decode(line)
    except msgspec.DecodeError as error:
        raise ServerStartFailed(
            "the embedded servers were started by another version of this program, which can't be "
            "understood; end the commands that use them, then try again"
        ) from error


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    try:
        line = await reader.readline()
    except ConnectionError:
        return None
    return line if line.endswith(b"\n") else None
