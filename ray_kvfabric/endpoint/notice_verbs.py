"""The verbs of notices: an endpoint shows something to a peer that is linked to it, which saves a call."""

from __future__ import annotations

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.grant import Grant
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.notices import Lookout, Notice


class NoticeVerbs(EndpointCore):
    """For whoever embeds an endpoint. Both sides know a call that says the same, for where a notice is not taken."""

    def show(self, peer: EndpointInfo, text: bytes) -> Notice | None:
        """Shows it to a peer that has mapped this endpoint's shared page; None where none has, or it is too long."""
        page = self._identity.page
        if len(text) > shared_page.NOTICE_NBYTES or page.eye(peer.incarnation) == shared_page.STALE:
            return None
        return Notice(page, peer.incarnation, text)

    def lookouts(self) -> list[Lookout]:
        """On the pages of all peers that this endpoint has mapped; one thread at a time uses them."""
        return [link.lookout for link in self._links.links() if link.lookout is not None]

    def is_open_granted(self, grant: Grant) -> bool:
        """Whether a push under this grant would find its way open: see `open_granted`."""
        way = self._links.found_way((grant.cluster_id, CacheName("id", grant.cache_id)))
        return way is not None and way.link.peer.incarnation == grant.incarnation
