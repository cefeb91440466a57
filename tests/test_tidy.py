"""The rules of the house that no linter knows, as tests.

Each rule is a scanner: sources in, one line per violation out (`path:line: what is wrong`). A test
runs it over the files of this checkout and fails with those lines; where a scanner is more than a
comparison, a second test plants a violation and expects it to be found.

Imports between the three packages are import-linter's business, style within a line is ruff's.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import math
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eventlog", "projections", "workers")

MODULE_LINES_MAX = 400
CATALOGUES = {"eventlog/events.py": 450}  # one thing, however many there are of it
FUNCTION_LINES_P95_MAX = 45

VAGUE_NAMES = {"utils", "common", "helpers", "types", "base", "manager"}
REDIS_IMPORTERS = {"eventlog/fanout.py", "eventlog/hub.py", "eventlog/redis_link.py"}
OPENAI_IMPORTERS = {
    "workers/recorder.py",
    "workers/summariser/client.py",
    "workers/summariser/refusals.py",
}
ENVIRONMENT_READERS = {"eventlog/settings.py"}

COMPOSITION_ROOT = {"__main__", "cli", "commands", "demo", "doctor", "up"}
"""Modules of `workers` that put the others together, and so may import them."""
SHARED_BY_WORKERS = {"runtime"}
"""Modules of `workers` that every worker may import."""
BUILT_ON = {"compactor": {"projector", "summariser"}}
"""Workers that are made of others: the compactor runs a projection, and hands in a summarizer."""

METHODS = (property, cached_property, classmethod, staticmethod)


class Source:
    """One text file: its path from the root of the checkout, its text, its syntax tree."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.text = text
        self.tree = ast.parse(text) if path.endswith(".py") else ast.Module([], [])

    def at(self, line: int, complaint: str) -> str:
        """`path:line: complaint`, which terminals and editors can open."""
        return f"{self.path}:{line}: {complaint}"


Scanner = Callable[[Iterable[Source]], Iterator[str]]


def test_modules_when_opened_tell_their_story() -> None:
    """Every module opens with a docstring; only an empty `__init__.py` of the tests needs none."""

    assert_none(undocumented_modules(sources(suffix=".py")))


def test_module_names_when_listed_say_something() -> None:
    """No module is called utils, common, helpers, types, base or manager."""

    assert_none(vague_names(sources(*PACKAGES, suffix=".py")))


def test_modules_when_counted_are_short() -> None:
    """A shipped module has at most 400 lines: a second noun wants a second file."""

    assert_none(long_modules(sources(*PACKAGES, suffix=".py")))


def test_functions_when_counted_are_short() -> None:
    """95 of 100 shipped functions have at most 45 lines, docstring included."""

    assert_none(long_functions(sources(*PACKAGES, suffix=".py")))


def test_environment_when_searched_is_read_in_one_place() -> None:
    """Only `eventlog/settings.py` and tests read the environment: settings come in from outside."""

    everywhere = (
        source for source in sources(suffix=".py") if not source.path.startswith("tests/")
    )

    assert_none(environment_readers(everywhere))


def test_redis_when_searched_is_imported_by_fan_out_only() -> None:
    """Only the fan-out talks to Redis: the log itself must work, and be readable, without it."""

    assert_none(redis_importers(sources(*PACKAGES, suffix=".py")))


def test_openai_when_searched_is_imported_by_its_two_workers_only() -> None:
    """Only the summariser and the recorder talk to a model."""

    assert_none(openai_importers(sources(*PACKAGES, suffix=".py")))


def test_workers_when_searched_do_not_import_one_another() -> None:
    """A worker stands alone: each can be its own process. The composition root joins them."""

    assert_none(entangled_workers(sources("workers", suffix=".py")))


def test_libraries_when_searched_do_not_print() -> None:
    """`eventlog` and `projections` log or return; only the command line prints."""

    assert_none(prints(sources("eventlog", "projections", suffix=".py")))


def test_errors_when_caught_are_not_swallowed() -> None:
    """Nobody catches everything and goes on as if nothing had happened."""

    assert_none(swallowed_errors(sources(suffix=".py")))


def test_shipped_files_when_searched_are_finished() -> None:
    """What is left to do is in the issue tracker or done, not in the code people install."""

    assert_none(unfinished(sources(*PACKAGES, "sql")))


def test_tracked_files_when_searched_name_no_machine() -> None:
    """A path of one machine is of no use on another."""

    assert_none(machine_paths(sources()))


def test_tracked_files_when_searched_name_no_registry() -> None:
    """Where packages come from is for whoever installs them to say, by their own settings."""

    assert_none(registry_hosts(sources()))


def test_lock_when_read_names_no_index() -> None:
    """requirements.lock holds names, versions and hashes: no address, no index option."""

    assert_none(index_addresses(sources("requirements.lock")))


def test_exports_of_eventlog_when_listed_have_docstrings() -> None:
    """What `eventlog` exports says what it does, and so does each public method of its classes."""

    eventlog = importlib.import_module("eventlog")
    exported = getattr(eventlog, "__all__", ())

    assert exported, "eventlog/__init__.py has no __all__: its exports are the public API"
    assert_none(undocumented_exports({name: getattr(eventlog, name) for name in exported}))


def sources(*places: str, suffix: str = "", root: Path = ROOT) -> Iterator[Source]:
    """The text files at or under `places` (everywhere, when none is given) that end in `suffix`."""
    for path in checkout_files(root):
        within = not places or any(
            path == place or path.startswith(f"{place}/") for place in places
        )
        if within and path.endswith(suffix):
            try:
                yield Source(path, (root / path).read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue  # not text


@cache
def checkout_files(root: Path) -> tuple[str, ...]:
    """Files that git tracks or would track; without git, all but what the tools leave behind."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        listed = ""
    if not listed:
        return tuple(sorted(walk(root, root)))
    return tuple(sorted({path for path in listed.split("\0") if path and (root / path).is_file()}))


def walk(folder: Path, root: Path) -> Iterator[str]:
    """Paths from `root` of the files under `folder`, leaving out caches and environments."""
    for entry in folder.iterdir():
        if entry.is_file():
            yield entry.relative_to(root).as_posix()
        elif entry.name == ".ci" or not entry.name.startswith(
            (".", "__pycache__", "build", "dist")
        ):
            yield from walk(entry, root)


def assert_none(violations: Iterable[str]) -> None:
    """Fails with one line per violation."""
    found = list(violations)
    if found:
        pytest.fail("\n".join([f"{len(found)} violation(s):", *found]), pytrace=False)


def undocumented_modules(modules: Iterable[Source]) -> Iterator[str]:
    """Modules that don't open with a docstring."""
    for source in modules:
        empty_init = source.path.endswith("__init__.py") and not source.text.strip()
        if empty_init and source.path.startswith("tests/"):
            continue
        if not ast.get_docstring(source.tree):
            yield source.at(
                1, "open the module with a docstring: what it is for, what it never does"
            )


def vague_names(modules: Iterable[Source]) -> Iterator[str]:
    """Modules and packages whose name would fit any content."""
    for source in modules:
        for name in VAGUE_NAMES.intersection(source.module.split(".")):
            yield source.at(1, f"{name!r} says nothing; name the module for what it holds")


def long_modules(modules: Iterable[Source]) -> Iterator[str]:
    """Modules with more lines than allowed."""
    for source in modules:
        most = CATALOGUES.get(source.path, MODULE_LINES_MAX)
        if (count := len(source.text.splitlines())) > most:
            yield source.at(count, f"{count} lines, at most {most}; split it by nouns")


def long_functions(modules: Iterable[Source]) -> Iterator[str]:
    """The longest functions, when more than 5 of 100 are longer than allowed."""
    lengths = sorted(
        (node.end_lineno - node.lineno + 1, source.at(node.lineno, node.name))
        for source in modules
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    if not lengths:
        return
    p95, _ = lengths[math.ceil(len(lengths) * 0.95) - 1]
    if p95 > FUNCTION_LINES_P95_MAX:
        yield f"95th percentile is {p95} lines, at most {FUNCTION_LINES_P95_MAX}; the longest:"
        for length, place in lengths[:-11:-1]:
            yield f"{place}: {length} lines"


def environment_readers(modules: Iterable[Source]) -> Iterator[str]:
    """Uses of `os.environ` and its kin, by whatever name `os` was imported."""
    kin = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for source in modules:
        if source.path in ENVIRONMENT_READERS:
            continue
        for node in ast.walk(source.tree):
            match node:
                case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in kin:
                    yield source.at(node.lineno, f"os.{name}: add a field to eventlog/settings.py")
                case ast.ImportFrom(module="os", names=names) if kin & {n.name for n in names}:
                    yield source.at(node.lineno, "os.environ: add a field to eventlog/settings.py")


def importers(package: str, allowed: set[str]) -> Scanner:
    """A scanner for modules that import `package` without being among `allowed`."""

    def scan(modules: Iterable[Source]) -> Iterator[str]:
        for source in modules:
            if source.path in allowed:
                continue
            for line, name in imported(source):
                if name.split(".")[0] == package:
                    yield source.at(
                        line, f"imports {package}; only {', '.join(sorted(allowed))} may"
                    )

    return scan


def entangled_workers(modules: Iterable[Source]) -> Iterator[str]:
    """Workers that import another worker. `workers/gateway/…` is one worker, `gateway`."""
    for source in modules:
        worker = source.module.split(".")[1:2]
        if not worker or worker[0] in COMPOSITION_ROOT:
            continue
        for line, name in imported(source):
            other = name.split(".")[1:2] if name.split(".")[0] == "workers" else []
            allowed = {*worker, *SHARED_BY_WORKERS, *BUILT_ON.get(worker[0], ())}
            if other and other[0] not in allowed:
                yield source.at(line, f"{worker[0]} imports {other[0]}; move what both need down")


def prints(modules: Iterable[Source]) -> Iterator[str]:
    """Calls of `print`."""
    for source in modules:
        for node in ast.walk(source.tree):
            match node:
                case ast.Call(func=ast.Name(id="print")):
                    yield source.at(node.lineno, "print: log it, or return it to who asked")


def swallowed_errors(modules: Iterable[Source]) -> Iterator[str]:
    """`except Exception: pass`, in its various spellings."""
    for source in modules:
        for node in ast.walk(source.tree):
            match node:
                case ast.ExceptHandler(type=kind, body=body):
                    swallowed = catches_all(kind) and all(is_idle(statement) for statement in body)
                case ast.Call(
                    func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=kinds
                ):
                    swallowed = any(catches_all(kind) for kind in kinds)
                case _:
                    continue
            if swallowed:
                yield source.at(node.lineno, "swallows every error: name the ones you expect")


def matches(pattern: str, complaint: str) -> Scanner:
    """A scanner for lines in which `pattern` is found."""

    def scan(files: Iterable[Source]) -> Iterator[str]:
        for source in files:
            for number, line in enumerate(source.text.splitlines(), start=1):
                if found := re.search(pattern, line):
                    yield source.at(number, f"{complaint}: {found.group()}")

    return scan


redis_importers = importers("redis", REDIS_IMPORTERS)
openai_importers = importers("openai", OPENAI_IMPORTERS)
unfinished = matches(r"\b(?:TODO|FIXME|XXX)\b", "unfinished")
machine_paths = matches(r"(?<![\w.~})-])/(?:work|root|farm)/", "path of one machine")
registry_hosts = matches(
    r"\b(?:pypi|pythonhosted|npmjs|anaconda|crates|quay|ghcr)\.(?:org|com|io)\b", "package registry"
)
index_addresses = matches(r"://|--(?!hash=)", "address or option")


def undocumented_exports(exported: dict[str, object]) -> Iterator[str]:
    """Exported functions, classes, and public methods of those classes, without a docstring."""
    for name, thing in exported.items():
        if inspect.isroutine(thing) and not thing.__doc__:
            yield f"{name}: needs a docstring"
        if not inspect.isclass(thing):
            continue
        written = thing.__dict__.get("__doc__") or ""
        if not written or written.startswith(f"{name}("):  # the one that dataclasses make up
            yield f"{name}: needs a docstring"
        for member, value in vars(thing).items():
            if member.startswith("_") or not (
                inspect.isroutine(value) or isinstance(value, METHODS)
            ):
                continue
            if not inspect.getdoc(getattr(thing, member)):
                yield f"{name}.{member}: needs a docstring"


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, also inside functions; relative ones are resolved."""
    package = source.module.split(".")
    if not source.path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else []
                start = ".".join([*above, module] if module else above)
                yield from ((node.lineno, f"{start}.{alias.name}") for alias in names)


def catches_all(kind: ast.expr | None) -> bool:
    """Whether `except kind:` catches any error: bare, `Exception`, or a tuple that holds it."""
    match kind:
        case None | ast.Name(id="Exception" | "BaseException"):
            return True
        case ast.Tuple(elts=kinds):
            return any(catches_all(one) for one in kinds)
    return False


def is_idle(statement: ast.stmt) -> bool:
    """Whether a statement does nothing: `pass`, `...`, `continue`, a lone string."""
    match statement:
        case ast.Pass() | ast.Continue() | ast.Expr(value=ast.Constant()):
            return True
    return False


PLANTED: list[tuple[Scanner, str, str]] = [
    (undocumented_modules, "eventlog/a.py", "import os"),
    (undocumented_modules, "eventlog/__init__.py", ""),
    (vague_names, "eventlog/utils.py", ""),
    (vague_names, "eventlog/helpers/a.py", ""),
    (long_modules, "eventlog/a.py", "\n" * 401),
    (long_functions, "eventlog/a.py", "def f():\n" + "    x = 1\n" * 45),
    (environment_readers, "eventlog/a.py", "import os\nos.environ['A']"),
    (environment_readers, "workers/a.py", "def f():\n    import os\n    return os.getenv('A')"),
    (environment_readers, "workers/a.py", "from os import environ as e"),
    (redis_importers, "eventlog/a.py", "import redis.asyncio as r"),
    (redis_importers, "projections/a.py", "def f():\n    from redis import Redis"),
    (openai_importers, "workers/compactor.py", "from openai import AsyncOpenAI"),
    (entangled_workers, "workers/relay.py", "from workers.reaper import run_reaper"),
    (entangled_workers, "workers/relay.py", "from workers import reaper"),
    (entangled_workers, "workers/relay.py", "from . import reaper"),
    (entangled_workers, "workers/relay.py", "import workers.cli"),
    (entangled_workers, "workers/gateway/app.py", "from ..relay import sweep"),
    (prints, "eventlog/a.py", "def f():\n    print('here')"),
    (swallowed_errors, "eventlog/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (swallowed_errors, "eventlog/a.py", "try:\n    f()\nexcept:\n    'never mind'"),
    (
        swallowed_errors,
        "eventlog/a.py",
        "try:\n    f()\nexcept (OSError, Exception) as e:\n    ...",
    ),
    (swallowed_errors, "eventlog/a.py", "with contextlib.suppress(Exception):\n    f()"),
    (unfinished, "sql/a.sql", "-- " + "TODO: an index"),
    (machine_paths, "docs/a.md", "see /" + "work/a.md"),
    (machine_paths, "docs/a.md", "`file:///" + "root/a`"),
    (registry_hosts, "Makefile", "--index-url https://pypi" + ".org/simple"),
    (index_addresses, "requirements.lock", "--index-url x"),
    (index_addresses, "requirements.lock", "a @ https://example.net/a.whl"),
]
INNOCENT: list[tuple[Scanner, str, str]] = [
    (undocumented_modules, "eventlog/a.py", '"""What it is for."""'),
    (undocumented_modules, "tests/__init__.py", ""),
    (vague_names, "eventlog/batcher.py", ""),
    (long_modules, "eventlog/a.py", "\n" * 400),
    (long_functions, "eventlog/a.py", "def f():\n" + "    x = 1\n" * 44),
    (environment_readers, "eventlog/settings.py", "import os\nos.environ['A']"),
    (redis_importers, "eventlog/fanout.py", "import redis.asyncio as r"),
    (redis_importers, "eventlog/a.py", "from eventlog.redis_link import connect"),
    (openai_importers, "workers/summariser/client.py", "from openai import AsyncOpenAI"),
    (entangled_workers, "workers/cli.py", "from workers.relay import Relay"),
    (entangled_workers, "workers/relay.py", "from workers.runtime import run"),
    (entangled_workers, "workers/gateway/app.py", "from workers.gateway.sse import stream"),
    (prints, "eventlog/a.py", "def f(console):\n    console.print('here')"),
    (swallowed_errors, "eventlog/a.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (swallowed_errors, "eventlog/a.py", "try:\n    f()\nexcept Exception:\n    raise"),
    (machine_paths, "docs/a.md", "the /workers/ folder, https://example.net/" + "work/"),
    (index_addresses, "requirements.lock", "a==1 \\\n    --hash=sha256:0"),
]


@pytest.mark.parametrize(("scanner", "path", "text"), PLANTED, ids=itertools.count())
def test_scanner_when_violation_is_planted_finds_it(
    scanner: Scanner, path: str, text: str, tmp_path: Path
) -> None:
    """A rule that cannot fail proves nothing: each finds a violation planted in a checkout."""
    plant(tmp_path / path, text)

    found = list(scanner(sources(root=tmp_path)))

    assert found, f"not noticed in {path}: {text}"


@pytest.mark.parametrize(("scanner", "path", "text"), INNOCENT, ids=itertools.count())
def test_scanner_when_nothing_is_wrong_is_silent(
    scanner: Scanner, path: str, text: str, tmp_path: Path
) -> None:
    """A rule that cries wolf gets switched off: what looks similar and is allowed passes."""
    plant(tmp_path / path, text)

    found = list(scanner(sources(root=tmp_path)))

    assert not found, found[0]


def test_exports_when_one_has_no_docstring_are_reported() -> None:
    """The scanner of exports finds a bare function, a bare class and a bare method."""

    class Told:
        """Says what it is."""

        def method(self) -> None: ...

    class Bare: ...

    def bare() -> None: ...

    found = list(undocumented_exports({"Told": Told, "Bare": Bare, "bare": bare}))

    assert [line.split(":")[0] for line in found] == ["Told.method", "Bare", "bare"]


def plant(file: Path, text: str) -> None:
    """Writes `text` to `file`, making its folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
