"""Accounting: a MariaDB of the cluster's own, reached through a socket in its folder only, and slurmdbd on it."""

from __future__ import annotations

from devcluster import processes
from devcluster.commands import ClusterError, call, environment, find, tail
from devcluster.conf import Place, slurmdbd_conf
from devcluster.settings import NAME, Folder

PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
"""What accounting needs beside SLURM, and the packages that have it."""
ACCOUNT = "hrdc"
"""The account that every user of the cluster has by default."""

_ADD = ("sacctmgr", "--immediate", "add")
_ANSWERS_S = 30


def make_database(folder: Folder, user: str) -> None:
    """Write an empty database, in which `user` of this machine may do everything, without a password."""
    folder.database.mkdir()
    call(
        "mariadb-install-db", "--no-defaults", f"--datadir={folder.database}/data", f"--user={user}",
        "--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}", "--skip-test-db",
        timeout_s=120, env=environment(folder),
    )  # fmt: skip


def mariadbd(folder: Folder, user: str) -> list[str]:
    """Command of the database: no TCP, no settings of the machine's, small."""
    return [
        find("mariadbd") or "mariadbd", "--no-defaults", f"--datadir={folder.database}/data", f"--user={user}",
        f"--socket={folder.database_socket}", "--skip-networking", f"--pid-file={folder.database}/pid",
        "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
    ]  # fmt: skip


def slurmdbd(folder: Folder, place: Place) -> tuple[list[str], dict[str, str]]:
    """Command and environment of slurmdbd, whose file is written."""
    folder.slurmdbd_conf.touch(mode=0o600)
    folder.slurmdbd_conf.write_text(slurmdbd_conf(folder, place))
    return [find("slurmdbd") or "slurmdbd", "-D"], {"MYSQL_UNIX_PORT": str(folder.database_socket)}


def register(folder: Folder, user: str) -> None:
    """Tell slurmdbd of the cluster and its user, before slurmctld asks; ClusterError if it does not listen."""
    env = environment(folder)
    trouble = ""

    def added() -> bool:
        nonlocal trouble
        try:
            call(*_ADD, "cluster", NAME, env=env)
        except ClusterError as error:
            trouble = str(error)
            return False
        return True

    if not processes.wait_until(added, _ANSWERS_S, pause_s=0.3):
        logs = tail(folder, ["slurmdbd", "mariadbd"])
        raise ClusterError(f"slurmdbd did not answer within {_ANSWERS_S} s\n{trouble}\n{logs}")
    call(*_ADD, "account", ACCOUNT, f"Cluster={NAME}", "Description=dev-cluster", "Organization=dev-cluster", env=env)
    call(*_ADD, "user", user, f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}", f"Cluster={NAME}", env=env)
