"""`eventlog pin` and `fact`: what stays in every context."""

from __future__ import annotations

import json

import pytest

from eventlog import CompactionCompleted, EventLog
from eventlog.testing import message
from tests.cli.command import CommandLine
from workers.cli import run


async def test_pin_when_given_an_id_or_a_seq_pins_that_message(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """By what `show` shows, or by the id; an id that looks like a seq is an id; and unpinned."""
    session = await opened.create_session(key)
    await session.append([message("one", message_id="m-1"), message("two", message_id="2")])

    said = eventlog.run("pin", key, "#2").stdout
    assert said == f"#2 of {key} stays in the context word for word\n"
    assert (await session.replay()).pinned == ["m-1"]
    told = json.loads(eventlog.run("pin", key, "2", "--json").stdout)
    assert (told["message_id"], told["message_seq"], told["pinned"]) == ("2", 3, True)
    assert "user · pinned  #2" in eventlog.run("show", key).stdout
    assert "2 pinned messages" in eventlog.run("show", key).stdout
    eventlog.run("pin", key, "m-1", "--remove")
    assert (await session.replay()).pinned == ["2"]
    assert "has no message 'm-9'" in eventlog.run("pin", key, "m-9", code=2).stderr
    assert "does not exist" in eventlog.run("pin", f"{key}-no", "m-1", code=1).stderr


async def test_pin_when_a_summary_stands_for_the_message_already_says_so(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """It would not come back by itself; one that was kept needs no word."""
    session = await opened.create_session(key)
    await session.append([message("one"), message("two")])
    await session.append(CompactionCompleted(summary="s", from_seq=1, to_seq=3, kept=[3]))

    assert f"eventlog uncompact {key}" in eventlog.run("pin", key, "2").stdout
    assert "uncompact" not in eventlog.run("pin", key, "3").stdout


async def test_fact_when_pinned_stands_in_the_context_until_removed(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """All, one, changed, removed; and `show` tells them."""
    session = await opened.create_session(key)
    assert eventlog.run("fact", key).stdout.startswith("no facts; to add one")

    said = eventlog.run("fact", key, "budget", "At most 500 €. 予算").stdout
    eventlog.run("fact", key, "cold", "-5 degrees")

    assert said == f"fact budget stands in every context of {key}\n"
    shown = eventlog.run("fact", key).stdout
    assert shown == "budget\n  At most 500 €. 予算\ncold\n  -5 degrees\n"
    assert "- cold: -5 degrees" in str((await session.context())[0]["content"])
    assert "fact budget: At most 500 €. 予算" in eventlog.run("show", key).stdout
    one = json.loads(eventlog.run("fact", key, "cold", "--json").stdout)
    assert one == {"facts": {"cold": "-5 degrees"}}
    eventlog.run("fact", key, "cold", "+5 degrees")
    eventlog.run("fact", key, "budget", "--remove")
    assert json.loads(eventlog.run("fact", key, "--json").stdout) == {
        "facts": {"cold": "+5 degrees"}
    }
    missing = eventlog.run("fact", key, "budget", "--remove", code=2).stderr
    assert missing == "eventlog: no fact is called 'budget'; there are: cold\n"
    assert "4,000 characters" in eventlog.run("fact", key, "long", "x" * 4_001, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--remove",), "--remove takes the NAME"),
        (("name", "text", "--remove"), "--remove takes the NAME"),
        (("name", "--remvoe"), "looks like an option"),
    ],
)
def test_fact_when_it_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Before any server is asked."""
    code = run(["fact", "k", *arguments])

    output, errors = capsys.readouterr()
    assert (code, output) == (2, "")
    assert said in errors
