import itertools
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "search")]   # tests share drivers and small problems

_databases = itertools.count()


@pytest.fixture(scope="session")
def postgresql():
    """A server that tests share, each with a database of its own."""
    from postgresql_server import PostgresqlServer, binaries

    if binaries() is None:
        pytest.skip("no PostgreSQL server programs (Debian: postgresql)")
    server = PostgresqlServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request):
    """The address of an empty storage of each kind."""
    if request.param != "postgresql":
        return request.param
    server = request.getfixturevalue("postgresql")
    return server.create(f"test{next(_databases)}")


@pytest.fixture
def grpc_proxy(tmp_path):
    """The address of Optuna's gRPC proxy in front of a SQLite database."""
    import socket
    import warnings

    import optuna
    from optuna.storages._grpc.server import make_server

    warnings.simplefilter("ignore")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = make_server(optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/proxied.sqlite3"), "127.0.0.1", port)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None)
