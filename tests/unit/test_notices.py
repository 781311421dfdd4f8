"""Notices in the shared page: who reads them, what becomes of them, and what stays behind (native_ext/notice.h)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport import notices
from ray_kvfabric.transport._shared_page import SharedPage
from ray_kvfabric.transport.notices import Eye, Lookout, Notice

NOTICES = shared_page.NOTICES

PEER, OTHER = 11, 12  # incarnations


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory.create("test-page", shared_page.PAGE_NBYTES, touch=False)
    yield made
    made.close()


@pytest.fixture
def page(memory: HostMemory) -> SharedPage:
    made = SharedPage(memory.view(memory.address, memory.nbytes))
    made.initialise(0xABC, 7, os.getpid())
    return made


@pytest.fixture
def lookout(page: SharedPage) -> Lookout:
    return Lookout(page, page.claim_link(PEER, os.getpid()), PEER)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those of `is_taken`, which end at once."""
    taken: list[float] = []
    monkeypatch.setattr(notices.time, "sleep", taken.append)
    return taken


def test_a_notice_is_read_once_and_by_the_peer_it_is_meant_for(page: SharedPage, lookout: Lookout) -> None:
    other = Lookout(page, page.claim_link(OTHER, os.getpid()), OTHER)
    Notice(page, PEER, b"first")
    Notice(page, PEER, b"second")
    assert other.has_news
    assert other.news() == []
    assert [text for _, text in lookout.news()] == [b"first", b"second"]
    assert not lookout.has_news
    assert lookout.news() == []


def test_what_was_shown_before_the_peer_looks_is_found_when_it_looks(page: SharedPage, lookout: Lookout) -> None:
    Notice(page, PEER, b"early")
    lookout.look(Eye.LOOKS)
    assert [text for _, text in lookout.news()] == [b"early"]


def test_a_notice_that_was_taken_is_not_waited_for(page: SharedPage, lookout: Lookout, naps: list[float]) -> None:
    notice = Notice(page, PEER, b"text")
    for sequence, _ in lookout.news():
        lookout.judge(sequence, True)
    assert notice.is_taken()
    assert not naps


@pytest.mark.parametrize("case", ["declined", "waits", "without a link"])
def test_there_is_no_waiting_without_hope(page: SharedPage, lookout: Lookout, naps: list[float], case: str) -> None:
    notice = Notice(page, PEER if case != "without a link" else OTHER, b"text")
    lookout.look(Eye.WAITS if case == "waits" else Eye.LOOKS)
    for sequence, _ in lookout.news() if case == "declined" else ():
        lookout.judge(sequence, False)
    assert not notice.is_taken()
    assert not naps


@pytest.mark.parametrize("eye", [Eye.AWAY, Eye.LOOKS])
def test_a_peer_that_does_not_come_by_is_waited_for_a_moment_and_finds_nothing_later(
    page: SharedPage, lookout: Lookout, eye: Eye
) -> None:
    lookout.look(eye)
    notice = Notice(page, PEER, b"text")
    started = time.monotonic()
    assert not notice.is_taken()
    assert time.monotonic() - started >= {Eye.AWAY: notices.AWAY_S, Eye.LOOKS: notices.LOOKS_S}[eye]
    assert lookout.news() == []


def test_a_verdict_that_comes_with_the_withdrawal_is_seen(page: SharedPage, lookout: Lookout) -> None:
    sequence = page.show(PEER, b"text")
    ((read, _),) = lookout.news()
    lookout.judge(read, True)
    page.withdraw(sequence)
    assert page.verdict(sequence) == shared_page.TAKEN


def test_a_verdict_on_a_notice_is_none_on_the_one_that_has_taken_its_place(page: SharedPage, lookout: Lookout) -> None:
    old = page.show(PEER, b"old")
    for _ in range(NOTICES):
        new = page.show(PEER, b"new")
    assert (new % NOTICES, page.verdict(old)) == (old % NOTICES, shared_page.DECLINED)
    lookout.judge(old, True)
    assert page.verdict(new) == shared_page.OPEN


def test_more_notices_than_the_page_holds_are_read_as_far_as_they_are_there(page: SharedPage, lookout: Lookout) -> None:
    for number in range(3 * NOTICES):
        page.show(PEER, str(number).encode())
    assert [int(text) for _, text in lookout.news()] == list(range(2 * NOTICES, 3 * NOTICES))


def test_a_peer_whose_count_of_notices_has_jumped_costs_no_time() -> None:
    class Foreign:
        shown = 0
        asked = 0

        def notice(self, sequence: int, to: int) -> None:
            self.asked += 1
            assert self.asked <= NOTICES

    foreign: Any = Foreign()
    lookout = Lookout(foreign, 0, PEER)
    foreign.shown = 2**60
    assert lookout.news() == []
    assert not lookout.has_news


def test_who_takes_over_a_link_does_not_look_yet(page: SharedPage) -> None:
    link = page.claim_link(PEER, os.getpid())
    Lookout(page, link, PEER).look(Eye.LOOKS)
    assert page.eye(PEER) == Eye.LOOKS
    page.release_link(link, PEER)
    assert page.eye(PEER) == shared_page.STALE
    assert page.claim_link(OTHER, os.getpid()) == link
    assert page.eye(OTHER) == Eye.AWAY


def test_a_closed_link_says_nothing_in_the_name_of_its_successor(page: SharedPage) -> None:
    link = page.claim_link(PEER, os.getpid())
    lookout = Lookout(page, link, PEER)
    page.retract_link(link)
    lookout.look(Eye.LOOKS)
    assert page.eye(PEER) == Eye.AWAY


@pytest.mark.parametrize("nbytes", [0, shared_page.NOTICE_NBYTES + 1])
def test_a_text_without_room_is_refused(page: SharedPage, nbytes: int) -> None:
    with pytest.raises(ValueError, match="notice"):
        page.show(PEER, bytes(nbytes))


READER = """
import sys
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.transport._shared_page import SharedPage
memory = HostMemory.open_peer(*map(int, sys.argv[1:4]), touch=False)
page = SharedPage(memory.view(memory.address, memory.nbytes))
print("ready", flush=True)
read = torn = 0
while read < 20000:
    oldest = max(page.shown - 63, 0)  # the next to be overwritten
    text = page.notice(oldest, 11)
    if text is not None:
        read += 1
        torn += len(set(text)) != 1 or len(text) != 3000 + text[0]
print(torn)
"""


def test_a_reader_never_sees_a_notice_half_overwritten(memory: HostMemory, page: SharedPage) -> None:
    arguments = [str(os.getpid()), str(memory.fd), str(memory.inode)]
    reader: Any = subprocess.Popen([sys.executable, "-c", READER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout.readline() == "ready\n"
        number = 0
        while reader.poll() is None:
            number += 1
            page.show(PEER, bytes([number % 251 or 1]) * (3000 + (number % 251 or 1)))
        torn = int(reader.stdout.read())
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()
    assert torn == 0
