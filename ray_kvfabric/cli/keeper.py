"""`python -m ray_kvfabric.cli.keeper`: keeps a Ray cluster for each `kvfabric run` of a folder, until the last ends.

`cli/local_cluster.py` starts it and says how they agree. It does nothing else, and has no children but Ray's.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from ray_kvfabric.cli.knock import is_refused
from ray_kvfabric.cli.local_cluster import START_S, Kept, publish, try_end
from ray_kvfabric.errors import NotLinked

LOOK_S = 0.5
END_S = 30.0


def main() -> None:
    folder, start, origin = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if os.fork():  # a program that waits for all its children must not wait for the keeper
        os._exit(0)
    ready = _keep_from_children(start)
    os.environ.pop("RAY_ADDRESS", None)
    _end_within(START_S)
    kept = (None if origin == "own" else _find()) or _start()
    publish(folder, kept)
    _end_within(0)
    os.close(start)
    os.close(ready)
    _keep(folder, kept)


def _keep_from_children(start: int) -> int:
    """Ray's processes get neither the lock nor the pipe by which the starter learns that this process is ready."""
    os.set_inheritable(start, False)
    ready = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return ready


def _end_within(seconds: float) -> None:
    """After that time the kernel ends this process, and Ray ends with it; 0: no more."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _find() -> Kept | None:
    """The cluster that runs on this host already; nothing of this process stays connected to it."""
    from ray_kvfabric.cli.cluster import running_cluster  # after the fork: Ray starts threads

    try:
        with running_cluster(None):
            return _kept(is_own=False)
    except NotLinked:
        return None


def _start() -> Kept:
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    return _kept(is_own=True)


def _kept(*, is_own: bool) -> Kept:
    import ray

    return Kept(ray.get_runtime_context().gcs_address, is_own, os.environ.get("RAY_AUTH_MODE"))


def _keep(folder: Path, kept: Kept) -> None:
    import ray

    time.sleep(LOOK_S)  # whoever waited for this keeper comes in first
    while not try_end(folder):
        if is_refused(kept.address):
            print(f"nobody listens at {kept.address} any more", file=sys.stderr, flush=True)
            os._exit(1)  # a Ray that is gone is not shut down
        time.sleep(LOOK_S)
    _end_within(END_S)
    ray.shutdown()


if __name__ == "__main__":
    main()
