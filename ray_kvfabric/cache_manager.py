"""CacheManager: one endpoint of the fabric, in whatever process it is made. The LLM-DataDist verbs live here.

    CacheVerbs     `endpoint/cache_verbs.py`     make and end caches of this endpoint
    LocalVerbs     `endpoint/local_verbs.py`     copy between them
    TransferVerbs  `endpoint/transfer_verbs.py`  push and pull, blocks, rows and layer by layer
    GrantVerbs     `endpoint/grant_verbs.py`     permissions to push, and pushes under them
    FanVerbs       `endpoint/fan_verbs.py`       one push to many
    NoticeVerbs    `endpoint/notice_verbs.py`    say to a linked peer what it finds without a call
    OfferVerbs     `endpoint/offer_verbs.py`     free blocks, granted to whoever asks
    DrainVerb      `endpoint/drain_verb.py`      finish and take nothing new
    EndpointCore   `endpoint/core.py`            announce, answer, close

It knows other endpoints through the `Directory` and `PeerCalls` ports only, and never imports Ray.
"""

from __future__ import annotations

from types import TracebackType

from ray_kvfabric.endpoint.cache_verbs import CacheVerbs
from ray_kvfabric.endpoint.drain_verb import DrainVerb
from ray_kvfabric.endpoint.fan_verbs import FanVerbs
from ray_kvfabric.endpoint.local_verbs import LocalVerbs
from ray_kvfabric.endpoint.notice_verbs import NoticeVerbs
from ray_kvfabric.endpoint.offer_verbs import OfferVerbs
from ray_kvfabric.endpoint.transfer_verbs import TransferVerbs


class CacheManager(CacheVerbs, LocalVerbs, TransferVerbs, FanVerbs, NoticeVerbs, OfferVerbs, DrainVerb):
    """The verbs of one endpoint. Threads may share it; a forked child must make its own.

    `directory` and `peers` connect it to the fabric; `tracer_pid` is the process that process_vm writers descend
    from (the raylet, for Ray workers). Raises ClusterIdTaken when another live endpoint has this cluster_id.
    """

    def __enter__(self) -> CacheManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
