"""Cast: who takes part in one run, with what, drawn from its seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import NamedTuple

from ray_kvfabric.grant import Grant
from tests.census.census import Census
from tests.census.peer import Peer
from tests.census.states import EXPECTED, STATES, TOLD, Fault, Place, State, Then, Told

SOON_S = 2.0  # what the census promises
SHORT_S = 0.6  # a time that passes during a run, after its state was reached
LONG_S = 60.0
SURVIVOR_ID, GUEST_ID, OTHER_ID, FRESH_ID = 1, 2, 3, 4
_MIB = 1 << 20


class Case(NamedTuple):
    """`survives` None: the seed says whether the writer or the receiver is the process that lives on."""

    seed: int
    state: str
    fault: Fault
    survives: str | None = None

    def __str__(self) -> str:
        return f"seed {self.seed}, state {self.state!r}, fault {self.fault.value!r}"


class CensusError(AssertionError):
    """What a run left behind, or told wrongly; names its seed, state and fault."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`hears`: whether the survivor is told of deaths, as Ray would; else it has to notice."""

    writer_survives: bool
    hears: bool
    is_killed: bool  # how a guest ends that lived through the fault; who cannot be heard of is killed
    is_foreign: bool  # memory that the fabric did not allocate: process_vm instead of shared_memory
    tensors: int
    num_blocks: int
    block_nbytes: int
    source_blocks: list[int]
    target_blocks: list[int]
    spare: int  # a block of the target that is in no grant
    verify: str | None
    names_sources: bool
    waits_early: bool


def draw(case: Case) -> Choice:
    rng = random.Random(f"{case.seed}/{case.state}/{case.fault.name}")
    state = STATES[case.state]
    writer_survives = {
        Fault.KILL_WRITER: False,
        Fault.LEAVE: False,
        Fault.STOP_KILL: False,
        Fault.KILL_RECEIVER: True,
        Fault.CLOSE: True,
    }.get(case.fault, rng.random() < 0.5 if case.survives is None else case.survives == "writer")
    hears = rng.random() < 0.5
    is_large = state.place is Place.GAVE_WAY  # more than one piece of 4 MiB
    num_blocks = 9 if is_large else rng.randint(6, 24)
    count = 8 if is_large else rng.randint(2, num_blocks - 2)
    targets = rng.sample(range(num_blocks), count + 1)
    return Choice(
        writer_survives=writer_survives,
        hears=hears,
        is_killed=not hears or rng.random() < 0.5,
        is_foreign=rng.random() < 0.5,
        tensors=2 if is_large else 2 * rng.randint(1, 3),
        num_blocks=num_blocks,
        block_nbytes=_MIB if is_large else rng.randint(64, 20_000),
        source_blocks=rng.sample(range(num_blocks), count),
        target_blocks=targets[:-1],
        spare=targets[-1],
        verify=rng.choice([None, "crc32c"]),
        names_sources=rng.random() < 0.5,
        waits_early=rng.random() < 0.5,
    )


@dataclass(slots=True)
class Cast:
    """One run's processes and what they have made so far."""

    case: Case
    choice: Choice
    survivor: Peer
    guest: Peer
    other: Peer | None
    source: int = 0
    other_source: int = 0
    target: int = 0
    grant: Grant | None = None
    beside: list[str] = field(default_factory=list)  # plain pushes of the writer that the state needs
    books: dict[int, Census] = field(default_factory=dict)  # by pid
    died_at: float | None = None  # time.monotonic()
    is_waiting: bool = False  # the receiver, since before the fault
    is_freed: bool = False
    closed: Peer | None = None  # who has closed its endpoint, by the fault

    @property
    def state(self) -> State:
        return STATES[self.case.state]

    @property
    def writer(self) -> Peer:
        return self.survivor if self.choice.writer_survives else self.guest

    @property
    def receiver(self) -> Peer:
        return self.guest if self.choice.writer_survives else self.survivor

    @property
    def guests(self) -> list[Peer]:
        return [self.guest] if self.other is None else [self.guest, self.other]

    @property
    def living(self) -> list[Peer]:
        return [peer for peer in (self.survivor, *self.guests) if peer.is_alive]

    @property
    def granted(self) -> Grant:
        assert self.grant is not None
        return self.grant

    @property
    def push_target(self) -> Grant | int:
        return self.receiver.cluster_id if self.grant is None else self.grant

    # ---- what has to come of it ----------------------------------------------------------------------

    @property
    def expected(self) -> Told:
        told = EXPECTED[self.case.state, self.case.fault]
        if told.receiver != TOLD["unseen"]:
            return told
        return told._replace(receiver=TOLD["lost"] if self.choice.hears else TOLD["expired"])

    @property
    def names_sources(self) -> bool:
        """Ray's word about a writer that never came is of use where the grant names it."""
        is_unseen = EXPECTED[self.case.state, self.case.fault].receiver == TOLD["unseen"]
        return self.choice.names_sources or (is_unseen and self.choice.hears)

    @property
    def ttl_s(self) -> float:
        expires = Fault.TTL is self.case.fault or self.expected.receiver == TOLD["expired"]
        return SHORT_S if expires or self.state.then is Then.EXPIRE else LONG_S

    @property
    def timeout_s(self) -> float:
        return SHORT_S if Then.TIMEOUT is self.state.then or self.case.fault is Fault.TIMEOUT else LONG_S

    # ---- doing ---------------------------------------------------------------------------------------

    def spread(self) -> None:
        """Every directory knows who lives and what they hold."""
        living = [peer for peer in self.living if not peer.is_stopped]
        announced = [each for each in (peer.ask("announced") for peer in living) if each is not None]
        for peer in living:
            peer.ask("learn", announced)

    def grant_state(self) -> tuple[str | None, str | None, list[int]]:
        state: tuple[str | None, str | None, list[int]] = self.receiver.ask("grant_state", self.granted.grant_id)
        return state

    def fail(self, what: str) -> CensusError:
        return CensusError(f"{self.case}: {what}; {self.choice}")

    def until(self, is_so: Callable[[], bool], what: str, within_s: float = 5.0) -> None:
        deadline = monotonic() + within_s
        while not is_so():
            if monotonic() > deadline:
                raise self.fail(f"not within {within_s} s: {what}")
            sleep(0.003)
