"""The book of grants against a plain dictionary: whatever is asked in whatever order, no block is in two grants."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_kvfabric.control.grants import Ending, GrantBook, Held, Phase
from ray_kvfabric.errors import CreditExhausted, EndpointDraining, ParamInvalid

MAX_GRANTS, MAX_NBYTES, BLOCK = 5, 100, 10
blocks_of = st.lists(st.integers(0, 11), min_size=1, max_size=4).map(tuple)


class BookModel(RuleBasedStateMachine):
    """`model`: grant_id -> (cache, blocks, phase name, ending)."""

    def __init__(self) -> None:
        super().__init__()
        self.book = GrantBook(MAX_GRANTS, MAX_NBYTES)
        self.model: dict[str, list[object]] = {}
        self.until: dict[str, float] = {}
        self.numbers = 0
        self.is_closed = False

    def taken(self, cache: int) -> set[int]:
        return {block for held in self.model.values() if held[0] == cache for block in held[1]}  # type: ignore[attr-defined]

    @rule(cache=st.integers(1, 2), blocks=blocks_of, until=st.floats(0, 100))
    def issue(self, cache: int, blocks: tuple[int, ...], until: float) -> None:
        self.numbers += 1
        name, nbytes = f"g{self.numbers}", len(blocks) * BLOCK
        granted = sum(len(held[1]) * BLOCK for held in self.model.values())  # type: ignore[arg-type]
        held = Held(name, f"r{name}", cache, blocks, nbytes, until, (7,) if self.numbers % 2 else ())
        if self.is_closed:
            expected: type[Exception] | None = EndpointDraining
        elif len(self.model) >= MAX_GRANTS or (granted and granted + nbytes > MAX_NBYTES):
            expected = CreditExhausted
        elif self.taken(cache) & set(blocks) or len(set(blocks)) != len(blocks):
            expected = ParamInvalid
        else:
            expected = None
        if expected is not None:
            with pytest.raises(expected):
                self.book.issue(held)
            return
        self.book.issue(held)
        self.model[name] = [cache, blocks, "standing", None]
        self.until[name] = until

    def some(self, data: st.DataObject) -> str:
        return str(data.draw(st.sampled_from([*self.model, "nobody"])))

    @rule(data=st.data(), ending=st.sampled_from(Ending))
    def end(self, data: st.DataObject, ending: Ending) -> None:
        name = self.some(data)
        stood = name in self.model and self.model[name][2] == "standing"
        assert self.book.end(name, ending) == stood
        if stood:
            self.model[name][2:] = ["fenced", ending]

    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        name = self.some(data)
        self.book.quarantine(name)
        if name in self.model and self.model[name][2] == "fenced":
            self.model[name][2] = "quarantined"

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = self.some(data)
        may = name in self.model and self.model[name][2] != "standing"
        assert (self.book.release(name) is not None) == may
        if may:
            del self.model[name]

    @precondition(lambda self: self.numbers > 20)
    @rule()
    def close(self) -> None:
        self.is_closed = True
        self.book.refuse_new("draining")

    @rule(now=st.floats(0, 100), cache=st.integers(1, 2))
    def look(self, now: float, cache: int) -> None:
        standing = [name for name, held in self.model.items() if held[2] == "standing"]
        assert self.book.expired(now) == [name for name in standing if self.until[name] <= now]
        assert self.book.of_cache(cache) == [name for name, held in self.model.items() if held[0] == cache]
        assert self.book.expected_from(7) == [name for name in standing if int(name[1:]) % 2]
        assert self.book.unreleased() == [name for name in self.model if name not in standing]

    @invariant()
    def agrees(self) -> None:
        self.book.check_integrity()
        found = {held.grant_id: [held.cache_id, held.blocks, held.phase.value, held.ending] for held in self.book.all()}
        assert found == self.model
        told = self.book.describe()
        assert all(told[phase.value] == sum(held[2] == phase.value for held in found.values()) for phase in Phase)


BookModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBookModel = BookModel.TestCase


def test_the_refusal_of_a_block_names_the_grant_that_has_it() -> None:
    book = GrantBook(10, None)
    book.issue(Held("first", "request-1", 3, (4, 5), 20, 1.0))
    with pytest.raises(ParamInvalid, match=r"blocks\[1\] is 5: grant first of request 'request-1'.*cache 3"):
        book.issue(Held("second", "request-2", 3, (6, 5), 20, 1.0))
    book.issue(Held("third", "request-3", 4, (4, 5), 20, 1.0))  # of another cache
