"""IPv4 addresses as LLM-DataDist's numbers: the lowest byte is the first octet (contract section 7)."""

from __future__ import annotations

import socket

_UINT32_NBYTES = 4


def ip_number(text: str) -> int:
    """By inet_aton's rules, so "127.1" is one too. RuntimeError for what is none."""
    try:
        return int.from_bytes(socket.inet_aton(text), "little")
    except (OSError, ValueError) as error:  # ValueError: a null character, or letters beyond ASCII
        raise RuntimeError(f"ip {text!r} is not an IPv4 address") from error


def ip_text(number: int) -> str:
    """The dotted form. TypeError for a number that no uint32 holds (contract 3.2)."""
    try:
        return socket.inet_ntoa(number.to_bytes(_UINT32_NBYTES, "little"))
    except OverflowError:
        raise TypeError(f"ip must be a uint32, got {number}") from None
