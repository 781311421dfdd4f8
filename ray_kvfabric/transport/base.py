"""The contract of a transport: how a link to a peer is opened and how it moves blocks.

    Transport   what it can do, whether this machine and this pair can use it; opens links
    Link        one opened way to one endpoint; opens the peer's caches; pushes and pulls
    RemoteCache a peer's cache, made reachable

A link's calls block until the bytes are there, bounded by the order's deadline and stop word; threads may share
a link. Nothing here imports Ray: what a link must ask of its peer goes through the `PeerCalls` port.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import Copier, Fence, RegionTable, StopWord, WayWord
from ray_kvfabric.memory.device import Devices, Mark
from ray_kvfabric.memory.staging import Staging
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt, Route
from ray_kvfabric.transport.notices import Lookout

HOST_TO_HOST = frozenset({("host", "host")})
ANY_WITH_DEVICE = frozenset({("device", "device"), ("host", "device"), ("device", "host")})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Facts about a transport, not tries."""

    one_sided: bool
    same_host_only: bool
    foreign_memory: bool  # reaches memory that the fabric did not allocate
    memories: frozenset[tuple[str, str]] = HOST_TO_HOST  # (local cache's, peer's cache's)

    @property
    def device_memory(self) -> bool:
        return ("device", "device") in self.memories


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """What a transport may know of the endpoint that it works for."""

    endpoint: EndpointInfo
    copier: Copier
    devices: Devices
    staging: Staging
    hccl_buffer_mib: int


class Turn(Protocol):
    """A transfer's leave to move, which more urgent ones may interrupt."""

    @property
    def give_way(self) -> WayWord | None: ...
    def pause(self, deadline: Deadline, stop: StopWord | None) -> None:
        """Until it may go on. Raises TransferTimeout, TransferCancelled."""


class Order(NamedTuple):
    """How one transfer is to be carried out. `deadline_ns` is CLOCK_MONOTONIC.

    `cache_id` and `memory` are the local cache's; `after` is the caller's work on it, which the transfer waits for.
    `is_asked`: the peer itself has asked for the push, which is its own transfer.
    """

    transfer_id: str
    deadline_ns: int
    stop: StopWord | None = None
    memory: str = "host"
    after: Mark | None = None
    cache_id: int = 0
    use: GrantUse | None = None
    turn: Turn | None = None
    is_asked: bool = False


class Step(NamedTuple):
    """From where on a plan is copied, and what may end that early: see `memory.copy.BlockCopy`."""

    begin: int = 0
    fence: Fence | None = None
    give_way: WayWord | None = None
    digests: NDArray[np.uint32] | None = None


WHOLE = Step()


@dataclass(slots=True)
class RemoteCache:
    """A peer's cache; `table` holds its regions as this link reaches them.

    `step` is how it is usually copied: whole, while the peer's shared page, where this process has mapped it, says that
    the cache is current.
    """

    info: CacheInfo
    table: RegionTable
    step: Step = WHOLE


class Stretch(NamedTuple):
    """Contiguous memory of a cache, and the object that keeps it alive, if there is one."""

    address: int
    nbytes: int
    owner: object


class LocalCache(Protocol):
    """A cache of this endpoint, as a transport sees it that was asked for it by a peer."""

    @property
    def info(self) -> CacheInfo: ...
    @property
    def table(self) -> RegionTable: ...
    def stretches(self) -> list[Stretch]: ...


class Serving(NamedTuple):
    """What a transport needs to answer peers.

    `visit(cache_id, generation)`: the memory is not freed inside; raises StaleRoute.
    `receive(question)`: the same for a push, if this endpoint lets it in; what it did under a grant is noted. Raises
    StaleRoute, GrantRefused, GrantNeeded, EndpointDraining, ParamInvalid.
    `keep` holds a receipt ready for whoever waits for it here.
    """

    local: LocalEnd
    visit: Callable[[int, int], AbstractContextManager[LocalCache]]
    receive: Callable[[dict[str, Any]], AbstractContextManager[LocalCache]]
    keep: Callable[[Receipt], None]
    peers: PeerCalls | None


Answerer = Callable[[dict[str, Any]], object]


class Link(ABC):
    """An opened route to one incarnation of one endpoint."""

    transport: ClassVar[str]

    def __init__(self, local: LocalEnd, peer: EndpointInfo) -> None:
        self.local = local
        self.peer = peer

    @abstractmethod
    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        """Makes a cache of the peer reachable. Raises LinkFailed, PeerLost."""

    @abstractmethod
    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        """Writes local blocks into the peer's and leaves a receipt there.

        Raises StaleRoute (no byte moved), CacheNotFound (freed meanwhile), PeerLost, TransferTimeout,
        TransferCancelled, ParamInvalid; under a grant GrantRefused, and what fails after that fails its writer.
        """

    @abstractmethod
    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        """Reads the peer's blocks into local ones; raises as `push` does."""

    @property
    @abstractmethod
    def nbytes_pushed(self) -> int: ...

    @property
    @abstractmethod
    def nbytes_pulled(self) -> int: ...

    @property
    @abstractmethod
    def num_landed(self) -> int:
        """Pushes and pulls that ended well."""

    @property
    def device_nbytes(self) -> int:
        """Device memory that this link alone takes here."""
        return 0

    def totals(self) -> dict[str, int]:
        """Counters of this link, by name."""
        counted = {
            f"bytes_pushed/{self.transport}": self.nbytes_pushed,
            f"bytes_pulled/{self.transport}": self.nbytes_pulled,
            "transfers_landed": self.num_landed,
        }
        return {name: amount for name, amount in counted.items() if amount}

    @abstractmethod
    def fail_grant(self, use: GrantUse, code: int, reason: str, deadline: Deadline) -> None:
        """Lets the receiver know that this writer will not bring the rest. Raises GrantRefused, PeerLost."""

    def is_current(self, remote: RemoteCache) -> bool | None:
        """Whether the peer still has the cache as it was opened; None where that cannot be told without a call."""
        return None

    @property
    def lookout(self) -> Lookout | None:
        """On the peer's shared page, where this process has mapped it."""
        return None

    def tidy(self) -> None:  # noqa: B027  # most have nothing to tell
        """Tells the peer what it waits for, now and then; no transfer depends on it."""

    def peer_ended(self) -> None:  # noqa: B027  # where a process of this host is watched, nothing is new
        """Whoever knows says that the peer's incarnation has ended."""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the peer's incarnation still lives; no remote call."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the link holds; idempotent."""

    def __repr__(self) -> str:
        state = "open" if self.is_alive else "dead"
        return (
            f"<Link {self.local.endpoint.cluster_id} -> {self.peer.cluster_id} {self.transport}: {state}, "
            f"{self.nbytes_pushed / 1e9:.1f} GB pushed>"
        )


class Transport(ABC):
    """One way to travel, for one endpoint. Construction does nothing."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def missing(self) -> str | None:
        """Why this machine cannot use it; None when it can."""
        return None

    @abstractmethod
    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        """Why this pair cannot use it for that cache; None when it can. Facts only, no try.

        That it moves between the two kinds of memory is in `capabilities`, and was looked at.
        """

    @abstractmethod
    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        """Raises LinkFailed, PeerLost, StaleIncarnation."""

    def serve(self, serving: Serving) -> dict[str, Answerer]:
        """The questions of peers that this transport answers, by name. Answers must be idempotent."""
        return {}

    def sweep(self) -> None:  # noqa: B027
        """Takes back what was given to peers that died since; called now and then."""

    def peer_ended(self, incarnation: int) -> None:  # noqa: B027
        """Takes back what was given to this peer, wherever it was."""

    def describe(self) -> dict[str, object]:
        """What it holds besides its links, ready for JSON."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Gives back what it holds; idempotent. Its links were closed before."""
