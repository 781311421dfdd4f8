"""Notices: what an endpoint shows in its shared page to a peer that is linked to it, found there without a call.

    Notice    in the hands of the page's owner: open, then taken or declined
    Lookout   a peer's eye on the page
Nobody is woken. What is shown must also be sayable by a call: that is how its owner goes on where it is not taken.
See native_ext/notice.h.
"""

from __future__ import annotations

import time
from enum import IntEnum

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.transport import _shared_page as shared_page

AWAY_S = 0.02  # for a peer that is not there to begin looking
LOOKS_S = 0.1  # for one that looks to come by
NAP_S = 2e-3


class Eye(IntEnum):
    """What a peer does about notices: LOOKS, to come by within milliseconds, or WAITS, for a call at once."""

    AWAY = shared_page.AWAY
    LOOKS = shared_page.LOOKS
    WAITS = shared_page.WAITS


class Notice:
    def __init__(self, page: shared_page.SharedPage, peer_incarnation: int, text: bytes) -> None:
        """`text`: up to NOTICE_NBYTES."""
        self._page = page
        self._peer_incarnation = peer_incarnation
        self._sequence = page.show(peer_incarnation, text)

    def is_taken(self) -> bool:
        """Waits for it as long as there is hope: LOOKS_S at most. Then the notice is withdrawn.

        False is no promise: the peer may have read it already, so that both happen, it takes it and is called.
        """
        away, looking = Deadline.after(AWAY_S), Deadline.after(LOOKS_S)
        while self._page.verdict(self._sequence) == shared_page.OPEN:
            eye = self._page.eye(self._peer_incarnation)  # after it was shown: see notice.h
            if eye not in (Eye.AWAY, Eye.LOOKS) or (away if eye == Eye.AWAY else looking).passed:
                break
            time.sleep(NAP_S)
        self._page.withdraw(self._sequence)
        return self._page.verdict(self._sequence) == shared_page.TAKEN


class Lookout:
    """One thread at a time."""

    def __init__(self, page: shared_page.SharedPage, link: int, incarnation: int) -> None:
        """`link` of the peer's page is this endpoint's, whose incarnation it is."""
        self._page = page
        self._link = link
        self._incarnation = incarnation
        self._seen = page.shown
        self._eye = Eye.AWAY

    def look(self, eye: Eye) -> None:
        """Lets the peer know. Who looks no more asks for `news` once again."""
        if eye != self._eye:
            self._eye = eye
            self._page.set_eye(self._link, eye)

    @property
    def has_news(self) -> bool:
        """It may be another's. No system call."""
        return self._page.shown != self._seen

    def news(self) -> list[tuple[int, bytes]]:
        """Notices for this endpoint, each once: a number, and what it says."""
        newest = self._page.shown
        first = max(self._seen, newest - shared_page.NOTICES) + 1  # those before are overwritten
        self._seen = newest
        found = [(sequence, self._page.notice(sequence, self._incarnation)) for sequence in range(first, newest + 1)]
        return [(sequence, text) for sequence, text in found if text is not None]

    def judge(self, sequence: int, is_taken: bool) -> None:
        """What is declined is said again by a call, to be refused with a reason."""
        self._page.judge(sequence, shared_page.TAKEN if is_taken else shared_page.DECLINED)
