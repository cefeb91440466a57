"""`eventlog compact`, `uncompact`, `compactions`, `context`: told first, done for good, undone."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from typing import Any

import pytest
from rich.cells import cell_len

from eventlog import CompactionCompleted, CompactionFailed, EventLog, Session, ToolCall
from eventlog import events as ev
from eventlog.testing import message
from tests.cli.command import MODULE, CommandLine
from tests.support.model_server import model_server
from workers.cli import run

LONG = "The quick brown fox jumps over the lazy dog near the river bank at dawn. " * 12
EVIL = "\x1b]52;c;aGk=\x07\x9b2J \u202eexe.txt"
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
KEEP_TWO = '{"keep_messages": 2, "keep_user_tokens": 0, "orphan_seconds": 0}'
DEAD_PORT = "http://127.0.0.1:1/v1"


# --- what it would do ----------------------------------------------------------------------------


async def test_dry_run_when_asked_tells_the_fate_of_each_message_and_changes_nothing(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Every reason to stay there is, and calls that will be closed."""
    session = await everything(opened, key)
    head = await session.head()

    told = dry_run(eventlog, key, KEEP_TWO)

    whys = {each["text"][:12].strip(): each["why"] for each in told["messages"]}
    assert whys == {
        "be brief": "instructions",
        "The quick br": None,
        "an old one": None,
        "keep this": "pinned",
        "→ lost": None,
        "→ asked": "with_its_call",
        "found": "pinned",
        "now what": "newest",
        "an answer": "newest",
    }
    closes = {
        each["seq"]: each["closes_calls"] for each in told["messages"] if each["closes_calls"]
    }
    assert list(closes.values()) == [["lost-1"]]
    assert told["plan"]["closing"] == ["lost-1"]
    assert told["facts"]["tokens"] > 0
    assert told["nothing_to_do"] is None
    assert await session.head() == head


async def test_dry_run_when_calls_may_still_be_answered_keeps_them(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The same session, but with patience; and the user's words within a budget."""
    await everything(opened, key)

    told = dry_run(eventlog, key, '{"keep_messages": 2, "orphan_seconds": 600}')

    whys = {each["text"][:12].strip(): each["why"] for each in told["messages"]}
    assert whys["→ lost"] == "waiting_call"
    assert whys["The quick br"] == "user_budget"
    assert not any(each["closes_calls"] for each in told["messages"])


async def test_dry_run_when_then_done_has_told_the_truth(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """What was to be summarised is; what was to stay does; the calls are closed."""
    session = await everything(opened, key)
    told = dry_run(eventlog, key, KEEP_TWO)

    eventlog.run("compact", key, "--policy", KEEP_TWO, "--extractive")

    state = await session.context_state()
    stays = [each["seq"] for each in told["messages"] if each["fate"] == "stays"]
    assert [each.seq for each in state.context_messages()] == stays
    assert stays == sorted(told["plan"]["kept"] + told["plan"]["newest"])
    assert list(state.closed_calls) == ["lost-1"]
    made = state.compactions[-1]
    assert (made.from_seq, made.to_seq) == (told["plan"]["from_seq"], told["plan"]["to_seq"])
    assert made.tokens_before == told["plan"]["tokens"]
    assert (made.tokens_after or 0) <= told["plan"]["summary_tokens_max"]


async def test_dry_run_when_printed_fits_the_width_and_says_why_it_is_not_due(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Wide characters take two columns; the table names reasons, totals and the threshold."""
    session = await everything(opened, key)
    await session.append(message("漢字🎉" * 100, agent="計画" * 10))

    for columns in (80, 120):
        shown = eventlog.run(
            "compact", key, "--dry-run", "--policy", KEEP_TWO, columns=columns
        ).stdout
        assert all(cell_len(line) <= columns for line in shown.splitlines())
        found = re.findall(r"^([#s ].*?)(?:what|stays:|summarised\b)", shown.split("\n\n")[0], re.M)
        assert len(found) == 12  # ten messages, facts, titles
        assert len({cell_len(before) for before in found}) == 1
        for words in ("summarised, closed", "stays: pinned facts", "stays: instructions", "漢字"):
            assert words in shown
        assert re.search(r"^summarised  events 1 to \d+: 4 messages", shown, re.M)
        assert re.search(r"^not due .*, the threshold is 115,200", shown, re.M)
    assert "計画" in shown


async def test_dry_run_when_there_is_nothing_to_do_says_why(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Too few messages; off; and over the threshold it is due."""
    session = await opened.create_session(key)
    await session.append(message(LONG))

    few = eventlog.run("compact", key, "--dry-run", "--policy", "module-9").stdout
    off = json.loads(eventlog.run("compact", key, "--dry-run", "--policy", "off", "--json").stdout)
    small = json.loads(
        eventlog.run(
            "compact", key, "--dry-run", "--policy", '{"threshold_tokens": 50}', "--json"
        ).stdout
    )

    assert "nothing to do: 1 message in the context; the policy demands 10" in few
    assert (off["due"]["due"], off["due"]["why"]) == (False, "off")
    assert (small["due"]["due"], small["due"]["why"]) == (True, "over_threshold")
    assert small["due"]["threshold"] == 50


# --- doing it ------------------------------------------------------------------------------------


async def test_compact_when_there_is_no_key_says_so_and_picks_sentences(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The events stay; a second time there is nothing to do; undoing it brings all back."""
    session = await talk(opened, key)
    before = [each async for each in session.read()]
    context = await session.context()

    done = eventlog.run("compact", key, "--policy", KEEP_TWO)
    again = eventlog.run("compact", key, "--policy", KEEP_TWO)

    assert "there is no key for a model" in done.stderr
    assert f"✓ {key} is compacted at seq {await session.head()}" in done.stdout
    assert "without a model: sentences of the conversation" in done.stdout
    assert again.stdout.startswith("nothing to do: ")
    assert not again.stderr
    events = [each async for each in session.read()]
    assert events[: len(before)] == before
    (made,) = [each.event for each in events[len(before) :]]
    assert isinstance(made, CompactionCompleted)
    assert made.method == "extractive"
    assert len(await session.context()) == 3
    undone = eventlog.run("uncompact", key).stdout
    assert f"✓ the compaction #{len(before) + 1} of {key} is taken back" in undone
    assert await session.context() == context


async def test_compact_when_a_model_answers_shows_its_summary(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """With the settings' endpoint and key; what is asked for reaches it; the key is not shown."""
    session = await talk(opened, key)
    async with model_server() as server:
        eventlog.environment |= endpoint(server.base_url)

        done = await in_thread(
            eventlog,
            "compact",
            key,
            "--policy",
            KEEP_TWO,
            "--instructions",
            "keep PRICES",
            "--json",
        )

        (request,) = server.requests
    told = json.loads(done.stdout)
    assert told["status"] == "compacted"
    made = told["compaction"]
    assert (made["method"], made["model"], made["calls"]) == ("model", "m-1", 1)
    assert made["summary"].startswith("## Goal\nSummary of")
    assert made["usage"]["input_tokens"] == 100
    assert made["duration_ms"] >= 0
    assert told["context"]["after"]["tokens"] < told["context"]["before"]["tokens"]
    assert "keep PRICES" in json.dumps(request.body)
    assert "secret-key" not in done.stdout + done.stderr
    assert (await session.compactions())[-1].seq == made["seq"]
    listed = eventlog.run("compactions", key, columns=120).stdout
    assert re.search(rf"#{made['seq']} +1-\d+ .* m-1 ", listed)
    shown = eventlog.run("show", key).stdout
    assert f"compaction #{made['seq']}: events 1 to {made['to_seq']}" in shown
    assert "by m-1 ──" in shown


async def test_compact_when_the_model_is_away_exits_1_and_says_why_everywhere(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """One line; the failure is in the log, and in all commands that show the session."""
    session = await talk(opened, key)
    context = await session.context()
    eventlog.environment |= endpoint(DEAD_PORT)

    failed = await in_thread(eventlog, "compact", key, "--policy", KEEP_TWO, code=1)

    assert failed.stderr.startswith("eventlog: connection_lost: ")
    assert failed.stderr.endswith("the context is as it was; --extractive needs no model\n")
    assert failed.stderr.count("\n") == 1
    assert not failed.stdout
    last = [each async for each in session.read()][-1]
    assert isinstance(last.event, CompactionFailed)
    assert last.event.kind == "connection_lost"
    assert await session.context() == context
    for command in ("compactions", "show"):
        said = eventlog.run(command, key, columns=200).stdout
        assert f"(#{last.seq}): connection_lost, attempt 1; the next is due" in said
    told = json.loads(eventlog.run("compactions", key, "--json").stdout)
    assert told["compactions"] == []
    assert told["failure"]["kind"] == "connection_lost"
    assert told["failure"]["next_attempt_at"] > told["failure"]["recorded_at"]
    due = dry_run(eventlog, key, '{"threshold_tokens": 50, "keep_messages": 2}')["due"]
    assert due["why"] == "backing_off"
    eventlog.run("compact", key, "--policy", KEEP_TWO, "--extractive")
    assert "connection_lost" not in eventlog.run("show", key).stdout


async def test_compact_when_interrupted_leaves_nothing_behind(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Ctrl-C while the model works: the exit code of it, and not one event."""
    session = await talk(opened, key)
    head = await session.head()
    async with model_server() as server:
        server.pause()
        eventlog.environment |= endpoint(server.base_url)
        async with await eventlog.start("compact", key, "--policy", KEEP_TWO) as running:
            await asyncio.wait_for(server.arrived(1), 20)
            await running.interrupt()

            assert running.process.returncode == 130
            assert running.output == ""
        assert await session.head() == head


async def test_compact_when_somebody_appends_meanwhile_keeps_both(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The model is asked outside of any lock: the context is read and grows while it works."""
    session = await talk(opened, key)
    async with model_server() as server:
        server.pause()
        eventlog.environment |= endpoint(server.base_url)
        async with await eventlog.start("compact", key, "--policy", KEEP_TWO) as running:
            await asyncio.wait_for(server.arrived(1), 20)
            await asyncio.wait_for(session.append(message("meanwhile")), 20)
            server.resume()
            assert await running.end() == 0
    contents = [str(each["content"]) for each in await session.context()]
    assert contents[-1] == "meanwhile"
    assert "Summary of" in contents[0]


async def test_compact_when_on_a_terminal_shows_that_it_works(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """With the model's name, until there is a summary."""
    await talk(opened, key)
    async with model_server() as server:
        eventlog.environment |= endpoint(server.base_url)
        code, shown = await asyncio.to_thread(
            eventlog.run_on_terminal, "compact", key, "--policy", KEEP_TWO
        )

    assert code == 0
    assert "summarising with m-1 …" in shown
    assert "is compacted at seq" in shown


async def test_compact_when_a_worker_is_asked_and_none_runs_says_it_is_pending(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The request stands in the log; there is nothing to ask for where nothing is to do."""
    session = await talk(opened, key)
    eventlog.run("policy", "--session", key, "--set", KEEP_TWO)

    pending = eventlog.run("compact", key, "--worker", "--wait", "0.1", code=1)

    assert "no compact-worker answered" in pending.stderr
    events = [each.event async for each in session.read()]
    assert isinstance(events[-1], ev.CompactionRequested)
    assert "asked for at #" in eventlog.run("compactions", key).stdout
    eventlog.run("policy", "--session", key, "--set", '{"messages_min": 1000}')
    head = await session.head()
    none = eventlog.run("compact", key, "--worker", "--wait", "0.1").stdout
    assert none.startswith("nothing to do: ")
    assert await session.head() == head


async def test_compact_when_a_worker_runs_waits_for_it(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """The worker goes by the session's policy."""
    session = await talk(opened, key)
    await session.set_compaction_policy(KEEP_TWO)
    async with await eventlog.start("compact-worker"):
        done = await in_thread(eventlog, "compact", key, "--worker", "--json")

    told = json.loads(done.stdout)
    assert told["status"] == "compacted"
    assert told["compaction"]["method"] == "extractive"
    assert len(await session.context()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "nonsense"), "codex, module-9, off"),
        (("--policy", '{"keep_messages": "many"}'), "can't be read"),
        (("--policy", '{"keep": 3}'), "has no 'keep'"),
        (("--policy", '{"threshold_share": 7}'), "must be 0.01 to 1"),
        (("--worker", "--policy", "codex"), "are for compacting here"),
        (("--worker", "--extractive"), "are for compacting here"),
        (("--worker", "--wait", "0"), "--wait is 0"),
        (("--wait", "nan"), "--wait is nan"),
    ],
)
def test_compact_when_it_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Before any server is asked, in one line."""
    code = run(["compact", "k", *arguments])

    output, errors = capsys.readouterr()
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert said in errors


async def test_commands_when_there_is_no_such_session_say_so(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """All of them; and a closed one takes no summary, but can be looked at."""
    for command in ("compact", "uncompact", "compactions", "context", "fact"):
        assert "does not exist" in eventlog.run(command, key, code=1).stderr
    session = await talk(opened, key)
    await session.close()

    assert "is closed" in eventlog.run("compact", key, code=1).stderr
    told = dry_run(eventlog, key, KEEP_TWO)
    assert told["due"]["why"] == "ended"
    assert told["plan"]["summarised"]


# --- undoing and listing -------------------------------------------------------------------------


async def test_uncompact_when_given_a_seq_takes_that_one_back(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """And refuses what isn't there, or is undone already."""
    session = await talk(opened, key)
    first = await compacted(session, "one")
    second = await compacted(session, "two")

    told = json.loads(eventlog.run("uncompact", key, "--seq", str(first), "--json").stdout)

    assert (told["compaction"]["seq"], told["compaction"]["summary"]) == (first, "one")
    assert [bool(each.reverted_seq) for each in await session.compactions()] == [True, False]
    assert "none at seq" in eventlog.run("uncompact", key, "--seq", str(first), code=2).stderr
    eventlog.run("uncompact", key)
    assert "no compaction that stands" in eventlog.run("uncompact", key, code=2).stderr
    assert second


async def test_compactions_when_listed_fit_the_width(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Where there is no room, what says least gives way; undone ones say so."""
    session = await talk(opened, key)
    assert eventlog.run("compactions", key).stdout == "no compactions\n"
    first = await compacted(session, "one", model="模型" * 20, prompt_version="v3", calls=2)
    await session.uncompact()
    await compacted(
        session, "two", tokens_before=1_234_567, tokens_after=12_345, duration_ms=61_000
    )

    wide = eventlog.run("compactions", key, columns=160).stdout.splitlines()
    narrow = eventlog.run("compactions", key, columns=80).stdout.splitlines()

    assert wide[0].split() == [
        *("seq", "range", "kept", "tokens", "by", "prompt", "calls", "took", "when", "undone")
    ]
    assert wide[1].startswith(f"#{first}")
    assert f"at #{first + 1}" in wide[1]
    assert "1,234,567 → 12,345" in wide[2]
    assert len(wide) == len(narrow) == 3
    assert all(cell_len(line) <= 80 for line in narrow)
    assert "prompt" not in narrow[0]
    assert "undone" in narrow[0]


# --- looking at it -------------------------------------------------------------------------------


async def test_context_when_shown_marks_facts_and_the_summary(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Sizes by role and of the window; as JSON what a provider is given; at any point."""
    session = await talk(opened, key)
    await session.pin_fact("budget", "500 EUR")
    before = await session.head()
    made = await compacted(session, "They talked.", kept=[2])

    shown = eventlog.run("context", key).stdout
    listed = json.loads(eventlog.run("context", key, "--json").stdout)
    earlier = json.loads(eventlog.run("context", key, "--at", str(before), "--json").stdout)
    sizes = json.loads(
        eventlog.run("context", key, "--tokens", "--model", "gpt-5-mini", "--json").stdout
    )

    assert re.search(r"^user · 1 · pinned facts · ~?\d+ tokens$", shown, re.M)
    assert re.search(rf"^user · 3 · summary #{made} · ~?\d+ tokens$", shown, re.M)
    assert re.search(r"^summary +\d+  █+ \d+%$", shown, re.M)
    assert listed == await session.context()
    assert earlier == await session.context(at=before)
    assert len(earlier) > len(listed)
    assert (sizes["model"], sizes["window"]) == ("gpt-5-mini", 272_000)
    assert sizes["tokens"] == sum(sizes["by_role"].values())
    only_sizes = eventlog.run("context", key, "--tokens", "--model", "gpt-5-mini").stdout
    assert "of 272,000 " in only_sizes
    assert "They talked." not in only_sizes


async def test_tail_when_the_context_changes_tells_it_in_words(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Every event of compaction, and the reason of a failure."""
    session = await opened.create_session(key)
    calls = [ToolCall(id="c1", name="search", arguments="{}")]
    asked = ev.MessageAdded(role="assistant", content="", tool_calls=calls, message_id="m1")
    await session.append(asked)
    await session.append(
        [
            ev.CompactionRequested(instructions="keep prices"),
            CompactionFailed(reason="nobody there", kind="timeout", attempts=3),
            ev.ToolCallClosed(tool_call_id="c1", reason="no output"),
            ev.MessagePinned(message_id="m1"),
            ev.MessagePinned(message_id="m1", pinned=False),
            ev.FactPinned(name="budget", text="500 EUR"),
            ev.FactPinned(name="budget"),
            ev.CompactionPolicySet(),
        ]
    )
    await session.set_compaction_policy("codex")
    await compacted(session, "short")
    await session.uncompact()
    await session.close()

    said = eventlog.run("tail", key, "--after", "0", columns=120).stdout

    for words in (
        "compaction.requested a summary is asked for: keep prices",
        "── no summary: timeout, attempt 3 ──\n  nobody there",
        "tool_call.closed search is not waited for any more: no output",
        "message.pinned message m1 stays in the context",
        "message.pinned message m1 is no longer pinned",
        "fact.pinned budget: 500 EUR",
        "fact.pinned budget is removed",
        "compaction.policy_set by the policy of the user, or of the log",
        "compaction.policy_set the session's own policy: codex",
        "compaction.reverted the summary of #",
    ):
        assert words in said, words


async def test_texts_when_evil_reach_no_terminal(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Messages, ids, facts, summaries, reasons, names of models and policies."""
    session = await opened.create_session(f"{key} {EVIL}")
    calls = [ToolCall(id=EVIL, name=EVIL, arguments=EVIL)]
    await session.append(message(EVIL, agent=EVIL, model=EVIL, message_id=EVIL))
    await session.append(message("", role="assistant", tool_calls=calls, agent=EVIL))
    await session.append(message(f"{EVIL} {LONG}"))
    await session.pin_fact(EVIL, EVIL)
    await session.pin(EVIL)
    await session.set_compaction_policy(json.dumps({"name": EVIL, "keep_messages": 1}))
    await compacted(session, EVIL, model=EVIL, prompt_version=EVIL, method="custom", to_seq=2)
    await session.append(CompactionFailed(reason=EVIL, kind=EVIL))
    name = f"{key} {EVIL}"
    commands: list[tuple[str, ...]] = [
        ("compact", name, "--dry-run"),
        ("compact", name, "--dry-run", "--json"),
        ("compact", name, "--policy", KEEP_TWO),
        ("compactions", name),
        ("compactions", name, "--json"),
        ("context", name),
        ("context", name, "--full"),
        ("fact", name),
        ("fact", name, EVIL, "x"),
        ("pin", name, EVIL),
        ("policy", "--session", name),
        ("policy", "--session", name, "--json"),
        ("show", name),
        ("tail", name, "--after", "0"),
        ("uncompact", name),
    ]
    await session.close()
    for command in commands:
        _, output = eventlog.run_on_terminal(*command)
        left = re.sub(r"\x1b\[(\?25[lh]|[\d;]*[mK]|1A|\d+D)|\r", "", output)  # rich's own
        assert not OBEYED.search(left), (command, OBEYED.findall(left))


async def test_output_when_its_reader_leaves_ends_quietly(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """`eventlog context … --full | head`: no traceback, the exit code of a broken pipe."""
    session = await opened.create_session(key)
    await session.append(message("a line of text\n" * 50_000))
    pipe = subprocess.Popen(
        [*MODULE, "context", key, "--full"],
        env=eventlog.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.readline()
    pipe.stdout.close()
    errors = pipe.stderr.read()
    pipe.stderr.close()

    assert pipe.wait(20) == 141
    assert errors == b""


# --- what the tests are made of ------------------------------------------------------------------


async def everything(log: EventLog, key: str) -> Session:
    """A session in which there is every reason for a message to stay."""
    session = await log.create_session(key)
    await session.append(
        [
            message("be brief", "system"),
            message(LONG),
            message("an old one", "assistant"),
            message("keep this", message_id=f"{key}-pinned"),
            message(
                "", "assistant", tool_calls=[ToolCall(id="lost-1", name="lost", arguments="{}")]
            ),
            message(
                "", "assistant", tool_calls=[ToolCall(id="asked-1", name="asked", arguments="{}")]
            ),
            message("found", "tool", tool_call_id="asked-1", message_id=f"{key}-output"),
            message("now what"),
            message("an answer", "assistant"),
        ]
    )
    await session.pin(f"{key}-pinned")
    await session.pin(f"{key}-output")
    await session.pin_fact("budget", "500 EUR")
    return session


async def talk(log: EventLog, key: str) -> Session:
    """A session with a few long messages."""
    session = await log.create_session(key)
    for number in range(3):
        await session.append(
            [message(f"{number}? {LONG}"), message(f"{number}! {LONG}", "assistant")]
        )
    return session


async def compacted(session: Session, summary: str, **fields: Any) -> int:
    """Append a summary of the whole session so far; its seq."""
    to_seq = fields.pop("to_seq", await session.head())
    event = CompactionCompleted(summary=summary, from_seq=1, to_seq=to_seq, **fields)
    return (await session.append(event)).last_seq


def dry_run(eventlog: CommandLine, key: str, policy: str) -> dict[str, Any]:
    """What it says, as JSON."""
    said = eventlog.run("compact", key, "--dry-run", "--policy", policy, "--json").stdout
    told: dict[str, Any] = json.loads(said)
    return told


def endpoint(base_url: str) -> dict[str, str]:
    """Settings of a model there."""
    return {
        "EVENTLOG_COMPACTION_BASE_URL": base_url,
        "EVENTLOG_COMPACTION_MODEL": "m-1",
        "EVENTLOG_COMPACTION_API_KEY": "secret-key",
    }


async def in_thread(
    eventlog: CommandLine, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command while this loop goes on: the model's server lives in it."""
    return await asyncio.to_thread(lambda: eventlog.run(*arguments, code=code))
