"""Data folders that can't be used, and what the user is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventlog.embedded import open_servers, postgres
from eventlog.embedded.paths import data_paths, private_folder
from eventlog.errors import ServerStartFailed
from eventlog.settings import Settings
from tests.embedded.processes import NOBODY, servers_running


async def refusal(data: Path) -> str:
    """The error of opening servers on a folder."""
    with pytest.raises(ServerStartFailed) as caught:
        async with open_servers(Settings(data=data, redis_url="none")):
            pass
    return str(caught.value)


@pytest.fixture
def as_ordinary_user() -> Iterator[Callable[[], None]]:
    """Root may write anywhere: be somebody else from the call on, until the test's end."""
    switched: list[int] = []

    def switch() -> None:
        if os.geteuid() == 0:
            switched.append(0)
            os.seteuid(NOBODY)

    yield switch
    for user in switched:
        os.seteuid(user)


async def test_file_as_data_folder_is_refused_when_opened(new_data: Path) -> None:
    """A file in the place of the folder is named, with what to set."""
    new_data.write_text("not a folder")

    assert f"{new_data} is a file" in await refusal(new_data)
    assert "EVENTLOG_DATA" in await refusal(new_data)


async def test_file_above_the_data_folder_is_refused_when_opened(new_data: Path) -> None:
    """So is a folder that can't be made."""
    new_data.write_text("not a folder")

    assert "can't be made" in await refusal(new_data / "below")


def test_folder_is_refused_when_it_is_not_writable(
    open_folder: Path, as_ordinary_user: Callable[[], None]
) -> None:
    """A folder of somebody else is refused before anything is started."""
    open_folder.chmod(0o555)
    as_ordinary_user()

    with pytest.raises(ServerStartFailed, match=r"not writable.*EVENTLOG_DATA"):
        data_paths(open_folder)
    with pytest.raises(ServerStartFailed, match=r"can't be made.*EVENTLOG_DATA"):
        data_paths(open_folder / "data")


async def test_data_folder_is_refused_when_another_major_made_it(new_data: Path) -> None:
    """Postgres can't read another major's files: nothing is touched."""
    (new_data / "postgres").mkdir(parents=True, mode=0o700)
    (new_data / "postgres" / "PG_VERSION").write_text("17\n")

    error = await refusal(new_data)

    assert "made by Postgres 17, and this is Postgres 18" in error
    assert [path.name for path in (new_data / "postgres").iterdir()] == ["PG_VERSION"]


async def test_data_folder_is_refused_when_a_file_is_in_its_place(new_data: Path) -> None:
    """What the system says is passed on, not only logged."""
    new_data.mkdir()
    (new_data / "postgres").write_text("not a folder")

    assert "Not a directory" in await refusal(new_data)


async def test_data_folder_is_refused_when_it_holds_something_else(new_data: Path) -> None:
    """A folder full of other things is not overwritten."""
    (new_data / "postgres").mkdir(parents=True)
    (new_data / "postgres" / "thesis.txt").write_text("years of work")

    assert "not empty and not a Postgres data folder" in await refusal(new_data)
    assert (new_data / "postgres" / "thesis.txt").exists()


async def test_end_of_the_log_is_shown_when_postgres_does_not_start(data: Path) -> None:
    """A damaged data folder gives Postgres's own reason, and is tried again next time."""
    async with open_servers(Settings(data=data, redis_url="none")):
        pass
    control = data / "postgres" / "global" / "pg_control"
    saved = control.read_bytes()
    control.unlink()

    error = await refusal(data)
    assert "ended with code" in error
    assert "pg_control" in error
    assert str(data / "postgres.log") in error
    assert servers_running(data) == []

    control.write_bytes(saved)
    async with open_servers(Settings(data=data, redis_url="none")):
        assert servers_running(data)


def test_socket_folder_is_refused_when_it_is_not_ours(tmp_path: Path) -> None:
    """In a folder open to all, a planted link, file or loose folder is not used."""
    (tmp_path / "elsewhere").mkdir()
    link, loose = tmp_path / "link", tmp_path / "loose"
    link.symlink_to(tmp_path / "elsewhere")
    loose.mkdir()
    loose.chmod(0o777)

    with pytest.raises(ServerStartFailed, match="not a folder"):
        private_folder(link)
    with pytest.raises(ServerStartFailed, match="others may write"):
        private_folder(loose)
    assert private_folder(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        os.chown(tmp_path / "elsewhere", NOBODY, NOBODY)
        with pytest.raises(ServerStartFailed, match="another user"):
            private_folder(tmp_path / "elsewhere")


def test_error_says_what_to_do_when_the_package_is_missing(
    new_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a platform without wheels the way out is a URL."""
    monkeypatch.setattr("eventlog.embedded.identity.find_spec", lambda name: None)
    new_data.mkdir()
    server = postgres.Postgres(
        data=new_data / "postgres", sockets=new_data / "pg", log=new_data / "log"
    )

    with pytest.raises(ServerStartFailed, match="EVENTLOG_POSTGRES_URL"):
        server.prepare()
