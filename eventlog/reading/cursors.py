"""Cursors of pages: where a page ended, as text that a caller keeps and gives back.

A cursor holds the place of the last item in the order of its list, and nothing that changes: so
pages go on where they ended, whatever happened to the items meanwhile.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, TypeVar

import msgspec

from eventlog.errors import InvalidRequest

Place = TypeVar("Place")
CURSOR_LENGTH_MAX: Final = 200
"""Characters; a longer one is none of ours."""


def encode_cursor(place: object) -> str:
    """The cursor for everything behind a place."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def decode_cursor(
    text: str, decoder: msgspec.msgpack.Decoder[Place], *, length_max: int = CURSOR_LENGTH_MAX
) -> Place:
    """The place in a cursor. Raises `InvalidRequest` for anything else."""
    try:
        if len(text) > length_max:
            raise ValueError
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return decoder.decode(packed)
    except (binascii.Error, ValueError, TypeError, msgspec.MsgspecError):
        raise InvalidRequest(
            "this is not a cursor; pass one that you were given, or none"
        ) from None
