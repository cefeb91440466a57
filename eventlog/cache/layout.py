"""How a session lies in the caches: the forms of entries, and the scripts that keep them.

    …:session:<id>        hash: version, session, seq, and the parts view, metadata, scratchpad
    …:session.json:<id>   the same as one JSON document, where the server has RedisJSON
    …:context:<id>        hash: version, session, seq, context

All parts of an entry are as of its seq. An entry is replaced by a newer one and by no other; one of
the same seq may add parts that are not known yet, as a part at a seq is a fact. Newer means a
higher version (another fold, more in a view, another form), or the same version and a higher seq.
The comparison is made by a script, inside Redis: writers may be late, repeat themselves and race.

A document holds each part twice over: `json`, which can be read by path, and `text`, its JSON as a
string, for what RedisJSON would not give back exactly. One of them is null. Contexts are read as a
whole, and so are always a hash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from eventlog.cache.entry import ABSENT, CONTEXT_PARTS, PARTS, VERSION, Entry

BURIED_SEQ: Final = 2**62
"""Seq of the mark that stands for an erased session: nothing is newer."""
KEEP_HASH: Final = """
-- KEYS: entries of one shard. ARGV: seconds to live, version, how many parts, their names; then for
-- each key: session, seq, parts ('': not known).
local version, count = tonumber(ARGV[2]), tonumber(ARGV[3])
local place = 3 + count
for _, key in ipairs(KEYS) do
  local session, seq = ARGV[place + 1], tonumber(ARGV[place + 2])
  local known = redis.pcall('HMGET', key, 'version', 'seq')
  if known.err then known = {} end
  local known_version, known_seq = tonumber(known[1] or -1) or -1, tonumber(known[2] or -1) or -1
  local write
  if known_seq >= 4611686018427387904 then
    write = nil
  elseif version > known_version or (version == known_version and seq > known_seq) then
    redis.call('DEL', key)
    redis.call('HSET', key, 'version', ARGV[2], 'session', session, 'seq', ARGV[place + 2])
    redis.call('EXPIRE', key, ARGV[1])
    write = 'HSET'
  elseif version == known_version and seq == known_seq then
    write = 'HSETNX'
  end
  for part = 1, count do
    local text = ARGV[place + 2 + part]
    if write and text ~= '' then redis.call(write, key, ARGV[3 + part], text) end
  end
  place = place + 2 + count
end
"""
KEEP_JSON: Final = """
-- The same for documents.
local version, count = tonumber(ARGV[2]), tonumber(ARGV[3])
local place = 3 + count
for _, key in ipairs(KEYS) do
  local session, seq = ARGV[place + 1], tonumber(ARGV[place + 2])
  local known_version, known_seq = -1, -1
  local text = redis.pcall('JSON.GET', key, '$.version', '$.seq')
  if type(text) == 'string' then
    local known = cjson.decode(text)
    known_version = tonumber(known['$.version'][1]) or -1
    known_seq = tonumber(known['$.seq'][1]) or -1
  end
  local write
  if known_seq >= 4611686018427387904 then
    write = nil
  elseif version > known_version or (version == known_version and seq > known_seq) then
    redis.call('DEL', key)
    redis.call('JSON.SET', key, '$', '{"version":' .. ARGV[2] .. ',"session":"' .. session
      .. '","seq":' .. ARGV[place + 2] .. '}')
    redis.call('EXPIRE', key, ARGV[1])
    write = 'JSON.SET'
  elseif version == known_version and seq == known_seq then
    write = 'JSON.SET'
  end
  for part = 1, count do
    local document = ARGV[place + 2 + part]
    if write and document ~= '' then
      redis.call(write, key, '$.' .. ARGV[3 + part], document, 'NX')
    end
  end
  place = place + 2 + count
end
"""
BURY: Final = """
-- KEYS: entries of one shard. ARGV: seconds to live, 'hash' or 'json'.
for _, key in ipairs(KEYS) do
  redis.call('DEL', key)
  if ARGV[2] == 'json' then
    redis.call('JSON.SET', key, '$', '{"version":0,"session":"","seq":4611686018427387904}')
  else
    redis.call('HSET', key, 'version', '0', 'session', '', 'seq', '4611686018427387904')
  end
  redis.call('EXPIRE', key, ARGV[1])
end
"""

Command = tuple[Any, ...]
_encode: Final = msgspec.json.Encoder().encode
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Found(msgspec.Struct, frozen=True):
    """What an entry holds: its seq, and the JSON of the parts that were asked for."""

    seq: int
    parts: list[bytes]
    named: dict[str, bytes] | None = None
    """Values of the one part by name, when only those were read; `parts` is empty then."""


class Asked(msgspec.Struct, frozen=True):
    """What is to be read of a session: parts, or of one part only the values with these names."""

    session_id: UUID
    parts: Sequence[str]
    names: Sequence[str] = ()


class Layout(Protocol):
    """One of the forms that an entry can have."""

    kind: str
    """What the key's name says, after the shard."""
    parts: Sequence[str]

    def read(self, key: str, asked: Asked) -> Command:
        """The command that reads all of it at once."""
        ...

    def found(self, answer: Any, asked: Asked) -> Found | None:
        """What the command answered; None: not all of it is there. Raises for nonsense."""
        ...

    def keep(self, keys: Sequence[str], entries: Sequence[Entry], *, seconds: int) -> Command:
        """The command that writes entries of one shard, where they are newer."""
        ...

    def drop(self, key: str) -> list[Command]:
        """Commands that remove the parts of an entry, and leave its seq."""
        ...

    def bury(self, keys: Sequence[str], *, seconds: int) -> Command:
        """The command that puts marks in place of entries of one shard."""
        ...


class HashLayout:
    """An entry as a hash of JSON texts: on every server."""

    def __init__(self, kind: str, parts: Sequence[str], *, script: str = KEEP_HASH) -> None:
        self.kind = kind
        self.parts = parts
        self.script = script

    def read(self, key: str, asked: Asked) -> Command:
        """See `Layout.read`: parts are read whole, whatever the names."""
        return ("HMGET", key, "version", "session", "seq", *asked.parts)

    def found(self, answer: Any, asked: Asked) -> Found | None:
        """See `Layout.found`."""
        version, session, seq, *parts = answer
        if version != b"%d" % VERSION or session != str(asked.session_id).encode():
            return None
        return None if None in parts else Found(int(seq), parts)

    def keep(self, keys: Sequence[str], entries: Sequence[Entry], *, seconds: int) -> Command:
        """See `Layout.keep`."""
        arguments: list[Any] = []
        for entry in entries:
            arguments += (str(entry.session_id), entry.seq)
            arguments += (entry.parts.get(part, ABSENT) for part in self.parts)
        about = (seconds, VERSION, len(self.parts), *self.parts)
        return ("EVAL", self.script, len(keys), *keys, *about, *arguments)

    def drop(self, key: str) -> list[Command]:
        """See `Layout.drop`."""
        return [("HDEL", key, *self.parts)]

    def bury(self, keys: Sequence[str], *, seconds: int) -> Command:
        """See `Layout.bury`."""
        return ("EVAL", BURY, len(keys), *keys, seconds, "hash")


class _Part(msgspec.Struct, frozen=True):
    """A part in a document."""

    text: str | None
    json: msgspec.Raw


class _About(msgspec.Struct, frozen=True):
    """What every read of a document answers: each path with the values found there."""

    version: list[int] = msgspec.field(name="$.version")
    session: list[str] = msgspec.field(name="$.session")
    seq: list[int] = msgspec.field(name="$.seq")


_decode_about: Final = msgspec.json.Decoder(_About).decode
_decode_paths: Final = msgspec.json.Decoder(dict[str, list[msgspec.Raw]]).decode
_decode_part: Final = msgspec.json.Decoder(_Part).decode
_decode_text: Final = msgspec.json.Decoder(str | None).decode


class JsonLayout:
    """An entry as a document of RedisJSON, of which parts and values are read by path."""

    def __init__(self, kind: str, parts: Sequence[str], *, script: str = KEEP_JSON) -> None:
        self.kind = kind
        self.parts = parts
        self.script = script

    def read(self, key: str, asked: Asked) -> Command:
        """See `Layout.read`. Names that would need quoting in a path make it read the part."""
        if _are_plain(asked.names):
            (part,) = asked.parts
            paths = [f"$.{part}.text", *(f"$.{part}.json.{name}" for name in asked.names)]
        else:
            paths = [f"$.{part}" for part in asked.parts]
        return ("JSON.GET", key, "$.version", "$.session", "$.seq", *paths)

    def found(self, answer: Any, asked: Asked) -> Found | None:
        """See `Layout.found`."""
        if answer is None:
            return None
        about = _decode_about(answer)
        if about.version != [VERSION] or about.session != [str(asked.session_id)]:
            return None
        values = _decode_paths(answer)
        if _are_plain(asked.names):
            return _found_values(about.seq[0], values, asked)
        stored = [values[f"$.{part}"] for part in asked.parts]
        if [] in stored:
            return None
        parts = [_decode_part(each[0]) for each in stored]
        return Found(
            about.seq[0],
            [bytes(each.json) if each.text is None else each.text.encode() for each in parts],
        )

    def keep(self, keys: Sequence[str], entries: Sequence[Entry], *, seconds: int) -> Command:
        """See `Layout.keep`."""
        arguments: list[Any] = []
        for entry in entries:
            arguments += (str(entry.session_id), entry.seq)
            arguments += (_document_part(entry, part) for part in self.parts)
        about = (seconds, VERSION, len(self.parts), *self.parts)
        return ("EVAL", self.script, len(keys), *keys, *about, *arguments)

    def drop(self, key: str) -> list[Command]:
        """See `Layout.drop`."""
        return [("JSON.DEL", key, f"$.{part}") for part in self.parts]

    def bury(self, keys: Sequence[str], *, seconds: int) -> Command:
        """See `Layout.bury`."""
        return ("EVAL", BURY, len(keys), *keys, seconds, "json")


def _found_values(seq: int, values: dict[str, list[msgspec.Raw]], asked: Asked) -> Found | None:
    (part,) = asked.parts
    texts = values[f"$.{part}.text"]
    if not texts:
        return None
    text = _decode_text(texts[0])
    if text is not None:
        return Found(seq, [text.encode()])
    of_name = {name: values[f"$.{part}.json.{name}"] for name in asked.names}
    return Found(seq, [], {name: bytes(each[0]) for name, each in of_name.items() if each})


def _are_plain(names: Sequence[str]) -> bool:
    return bool(names) and all(_PLAIN_NAME.match(name) for name in names)


def _document_part(entry: Entry, part: str) -> bytes:
    data = entry.parts.get(part, ABSENT)
    if data == ABSENT:
        return ABSENT
    if part in entry.opaque:
        return b'{"text":%b,"json":null}' % _encode(data.decode())
    return b'{"text":null,"json":%b}' % data


HASH: Final = HashLayout("session", PARTS)
JSON: Final = JsonLayout("session.json", PARTS)
CONTEXT: Final = HashLayout("context", CONTEXT_PARTS)
