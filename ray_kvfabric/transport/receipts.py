"""The receiving side of a page: records become receipts, and a waiter sleeps until its own has come."""

from __future__ import annotations

import threading
from collections import OrderedDict

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import TransferTimeout
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport import _shared_page as shared_page

KEPT = 4096  # receipts that nobody asked for yet
_NUMBERED = ("other", "loopback", "shared_memory", "process_vm", "device_ipc")


def transport_number(name: str) -> int:
    """How a record says by which transport it came."""
    return _NUMBERED.index(name) if name in _NUMBERED else 0


class ReceiptReader:
    """Reads the rings of one endpoint's own page. Threads may share it."""

    def __init__(self, page: shared_page.SharedPage, cluster_id: int) -> None:
        self._page = page
        self._cluster_id = cluster_id
        self._lock = threading.Lock()
        self._read_up_to = page.posted()
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self.overwritten = 0

    def wait(self, transfer_id: str, deadline: Deadline) -> Receipt:
        """The receipt of a landed push; it can be asked for once.

        Raises TransferTimeout when none came in time, saying how many records were overwritten unread.
        """
        while True:
            seen = self._page.bell
            receipt = self._take(transfer_id)
            if receipt is not None:
                return receipt
            if not self._page.sleep(seen, deadline.at_ns):
                raise TransferTimeout(
                    f"endpoint {self._cluster_id} received no push {transfer_id} in time "
                    f"({self.overwritten} records were overwritten before they were read)"
                )

    def keep(self, receipt: Receipt) -> None:
        """Of a push that left no record in the page, because this endpoint took part in it itself."""
        with self._lock:
            self._keep_receipt(receipt)
        self._page.ring()

    def _take(self, transfer_id: str) -> Receipt | None:
        with self._lock:
            self._collect()
            return self._receipts.pop(transfer_id, None)

    def _collect(self) -> None:
        for link, newest in enumerate(self._page.posted()):
            oldest = max(self._read_up_to[link], newest - shared_page.RECORDS)
            self.overwritten += oldest - self._read_up_to[link]
            for sequence in range(oldest + 1, newest + 1):
                self._keep(link, sequence)
            self._read_up_to[link] = newest

    def _keep(self, link: int, sequence: int) -> None:
        record = self._page.read(link, sequence)
        if record is None:
            self.overwritten += 1
            return
        transfer_id, source, cache_id, layer, layers, blocks, nbytes, started_ns, landed_ns, number = record
        receipt = Receipt(
            transfer_id=transfer_id.hex(),
            source_cluster_id=source,
            target_cluster_id=self._cluster_id,
            cache_id=cache_id,
            first_layer=layer,
            num_layers=layers,
            num_blocks=blocks,
            nbytes=nbytes,
            transport=_NUMBERED[number],
            started_ns=started_ns,
            landed_ns=landed_ns,
        )
        self._keep_receipt(receipt)

    def _keep_receipt(self, receipt: Receipt) -> None:
        self._receipts[receipt.transfer_id] = receipt
        while len(self._receipts) > KEPT:
            self._receipts.popitem(last=False)
