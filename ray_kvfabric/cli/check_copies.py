"""Doctor's look at the copy kernel and the transports: each transport is tried with a push between two processes."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ray_kvfabric.bench.contents import Ledger, fill_source
from ray_kvfabric.bench.endpoints import Roads, Target, describe, settings
from ray_kvfabric.bench.worker import Local, Spawned, Worker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.cli.check_devices import DevicePair, check_device_transport
from ray_kvfabric.cli.device_end import Seen
from ray_kvfabric.cli.findings import Finding, State
from ray_kvfabric.cli.trial import LISTS, TRIAL
from ray_kvfabric.config import endpoint_settings
from ray_kvfabric.errors import ConfigError, FabricError
from ray_kvfabric.memory.copy import load
from ray_kvfabric.transport.base import Transport
from ray_kvfabric.transport.registry import GROUP, create, names

NEEDED = ("loopback", "shared_memory")
_BUILD = "reinstall ray-kvfabric with a C compiler at hand"


def check_kernel() -> list[Finding]:
    return [_native(), _chosen()]


def _native() -> Finding:
    try:
        features = load("native").cpu_features()
    except ConfigError as error:
        return Finding("kernel", "native", "missing", str(error), _BUILD)
    return Finding("kernel", "native", "ok", _features(features))


def _features(features: dict[str, Any]) -> str:
    loops = "/".join(features.get("loops", ()))
    return f"loop {features.get('loop')} of {loops}, {features.get('threads')} threads, digest {features.get('digest')}"


def _chosen() -> Finding:
    try:
        chosen = _load_chosen()
    except ConfigError as error:
        return Finding("kernel", "chosen", "missing", str(error), "unset KVFABRIC_COPY, or set it to native or python")
    if chosen == "native":
        return Finding("kernel", "chosen", "ok", "native")
    return Finding("kernel", "chosen", "note", f"{chosen}: right, and slow", "unset KVFABRIC_COPY")


def _load_chosen() -> str:
    chosen = endpoint_settings().copy_kernel
    load(chosen)
    return chosen


def check_transports(seen: Seen) -> list[Finding]:
    """Every installed transport, and those that a name is needed of. `seen`: the devices to try them on."""
    installed = {point.name for point in entry_points(group=GROUP)}
    absent = [
        Finding("transports", name, "missing", "not installed", "reinstall ray-kvfabric")
        for name in NEEDED
        if name not in installed
    ]
    with DevicePair(seen) as devices:
        return absent + [_check(create(name), devices) for name in names()]


def _check(transport: Transport, devices: DevicePair) -> Finding:
    if transport.capabilities.device_memory:
        return check_device_transport(transport, devices)
    reason = transport.missing() or _failure(transport)
    if reason is None:
        return Finding("transports", transport.name, "ok", f"works: {_kind(transport)}")
    state: State = "missing" if transport.name in NEEDED else "note"
    return Finding("transports", transport.name, state, f"not available: {reason}", _remedy(transport.name))


def _kind(transport: Transport) -> str:
    memory = "any host memory" if transport.capabilities.foreign_memory else "memory that the fabric allocated"
    return f"{memory}{', this process only' if transport.name == 'loopback' else ''}"


def _remedy(name: str) -> str:
    return {
        "process_vm": "allow process_vm_writev between processes of this user (seccomp profile, SYS_PTRACE)",
        "shared_memory": "let processes of this user open each other's /proc/PID/fd",
    }.get(name, "")


def _failure(transport: Transport) -> str | None:
    """Why a push of a few blocks through this transport did not arrive; None when it did."""
    is_local = transport.name == "loopback"
    worker: Worker | None = None
    try:
        _load_chosen()
        worker = Local(Target(2)) if is_local else Spawned("doctor", Target, 2)
        return try_push(transport, worker)
    except ConfigError:
        return "not tried without a copy kernel"
    except (FabricError, OSError, ImportError) as error:
        return str(error)
    finally:
        if worker is not None:
            worker.close()


def try_push(transport: Transport, target: Worker) -> str | None:
    """Pushes from this process to the worker and compares every byte there. Raises FabricError."""
    foreign = transport.capabilities.foreign_memory and transport.name != "loopback"
    route = target.call("open_cache", TRIAL, 0, foreign)
    roads = Roads()
    roads.put(route)
    with CacheManager(1, directory=roads, settings=settings((transport.name,))) as manager:
        cache = manager.allocate_blocks_cache(describe(TRIAL))
        fill_source(cache, TRIAL)
        manager.push_blocks(BlocksCacheKey(2, 0), cache, *LISTS)
    ledger = Ledger(TRIAL)
    ledger.write(LISTS)
    wrong: str | None = target.call("first_wrong", 0, ledger.held)
    return wrong
