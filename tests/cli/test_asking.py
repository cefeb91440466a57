"""The commands that ask the views: search, usage, messages, and lists with forks."""

from __future__ import annotations

import json

import pytest

from eventlog import EventLog, MessageAdded, ToolCall, Usage
from tests.cli.command import CommandLine
from tests.cli.test_commands import EVIL
from workers.commands.usage import bar


async def conversation(opened: EventLog, key: str) -> None:
    """Two agents, a tool, a fork, and a reply that would write to the terminal."""
    session = await opened.create_session(key, user_id=key, title=f"Weather {key}")
    await session.append(MessageAdded(role="user", content=f"Will it rain in Kyōto? {key}"))
    call = ToolCall(id="c1", name="forecast")
    await session.append(MessageAdded(role="assistant", agent="planner", tool_calls=[call]))
    await session.append(MessageAdded(role="tool", content="heavy rain", tool_call_id="c1"))
    used = Usage(input_tokens=1_234, output_tokens=56)
    told = MessageAdded(role="assistant", agent="coder", content=f"rain {EVIL}", usage=used)
    await session.append(told)
    fork = await session.fork(key=f"{key}-fork")
    await fork.append(MessageAdded(role="assistant", content="snow", usage=used))


@pytest.mark.parametrize("columns", [80, 160])
async def test_search_when_it_finds_shows_who_said_what(
    eventlog: CommandLine, opened: EventLog, key: str, columns: int
) -> None:
    """Newest first, at any width, and nothing that a terminal would obey."""
    await conversation(opened, key)

    shown = eventlog.run("search", "rains", "--user", key, columns=columns).stdout
    one = json.loads(eventlog.run("search", "rain", "--user", key, "--limit", "1", "--json").stdout)
    rest = eventlog.run("search", "rain", "--user", key, "--cursor", one["cursor"]).stdout
    tools = eventlog.run("search", "rain", "--session", key, "--role", "tool").stdout
    none = eventlog.run("search", "rain", "-heavy", "-kyōto", "-xyz", "--user", key).stdout

    assert shown.index("assistant · coder") < shown.index("tool") < shown.index("Kyōto")
    assert f"{key} #5" in shown
    assert "\x1b" not in shown and "\x9b" not in shown and "\u202e" not in shown
    assert [(hit["seq"], hit["agent"]) for hit in one["hits"]] == [(5, "coder")]
    assert "#5" not in rest and "#4" in rest
    assert "heavy rain" in tools and "Kyōto" not in tools
    assert "#5" in none and "#4" not in none and "#2" not in none


async def test_usage_when_summed_shows_totals_and_bars(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """As a table that fits, and as JSON; names that nobody gave are dashes."""
    await conversation(opened, key)

    table = eventlog.run("usage", "--by", "agent,day", "--user", key, columns=80).stdout
    found = json.loads(eventlog.run("usage", "--by", "agent", "--user", key, "--json").stdout)
    none = eventlog.run("usage", "--user", key, "--until", "2020-01-01").stdout
    session = eventlog.run("usage", "--session", key, "--by", "session").stdout

    assert max(map(len, table.splitlines())) <= 80
    assert "coder" in table and "–" in table and "█" in table
    assert table.splitlines()[-1].split() == ["total", "2", "2,468", "112"]
    assert [(row.get("agent"), row["input_tokens"]) for row in found["usage"]] == [
        (None, 1_234),
        ("coder", 1_234),
    ]
    assert "no usage" in none
    assert "1,234" in session and "2,468" not in session


async def test_messages_when_asked_for_shows_a_page(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The newest, how to get at those before, and everything of them as JSON."""
    await conversation(opened, key)

    newest = eventlog.run("messages", key, "--limit", "2").stdout
    before = eventlog.run("messages", key, "--before", "4").stdout
    found = json.loads(eventlog.run("messages", key, "--role", "assistant", "--json").stdout)
    coders = eventlog.run("messages", key, "--agent", "coder").stdout
    none = eventlog.run("messages", key, "--after", "99").stdout

    assert "heavy rain" in newest and "Kyōto" not in newest and "more: --before 4" in newest
    assert "Kyōto" in before and "heavy" not in before and "more" not in before
    assert [message.get("outputs") for message in found["messages"]] == [{"c1": 4}, None]
    assert "coder" in coders and "planner" not in coders
    assert "no messages" in none


async def test_sessions_when_shown_as_a_tree_hang_forks_below(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """And lists can be searched, and begin at a time."""
    await conversation(opened, key)

    tree = eventlog.run("sessions", "--user", key, "--tree").stdout.splitlines()
    found = json.loads(
        eventlog.run("sessions", "--user", key, "--text", f"weather {key}", "--json").stdout
    )
    nested = json.loads(eventlog.run("sessions", "--user", key, "--tree", "--json").stdout)
    later = eventlog.run("sessions", "--user", key, "--updated-after", "2999-01-01T00:00Z").stdout

    assert tree[1].startswith(key) and tree[2].startswith(f"└ {key}-fork")
    assert len(found["sessions"]) == 2
    (forks,) = nested["forks"].values()
    assert [fork["key"] for fork in forks] == [f"{key}-fork"]
    assert "no sessions" in later


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search",), "no word"),
        (("search", "--", "-only"), "no word"),
        (("search", "rain", "--limt", "3"), "--limt"),
        (("search", "rain", "--since", "yesterday"), "--since"),
        (("search", "rain", "--role", "model"), "role"),
        (("usage", "--by", "week"), "--by"),
        (("usage", "--since", "yesterday"), "--since"),
        (("sessions", "--updated-after", "yesterday"), "--updated-after"),
    ],
)
def test_question_when_wrong_exits_2(
    eventlog: CommandLine, arguments: tuple[str, ...], said: str
) -> None:
    """With one message that names what was wrong."""
    assert said in eventlog.run(*arguments, code=2).stderr


def test_bar_when_drawn_shows_shares() -> None:
    """In eighths of a column; something is never nothing."""
    assert bar(1, 4) == "████"
    assert bar(0.5, 3) == "█▌"
    assert bar(0.0001, 4) == "▏"
    assert bar(0, 4) == ""
