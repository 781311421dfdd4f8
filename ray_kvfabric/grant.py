"""Grant: a receiver's permission for one request, as it travels to the writers. Pure data, small, picklable.

It names blocks by position: block `i` of what a writer brings goes to `blocks[at + i]`, so that a writer needs to
know no index of the receiver's.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from ray_kvfabric.cache.html_table import html_table

DIGESTS = ("crc32c",)
Share = tuple[int, int, int, int]  # first tensor, tensors, first block, blocks: positions in a grant


@dataclass(frozen=True, slots=True)
class Grant:
    """Blocks `blocks` of some tensors of one cache, until a deadline, for `writers` writers.

    grant_id, request_id    16 random bytes in hexadecimal digits; the caller's own name of the request
    incarnation, generation of the endpoint and of its cache: another one of either refuses the grant
    first_tensor, num_tensors, tensors_per_layer    what of each block is granted; whole layers
    sources                 the cluster_ids that may write, writer i being sources[i]; () lets any `writers` in
    verify                  the digest that writers leave of each block, or None
    deadline_ns             CLOCK_MONOTONIC of the endpoint's host
    slot, fence, board      where the endpoint's shared page speaks of the grant
    secret                  16 bytes; whoever has the grant may use it
    """

    grant_id: str
    request_id: str
    cluster_id: int
    incarnation: int
    boot_id: str
    cache_id: int
    generation: int
    blocks: tuple[int, ...]
    first_tensor: int
    num_tensors: int
    tensors_per_layer: int
    writers: int
    sources: tuple[int, ...]
    verify: str | None
    deadline_ns: int
    slot: int
    fence: int
    board: int
    secret: bytes = field(repr=False)

    def seal(self) -> bytes:
        """16 bytes that no grant with another field, or another secret, comes to."""
        rest = repr([getattr(self, each.name) for each in fields(self) if each.name not in ("blocks", "secret")])
        keyed = hashlib.blake2b(rest.encode(), key=self.secret, digest_size=16)
        keyed.update(array("q", self.blocks))
        return keyed.digest()

    @property
    def layers(self) -> range:
        """The layers of the cache that it covers, in whole ones of `tensors_per_layer`."""
        first = self.first_tensor // self.tensors_per_layer
        return range(first, first + max(self.num_tensors // self.tensors_per_layer, 1))

    @property
    def has_expired(self) -> bool:
        """For processes of the endpoint's host."""
        return time.monotonic_ns() >= self.deadline_ns

    def __str__(self) -> str:
        of_request = f" of request {self.request_id}" if self.request_id else ""
        return f"grant {self.grant_id}{of_request} (cache {self.cache_id} of endpoint {self.cluster_id})"


class GrantUse(NamedTuple):
    """One push under a grant: what a transport needs to know of it.

    `writer` is its index, `at` the position of its first block, `seals` whether it is the writer's last push.
    """

    grant: Grant
    writer: int
    at: int
    seals: bool


class GrantReceipt(NamedTuple):
    """What a receiver has when every writer has sealed and every granted block is there.

    `num_layers` and `num_blocks` count what was granted, `nbytes` and `num_transfers` what the writers moved for it.
    `landed_ns` is CLOCK_MONOTONIC of the receiver's host. `verified` names the digest that was compared.
    """

    grant_id: str
    request_id: str
    cache_id: int
    source_cluster_ids: tuple[int, ...]
    num_layers: int
    num_blocks: int
    nbytes: int
    num_transfers: int
    granted_ns: int
    landed_ns: int
    verified: str | None

    @property
    def seconds(self) -> float:
        """From the grant to the last write."""
        return (self.landed_ns - self.granted_ns) / 1e9

    def _repr_html_(self) -> str:
        of_request = f" of request {self.request_id}" if self.request_id else ""
        headings = ("from", "cache", "layers", "blocks", "bytes", "transfers", "ms since the grant", "verified")
        sources, passed_ms = ", ".join(map(str, self.source_cluster_ids)), round(self.seconds * 1e3, 3)
        moved = self.num_layers, self.num_blocks, self.nbytes, self.num_transfers
        row = (sources, self.cache_id, *moved, passed_ms, self.verified)
        return html_table(f"grant {self.grant_id}{of_request}: landed", headings, [row])
