"""Sections 9.1 to 9.4, 9.11 and 18: the life of an LLMDataDist."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import MemInfo, Memtype, TransferWithCacheKeyConfig
from ray_kvfabric.errors import LLMException, LLMStatusCode
from tests.contract.conftest import deviates, invalid, python, refused, wrong_ints
from tests.contract.instances import Background, Hold, Instances, instances, manager_of, offer, reaches, texts
from tests.contract.test_layer_sync import Ready
from tests.contract.world import MemoryWorld, content, describe, fill

FAILED = LLMStatusCode.LLM_FAILED
INVALID = LLMStatusCode.LLM_PARAM_INVALID
