"""GALA: after each update, average parameters with those of the round's in-peers. Nobody waits (Assran et al. 2019).

Once a newer message of every in-peer has arrived, x ← weighted average, with the graph's weights (1 / (1 + |in-peers|) if it
names none); otherwise carry on.
The newest message wins: a writer never skips one because a reader has not read the last (the authors' code does).

With a staleness bound τ ≥ 1 an agent waits after τ updates without a mix. τ = 0 is lock-step: at update k every agent
mixes exactly version k of its in-peers, and a writer waits until its readers have read a slot before it rewrites it.

With `survive`, an in-peer that shows no sign of life is read no more until it does: those whom it would have read are read
in its place, so that on any graph what one agent learns still reaches all that live.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from gala_mpi import device
from gala_mpi.device import Download
from gala_mpi.exchange.base import Counters, Mix, Order
from gala_mpi.mpi.liveness import Liveness
from gala_mpi.mpi.mailbox import FINISHED, LATEST, MIXED, SAVE_AT, STOP_AT, Mailbox
from gala_mpi.mpi.readers import HeaderReader, message_reader
from gala_mpi.topology import Topology, properties

SECONDS_BETWEEN_WARNINGS = 30.0


def average(mine: torch.Tensor, messages: list[np.ndarray], weights: list[float], out: torch.Tensor) -> None:
    """out ← (1 − Σ w_i) mine + Σ w_i m_i, on the device of mine and out. The messages have been read when it returns."""
    mixed, total = mine, 1 - math.fsum(weights)
    for message, weight in zip(messages, weights, strict=True):
        total += weight
        # The mean of i vectors, then of i + 1: reads two vectors and writes one, where a sum and a scaling go twice.
        mixed = torch.lerp(mixed, torch.from_numpy(message).to(mine.device), weight / total, out=out)
    if not messages:
        out.copy_(mine)


class Gossip:
    """Average parameters with a few neighbours.

    Args:
        comm: all agents.
        length: P, the number of parameters.
        topology: who reads whom.
        staleness: τ; None: never wait.
        checksum: whether messages carry a checksum that their readers verify.
        survive: after how many seconds without a sign of life a peer is lost, at least; None: never. Not in lock-step.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        length: int,
        topology: Topology,
        staleness: int | None,
        checksum: bool = False,
        survive: float | None = None,
    ):
        self._comm, self._topology, self._bound = comm, topology, staleness
        self._lockstep = staleness == 0
        self._propagation_delay = properties.propagation_delay(topology) if self._lockstep else 1  # updates
        # Of each round: looked up at every progress.
        self._peers = [topology.in_peers(comm.rank, round) for round in range(topology.period)]
        self._hosts: list[str] = comm.allgather(MPI.Get_processor_name())
        self._mailbox = Mailbox(comm, length, checksum, survive is not None)
        self._pulls = {peer: message_reader(self._mailbox, peer) for peer in topology.neighbours(comm.rank)}
        self._liveness = Liveness(self._mailbox, survive) if survive is not None else None
        self._readers: dict[int, HeaderReader] = {}  # lock-step: the headers of those who read me
        self._mixed = dict.fromkeys(self._pulls, 0)  # the version of each peer that was last mixed
        # A message that comes at once (shared memory) is read when it is mixed, so that it is as new as can be. One that
        # takes longer (a network) is asked for ahead, so that it comes while the environments run.
        self._slow = dict.fromkeys(self._pulls, False)
        self._version = self._started = 0
        self._room: torch.Tensor | None = None  # the slot that the next version is being written into
        self._download: Download | None = None  # on a GPU: my last version on its way
        self._on_its_way = 0  # which one; 0: none
        self._staleness = self._corrupt = 0
        self._mixes: list[Mix] = []

    def start(self, version: int, parameters: torch.Tensor) -> None:
        self._version = self._started = version
        self._download = Download(parameters) if device.is_asynchronous(parameters.device) else None
        self._mailbox.post(MIXED, version)
        versions = self._comm.allgather(version)  # agents that were resumed need not stand at the same update
        if self._lockstep and len(set(versions)) > 1:
            raise ValueError(f"lock-step agents begin at the same update; these begin at {versions}")
        self._mixed = {peer: versions[peer] for peer in self._pulls}
        if self._liveness is None:
            self._mailbox.meet(self._pulls)
        else:  # I may come to read anybody
            self._mailbox.meet(peer for peer in range(self._comm.size) if peer != self._comm.rank)
            self._liveness.follow(self._pulls)

    def gradient(self, gradient: torch.Tensor) -> None: ...

    def room(self) -> torch.Tensor | None:
        self._version += 1
        if self._download is not None:
            return None
        if self._lockstep:
            self._wait_for_readers()
        self._room = torch.from_numpy(self._mailbox.begin_write(self._version))
        return self._room

    def parameters(self, parameters: torch.Tensor) -> None:
        mine = self._publish(parameters)
        peers = self._in_peers(self._version)
        arrived = self._ask(peers)
        if not arrived and self._bound is not None and self._staleness >= self._bound:
            arrived = self._wait(lambda: self._ask(peers), lambda: self._exhausted(peers), peers)
        self._mixes = self._mix(mine, peers, parameters) if arrived else []
        if not arrived:
            parameters.copy_(mine)
        self._staleness = 0 if self._mixes else self._staleness + 1  # a round may have nobody to mix
        self._mailbox.post(MIXED, self._version)

    def _publish(self, parameters: torch.Tensor) -> torch.Tensor:
        """Make what the optimiser's step came to readable: a copy of it that stays as it is until the next update.

        From a GPU it has to come to the host first. Nobody waits for that but in lock-step, where others need it to go on.
        (With a staleness bound they need the version before it, which is there: who waits did not mix at the last update.)
        """
        if self._download is None:
            mine, self._room = self._room, None
            self._mailbox.end_write(self._version)
            return mine
        self._land(wait=True)  # the last one, which has long been there
        self._download.send(parameters)
        self._on_its_way = self._version
        self._land(wait=self._lockstep)
        return self._download.vector

    def _land(self, wait: bool = False) -> None:
        """Publish what has come from the GPU."""
        if not self._on_its_way or not (wait or self._download.arrived()):
            return
        if self._lockstep:
            self._wait_for_readers()
        self._mailbox.publish(self._download.take(), self._on_its_way)
        self._on_its_way = 0

    def _in_peers(self, version: int) -> list[int]:
        """Whom I read at update `version`: in place of the lost, those whom they would have read."""
        peers = self._peers[version % len(self._peers)]
        if self._liveness is None or not self._liveness.lost:
            return peers
        candidates = list(peers)
        for peer in candidates:  # which grows: those in place of a lost one may be lost as well
            if peer in self._liveness.lost:
                others = self._topology.in_peers(peer, version)
                candidates += [other for other in others if other not in candidates and other != self._comm.rank]
        return [peer for peer in candidates if peer not in self._liveness.lost]

    def _weights(self, peers: list[int]) -> list[float]:
        """The graph's weights of `peers`; those in place of lost ones share theirs, or I keep it if nobody is."""
        _, *weights = self._topology.weights(self._comm.rank, self._version)
        of_graph = dict(zip(self._peers[self._version % len(self._peers)], weights))
        left = sum(weight for peer, weight in of_graph.items() if peer not in peers)
        substitutes = max(1, sum(peer not in of_graph for peer in peers))
        return [of_graph.get(peer, left / substitutes) for peer in peers]

    def _update_liveness(self) -> None:
        """See whether somebody has been lost, or has come back; then I may have to read others."""
        if self._liveness is None or not self._liveness.update():
            return
        for round in range(len(self._topology.rounds)):
            for peer in self._in_peers(round):
                if peer not in self._pulls:
                    self._pulls[peer] = message_reader(self._mailbox, peer)
                    self._mixed[peer], self._slow[peer] = 0, False
        self._liveness.follow(self._pulls)

    def _ask(self, peers: list[int]) -> bool:
        """Ask `peers` for messages newer than those mixed; whether all have arrived whole."""
        for peer in peers:
            pull = self._pulls[peer]
            asked_now = pull.idle and not pull.ready
            pull.start(self._mixed[peer], self._version if self._lockstep else None)
            pull.advance()
            if asked_now:
                self._slow[peer] = not pull.idle
        if all(self._pulls[peer].ready for peer in peers):
            return True
        self._mailbox.progress()
        return all([self._pulls[peer].advance() for peer in peers])

    def progress(self) -> None:
        self._land()
        self._mailbox.progress()
        self._update_liveness()
        for peer in self._in_peers(self._version + 1):
            if self._slow[peer] and not self._lockstep:
                self._pulls[peer].start(self._mixed[peer])
        for pull in self._pulls.values():
            pull.advance()

    def _mix(self, mine: torch.Tensor, peers: list[int], out: torch.Tensor) -> list[Mix]:
        """Average the messages that are ready and mine into `out`, always in the same order."""
        pulls, weights, whole = [self._pulls[peer] for peer in peers], self._weights(peers), False
        while not whole:  # again only if a peer has published twice meanwhile, which nobody does in lock-step
            taken = [pull.take() for pull in pulls]
            average(mine, [message for message, _ in taken], weights, out)
            whole = all([pull.still_whole() for pull in pulls])
        mixes = [Mix(peer, version, weight) for peer, (_, version), weight in zip(peers, taken, weights)]
        self._mixed.update((mix.peer, mix.version) for mix in mixes)
        return mixes

    def _exhausted(self, peers: list[int]) -> bool:
        """Whether some peer will never have what is wanted of it, or others are to be read now."""
        self._update_liveness()
        if peers != self._in_peers(self._version):
            return True
        wanted = {peer: self._version if self._lockstep else self._mixed[peer] + 1 for peer in peers}
        return any(0 < self._pulls[peer].header[FINISHED] <= wanted[peer] for peer in peers)

    def _wait_for_readers(self) -> None:
        """Lock-step: the slot about to be rewritten must have been read by all that read it."""
        old = self._version - self._mailbox.reach.slots
        if old <= self._started:
            return
        peers = self._topology.out_peers(self._comm.rank, old)
        readers = [self._readers.setdefault(peer, HeaderReader(self._mailbox, peer)) for peer in peers]

        def read() -> bool:
            self._mailbox.progress()
            late = [reader for reader in readers if reader.header[MIXED] < old and not reader.header[FINISHED]]
            for reader in late:
                reader.start()
                reader.advance()
            return not late

        self._wait(read, lambda: False, peers)

    def _wait(self, done: Callable[[], bool], give_up: Callable[[], bool], peers: list[int]) -> bool:
        """Wait until `done`, with progress and back-off, naming whom we wait for; False if `give_up` comes first."""
        began = warned = time.monotonic()
        pause = 0.0
        while not done():
            if give_up():
                return False
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)
            if time.monotonic() - warned > SECONDS_BETWEEN_WARNINGS:
                warned = time.monotonic()
                self._say(f"has waited {warned - began:.0f} s for {self._seen(peers)} (staleness bound {self._bound})")
        return True

    def _seen(self, peers: list[int]) -> str:
        """Whom, where and at which update, as far as I know."""
        headers = [(self._readers.get(peer) or self._pulls[peer]).header for peer in peers]
        return ", ".join(
            f"rank {peer} on {self._hosts[peer]}, seen at update {header[LATEST]}" for peer, header in zip(peers, headers)
        )

    def _say(self, what: str) -> None:
        me = self._comm.rank
        print(f"gala_mpi: rank {me} on {self._hosts[me]} at update {self._version} {what}", file=sys.stderr, flush=True)

    def agree(self, wish: Order) -> Order:
        """Wishes travel in the headers, one hop an update, as appointments.

        Lock-step agents keep an appointment at its update: it is made so far ahead that everybody has heard of it by then
        (the earliest one counts). Otherwise agents move at their own pace: each saves by its own clock, and stops as soon
        as it hears that somebody does.
        """
        header = self._mailbox.header
        if wish.stop and not header[STOP_AT]:
            self._mailbox.post(STOP_AT, self._version + self._propagation_delay)
        stop_at = self._pass_on_stop()
        if not self._lockstep:
            return Order(stop=stop_at > 0, save=wish.save)
        save_at = max([int(pull.header[SAVE_AT]) for pull in self._pulls.values()] + [int(header[SAVE_AT])])
        # No agent is so far behind another: a new appointment is made when all have kept the last one.
        if wish.save and self._comm.rank == 0 and save_at + self._propagation_delay <= self._version:
            save_at = self._version + self._propagation_delay
        self._mailbox.post(SAVE_AT, save_at)
        return Order(stop=0 < stop_at <= self._version, save=save_at == self._version)

    def _pass_on_stop(self) -> int:
        """The earliest update at which anybody whom I have heard of stops, or 0; posted for those who read me."""
        headers = [self._mailbox.header, *(pull.header for pull in self._pulls.values())]
        stop_at = min((int(header[STOP_AT]) for header in headers if header[STOP_AT]), default=0)
        self._mailbox.post(STOP_AT, stop_at)
        return stop_at

    def _listen(self) -> None:
        """When I am done: go on passing on what others wish."""
        for pull in self._pulls.values():
            pull.start(newer_than=sys.maxsize)
            pull.advance()
        self._pass_on_stop()

    def counters(self) -> Counters:
        gap, self._mailbox.progress_gap = self._mailbox.progress_gap, 0.0
        pulls = self._pulls.values()
        torn, corrupt = sum(pull.torn for pull in pulls), sum(pull.corrupt for pull in pulls)
        if corrupt > self._corrupt:
            self._say(f"has thrown away {corrupt} messages whose checksum was wrong: memory, network or MPI is at fault")
        self._corrupt = corrupt
        return Counters(self._mixes, self._staleness, torn, corrupt, gap, dict(self._liveness.lost) if self._liveness else {})

    def _finish(self) -> None:
        """Nothing more of mine comes."""
        self._land(wait=True)
        self._mailbox.post(FINISHED, self._version + 1)

    def serve(self, until: Callable[[dict[int, int]], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Once I publish no more: serve the others until `until(lost)` holds (see Counters.lost). Not collective."""
        self._finish()
        while not until(self._liveness.lost):
            meanwhile()
            self._mailbox.progress()
            self._update_liveness()
            self._listen()
            time.sleep(0.001)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._finish()
        self._mailbox.close(self._listen, meanwhile)
