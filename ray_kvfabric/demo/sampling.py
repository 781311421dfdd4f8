"""Picks the next token.

The draw depends on seed and position alone, so a run that moves to another process, or is repeated there,
draws the same numbers without handing over a generator's state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_kvfabric.demo.weights import Array
from ray_kvfabric.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Temperature 0 takes the likeliest token; `suppressed` tokens are never taken."""

    temperature: float = 0.7
    seed: int = 0
    suppressed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must not be negative, got {self.temperature}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")

    def pick(self, logits: Array, position: int) -> int:
        """The token for `position` of the sequence, from logits [vocab_size]."""
        scores = logits.astype(np.float64)
        scores[list(self.suppressed)] = -np.inf
        if self.temperature == 0:
            return int(scores.argmax())
        weights = np.exp((scores - scores.max()) / self.temperature)
        return self._draw(weights.cumsum(), position)

    def _draw(self, cumulative: npt.NDArray[np.float64], position: int) -> int:
        generator = np.random.Generator(np.random.PCG64([self.seed, position]))
        return int(cumulative.searchsorted(generator.random() * cumulative[-1], side="right"))
