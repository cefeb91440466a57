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


def query(name: str) -> str:
    """Text of one query; raises `KeyError` for a name that isn't there."""
    return load_queries()[name]
