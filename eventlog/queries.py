"""The named queries of sql/queries.sql, as attributes of `QUERIES`.

A query starts with `-- name: read_session`; everything up to the next name is its text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def sql_folder() -> Path:
    """Where the SQL files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_sql"
    return installed if installed.is_dir() else package.parent / "sql"


@cache
def load_queries() -> dict[str, str]:
    """All queries by name, in the order of the file."""
    parts = _NAME.split((sql_folder() / "queries.sql").read_text("utf-8"))
    queries = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    if len(queries) * 2 != len(parts) - 1:
        raise ValueError("sql/queries.sql has two queries of the same name")
    return queries


VIEW_TABLES: Final = (
    *("session_views", "message_views", "tool_call_views", "agent_views", "handoff_views"),
    *("run_views", "usage_views", "scratchpad_views"),
)
"""Tables that projectors keep, and that can be built anew beside the ones that are served."""
_VIEW_TABLE: Final = re.compile(rf"\beventlog\.({'|'.join(VIEW_TABLES)})\b")


@cache
def query(name: str, suffix: str = "") -> str:
    """Text of one query; raises `KeyError` for a name that isn't there.

    With a suffix it speaks of the tables of views whose names end like that.
    """
    text = load_queries()[name]
    return _VIEW_TABLE.sub(rf"eventlog.\1{suffix}", text) if suffix else text
