"""What `eventlog doctor` looks at: servers, schema, privileges, Redis, feeds, views,
compaction, data folder.

Every check makes a `Finding`: ok, warn or fail, what was found, and advice. What depends on
something that failed is not looked at: it would only fail for the same reason.
"""

from __future__ import annotations

import shutil
from typing import Any, Final

import asyncpg

from eventlog import EventLog, Settings
from eventlog.embedded import Servers, open_servers, server_status
from eventlog.errors import EventLogError
from eventlog.redis_link import RedisDown, RedisLink
from eventlog.schema import (
    APP_ROLE,
    SERVER_VERSION_MIN,
    ServerFacts,
    check_applied,
    inspect_server,
    migrate,
    migrations,
)
from projections.checkpoint import postgres_of
from projections.lag import lag, projection_names
from projections.rebuild import due
from projections.watching import parse_info
from workers.commands.compaction_finding import compaction_finding
from workers.commands.falling_behind import lag_findings, parked_findings, version_findings
from workers.commands.finding import Finding, State, size, size_of
from workers.commands.look import plural

FREE_BYTES_MIN: Final = 1024**3
"""With less room than this on the disk of embedded servers there is a warning."""
BEHIND_ROWS_MAX: Final = 1_000
"""When feeds lack more rows than this there is a warning."""
MEMORY_SHARE_MAX: Final = 0.9
CONNECTIONS_SHARE_MAX: Final = 0.8
CONNECT_SECONDS_MAX: Final = 10.0


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which things build on one another."""
    examination = Examination(settings)
    try:
        async with open_servers(settings) as servers:
            await examination.run(servers)
    except EventLogError as error:
        examination.say("servers", "fail", str(error))
    return examination.findings


class Examination:
    """One look at everything."""

    def __init__(self, settings: Settings) -> None:
        self.findings: list[Finding] = []
        self._settings = settings

    def say(self, what: str, state: State, found: str, advice: str = "") -> None:
        """Add a finding; advice only where something is wrong."""
        given = advice if state != "ok" else ""
        self.findings.append(Finding(what=what, state=state, found=found, advice=given))

    async def run(self, servers: Servers) -> None:
        """Everything, on servers that run as long as this does."""
        works = await self._postgres(servers)
        redis_works = await self._redis(servers)
        if works:
            await self._log(redis_works)
        if servers.postgres_embedded or servers.redis_embedded:
            await self._data_folder()

    # --- Postgres ---

    async def _postgres(self, servers: Servers) -> bool:
        """Whether a log can be opened on it."""
        url = servers.postgres_url
        try:
            if servers.postgres_embedded:
                await migrate(url, shards=self._settings.shards)  # as whoever opens the log does
            facts = await inspect_server(url)
        except EventLogError as error:
            self.say("Postgres", "fail", str(error))
            return False
        where = servers.origin[0]
        if not servers.postgres_embedded:
            where = f"{facts.version}: {where}"
        if facts.version_number < SERVER_VERSION_MIN:
            self.say("Postgres", "fail", where, "use version 15 or newer")
            return False
        self.say("Postgres", "ok", where)
        durable = self._durability(facts)
        if not self._schema(facts):
            return False
        try:
            connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS_MAX)
            try:
                await self._roles(connection, facts, embedded=servers.postgres_embedded)
                await self._condition(connection)
            finally:
                await connection.close()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self.say("Postgres", "fail", f"{type(error).__name__}: {error}")
            return False
        return durable

    def _durability(self, facts: ServerFacts) -> bool:
        """Whether the server keeps what it acknowledged."""
        switches = {
            "fsync": facts.fsync,
            "full_page_writes": facts.full_page_writes,
            "synchronous_commit": facts.synchronous_commit != "off",
        }
        off = [name for name, on in switches.items() if not on]
        if not off:
            found = f"fsync and full_page_writes on, synchronous_commit {facts.synchronous_commit}"
            self.say("durability", "ok", found)
            return True
        accepted = self._settings.unsafe_durability
        found = f"{', '.join(off)} off: a crash may lose events that were acknowledged"
        if accepted:
            found += " (accepted by EVENTLOG_UNSAFE_DURABILITY)"
        self.say("durability", "warn" if accepted else "fail", found, "switch it on")
        return accepted

    def _schema(self, facts: ServerFacts) -> bool:
        try:
            pending = check_applied(facts.applied, migrations())
        except EventLogError as error:
            self.say("schema", "fail", str(error))
            return False
        if not pending and facts.shards is not None:
            self.say("schema", "ok", f"up to date at {len(facts.applied):04d}")
            return True
        names = ", ".join(f"{each.number:04d}_{each.name}" for each in pending)
        self.say("schema", "fail", f"pending: {names}", "run: eventlog migrate")
        return False

    async def _roles(
        self, connection: asyncpg.Connection[Any], facts: ServerFacts, *, embedded: bool
    ) -> None:
        if not facts.has_app_role:
            found = (
                f"{facts.user} is no member of {APP_ROLE}: nothing keeps it from changing events"
            )
            self.say("role", "warn", found, f"grant {APP_ROLE} to {facts.user}, then migrate again")
            return
        forbidden = await connection.fetchval(
            "select array_agg(p) from unnest(array['INSERT','UPDATE','DELETE','TRUNCATE']) p"
            " where has_table_privilege($1, to_regclass('eventlog.events'), p)",
            APP_ROLE,
        )
        may_append = await connection.fetchval(
            "select bool_and(has_function_privilege($1, oid, 'EXECUTE')) from pg_proc"
            " where pronamespace = to_regnamespace('eventlog') and proname = 'append'",
            APP_ROLE,
        )
        if forbidden:
            found = f"{APP_ROLE} may {', '.join(forbidden)} on events: the log is not append-only"
            self.say("role", "fail", found, f"revoke {', '.join(forbidden)} on eventlog.events")
        elif may_append is False:
            found = f"{APP_ROLE} may not execute eventlog.append()"
            self.say("role", "fail", found, "run: eventlog migrate, as the owner")
        else:
            self.say(
                "role",
                "ok",
                f"works as {APP_ROLE}, which can append and erase, and change nothing else",
            )
        superuser = await connection.fetchval("select rolsuper from pg_roles where rolname = user")
        if superuser and not embedded:
            found = f"the login {facts.user} is a superuser, who may do anything"
            advice = f"give the service a login of its own, a member of {APP_ROLE}"
            self.say("login", "warn", found, advice)

    async def _condition(self, connection: asyncpg.Connection[Any]) -> None:
        invalid = await connection.fetchval(
            "select array_agg(indexrelid::regclass::text) from pg_index"
            " join pg_class on pg_class.oid = indexrelid"
            " where not indisvalid and relnamespace = to_regnamespace('eventlog')"
        )
        if invalid:
            advice = f"run: reindex index concurrently {invalid[0]}"
            self.say("indexes", "fail", f"invalid: {', '.join(invalid)}", advice)
        record = await connection.fetchrow(
            "select (select count(*) from pg_stat_activity where backend_type = 'client backend'),"
            " current_setting('max_connections')::int"
        )
        assert record is not None
        used, most = record
        state: State = "warn" if used > most * CONNECTIONS_SHARE_MAX else "ok"
        self.say("connections", state, f"{used} of {most}", "raise max_connections, or pool them")

    # --- Redis ---

    async def _redis(self, servers: Servers) -> bool:
        if servers.redis_url is None:
            self.say("Redis", "ok", "none, on purpose: subscriptions poll Postgres")
            return False
        link = RedisLink(servers.redis_url)
        try:
            info = parse_info(await link.call("INFO"))
        except RedisDown as error:
            advice = (
                "nothing is lost by that; live subscribers are slower. Check EVENTLOG_REDIS_URL"
            )
            self.say("Redis", "fail", f"{servers.origin[1]}: {error}", advice)
            return False
        finally:
            await link.aclose()
        where = servers.origin[1]
        if not servers.redis_embedded:
            where = f"{info.get('valkey_version') or info.get('redis_version', '?')}: {where}"
        self.say("Redis", "ok", where)
        policy = info.get("maxmemory_policy", "?")
        state: State = "warn" if policy.startswith("allkeys") else "ok"
        advice = "feeds may be evicted, and are repaired at a cost; set maxmemory-policy noeviction"
        self.say("eviction", state, policy, advice)
        used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
        state = "warn" if most and used > most * MEMORY_SHARE_MAX else "ok"
        limit = size(most) if most else "no limit"
        advice = "raise maxmemory, or lower EVENTLOG_FEED_ROWS_MAX"
        self.say("memory", state, f"{size(used)} of {limit}", advice)
        return True

    # --- the log ---

    async def _log(self, redis_works: bool) -> None:
        try:
            async with EventLog.open(settings=self._settings) as log:
                heads = await log.store.feed_heads()
                rows = plural(sum(heads), "row")
                found = f"{rows} in {len(heads)} shards, tenant {log.store.tenant_id}"
                self.say("log", "ok", found)
                if redis_works and log.fanout is not None:
                    self._feeds(heads, await log.fanout.ends())
                await self._views(log)
                self.findings.append(await compaction_finding(log))
        except EventLogError as error:
            self.say("log", "fail", str(error))

    def _feeds(self, heads: list[int], ends: list[int]) -> None:
        pairs = list(zip(heads, ends, strict=True))
        behind = [head - end for head, end in pairs if end < head]
        ahead = sum(1 for head, end in pairs if end > head + BEHIND_ROWS_MAX)
        if ahead:
            found = f"{plural(ahead, 'feed')} in Redis go on where the log ends"
            advice = (
                "was the database restored? A relay leaves the old feeds behind: eventlog relay"
            )
            self.say("feeds", "fail", found, advice)
            return
        found = f"{plural(sum(behind), 'row')} behind the log"
        if behind:
            found += f", in {plural(len(behind), 'shard')}"
        state: State = "warn" if sum(behind) > BEHIND_ROWS_MAX else "ok"
        self.say("feeds", state, found, "does a relay run? Start one: eventlog relay")

    async def _views(self, log: EventLog) -> None:
        store = postgres_of(log)
        embedded = log.servers is not None and log.servers.postgres_embedded
        for name in await projection_names(store):
            lags = await lag(store, name)
            self.findings += lag_findings(name, lags, embedded=embedded)
        counts = await store.fetch("parked_counts")
        self.findings += parked_findings(dict(counts))  # type: ignore[arg-type]
        self.findings += version_findings(await due(log))

    # --- embedded servers ---

    async def _data_folder(self) -> None:
        for each in await server_status(self._settings):
            if each.restarts:
                found = f"{each.name} died and was started again {plural(each.restarts, 'time')}"
                self.say(each.name, "warn", found, f"see {self._settings.data}/{each.name}.log")
        folder = self._settings.data
        free = shutil.disk_usage(folder).free
        state: State = "warn" if free < FREE_BYTES_MIN else "ok"
        found = f"{folder}: {size(size_of(folder))}, {size(free)} free"
        self.say("data folder", state, found, "make room, or set EVENTLOG_DATA to another disk")
