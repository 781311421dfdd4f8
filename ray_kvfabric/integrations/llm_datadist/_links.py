"""Which clusters an LLMDataDist is linked to, by which call: bookkeeping, no fabric (contract 9.5 to 9.10)."""

from __future__ import annotations

import threading
import uuid
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from ray_kvfabric.errors import LLMException, LLMStatusCode, NotLinked, ParamInvalid
from ray_kvfabric.integrations.llm_datadist.v2.llm_types import RegisterMemStatus

MAX_COMMS = 512


@dataclass(frozen=True, slots=True)
class Greeting:
    """A member's word that it has called `link`; `call` is one call's own number, so that none counts twice."""

    name: str
    members: tuple[int, ...]
    cluster_id: int
    call: str


@dataclass(slots=True)
class Comm:
    """A communicator made by `link`, or being made: it has an id once all members met.

    `mirrored` members do not exist: this endpoint itself serves them (contract section 18).
    """

    name: str
    members: tuple[int, ...]
    status: RegisterMemStatus = RegisterMemStatus.PREPARING
    call: str = field(default_factory=lambda: uuid.uuid4().hex)
    greeted: dict[int, str] = field(default_factory=dict)  # members that were here, by which call of theirs
    mirrored: set[int] = field(default_factory=set)

    def greeting(self, cluster_id: int) -> dict[str, Any]:
        """What `cluster_id` tells the other members."""
        return asdict(Greeting(self.name, tuple(sorted(self.members)), cluster_id, self.call))

    def is_meant_by(self, greeting: Greeting) -> bool:
        return (self.name, tuple(sorted(self.members))) == (greeting.name, greeting.members)


@dataclass(slots=True)
class Links:
    """Threads may share it."""

    own: int
    _clusters: dict[int, int] = field(default_factory=dict)  # linked by address -> the endpoint that serves it
    _comms: dict[int, Comm] = field(default_factory=dict)
    _meeting: dict[str, Comm] = field(default_factory=dict)
    _ids: count[int] = field(default_factory=lambda: count(1))
    _beginning: set[int] = field(default_factory=set)  # clusters that a link_clusters is at
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # ---- who may be reached ------------------------------------------------------------------------

    def admit(self, cluster_id: int) -> int:
        """The endpoint that serves a linked cluster. Raises NotLinked for any other."""
        linked = self.linked()
        if cluster_id not in linked:
            known = ", ".join(map(str, sorted(linked))) or "none"
            raise NotLinked(f"cluster {self.own} has no usable link to cluster {cluster_id}; linked: {known}")
        return linked[cluster_id]

    def is_linked(self, cluster_id: int) -> bool:
        return cluster_id in self.linked()

    def linked(self) -> dict[int, int]:
        """Each linked cluster and the endpoint that serves it."""
        with self._lock:
            ready = (comm for comm in self._comms.values() if comm.status is RegisterMemStatus.OK)
            members = {
                member: self.own if member in comm.mirrored else member
                for comm in ready
                for member in comm.members
                if member != self.own
            }
            return members | self._clusters

    # ---- by address --------------------------------------------------------------------------------

    def begin(self, cluster_id: int) -> bool:
        """False for a cluster that is linked, or just being linked by another call. True is followed by `end`."""
        with self._lock:
            if self.is_linked(cluster_id) or cluster_id in self._beginning:
                return False
            self._beginning.add(cluster_id)
            return True

    def end(self, cluster_id: int) -> None:
        with self._lock:
            self._beginning.discard(cluster_id)

    def add(self, cluster_id: int, server: int | None = None) -> None:
        """`server` is the endpoint's own id where that is another: hixl links under an id of the caller's choice."""
        with self._lock:
            self._clusters[cluster_id] = cluster_id if server is None else server

    def drop(self, cluster_id: int) -> None:
        """The link by address; a communicator that reaches the cluster too stays."""
        with self._lock:
            self._clusters.pop(cluster_id, None)

    # ---- by communicator ---------------------------------------------------------------------------

    def meet(self, comm: Comm) -> None:
        """Lets other members see that this one has come. Raises LLMException (LLM_PARAM_INVALID)."""
        with self._lock:
            if self.own not in comm.members:
                raise ParamInvalid(f"cluster_rank_info has {list(comm.members)}, not this cluster {self.own}")
            if len(self._comms) >= MAX_COMMS:
                raise ParamInvalid(f"{MAX_COMMS} communicators are alive, as many as there may be")
            self._meeting[comm.name] = comm

    def give_up(self, comm: Comm) -> None:
        with self._lock:
            self._end_meeting(comm)

    def greet(self, greeting: Greeting) -> bool:
        """Whether this cluster has called `link` with the same name and members, for that call of the other's.

        Once it was told so it needs nothing more of us and may unlink: we remember that it was here. A link that
        stands already meets nobody again, but says the same to a call that asks twice.
        """
        with self._lock:
            meeting = self._meeting.get(greeting.name)
            if meeting is not None and meeting.is_meant_by(greeting):
                meeting.greeted[greeting.cluster_id] = greeting.call
                return True
            standing = (comm for comm in self._comms.values() if comm.is_meant_by(greeting))
            return any(comm.greeted.get(greeting.cluster_id) == greeting.call for comm in standing)

    def open(self, comm: Comm) -> int:
        """All members have met: the comm id."""
        with self._lock:
            comm_id = next(self._ids)
            self._end_meeting(comm)
            comm.status = RegisterMemStatus.OK
            self._comms[comm_id] = comm
            return comm_id

    def close(self, comm_id: int) -> Comm:
        """Raises LLMException (LLM_NOT_YET_LINK) for an unknown id."""
        with self._lock:
            comm = self.comm(comm_id)
            del self._comms[comm_id]
            return comm

    def comm(self, comm_id: int) -> Comm:
        try:
            return self._comms[comm_id]
        except KeyError:
            raise NotLinked(f"comm_id {comm_id} is unknown; known: {sorted(self._comms) or 'none'}") from None

    def _end_meeting(self, comm: Comm) -> None:
        if self._meeting.get(comm.name) is comm:
            del self._meeting[comm.name]


def status_of(error: Exception) -> LLMStatusCode:
    """The code that a tuple of statuses shows for an error; never success."""
    code = error.status_code if isinstance(error, LLMException) else LLMStatusCode.LLM_FAILED
    return code or LLMStatusCode.LLM_FAILED
