"""The error tree. Every refusal of the fabric is one of these, or a TypeError or ValueError of an argument.

`LLMException` carries a status code of LLM-DataDist; the classes under it name one situation each, so that a
caller may catch either the class or the code. All of them survive pickling, so they cross Ray calls whole.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class LLMStatusCode(IntEnum):
    """Status codes of LLM-DataDist, with its numbers."""

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_WAIT_PROCESS_TIMEOUT = 0x5010B001
    LLM_KV_CACHE_NOT_EXIST = 0x5010B002
    LLM_REPEAT_REQUEST = 0x5010B003
    LLM_REQUEST_ALREADY_COMPLETED = 0x5010B004
    LLM_PARAM_INVALID = 0x5010B005
    LLM_ENGINE_FINALIZED = 0x5010B006
    LLM_NOT_YET_LINK = 0x5010B007
    LLM_ALREADY_LINK = 0x5010B008
    LLM_LINK_FAILED = 0x5010B009
    LLM_UNLINK_FAILED = 0x5010B00A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00C
    LLM_PROCESSING_LINK = 0x5010B00D
    LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00E
    LLM_PREFIX_ALREADY_EXIST = 0x5010B00F
    LLM_PREFIX_NOT_EXIST = 0x5010B010
    LLM_SEQ_LENOVERLIMIT = 0x5010B011
    LLM_NO_FREE_BLOCK = 0x5010B012
    LLM_BLOCKS_OUT_OF_MEMORY = 0x5010B013
    LLM_EXIST_LINK = 0x5010B018
    LLM_FEATURE_NOT_ENABLED = 0x5010B019
    LLM_TIMEOUT = 0x5010B01A
    LLM_LINK_BUSY = 0x5010B01B
    LLM_OUT_OF_MEMORY = 0x5010B01C
    LLM_DEVICE_MEM_ERROR = 507053
    LLM_SUSPECT_REMOTE_ERROR = 507057
    LLM_UNKNOWN_ERROR = -1

    def __str__(self) -> str:
        return f"LLMStatusCode.{self.name}"


class FabricError(Exception):
    """Root of every error that the fabric raises by itself."""


class NoneGiven(TypeError, AttributeError):
    """None where an object is needed. LLM-DataDist lets it through and fails with an AttributeError: this is both."""


class ConfigError(FabricError, ValueError):
    """A setting, a configuration file or a model directory cannot be used as it is."""


class LLMException(FabricError, RuntimeError):
    """A semantic failure with a status code.

    The default code is LLM_SUCCESS, as in LLM-DataDist; the classes below have their own.
    """

    default_code: ClassVar[LLMStatusCode] = LLMStatusCode.LLM_SUCCESS

    def __init__(self, *args: object, status_code: LLMStatusCode | None = None) -> None:
        super().__init__(*args)
        self._status_code = self.default_code if status_code is None else status_code

    @property
    def status_code(self) -> LLMStatusCode:
        return self._status_code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self._status_code)


def _rebuild(kind: type[LLMException], args: tuple[object, ...], status_code: LLMStatusCode) -> LLMException:
    return kind(*args, status_code=status_code)


class ParamInvalid(LLMException):
    """An argument is well typed but cannot be honoured; the text names the field and both sides."""

    default_code = LLMStatusCode.LLM_PARAM_INVALID


class CacheNotFound(LLMException, LookupError):
    """No such cache or key, here or at the peer."""

    default_code = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


class StaleRoute(CacheNotFound):
    """The peer's cache changed since its route was resolved; nothing was moved, and a new route may work."""


class OutOfMemory(LLMException):
    """The memory pool's budget is used up."""

    default_code = LLMStatusCode.LLM_OUT_OF_MEMORY


class FeatureNotEnabled(LLMException):
    """The call needs something that the configuration left out."""

    default_code = LLMStatusCode.LLM_FEATURE_NOT_ENABLED


class NotLinked(LLMException, LookupError):
    """No endpoint of that cluster_id is known to the fabric."""

    default_code = LLMStatusCode.LLM_NOT_YET_LINK


class EndpointDraining(NotLinked):
    """The endpoint finishes what it has begun and takes no new work."""


class LinkFailed(LLMException, ConnectionError):
    """The endpoint is known, but no transport reaches it."""

    default_code = LLMStatusCode.LLM_LINK_FAILED


class PeerLost(LLMException, ConnectionError):
    """The peer's process died; what was being written may have landed in part."""

    default_code = LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR


class PeerGone(PeerLost):
    """The peer had died before a byte moved: its successor, if there is one, may be asked."""


class StaleIncarnation(LLMException, LookupError):
    """The endpoint was replaced by another incarnation of the same cluster_id."""

    default_code = LLMStatusCode.LLM_NOT_YET_LINK


class TransferTimeout(LLMException, TimeoutError):
    """The call's time limit passed; some target blocks may have been written."""

    default_code = LLMStatusCode.LLM_TIMEOUT


class StillMoving(TransferTimeout):
    """The time limit passed and the device did not come to rest after it either: both caches stay in use."""


class TransferCancelled(LLMException):
    """The transfer was cancelled; some target blocks may have been written."""

    default_code = LLMStatusCode.LLM_FAILED


class TransferUnknown(LLMException, LookupError):
    """The endpoint never saw this transfer_id, or forgot its result after the stated time."""

    default_code = LLMStatusCode.LLM_FAILED


class GrantRefused(LLMException):
    """This use of a grant is not allowed, or no longer; nothing was moved. The classes below say why."""

    default_code = LLMStatusCode.LLM_FAILED


class GrantForged(GrantRefused):
    """It is not what its endpoint granted: a field was changed, or the endpoint never gave it."""

    default_code = LLMStatusCode.LLM_PARAM_INVALID


class GrantExpired(GrantRefused, TimeoutError):
    """Its deadline has passed."""

    default_code = LLMStatusCode.LLM_TIMEOUT


class GrantRevoked(GrantRefused, LookupError):
    """The receiver took it back, or it has landed: its blocks may belong to somebody else."""

    default_code = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


class GrantReplayed(GrantRefused):
    """This writer has sealed its writes already, or another endpoint is the writer."""

    default_code = LLMStatusCode.LLM_REPEAT_REQUEST


class GrantNeeded(LLMException):
    """The cache is marked `grants_only`: it is written under a grant."""

    default_code = LLMStatusCode.LLM_PARAM_INVALID


class CreditExhausted(LLMException):
    """The receiver has granted as much as it lets be, or has as many requests for its blocks as it lets wait."""

    default_code = LLMStatusCode.LLM_NO_FREE_BLOCK


class GrantFailed(LLMException):
    """A writer failed, so the granted blocks will not be complete; the code is what it failed with."""

    default_code = LLMStatusCode.LLM_FAILED


class GrantIncomplete(GrantFailed):
    """Every writer has sealed, and some granted blocks were not written."""


class DigestMismatch(GrantFailed):
    """What lies in a granted block is not what its writer read from the source."""


class UnknownTransport(FabricError, LookupError):
    """No transport of this name is installed."""


class AliasTaken(LLMException):
    """Another live endpoint already listens under this alias."""

    default_code = LLMStatusCode.LLM_FAILED


class ClusterIdTaken(LLMException):
    """Another live endpoint already carries this cluster_id."""

    default_code = LLMStatusCode.LLM_FAILED


class QueueFull(LLMException):
    """As many transfers wait already as may wait; nothing was moved, and the same call may work later."""

    default_code = LLMStatusCode.LLM_LINK_BUSY
