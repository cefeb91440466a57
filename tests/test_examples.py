"""The examples run as they are, on embedded servers, and say what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import CommandLine
from tests.embedded.processes import Client

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RUN_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings for a data folder whose servers run."""
    data = tmp_path_factory.mktemp("examples") / "data"
    client = Client(data)
    try:
        assert "error" not in client.servers()
        yield CommandLine({"data": str(data)}).environment
        client.leave()
    finally:
        client.close()


def run(name: str, environment: dict[str, str]) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart_when_run_twice_goes_on_where_it_was(environment: dict[str, str]) -> None:
    """The same key is the same session."""
    first = run("quickstart.py", environment)
    second = run("quickstart.py", environment)

    assert "now: 'A list of facts that only grows.'" in first
    assert "at seq 7: 'A list of facts ', open" in first
    assert "subscribed: 10 events" in first
    assert [re.search(r"asked: seq (\d+)", said)[1] for said in (first, second)] == ["2", "12"]  # type: ignore[index]


def test_agent_loop_when_it_dies_goes_on_from_the_log(environment: dict[str, str]) -> None:
    """The tool is called once, the question is stored once, half an answer stays as it was seen."""
    said = run("agent_loop.py", environment)

    assert "the agent died in mid-sentence" in said
    assert "the answer: It is 21 degrees in Paris." in said
    assert re.findall(r"#\d+ (\w+ \w+): '([^']*)'", said) == [
        ("user complete", "How warm is it in Paris?"),
        ("assistant complete", ""),
        ("tool complete", "21"),
        ("assistant interrupted", "It is 21"),
        ("assistant complete", "It is 21 degrees in Paris."),
    ]


def test_live_ui_when_run_shows_what_happens(environment: dict[str, str]) -> None:
    """Whole messages, replies as they stream, and where one was cut off."""
    said = run("live_ui.py", environment)

    assert "user> Count to five.\ncounter> one, two, three, four, five.\n" in said
    assert re.search(r"counter> 6, .*\[interrupted: cancelled\]\n$", said)
