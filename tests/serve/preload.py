"""What every engine imports, imported once: engines are forked from the process that did."""

from importlib import import_module

for module in ("vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "ray_kvfabric.integrations.vllm.connector"):
    import_module(module)
