"""A fabric opens no socket of its own: 16 workers listen where 16 idle Ray actors do, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import ray

from ray_kvfabric.cache.keys import BlocksCacheKey
from tests.integration.conftest import desc

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNT = 16
ACCEPTS = 1 << 16  # __SO_ACCEPTON in /proc/net/unix


@ray.remote(num_cpus=0)
class Idle:
    def pid(self) -> int:
        return os.getpid()


def listening(pid: int) -> tuple[int, int]:
    """How many TCP and how many unix sockets the process listens on."""
    tcp = [each for each in psutil.Process(pid).net_connections("inet") if each.status == psutil.CONN_LISTEN]
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    accepting = {row[6] for row in rows if int(row[3], 16) & ACCEPTS}
    targets = [_target(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return len(tcp), sum(target in {f"socket:[{inode}]" for inode in accepting} for target in targets)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed meanwhile
        return ""


def test_sixteen_workers_listen_on_nothing_that_sixteen_idle_actors_do_not(fabric) -> None:
    idle = [Idle.remote() for _ in range(COUNT)]
    idle_pids = ray.get([each.pid.remote() for each in idle], timeout=120)
    ray_itself = sorted(listening(pid) for pid in idle_pids)

    fabric.add_workers(*range(COUNT))
    refs = [fabric.allocate_blocks_cache(each, desc(), BlocksCacheKey(each)) for each in range(COUNT)]
    for each in range(COUNT):
        fabric.push_blocks(BlocksCacheKey((each + 1) % COUNT), refs[each], [0], [1])
    ours = sorted(listening(member.endpoint.pid) for member in fabric.members())
    assert ours == ray_itself
    assert listening(fabric.status()["scheduler"]["pid"]) == ray_itself[0]
