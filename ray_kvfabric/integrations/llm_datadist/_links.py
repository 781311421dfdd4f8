"""Which clusters an LLMDataDist is linked to, by which call: bookkeeping, no fabric (contract 9.5 to 9.10)."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from ray_kvfabric.errors import LLMException, LLMStatusCode, NotLinked, ParamInvalid
from ray_kvfabric.integrations.llm_datadist.v2.llm_types import RegisterMemStatus

MAX_COMMS = 512


@dataclass(slots=True)
class Comm:
    """A communicator made by `link`, or being made: it has an id once all members met."""

    name: str
    members: tuple[int, ...]
    status: RegisterMemStatus = RegisterMemStatus.PREPARING


@dataclass(slots=True)
class Links:
    """`mirrored` clusters do not exist: they are served by this endpoint itself (contract section 18)."""

    own: int
    _clusters: set[int] = field(default_factory=set)
    _comms: dict[int, Comm] = field(default_factory=dict)
    _meeting: dict[str, Comm] = field(default_factory=dict)
    _mirrored: set[int] = field(default_factory=set)
    _ids: count[int] = field(default_factory=lambda: count(1))
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # ---- who may be reached ------------------------------------------------------------------------

    def admit(self, cluster_id: int) -> int:
        """The endpoint that serves a linked cluster. Raises NotLinked for any other."""
        if not self.is_linked(cluster_id):
            known = ", ".join(map(str, sorted(self.linked()))) or "none"
            raise NotLinked(f"cluster {self.own} has no usable link to cluster {cluster_id}; linked: {known}")
        return self.own if cluster_id in self._mirrored else cluster_id

    def is_linked(self, cluster_id: int) -> bool:
        return cluster_id in self.linked()

    def linked(self) -> set[int]:
        with self._lock:
            ready = (comm for comm in self._comms.values() if comm.status is RegisterMemStatus.OK)
            return self._clusters | {member for comm in ready for member in comm.members if member != self.own}

    # ---- by address --------------------------------------------------------------------------------

    def add(self, cluster_id: int) -> None:
        with self._lock:
            self._clusters.add(cluster_id)

    def mirror(self, cluster_id: int) -> None:
        with self._lock:
            self._mirrored.add(cluster_id)

    def drop(self, cluster_id: int) -> None:
        """The link by address; a communicator that reaches the cluster too stays."""
        with self._lock:
            self._clusters.discard(cluster_id)
            self._forget_mirrors([cluster_id])

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

    def is_met(self, name: str, cluster_id: int) -> bool:
        """Whether this cluster has called `link` with that name and that member."""
        with self._lock:
            known = [*self._meeting.values(), *self._comms.values()]
            return any(comm.name == name and cluster_id in comm.members for comm in known)

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
            self._forget_mirrors(comm.members)
            return comm

    def comm(self, comm_id: int) -> Comm:
        try:
            return self._comms[comm_id]
        except KeyError:
            raise NotLinked(f"comm_id {comm_id} is unknown; known: {sorted(self._comms) or 'none'}") from None

    def _end_meeting(self, comm: Comm) -> None:
        if self._meeting.get(comm.name) is comm:
            del self._meeting[comm.name]

    def _forget_mirrors(self, clusters: Iterable[int]) -> None:
        self._mirrored.difference_update(set(clusters) - self.linked())


def status_of(error: Exception) -> LLMStatusCode:
    """The code that a tuple of statuses shows for an error; never success."""
    code = error.status_code if isinstance(error, LLMException) else LLMStatusCode.LLM_FAILED
    return code or LLMStatusCode.LLM_FAILED
