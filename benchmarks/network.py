"""Several hosts on one machine: namespaces joined by a switch that has a delay, a rate and a loss. Linux, as root.

    python benchmarks/network.py --hosts 4 --delay-ms 1 --rate-mbit 1000 -- -m gala_mpi.bench train

runs `mpirun -n 4 python -m gala_mpi.bench train` over four hosts, and says at the end what went through the switch. With
`--none` the same ranks run without a network, for comparison. As a library:

    with Network(hosts=3) as network:
        subprocess.run([network.launcher, "-n", "3", sys.executable, ...])  # in place of mpirun
        network.cut(1)

A host has its own network, name, processes, IPC and /dev/shm, and its share of the cores. mpirun runs on one more, a login
node. Every host lives as long as a pipe from this process is open: whatever way this process ends, the kernel then kills
all that runs there and frees all that was made. No namespace or interface has a name that could be left over or taken.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # programs are started as the tests start them

from launch import LAUNCHER, OPEN_MPI, environment

FILES = "gala-network-"  # then the process that made them
TUN = "/dev/net/tun"
LOGIN = 254  # hosts are 10.77.0.1, 10.77.0.2, ...; mpirun is at 10.77.0.254
TRANSPORTS = {
    # libfabric takes its old `sockets` provider unless it is told.
    "ofi": {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
    # UCX would reach past the namespaces, into the memory of what it sees to be the same machine.
    "ucx": {"MPIR_CVAR_CH4_NETMOD": "ucx", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"},
    # Of its own it takes TCP between hosts (pml ob1, osc rdma); loopback has the same address everywhere.
    "openmpi": {"OMPI_MCA_btl_tcp_if_include": "eth0", "PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
}
HOST = 'echo "$0" > /proc/sys/kernel/hostname && mount -t tmpfs shm /dev/shm && echo up && read -r _'
# What mpirun takes for ssh: AGENT [options] ADDRESS command. The command may come in one word, as ssh allows.
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in
{cases}
esac
export TMPDIR={files}/$1
mkdir -p $TMPDIR
shift
exec nsenter -t $host -n -u -i -m --pid=/proc/$host/ns/pid_for_children taskset -c $cores sh -c 'eval "$*"' sh "$@"
"""

# linux/if_tun.h, linux/sched.h
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
CLONE_NEWNET = 0x40000000
FRAME = 9000  # bytes of an Ethernet frame
VNET_HEADER = 10  # bytes before the Ethernet frame: how the kernel shall cut it up, handed on as it comes
LARGEST_PACKET = VNET_HEADER + 14 + 65536
QUEUE_SECONDS, QUEUE_BYTES = 0.05, 1 << 18  # what may wait behind a sender's rate, the larger of the two; more is dropped
TIMER_SECONDS = 5e-5  # how much too early a packet may be delivered, to spare a wake-up
SECONDS_TO_END = 10.0  # for mpirun, once it has been asked to


def missing() -> str | None:
    """What this machine or user lacks; None if nothing."""
    if os.geteuid():
        return "virtual hosts need root"
    if not os.path.exists(TUN):
        return f"virtual hosts need {TUN} (Linux with CONFIG_TUN; in a container: --device /dev/net/tun)"
    programs = [program for program in ("ip", "nsenter", "unshare", "setpriv", "taskset") if not shutil.which(program)]
    return f"virtual hosts need {', '.join(programs)} (packages iproute2 and util-linux)" if programs else None


class Network:
    """Hosts and the switch between them. A context manager: at its end nothing is left of them or of what runs on them.

    Args:
        hosts: how many, beside the login node.
        delay_ms: one way.
        rate_mbit: that a host can send; 0: no limit.
        loss: the share of Ethernet frames that get lost, 0 to 1. What the kernel hands over in one piece is dropped as one
            if any of its frames is lost: so many losses, and larger ones.
        transport: a key of TRANSPORTS.
        ranks_per_host: how many ranks `launcher` places on a host before it goes on to the next.

    Attributes:
        launcher: the path of a program to be used like mpirun.
        traffic: once closed: packets, bytes, dropped (packets), cpu_seconds (of the switch), seconds (that it ran). A
            packet is up to 64 KB of a TCP stream.
    """

    def __init__(
        self,
        hosts: int,
        delay_ms: float = 1.0,
        rate_mbit: float = 1000.0,
        loss: float = 0.0,
        transport: str = "openmpi" if OPEN_MPI else "ofi",
        ranks_per_host: int = 1,
    ):
        if lack := missing():
            raise RuntimeError(lack)
        _sweep()
        self._files = Path(tempfile.mkdtemp(prefix=f"{FILES}{os.getpid()}-"))
        self.traffic: dict[str, float] = {}
        self._hosts: list[subprocess.Popen] = []
        try:
            self._hosts += [_host(f"host{i}") for i in range(hosts)]
            self._login = _alive(["unshare", "--net", "sh", "-c", "echo up && read -r _"])
            self._hosts.append(self._login)
            for host in self._hosts:
                assert host.stdout.readline() == b"up\n", "a host has not come up"
            self._switch = self._plug_in(delay_ms / 1e3, rate_mbit * 1e6 / 8, loss)
            self.launcher = self._write_launcher(transport, ranks_per_host)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def cut(self, host: int) -> None:
        """Take a host off the network: its interface goes down. Connections stay, and wait."""
        _in_network_of(self._hosts[host], "link set eth0 down")

    def mend(self, host: int) -> None:
        _in_network_of(self._hosts[host], "link set eth0 up")

    def close(self) -> None:
        """Kill all that runs on the hosts, then the network. A second call does nothing."""
        while self._hosts:
            host = self._hosts.pop()
            host.stdin.close()
            host.wait()
        if not self.traffic and hasattr(self, "_switch"):
            self.traffic = json.loads(self._switch.communicate()[0])
        shutil.rmtree(self._files, ignore_errors=True)

    def _plug_in(self, delay: float, rate: float, loss: float) -> subprocess.Popen:
        """Give every host its interface, and start the switch at their other ends."""
        taps = [_tap(host.pid) for host in self._hosts]
        switch = _alive([sys.executable, __file__, "--switch", json.dumps([taps, delay, rate, loss])], pass_fds=taps)
        for tap in taps:
            os.close(tap)
        for number, host in enumerate(self._hosts, 1):
            address = LOGIN if host is self._login else number
            eth0 = f"link set eth0 address 02:00:00:00:00:{number:02x} mtu {FRAME} txqueuelen 10000 addrgenmode none"
            _in_network_of(host, "link set lo up", eth0, f"addr add 10.77.0.{address}/24 dev eth0", "link set eth0 up")
        return switch

    def _write_launcher(self, transport: str, ranks_per_host: int) -> Path:
        addresses = [f"10.77.0.{number}" for number in range(1, len(self._hosts))]
        cores = [",".join(map(str, cores_of(i, len(addresses)))) for i in range(len(addresses))]
        cases = [f"{ip}) host={host.pid} cores={mine};;" for ip, host, mine in zip(addresses, self._hosts, cores)]
        agent = self._script("agent", AGENT.format(files=self._files, cases="\n".join(cases)))
        if OPEN_MPI:
            flags = ["--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", agent, "--prtemca", "prte_if_include", "eth0"]
            flags += ["--host", ",".join(f"{address}:{ranks_per_host}" for address in addresses)]
            flags += ["--map-by", f"ppr:{ranks_per_host}:node:oversubscribe"]
        else:
            flags = ["-launcher", "ssh", "-launcher-exec", agent, "-iface", "eth0"]
            flags += ["-hosts", ",".join(addresses), "-ppn", ranks_per_host]
        # What Open MPI leaves when it is killed goes with this network's own files. Its names are unique on one host only.
        variables = [f"{name}={value}" for name, value in {**TRANSPORTS[transport], "TMPDIR": self._files}.items()]
        # mpirun does not notice that its hosts are gone; it shall end with the process that has started it.
        place = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._login.pid}/ns/net"]
        command = [*place, "env", *variables, LAUNCHER, *flags]
        return self._script("mpirun", f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')

    def _script(self, name: str, text: str) -> Path:
        path = self._files / name
        path.write_text(text)
        path.chmod(0o755)
        return path


def _sweep() -> None:
    """Remove the files, scripts all, of processes that were killed."""
    for files in Path(tempfile.gettempdir()).glob(f"{FILES}*"):
        if not Path("/proc", files.name.split("-")[2]).exists():
            shutil.rmtree(files, ignore_errors=True)


def cores_of(host: int, hosts: int) -> list[int]:
    """The cores that a host's ranks see as theirs: hosts do not share cores, as far as there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // hosts)
    return [cores[(host * share + i) % len(cores)] for i in range(share)]


def _alive(command: list[str], **options) -> subprocess.Popen:
    """Start a process that ends when this one closes its standard input, or is killed."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, **options)


def _host(name: str) -> subprocess.Popen:
    # When the first process of a PID namespace ends, the kernel kills all others.
    spaces = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return _alive(["unshare", *spaces, "sh", "-c", HOST, name])


def _in_network_of(host: subprocess.Popen, *commands: str) -> None:
    """Run commands of iproute2 there."""
    there = ["nsenter", "-t", str(host.pid), "-n"]
    subprocess.run([*there, "ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _tap(pid: int) -> int:
    """A new interface eth0 in the network of process `pid`; packets are read from and written to the file returned.

    The kernel hands over TCP in up to 64 KB, as to a network card that cuts it up itself.
    """
    libc = ctypes.CDLL(None)  # os.setns came with Python 3.12
    here, there = (os.open(f"/proc/{who}/ns/net", os.O_RDONLY) for who in ("thread-self", pid))
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    finally:
        assert libc.setns(here, CLONE_NEWNET) == 0
        os.close(here)
        os.close(there)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tap


def switch(taps: list[int], delay: float, rate: float, loss: float) -> dict[str, float]:
    """Carry packets between hosts until standard input is closed.

    Args:
        taps: host i has the Ethernet address 02:00:00:00:00:i+1.
        delay: s.
        rate: bytes/s of each sender; 0: no limit.
        loss: 0 to 1.
    """
    # A network takes no time from the ranks, and does not wait for them to yield: it comes first, where that is allowed.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # Packets of one sender are due in the order in which they came: a queue each, no heap.
    queues = [deque() for _ in taps]
    free = [0.0] * len(taps)  # when a sender's line has carried all that was sent so far
    patience = max(QUEUE_SECONDS, QUEUE_BYTES / rate) if rate else 0.0
    packets = size = dropped = 0
    began, idle, watched = time.monotonic(), time.process_time(), [0, *taps]
    while True:
        due = time.monotonic() + TIMER_SECONDS
        for queue in queues:
            while queue and queue[0][0] <= due:
                _, to, packet = queue.popleft()
                try:
                    os.write(to, packet)
                    packets += 1
                    size += len(packet)
                except OSError:  # that host is cut off
                    dropped += 1
        first = min((queue[0][0] for queue in queues if queue), default=None)
        # select, since the timeouts of poll and epoll are whole milliseconds
        readable = select.select(watched, [], [], first and max(0.0, first - time.monotonic()))[0]
        now = time.monotonic()
        for tap in readable:
            if tap == 0:
                spent = {"cpu_seconds": time.process_time() - idle, "seconds": time.monotonic() - began}
                return {"packets": packets, "bytes": size, "dropped": dropped, **spent}
            sender = taps.index(tap)
            for packet in _waiting(tap):
                late = free[sender] - now
                kept = (1 - loss) ** -(-len(packet) // FRAME)
                if (rate and late > patience) or random.random() > kept:
                    dropped += 1
                    continue
                sent = free[sender] = max(free[sender], now) + len(packet) / rate if rate else now
                to = packet[VNET_HEADER : VNET_HEADER + 6]
                receivers = [taps[to[5] - 1]] if to[0] == 2 and to[5] <= len(taps) else set(taps) - {tap}
                queues[sender].extend((sent + delay, receiver, packet) for receiver in receivers)


def _waiting(tap: int):
    """The packets that are there to be read, some at a time."""
    try:
        for _ in range(16):
            yield os.read(tap, LARGEST_PACKET)
    except OSError:  # no more, or its host is cut off
        return


def run(command: list[str]) -> int:
    """Run mpirun to its end, hand it the signals that come, and return its exit status."""
    job = subprocess.Popen(command, env=environment(), start_new_session=True)
    killed = []

    def hand_on(number: int, _) -> None:
        if number != signal.SIGUSR1:
            killed.append(time.monotonic())
        job.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, hand_on)
    while job.poll() is None:
        time.sleep(0.1)
        if killed and time.monotonic() - killed[0] > SECONDS_TO_END:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage="%(prog)s [flags] -- what python is told")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--delay-ms", type=float, default=1.0, help="one way")
    parser.add_argument("--rate-mbit", type=float, default=1000.0, help="that a host can send; 0: no limit")
    parser.add_argument("--loss", type=float, default=0.0, help="share of frames that get lost, 0 to 1")
    known = ["openmpi"] if OPEN_MPI else ["ofi", "ucx"]
    parser.add_argument("--transport", choices=known, default=known[0], help="with the MPI of this Python's environment")
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--none", action="store_true", help="no network: the same ranks, cores and command")
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENTS")
    flags = vars(parser.parse_args())
    arguments, none = flags.pop("arguments"), flags.pop("none")
    hosts, each = flags["hosts"], flags["ranks_per_host"]
    ranks = ["-n", str(hosts * each)]
    if none:
        cases = "".join(f"{i}) cores={','.join(map(str, cores_of(i // each, hosts)))};; " for i in range(hosts * each))
        pinned = f'case ${{PMI_RANK:-$PMIX_RANK}} in {cases} esac; exec taskset -c $cores "$@"'
        return run([LAUNCHER, *ranks, "sh", "-c", pinned, "sh", sys.executable, *arguments])
    if lack := missing():
        parser.error(lack)
    with Network(**flags) as network:
        status = run([network.launcher, *ranks, sys.executable, *arguments])
    print("network:", ", ".join(f"{name} {value:.6g}" for name, value in network.traffic.items()), file=sys.stderr)
    return status


if __name__ == "__main__":
    if sys.argv[1:2] == ["--switch"]:
        traffic = json.dumps(switch(*json.loads(sys.argv[2]))).encode()
        with contextlib.suppress(BrokenPipeError):  # nobody is left to be told
            os.write(1, traffic)
    else:
        sys.exit(main())
