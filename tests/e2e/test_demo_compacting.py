"""`eventlog demo --compact`, as a stranger runs it; and that its checks find what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eventlog import CompactionCompleted, EventLog, MessageAdded
from tests.cli import command
from tests.cli.command import CommandLine, sample
from tests.e2e.test_local_model import HAS_WHEEL
from workers.demo.checks import Then
from workers.demo.compaction_checks import (
    Reads,
    check_paired,
    check_past,
    check_restored,
    check_said,
    check_smaller,
    check_untouched,
    check_whole,
)

CHECKS = 7
LOCAL_SECONDS_MAX = 300.0
"""It takes 15 s on two processors, and several times as long when others use them, too."""


@pytest.fixture
def eventlog(tmp_path: Path) -> CommandLine:
    """The command on a data folder that doesn't exist yet, with no key for any model."""
    bare = CommandLine({"data": str(tmp_path / "data")})
    bare.environment.pop("OPENAI_API_KEY", None)
    return bare


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_when_there_is_no_key_compacts_without_a_model(eventlog: CommandLine) -> None:
    """Before, after, what it was made of, the past, the verdict; and nothing stays compacted."""
    done = eventlog.run("demo", "--compact", columns=100)

    said = done.stdout
    assert not done.stderr
    places = [
        said.index(text)
        for text in (
            "there is no key for a model",
            "the context before ──",
            "tokens over the threshold",
            "compaction ──",
            "written     without a model",
            "the context after ──",
            "Made without a model: sentences picked from",
            "One more thing, while you are at it",
            "taken back ──",
            "the conversation as it was ──",
            "all checks passed",
            "eventlog compactions",
        )
    ]
    assert places == sorted(places)
    assert said.count("✓") == CHECKS
    assert "✗" not in said
    key = re.search(r"eventlog compactions (\S+)", said)
    assert key is not None
    assert "at #" in eventlog.run("compactions", key[1]).stdout
    assert "demo" not in eventlog.run("policy", "--session", key[1]).stdout


@pytest.mark.slow
def test_demo_when_an_event_is_lost_fails(eventlog: CommandLine) -> None:
    """The check of the check: one event less, and the exit code is 1."""
    said = eventlog.run("demo", "--compact", "--model", "none", "--lose-one", code=1).stdout

    assert re.search(r"✗ all \d+ events are there, .*: seq \d+ is not the event that it was", said)
    assert f"1 of {CHECKS} checks failed" in said


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WHEEL, reason="xllamacpp has no wheel for this platform")
@pytest.mark.timeout(LOCAL_SECONDS_MAX + 20)
def test_demo_when_the_model_is_local_asks_it(
    eventlog: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real model answers; should its answer be none that counts, that is said, and handled."""
    monkeypatch.setattr(command, "RUN_SECONDS_MAX", LOCAL_SECONDS_MAX)

    said = eventlog.run("demo", "--compact", "--model", "local", columns=100).stdout

    assert "by SmolLM2-135M-Instruct, on this machine" in said
    taken = re.search(r"written +by SmolLM2-135M-Instruct, prompt v\d+:\w+, \d+ calls?, ", said)
    refused = re.search(r"the model's summary was not taken: (truncated|not_smaller),", said)
    assert taken or refused, said
    assert "all checks passed" in said


@pytest.mark.slow
def test_demo_when_given_a_file_compacts_it_on_a_terminal(eventlog: CommandLine) -> None:
    """Any transcript that is long enough; a short one lowers the threshold."""
    path = sample("claude_compacted.jsonl")
    code, output = eventlog.run_on_terminal(
        *("demo", str(path), "--compact", "--model", "none"), columns=80
    )

    assert code == 0, output
    assert "all checks passed" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "local"], "--model is for --compact"),
        (["--compact", "--seconds", "5"], "--seconds is for the demo without --compact"),
        (["--compact", "--model", "gpt-5-mini"], "there is no key for the model 'gpt-5-mini'"),
        (["--compact", "--model", "missing.gguf"], "there is no model in missing.gguf"),
        ([str(sample("codex_small.jsonl")), "--compact"], "too little for a compaction"),
    ],
)
def test_demo_when_arguments_make_no_sense_says_so(
    eventlog: CommandLine, arguments: list[str], complaint: str
) -> None:
    """One line, and exit code 2."""
    assert complaint in eventlog.run("demo", *arguments, code=2).stderr


# --- its checks ----------------------------------------------------------------------------------

OLD = [{"role": "user", "content": text} for text in ("a", "b", "c")]
NEW = [{"role": "user", "content": "summary"}, OLD[-1]]
SAID = [{"role": "user", "content": "meanwhile"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}, {"id": "2"}]}
OUTPUTS = [{"role": "tool", "tool_call_id": number, "content": ""} for number in "21"]


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        ([OLD, OLD + SAID, NEW + SAID], ""),
        ([OLD, NEW, NEW + SAID], ""),
        ([OLD, NEW[:1]], "neither"),
        ([OLD, OLD[1:] + SAID], "neither"),
        ([NEW[:1] + OLD], "neither"),
        ([[]], "neither"),
        ([], "nobody read it"),
    ],
)
def test_check_whole_when_a_read_saw_a_half_finds_it(
    seen: list[list[dict[str, Any]]], wrong: str
) -> None:
    """The old context or the new one, each with or without what was said since."""
    reads = Reads()
    for context in seen:
        reads.add(context)

    found = check_whole(reads, OLD, NEW + SAID, SAID).wrong

    assert wrong in found
    assert bool(found) is bool(wrong)


@pytest.mark.parametrize(
    ("context", "wrong"),
    [
        ([*OLD, CALL, *OUTPUTS, *SAID], ""),
        ([*OLD, *OUTPUTS], "message 4 is the output of no call"),
        ([CALL, OUTPUTS[0], *OLD], "message 3 comes before 1 outputs"),
        ([CALL, OUTPUTS[0], OUTPUTS[0]], "message 3 is the output of no call"),
        ([*OLD, CALL], "2 calls at the end have no output"),
    ],
)
def test_check_paired_when_a_call_is_torn_from_its_output_finds_it(
    context: list[dict[str, Any]], wrong: str
) -> None:
    """Outputs stand right behind their call, in any order."""
    found = check_paired(context).wrong

    assert wrong in found
    assert bool(found) is bool(wrong)


def test_checks_of_contexts_when_something_differs_find_it() -> None:
    """Size, what was said meanwhile, and the way back."""
    assert not check_smaller(100, 99).wrong
    assert check_smaller(100, 100).wrong
    assert not check_said(NEW + SAID, SAID).wrong
    assert check_said(SAID + NEW, SAID).wrong
    assert check_said(NEW, []).wrong
    assert not check_restored(OLD, SAID, OLD + SAID).wrong
    assert check_restored(OLD, SAID, OLD).wrong
    assert check_restored(OLD, SAID, NEW + SAID).wrong


async def test_checks_of_history_when_something_differs_find_it() -> None:
    """An event lost, changed or moved; a state of the past that is another."""
    async with EventLog.in_memory() as log:
        session = await log.create_session(key="chat")
        for text in "abc":
            await session.append(MessageAdded(role="user", content=text))
        events = [recorded async for recorded in session.read()]
        then, earlier = await session.replay(4), await session.replay(3)
        await session.append(CompactionCompleted(summary="s", from_seq=2, to_seq=3, kept=[]))
        now = [recorded async for recorded in session.read()]
        compacted = await session.replay()

    assert not check_untouched(events, now).wrong
    assert "3 are left" in check_untouched(events, now[:3]).wrong
    assert "seq 2 is not" in check_untouched(events, [now[0], now[2], now[1], now[3]]).wrong
    assert not check_past([Then(title="then", state=then, expected=then)]).wrong
    assert "messages differs" in check_past([Then(title="", state=earlier, expected=then)]).wrong
    assert "differs" in check_past([Then(title="", state=compacted, expected=then)]).wrong
    assert check_past([]).wrong
