"""What an endpoint says of itself to `kvfabric status`: plain data, ready for JSON."""

from __future__ import annotations

from ray_kvfabric.cache.types import Placement
from ray_kvfabric.endpoint.gate import Gate
from ray_kvfabric.endpoint.grants import GrantTable
from ray_kvfabric.endpoint.links import LinkTable
from ray_kvfabric.endpoint.transfers import TransferTable
from ray_kvfabric.memory.device import Devices
from ray_kvfabric.memory.device_pool import DevicePool
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.route import CacheInfo, EndpointInfo


def describe_endpoint(
    endpoint: EndpointInfo,
    caches: list[CacheInfo],
    links: LinkTable,
    transfers: TransferTable,
    pools: dict[Placement, HostPool | DevicePool],
    devices: Devices,
    grants: GrantTable,
    gate: Gate,
) -> dict[str, object]:
    return {
        "cluster_id": endpoint.cluster_id,
        "incarnation": f"{endpoint.incarnation:016x}",
        "role": endpoint.role,
        "pid": endpoint.pid,
        "node": endpoint.node,
        "transports": list(endpoint.transports),
        "device": None if devices.device is None else str(devices.device.id),
        "caches": [_describe_cache(cache) for cache in caches],
        "links": [
            {
                "to": link.peer.cluster_id,
                "transport": link.transport,
                "alive": link.is_alive,
                "bytes_pushed": link.nbytes_pushed,
                "bytes_pulled": link.nbytes_pulled,
                "device_bytes": link.device_nbytes,
            }
            for link in links.links()
        ],
        "transfers": [{"transfer_id": each.transfer_id, "state": each.state} for each in transfers.all()],
        "is_draining": endpoint.is_draining,
        "grants": grants.describe(),
        "admission": {str(target): counts for target, counts in gate.describe().items()},
        "memory": _describe_pool(pools[Placement.HOST]),
        "device_memory": _describe_pool(pools[Placement.DEVICE]),
        "transport_state": links.describe_transports(),
        "counters": links.totals(),
    }


def _describe_pool(pool: HostPool | DevicePool) -> dict[str, object]:
    return {"budget_bytes": pool.budget, "used_bytes": pool.used, "huge_pages": pool.huge_pages}


def _describe_cache(cache: CacheInfo) -> dict[str, object]:
    return {
        "cache_id": cache.cache_id,
        "model_id": cache.model_id,
        "data_type": cache.data_type,
        "placement": cache.placement,
        "memory": cache.memory if cache.device is None else str(cache.device),
        "tensors": len(cache.regions),
        "shape": list(cache.shape),
        "is_blocks": cache.is_blocks,
        "keys": len(cache.keys),
        "bytes": cache.nbytes,
        "remote_accessible": cache.remote_accessible,
        "grants_only": cache.grants_only,
        "fabric_memory": bool(cache.segments),
    }
