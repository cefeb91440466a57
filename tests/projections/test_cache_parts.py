"""What the caches keep of a session, on servers with RedisJSON and without: the same answers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog import EventLog, InvalidRequest, Session, SessionNotFound
from eventlog import events as ev
from eventlog.cache import layout as cache_layout
from eventlog.cache.entry import (
    DEPTH_MAX,
    PART_BYTES_MAX,
    VERSION,
    Entry,
    context_entry_of,
    encode_part,
    entry_of,
    is_exact,
)
from eventlog.cache.layout import BURIED_SEQ, CONTEXT, HASH, JSON, Asked
from eventlog.cache.session_cache import BURIED_SECONDS_MIN, SessionCache
from eventlog.embedded.temporary import ValkeyServer, temporary_valkey
from eventlog.envelope import new_id, shard_of
from eventlog.telemetry import metrics
from eventlog.testing import refused, until
from eventlog.views import view_of
from projections.cache import CacheWriter
from projections.checkpoint import PROJECTION, Leases, postgres_of
from projections.projection import Projection
from tests.conftest import OpenLog
from tests.projections.checks import project_all, step
from tests.support import redis_json

AWKWARD: dict[str, Any] = {
    "zero": 0,
    "ints": [2**63 - 1, -(2**63), 2**53 + 1, -1],
    "floats": [1.0, -0.0, 0.1, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 2.1137251835197114e-11],
    "texts": ["", "\0", "é😀\u2028\x7f", '"\\', "$.a", "␛␀"],
    "": {"": {"": []}},
    "\0": None,
    "b": {"z": 1, "a": [True, False, None, {}]},
    'quo"te': 1,
    "a.b": 2,
    "a": {"b": 3},
    "null": None,
}
"""Values that JSON carries, and that something on the way might change."""


def cache_of(log: EventLog) -> SessionCache:
    """The log's cache, which it must have."""
    assert log.views.cache is not None
    return log.views.cache


async def project(log: EventLog) -> None:
    """Bring views and cache up to date, as a projector does."""
    writer, projection = CacheWriter(log), Projection(log)
    leases = Leases(postgres_of(log), PROJECTION, "test", seconds=600)
    await leases.join()
    held = await leases.take(log.store.shards)
    for lease in held:
        progress = await projection.begin(lease)
        await writer.refresh(lease.shard, progress.position)
        while changes := await step(log, projection, progress):
            await writer.write(changes)
    await leases.release(held)


async def scribbled(log: EventLog, **values: Any) -> Session:
    """A session with these entries of its scratchpad, and the same metadata."""
    session = await log.create_session(metadata=values)
    await session.append([ev.ScratchpadWritten(name=name, value=values[name]) for name in values])
    return session


def same(one: Any, other: Any) -> bool:
    """Equal down to types, signs and order, as `==` doesn't see."""
    return repr(one) == repr(other)


@pytest.fixture
async def cached_log(open_log: OpenLog, cache_server: ValkeyServer) -> EventLog:
    """A log on a Redis of its own, with RedisJSON or without."""
    return await open_log(redis=cache_server.url)


async def keys_of(server: ValkeyServer, pattern: str) -> list[str]:
    """Names in that Redis."""
    async with redis.asyncio.from_url(server.url) as client:
        return [name.decode() async for name in client.scan_iter(match=pattern)]


# --- what comes back -----------------------------------------------------------------------------


async def test_parts_when_cached_come_back_exactly(cached_log: EventLog) -> None:
    """View, metadata and scratchpad of awkward values, down to their types and their order."""
    session = await cached_log.create_session(
        title="\0é", user_id='"', metadata={**AWKWARD, "none": 1}
    )
    values = {name: value for name, value in AWKWARD.items() if value is not None}
    await session.append(
        [
            *(ev.ScratchpadWritten(name=name, value=value) for name, value in values.items()),
            ev.AgentHandedOff(from_agent="a", to_agent="b", context=AWKWARD),
        ]
    )
    await project(cached_log)
    state = await cached_log.replayer.replay(session.id, None)
    cache = cache_of(cached_log)

    view, metadata = await cache.view(session.id), await cache.metadata(session.id)
    scratchpad = await cache.scratchpad(session.id)

    assert view is not None and metadata is not None and scratchpad is not None
    assert {view.seq, metadata.seq, scratchpad.seq} == {state.seq}
    assert same(view.value, view_of(state))
    assert same(metadata.value, state.metadata)
    assert same(scratchpad.value, dict(sorted(state.scratchpad.items())))
    assert same(await session.view(), view_of(state))
    assert same(await session.metadata(), state.metadata)
    for _ in range(2):
        assert same(await session.scratchpad(), dict(sorted(values.items())))
        assert await session.invalidate()


async def test_parts_when_read_of_any_log_are_those_of_the_fold(any_log: EventLog) -> None:
    """Without a projector, without Redis: the same answers, and the same refusals."""
    session = await scribbled(any_log, b=1, a={"n": [2]})

    assert same(await session.scratchpad(), {"a": {"n": [2]}, "b": 1})
    assert same(await session.metadata(names=["a", "c"]), {"a": {"n": [2]}})
    assert await session.invalidate()
    for read in (session.scratchpad, session.metadata):
        with refused(InvalidRequest):
            await read(names="abc")


async def test_entries_when_read_by_name_are_those_of_the_whole(cached_log: EventLog) -> None:
    """Simple ones, those whose name no path could say, absent ones; in the order asked for."""
    simple = {"count": 3, "rate": 0.5, "nested": {"a": 1}, "json": 1, "text": "x"}
    asked = ["text", "count", "nested", "missing", "json", "count"]
    odd = ["a.b", "", "b", "\0", "missing", 'quo"te']
    one = await scribbled(cached_log, **simple)
    other = await scribbled(cached_log, **{k: v for k, v in AWKWARD.items() if v is not None})
    await project(cached_log)

    for session, names in ((one, asked), (one, odd), (other, asked), (other, odd)):
        scratchpad, metadata = await session.scratchpad(), await session.metadata()
        expected = {name: scratchpad[name] for name in names if name in scratchpad}
        hits = metrics.cache_hits

        assert same(await session.scratchpad(names=names), expected)
        assert same(await session.metadata(names=names), {n: metadata[n] for n in expected})
        assert metrics.cache_hits == hits + 2


async def test_entry_when_the_server_has_redisjson_is_read_by_path(
    cached_log: EventLog, cache_server: ValkeyServer
) -> None:
    """There a counter beside a large text is read alone; elsewhere the part is."""
    session = await scribbled(cached_log, count=7, large="x" * 100_000)
    await project(cached_log)
    (name,) = await keys_of(cache_server, f"*:session*:{session.id}")
    layout = HASH if ":session:" in name else JSON

    asked = Asked(session.id, ("scratchpad",), ("count",))
    link = cache_of(cached_log)._link
    answer, kind = await link.call_many([layout.read(name, asked), ("TYPE", name)])

    assert await session.scratchpad(names=["count"]) == {"count": 7}
    assert (kind == b"hash") == (layout is HASH)
    assert (len(repr(answer)) < 1_000) == (layout is JSON)


async def test_entry_when_redisjson_is_forbidden_is_a_hash(
    open_log: OpenLog, cache_server: ValkeyServer
) -> None:
    """A login without the module's commands gets the same answers."""
    async with redis.asyncio.from_url(cache_server.url) as client:
        rules = ["on", ">secret", "~*", "&*", "+@all"]
        if await client.module_list() and len(await client.module_list()) > 1:
            rules += ["-json.get", "-json.set"]
        await client.execute_command("ACL", "SETUSER", "modest", *rules)  # type: ignore[no-untyped-call]
    log = await open_log(redis=cache_server.url.replace("unix://", "unix://modest:secret@"))
    session = await scribbled(log, n=1)
    await project(log)

    found = await cache_of(log).scratchpad(session.id)

    assert found is not None and found.value == {"n": 1}
    assert [":session:" in name for name in await keys_of(cache_server, "*:session*")] == [True]


# --- which seq -----------------------------------------------------------------------------------


async def test_entry_when_of_the_same_seq_adds_what_was_missing(cached_log: EventLog) -> None:
    """A reader of the row brings the view, another one the scratchpad; a newer view drops both."""
    session = await scribbled(cached_log, n=1)
    await project_all(cached_log)
    cache = cache_of(cached_log)
    view = await session.view()
    assert await cache.scratchpad(session.id) is None

    assert await session.scratchpad() == {"n": 1}

    both = await cache.scratchpad(session.id), await cache.view(session.id)
    assert [each.seq for each in both if each is not None] == [view.seq, view.seq]
    await session.append(ev.ScratchpadWritten(name="n", value=2))
    await project_all(cached_log)
    assert await session.view(min_seq=view.seq + 1) == (await session.view())
    assert await cache.scratchpad(session.id) is None
    assert await session.scratchpad() == {"n": 2}


async def test_parts_when_a_seq_is_demanded_are_at_least_of_it(cached_log: EventLog) -> None:
    """What is cached may be older; `min_seq` goes on to the row, and then to the log."""
    session = await scribbled(cached_log, n=1)
    await project(cached_log)
    done = await session.append(
        [ev.ScratchpadWritten(name="n", value=2), ev.SessionUpdated(metadata={"n": 2})]
    )

    assert (await session.scratchpad(), await session.metadata()) == ({"n": 1}, {"n": 1})
    assert await session.scratchpad(min_seq=done.last_seq) == {"n": 2}
    assert await session.metadata(min_seq=done.last_seq, names=["n"]) == {"n": 2}
    await project_all(cached_log)
    assert await session.scratchpad(min_seq=done.last_seq) == {"n": 2}
    assert await session.scratchpad() == {"n": 2}  # the row's, now cached
    for read in (session.scratchpad, session.metadata):
        with refused(InvalidRequest):
            await read(min_seq=done.last_seq + 1)
        with refused(InvalidRequest):
            await read(min_seq=-1)
    for read in (cached_log.handle(new_id()).scratchpad, cached_log.handle(new_id()).metadata):
        with refused(SessionNotFound):
            await read()


async def test_entry_when_of_another_version_is_not_believed(
    cached_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two releases on one Redis: the newer replaces, the older doesn't, each reads
    only its own."""
    session = await scribbled(cached_log, n=1)
    await project(cached_log)
    cache = cache_of(cached_log)
    old, state = await cache.view(session.id), await session.replay()
    assert old is not None

    monkeypatch.setattr(cache_layout, "VERSION", VERSION + 1)
    assert await cache.view(session.id) is None
    earlier = await cached_log.replayer.structure(session.id, 1)
    assert await cache.put([entry_of(view_of(earlier), earlier.scratchpad)])
    new = await cache.view(session.id)
    monkeypatch.setattr(cache_layout, "VERSION", VERSION)

    assert new is not None and new.seq == 1
    assert await cache.view(session.id) is None
    assert await cache.put([entry_of(view_of(state), state.scratchpad)])
    assert await cache.view(session.id) is None


# --- dropping ------------------------------------------------------------------------------------


async def test_session_when_invalidated_has_no_part_and_takes_none_that_is_older(
    cached_log: EventLog,
) -> None:
    """All parts and the context go; a late writer of something older brings nothing back."""
    session = await scribbled(cached_log, n=1)
    await project(cached_log)
    cached_log.replayer.forget()
    await session.context()
    cache, keys = cache_of(cached_log), await cache_of(cached_log).keys()
    assert keys is not None and await cache.context(session.id) is not None
    now, older = await session.replay(), await cached_log.replayer.structure(session.id, 1)

    assert await session.invalidate()

    async def parts() -> list[bool]:
        reads = (cache.view, cache.metadata, cache.scratchpad, cache.context)
        return [await read(session.id) is not None for read in reads]

    assert await parts() == [False] * 4
    assert await cache.put([entry_of(view_of(older), older.scratchpad)])
    assert await cache.put_context(session.id, older.seq, older.context(), keys=keys)
    assert await parts() == [False] * 4
    assert await cache.put([entry_of(view_of(now), now.scratchpad)])
    assert await cache.put_context(session.id, now.seq, now.context(), keys=keys)
    assert await parts() == [True] * 4


async def test_session_when_buried_stays_out_of_the_cache(
    cached_log: EventLog, cache_server: ValkeyServer
) -> None:
    """Late writers of any seq change nothing, in any form; reads go on, from Postgres."""
    sessions = [await scribbled(cached_log, n=number) for number in range(5)]
    await project(cached_log)
    cache, keys = cache_of(cached_log), await cache_of(cached_log).keys()
    assert keys is not None
    buried, other = sessions[:4], sessions[4]

    assert await cache.bury([each.id for each in buried])

    for session in buried:
        state = await session.replay()
        entry = entry_of(view_of(state), state.scratchpad)
        for seq in (state.seq, state.seq + 1, BURIED_SEQ - 1):
            late = Entry(entry.session_id, seq, entry.parts)
            assert await cache.put([late])
            assert await cache.put_context(session.id, seq, state.context(), keys=keys)
        assert await session.invalidate() and await cache.put([entry])
        assert await session.scratchpad() == state.scratchpad
        reads = (cache.view, cache.metadata, cache.scratchpad, cache.context)
        assert [await read(session.id) for read in reads] == [None] * 4
        names = await keys_of(cache_server, f"*{session.id}")
        assert f"{session.id}" in " ".join(names) and len(names) >= 2
        async with redis.asyncio.from_url(cache_server.url) as client:
            for name in names:
                assert await client.ttl(name) > BURIED_SECONDS_MIN - 60
    assert await cache.view(other.id) is not None


async def test_session_when_buried_for_a_while_is_cached_again_after(
    cached_log: EventLog, cache_server: ValkeyServer
) -> None:
    """A mark that was to stay for a moment expires by itself."""
    session = await scribbled(cached_log, n=1)
    await project(cached_log)
    cache = cache_of(cached_log)
    assert await cache.bury([session.id], seconds=1)
    assert await cache.view(session.id) is None

    async def gone() -> bool:
        return not await keys_of(cache_server, f"*{session.id}")

    await until(gone)
    assert await session.view() == await session.view()
    assert await cache.view(session.id) is not None


async def test_cache_when_written_lets_all_parts_expire(
    open_log: OpenLog, cache_server: ValkeyServer
) -> None:
    """Everything that reads and batches leave there has the setting's time to live."""
    log = await open_log(redis=cache_server.url, cache_ttl_seconds=1_000)
    session = await scribbled(log, n=1)
    await project(log)
    log.replayer.forget()
    await session.context()
    await session.invalidate()
    await session.view()

    names = await keys_of(cache_server, f"*{session.id}")

    assert len(names) == 2
    async with redis.asyncio.from_url(cache_server.url) as client:
        assert all([900 < await client.ttl(name) <= 1_000 for name in names])


async def test_part_when_too_large_is_left_out(cached_log: EventLog) -> None:
    """The entry goes forwards without it: what was cached of that part is not believed longer."""
    session = await scribbled(cached_log, n="small")
    await project(cached_log)
    large = "x" * PART_BYTES_MAX
    await session.append(ev.ScratchpadWritten(name="n", value=large))
    await project(cached_log)
    cache = cache_of(cached_log)

    assert await cache.scratchpad(session.id) is None
    assert (await session.view()).seq == 3
    assert await session.scratchpad() == {"n": large}


async def test_cache_when_read_counts_hits_and_misses_by_part(cached_log: EventLog) -> None:
    """What Prometheus shows: by part, and in total."""
    session = await scribbled(cached_log, n=1)
    cached_log.replayer.forget()
    names = [f"{what}cache_{how}" for what in ("", "view_", "scratchpad_", "context_")
             for how in ("hits", "misses")]  # fmt: skip
    before = [getattr(metrics, name) for name in names]

    await session.view()
    await session.scratchpad()
    await session.context()
    await project(cached_log)
    cached_log.replayer.forget()
    for read in (session.view, session.metadata, session.scratchpad, session.context):
        await read()

    after = [getattr(metrics, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [4, 3, 2, 1, 1, 1, 1, 1]


# --- what RedisJSON does to values ---------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.5, 1.0, 3.14, 1e15, 0.001, 1e22, 123456789012345.0, 2.5e-10])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def json_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Valkey with RedisJSON."""
    folder: Path = tmp_path_factory.mktemp("redisjson")
    found = redis_json.settings_for(folder / "module")
    if found is None:
        pytest.skip(redis_json.WITHOUT)
    with temporary_valkey(folder, settings=found) as server:
        yield server


def through_redisjson(client: redis.Redis, value: Any) -> Any:
    """The value after RedisJSON had it; None when it is refused."""
    try:
        data = encode_part({"v": value})
        client.execute_command("JSON.SET", "k", "$", data)  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "refused"
    answer = client.execute_command("JSON.GET", "k", "$")  # type: ignore[no-untyped-call]
    return json.loads(answer)[0]["v"]


def test_exact_value_when_redisjson_had_it_is_the_same(json_server: ValkeyServer) -> None:
    """What is left to RedisJSON comes back as it was; control: not everything would."""
    with redis.Redis.from_url(json_server.url) as client:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(JSON_VALUES)
        def comes_back(value: Any) -> None:
            assert not is_exact(value) or same(through_redisjson(client, value), value)

        comes_back()
        altered: Any
        for altered in (2.1137251835197114e-11, 7294329406964068.0, nested(130)):
            assert not same(through_redisjson(client, altered), altered)
            assert not is_exact(altered)
        deep = nested(DEPTH_MAX - 1)
        assert is_exact(deep) and same(through_redisjson(client, deep), deep)


@given(st.integers(0, 2**64 - 1))
def test_exact_number_when_it_has_few_digits_is_one_rounding_away(bits: int) -> None:
    """A float that is left to RedisJSON is what exact digits and one exact power make of it."""
    (number,) = struct.unpack("d", struct.pack("Q", bits))
    if math.isfinite(number) and number and is_exact(number):
        digits, _, power = f"{number:.14e}".partition("e")
        whole, exponent = int(digits.replace(".", "")), int(power) - 14
        assert abs(whole) < 2**53
        assert number == (whole * 10**exponent if exponent >= 0 else whole / 10**-exponent)


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_shards_when_entries_are_grouped_share_no_script() -> None:
    """Keys of one script are of one shard: in a cluster they live on one server."""
    ids = [new_id() for _ in range(50)]
    entries = [context_entry_of(each, 1, []) for each in ids]

    command = CONTEXT.keep([f"k{shard_of(each, 16)}" for each in ids], entries, seconds=5)

    assert command[2] == 50 and command[3 + 50 :][:4] == (5, VERSION, 1, "context")
