"""A cluster under load whose processes are killed and whose network is cut, at random.

    python -m benchmarks.cluster [--minutes 10] [--seed 1] [--folder FOLDER] [--out FILE.json]

Every host is a network namespace of this machine: PostgreSQL, a standby without which nothing is
acknowledged, an S3 server, two apis, two workers, HAProxy with this repository's configuration, and
who calls. Rounds of faults (`FAULTS_S`, one after another) and quiet (`QUIET_S`) alternate. Then
everything heals, and what was acknowledged is looked for in every replica, the database and all
files. Exit status 1 if anything was seen that must not be. At the end, searches a second through
the proxy with 1, 2 and 4 replicas, in turns.

It needs Linux, root, PostgreSQL's and HAProxy's programs, `ip`, `tc`, `iptables`, `openssl`, and
the extras `postgres`, `s3` and `dev`. The S3 server keeps its objects in memory: it is frozen and
cut off, but not killed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks import machine
from benchmarks.cluster_hosts import Host, Network
from benchmarks.cluster_load import Books, Load, Person
from benchmarks.serving import ROOT
from service.client import ClientError

FAULTS_S: Final = 40.0
QUIET_S: Final = 25.0
HEALED_S: Final = 15.0
"""After the end of a fault this long, what it took away is back: from then on no call may fail."""

SWEEP_S: Final = 20.0
"""What an erasure leaves whose answer was lost with the database, the next sweep removes."""

_PREFIX: Final = "/gait"
_APIS: Final = ("api1", "api2", "api3", "api4")
_KEPT: Final = _APIS[:2]  # the other two only for the throughput
_WORKERS: Final = ("worker1", "worker2")
_DATABASES: Final = ("database1", "database2")
_DATABASE: Final = "database"
"""Whichever of the two is the primary."""

_HOSTS: Final = (*_DATABASES, "store", *_APIS, *_WORKERS, "proxy", "caller")
_TALKS: Final = (
    *((api, other) for api in _KEPT for other in (_DATABASE, "store", "proxy")),
    *((worker, other) for worker in _WORKERS for other in (_DATABASE, "store")),
    _DATABASES,
)
"""Who talks to whom: a cut between others changes nothing."""

_AS_POSTGRES: Final = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")

_FULL: Final = frozenset({"overloaded", "database-busy"})
"""What a machine says that has more to do than it can, without any fault."""


@dataclass
class Fault:
    """Something that was done to the cluster, in seconds of the clock."""

    kind: str
    where: str
    at: float
    until: float


class Cluster:
    """The hosts and their programs, in a folder of their own."""

    def __init__(self, network: Network, folder: Path) -> None:
        """Write what the programs need; nothing runs yet."""
        self.network = network
        self.folder = folder
        folder.chmod(0o711)  # PostgreSQL runs as another user
        self.certificate = folder / "certificate.pem"
        self._make_certificate()
        self._replicas(_KEPT)
        self.primary, self.standby = _DATABASES
        for name in _DATABASES:
            self._empty(name)
        trust = ("--auth=trust", "--username=gaitid", "--encoding=UTF8", "--no-locale")
        self._as_postgres("initdb", "-D", str(self._data(self.primary)), *trust)
        with (self._data(self.primary) / "pg_hba.conf").open("a") as rules:
            rules.write("host all,replication all 10.77.0.0/24 trust\n")
        commands = {
            **{
                name: [
                    *(*_AS_POSTGRES, _postgres("postgres"), "-D", str(self._data(name))),
                    *("-c", f"listen_addresses={network.address(name)}"),
                    *("-c", "unix_socket_directories="),
                ]
                for name in _DATABASES
            },
            "store": [
                *(sys.executable, "-m", "moto.server"),
                *("-H", network.address("store"), "-p", "5000"),
            ],
            "proxy": ["haproxy", "-W", "-db", "-f", str(folder / "haproxy.cfg")],
            **{
                name: [
                    *(sys.executable, "-m", "service", "serve", "--no-worker"),
                    *("--host", network.address(name)),
                ]
                for name in _APIS
            },
            **{name: [sys.executable, "-m", "service", "worker"] for name in _WORKERS},
        }
        self.hosts = {}
        for name, command in commands.items():
            own = folder / name
            own.mkdir(exist_ok=True)
            self.hosts[name] = Host(
                network, name, command, folder=folder, environment=self._environment(own)
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run everything but the replicas that only the throughput needs."""
        with ExitStack() as stack:
            for name in _DATABASES:  # whichever is what at the end
                stack.callback(self.hosts[name].stop)
            self.hosts[self.primary].start()
            stack.enter_context(self._started("store"))
            self._add_standby()
            self._wait_for(f"http://{self.network.address('store')}:5000/", "the store")
            httpx.put(f"http://{self.network.address('store')}:5000/gaitid").raise_for_status()
            for name in (*_WORKERS, *_KEPT, "proxy"):
                stack.enter_context(self._started(name))
            self.wait_until_ready()
            yield

    @contextmanager
    def more_replicas(self) -> Iterator[None]:
        """Run the other two replicas as well."""
        with ExitStack() as stack:
            others = [name for name in _APIS if name not in _KEPT]
            for name in others:
                stack.enter_context(self._started(name))
            self.wait_until_ready(others)
            yield

    def balance(self, replicas: int) -> None:
        """Let the proxy send calls to so many replicas."""
        self._replicas(_APIS[:replicas])
        self.hosts["proxy"].signal(signal.SIGUSR2)  # HAProxy reads its configuration again
        time.sleep(3)

    def wait_until_ready(self, replicas: list[str] | None = None) -> None:
        """Return once every replica, and the proxy, answers that it is ready."""
        for name in replicas or _KEPT:
            self._wait_for(f"{self.direct(name)}/readyz", name)
        self._wait_for(f"{self.url}/readyz", "the proxy")

    @property
    def url(self) -> str:
        """Where callers find the service."""
        return f"https://{self.network.address('proxy')}:8443{_PREFIX}"

    def direct(self, replica: str) -> str:
        """The address of one replica, past the proxy."""
        return f"http://{self.network.address(replica)}:8000"

    def host(self, name: str) -> str:
        """The name of a host; of the primary now for `database`."""
        return self.primary if name == _DATABASE else name

    def fail_over(self) -> str:
        """Let the primary die and the standby take its place, then make a new one of the dead."""
        self._until("SELECT sync_state FROM pg_stat_replication", "sync")
        self.hosts[self.primary].stop()
        self.primary, self.standby = self.standby, self.primary
        # Until it has a standby of its own it must not wait for one.
        self._execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        self._execute("SELECT pg_promote()")
        self._add_standby()
        return f"{self.standby} to {self.primary}"

    def _add_standby(self) -> None:
        self._until("SELECT pg_is_in_recovery()", "f")
        self._empty(self.standby)
        source = ("-h", self.network.address(self.primary), "-U", "gaitid")
        target = ("-D", str(self._data(self.standby)), "--write-recovery-conf", "-c", "fast")
        self._as_postgres("pg_basebackup", *source, *target)
        self.hosts[self.standby].start()
        self._execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        self._until("SELECT sync_state FROM pg_stat_replication", "sync")

    def _data(self, host: str) -> Path:
        return self.folder / f"{host}-data"

    def _empty(self, host: str) -> None:
        shutil.rmtree(self._data(host), ignore_errors=True)
        self._data(host).mkdir(mode=0o700)
        shutil.chown(self._data(host), "postgres", "postgres")

    def _as_postgres(self, program: str, *arguments: str) -> None:
        command = [*_AS_POSTGRES, _postgres(program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def _execute(self, *statements: str) -> str:
        each = [part for statement in statements for part in ("-c", statement)]
        return self.sql("psql", "-At", *each).strip()

    def _until(self, query: str, answer: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                if self._execute(query) == answer:
                    return
            except subprocess.CalledProcessError:  # it does not answer yet
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within a minute: {query} is {answer}")
            time.sleep(0.2)

    def sql(self, *arguments: str) -> str:
        """Run a client program of PostgreSQL from where this thread is."""
        program, *rest = arguments
        at = ("-h", self.network.address(self.primary), "-U", "gaitid", "-d", "postgres")
        return subprocess.run(
            [_postgres(program), *at, *rest], check=True, capture_output=True, text=True
        ).stdout

    @contextmanager
    def _started(self, name: str) -> Iterator[None]:
        host = self.hosts[name]
        host.start()
        try:
            yield
        finally:
            host.stop()

    def _wait_for(self, url: str, what: str) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                if httpx.get(url, verify=str(self.certificate), timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} is not ready within three minutes")
            time.sleep(0.3)

    def _environment(self, own: Path) -> dict[str, str]:
        address = self.network.address
        databases = ",".join(address(name) for name in _DATABASES)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
            ),
            "OMP_NUM_THREADS": "1",
            "GAITID_DATA_DIR": str(own),
            "GAITID_DATABASE_URL": f"postgresql://gaitid@/postgres?host={databases}",
            "GAITID_STORE": "s3://gaitid/files",
            "GAITID_ALLOW_UNAUTHENTICATED": "true",
            "GAITID_TRUSTED_PROXIES": address("proxy"),
            "GAITID_ROOT_PATH": _PREFIX,
            "PROXY_PREFIX": _PREFIX,
            "GAITID_DEVICE": "cpu",
            "GAITID_DECODE_WORKERS": "1",
            "GAITID_LEASE_SECONDS": "10",
            "GAITID_JOB_MAX_ATTEMPTS": "50",
            "GAITID_SWEEP_SECONDS": f"{SWEEP_S:g}",
            "PROXY_BIND": f"{address('proxy')}:8443",
            "PROXY_CERTIFICATE": str(self.folder / "proxy.pem"),
            "AWS_ENDPOINT_URL": f"http://{address('store')}:5000",
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_REGION": "us-east-1",
        }

    def _make_certificate(self) -> None:
        key = self.folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "2"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-subj", "/CN=gaitid", "-addext"),
                f"subjectAltName=IP:{self.network.address('proxy')}",
                *("-keyout", str(key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        (self.folder / "proxy.pem").write_bytes(self.certificate.read_bytes() + key.read_bytes())

    def _replicas(self, names: tuple[str, ...]) -> None:
        """Write the proxy's configuration: the repository's, with these replicas."""
        shipped = (ROOT / "docker" / "haproxy.cfg").read_text(encoding="utf-8")
        servers = "".join(
            f"    server {name} {self.network.address(name)}:8000\n" for name in names
        )
        written, count = re.subn(r"^    server-template .*\n", servers, shipped, flags=re.MULTILINE)
        if count != 1:
            raise ValueError("docker/haproxy.cfg has not one line of replicas")
        (self.folder / "haproxy.cfg").write_text(written, encoding="utf-8")


class Chaos:
    """Faults, one after another, drawn from a seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        """Do nothing yet."""
        self.faults: list[Fault] = []
        self._cluster = cluster
        self._random = random.Random(seed)  # noqa: S311 - repeatable, hides nothing

    def run(self, seconds: float) -> None:
        """Make faults and quiet by turns for so long; what it broke is whole when it returns."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > QUIET_S:
            until = time.monotonic() + min(FAULTS_S, left - QUIET_S)
            while time.monotonic() < until:
                self._one()
                time.sleep(self._random.uniform(1.0, 5.0))
            time.sleep(QUIET_S)

    def _one(self) -> None:
        kinds = {
            "kill": 5,
            "restart": 1,
            "fail_over": 1,
            "cut": 4,
            "lossy": 2,
            "slow": 2,
            "freeze": 2,
        }
        kind = self._random.choices(list(kinds), list(kinds.values()))[0]
        at = time.time()
        where = getattr(self, f"_{kind}")()
        self.faults.append(Fault(kind, where, at, time.time()))
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {kind} {where}\n")

    def _kill(self) -> str:
        """Kill -9 of one process of a host, whichever it is."""
        victims = (*_DATABASES, *_KEPT, *_WORKERS, "proxy")
        host = self._cluster.hosts[self._random.choice(victims)]
        processes = host.processes()
        if not processes:
            return f"{host.name}: nothing runs"
        process = self._random.choice(processes)
        name = _command(process)
        host.kill(process)
        return f"{host.name}: {name}"

    def _restart(self) -> str:
        """A fast shutdown of the database, which is started again."""
        self._cluster.hosts[self._cluster.primary].signal(signal.SIGINT)
        return self._cluster.primary

    def _fail_over(self) -> str:
        """The primary dies, the standby takes over."""
        return self._cluster.fail_over()

    def _cut(self) -> str:
        one, other = map(self._cluster.host, self._random.choice(_TALKS))
        with self._cluster.network.cut(one, other):
            time.sleep(5)
        return f"{one} and {other}"

    def _lossy(self) -> str:
        host = self._any_host()
        with self._cluster.network.lossy(host, 0.25):
            time.sleep(5)
        return host

    def _slow(self) -> str:
        host = self._any_host()
        with self._cluster.network.slow(host, "512kbit"):
            time.sleep(5)
        return host

    def _any_host(self) -> str:
        return self._random.choice((*_DATABASES, "store", *_KEPT, *_WORKERS))

    def _freeze(self) -> str:
        host = self._any_host()
        with self._cluster.hosts[host].frozen():
            time.sleep(5)
        return host


class JobWatch:
    """Notes on which hosts each job's commands run, four times a second."""

    def __init__(self, cluster: Cluster) -> None:
        """Do nothing yet."""
        self.seen: set[str] = set()
        self.together_s: dict[str, float] = defaultdict(float)
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(0.25):
            running = [self._jobs(name) for name in _WORKERS]
            now = time.monotonic()
            self.seen.update(*running)
            for job in set.intersection(*running):
                self.together_s[job] += now - before
            before = now

    def _jobs(self, host: str) -> set[str]:
        jobs = set()
        for process in self._cluster.network.processes(host):
            if _state(process) not in "TtZX":  # stopped or ended ones do nothing
                jobs |= set(re.findall(r"/jobs/([0-9a-f-]{36})", _command_line(process)))
        return jobs


def check(cluster: Cluster, load: Load, chaos: Chaos, watch: JobWatch) -> dict[str, Any]:
    """Look for everything that was acknowledged, everywhere; returns what was looked at."""
    books = load.books
    cluster.wait_until_ready()
    gone = [person.subject for person in books.those("erased")]
    there = {person.subject for person in books.those("enrolled")}
    unknown = {person.subject for person in books.those("unknown")}
    active = set()
    for replica in _KEPT:
        with load.client(cluster.direct(replica)) as client:
            # First: while one runs, it may still change the model.
            ends = {job: _ends(client, job) for job in books.jobs}
            listed = {subject.subject_id: subject.sequences for subject in client.subjects()}
            for rule, wrong in (
                ("acknowledged, but not listed", there - listed.keys()),
                ("erased, but listed", listed.keys() & set(gone)),
                ("listed, but never enrolled", listed.keys() - there - unknown - set(gone)),
                ("half enrolled", {name for name, count in listed.items() if count != 1}),
            ):
                if wrong:
                    books.violate(rule, replica=replica, subjects=sorted(wrong))
            for person in list(books.people.values()):
                if person.state in ("enrolled", "erased"):
                    _found_or_gone(load, client, person)
            active.add(
                client.identify(
                    next(iter(books.people.values())).walk(), threshold=0.5
                ).model.digest
            )
        for job, (numbers, last) in ends.items():
            if last != 1 or numbers != list(range(1, len(numbers) + 1)):
                books.violate("a job's events", job=job, ends=last, numbers=numbers)
    if len(active) != 1:
        books.violate("replicas answer by different models", models=sorted(active))
    deadline = time.monotonic() + 3 * SWEEP_S
    while (named := list(_traces(cluster, gone))) and time.monotonic() < deadline:
        time.sleep(5)
    for where, names in named:
        books.violate("erased, but named", where=where, subjects=names)
    _judge_calls(books, chaos)
    for job, seconds in watch.together_s.items():
        if seconds > 1.0:
            books.violate("a job ran on two hosts", job=job, seconds=round(seconds, 2))
    return {
        "enrolled": len(there),
        "erased": len(gone),
        "not known": len(unknown),
        "searches": books.searches,
        "faults": dict(Counter(fault.kind for fault in chaos.faults)),
        "jobs": {
            kind: dict(Counter(job.status for job in books.jobs.values() if job.type == kind))
            for kind in sorted({job.type for job in books.jobs.values()})
        },
        "jobs seen at work": len(watch.seen),
        "answers": dict(Counter(str(call.status) for call in books.calls)),
        "refusals": dict(Counter(call.slug for call in books.calls if call.slug)),
        "jobs on two hosts, s": {job: round(s, 2) for job, s in watch.together_s.items()},
    }


def _found_or_gone(load: Load, client: Any, person: Person) -> None:
    for _ in range(5):
        before = load.books.searches
        load.look_for(client, person)
        if load.books.searches > before:
            return
        time.sleep(1)
    load.books.violate("a search is not answered", subject=person.subject)


def _ends(client: Any, job: str) -> tuple[list[int], int]:
    try:
        events = list(client.follow(job))
    except ClientError:
        return [], 0
    return [event.sequence for event in events], sum(event.last for event in events)


def _traces(cluster: Cluster, subjects: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Where erased subjects are still named: the database as it is dumped, files, objects."""
    texts = {"the database": cluster.sql("pg_dump", "--data-only").encode()}
    for name in (*_KEPT, *_WORKERS):
        for path in (cluster.folder / name).rglob("*"):
            if path.is_file():
                texts[str(path.relative_to(cluster.folder))] = path.read_bytes()
    bucket = f"http://{cluster.network.address('store')}:5000/gaitid"
    for key in re.findall(r"<Key>(.*?)</Key>", httpx.get(f"{bucket}?list-type=2").text):
        texts[f"s3://gaitid/{key}"] = httpx.get(f"{bucket}/{key}").content
    for where, text in texts.items():
        if named := [subject for subject in subjects if subject.encode() in text]:
            yield where, named


def _judge_calls(books: Books, chaos: Chaos) -> None:
    """Errors of the service are 503 or 504, say when to come again, and have a reason."""
    for call in books.calls:
        if call.status < 500 and call.status != 0:
            continue
        near = any(
            fault.at - 1 <= call.until and call.at <= fault.until + HEALED_S
            for fault in chaos.faults
        )
        what = asdict(call)
        if call.status != 0 and (call.status not in (503, 504) or not call.retry_after):
            books.violate("an error that is no 503 or 504 with Retry-After", **what)
        elif not near and call.slug not in _FULL:
            books.violate("a call failed while nothing was broken", **what)


def throughput(
    cluster: Cluster, load: Load, seconds: float = 10.0, turns: int = 3
) -> dict[str, Any]:
    """Searches a second with 1, 2 and 4 replicas, in turns; the best and all of each."""
    person = load.books.those("enrolled")[0]
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    with cluster.more_replicas():
        for _, replicas in itertools.product(range(turns), rates):
            cluster.balance(replicas)
            rates[replicas].append(_rate(load, person, seconds))
    return {
        f"{replicas} replicas": {"best, searches/s": max(seen), "all": seen}
        for replicas, seen in rates.items()
    }


def _rate(load: Load, person: Person, seconds: float) -> float:
    answered = Counter[str]()
    end = time.monotonic() + seconds
    probe = person.walk()

    def search() -> None:
        with load.client() as client:
            while time.monotonic() < end:
                try:
                    client.identify(probe, threshold=0.5)
                except ClientError:
                    answered["refused"] += 1
                else:
                    answered["answered"] += 1

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(answered["answered"] / seconds, 2)


def _postgres(program: str) -> str:
    """The newest one that Debian's packages installed, or whatever is on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(found[-1]) if found else program


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _command(process: int) -> str:
    """A process's command, short enough for a report."""
    return re.sub(r"\S*/", "", _command_line(process))[:60].strip()


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def main() -> None:
    """Run, and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-throughput", action="store_true")
    parser.add_argument("--folder", type=Path, help="an empty one, which stays; with the logs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    books = Books()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        network = stack.enter_context(Network(_HOSTS))
        network.enter("caller")
        cluster = Cluster(network, folder.resolve())
        stack.enter_context(cluster.running())
        load = Load(cluster.url, cluster.certificate, books, options.seed)
        load.prepare()
        chaos, watch = Chaos(cluster, options.seed), JobWatch(cluster)
        with watch.watching():
            load.start()
            chaos.run(60 * options.minutes)
            load.stop()
        seen = check(cluster, load, chaos, watch)
        rates = {} if options.no_throughput else throughput(cluster, load)
        result = {
            "benchmark": f"a cluster with faults for {options.minutes:g} minutes",
            "seed": options.seed,
            "machine": machine.describe(),
            "rows": seen,
            "throughput": rates,
            "violations": books.violations,
            "faults": [asdict(fault) for fault in chaos.faults],
        }
        machine.publish(result, options.out)
    sys.exit(1 if books.violations else 0)


if __name__ == "__main__":
    main()
