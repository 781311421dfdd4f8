"""What the programs of this folder share. Nothing here knows the fabric: it is LLM-DataDist's own interface.

Each program is started twice, in two terminals, once a role:
    kvfabric run --emulated-device host push_blocks.py decoder
    kvfabric run --emulated-device host push_blocks.py prompt
"""

import argparse
import ctypes
import sys
import time
import zlib
from contextlib import suppress
from multiprocessing.connection import Client, Listener

import numpy as np
from llm_datadist import LLMClusterInfo, LLMConfig, LLMDataDist, LLMRole, LLMStatusCode

IDS = {"prompt": 1, "decoder": 2, "second_prompt": 3}
ROLES = {"prompt": LLMRole.PROMPT, "decoder": LLMRole.DECODER, "second_prompt": LLMRole.PROMPT}
POOL = '{"memory_size": 67108864}'
PATIENCE_S = 60


def arguments(*roles):
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=roles or ("prompt", "decoder"))
    parser.add_argument("--port", type=int, default=26000, help="first of three ports")
    return parser.parse_args()


def start(role, listen_port=None, one_sided=False, pool=False):
    """An initialised LLMDataDist."""
    config = LLMConfig()
    config.device_id = 0
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = one_sided
    config.sync_kv_timeout = 20000
    if listen_port is not None:
        config.listen_ip_info = f"127.0.0.1:{listen_port}"
    if pool:
        config.mem_pool_cfg = POOL
    datadist = LLMDataDist(ROLES[role], IDS[role])
    datadist.init(config.generate_options())
    return datadist


def cluster(remote, port):
    info = LLMClusterInfo()
    info.remote_cluster_id = IDS[remote]
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info("127.0.0.1", port)
    return info


def link(datadist, remote, port):
    """Tries until the other program listens."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        overall, each = datadist.link_clusters([cluster(remote, port)], 3000)
        if overall == LLMStatusCode.LLM_SUCCESS:
            return
        if time.monotonic() > give_up:
            sys.exit(f"no link to {remote}: {each}")
        time.sleep(0.2)


def unlink(datadist, remote, port):
    overall, each = datadist.unlink_clusters([cluster(remote, port)], 3000)
    if overall != LLMStatusCode.LLM_SUCCESS:
        sys.exit(f"unlinking {remote} failed: {each}")


def memory(num_tensors, shape, seed=None):
    """Tensors for a cache to be registered over: zeros, or random bytes."""
    if seed is None:
        return [np.zeros(shape, np.uint8) for _ in range(num_tensors)]
    random = np.random.default_rng(seed)
    return [random.integers(1, 256, shape, np.uint8) for _ in range(num_tensors)]


def addresses(tensors):
    return [tensor.ctypes.data for tensor in tensors]


def view(cache):
    """The tensors of an allocated cache."""
    shape = tuple(cache.cache_desc.shape)
    nbytes = cache.cache_desc.size
    return [
        np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(each)).reshape(shape)
        for each in cache.tensor_addrs
    ]


def checksums(tensors, rows):
    """One number a tensor, of these blocks or rows in this order."""
    return [zlib.crc32(np.ascontiguousarray(tensor[list(rows)])) for tensor in tensors]


def expect(what, wanted, found):
    """Says whether the bytes are the right ones; ends the program when not."""
    if found != wanted:
        sys.exit(f"{what}: checksums differ: {found} instead of {wanted}")
    print(f"{what}: {len(found)} checksums equal", flush=True)


class Talk:
    """How the two programs tell each other what LLM-DataDist does not: over a pipe of their own."""

    def __init__(self, port, is_host):
        self._pipe = _accept(port) if is_host else _connect(port)

    def say(self, value):
        self._pipe.send(value)

    def hear(self):
        if not self._pipe.poll(PATIENCE_S):
            sys.exit("the other program is silent")
        return self._pipe.recv()


def _accept(port):
    with Listener(("127.0.0.1", port)) as listener:
        return listener.accept()


def _connect(port):
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        with suppress(ConnectionRefusedError):
            return Client(("127.0.0.1", port))
        time.sleep(0.1)
    sys.exit(f"the other program does not listen on port {port}")
