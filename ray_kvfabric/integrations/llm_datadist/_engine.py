"""Engine: one initialised LLMDataDist in cache-manager mode. It links over the fabric's directory, never by socket.

    listen_ip_info     an alias of this endpoint in the directory
    link_clusters      find the alias -> ask that endpoint to link -> both know each other
    link               every member waits until all others have called it with the same name
Keys of clusters that are not linked are refused before the directory is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, LLMException, LLMStatusCode, NotLinked, ParamInvalid, TransferTimeout
from ray_kvfabric.integrations.llm_datadist import _options, _world
from ray_kvfabric.integrations.llm_datadist._addresses import ip_text
from ray_kvfabric.integrations.llm_datadist._calls import Calls
from ray_kvfabric.integrations.llm_datadist._engine_options import EngineOptions, alias_of, listen_alias
from ray_kvfabric.integrations.llm_datadist._links import Comm, Greeting, Links, status_of
from ray_kvfabric.integrations.llm_datadist.configs import LLMClusterInfo
from ray_kvfabric.integrations.llm_datadist.utils import log
from ray_kvfabric.integrations.llm_datadist.v2.llm_types import RegisterMemStatus
from ray_kvfabric.route import EndpointInfo

logger = logging.getLogger(__name__)

LINK, UNLINK, MEET = "llm_datadist.link", "llm_datadist.unlink", "llm_datadist.meet"
MAX_LINKING = 16  # clusters of one call are linked in parallel
_NAP_S = 0.02
Outcome = tuple[LLMStatusCode, list[LLMStatusCode]]


class Engine:
    """Threads may share it. `finalize` ends it for good."""

    def __init__(self, cluster_id: int, role: str, options: EngineOptions) -> None:
        self.cluster_id = cluster_id
        self.options = options
        self.calls = Calls()
        self.links = Links(cluster_id)
        self.has_called_link = False
        self._listening = options.listen
        self._seat = _world.current().join(cluster_id, options.settings, role)
        self.manager = self._seat.manager
        self.manager.gate_links(self.links.admit)
        self.manager.answers(LINK, self._accept)
        self.manager.answers(UNLINK, self._let_go)
        self.manager.answers(MEET, self._say_met)
        if options.listen:
            try:
                self.manager.listen(options.listen)
            except BaseException:
                self._seat.leave()
                raise

    def finalize(self) -> None:
        """Waits for the calls that are inside, then leaves the fabric."""
        try:
            self.calls.close(self._patience())
        finally:
            self._seat.leave()

    def _patience(self) -> Deadline:
        return Deadline.after(self.options.settings.control_timeout_s)

    # ---- by address --------------------------------------------------------------------------------

    def link_clusters(self, clusters: Sequence[LLMClusterInfo], timeout_ms: int) -> Outcome:
        """Nothing is raised for a cluster: its status says what happened. The last failure is the whole's."""
        return self._each(clusters, lambda info: self._link(info, Deadline.after(timeout_ms / 1000)))

    def unlink_clusters(self, clusters: Sequence[LLMClusterInfo], timeout_ms: int, force: bool) -> Outcome:
        is_local = force or self.options.backend == "hixl"
        return self._each(clusters, lambda info: self._unlink(info, is_local, Deadline.after(timeout_ms / 1000)))

    def _each(self, clusters: Sequence[LLMClusterInfo], do: Callable[[LLMClusterInfo], LLMStatusCode]) -> Outcome:
        if not clusters:
            return LLMStatusCode.LLM_PARAM_INVALID, []
        for info in clusters:
            _check_addresses(info)
        with self.calls.enter(), ThreadPoolExecutor(min(len(clusters), MAX_LINKING)) as pool:
            statuses = list(pool.map(lambda info: _status_of(do, info), clusters))
        failed = [status for status in statuses if status is not LLMStatusCode.LLM_SUCCESS]
        return (failed[-1] if failed else LLMStatusCode.LLM_SUCCESS), statuses

    def _link(self, info: LLMClusterInfo, deadline: Deadline) -> LLMStatusCode:
        alias = _only_address(info.remote_ip_info_list, "remote_ip_info_list")
        if not self.options.local_comm_res:
            _only_address(info.local_ip_info_list, "local_ip_info_list")
        peer = self._find(alias, deadline, LLMStatusCode.LLM_LINK_FAILED)
        server = self.cluster_id if peer is None else peer.cluster_id
        cluster_id = _id_of(info) if peer is None or self.options.backend == "hixl" else server
        if not self.links.begin(cluster_id):
            return LLMStatusCode.LLM_ALREADY_LINK
        try:
            if peer is not None:
                self._ask(peer, LINK, self._introduction(), deadline, LLMStatusCode.LLM_LINK_FAILED)
            self.links.add(cluster_id, server)
        finally:
            self.links.end(cluster_id)
        return LLMStatusCode.LLM_SUCCESS

    def _introduction(self) -> dict[str, Any]:
        return {"cluster_id": self.cluster_id, "one_sided": self.options.one_sided, "backend": self.options.backend}

    def _accept(self, request: dict[str, Any]) -> bool:
        """A peer links to us. A link that we still had to it is replaced: it has none any more."""
        if request["one_sided"] != self.options.one_sided:
            raise ParamInvalid(
                f"llm.EnableRemoteCacheAccessible is {int(request['one_sided'])} at cluster {request['cluster_id']} "
                f"and {int(self.options.one_sided)} at cluster {self.cluster_id}"
            )
        if request["backend"] == "comm":  # with hixl only the initiator may transfer
            self.manager.forget_ways(request["cluster_id"])
            self.links.add(request["cluster_id"])
        return True

    def _unlink(self, info: LLMClusterInfo, is_local: bool, deadline: Deadline) -> LLMStatusCode:
        """The peer drops its end first. A link stands under the id that the peer has, whatever `info` says."""
        cluster_ids = {_id_of(info)}
        if not is_local:
            alias = _only_address(info.remote_ip_info_list, "remote_ip_info_list")
            peer = self._find(alias, deadline, LLMStatusCode.LLM_UNLINK_FAILED)
            if peer is not None:
                request = {"cluster_id": self.cluster_id, "timeout_s": deadline.remaining_s}
                self._ask(peer, UNLINK, request, deadline, LLMStatusCode.LLM_UNLINK_FAILED)
                cluster_ids.add(peer.cluster_id)
        self._drop(cluster_ids, deadline)
        return LLMStatusCode.LLM_SUCCESS

    def _let_go(self, request: dict[str, Any]) -> bool:
        self._drop({request["cluster_id"]}, Deadline.after(request["timeout_s"]))
        return True

    def _drop(self, cluster_ids: set[int], deadline: Deadline) -> None:
        """Returns when no transfer to them that began before is on its way; the link has ended in any case."""
        for cluster_id in cluster_ids:
            self.links.drop(cluster_id)
            self.manager.forget_ways(cluster_id)
        self.calls.drain(cluster_ids, deadline)

    def _find(self, alias: str, deadline: Deadline, code: LLMStatusCode) -> EndpointInfo | None:
        """Who listens there; None for an absent peer that is to be mirrored."""
        try:
            return self.manager.find_alias(alias, deadline)
        except NotLinked as error:
            if _options.current().absent_peers == "loopback":
                return None
            raise LLMException(f"nobody listens on {alias}: {error}", status_code=code) from None

    def _ask(
        self, peer: EndpointInfo, question: str, request: dict[str, Any], deadline: Deadline, code: LLMStatusCode
    ) -> None:
        """Raises what the peer refuses with, LLM_TIMEOUT, or `code` when it cannot be reached."""
        try:
            self.manager.ask(peer, question, request, deadline)
        except (ParamInvalid, TransferTimeout):
            raise
        except FabricError as error:
            raise LLMException(f"{peer} could not be asked: {error}", status_code=code) from error

    # ---- by communicator ---------------------------------------------------------------------------

    def link(self, comm_name: str, cluster_ids: tuple[int, ...]) -> int:
        """The comm id, once every member has called this. Raises LLMException (LLM_LINK_FAILED) else."""
        if self.options.backend == "hixl":
            raise LLMException(
                "link is not for llm.TransferBackend hixl", status_code=LLMStatusCode.LLM_FEATURE_NOT_ENABLED
            )
        with self.calls.enter():
            return self._meet_all(Comm(comm_name, cluster_ids))

    def _meet_all(self, comm: Comm) -> int:
        self.links.meet(comm)
        try:
            deadline = Deadline.after(self.options.link_s)
            for cluster_id in comm.members:
                if cluster_id != self.cluster_id:
                    self._await_member(comm, cluster_id, deadline)
            comm_id = self.links.open(comm)
        finally:
            self.links.give_up(comm)
        self.has_called_link = True
        return comm_id

    def _await_member(self, comm: Comm, cluster_id: int, deadline: Deadline) -> None:
        while cluster_id not in comm.greeted and not self._has_met(comm, cluster_id, deadline):
            self.calls.check()
            if deadline.passed:
                raise LLMException(
                    f"cluster {cluster_id} did not call link({comm.name!r}) within {self.options.link_s:g} s",
                    status_code=LLMStatusCode.LLM_LINK_FAILED,
                )
            time.sleep(_NAP_S)

    def _has_met(self, comm: Comm, cluster_id: int, deadline: Deadline) -> bool:
        try:
            peer = self.manager.find_endpoint(cluster_id, deadline)
            return bool(self.manager.ask(peer, MEET, comm.greeting(self.cluster_id), deadline))
        except NotLinked:
            if _options.current().absent_peers != "loopback":
                return False
            comm.mirrored.add(cluster_id)
            return True
        except FabricError as error:
            logger.debug("cluster %d has not met us yet: %s", cluster_id, error)
            return False

    def _say_met(self, request: dict[str, Any]) -> bool:
        return self.links.greet(Greeting(**request))

    def unlink(self, comm_id: int) -> None:
        """Waits for the transfers that are inside. Raises LLMException (LLM_NOT_YET_LINK) for an unknown id."""
        with self.calls.enter():
            comm = self.links.close(comm_id)
            for member in comm.members:
                self.manager.forget_ways(member)
            self.calls.drain(comm.members, self._patience())

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        return self.links.comm(comm_id).status

    # ---- roles -------------------------------------------------------------------------------------

    def switch_role(self, options: dict[str, str]) -> None:
        """Listens where `options` say, or nowhere; the role itself is a label (contract 9.7)."""
        alias = listen_alias(options)
        with self.calls.enter():
            self._listen_anew(alias)

    def _listen_anew(self, alias: str) -> None:
        if self.options.backend == "hixl":
            if alias and alias != self.options.listen:
                raise LLMException(
                    f"llm.listenIpInfo was {self.options.listen} at init and cannot become {alias} with hixl",
                    status_code=LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                )
            return
        linked = self.links.linked()
        if linked:
            raise LLMException(
                f"cluster {self.cluster_id} is still linked to {sorted(linked)}",
                status_code=LLMStatusCode.LLM_EXIST_LINK,
            )
        if _port(alias) != _port(self._listening):
            self.manager.listen(alias)
            self._listening = alias


def _status_of(do: Callable[[LLMClusterInfo], LLMStatusCode], info: LLMClusterInfo) -> LLMStatusCode:
    try:
        return do(info)
    except Exception as error:  # whatever the peer raised: link_clusters and unlink_clusters do not
        log.warning("cluster %s: %s", info.remote_cluster_id, error)
        return status_of(error)


def _id_of(info: LLMClusterInfo) -> int:
    """Whoever calls the engine has checked that it was set."""
    return check_int(info.remote_cluster_id, "uint64", "remote_cluster_id")


def _check_addresses(info: LLMClusterInfo) -> None:
    """TypeError for an ip that is no uint32."""
    for ip, _ in (*info.local_ip_info_list, *info.remote_ip_info_list):
        ip_text(ip)


def _only_address(addresses: Sequence[tuple[int, int]], field: str) -> str:
    if len(addresses) != 1:
        raise ParamInvalid(f"{field} must have exactly one address, got {len(addresses)}")
    return alias_of(*addresses[0])


def _port(alias: str) -> str:
    return alias.rpartition(":")[2]
