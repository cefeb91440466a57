"""`eventlog policy`: the one that counts, where it comes from, and what can't be one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eventlog import EventLog
from eventlog.compaction.policy import PRESETS, CompactionPolicy
from eventlog.testing import message, until
from tests.cli.command import CommandLine
from workers.cli import run
from workers.commands.policy import policy


async def test_policy_when_set_nearer_counts_and_says_where_it_comes_from(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Default, settings, log, user, session; each unset again uncovers the next."""
    user = f"user-{key}"
    await opened.create_session(key, user_id=user)

    def counts(*arguments: str) -> tuple[str, str]:
        told = told_of(eventlog, *(arguments or ("--session", key)))
        return told["origin"], told["policy"]["name"]

    assert counts() == ("default", "")
    eventlog.environment["EVENTLOG_COMPACTION"] = "codex"
    assert counts() == ("settings", "codex")
    try:
        eventlog.run("policy", "--set", "module-9")
        assert counts() == counts("--user", user) == counts("--user", "nobody")
        assert counts() == ("log", "module-9")
    finally:
        eventlog.run("policy", "--unset")
    eventlog.run("policy", "--user", user, "--set", "off")
    assert counts() == counts("--user", user) == ("user", "off")
    assert counts("--user", "nobody") == ("settings", "codex")
    eventlog.run("policy", "--session", key, "--set", '{"keep_messages": 7}')
    assert counts() == ("session", "")
    assert counts("--user", user) == ("user", "off")
    eventlog.run("policy", "--session", key, "--unset")
    assert counts() == ("user", "off")
    eventlog.run("policy", "--user", user, "--unset")
    assert counts() == ("settings", "codex")


async def test_policy_when_set_counts_for_processes_that_run(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """What the command sets is what the library goes by, a moment later; all fields are there."""
    user = f"user-{key}"
    session = await opened.create_session(key, user_id=user)
    assert (await session.compaction_policy()).name == ""

    told = told_of(eventlog, "--user", user, "--set", '{"keep_messages": 7, "name": "mine"}')

    async def noticed() -> bool:
        return await session.compaction_policy() == CompactionPolicy(name="mine", keep_messages=7)

    await until(noticed)
    assert told["policy"].keys() == set(CompactionPolicy.__struct_fields__)


async def test_policy_when_shown_says_what_it_means_for_the_model(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """A share of the window in tokens; what stays; in 80 columns."""
    session = await opened.create_session(key)
    await session.append(message("hi", "assistant", model="gpt-5-mini"))

    shown = eventlog.run("policy", "--session", key, "--set", "codex", columns=80).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]

    assert lines[0] == "codex set for the session"
    assert lines[1] == "due from 220,000 tokens, or from 90% of the model's window"
    assert lines[2] == "here from 220,000 tokens on (the window of gpt-5-mini is 272,000)"
    assert "newest 2 messages, at most 10,000 tokens stay word for word" in lines
    assert all(len(line) <= 80 for line in shown.splitlines())
    off = eventlog.run("policy", "--session", key, "--set", "off").stdout
    assert "never by itself: only when somebody asks for it" in off


def test_policy_when_its_help_is_read_explains_each_preset() -> None:
    """By name, with its threshold."""
    manual = policy.__doc__ or ""

    for each in PRESETS.values():
        assert f"\n        {each.name} " in manual
        assert each.threshold_tokens is None or f"{each.threshold_tokens:,}" in manual


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "codexx"), "there are codex, module-9, off"),
        (("--set", "{"), "can't be read"),
        (("--set", '{"keep_messages": "many"}'), "can't be read"),
        (("--set", '{"keep_messages": -1}'), "must be 0 to"),
        (("--set", '{"treshold_tokens": 1}'), "has no 'treshold_tokens'"),
        (("--set", "codex", "--unset"), "one of --set and --unset"),
        (("--user", "a", "--session", "b"), "one of --user and --session"),
    ],
)
def test_policy_when_it_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Before any server is asked, in one line."""
    code = run(["policy", *arguments])

    output, errors = capsys.readouterr()
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert said in errors


def test_policy_when_settings_or_session_are_wrong_says_so(eventlog: CommandLine, key: str) -> None:
    """A session that isn't there is refused; a setting that can't be read is named."""
    assert "does not exist" in eventlog.run("policy", "--session", key, code=1).stderr
    eventlog.environment["EVENTLOG_COMPACTION"] = "codexx"
    assert "EVENTLOG_COMPACTION: no compaction policy" in eventlog.run("policy", code=2).stderr
    findings = json.loads(eventlog.run("doctor", "--json", code=1).stdout)
    (found,) = [each for each in findings if each["what"] == "compaction"]
    assert (found["state"], "EVENTLOG_COMPACTION" in found["found"]) == ("fail", True)


def test_doctor_when_all_is_well_tells_policy_and_model(eventlog: CommandLine) -> None:
    """Without a key, and with one, which it doesn't show."""

    def found() -> str:
        findings = json.loads(eventlog.run("doctor", "--json").stdout)
        (one,) = [each for each in findings if each["what"] == "compaction"]
        assert one["state"] == "ok"
        return str(one["found"])

    assert "without a model" in found()
    eventlog.environment |= {
        "EVENTLOG_COMPACTION": "codex",
        "EVENTLOG_COMPACTION_MODEL": "m-1",
        "EVENTLOG_COMPACTION_API_KEY": "secret-key",
    }
    assert found() == "policy codex; summaries by m-1"


def told_of(eventlog: CommandLine, *arguments: str) -> dict[str, Any]:
    """What the command says as JSON."""
    told: dict[str, Any] = json.loads(eventlog.run("policy", *arguments, "--json").stdout)
    return told
