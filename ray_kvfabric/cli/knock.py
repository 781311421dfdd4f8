"""Whether anybody listens at a Ray address, which Ray itself finds out after more than a minute."""

from __future__ import annotations

import socket

KNOCK_S = 5.0


def knock(address: str) -> None:
    """Raises OSError where nobody listens. What is no HOST:PORT, such as "auto" or a URL, is left to Ray."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


def is_refused(address: str) -> bool:
    """True only where it is certain that nobody listens; a slow answer is none."""
    try:
        knock(address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
