"""vLLM split in two: KVFabricConnector pushes each layer of a prompt's KV while the next is being computed.

Importing this imports no engine; the connector does, when vLLM asks for it:

    kv_transfer_config = {"kv_connector": "KVFabricConnector", "kv_role": "kv_producer",
                          "kv_connector_module_path": "ray_kvfabric.integrations.vllm.connector"}
An installed distribution is found without the module path, through vLLM's plugins.
"""

from __future__ import annotations

CONNECTOR = "KVFabricConnector"
MODULE = "ray_kvfabric.integrations.vllm.connector"


def register() -> None:
    """The entry point of `vllm.general_plugins`; may be called again."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
