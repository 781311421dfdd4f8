"""Post: what long polls bring home, and the callers who wait for the outcomes of errands.

Send -> box -> the endpoint's Poll brings it home -> Report -> whoever Awaits it is answered
an endpoint is gone -> every parked Poll is answered with it
"""

from __future__ import annotations

from ray_kvfabric.control.directory import mark
from ray_kvfabric.control.errands import Errands
from ray_kvfabric.control.events import Answer, Await, Command, Commands, Ended, Orders, Poll, Report, Send
from ray_kvfabric.route import EndpointInfo


class Post:
    """`ttl_s` is how long an outcome can be asked for; a poll without errands is answered after `poll_s`."""

    def __init__(self, ttl_s: float, poll_s: float) -> None:
        self._errands = Errands(ttl_s)
        self._poll_s = poll_s
        self._polling: dict[int, Poll] = {}
        self._awaiting: dict[int, Await] = {}

    def hand_in(self, event: Send) -> Commands:
        if not self._errands.put(event.cluster_id, event.errand):
            return [Answer(event.request)]
        errands = self._errands.take(event.cluster_id, ())
        return [Answer(event.request), *self._answer_polls(event.cluster_id, Orders(errands=errands))]

    def poll(self, event: Poll, known: bool, ended: tuple[Ended, ...]) -> Commands:
        """A newer poll of an endpoint ends its older one; an unknown endpoint has to announce itself.

        `ended` are those of the poll's `watching` that are gone.
        """
        older = self._answer_polls(event.endpoint.cluster_id, Orders()) if known else []
        errands = self._errands.take(event.endpoint.cluster_id, event.acknowledged) if known else ()
        if errands or ended or not known:
            return [*older, Answer(event.request, Orders(not known, errands, ended))]
        self._polling[event.request] = event
        return older

    def report(self, event: Report) -> Commands:
        self._errands.done(event.errand_id, event.outcome, event.now)
        return [Answer(event.request), *self._tell(event.errand_id)]

    def wait(self, event: Await) -> Commands:
        """Raises TransferUnknown."""
        outcome = self._errands.outcome(event.errand_id)
        if outcome is not None:
            return [Answer(event.request, outcome)]
        self._awaiting[event.request] = event
        return []

    def lost(self, endpoint: EndpointInfo, reason: str, now: float) -> Commands:
        """The endpoint is gone: what it owed has failed, and if it does live it has to announce itself.

        Whoever polls is told, watching it or not: a link to it may be younger than the poll.
        """
        commands: Commands = []
        for errand_id in self._errands.abandon(endpoint.cluster_id, reason, now):
            commands += self._tell(errand_id)
        commands += self._answer_polls(endpoint.cluster_id, Orders(announce_again=True))
        news = Orders(ended=(Ended(mark(endpoint), reason),))
        return commands + [self._answer_poll(poll, news) for poll in self.polls()]

    def tell_ended(self, poll: Poll, ended: tuple[Ended, ...]) -> Command:
        """Ends a parked poll with those of its `watching` that are gone."""
        return self._answer_poll(poll, Orders(ended=ended))

    def tick(self, now: float) -> Commands:
        self._errands.expire(now)
        polls = [poll for poll in self._polling.values() if poll.now + self._poll_s <= now]
        late = [awaited for awaited in self._awaiting.values() if awaited.until <= now]
        return [
            *(self._answer_poll(poll, Orders()) for poll in polls),
            *(self._end_await(awaited, None) for awaited in late),
        ]

    def gave_up(self, request: int) -> None:
        self._polling.pop(request, None)
        self._awaiting.pop(request, None)

    def expiries(self) -> list[float]:
        return [
            *(poll.now + self._poll_s for poll in self._polling.values()),
            *(awaited.until for awaited in self._awaiting.values()),
            *self._errands.expiries(),
        ]

    def waiting(self) -> list[int]:
        return [*self._polling, *self._awaiting]

    def polls(self) -> list[Poll]:
        """Those that are parked."""
        return list(self._polling.values())

    @property
    def pending(self) -> int:
        return self._errands.pending

    def _answer_polls(self, cluster_id: int, orders: Orders) -> Commands:
        mine = [event for event in self._polling.values() if event.endpoint.cluster_id == cluster_id]
        return [self._answer_poll(event, orders) for event in mine]

    def _answer_poll(self, event: Poll, orders: Orders) -> Command:
        del self._polling[event.request]
        return Answer(event.request, orders)

    def _tell(self, errand_id: str) -> Commands:
        outcome = self._errands.outcome(errand_id)
        waiting = [event for event in self._awaiting.values() if event.errand_id == errand_id]
        return [self._end_await(event, outcome) for event in waiting]

    def _end_await(self, event: Await, value: object) -> Command:
        del self._awaiting[event.request]
        return Answer(event.request, value)
