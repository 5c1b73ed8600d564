"""A real sshd on the loopback interface that stands for a board on the network, and the client's side of it.

The board is this machine with another cache folder. What a board can lack is taken away in a mount namespace of the
session's own (unshare(1)), or by a program that stands in front of it in PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def unavailable() -> str | None:
    """Why there can be no server here."""
    if SSHD is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        return "there is no sshd; scripts/install-sshd.sh installs it"
    return None


def namespaces() -> bool:
    """Whether a session may have mounts of its own."""
    return subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode == 0


@dataclass
class Board:
    """folder: everything of both sides. pid: of the listening sshd."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def cache(self) -> Path:
        """What the toolchain keeps on the board."""
        return self.folder / "cache" / "edge-toolchain"

    @property
    def client(self) -> Path:
        """The user's ssh configuration, which tests may append to or change."""
        return self.folder / "config"

    def sessions(self) -> list[psutil.Process]:
        """The server's processes for connections."""
        return psutil.Process(self.process.pid).children()

    def running(self, what: str = "") -> list[psutil.Process]:
        """Whatever runs on the board for a session, wherever it was moved to: told by its environment.

        what: part of a word of its command.
        """
        found = []
        for process in psutil.process_iter():
            try:
                there = process.environ().get("XDG_CACHE_HOME") == str(self.folder / "cache")
                named = any(what in word for word in process.cmdline())
                if there and named and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def quiet(self, timeout_s: float = 10.0) -> bool:
        """Whether nothing runs on the board any more, at the latest after so long."""
        end = time.monotonic() + timeout_s
        while self.running() or self.sessions():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


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
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks up its unprivileged half
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log
        )
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return Board(folder, port, process)
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                stop(process)
                raise RuntimeError((folder / "log").read_text()) from None
            time.sleep(0.02)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the sessions that are left."""
    if process.poll() is None:
        for session in psutil.Process(process.pid).children(recursive=True):
            session.kill()
        process.kill()
    process.wait()
