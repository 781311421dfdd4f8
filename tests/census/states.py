"""Every state of a transfer, every fault, and what has to come of the two together. Data, and what reads it.

A run brings a transfer between a writer and a receiver into a state, lets one fault happen, and looks at what both
sides were told. `other` is a second writer of the same grant, in a state of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ray_kvfabric.control.grants import Ending, Phase
from ray_kvfabric.control.lane import Stage
from ray_kvfabric.testing.faults import Point
from ray_kvfabric.transport import _shared_page as shared_page


class Fault(Enum):
    KILL_WRITER = "writer killed"
    KILL_RECEIVER = "receiver killed"
    LEAVE = "writer closes its endpoint"
    FAIL_GRANT = "writer calls fail_granted"
    CANCEL = "writer cancels the transfer"
    REVOKE = "receiver revokes"
    FREE = "receiver deallocates the cache"
    CLOSE = "receiver closes its endpoint"
    TTL = "ttl_s passes"
    TIMEOUT = "timeout_s passes"
    STOP_CONT = "writer stopped, goes on later"
    STOP_KILL = "writer stopped, killed later"


DEATHS = (Fault.KILL_WRITER, Fault.KILL_RECEIVER, Fault.STOP_KILL)


class Writer(Enum):
    """What board.h says of a writer."""

    WAITED_FOR = shared_page.WAITED_FOR
    MOVING = shared_page.MOVING
    SEALED = shared_page.SEALED
    FAILED = shared_page.FAILED


class Place(Enum):
    """How far the writer has come with its push before anything else happens."""

    NOWHERE = "has not begun"
    QUEUED = "waits for its first turn"
    BEFORE = "has its turn, and entered nothing"
    ENTERED = "inside, no byte moved"
    HALFWAY = "inside, half of the bytes moved"
    COPIED = "inside, all bytes moved"
    ACKNOWLEDGED = "acknowledged, its caller has not heard it"
    GAVE_WAY = "paused for a more urgent one"
    BETWEEN = "landed a part, more is to come"
    DONE = "landed all and sealed"
    REWRITING = "inside, halfway, while another push of its own has sealed"


POINTS = {
    Place.BEFORE: Point.BEFORE,
    Place.ENTERED: Point.ENTERED,
    Place.HALFWAY: Point.HALFWAY,
    Place.COPIED: Point.COPIED,
    Place.ACKNOWLEDGED: Point.LANDED,
    Place.REWRITING: Point.HALFWAY,
}
INSIDE = (Place.ENTERED, Place.HALFWAY, Place.COPIED, Place.REWRITING)
CROWDED = (Place.QUEUED, Place.GAVE_WAY)  # plain pushes of the same writer are inside the cache


class Then(Enum):
    """What happens after that, and is over before the fault, or still under way."""

    NOTHING = ""
    WAIT = "the receiver waits for all of it"
    FAIL = "the writer gives up"
    CANCEL = "the transfer is cancelled"
    TIMEOUT = "the transfer's time passes"
    EXPIRE = "the grant's time passes"
    REVOKE = "the receiver revokes"
    REVOKING = "the receiver is revoking"
    REVOKE_IN_VAIN = "the receiver has revoked, and nobody left"
    WAIT_IN_VAIN = "the receiver has waited, and somebody is still inside"


class Other(Enum):
    """A second writer of the grant."""

    ABSENT = "has not come"
    SEALED = "has sealed"
    INSIDE = "inside, halfway"
    FAILED = "has given up"


@dataclass(frozen=True, slots=True)
class State:
    """`phase` None: the grant is released, or there is none. `stage` is the transfer's at the writer's gate."""

    place: Place
    then: Then = Then.NOTHING
    other: Other | None = None
    is_granted: bool = True
    phase: Phase | None = None
    ending: Ending | None = None
    writer: Writer | None = None
    transfer: str | None = None
    stage: Stage = Stage.NEW

    @property
    def is_open(self) -> bool:
        """Whether a transfer is under way that will tell its own outcome."""
        return self.transfer in ("planned", "moving")

    @property
    def is_inside(self) -> bool:
        """Whether the receiver has to wait for somebody before the granted blocks, or the cache, are free."""
        is_crowded = not self.is_granted and self.place in CROWDED
        return (self.is_open and self.place in INSIDE) or self.other is Other.INSIDE or is_crowded


def _granted(place: Place, writer: Writer, transfer: str | None, stage: Stage, other: Other | None = None) -> State:
    return State(place, other=other, phase=Phase.STANDING, writer=writer, transfer=transfer, stage=stage)


def _inside(
    then: Then, phase: Phase, ending: Ending, place: Place = Place.HALFWAY, other: Other | None = None
) -> State:
    writer = Writer.SEALED if place is Place.REWRITING else Writer.MOVING
    return State(place, then, other, phase=phase, ending=ending, writer=writer, transfer="moving", stage=Stage.MOVING)


def _over(place: Place, then: Then, ending: Ending, transfer: str) -> State:
    return State(place, then, ending=ending, transfer=transfer, stage=Stage.ENDED)


def _plain(place: Place, transfer: str, stage: Stage, then: Then = Then.NOTHING) -> State:
    return State(place, then, is_granted=False, transfer=transfer, stage=stage)


STATES: dict[str, State] = {
    "standing": _granted(Place.NOWHERE, Writer.WAITED_FOR, None, Stage.NEW),
    "queued": _granted(Place.QUEUED, Writer.WAITED_FOR, "planned", Stage.QUEUED),
    "before": _granted(Place.BEFORE, Writer.WAITED_FOR, "moving", Stage.MOVING),
    "entered": _granted(Place.ENTERED, Writer.MOVING, "moving", Stage.MOVING),
    "halfway": _granted(Place.HALFWAY, Writer.MOVING, "moving", Stage.MOVING),
    "copied": _granted(Place.COPIED, Writer.MOVING, "moving", Stage.MOVING),
    "acknowledged": _granted(Place.ACKNOWLEDGED, Writer.SEALED, "moving", Stage.MOVING),
    "gave_way": _granted(Place.GAVE_WAY, Writer.MOVING, "moving", Stage.PAUSED),
    "between": _granted(Place.BETWEEN, Writer.MOVING, "landed", Stage.ENDED),
    "sealed": _granted(Place.DONE, Writer.SEALED, "landed", Stage.ENDED),
    "landed": _over(Place.DONE, Then.WAIT, Ending.LANDED, "landed"),
    "failed": _over(Place.BETWEEN, Then.FAIL, Ending.FAILED, "landed"),
    "cancelled": _over(Place.HALFWAY, Then.CANCEL, Ending.FAILED, "cancelled"),
    "timed_out": _over(Place.HALFWAY, Then.TIMEOUT, Ending.FAILED, "failed"),
    "expired": _over(Place.BETWEEN, Then.EXPIRE, Ending.EXPIRED, "landed"),
    "revoked": _over(Place.BETWEEN, Then.REVOKE, Ending.REVOKED, "landed"),
    "draining": _inside(Then.REVOKING, Phase.FENCED, Ending.REVOKED),
    "quarantined": _inside(Then.REVOKE_IN_VAIN, Phase.QUARANTINED, Ending.REVOKED),
    "expired_inside": _inside(Then.EXPIRE, Phase.QUARANTINED, Ending.EXPIRED),
    "landed_inside": _inside(Then.WAIT_IN_VAIN, Phase.QUARANTINED, Ending.LANDED, Place.REWRITING),
    "other_absent": _granted(Place.HALFWAY, Writer.MOVING, "moving", Stage.MOVING, Other.ABSENT),
    "other_sealed": _granted(Place.HALFWAY, Writer.MOVING, "moving", Stage.MOVING, Other.SEALED),
    "other_inside": _granted(Place.BETWEEN, Writer.MOVING, "landed", Stage.ENDED, Other.INSIDE),
    "other_failed": _inside(Then.NOTHING, Phase.QUARANTINED, Ending.FAILED, other=Other.FAILED),
    "plain_queued": _plain(Place.QUEUED, "planned", Stage.QUEUED),
    "plain_before": _plain(Place.BEFORE, "moving", Stage.MOVING),
    "plain_entered": _plain(Place.ENTERED, "moving", Stage.MOVING),
    "plain_halfway": _plain(Place.HALFWAY, "moving", Stage.MOVING),
    "plain_copied": _plain(Place.COPIED, "moving", Stage.MOVING),
    "plain_acknowledged": _plain(Place.ACKNOWLEDGED, "moving", Stage.MOVING),
    "plain_gave_way": _plain(Place.GAVE_WAY, "moving", Stage.PAUSED),
    "plain_landed": _plain(Place.DONE, "landed", Stage.ENDED),
    "plain_failed": _plain(Place.HALFWAY, "failed", Stage.ENDED, Then.TIMEOUT),
    "plain_cancelled": _plain(Place.HALFWAY, "cancelled", Stage.ENDED, Then.CANCEL),
}

# What a side is told. Of several, which one depends on who was faster, or on whether Ray spoke first.
TOLD = {
    ".": (),  # nobody is there to be told, or nothing to be told
    "landed": ("GrantReceipt", "Receipt"),
    "failed": ("GrantFailed",),
    "expired": ("GrantExpired",),
    "revoked": ("GrantRevoked",),
    "lost": ("PeerLost",),
    "unseen": ("PeerLost", "GrantExpired"),  # what no process of this host shows: from Ray, else its time passes
    "gone": ("PeerLost", "NotLinked"),
    "spent": ("GrantFailed", "GrantRevoked"),  # before and after the receiver has seen the failure
    "replayed": ("GrantReplayed", "GrantRevoked"),
    "cancelled": ("TransferCancelled",),
    "timeout": ("TransferTimeout",),
    "over": ("GrantExpired", "TransferTimeout"),  # a transfer has no longer than its grant
    "stopped": ("TransferCancelled", "GrantRevoked"),
    "overtaken": ("TransferTimeout", "GrantRevoked"),
    "cut": ("PeerLost", "GrantRevoked"),
    "ended": ("GrantRevoked", "GrantExpired"),  # it was ended, and its time has passed since
    "late": ("PeerLost", "GrantExpired"),
    "halted": ("TransferCancelled", "GrantExpired"),
    "freed": ("CacheNotFound", "GrantRevoked", "GrantExpired"),
    "left": ("NotLinked", "CacheNotFound", "GrantRevoked", "GrantExpired"),
    "closed": ("CacheNotFound",),  # its own
    "missing": ("CacheNotFound",),
    "absent": ("CacheNotFound", "NotLinked"),
}

# receiver/writer. The writer's own transfer tells its outcome where it is open, a late push where it is not.
# - : there is nothing that could be cancelled, revoked or late.
_TABLE = """
                   KILL_WRITER KILL_RECEIVER LEAVE            FAIL_GRANT      CANCEL            REVOKE          FREE            CLOSE           TTL             TIMEOUT           STOP_CONT       STOP_KILL
standing           unseen/.    ./gone        unseen/closed    failed/spent    -                 revoked/revoked revoked/freed   revoked/left    expired/expired -                 revoked/revoked revoked/.
queued             unseen/.    ./gone        failed/cancelled failed/spent    failed/cancelled  revoked/revoked revoked/freed   revoked/left    expired/over    failed/timeout    revoked/revoked revoked/.
before             unseen/.    ./gone        failed/cancelled failed/spent    failed/cancelled  revoked/revoked revoked/freed   revoked/left    expired/expired failed/timeout    revoked/revoked revoked/.
entered            lost/.      ./lost        failed/cancelled failed/revoked  failed/cancelled  revoked/revoked revoked/revoked revoked/revoked expired/expired failed/timeout    revoked/revoked revoked/.
halfway            lost/.      ./lost        failed/cancelled failed/revoked  failed/cancelled  revoked/revoked revoked/revoked revoked/revoked expired/expired failed/timeout    revoked/revoked revoked/.
copied             lost/.      ./lost        landed/landed    failed/revoked  landed/landed     revoked/revoked revoked/revoked revoked/revoked expired/expired landed/landed     revoked/revoked revoked/.
acknowledged       landed/.    ./landed      landed/landed    landed/landed   landed/landed     revoked/landed  revoked/landed  revoked/landed  landed/landed   landed/landed     revoked/landed  revoked/.
gave_way           lost/.      ./gone        failed/cancelled failed/spent    failed/cancelled  revoked/revoked revoked/freed   revoked/left    expired/over    failed/timeout    revoked/revoked revoked/.
between            lost/.      ./gone        unseen/closed    failed/spent    -                 revoked/revoked revoked/freed   revoked/left    expired/expired -                 revoked/revoked revoked/.
sealed             landed/.    ./gone        landed/closed    landed/replayed -                 revoked/revoked revoked/freed   revoked/left    landed/expired  -                 revoked/revoked revoked/.
landed             landed/.    ./gone        landed/closed    landed/revoked  -                 landed/revoked  landed/freed    landed/left     landed/expired  -                 landed/revoked  landed/.
failed             failed/.    ./gone        failed/closed    failed/revoked  -                 failed/revoked  failed/freed    failed/left     failed/expired  -                 failed/revoked  failed/.
cancelled          failed/.    ./gone        failed/closed    failed/revoked  -                 failed/revoked  failed/freed    failed/left     failed/expired  -                 failed/revoked  failed/.
timed_out          failed/.    ./gone        failed/closed    failed/revoked  -                 failed/revoked  failed/freed    failed/left     failed/expired  -                 failed/revoked  failed/.
expired            expired/.   ./gone        expired/closed   expired/expired -                 expired/expired expired/freed   expired/left    -               -                 expired/expired expired/.
revoked            revoked/.   ./gone        revoked/closed   revoked/revoked -                 revoked/revoked revoked/freed   revoked/left    revoked/expired -                 revoked/revoked revoked/.
draining           revoked/.   ./cut         revoked/stopped  revoked/revoked revoked/stopped   revoked/revoked revoked/revoked revoked/revoked revoked/ended   revoked/overtaken revoked/revoked revoked/.
quarantined        revoked/.   ./cut         revoked/stopped  revoked/revoked revoked/stopped   revoked/revoked revoked/revoked revoked/revoked revoked/ended   revoked/overtaken revoked/revoked revoked/.
expired_inside     expired/.   ./late        expired/halted   expired/expired expired/halted    expired/expired expired/expired expired/expired -               expired/over      expired/expired expired/.
landed_inside      landed/.    ./cut         landed/stopped   landed/revoked  landed/stopped    landed/revoked  landed/revoked  landed/revoked  landed/ended    landed/overtaken  landed/revoked  landed/.
other_absent       lost/.      ./lost        failed/cancelled failed/revoked  failed/cancelled  revoked/revoked revoked/revoked revoked/revoked expired/expired failed/timeout    revoked/revoked revoked/.
other_sealed       lost/.      ./lost        failed/cancelled failed/revoked  failed/cancelled  revoked/revoked revoked/revoked revoked/revoked expired/expired failed/timeout    revoked/revoked revoked/.
other_inside       lost/.      ./gone        unseen/closed    failed/spent    -                 revoked/revoked revoked/freed   revoked/left    expired/expired -                 revoked/revoked revoked/.
other_failed       failed/.    ./cut         failed/stopped   failed/revoked  failed/stopped    failed/revoked  failed/revoked  failed/revoked  failed/ended    failed/overtaken  failed/revoked  failed/.
plain_queued       ./.         ./gone        ./cancelled      -               ./cancelled       -               ./missing       ./absent        -               ./timeout         ./missing       ./.
plain_before       ./.         ./gone        ./cancelled      -               ./cancelled       -               ./missing       ./absent        -               ./timeout         ./missing       ./.
plain_entered      ./.         ./lost        ./cancelled      -               ./cancelled       -               ./missing       ./missing       -               ./timeout         ./missing       ./.
plain_halfway      ./.         ./lost        ./cancelled      -               ./cancelled       -               ./missing       ./missing       -               ./timeout         ./missing       ./.
plain_copied       ./.         ./lost        ./landed         -               ./landed          -               ./missing       ./missing       -               ./landed          ./missing       ./.
plain_acknowledged ./.         ./landed      ./landed         -               ./landed          -               ./landed        ./landed        -               ./landed          ./landed        ./.
plain_gave_way     ./.         ./gone        ./cancelled      -               ./cancelled       -               ./missing       ./absent        -               ./timeout         ./missing       ./.
plain_landed       ./.         ./gone        ./closed         -               -                 -               ./missing       ./absent        -               -                 ./missing       ./.
plain_failed       ./.         ./gone        ./closed         -               -                 -               ./missing       ./absent        -               -                 ./missing       ./.
plain_cancelled    ./.         ./gone        ./closed         -               -                 -               ./missing       ./absent        -               -                 ./missing       ./.
"""  # noqa: E501  # a table is read by its columns


class Told(NamedTuple):
    """Names of what each side may be told; () where it is told nothing."""

    receiver: tuple[str, ...]
    writer: tuple[str, ...]


def _read(table: str) -> dict[tuple[str, Fault], Told]:
    head, *rows = (line.split() for line in table.strip().splitlines())
    return {
        (name, Fault[fault]): Told(*(TOLD[side] for side in cell.split("/")))
        for name, *cells in rows
        for fault, cell in zip(head, cells, strict=True)
        if cell != "-"
    }


EXPECTED = _read(_TABLE)


def sample(count: int) -> list[tuple[str, Fault]]:
    """That many cells of the table, every state and every fault among them, the same each time."""
    faults = list(Fault)
    cells: list[tuple[str, Fault]] = []
    for turn in range(len(faults)):
        for number, state in enumerate(STATES):
            fault = faults[(number * 5 + turn * 7) % len(faults)]
            if (state, fault) in EXPECTED:
                cells.append((state, fault))
    first = list({state: (state, fault) for state, fault in reversed(cells)}.values())
    return [*first, *(cell for cell in cells if cell not in first)][:count]
