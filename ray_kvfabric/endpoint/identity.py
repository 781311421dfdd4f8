"""Who an endpoint is: its shared page, its incarnation, and what it tells the others of itself."""

from __future__ import annotations

import ctypes
import os
import secrets
from dataclasses import replace

from ray_kvfabric.cache.types import LLMRole
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.route import EndpointInfo, HostId
from ray_kvfabric.transport import _shared_page as shared_page

_PR_SET_PTRACER = 0x59616D61  # prctl; EINVAL where Yama is absent, and then nothing is needed
ANY_TRACER = -1


class Identity:
    """A new incarnation of `cluster_id` in this process, and the page that its writers map."""

    def __init__(
        self,
        cluster_id: int,
        role: LLMRole,
        node: str,
        transports: tuple[str, ...],
        *,
        has_device_pool: bool = False,
        staging_nbytes: int = 0,
    ) -> None:
        self._memory = HostMemory.create("kvfabric-page", shared_page.PAGE_NBYTES, touch=False)
        self.page = shared_page.SharedPage(self._memory.view(self._memory.address, self._memory.nbytes))
        self.endpoint = EndpointInfo(
            cluster_id=cluster_id,
            incarnation=secrets.randbits(63) | 1,
            pid=os.getpid(),
            host=HostId.here(),
            page_fd=self._memory.fd,
            page_inode=self._memory.inode,
            transports=transports,
            node=node,
            role=role.name,
            has_device_pool=has_device_pool,
            staging_nbytes=staging_nbytes,
        )
        self.page.initialise(self.endpoint.incarnation, cluster_id, self.endpoint.pid)

    def rename(self, alias: str) -> None:
        self.endpoint = replace(self.endpoint, alias=alias)

    def drain(self) -> None:
        self.endpoint = replace(self.endpoint, is_draining=True)
        self.page.set_draining()

    def close(self) -> None:
        self._memory.close()


def allow_tracer(pid: int) -> None:
    """Lets process `pid` and its descendants (ANY_TRACER: every process of this user) use process_vm on this one."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid & (2**64 - 1)), 0, 0, 0)
