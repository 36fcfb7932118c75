"""A real PostgreSQL server for tests: its own data directory, a free port of 127.0.0.1, a password that it asks for."""

import itertools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import sqlalchemy

USER = "fbsearch"
# What a test writes need not outlive the machine; it does outlive the server's processes.
SETTINGS = {"fsync": "off", "max_connections": "60", "shared_buffers": "32MB", "unix_socket_directories": ""}


def find_binaries() -> Path | None:
    """The folder of `initdb`, `pg_ctl` and `postgres`, the newest where there are several; None without them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("pg_ctl")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """A server of a new, empty cluster. As a context manager: started, and ended with all its files."""

    def __init__(self) -> None:
        binaries = find_binaries()
        assert binaries is not None, "PostgreSQL's server is not installed"
        self._binaries = binaries
        # Not below pytest's folders, which nobody but root may enter: the server refuses to run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="fbsearch-postgres-"))
        self._user = _server_user()
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self.password = secrets.token_hex(8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._numbers = itertools.count(1)
        self._init()

    def _init(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={USER}", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", "--no-sync", *options)
        settings = SETTINGS | {"port": str(self.port), "listen_addresses": "127.0.0.1"}
        with (self._folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())

    @property
    def url(self) -> str:
        """The storage URL of the database that every server has."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database; its storage URL."""
        name = f"test_{next(self._numbers)}"
        engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url_of(name)

    def start(self) -> None:
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}")

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """`fast` ends connections and writes what is in memory, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def __enter__(self) -> "PostgresServer":
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        log = self._folder / "commands"
        with log.open("w+", encoding="utf-8") as output:  # no pipe: the server would hold it open
            ran = subprocess.run(
                [self._binaries / program, *arguments, f"--pgdata={self._folder / 'data'}"],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, **who,
            )  # fmt: skip
        assert ran.returncode == 0, f"{program}: {log.read_text(encoding='utf-8')}"


def _server_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: None is whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]
