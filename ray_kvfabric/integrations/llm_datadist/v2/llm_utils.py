"""Small rules that the v2 verbs share (contract sections 8.3, 9.2 and 12.3)."""

from __future__ import annotations

from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.keys import UNSET_ID
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.integrations.llm_datadist._addresses import ip_number

_PORT_MAX = 2**16 - 1


def parse_listen_ip_info(text: str) -> tuple[int, int]:
    """ "ip:port" as (ip number, port): one IPv4 address, no list.

    Raises LLMException (LLM_PARAM_INVALID) for another form or a port outside uint16, ValueError for a port that is
    no number, RuntimeError for an ip that is none.
    """
    parts = check_type(text, str, "llm.listenIpInfo").split(":")
    if len(parts) != 2:
        raise ParamInvalid(f"llm.listenIpInfo must be ip:port, got {text!r}")
    try:
        port = int(parts[1])
    except ValueError:
        raise ValueError(f"llm.listenIpInfo must end in a port number, got {text!r}") from None
    if not 0 <= port <= _PORT_MAX:
        raise ParamInvalid(f"llm.listenIpInfo must have a port in [0, {_PORT_MAX}], got {text!r}")
    return ip_number(parts[0]), port


def is_invalid_id(number: int) -> bool:
    """A req_id or prefix_id that means "not set"."""
    return number == UNSET_ID


def is_valid_id(number: int) -> bool:
    return not is_invalid_id(number)


def layer_range_to_tensor_indices(layer_range: range | None, tensor_num_per_layer: int) -> list[int]:
    """The tensors of these layers; none for an empty range or None, which a pull takes as "not given"."""
    if not layer_range:
        return []
    return list(range(layer_range.start * tensor_num_per_layer, layer_range.stop * tensor_num_per_layer))
