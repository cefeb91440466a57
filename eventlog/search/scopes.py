"""Fixed-size names of what may be long, and the scopes that confine a search.

Ids and names that callers give may be longer than an index takes; their keys are not. A scope is a
lexeme beside the words of a text that says whose it is, so that "these words, of this user" is an
intersection inside the index.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

from eventlog.search.terms import SCOPE_MARK


def key_of(*parts: str | int | None) -> UUID:
    """A name for these values, the same everywhere and for ever."""
    text = "".join("-" if part is None else f"{len(str(part))}:{part}" for part in parts)
    return UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest())


def tenant_scope(tenant_id: int) -> str:
    """All texts of a tenant."""
    return f"{SCOPE_MARK}t{tenant_id}"


def owner_scope(owner_id: UUID) -> str:
    """All texts in sessions of a user; the id is unique over tenants."""
    return f"{SCOPE_MARK}u{owner_id.hex}"


def session_scope(session_id: UUID) -> str:
    """All texts of a session."""
    return f"{SCOPE_MARK}s{session_id.hex}"
