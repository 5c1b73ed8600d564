"""A real sshd on the loopback interface in the role of a board on the network, and the client's configuration.

The board is this machine with another cache folder. To simulate a board that lacks something, the session hides it in
a mount namespace of its own (unshare(1)), or a program with the same name is found before it in PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
from waiting import eventually

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def unavailable() -> str | None:
    """The reason why no server can run here; None where it can."""
    if SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        return "there is no sshd; scripts/install-sshd.sh installs it"
    return None


def namespaces() -> bool:
    """True where a session may have mounts of its own."""
    return subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0


@dataclass
class Board:
    """folder: all files of both sides. process: the listening sshd."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def cache(self) -> Path:
        """The toolchain's folder on the board."""
        return self.folder / "cache" / "edge-toolchain"

    @property
    def client(self) -> Path:
        """The user's ssh configuration, which tests may append to or change."""
        return self.folder / "config"

    def sessions(self) -> list[psutil.Process]:
        """The server's processes for connections."""
        return psutil.Process(self.process.pid).children()

    def running(self, what: str = "") -> list[psutil.Process]:
        """Processes that run on the board for a session, recognized by their environment.

        what: part of a word of the command.
        """
        processes = []
        for process in psutil.process_iter():
            try:
                there = process.environ().get("XDG_CACHE_HOME") == str(self.folder / "cache")
                named = any(what in word for word in process.cmdline())
                if there and named and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.Error:
                pass
        return processes

    def quiet(self) -> bool:
        """True as soon as nothing runs on the board any more."""
        return eventually(lambda: not (self.running() or self.sessions()))


def start(folder: Path, *, command: str = "", environment: str = "") -> Board:
    """Start a server. command: run instead of what the client asks for, which is in ``$SSH_ORIGINAL_COMMAND``."""
    assert SSHD is not None
    for name in ("host", "user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "cache").mkdir()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    known = (folder / "host.pub").read_text().split(" ")[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(known)}\n")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv XDG_CACHE_HOME={folder}/cache {environment}\n" + (f"ForceCommand {command}\n" if command else "")
    )
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the folder that sshd confines its unprivileged process to
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
        )
    if not eventually(lambda: process.poll() is not None or listens(port)) or process.poll() is not None:
        stop(process)
        raise RuntimeError((folder / "log").read_text())
    return Board(folder, port, process)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the sessions that are left."""
    if process.poll() is None:
        for session in psutil.Process(process.pid).children(recursive=True):
            session.kill()
        process.kill()
    process.wait()
