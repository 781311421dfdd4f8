"""The cases: how many blocks of what size move in one call. Pure data and the drawing of block lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from ray_kvfabric.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
SMALL_NBYTES = MIB  # a case that moves less is timed by its latency

Lists = tuple[list[int], list[int]]  # source and target blocks of one call


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`blocks_per_call` of `num_blocks` blocks of every tensor move in one call; `fans`: to several targets as well."""

    name: str
    num_tensors: int
    block_nbytes: int
    blocks_per_call: int
    num_blocks: int
    consecutive: bool = False
    fans: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that one call moves."""
        return self.num_tensors * self.block_nbytes * self.blocks_per_call

    @property
    def cache_nbytes(self) -> int:
        return self.num_tensors * self.block_nbytes * self.num_blocks

    @property
    def is_small(self) -> bool:
        return self.nbytes < SMALL_NBYTES

    def draw(self, random: Random) -> Lists:
        """Block lists of one call, other ones at each call."""
        return self._draw_side(random), self._draw_side(random)

    def _draw_side(self, random: Random) -> list[int]:
        if not self.consecutive:
            return random.sample(range(self.num_blocks), self.blocks_per_call)
        start = random.randrange(self.num_blocks - self.blocks_per_call + 1)
        return list(range(start, start + self.blocks_per_call))

    def shrunk(self) -> Case:
        """The same blocks with an eighth of the tensors, or of the run: for a quick look."""
        if self.is_small:
            return self
        if self.num_tensors >= 8:
            return replace(self, num_tensors=self.num_tensors // 8)
        return replace(self, blocks_per_call=self.blocks_per_call // 8, num_blocks=self.num_blocks // 8)


_LLAMA = Case(name="llama", num_tensors=64, block_nbytes=32 * KIB, blocks_per_call=64, num_blocks=128)
_MLA = Case(name="mla", num_tensors=61, block_nbytes=144 * KIB, blocks_per_call=32, num_blocks=64)

CASES = {
    case.name: case
    for case in (
        Case(name="small", num_tensors=4, block_nbytes=16 * KIB, blocks_per_call=1, num_blocks=1024, fans=True),
        replace(_LLAMA, name="llama_rand", fans=True),
        replace(_LLAMA, name="llama_seq", consecutive=True),
        replace(_MLA, name="mla_rand"),
        replace(_MLA, name="mla_seq", consecutive=True),
        Case(name="big", num_tensors=1, block_nbytes=MIB, blocks_per_call=256, num_blocks=384, consecutive=True),
    )
}


URGENT = Case(name="urgent", num_tensors=4, block_nbytes=16 * KIB, blocks_per_call=1, num_blocks=64)
BULK = replace(_LLAMA, name="bulk", num_blocks=64, consecutive=True)  # what is on the link of urgent pushes


def select(names: tuple[str, ...], others: tuple[str, ...] = ()) -> list[Case]:
    """Cases by name, all when none is named; `others` are known too. Raises ConfigError listing the known ones."""
    known = (*CASES, *others)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no case {', '.join(map(repr, unknown))}; the cases are {', '.join(known)}")
    return [CASES[name] for name in names or CASES if name in CASES]
