"""Attempt: one request under a grant, from the grant to the receiver's outcome, and what may come of it.

a push      lands, or says why not; after a revoke it is refused, and never acknowledged
a revoke    does not return while a writer is inside; not a byte is written once its fence is up
the wait    a receipt for exactly right bytes, or the error that fits what went wrong; never the one for the other
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ray_kvfabric import LLMException
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.testing.faults import Point
from tests.shadow.ends import PATIENCE_S, Bytes, Outcome
from tests.shadow.requests import PER_LAYER, TENSORS, Action, Request, Unit

if TYPE_CHECKING:
    from tests.shadow.run import Field

INSIDE = (Point.ENTERED, Point.HALFWAY, Point.COPIED)
REVOKES = (Action.REVOKE, Action.REVOKE_AND_LOOK, Action.REGRANT)
HURRY_S = 0.003
OVER = {"GrantRevoked", "GrantExpired"}


class Attempt:
    def __init__(self, field: Field, name: int, request: Request) -> None:
        self._field = field
        self._name = name
        self._request = request
        sources = tuple(field.cluster_id(each) for each in request.senders) if request.is_named else ()
        self.grant = field.receiver.give(name, request, sources, field.verify)
        self._content: Bytes | None = None  # of the blocks' next owner, from the moment that a revoke begins
        self._is_over = False  # the receiver has its blocks back
        self._seen: Bytes | None = None
        self._faults: dict[Unit, str] = {}
        self._failed: set[int] = set()  # writers
        self._unsure: set[int] = set()  # those that ran out of time, perhaps before they were let in
        self._transfer: Transfer | None = None
        self._is_started = threading.Event()

    def carry_out(self) -> None:
        if self._request.is_awaited:
            self._field.receiver.start_wait(self._name)
        for unit in self._request.units:
            self._push(unit)
        if self._content is None:
            self._finish()
        else:
            self._check_revoked()

    # ---- a push ------------------------------------------------------------------------------------

    def _push(self, unit: Unit) -> None:
        was_revoked = self._content is not None
        sender = self._request.senders[unit.writer]
        outcome, text = self._pushed(sender, unit)
        self._faults[unit] = fault = self._field.fault_of(sender)
        self._field.count(f"push {outcome}")
        paused_late = fault == "pause at landed"
        is_revoked = was_revoked or (self._content is not None and not paused_late)
        expected = self._expected_of_push(unit, is_revoked, fault)
        self._field.check(outcome in expected, f"{unit} came to {outcome}, not {sorted(expected)}: {text}")
        if outcome in ("TransferCancelled", "GrantFailed"):
            self._failed.add(unit.writer)
        elif outcome != "Receipt":
            self._unsure.add(unit.writer)
        if self._content is not None and not self._is_over:
            self._end_revoke()

    def _pushed(self, sender: int, unit: Unit) -> Outcome:
        action = self._request.action
        timeout_s = HURRY_S if action is Action.TIMEOUT else None
        if action is not Action.CANCEL:
            return self._field.senders[sender].push(self.grant, unit, timeout_s)
        self._is_started.clear()
        self._transfer = self._field.senders[sender].start(self.grant, unit, timeout_s)
        self._is_started.set()
        try:
            return type(self._transfer.wait(PATIENCE_S)).__name__, ""
        except LLMException as error:
            return type(error).__name__, str(error)

    def _expected_of_push(self, unit: Unit, is_revoked: bool, fault: str) -> set[str]:
        if fault == "drop":
            return {"Receipt"}
        if is_revoked:
            return OVER
        ended = OVER if self._failed or self._unsure else set()  # whoever looks after it may have ended it by now
        if unit.writer in self._failed:
            return {"GrantFailed"} | ended
        expected = {"Receipt"} | ended
        if self._request.action is Action.CANCEL and fault.startswith("pause"):
            expected |= {"TransferCancelled"}
        if self._request.action is Action.TIMEOUT:
            expected |= {"TransferTimeout"} | ({"GrantFailed"} if unit.writer in self._unsure else set())
        return expected | (OVER | {"TransferTimeout"} if self._request.ttl_s else set())

    # ---- a pause -----------------------------------------------------------------------------------

    def pause(self, point: Point) -> None:
        """In the thread of the push."""
        action = self._request.action
        if self._content is not None:
            return
        self._field.count(f"{action.value} at {point.value}")
        if action in REVOKES:
            self._revoke(point)
        elif action is Action.CANCEL:
            self._field.check(self._is_started.wait(PATIENCE_S), "a transfer did not begin")
            assert self._transfer is not None
            self._transfer.cancel()
        elif action is Action.TIMEOUT:
            time.sleep(HURRY_S * 1.2)

    def _revoke(self, point: Point) -> None:
        looks = self._request.action is Action.REVOKE_AND_LOOK
        self._content = self._field.new_content(len(self._request.blocks))
        self._field.receiver.start_revoke(self._name, self._request.blocks, None if looks else self._content)
        if point not in INSIDE:
            self._end_revoke()
            return
        if looks:
            self._seen = self._blocks()
        time.sleep(0.0005)
        self._field.check(
            not self._field.receiver.is_revoked(self._name), f"revoke returned, the writer being inside ({point.value})"
        )

    def _blocks(self) -> Bytes:
        blocks: Bytes = self._field.receiver.memory()[0][:, list(self._request.blocks)]
        return blocks

    def _end_revoke(self) -> None:
        """The blocks are the receiver's: somebody else gets them."""
        outcome, text = self._field.receiver.end_revoke(self._name)
        self._field.check(outcome == "NoneType", f"revoke raised {outcome}: {text}")
        self._is_over = True
        assert self._content is not None
        if self._seen is not None:
            is_same = (self._blocks() == self._seen).all()
            self._field.check(bool(is_same), "a byte was written after the fence was up")
        if self._request.action is Action.REVOKE_AND_LOOK:
            self._field.receiver.fill_blocks(self._request.blocks, self._content)
        self._field.shadow[0][:, list(self._request.blocks)] = self._content
        if self._request.action is Action.REGRANT:
            self._field.regrant(self._request)

    # ---- what it came to ---------------------------------------------------------------------------

    def _check_revoked(self) -> None:
        outcome, text = self._outcome()
        expected = OVER | self._expected_before_revoke()
        self._field.check(outcome in expected, f"a revoked grant came to {outcome}, not {sorted(expected)}: {text}")
        self._field.end_grant(self._name)

    def _expected_before_revoke(self) -> set[str]:
        """Who waits in a thread, or looks after failures, may have heard the outcome before the revoke began."""
        is_complete = self._faults.get(self._request.units[-1]) == "pause at landed"
        heard = {"GrantFailed"} | (self._faults_as_expected() if is_complete else set())
        return heard if self._request.is_awaited else heard - {"GrantReceipt", "DigestMismatch"}

    def _outcome(self) -> Outcome:
        receiver = self._field.receiver
        outcome: Outcome = receiver.end_wait(self._name) if self._request.is_awaited else receiver.wait(self._name, 0.0)
        return outcome

    def _finish(self) -> None:
        if self._request.asks_layers:
            self._check_layers()
        expected = self._expected()
        if self._request.is_awaited and "TransferTimeout" in expected:  # nobody would wake the waiting thread
            self._give_up()
            expected = OVER | expected
        outcome, text = self._outcome()
        self._field.count(f"wait {outcome}")
        self._field.check(outcome in expected, f"wait came to {outcome}, not {sorted(expected)}: {text}")
        if outcome == "TransferTimeout":
            self._give_up()
        if outcome == "GrantReceipt":
            self._accept()
        else:
            self._field.refill(self._request.blocks)
        self._field.end_grant(self._name)

    def _give_up(self) -> None:
        self._field.receiver.start_revoke(self._name, (), None)
        self._field.check(self._field.receiver.end_revoke(self._name)[0] == "NoneType", "revoke failed")

    def _expected(self) -> set[str]:
        """By whatever went wrong first in the order in which the receiver can know it."""
        found = self._faults_as_expected()
        return found | ({"GrantExpired"} if self._request.ttl_s else set())

    def _faults_as_expected(self) -> set[str]:
        faults = self._faults
        sealing = {unit for unit in faults if unit.seals}
        if self._failed - self._unsure:
            return {"GrantFailed"}
        if self._unsure:
            return {"GrantFailed", "TransferTimeout", "GrantIncomplete"}
        if any(faults[unit] == "drop" for unit in sealing):
            return {"TransferTimeout"}
        if "drop" in faults.values() or self._lacks():
            return {"GrantIncomplete"}
        if "flip" in faults.values():
            return {"DigestMismatch"}
        if "truncate" in faults.values():  # what lay there may have been the same
            return {"DigestMismatch", "GrantReceipt"}
        return {"GrantReceipt"}

    def _lacks(self) -> bool:
        pushed = sum(len(unit.layers) * len(unit.blocks) for unit in self._faults)
        return pushed < len(self._request.layers) * len(self._request.blocks)

    def _wanted(self) -> Bytes:
        """The granted cache once every push has brought what it was to bring."""
        wanted: Bytes = self._field.shadow[0].copy()
        for unit in self._faults:
            source = self._field.held[self._request.senders[unit.writer]]
            targets = list(self._request.blocks[unit.at : unit.at + len(unit.blocks)])
            wanted[unit.tensors, targets] = source[unit.tensors, list(unit.blocks)]
        return wanted

    def _accept(self) -> None:
        """A receipt is for exactly right bytes; the granted ones then stay as they are."""
        wanted = self._wanted()
        self._check_bytes(wanted, slice(TENSORS), "receipt")
        self._field.shadow[0] = wanted

    def _check_bytes(self, wanted: Bytes, tensors: slice, what: str) -> None:
        blocks = list(self._request.blocks)
        found = self._field.receiver.memory()[0]
        differing = (found[tensors, blocks] != wanted[tensors, blocks]).any(axis=2)
        self._field.check(not differing.any(), f"{what} for wrong bytes in {int(differing.sum())} blocks")

    def _check_layers(self) -> None:
        """No layer is called complete that is not, and none is not that is."""
        for layer in self._request.layers:
            outcome, text = self._field.receiver.wait_layer(self._name, layer)
            if outcome == "NoneType":
                self._check_complete(layer)
            elif not (
                self._failed or self._unsure or self._request.ttl_s
            ):  # once a grant has ended, each layer says why
                expected = self._faults_as_expected() | self._expected_of(layer)
                self._field.check(outcome in expected, f"layer {layer} came to {outcome}: {text}")

    def _expected_of(self, layer: int) -> set[str]:
        mine = {fault for unit, fault in self._faults.items() if layer in unit.layers}
        lacking = {"TransferTimeout"} if self._lacks_in(layer) else set()
        return lacking | ({"DigestMismatch"} if mine & {"flip", "truncate"} else set())

    def _check_complete(self, layer: int) -> None:
        self._field.check(not self._lacks_in(layer), f"layer {layer} was called complete, and is not")
        self._check_bytes(self._wanted(), slice(layer * PER_LAYER, (layer + 1) * PER_LAYER), f"layer {layer}")

    def _lacks_in(self, layer: int) -> bool:
        mine = {unit: fault for unit, fault in self._faults.items() if layer in unit.layers}
        return "drop" in mine.values() or sum(len(unit.blocks) for unit in mine) < len(self._request.blocks)
