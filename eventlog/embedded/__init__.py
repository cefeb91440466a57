"""Postgres and Valkey from wheels, behind one small interface: `open_servers(settings)`.

servers.py      the interface: a URL that was set, or an embedded server
client.py       start the supervisor of a data folder (starting.py), or join the one that runs
supervisor.py   the process that holds the servers; keeper.py keeps one of them running
postgres.py, valkey.py  how each is prepared, started, known to be ready, stopped
launch.py       become the server: namespace, death signal; identity.py: who Postgres runs as
temporary.py    private servers for tests, children of the test process
"""

from eventlog.embedded.messages import ServerStatus
from eventlog.embedded.servers import (
    Servers,
    open_servers,
    server_status,
    start_redis,
    stop_redis,
)

__all__ = [
    "ServerStatus",
    "Servers",
    "open_servers",
    "server_status",
    "start_redis",
    "stop_redis",
]
