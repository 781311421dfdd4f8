"""KVFabricConnector: vLLM's hooks, translated. One class for vLLM 0.29 to 0.32 and vllm-ascend.

    scheduler process   DecodeBook and PrefillBook make Orders of what the engine schedules
    worker process      WorkerSide follows them: grants, pushes, reports
No hook waits for a peer. What waits for something else: `handle_preemptions` and `bind_connector_metadata`, for a push
that is just reading blocks which are to be overwritten, and the start of an engine, for its fabric.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.vllm.decode_book import DecodeBook
from ray_kvfabric.integrations.vllm.orders import Orders
from ray_kvfabric.integrations.vllm.params import (
    BadParams,
    consumer_params,
    key_of,
    promised_to,
    transfer_id_of,
    wanted_from,
)
from ray_kvfabric.integrations.vllm.prefill_book import PrefillBook
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings
from ray_kvfabric.integrations.vllm.stats import KVFabricPromMetrics, KVFabricStats
from ray_kvfabric.integrations.vllm.storage import allow_matrix_tiles, kv_nbytes
from ray_kvfabric.integrations.vllm.terms import backend_terms, is_attention, keeps_all, refusal_of, terms_of, window_of
from ray_kvfabric.integrations.vllm.worker import WorkerSide

logger = logging.getLogger(__name__)

Results: Any = getattr(base, "KVConnectorTransferResults", None)  # vLLM 0.30
HAS_LAYOUTS = find_spec("vllm.v1.kv_cache_layout") is not None  # vLLM 0.29
HAS_ALLOCATOR = hasattr(base.KVConnectorBase_V1, "get_mem_pool_context")  # vLLM 0.30


class KVFabricMetadata(base.KVConnectorMetadata):  # type: ignore[misc]
    def __init__(self, orders: Orders) -> None:
        self.orders = orders


NOTHING = KVFabricMetadata(Orders())


class KVFabricConnector(base.KVConnectorBase_V1, base.SupportsHMA):  # type: ignore[misc]
    """`kv_role` is kv_producer, kv_consumer or kv_both; `kv_connector_extra_config` are ConnectorSettings."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """Raises ConfigError for settings, models and versions that cannot be served."""
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        settings = ConnectorSettings.of(transfer.kv_connector_extra_config)
        self._engine_id: str = transfer.engine_id
        self._is_producer: bool = transfer.is_kv_producer
        self._is_consumer: bool = transfer.is_kv_consumer
        groups = kv_cache_config.kv_cache_groups
        self._groups = list(getattr(kv_cache_config, "transfer_group_ids", range(len(groups))))  # vLLM 0.29
        self._check(vllm_config, groups)
        self._worker: WorkerSide | None = None
        if role is base.KVConnectorRole.WORKER:
            self._worker = self._take_seat(vllm_config, kv_cache_config, settings)
            if not HAS_ALLOCATOR:
                self._worker.begin_allocation()
        specs = [groups[index].kv_cache_spec for index in self._groups]
        sizes = [spec.block_size for spec in specs]
        windows = {group: window_of(spec) for group, spec in enumerate(specs) if not keeps_all(spec)}
        self._decode = DecodeBook(sizes)
        self._prefill = PrefillBook(sizes, windows)
        self._orders = Orders()
        self._invalid_blocks: set[int] = set()

    def _check(self, vllm_config: Any, groups: Any) -> None:
        refusal = refusal_of(vllm_config.parallel_config)
        if refusal is not None:
            raise ConfigError(refusal)
        for index in self._groups:
            if not is_attention(groups[index].kv_cache_spec):
                raise ConfigError(
                    f"KV group {index} is {type(groups[index].kv_cache_spec).__name__}: its state is no row of blocks "
                    "by position and cannot be shared by KVFabricConnector"
                )
        if self._is_consumer and Results is None and len(groups) > 1:
            raise ConfigError(
                f"the model has {len(groups)} KV groups, and this vLLM cannot compute a request again whose KV of "
                "several groups did not come: vLLM 0.30 or newer is needed on the decode side"
            )

    def _take_seat(self, vllm_config: Any, kv_cache_config: Any, settings: ConnectorSettings) -> WorkerSide:
        parallel = vllm_config.parallel_config
        names = [list(kv_cache_config.kv_cache_groups[index].layer_names) for index in self._groups]
        on_host = vllm_config.device_config.device_type == "cpu"
        if on_host:
            allow_matrix_tiles()
        nbytes = kv_nbytes([tensor.size for tensor in kv_cache_config.kv_cache_tensors]) if on_host else 0
        return WorkerSide(
            settings,
            self._engine_id,
            parallel.rank,
            vllm_config.kv_transfer_config.kv_role,
            names,
            kv_cache_config.num_blocks,
            nbytes if self._is_consumer else 0,
        )

    # ---- scheduler ---------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Parameters that cannot be understood make a request of their own; the log says why."""
        try:
            wanted = wanted_from(request.kv_transfer_params) if self._is_consumer else None
            promised = promised_to(request.kv_transfer_params) if self._is_producer else None
        except BadParams as error:
            logger.warning("request %s computes its own KV: %s", request.request_id, error)
            return
        remote = wanted or promised
        num_tokens = request.num_prompt_tokens
        if remote is None or num_tokens < 2 or request.prompt_embeds is not None:  # whose embeddings have no digest
            return
        remote = remote._replace(transfer_id=key_of(remote.transfer_id, request.prompt_token_ids, *_makings(request)))
        book = self._prefill if wanted is None else self._decode
        book.arrived(request.request_id, remote, num_tokens, self._orders)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        wanted = self._decode.wanted_tokens(request.request_id, num_computed_tokens)
        return wanted, wanted > 0

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        return tuple(self._groups)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        tables = self._transferred(blocks.get_block_ids())
        self._decode.allocated(request.request_id, tables, num_external_tokens, self._orders)

    def _transferred(self, tables: Any) -> list[Any]:
        return [tables[index] for index in self._groups]

    def build_connector_meta(self, scheduler_output: Any) -> KVFabricMetadata:
        if self._prefill.num_open:
            self._follow_schedule(scheduler_output)
        if not self._orders:
            return NOTHING
        orders, self._orders = self._orders, Orders()
        return KVFabricMetadata(orders)

    def _follow_schedule(self, output: Any) -> None:
        for req_id in output.preempted_req_ids or ():
            self._prefill.preempted(req_id, self._orders)
        num_new: Mapping[str, int] = output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            if self._prefill.has(new.req_id):
                tables = self._transferred(new.block_ids)
                self._prefill.scheduled(new.req_id, tables, new.num_computed_tokens, num_new[new.req_id], self._orders)
        cached = output.scheduled_cached_reqs
        for req_id, added, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if self._prefill.has(req_id):
                more = None if added is None else self._transferred(added)
                if req_id in cached.resumed_req_ids:
                    self._prefill.scheduled(req_id, more or [], computed, num_new[req_id], self._orders)
                else:
                    self._prefill.continued(req_id, more, computed, num_new[req_id], self._orders)

    def update_connector_output(self, connector_output: Any) -> None:
        for req_id in connector_output.finished_recving or ():
            self._decode.received(req_id)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._decode.finished(request.request_id, self._orders)
        key = self._prefill.finished(request.request_id, self._transferred(block_ids), self._orders)
        if key is None:
            return False, None
        return True, consumer_params(transfer_id_of(key), self._engine_id)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def has_pending_push_work(self) -> bool:
        """Orders that no step has carried to the worker yet."""
        return bool(self._orders)

    # ---- worker ------------------------------------------------------------------------------------

    def get_mem_pool_context(self) -> Any:
        assert self._worker is not None
        return self._worker.allocator()

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        assert self._worker is not None
        terms = terms_of(self._vllm_config, self._kv_cache_config)
        self._worker.register(kv_caches, {**terms, **backend_terms(self._vllm_config, kv_caches)})

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        orders = kv_connector_metadata.orders
        if orders.drop and self._worker is not None and self._worker.producer is not None:
            self._worker.producer.forget(orders.drop)

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._connector_metadata = connector_metadata
        if connector_metadata.orders and self._worker is not None:
            self._worker.follow(connector_metadata.orders)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing: peers write by themselves."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request runs once all of its KV has landed.

        An earlier start is not safe in vLLM 0.29 to 0.32: as soon as a request runs, the engine shares its blocks with
        others (prefix cache), and takes them away (abort, preemption) without asking.
        """

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        producer = self._worker.producer if self._worker is not None else None
        if producer is not None and producer.has_step:
            producer.save(layer_name)

    def on_kv_cache_written(self, layer_name: str = "") -> None:
        """vllm-ascend's: earlier than `save_kv_layer`, which brings the layers that this does not name."""
        self.save_kv_layer(layer_name, None, None)

    def wait_for_save(self) -> None:
        producer = self._worker.producer if self._worker is not None else None
        if producer is not None and producer.has_step:
            producer.end_step()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        sent, received, _ = self._take_ends()
        return sent, received

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        sent, received, failed = self._take_ends()
        return Results(finished_sending=sent or set(), finished_recving=received or set(), failed_recving=failed)

    def _take_ends(self) -> tuple[set[str] | None, set[str] | None, set[str]]:
        if self._worker is None or not self._worker.has_ends:
            return None, None, set()
        sent, ended = self._worker.ends()
        if Results is None:
            self._invalid_blocks.update(block for each in ended for block in each.blocks)
        return set(sent), {each.req_id for each in ended}, {each.req_id for each in ended if each.has_failed}

    def get_block_ids_with_load_errors(self) -> set[int]:
        invalid, self._invalid_blocks = self._invalid_blocks, set()
        return invalid

    def get_kv_connector_stats(self) -> KVFabricStats | None:
        counts = self._worker.counts() if self._worker is not None else None
        return None if counts is None else KVFabricStats(data=counts)

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    # ---- about the class ---------------------------------------------------------------------------

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """Blocks of one layer one behind the other. The vLLM that vllm-ascend builds on (0.27) has no such names."""
        return "LBHNC" if HAS_LAYOUTS and not vllm_config.model_config.use_mla else None

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layers are pushed one by one, from between the graph's pieces."""
        return True

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVFabricStats:
        return KVFabricStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> KVFabricPromMetrics:
        return KVFabricPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _makings(request: Any) -> list[str]:
    """What else than its tokens makes the KV of a prompt: its adapter, and its images."""
    adapter = [request.lora_request.lora_name] if request.lora_request is not None else []
    return adapter + [str(feature.identifier) for feature in request.mm_features or ()]
