"""What a notebook shows: one table reader for all of them, so that what is asserted is what a person reads."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from html.parser import HTMLParser
from typing import NamedTuple

import pytest

from ray_kvfabric import BlocksCacheKey
from ray_kvfabric.actors.shown import EndpointView, members_table
from ray_kvfabric.cache.html_table import html_table
from ray_kvfabric.control.directory import Member
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.errors import CacheNotFound, TransferCancelled
from ray_kvfabric.grant import GrantReceipt
from ray_kvfabric.memory.copy_python import StopWord
from ray_kvfabric.route import Receipt
from tests.unit.conftest import Two, desc
from tests.unit.test_gate import make_gate

LANDED = Receipt("ab" * 16, 1, 2, 7, 2, 3, 5, 4_000_000, "process_vm", 1_000_000, 3_000_000)


class Table(NamedTuple):
    caption: str
    headings: list[str]
    rows: list[list[str]]

    @property
    def only(self) -> dict[str, str]:
        """Its one row, by heading."""
        (row,) = self.rows
        return dict(zip(self.headings, row, strict=True))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag = tag
        if tag == "table":
            self.tables.append(Table("", [], []))
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag == "th":
            self.tables[-1].headings.append("")
        elif tag == "td":
            self.tables[-1].rows[-1].append("")

    def handle_data(self, data: str) -> None:
        table = self.tables[-1]
        if self._tag == "caption":
            self.tables[-1] = table._replace(caption=table.caption + data)
        elif self._tag == "th":
            table.headings[-1] += data
        elif self._tag == "td":
            table.rows[-1][-1] += data


def read(shown: str) -> list[Table]:
    reader = _Reader()
    reader.feed(shown)
    return [table._replace(rows=[row for row in table.rows if row]) for table in reader.tables]


def read_one(thing: object) -> Table:
    (table,) = read(thing._repr_html_())  # type: ignore[attr-defined]
    return table


class TestTable:
    def test_names_cannot_become_markup(self) -> None:
        shown = html_table("<b>&", ["<i>"], [("<script>alert('x')</script>",)])
        assert not any(tag in shown for tag in ("<b>", "<i>", "<script>"))
        assert read(shown) == [Table("<b>&", ["<i>"], [["<script>alert('x')</script>"]])]

    def test_it_names_no_colour_that_a_theme_would_have_to_suit(self) -> None:
        shown = html_table("a", ["b"], [(1,)])
        assert "color" not in shown
        assert "background" not in shown

    def test_numbers_stand_to_the_right_and_nothing_is_an_empty_cell(self) -> None:
        shown = html_table("a", ["n", "word"], [(1, "x"), (None, None)])
        assert '<td style="text-align:right">1</td>' in shown
        assert '<td style="text-align:left">x</td>' in shown
        assert read(shown)[0].rows == [["1", "x"], ["", ""]]


class TestReceipts:
    def test_a_receipt_says_what_moved_how_fast_and_by_what(self) -> None:
        table = read_one(LANDED)
        assert table.caption == f"transfer {LANDED.transfer_id}: landed"
        assert table.only == {
            "from": "1", "to": "2", "cache": "7", "layers": "2 to 4", "blocks": "5", "bytes": "4000000",
            "ms": "2.0", "GB/s": "2.0", "transport": "process_vm",
        }  # fmt: skip

    def test_a_grants_receipt_names_its_request_and_every_source(self) -> None:
        receipt = GrantReceipt("cd", "<request>", 7, (1, 3), 2, 5, 640, 4, 1_000_000, 3_500_000, "crc32c")
        table = read_one(receipt)
        assert "<request>" in table.caption
        assert {"1, 3", "640", "2.5", "crc32c"} <= set(table.only.values())


class TestCaches:
    def test_a_cache_says_its_form_and_size_and_when_it_is_gone(self, two: Two) -> None:
        cache = two.source.allocate_blocks_cache(desc(4, (1024, 512)), BlocksCacheKey(1))
        table = read_one(cache)
        assert table.caption == f"cache {cache.cache_id}"
        assert {"blocks", "4", "[1024, 512]", "DT_FLOAT16", "HOST"} <= set(table.only.values())
        assert table.only["MiB"] == "4.0"
        two.source.deallocate_blocks_cache(cache)
        assert read_one(cache).caption == f"cache {cache.cache_id}: deallocated"

    def test_an_announced_cache_and_its_endpoint_show_the_same_row(self, two: Two) -> None:
        two.source.allocate_blocks_cache(desc(4, (1024, 512)), BlocksCacheKey(1, 5))
        (info,) = two.source.caches()
        seen = read_one(info)
        assert (seen.only["model_id"], seen.only["memory"], seen.only["MiB"]) == ("5", "host", "4.0")
        _, caches = read(EndpointView(two.source.status())._repr_html_())
        assert (caches.headings, caches.rows) == (seen.headings, seen.rows)


class TestTransfers:
    def test_a_landed_one_shows_its_receipt(self, two: Two) -> None:
        transfer = start_push(two, model_id=0)
        receipt = transfer.wait(10.0)
        assert transfer._repr_html_() == receipt._repr_html_()
        assert (read_one(transfer).only["from"], read_one(transfer).only["to"]) == ("1", "2")

    def test_a_failed_one_says_why(self, two: Two) -> None:
        transfer = start_push(two, model_id=9)
        with pytest.raises(CacheNotFound) as failure:
            transfer.wait(10.0)
        assert read_one(transfer).only == {"state": "failed", "why": f"CacheNotFound: {failure.value}"}

    def test_one_that_moves_or_was_cancelled_has_no_reason(self) -> None:
        future: Future[Receipt] = Future()
        transfer = Transfer("ab" * 16, future, StopWord(), make_gate())
        assert read_one(transfer) == Table(f"transfer {'ab' * 16}", ["state", "why"], [["planned", ""]])
        future.set_running_or_notify_cancel()
        assert read_one(transfer).only == {"state": "moving", "why": ""}
        future.set_exception(TransferCancelled("stopped"))
        assert read_one(transfer).only == {"state": "cancelled", "why": ""}


class TestMembers:
    def test_a_row_for_each_cache_and_one_for_an_endpoint_without(self, two: Two) -> None:
        for model_id in (5, 6):
            two.source.allocate_blocks_cache(desc(4, (1024, 512)), BlocksCacheKey(1, model_id))
        caches = {each.cache_id: each for each in two.source.caches()}
        leaving = Member(replace(two.target.endpoint, is_draining=True), None, 0.0)
        (table,) = read(members_table("here", [Member(two.source.endpoint, None, 0.0, caches=caches), leaving]))
        named = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
        assert [(row["endpoint"], row["role"], row["model_id"], row["MiB"]) for row in named] == [
            ("1", "MIX", "5", "4.0"),
            ("1", "MIX", "6", "4.0"),
            ("2", "MIX, draining", "", ""),
        ]


class TestEndpointView:
    def test_it_shows_what_the_endpoint_holds_and_has_moved(self, two: Two) -> None:
        start_push(two, model_id=0).wait(10.0)
        view = EndpointView(two.source.status())
        endpoint, caches, links, transfers = read(view._repr_html_())
        assert endpoint.caption == "endpoint 1"
        assert endpoint.only["MiB budget"] == "64.0"
        assert len(caches.rows) == 1
        assert (links.only["to"], links.only["state"], links.only["MiB pushed"]) == ("2", "open", "1.0")
        assert transfers.rows == [["landed", "1"]]
        assert repr(view) == "<Endpoint 1 MIX: 1 caches, 1 links>"

    def test_it_has_no_table_of_what_is_not_there(self, two: Two) -> None:
        assert [each.caption for each in read(EndpointView(two.source.status())._repr_html_())] == ["endpoint 1"]


def start_push(two: Two, model_id: int) -> Transfer:
    """1 MiB from endpoint 1 to what endpoint 2 calls `model_id`; it has the model 0 only."""
    form = desc(4, (8, 65536))
    source = two.source.allocate_blocks_cache(form, BlocksCacheKey(1))
    two.target.allocate_blocks_cache(form, BlocksCacheKey(2))
    return two.source.start_push(BlocksCacheKey(2, model_id), source, [0, 1], [2, 3])
