"""GALA: after each update, average parameters with those of the round's in-peers. Nobody waits (Assran et al. 2019).

Once a newer message of every in-peer has arrived, x ← weighted average, with the graph's weights (1 / (1 + |in-peers|) if it
names none); otherwise carry on.
The newest message wins: a writer never skips one because a reader has not read the last (the authors' code does).

With a staleness bound τ ≥ 1 an agent waits after τ updates without a mix. τ = 0 is lock-step: at update k every agent
mixes exactly version k of its in-peers, and a writer waits until its readers have read a slot before it rewrites it.

With a largest lag L, messages of more than L updates ago are passed over as if they had not come. Lag goes by the updates that
both have done since the start, so that agents that resume at different updates mix at once. (docs/transport.md says why agents
with both bounds do not wait in a circle.)

With `survive`, an in-peer that shows no sign of life is read no more until it does: those whom it would have read are read
in its place, so that on any graph what one agent learns still reaches all that live.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI

from gala_mpi import device, pulse, topology
from gala_mpi.device import Download
from gala_mpi.errors import SettingError
from gala_mpi.exchange.agreement import Appointments, Headers, Order
from gala_mpi.exchange.base import Counters, Exchange, Mix, Settings, is_finite
from gala_mpi.mpi.liveness import Liveness
from gala_mpi.mpi.mailbox import FINISHED, LATEST, MIXED, Mailbox, Reach, window_bytes
from gala_mpi.mpi.readers import HeaderReader, message_reader
from gala_mpi.mpi.roll import SECONDS_BETWEEN_WARNINGS, Roll
from gala_mpi.topology import Topology, properties
from gala_mpi.topology.substitutes import in_peers_without, weights_without

NOTHING = torch.empty(0)
WORD_BYTES = 4  # of what a mailbox counts in


def average(mine: torch.Tensor, messages: list[np.ndarray], weights: list[float], out: torch.Tensor) -> None:
    """Compute out ← (1 − Σ w_i) mine + Σ w_i m_i on the device of mine and out. The messages have been read when it returns."""
    mixed, total = mine, 1 - math.fsum(weights)
    for message, weight in zip(messages, weights, strict=True):
        total += weight
        # The mean of i vectors, then of i + 1: reads two vectors and writes one, where a sum and a scaling go twice.
        mixed = torch.lerp(mixed, torch.from_numpy(message).to(mine.device), weight / total, out=out)
    if not messages:
        out.copy_(mine)


def require_no_circle(graph: Topology, staleness: int | None, max_lag: int | None) -> None:
    """Refuse bounds with which agents might wait for each other in a circle (docs/transport.md). Raises SettingError."""
    if max_lag is not None and staleness is not None and graph.period > 1:
        raise SettingError(
            f"--max-lag {max_lag} --staleness {staleness} --topology {graph.name}: agents might wait for each other for ever; "
            "a graph that is the same at every update is expected, or one of the two bounds"
        )


class Gossip(Exchange):
    """Average parameters with a few neighbours.

    Args:
        comm: all agents.
        length: P, the number of parameters.
        graph: who reads whom.
        staleness: τ; None: never wait.
        checksum: whether messages carry a checksum that their readers verify.
        max_lag: L, the most updates that a message may be behind; None: any.
        survive: after how many seconds without a sign of life a peer is lost, at least; None: never. Not in lock-step.
        dtype: of the vectors and messages: float32, as training has, or float64.
    """

    takes = frozenset({"topology", "staleness", "max_lag", "checksum", "survive", "replay", "mix_steps"})

    @classmethod
    def build(cls, comm: MPI.Intracomm, length: int, settings: Settings) -> Gossip:
        graph = cls.graph(settings, comm.size)
        return cls(comm, length, graph, settings.staleness, settings.checksum, settings.survive, settings.max_lag)

    @classmethod
    def in_step(cls, settings: Settings) -> bool:
        return settings.staleness == 0

    @classmethod
    def graph(cls, settings: Settings, agents: int) -> Topology:
        graph = topology.build(settings.topology, agents)
        require_no_circle(graph, settings.staleness, settings.max_lag)
        return graph

    @classmethod
    def propagation_delay(cls, settings: Settings, agents: int) -> int:
        return properties.propagation_delay(cls.graph(settings, agents)) if cls.in_step(settings) else agents

    @classmethod
    def window_bytes(cls, settings: Settings, length: int, reach: Reach) -> int:
        return window_bytes(length + settings.checksum, reach)

    def __init__(
        self,
        comm: MPI.Intracomm,
        length: int,
        graph: Topology,
        staleness: int | None,
        checksum: bool = False,
        survive: float | None = None,
        max_lag: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ):
        self._dtype = np.dtype(dtype)
        self._graph, self._bound, self._lockstep = graph, staleness, staleness == 0
        self._max_lag = math.inf if max_lag is None else max_lag
        # Of each round: looked up at every progress.
        self._peers = [graph.in_peers(comm.rank, round) for round in range(graph.period)]
        self._roll = Roll.of(comm)
        words = length * self._dtype.itemsize // WORD_BYTES
        self._mailbox = Mailbox(comm, words, checksum, survive is not None)
        self._inbox = {peer: message_reader(self._mailbox, peer) for peer in graph.neighbours(comm.rank)}
        self._headers = Headers(self._mailbox, self._inbox.values())
        if self._lockstep:
            delay = properties.propagation_delay(graph)
            self._headers = Appointments(self._mailbox, self._inbox.values(), comm.rank, delay)
        super().__init__(comm, length, self._headers)
        self._liveness = Liveness(self._mailbox, survive) if survive is not None else None
        self._receipts: dict[int, HeaderReader] = {}  # lock-step: the headers of those who read this rank
        self._mixed = dict.fromkeys(self._inbox, 0)  # the version of each peer that was last mixed
        self._ahead: dict[int, int] = {}  # by how many updates this rank was ahead of each peer at the start
        # A message that comes at once (shared memory) is read when it is mixed, so that it is as new as can be. One that
        # takes longer (a network) is asked for ahead, so that it comes while the environments run.
        self._slow = dict.fromkeys(self._inbox, False)
        self._version = self._started = 0
        self._room = NOTHING  # the slot that the next version is being written into
        self._download: Download | None = None  # on a GPU: this rank's last version on its way
        self._on_its_way = 0  # which one; 0: none
        self._staleness = self._corrupt = self._refused = 0
        self._complained = -SECONDS_BETWEEN_WARNINGS
        self._mixes: list[Mix] = []

    def start(self, version: int, parameters: torch.Tensor) -> None:
        self._version = self._started = version
        self._download = Download(parameters) if device.is_asynchronous(parameters.device) else None
        self._mailbox.post(MIXED, version)
        versions = self._comm.allgather(version)  # agents that were resumed need not stand at the same update
        if self._lockstep and len(set(versions)) > 1:
            raise ValueError(f"lock-step agents begin at the same update; these begin at {versions}")
        self._mixed = {peer: versions[peer] for peer in self._inbox}
        self._ahead = {peer: version - theirs for peer, theirs in enumerate(versions)}
        if self._liveness is None:
            self._mailbox.meet(self._inbox)
        else:  # this rank may come to read anybody
            self._mailbox.meet(peer for peer in range(self._comm.size) if peer != self._comm.rank)
            self._liveness.follow(self._inbox)

    def room(self) -> torch.Tensor | None:
        self._version += 1
        if self._download is not None:
            return None
        if self._lockstep:
            self._wait_for_readers()
        self._room = torch.from_numpy(self._mailbox.begin_write(self._version).view(self._dtype))
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
            mine, self._room = self._room, NOTHING
            self._mailbox.end_write(self._version)
            return mine
        self._land(wait=True)  # the last one, which has long been there
        self._download.send(parameters)
        self._on_its_way = self._version
        self._land(wait=self._lockstep)
        return self._download.vector

    def _land(self, wait: bool = False) -> None:
        """Publish what has come from the GPU."""
        if self._download is None or not self._on_its_way or not (wait or self._download.arrived()):
            return
        if self._lockstep:
            self._wait_for_readers()
        self._mailbox.publish(self._download.take().view(np.float32), self._on_its_way)
        self._on_its_way = 0

    def _in_peers(self, version: int) -> list[int]:
        """Return whom this rank reads at update `version`: in place of the lost, those whom they would have read."""
        if not self._lost:
            return self._peers[version % len(self._peers)]
        return in_peers_without(self._graph, self._comm.rank, version, self._lost)

    def _weights(self) -> list[float]:
        """Return the weights of those whom this rank reads now, in the same order."""
        if not self._lost:
            return self._graph.weights(self._comm.rank, self._version)[1:]
        return weights_without(self._graph, self._comm.rank, self._version, self._lost)[1:]

    @property
    def _lost(self) -> dict[int, int]:
        """The ranks that show no sign of life, and their last versions."""
        return self._liveness.lost if self._liveness else {}

    def _update_liveness(self) -> None:
        """See whether somebody has been lost, or has come back; then this rank may have to read others."""
        if self._liveness is None or not self._liveness.update():
            return
        for round in range(self._graph.period):
            for peer in self._in_peers(round):
                if peer not in self._inbox:
                    self._inbox[peer] = message_reader(self._mailbox, peer)
                    self._mixed[peer], self._slow[peer] = 0, False
        self._liveness.follow(self._inbox)

    def _ask(self, peers: list[int]) -> bool:
        """Ask `peers` for messages newer than those mixed; return whether all have arrived whole."""
        for peer in peers:
            reader = self._inbox[peer]
            asked_now = reader.idle and not reader.ready
            reader.start(self._too_old(peer, self._version), self._version if self._lockstep else None)
            reader.advance()
            if asked_now:
                self._slow[peer] = not reader.idle
        if self._arrived(peers):
            return True
        self._mailbox.progress()
        for peer in peers:
            self._inbox[peer].advance()
        return self._arrived(peers)

    def _arrived(self, peers: list[int]) -> bool:
        """Return whether messages of all `peers` are ready, without those that came so late that they lag too far."""
        for peer in peers:
            reader = self._inbox[peer]
            if reader.ready and reader.version <= self._too_old(peer, self._version):
                reader.ready = False
        return all(self._inbox[peer].ready for peer in peers)

    def _too_old(self, peer: int, version: int) -> int:
        """Return the newest version of `peer` that this rank will not mix at its update `version`."""
        return max(self._mixed[peer], int(max(0, version - self._ahead[peer] - self._max_lag - 1)))

    def progress(self) -> None:
        self._land()
        self._mailbox.progress()
        self._update_liveness()
        for peer in self._in_peers(self._version + 1):
            if self._slow[peer] and not self._lockstep:
                self._inbox[peer].start(self._too_old(peer, self._version + 1))
        for reader in self._inbox.values():
            reader.advance()

    def _mix(self, mine: torch.Tensor, peers: list[int], out: torch.Tensor) -> list[Mix]:
        """Average the messages that are ready and `mine` into `out`, always in the same order."""
        readers, weights, whole = [self._inbox[peer] for peer in peers], self._weights(), False
        while not whole:  # again only if a peer has published twice meanwhile, which nobody does in lock-step
            taken = [reader.take() for reader in readers]
            messages = [message.view(self._dtype) for message, _ in taken]
            average(mine, messages, weights, out)
            whole = all([reader.still_whole() for reader in readers])
        mixes = [Mix(peer, version, weight) for peer, (_, version), weight in zip(peers, taken, weights)]
        self._mixed.update((mix.peer, mix.version) for mix in mixes)
        if mixes and not is_finite(out):
            self._refuse(mine, mixes, messages)
            out.copy_(mine)
            return []
        return mixes

    def _refuse(self, mine: torch.Tensor, mixes: list[Mix], messages: list[np.ndarray]) -> None:
        """Count the messages that are not finite, and name their senders. Agents that train publish no such thing, so something
        broke it; a program of one's own may, and have such numbers itself."""
        broken = [mix for mix, message in zip(mixes, messages) if not is_finite(torch.from_numpy(message))]
        broken = broken or (mixes if is_finite(mine) else [])  # it may have been rewritten since
        self._refused += len(broken)
        if time.monotonic() - self._complained > SECONDS_BETWEEN_WARNINGS:
            self._complained = time.monotonic()
            names = ", ".join(f"version {mix.version} of {self._roll.name(mix.peer)}" for mix in broken)
            if names:
                self._say(
                    f"does not mix {names}: it is not finite, by its sender's numbers, or memory, network or MPI is at fault"
                )
            else:
                self._say("mixes nothing: its own parameters are not finite")

    def _say(self, what: str) -> None:
        self._roll.say(f"at update {self._version} {what}")

    def _exhausted(self, peers: list[int]) -> bool:
        """Return whether some peer will never have what is wanted of it, or others are to be read now."""
        self._update_liveness()
        if peers != self._in_peers(self._version):
            return True
        wanted = {peer: self._version if self._lockstep else self._too_old(peer, self._version) + 1 for peer in peers}
        return any(0 < self._inbox[peer].header[FINISHED] <= wanted[peer] for peer in peers)

    def _wait_for_readers(self) -> None:
        """Wait, in lock-step, until all that read the slot about to be rewritten have read it."""
        old = self._version - self._mailbox.reach.slots
        if old <= self._started:
            return
        peers = self._graph.out_peers(self._comm.rank, old)
        receipts = [self._receipts.setdefault(peer, HeaderReader(self._mailbox, peer)) for peer in peers]

        def read() -> bool:
            self._mailbox.progress()
            late = [receipt for receipt in receipts if receipt.header[MIXED] < old and not receipt.header[FINISHED]]
            for receipt in late:
                receipt.start()
                receipt.advance()
            return not late

        self._wait(read, lambda: False, peers)

    def _wait(self, done: Callable[[], bool], give_up: Callable[[], bool], peers: list[int]) -> bool:
        """Wait until `done`, with progress and back-off, naming whom it waits for; False if `give_up` comes first."""
        watch, pause = self._roll.watch_peers(peers, self._seen), 0.0
        while not done():
            if give_up():
                return False
            time.sleep(pause)
            pause = min(pause + 1e-5, 1e-3)
            watch()
        return True

    def _seen(self, peer: int) -> int:
        """Return the update at which `peer` was last seen."""
        return int((self._receipts.get(peer) or self._inbox[peer]).header[LATEST])

    def agree(self, wish: Order) -> Order:
        return self._headers.agree(wish, self._version)

    def _listen(self) -> None:
        """Go on passing on what others wish, once this rank is done."""
        for reader in self._inbox.values():
            reader.start(newer_than=sys.maxsize)
            reader.advance()
        self._headers.pass_on_stop()

    def counters(self) -> Counters:
        gap, self._mailbox.progress_gap = self._mailbox.progress_gap, 0.0
        readers = self._inbox.values()
        torn, corrupt = sum(reader.torn for reader in readers), sum(reader.corrupt for reader in readers)
        if corrupt > self._corrupt:
            self._say(f"has thrown away {corrupt} messages whose checksum was wrong: memory, network or MPI is at fault")
        self._corrupt = corrupt
        return Counters(self._mixes, self._staleness, torn, corrupt + self._refused, gap, dict(self._lost))

    def _finish(self) -> None:
        """Announce that this rank publishes no more."""
        self._land(wait=True)
        self._mailbox.post(FINISHED, self._version + 1)

    def serve(self, until: Callable[[dict[int, int]], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        self._finish()
        while not until(self._lost):
            meanwhile()
            self._mailbox.progress()
            self._update_liveness()
            self._listen()
            pulse.wait()
            time.sleep(0.001)

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._finish()
        self._mailbox.close(self._listen, meanwhile)
