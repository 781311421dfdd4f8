"""The front door: workers, caches, pushes, refusals, endpoints that join, what is shown."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import ray

from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.errors import (
    CacheNotFound,
    ClusterIdTaken,
    ConfigError,
    LLMException,
    NotLinked,
    OutOfMemory,
    ParamInvalid,
)
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import CacheRef
from tests.integration.conftest import BLOCKS, config, desc, pair, read, scramble

pytestmark = pytest.mark.ray

ALL = list(range(BLOCKS))


class Model(CacheWorker):
    """What a user writes: an actor of his own that is an endpoint too."""

    def __init__(self, seat, greeting: str) -> None:
        super().__init__(seat)
        self.greeting = greeting

    def greet(self) -> tuple[str, int]:
        return self.greeting, self.manager.endpoint.cluster_id


class Unequal(CacheWorker):
    """Worker 1 refuses to start while worker 2 takes its time."""

    def __init__(self, seat, note: str) -> None:
        if seat.cluster_id == 1:
            raise ParamInvalid("worker 1 does not want to")
        super().__init__(seat)
        time.sleep(0.5)
        Path(note).write_text("started")


@ray.remote(num_cpus=0)
class Embedder:
    """An actor that knows no CacheWorker and joins by itself."""

    def __init__(self, fabric: str, cluster_id: int) -> None:
        self.fabric = Fabric.connect(fabric)
        self.manager = self.fabric.join(cluster_id)
        self.cache = self.manager.allocate_blocks_cache(desc(), BlocksCacheKey(cluster_id))
        for tensor in range(4):
            self.cache.numpy(tensor)[...] = cluster_id

    def cache_id(self) -> int:
        return self.cache.cache_id

    def close(self) -> None:
        self.fabric.close()


class Stage(NamedTuple):
    fabric: Fabric
    source: CacheRef
    target: CacheRef


@pytest.fixture(scope="module")
def stage(ray_cluster):
    """A pair of workers that the tests share; each uses target blocks of its own."""
    with Fabric.connect(config=config()) as fabric:
        yield Stage(fabric, *pair(fabric))


class TestPush:
    def test_pushed_blocks_arrive_exactly_and_no_other_changes(self, stage) -> None:
        fabric, source, target = stage
        before = read(fabric, target, ALL)
        receipt = fabric.push_blocks(BlocksCacheKey(2), source, [3, 4, 9], [0, 1, 30])
        assert (receipt.source_cluster_id, receipt.target_cluster_id) == (1, 2)
        assert (receipt.transport, receipt.nbytes) == ("shared_memory", 3 * 4 * 1024)
        before[:, [0, 1, 30]] = read(fabric, source, [3, 4, 9])
        assert np.array_equal(read(fabric, target, ALL), before)

    def test_an_awaited_push_of_one_layer_leaves_the_other_layer_alone(self, stage) -> None:
        fabric, source, target = stage
        transfer = fabric.start_push(BlocksCacheKey(2), source, [5], [6], range(1, 2), range(1, 2))
        assert asyncio.run(_awaited(transfer)).num_layers == 1
        after = read(fabric, target, [6])
        assert np.array_equal(after[2:], read(fabric, source, [5])[2:])
        assert not after[:2].any()

    def test_the_reference_can_be_the_dependency_of_a_task(self, stage) -> None:
        landed = stage.fabric.start_push(BlocksCacheKey(2), stage.source, [7], [7]).ref
        count = ray.remote(num_cpus=0)(lambda receipt: receipt.num_blocks)
        assert ray.get(count.remote(landed), timeout=30) == 1

    def test_a_transfer_id_names_one_push_however_often_it_is_launched(self, stage) -> None:
        fabric, source, target = stage
        name = uuid.uuid4().hex
        first = fabric.start_push(BlocksCacheKey(2), source, [8], [8], transfer_id=name).result()
        assert fabric.start_push(BlocksCacheKey(2), source, [8], [9], transfer_id=name).result() == first
        assert not read(fabric, target, [9]).any()
        assert fabric.start_push(BlocksCacheKey(2), source, [8], [8], transfer_id=name).cancel() is False

    @pytest.mark.parametrize(
        ("order", "kind", "text"),
        [
            ((BlocksCacheKey(77), 1, [0], [10]), NotLinked, "cluster_id 77; known: 1, 2"),
            ((BlocksCacheKey(2), 78, [0], [10]), NotLinked, "cluster_id 78"),
            ((BlocksCacheKey(2, 5), 1, [0], [10]), CacheNotFound, "model_id=5; it has: model_id=0"),
            ((BlocksCacheKey(2), 1, [BLOCKS], [10]), ParamInvalid, "32"),
            ((BlocksCacheKey(2), 1, [0], [BLOCKS]), ParamInvalid, "32"),
            ((BlocksCacheKey(2), 1, [0, 1], [10]), LLMException, "blocks"),
            ((BlocksCacheKey(2), 1, ["a"], [10]), TypeError, "src_blocks"),
            (("2", 1, [0], [10]), TypeError, "dst_cache_key"),
        ],
    )
    def test_a_refused_push_has_the_type_of_its_fault_and_moves_nothing(self, stage, order, kind, text) -> None:
        key, source_cluster, src_blocks, dst_blocks = order
        before = read(stage.fabric, stage.target, ALL)
        source = CacheRef(source_cluster, stage.source.cache_id)
        with pytest.raises(kind, match=text):
            stage.fabric.push_blocks(key, source, src_blocks, dst_blocks)
        assert np.array_equal(read(stage.fabric, stage.target, ALL), before)

    def test_a_cache_that_is_not_there_is_named(self, stage) -> None:
        with pytest.raises(CacheNotFound, match="99"):
            stage.fabric.push_blocks(BlocksCacheKey(2), CacheRef(1, 99), [0], [10])

    def test_a_freed_cache_is_gone_for_everybody(self, stage) -> None:
        ref = stage.fabric.allocate_blocks_cache(2, desc(), BlocksCacheKey(2, 9))
        stage.fabric.push_blocks(BlocksCacheKey(2, 9), stage.source, [0], [0])
        stage.fabric.deallocate_blocks_cache(ref)
        with pytest.raises(CacheNotFound):
            stage.fabric.push_blocks(BlocksCacheKey(2, 9), stage.source, [0], [0])
        assert set(stage.fabric.caches()) == {stage.source, stage.target}

    def test_the_fabric_shows_its_endpoints_caches_and_their_state(self, stage) -> None:
        assert repr(stage.fabric).endswith("2 endpoints, 2 caches, 0.2 MiB>")
        assert ">[32, 256]</td>" in stage.fabric._repr_html_()
        status = stage.fabric.status()
        assert set(status["endpoints"]) == {1, 2}
        assert all("error" not in endpoint for endpoint in status["endpoints"].values())
        json.dumps(status)

    def test_a_notebook_shows_a_worker_and_what_became_of_a_transfer(self, stage) -> None:
        landed = stage.fabric.start_push(BlocksCacheKey(2), stage.source, [0], [13])
        assert landed._repr_html_() == landed.result()._repr_html_()
        failed = stage.fabric.start_push(BlocksCacheKey(2, 99), stage.source, [0], [13])
        assert "CacheNotFound: endpoint 2" in failed._repr_html_()
        shown = stage.fabric.look(1)._repr_html_()
        assert ">[32, 256]</td>" in shown
        assert ">landed</td>" in shown
        with pytest.raises(NotLinked, match="no endpoint has cluster_id 77"):
            stage.fabric.look(77)

    def test_a_fabric_that_is_gone_shows_its_repr(self, stage) -> None:
        gone = Fabric(config())
        assert gone._repr_html_() is None
        assert "no fabric" in repr(gone)

    def test_a_receipt_pickles_and_the_receiver_has_it_too(self, stage) -> None:
        receipt = stage.fabric.push_blocks(BlocksCacheKey(2), stage.source, [0], [12])
        assert pickle.loads(pickle.dumps(receipt)) == receipt
        worker = stage.fabric.worker(2)
        received = ray.get(worker.wait_received.remote(receipt.transfer_id, 5.0), timeout=30)
        assert (received.nbytes, received.source_cluster_id) == (receipt.nbytes, 1)


class TestWorkers:
    def test_a_taken_cluster_id_is_refused_with_both_names(self, fabric) -> None:
        fabric.add_workers(5)
        with pytest.raises(ClusterIdTaken, match="5"):
            fabric.add_workers(5)
        with pytest.raises(ClusterIdTaken, match=r"belongs to the live endpoint 5 \(.*; refused: endpoint 5 \("):
            fabric.join(5)
        with fabric.join(6), pytest.raises(ClusterIdTaken, match="belongs to the live endpoint 6"):
            fabric.add_workers(6)
        fabric.add_workers(6)  # it left, so its name is free
        assert [member.endpoint.cluster_id for member in fabric.members()] == [5, 6]

    def test_a_subclass_is_an_endpoint_and_itself(self, fabric) -> None:
        [model] = fabric.add_workers(8, worker_class=Model, greeting="hello")
        assert ray.get(model.greet.remote(), timeout=30) == ("hello", 8)
        assert list(fabric.workers) == [8]

    def test_a_worker_is_not_killed_while_it_starts_because_another_was_refused(self, fabric, tmp_path) -> None:
        """Ray would tell the user of that, on the lines of our error."""
        with pytest.raises(ParamInvalid, match="does not want to"):
            fabric.add_workers(1, 2, worker_class=Unequal, note=str(tmp_path / "note"))
        assert (tmp_path / "note").read_text() == "started"


async def _awaited(transfer):
    return await transfer


class TestJoined:
    def test_pushes_reach_drivers_and_foreign_actors_both_ways(self, fabric) -> None:
        fabric.add_workers(1)
        worker = fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
        scramble(fabric, worker)
        here = fabric.join(2)
        mine = here.allocate_blocks_cache(desc(), BlocksCacheKey(2))
        actor = Embedder.remote(fabric.name, 3)
        foreign = CacheRef(3, ray.get(actor.cache_id.remote(), timeout=60))

        fabric.push_blocks(BlocksCacheKey(2), worker, [1], [2])
        assert np.array_equal(mine.numpy(0)[2], read(fabric, worker, [1])[0, 0])
        # launched on endpoints without an actor: the command comes by the long poll
        fabric.push_blocks(BlocksCacheKey(1), CacheRef(2, mine.cache_id), [2], [20])
        assert np.array_equal(read(fabric, worker, [20]), read(fabric, worker, [1]))
        fabric.push_blocks(BlocksCacheKey(2), foreign, [0], [5])
        assert (mine.numpy(3)[5] == 3).all()
        # and refused there with the same errors
        with pytest.raises(ParamInvalid):
            fabric.push_blocks(BlocksCacheKey(2), foreign, [BLOCKS], [0])
        assert set(fabric.status()["endpoints"]) == {1, 2, 3}
        # from inside, without any Ray call once the link is open
        here.push_blocks(BlocksCacheKey(3), mine, [2], [9])

        ray.get(actor.close.remote(), timeout=30)
        with pytest.raises(NotLinked):
            fabric.push_blocks(BlocksCacheKey(3), worker, [0], [0])

    def test_a_joined_manager_that_closes_frees_its_name(self, fabric) -> None:
        for _ in range(3):
            with fabric.join(4) as manager:
                manager.allocate_blocks_cache(desc(), BlocksCacheKey(4))
        assert fabric.members() == []


def test_settings_travel_to_the_worker(fabric) -> None:
    fabric.add_workers(1, settings=EndpointSettings(mem_pool={"memory_size": "1MiB"}))
    fabric.allocate_blocks_cache(1, desc())
    with pytest.raises(OutOfMemory, match="memory_size is 1048576"):
        fabric.allocate_blocks_cache(1, CacheDesc(4, [32, 4096], DataType.DT_FLOAT, Placement.HOST))


def test_two_starts_of_one_name_are_refused_and_a_second_connect_is_not_the_owner(fabric) -> None:
    with pytest.raises(ConfigError, match="runs already"):
        Fabric.start(config(name=fabric.name))
    with Fabric.connect(fabric.name):
        pass
    assert fabric.members() == []


def test_a_name_with_a_colon_is_refused(ray_cluster) -> None:
    with pytest.raises(ConfigError, match="':'"):
        Fabric.connect("a:b")
