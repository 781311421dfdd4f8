"""What the split costs, engines in-process: time to first token beside an undivided engine's in the same run, and how
much of a core our code takes of a decode engine that waits.

    python -m tests.serve.measure
"""

from __future__ import annotations

import cProfile
import os
import pstats
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ray

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve import engine
from tests.serve.trio import Setting, Trio, prompts

ROUNDS = 21
PROMPT = 2000
PARKED_S = 4.0


class MeasuredDriver(engine._Driver):
    def parked_share(self, seconds: float) -> float:
        """Of the wall time of a loop that finds nothing to compute, the share in files of this package."""
        profile = cProfile.Profile()
        end = time.monotonic() + seconds
        profile.enable()
        while time.monotonic() < end:
            self._step()
        profile.disable()
        stats: Any = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        ours = sum(entry[2] for (path, _, _), entry in stats.items() if f"{os.sep}ray_kvfabric{os.sep}" in path)
        return float(ours / seconds)


engine._Driver = MeasuredDriver  # type: ignore[misc]


def first_tokens(trio: Trio) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"undivided": [], "split": [], "prefill": [], "decode step": []}
    for index, prompt in enumerate(prompts([PROMPT] * ROUNDS, seed=51)):
        trio.plain.add(f"r{index}", prompt, 9)
        plain = trio.plain.wait(f"r{index}")
        trio.decode.add(f"d{index}", prompt, 9, consumer_params(f"t{index}", "prefill"))
        trio.prefill.add(f"p{index}", prompt, 1, producer_params(f"t{index}", "decode"))
        prefill, decode = trio.prefill.wait(f"p{index}"), trio.decode.wait(f"d{index}")
        assert decode["token_ids"] == plain["token_ids"]
        found["undivided"].append(plain["first_s"])
        found["split"].append(decode["first_s"])
        found["prefill"].append(prefill["first_s"])
        found["decode step"].append((plain["whole_s"] - plain["first_s"]) / 8)
    return found


def main() -> None:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(sys.prefix) / "cache"))
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 << 20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    trio = Trio(Setting(prefix_caching=False), ray.get_runtime_context().gcs_address, "measure")
    found = first_tokens(trio)
    for name, seconds in found.items():
        ms = sorted(each * 1e3 for each in seconds)
        print(f"{name:12} median {statistics.median(ms):6.1f} ms, from {ms[0]:.1f} to {ms[-1]:.1f}")
    ratios = [split / plain for split, plain in zip(found["split"], found["undivided"], strict=True)]
    step = statistics.median(found["decode step"])
    bar = 1.15 * statistics.median(found["undivided"]) + step
    print(f"split to undivided, round by round: median {statistics.median(ratios):.3f}")
    print(f"bar (1.15 x undivided + one decode step): {bar * 1e3:.1f} ms")
    trio.decode.add("parked", prompts([300], seed=52)[0], 4, consumer_params("parked", "prefill"))
    time.sleep(0.5)
    share = trio.decode.ask("parked_share", PARKED_S)
    print(f"our code in a parked decode engine, under a profiler: {share:.2%} of a core")
    trio.decode.abort("parked")
    trio.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
