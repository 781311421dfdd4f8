"""SendBook: the worker side of a producer. Pure: orders, layers, grants and outcomes in, pushes out; time comes along.

    begun -> parts are parked until its grants arrive, then pushed -> delivered | failed | unwanted -> sent
Its blocks are the engine's again once `take_sent` has named it: no push of it is queued or runs. Grants may come before
the request, or after it has ended. Pushes of one request run in the order in which they were made, one at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ray_kvfabric.integrations.vllm.layout import KVLayout
from ray_kvfabric.integrations.vllm.orders import Begin, Finish, Gone, Part, Span
from ray_kvfabric.integrations.vllm.params import transfer_id_of
from ray_kvfabric.integrations.vllm.pushes import Failure, LaneGrant, Offer, Piece, Push, PushQueue

KEPT = 8192  # ended transfers whose outcome a late grant is told
OTHER_NS = 4 * 10**9  # so long after its grants a prompt is looked for among those of one call

Value = TypeVar("Value")

UNWANTED = "the other side wants nothing of it"
DELIVERED = "it was delivered already"
TAKEN = "another request of this transfer has granted blocks for it already"
LEFT = "blocks had left the attention window here before they were granted"


@dataclass(slots=True)
class _Sending:
    begin: Begin
    grants: Mapping[int, LaneGrant] | None = None
    parked: list[Piece] = field(default_factory=list)
    gone: dict[int, int] = field(default_factory=dict)  # by group, the positions below which blocks were taken back
    sealed: set[int] = field(default_factory=set)  # lanes
    whole_ns: int | None = None  # when its last layer was computed
    failure: str | None = None
    finish: Finish | None = None
    held_since_ns: int = 0

    @property
    def is_delivered(self) -> bool:
        return self.grants is not None and len(self.sealed) == len(self.grants)


class SendBook:
    """The caller has one thread at a time in it."""

    def __init__(self, layout: KVLayout, early_ns: int = 120 * 10**9) -> None:
        self._layout = layout
        self._early_ns = early_ns
        self._sending: dict[str, _Sending] = {}  # by req_id
        self._req_ids: dict[str, str] = {}  # by transfer_id
        self._early: dict[str, tuple[Offer, int]] = {}  # grants that came before their request, and when
        self._over: OrderedDict[str, str] = OrderedDict()  # transfer_id to how it ended
        self._delivered: OrderedDict[str, set[str]] = OrderedDict()  # transfer_id to the grants that it has filled
        self._declined: OrderedDict[str, None] = OrderedDict()  # transfer_ids of requests that are still to come
        self._seen: OrderedDict[str, None] = OrderedDict()  # what callers name their transfers, without the prompt
        self._step: list[tuple[_Sending, Part]] = []
        self._goes_on = False
        self._spans: dict[int, list[tuple[_Sending, Span, bool]]] = {}  # of the step, by group; whether it is the last
        self._unsaved: list[set[int]] = []  # by lane, the layers of this step that were not computed yet
        self._pushes = PushQueue()
        self._failures: list[Failure] = []
        self._sent: list[str] = []

    # ---- the engine's steps ------------------------------------------------------------------------

    def begin(self, begin: Begin) -> None:
        sending = self._sending[begin.req_id] = _Sending(begin)
        self._req_ids[begin.transfer_id] = begin.req_id
        _remember(self._seen, transfer_id_of(begin.transfer_id), None)
        self._over.pop(begin.transfer_id, None)  # callers may ask for a transfer again
        if begin.transfer_id in self._declined:
            del self._declined[begin.transfer_id]
            sending.failure = UNWANTED
        offer, _ = self._early.pop(begin.transfer_id, (None, 0))
        if offer is not None:
            self._take(sending, offer)

    def start_step(self, parts: list[Part]) -> None:
        """`saved` and `end_step` are about these parts from now on."""
        self._goes_on = False
        found = [(self._sending.get(part.req_id), part) for part in parts]
        self._step = [(sending, part) for sending, part in found if sending is not None and self._wants(sending)]
        self._unsaved = [set(range(len(lane.layers))) for lane in self._layout.lanes] if self._step else []
        self._spans = {}
        for sending, part in self._step:
            for span in part.spans:
                self._spans.setdefault(span.group, []).append((sending, span, part.is_last))

    def _wants(self, sending: _Sending) -> bool:
        return sending.failure is None and not sending.is_delivered

    @property
    def has_step(self) -> bool:
        return bool(self._step)

    @property
    def step_transfers(self) -> list[str]:
        """The transfer_ids for which the step computes KV."""
        return [sending.begin.transfer_id for sending, _ in self._step]

    @property
    def has_ungranted(self) -> bool:
        """Whether there is a request that nobody has granted blocks for yet."""
        return any(map(_is_ungranted, self._sending.values()))

    @property
    def computes_ungranted(self) -> bool:
        """Whether the step computes KV of such a request, or the one before did and left some for the next."""
        return self._goes_on or any(_is_ungranted(sending) for sending, _ in self._step)

    def is_unsaved(self, layer: str) -> bool:
        """Whether the step has still to compute it. What it has of several lanes is computed together."""
        place = self._layout.places.get(layer)
        return bool(self._unsaved) and place is not None and place[0].layer in self._unsaved[place[0].lane]

    def saved(self, layer: str, mark: object, now_ns: int) -> None:
        """The step's KV of this layer is in the cache."""
        for lane, position in self._layout.places.get(layer, ()):
            self._bring(lane, position, mark, now_ns)

    def end_step(self, mark: object, now_ns: int) -> None:
        """The step's forward has ended: layers that were not named are computed as well."""
        for lane, unsaved in enumerate(self._unsaved):
            for position in sorted(unsaved):
                self._bring(lane, position, mark, now_ns)
        goes_on = any(_is_ungranted(sending) and not part.is_last for sending, part in self._step)
        self.start_step([])
        self._goes_on = goes_on

    def _bring(self, lane: int, position: int, mark: object, now_ns: int) -> None:
        if not self._unsaved or position not in self._unsaved[lane]:
            return
        self._unsaved[lane].remove(position)
        is_last_layer = not self._unsaved[lane]
        for sending, span, is_last in self._spans.get(self._layout.lanes[lane].group, ()):
            seals = is_last and is_last_layer
            self._add(sending, Piece(lane, position, position + 1, span.first, span.blocks, seals, mark, now_ns))
        if is_last_layer and not any(self._unsaved):
            for sending, part in self._step:
                if part.is_last:
                    sending.whole_ns = now_ns

    def _add(self, sending: _Sending, piece: Piece) -> None:
        if sending.failure is not None:
            return
        if sending.grants is None:
            sending.parked.append(piece)
        else:
            self._enqueue(sending, piece)

    def _enqueue(self, sending: _Sending, piece: Piece) -> None:
        """As much of it as was granted. The consumer had the rest."""
        assert sending.grants is not None
        granted = sending.grants.get(piece.lane)
        if sending.failure is not None or granted is None or piece.lane in sending.sealed:
            return
        first, stop = granted.first, granted.first + len(granted.grant.blocks)
        if not piece.blocks or piece.first < first or piece.first + len(piece.blocks) > stop:
            skipped = max(first - piece.first, 0)
            blocks = piece.blocks[skipped : max(stop - piece.first, 0)]
            if not blocks:
                if piece.seals:
                    self._fail(sending, "the prompt ends before the blocks that were granted")
                return
            piece = piece._replace(first=piece.first + skipped, blocks=blocks)
        if sending.gone and self._has_gone(sending, piece):
            self._fail(sending, LEFT)
            return
        lane = self._layout.lanes[piece.lane]
        nbytes = len(piece.blocks) * lane.per_layer * lane.form.block_nbytes
        self._pushes.add(Push(sending.begin.req_id, piece, granted.grant, piece.first - first, nbytes))

    def drop(self, req_id: str) -> bool:
        """Its blocks were taken away. True while a push still reads them."""
        sending = self._sending.get(req_id)
        if sending is None:
            return False
        sending.parked.clear()
        sending.gone.clear()
        sending.whole_ns = None
        self._pushes.forget(req_id)
        return self.is_reading(req_id)

    def is_reading(self, req_id: str) -> bool:
        return self._pushes.running(req_id) is not None

    def lose(self, gone: Gone) -> bool:
        """Some of its blocks were taken away. True while a push still reads such."""
        sending = self._sending.get(gone.req_id)
        if sending is None:
            return False
        sending.gone[gone.group] = gone.stop
        if any(self._has_gone(sending, push.piece) for push in self._pushes.waiting(gone.req_id)):
            self._fail(sending, LEFT)
        running = self._pushes.running(gone.req_id)
        return running is not None and self._has_gone(sending, running.piece)

    def _has_gone(self, sending: _Sending, piece: Piece) -> bool:
        return piece.first < sending.gone.get(self._layout.lanes[piece.lane].group, 0)

    def finish(self, finish: Finish, now_ns: int) -> None:
        sending = self._sending.get(finish.req_id)
        if sending is None:
            return
        sending.finish, sending.held_since_ns = finish, now_ns
        if finish.reason is not None and not sending.is_delivered:
            self._fail(sending, finish.reason)
        self._settle(sending)

    def take_sent(self) -> list[str]:
        """Requests whose blocks nothing reads any more, each once."""
        sent, self._sent = self._sent, []
        return sent

    @property
    def has_sent(self) -> bool:
        return bool(self._sent)

    # ---- the other side ----------------------------------------------------------------------------

    def offered(self, offer: Offer, now_ns: int) -> str | None:
        """A consumer's grants. Returns why they are of no use, or None. The same offer twice is one."""
        req_id = self._req_ids.get(offer.transfer_id)
        if req_id is None:
            over = UNWANTED if offer.transfer_id in self._declined else self._over.get(offer.transfer_id)
            if over == DELIVERED and _grant_ids(offer.grants) == self._delivered.get(offer.transfer_id):
                return None  # it was found while it was being made by a call
            if over is None:
                first, _ = self._early.setdefault(offer.transfer_id, (offer, now_ns))
                return None if first.grants == offer.grants else TAKEN
            return over
        sending = self._sending[req_id]
        if sending.failure is not None:
            return sending.failure
        if sending.grants is None:
            self._take(sending, offer)
            self._settle(sending)
        return sending.failure if sending.grants == offer.grants else TAKEN

    def _take(self, sending: _Sending, offer: Offer) -> None:
        if sending.failure is not None:
            self._failures += [Failure(each.grant, sending.failure) for each in offer.grants.values()]
            return
        sending.grants = offer.grants
        if offer.num_tokens != sending.begin.num_tokens:
            self._fail(sending, f"the prompt has {sending.begin.num_tokens} tokens here, {offer.num_tokens} there")
            return
        parked, sending.parked = sending.parked, []
        for piece in parked:
            self._enqueue(sending, piece)

    def declined(self, transfer_id: str) -> None:
        """The consumer will grant nothing."""
        self._early.pop(transfer_id, None)
        req_id = self._req_ids.get(transfer_id)
        if req_id is not None:
            self._give_up(self._sending[req_id], UNWANTED)
        elif transfer_id not in self._over:
            _remember(self._declined, transfer_id, None)

    def give_up(self, req_id: str, reason: str) -> None:
        """Nobody seems to want it. Nothing for a request that has its grants."""
        sending = self._sending.get(req_id)
        if sending is not None and sending.grants is None:
            self._give_up(sending, reason)

    def _give_up(self, sending: _Sending, reason: str) -> None:
        if not sending.is_delivered:
            self._fail(sending, reason)
            self._settle(sending)

    def _fail(self, sending: _Sending, reason: str) -> None:
        if sending.failure is not None:
            return
        sending.failure = reason
        sending.parked.clear()
        self._pushes.forget(sending.begin.req_id)
        for each in (sending.grants or {}).values():
            self._failures.append(Failure(each.grant, reason))

    # ---- pushing -----------------------------------------------------------------------------------

    def next_push(self, most_nbytes: int | None = None) -> Push | None:
        """See PushQueue.next."""
        return self._pushes.next(most_nbytes)

    def next_alone(self, most_nbytes: int) -> Push | None:
        """As `next_push`; None also while another push runs."""
        return None if self._pushes.is_running else self._pushes.next(most_nbytes)

    def ended(self, push: Push, failure: str | None) -> bool:
        """What became of it. True when it landed before its request's last layer was computed."""
        sending = self._sending[push.req_id]
        self._pushes.ended(push)
        if failure is not None:
            self._fail(sending, failure)
        elif push.piece.seals:  # also one whose blocks were dropped meanwhile: it was waited for
            sending.sealed.add(push.piece.lane)
            if sending.is_delivered:
                self._pushes.forget(push.req_id)
        is_hidden = sending.whole_ns is None
        self._settle(sending)
        return is_hidden

    @property
    def is_ready(self) -> bool:
        """Whether a push could begin, or a receiver has to be told of a failure."""
        return bool(self._failures) or self._pushes.has_next

    def take_failures(self) -> list[Failure]:
        failures, self._failures = self._failures, []
        return failures

    def _settle(self, sending: _Sending) -> None:
        if sending.finish is None or self._pushes.has(sending.begin.req_id):
            return
        if sending.failure is None and not sending.is_delivered:
            return
        req_id, transfer_id = sending.begin.req_id, sending.begin.transfer_id
        self._sent.append(req_id)
        del self._sending[req_id]
        if self._req_ids.get(transfer_id) == req_id:  # else it was asked for again already
            del self._req_ids[transfer_id]
            _remember(self._over, transfer_id, sending.failure or DELIVERED)
            _remember(self._delivered, transfer_id, _grant_ids(sending.grants or {}))

    # ---- time --------------------------------------------------------------------------------------

    def held(self) -> list[tuple[Begin, int]]:
        """Ended requests whose blocks wait for a grant, and since when."""
        return [
            (sending.begin, sending.held_since_ns)
            for sending in self._sending.values()
            if sending.finish is not None and sending.grants is None and sending.failure is None
        ]

    def forget_early(self, now_ns: int) -> None:
        """Grants of requests that never came: their receivers' own deadlines have ended them by now. Where the same
        transfer came with another prompt they are told.
        """
        for key, (offer, since_ns) in list(self._early.items()):
            waited_ns, name = now_ns - since_ns, transfer_id_of(key)
            if waited_ns > self._early_ns:
                del self._early[key]
            elif waited_ns > OTHER_NS and name in self._seen:
                del self._early[key]
                reason = f"transfer {name} has another prompt, or another adapter, here"
                self._failures += [Failure(each.grant, reason) for each in offer.grants.values()]

    @property
    def num_open(self) -> int:
        return len(self._sending)


def _is_ungranted(sending: _Sending) -> bool:
    return sending.grants is None and sending.failure is None


def _grant_ids(grants: Mapping[int, LaneGrant]) -> set[str]:
    return {each.grant.grant_id for each in grants.values()}


def _remember(kept: OrderedDict[str, Value], key: str, value: Value) -> None:
    """The latest KEPT stay."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
