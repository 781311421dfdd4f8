"""What the connector counted, as vLLM's KVConnectorStats and Prometheus metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from ray_kvfabric.integrations.vllm import tally

_SHOWN = {
    tally.PUSHES: "Pushes of KV blocks that landed.",
    tally.PUSHED: "Bytes of KV that were pushed to decode engines.",
    tally.HIDDEN: "Of these, bytes that had landed before their prompt's last layer was computed.",
    tally.PARKED_S: "Seconds that computed KV waited for its push, summed over pushes.",
    tally.RECEIVES: "Requests whose KV was received whole by the first worker.",
    tally.RECEIVED: "Bytes of KV that were received from prefill engines.",
    tally.RECEIVE_S: "Seconds from the grant until all KV had landed at the first worker, summed over requests.",
}
_FAILURES = "failures"


@dataclass
class KVFabricStats(KVConnectorStats):  # type: ignore[misc]
    """`data` are the sums of a Tally; those that begin with `failed_` name the error's class."""

    data: dict[str, tally.Number] = field(default_factory=dict)

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.data = tally.merged(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        return tally.readable(self.data)

    def is_empty(self) -> bool:
        return not self.data


class KVFabricPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """`vllm:kvfabric_...`, one series an engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._labels = per_engine_labelvalues
        self._counters = {
            name: self._counter_cls(name=f"vllm:kvfabric_{name}", documentation=text, labelnames=labelnames)
            for name, text in _SHOWN.items()
        }
        self._failures = self._counter_cls(
            name=f"vllm:kvfabric_{_FAILURES}",
            documentation="Transfers of a worker that failed, by the class of their error.",
            labelnames=[*labelnames, "reason"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self._labels[engine_idx]
        for name, amount in transfer_stats_data.items():
            if name in self._counters:
                self._counters[name].labels(*labels).inc(amount)
            elif name.startswith(tally.FAILED):
                self._failures.labels(*labels, name.removeprefix(tally.FAILED)).inc(amount)
