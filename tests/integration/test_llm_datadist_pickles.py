"""Keys, descriptions and refusals of the drop-in cross a Ray call and stay what they are."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.integrations.llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LlmConfig,
    MemInfo,
    Memtype,
    TransferConfig,
    TransferWithCacheKeyConfig,
)

pytestmark = pytest.mark.ray

VALUES = [
    BlocksCacheKey(1, 2),
    BlocksCacheKey(prompt_cluster_id=3),
    CacheKey(1, 2, 3, 4),
    CacheKeyByIdAndIndex(1, -2, 3),
    CacheDesc(2, [4, 8], DataType.DT_BF16),
    MemInfo(Memtype.MEM_TYPE_HOST, 4096, 64),
    TransferConfig(1, [16, 32], range(1), 2),
    TransferWithCacheKeyConfig(BlocksCacheKey(1), range(1, 3), range(2)),
]


@ray.remote
class Mirror:
    """A process that never called install()."""

    def shown(self, value: object) -> tuple[str, object]:
        return repr(value), value

    def refuse(self, code: LLMStatusCode) -> None:
        raise LLMException("refused", status_code=code)


@pytest.fixture
def mirror(ray_cluster: str) -> Any:
    return Mirror.remote()


def test_values_look_the_same_on_the_other_side_and_when_they_come_back(mirror: Any) -> None:
    for value in VALUES:
        there, back = ray.get(mirror.shown.remote(value))
        assert there == repr(value) == repr(back)
        assert type(back) is type(value)


def test_a_cluster_info_and_a_config_keep_what_was_set(mirror: Any) -> None:
    info, config = LLMClusterInfo(), LlmConfig()
    info.remote_cluster_id = 7
    info.append_remote_ip_info("1.2.3.4", 26000)
    config.enable_cache_manager = True
    assert ray.get(mirror.shown.remote(info))[1].remote_ip_info_list == [(67305985, 26000)]
    assert ray.get(mirror.shown.remote(config))[1].generate_options()["llm.EnableCacheManager"] == "1"


@pytest.mark.parametrize("code", list(LLMStatusCode))
def test_a_refusal_keeps_its_code(mirror: Any, code: LLMStatusCode) -> None:
    with pytest.raises(LLMException) as caught:
        ray.get(mirror.refuse.remote(code))
    assert caught.value.status_code is code
    assert "refused" in str(caught.value)
