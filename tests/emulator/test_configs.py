"""The shipped configuration for NPUs, as it stands: four workers with caches in device memory."""

from __future__ import annotations

from ray_kvfabric.config import FabricConfig
from tests.shipped_configs import CONFIGS, comes_up_pushes_and_goes_down


def test_the_config_for_npus_comes_up_and_pushes_between_devices(npus: None) -> None:
    settings = FabricConfig.from_file(CONFIGS / "npu_nodes.yaml")
    assert comes_up_pushes_and_goes_down(settings) == {"device_ipc"}
