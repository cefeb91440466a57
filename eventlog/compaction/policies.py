"""Where policies come from: the session's own events, its user's, the log's, the settings.

A user's policy and the log's are kept like everything else, as events: in a session that holds
nothing but them. So it is known who changed what when, and every process sees it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from eventlog.compaction.policy import CompactionPolicy, policy_of
from eventlog.envelope import Appended, owner_id_of, session_id_of
from eventlog.errors import InvalidRequest, InvalidSetting
from eventlog.events import CompactionPolicySet
from eventlog.state import SessionState

if TYPE_CHECKING:
    from eventlog.log import EventLog

KEY: Final = "eventlog:compaction-policy"
"""Key of the session that holds the log's policy; a user's has the user's number behind it."""
KNOWN_SECONDS: Final = 3.0
"""How long a process may not notice that a user's policy, or the log's, was changed."""
KNOWN_MAX: Final = 10_000
"""Users whose policy a process remembers."""


class Policies:
    """The compaction policies of one log."""

    def __init__(self, log: EventLog, tenant_id: int | None = None) -> None:
        self._log = log
        self._tenant_id = log.settings.tenant_id if tenant_id is None else tenant_id
        self._known: dict[UUID, tuple[float, CompactionPolicy | None]] = {}
        self._default: CompactionPolicy | None = None

    def of_tenant(self, tenant_id: int) -> Policies:
        """The policies of another tenant, for workers that see all of them; only to be read."""
        return self if tenant_id == self._tenant_id else Policies(self._log, tenant_id)

    @property
    def default(self) -> CompactionPolicy:
        """What the settings say. Raises `InvalidSetting`."""
        if self._default is None:
            given = self._log.settings.compaction
            try:
                self._default = CompactionPolicy() if given is None else policy_of(given)
            except InvalidRequest as error:
                raise InvalidSetting(f"EVENTLOG_COMPACTION: {error}") from None
        return self._default

    async def of(self, state: SessionState) -> CompactionPolicy:
        """The policy that counts for a session: the nearest there is."""
        if state.compaction_policy is not None:
            return state.compaction_policy
        user = None if state.user_id is None else await self.get(user_id=state.user_id)
        return user or await self.get() or self.default

    async def get(self, *, user_id: str | None = None) -> CompactionPolicy | None:
        """The policy that was set for a user, or for the log; None: none was."""
        session_id = self._session_id(user_id)
        known_until, policy = self._known.get(session_id, (0.0, None))
        if time.monotonic() < known_until:
            return policy
        if await self._log.replayer.head(session_id) is None:
            policy = None
        else:
            policy = (await self._log.replayer.context_state(session_id, None)).compaction_policy
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[session_id] = (time.monotonic() + KNOWN_SECONDS, policy)
        return policy

    async def set(
        self, policy: CompactionPolicy | str | None, *, user_id: str | None = None
    ) -> Appended:
        """Set the policy of a user, or of the log: a policy, a preset's name, or JSON.

        None: none of its own any more. Raises `InvalidRequest`.
        """
        chosen = None if policy is None else policy_of(policy)
        session = await self._log.create_session(self._key(user_id), title="compaction policy")
        appended = await session.append(CompactionPolicySet(policy=chosen))
        self._known.pop(session.id, None)
        return appended

    def _session_id(self, user_id: str | None) -> UUID:
        return session_id_of(self._key(user_id), self._tenant_id)

    def _key(self, user_id: str | None) -> str:
        if user_id is None:
            return KEY
        return f"{KEY}:{owner_id_of(user_id, self._tenant_id)}"
