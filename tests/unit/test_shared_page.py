"""The shared page: fences, links and rings between processes (invariants of native_ext/page.h)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import TransferTimeout
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport._shared_page import SharedPage
from ray_kvfabric.transport.receipts import ReceiptReader

NOBODY = -1  # the pidfd of this very process


@pytest.fixture
def page() -> Iterator[SharedPage]:
    memory = HostMemory.create("test-page", shared_page.PAGE_NBYTES, touch=False)
    made = SharedPage(memory.view(memory.address, memory.nbytes))
    made.initialise(0xABC, 7, os.getpid())
    yield made
    memory.close()


def post(page: SharedPage, link: int, slot: int, generation: int, number: int) -> int:
    cell = page.begin(link, slot, generation, NOBODY)
    assert cell >= 0
    name = number.to_bytes(16, "big")
    return page.finish(link, cell, slot, generation, NOBODY, name, 1, 2, 3, 4, 5, 6, 7, 1)


def test_a_retired_slot_lets_nobody_in(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    page.leave(link, page.begin(link, slot, generation, NOBODY))
    page.retire_slot(slot)
    assert page.begin(link, slot, generation, NOBODY) == shared_page.STALE


def test_a_slot_used_again_refuses_the_old_generation(page: SharedPage) -> None:
    slot, old = page.publish_slot() or pytest.fail("a new page has slots")
    page.retire_slot(slot)
    page.free_slot(slot)
    for _ in range(shared_page.SLOTS):  # a slot that was just freed is used again late
        again, new = page.publish_slot() or pytest.fail("a freed slot is free")
        if again == slot:
            break
        page.retire_slot(again)
        page.free_slot(again)
    link = page.claim_link(1, os.getpid())
    assert (again, new != old) == (slot, True)
    assert page.begin(link, slot, old, NOBODY) == shared_page.STALE


def test_draining_waits_for_the_writer_inside(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    cell = page.begin(link, slot, generation, NOBODY)
    page.retire_slot(slot)
    assert not page.drain_slot(slot, Deadline.after(0.05).at_ns)
    threading.Timer(0.2, page.leave, (link, cell)).start()
    started = time.monotonic()
    assert page.drain_slot(slot, Deadline.after(10).at_ns)
    assert time.monotonic() - started < 5


def test_draining_does_not_wait_for_a_writer_that_died(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    link = page.claim_link(1, child.pid)
    assert page.begin(link, slot, generation, NOBODY) >= 0
    page.retire_slot(slot)
    assert not page.drain_slot(slot, Deadline.after(0.05).at_ns)
    child.kill()
    child.wait()
    assert page.drain_slot(slot, Deadline.after(10).at_ns)


def test_a_push_that_ends_after_the_cache_was_freed_posts_nothing(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    cell = page.begin(link, slot, generation, NOBODY)
    page.retire_slot(slot)
    outcome = page.finish(link, cell, slot, generation, NOBODY, bytes(16), 1, 2, 3, 4, 5, 6, 7, 1)
    assert outcome == shared_page.STALE
    assert page.posted()[link] == 0
    assert page.drain_slot(slot, Deadline.after(1).at_ns)


def test_links_run_out_and_those_of_the_dead_are_taken_again(page: SharedPage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    claimed = [page.claim_link(owner + 1, child.pid) for owner in range(shared_page.LINKS)]
    assert sorted(claimed) == list(range(shared_page.LINKS))
    assert page.claim_link(999, os.getpid()) == shared_page.BUSY
    child.kill()
    child.wait()
    assert page.claim_link(999, os.getpid()) >= 0


def test_a_released_link_is_free_again(page: SharedPage) -> None:
    link = page.claim_link(5, os.getpid())
    page.release_link(link, 5)
    assert page.links() == []


def test_a_link_lets_eight_in_and_no_more(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    cells = [page.begin(link, slot, generation, NOBODY) for _ in range(8)]
    assert sorted(cells) == list(range(8))
    assert page.begin(link, slot, generation, NOBODY) == shared_page.BUSY
    page.leave(link, cells[3])
    assert page.begin(link, slot, generation, NOBODY) == cells[3]


def test_a_late_reader_gets_the_newest_and_learns_how_many_it_missed(page: SharedPage) -> None:
    reader = ReceiptReader(page, 7)
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    for number in range(1, shared_page.RECORDS + 11):
        assert post(page, link, slot, generation, number) > 0
    newest = reader.wait(f"{shared_page.RECORDS + 10:032x}", Deadline.after(1))
    assert (newest.nbytes, newest.started_ns, newest.transport) == (6, 7, "loopback")
    with pytest.raises(TransferTimeout, match="10 records were overwritten"):
        reader.wait(f"{1:032x}", Deadline.after(0.01))


def test_receipts_of_earlier_owners_of_a_link_are_not_read_again(page: SharedPage) -> None:
    slot, generation = page.publish_slot() or pytest.fail("a new page has slots")
    link = page.claim_link(1, os.getpid())
    post(page, link, slot, generation, 1)
    page.release_link(link, 1)
    reader = ReceiptReader(page, 7)
    assert page.claim_link(2, os.getpid()) == link
    post(page, link, slot, generation, 2)
    assert reader.wait(f"{2:032x}", Deadline.after(1)).transfer_id == f"{2:032x}"
    with pytest.raises(TransferTimeout):
        reader.wait(f"{1:032x}", Deadline.after(0.01))


def test_sleeping_costs_no_cpu_and_ends_with_the_deadline(page: SharedPage) -> None:
    before = time.process_time()
    assert not page.sleep(page.bell, Deadline.after(0.3).at_ns)
    assert time.process_time() - before < 0.1


def test_an_ended_process_is_seen_through_its_pidfd() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pidfd = os.pidfd_open(child.pid)
    try:
        assert not shared_page.has_ended(pidfd)
        child.kill()
        child.wait()
        assert shared_page.has_ended(pidfd)
    finally:
        os.close(pidfd)


def test_a_number_that_is_a_threads_by_now_is_no_process() -> None:
    """Numbers are used again: a dead writer's may be a thread's when somebody looks."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert shared_page.is_gone(thread.native_id)
    assert not shared_page.is_gone(os.getpid())
    end.set()
    thread.join()


# ---- boards ------------------------------------------------------------------------------------------

SEAL = bytes(range(16))
WHOLE = (0, 2, 0, 8)  # two tensors of eight blocks


def board(page: SharedPage, writers: int) -> int:
    """The fence of a grant whose board lies at 0."""
    slot, fence = page.publish_slot() or pytest.fail("a new page has slots")
    page.init_board(0, SEAL, Deadline.after(60).at_ns, slot, fence, writers, 2, 8, False)
    return fence


class Waiter(threading.Thread):
    """Waits for all of a board; knows how often it was woken, or woke."""

    def __init__(self, page: SharedPage, fence: int, wants_seals: bool) -> None:
        super().__init__()
        self._wish = (0, fence, WHOLE, wants_seals, Deadline.after(10).at_ns)
        self._page = page
        self.outcome = (shared_page.NOT_YET, 0)
        self.wakes = 0

    def run(self) -> None:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self.outcome = self._page.await_board(*self._wish)
        self.wakes = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def test_a_write_wakes_who_waits_for_writes_and_a_seal_who_waits_for_the_end(page: SharedPage) -> None:
    fence = board(page, writers=1)
    assert page.bind(0, SEAL, 0, 5, os.getpid(), 1, 1) == shared_page.OK
    until_sealed, until_written = Waiter(page, fence, True), Waiter(page, fence, False)
    until_sealed.start()
    until_written.start()
    for number in range(200):
        time.sleep(2e-3)
        page.cover(0, 0, (number % 2, 1, 0, 4), None, 1, False)  # half of it, again and again
    page.cover(0, 0, WHOLE, None, 1, False)
    until_written.join(5)
    assert until_written.outcome == (shared_page.OK, 0)
    assert until_sealed.is_alive()
    page.cover(0, 0, WHOLE, None, 1, True)
    until_sealed.join(5)
    assert until_sealed.outcome == (shared_page.OK, 0)
    assert until_written.wakes > 100
    assert until_sealed.wakes < until_written.wakes / 3


def test_a_writer_that_died_is_noticed_while_another_goes_on_writing(page: SharedPage) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fence = board(page, writers=2)
    assert page.bind(0, SEAL, 0, 5, os.getpid(), 1, 1) == shared_page.OK
    assert page.bind(0, SEAL, 1, 6, child.pid, 2, 1) == shared_page.OK
    waiter = Waiter(page, fence, False)
    waiter.start()
    child.kill()
    child.communicate()
    end = time.monotonic() + 5
    while waiter.is_alive() and time.monotonic() < end:
        page.cover(0, 0, (0, 1, 0, 4), None, 1, False)
        time.sleep(1e-3)
    assert waiter.outcome == (shared_page.PEER_DEAD, 1)
    waiter.join(10)
