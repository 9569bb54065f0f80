"""Hosts of a cluster on one machine: each is a network namespace with an address of its own.

Needs Linux, root, and the programs `ip`, `tc` and `iptables`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

_SUBNET: Final = "10.77.0"
_CLONE_NEWNET: Final = 0x40000000
_RESTART_S: Final = 1.0  # from a process's end to its restart


class Network:
    """Namespaces joined by one switch, which is in a namespace too."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Plan a network; entering it makes it."""
        self._hosts = {name: number for number, name in enumerate(hosts, 10)}
        self._prefix = f"gaitid{os.getpid()}-"
        self._cuts = threading.Lock()  # iptables refuses to run twice at once

    def __enter__(self) -> Self:
        switch = self._prefix + "switch"
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "switch", "up")
        for host, number in self._hosts.items():
            name = self._prefix + host
            _run("ip", "netns", "add", name)
            pair = ("type", "veth", "peer", "name", f"to{number}", "netns", switch)
            _run("ip", "-n", name, "link", "add", "eth0", *pair)
            _run("ip", "-n", switch, "link", "set", f"to{number}", "master", "switch", "up")
            _run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in [*self._hosts, "switch"]:
            _run("ip", "netns", "del", self._prefix + host)

    def address(self, host: str) -> str:
        """The address of a host."""
        return f"{_SUBNET}.{self._hosts[host]}"

    def command(self, host: str, *command: str) -> list[str]:
        """What runs a command on a host, as the process that is started."""
        return ["ip", "netns", "exec", self._prefix + host, *command]

    def enter(self, host: str) -> None:
        """Move this thread, and those that it starts from now on, to a host."""
        with Path(f"/run/netns/{self._prefix}{host}").open("rb") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def processes(self, host: str) -> list[int]:
        """Process ids of everything that runs on a host, oldest first."""
        namespace = Path(f"/run/netns/{self._prefix}{host}").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == namespace:
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        return sorted(found)

    @contextmanager
    def cut(self, one: str, other: str) -> Iterator[None]:
        """Let no packet pass between two hosts while the block runs."""
        drop = ("-s", self.address(other), "-j", "DROP")
        with (
            self._filtered(one, *drop),
            self._filtered(other, "-s", self.address(one), "-j", "DROP"),
        ):
            yield

    @contextmanager
    def lossy(self, host: str, share: float) -> Iterator[None]:
        """Lose a share of all packets to a host, which TCP repeats after ever longer waits."""
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(share))
        with self._filtered(host, *chance, "-j", "DROP"):
            yield

    @contextmanager
    def slow(self, host: str, rate: str) -> Iterator[None]:
        """Let packets to and from a host wait in a queue that is emptied at a rate.

        Linux delays packets by `netem`, which not every kernel has; a token bucket has a full queue
        behind each upload, so that whatever comes next is up to a second late.
        """
        bucket = ("root", "tbf", "rate", rate, "burst", "4kb", "latency", "1s")
        ends = ((host, "eth0"), ("switch", f"to{self._hosts[host]}"))
        for name, device in ends:
            _run(*self.command(name, "tc", "qdisc", "add", "dev", device, *bucket))
        try:
            yield
        finally:
            for name, device in ends:
                _run(*self.command(name, "tc", "qdisc", "del", "dev", device, "root"))

    @contextmanager
    def _filtered(self, host: str, *rule: str) -> Iterator[None]:
        with self._cuts:
            _run(*self.command(host, "iptables", "-A", "INPUT", *rule))
        try:
            yield
        finally:
            with self._cuts:
                _run(*self.command(host, "iptables", "-D", "INPUT", *rule))


class Host:
    """A host that has one program to run, and starts it again whenever it ends."""

    def __init__(
        self,
        network: Network,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Describe the host; `start` starts the program, in `folder`, which gets its log."""
        self.name = name
        self._network = network
        self._command = network.command(name, *command)
        self._folder = folder
        self._environment = dict(environment)
        self._wanted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Start the program, and keep it."""
        self._wanted.set()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """End everything that runs here, and keep it no longer."""
        self._wanted.clear()
        while processes := self.processes():
            for process in processes:
                self.kill(process)
            time.sleep(0.1)
        if self._keeper is not None:
            self._keeper.join()

    def processes(self) -> list[int]:
        """Process ids of everything that runs here."""
        return self._network.processes(self.name)

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        if (process := self._process) is not None and process.poll() is None:
            process.send_signal(number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop everything that runs here while the block runs, as a host that hangs does."""
        processes = self.processes()
        for process in processes:
            _signal(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                _signal(process, signal.SIGCONT)

    def kill(self, process: int) -> None:
        """End one of the processes as `kill -9` does."""
        _signal(process, signal.SIGKILL)

    def _keep(self) -> None:
        while self._wanted.is_set():
            with (self._folder / f"{self.name}.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._folder,
                    env=self._environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._process.wait()
            time.sleep(_RESTART_S)


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it has ended already
        return


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
