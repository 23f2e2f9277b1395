"""A real PostgreSQL server in a temporary folder, on a loopback port, as an unprivileged user."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

UNPRIVILEGED = ("postgres", "nobody")


def binaries():
    """The folder of the server's programs, None where there are none."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders
                 if all((folder / name).exists() for name in ("pg_ctl", "initdb", "postgres"))), None)


class PostgresqlServer:
    """Starts with `start`, crashes with `crash`; `url` stays the same."""

    def __init__(self, *, durable=False, folder=None):
        self.bin = binaries()
        if self.bin is None:
            raise FileNotFoundError("no PostgreSQL server programs (Debian: postgresql)")
        self.folder = Path(folder or tempfile.mkdtemp(prefix="pg"))
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self._prefix = []
        earlier = self.data.exists()   # a server that crashed here before goes on
        if os.getuid() == 0:   # the server refuses to run as root
            user = next(name for name in UNPRIVILEGED if _exists(name))
            self.data.mkdir(mode=0o700, exist_ok=True)
            shutil.chown(self.folder, user)
            shutil.chown(self.data, user)
            self._prefix = ["setpriv", f"--reuid={user}", "--clear-groups", f"--regid={pwd.getpwnam(user).pw_gid}"]
        if not earlier:
            self._run("initdb", "-D", self.data, "-U", "paretopress", "--auth=trust", "-N")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.options = (f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} "
                        f"-c max_connections=120 -c fsync={'on' if durable else 'off'} -c shared_buffers=32MB")
        self.start()

    def _run(self, name, *arguments):
        subprocess.run([*self._prefix, self.bin / name, *arguments], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, cwd=self.folder, close_fds=True)

    @property
    def url(self):
        return self.database("postgres")

    def database(self, name):
        return f"postgresql://paretopress:secret-word@127.0.0.1:{self.port}/{name}"

    def create(self, name):
        """Make a database and return its address."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.database(name)

    def start(self):
        self._run("pg_ctl", "-D", self.data, "-o", self.options, "-l", self.folder / "log", "-w", "-t", "60", "start")

    def crash(self):
        """All processes of the server end at once, without a checkpoint, as when the host fails."""
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def close(self):
        subprocess.run([*self._prefix, self.bin / "pg_ctl", "-D", self.data, "-m", "immediate", "stop"],
                       check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(self.folder, ignore_errors=True)


def _exists(name):
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
