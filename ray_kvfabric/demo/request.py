"""What the demo is asked to do, and what its two workers answer: plain data that crosses Ray calls."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ray_kvfabric.demo.checkpoint import Checkpoint, default_model_dir, load_checkpoint, random_checkpoint
from ray_kvfabric.demo.generate import blocks_for
from ray_kvfabric.demo.llama_config import LlamaConfig
from ray_kvfabric.demo.overlap import Span, layer_spans
from ray_kvfabric.demo.sampling import Sampler
from ray_kvfabric.demo.text import Text
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.route import Receipt

_RANDOM_POSITIONS = 1 << 20  # random weights have no longest sequence


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model directory, or random weights of `random_config` with the shipped tokenizer."""

    directory: Path
    random_config: LlamaConfig | None = None
    seed: int = 0

    @classmethod
    def shipped(cls) -> ModelChoice:
        return cls(default_model_dir())

    @classmethod
    def random(cls, seed: int, **sizes: Any) -> ModelChoice:
        """`sizes` under the names of config.json; the others are those of the shipped model."""
        shipped = load_checkpoint(default_model_dir()).config
        config = replace(shipped, **{"max_position_embeddings": _RANDOM_POSITIONS} | sizes)
        return cls(default_model_dir(), config, seed)

    def load(self) -> Checkpoint:
        if self.random_config is not None:
            return random_checkpoint(self.random_config, self.seed)
        return load_checkpoint(self.directory)

    def text(self) -> Text:
        return Text.from_file(self.directory / "tokenizer.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt and how to go on. `left_out_block` is an index into the prompt's blocks that is never pushed."""

    tokens: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.7
    seed: int = 0
    block_tokens: int = 16
    left_out_block: int | None = None
    timeout_s: float = 120.0
    request_id: str = ""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2:
            raise ConfigError(f"the prompt must have at least 2 tokens, got {len(self.tokens)}")
        Sampler(temperature=self.temperature, seed=self.seed)  # its own refusals, before anything starts
        if self.left_out_block is not None:
            self._check_left_out(self.left_out_block)
        if not self.request_id:
            object.__setattr__(self, "request_id", uuid.uuid4().hex)

    def _check_left_out(self, index: int) -> None:
        if not 0 <= index < self.prompt_blocks:
            raise ConfigError(f"leave_out_block must be in [0, {self.prompt_blocks}) for this prompt, got {index}")
        if self.prompt_blocks == 1:
            raise ConfigError("leave_out_block 0 would leave nothing to push: the prompt has one block")

    @property
    def capacity_tokens(self) -> int:
        return len(self.tokens) + self.max_new_tokens

    @property
    def prompt_blocks(self) -> int:
        """Blocks that a prefill fills: the prompt's last token is left to whoever decodes."""
        return blocks_for(len(self.tokens) - 1, self.block_tokens)

    @property
    def pushed(self) -> list[int]:
        """Indices of the prompt's blocks that travel."""
        return [index for index in range(self.prompt_blocks) if index != self.left_out_block]

    def transfer_id(self, layer: int) -> str:
        """Known to both sides, so the receiver asks nobody for it."""
        return uuid.uuid5(uuid.UUID(self.request_id), str(layer)).hex

    def sampler(self, config: LlamaConfig) -> Sampler:
        """Never ends a text: both runs write `max_new_tokens`."""
        return Sampler(temperature=self.temperature, seed=self.seed, suppressed=config.end_token_ids)


class Reserved(NamedTuple):
    """A worker's part of its cache: ids of blocks, in their order. `memory` names where they lie, as a person would."""

    blocks: list[int]
    memory: str


class PrefillRun(NamedTuple):
    """`computed_ns[l]`: K and V of layer l lay in the cache; `span` ends with the last layer's MLP."""

    span: Span
    computed_ns: tuple[int, ...]
    receipts: tuple[Receipt, ...]

    @property
    def layers(self) -> list[Span]:
        return layer_spans(self.span.begin_ns, self.computed_ns)


class LayerReceived(NamedTuple):
    """The decode worker has seen that a layer's blocks landed in its cache."""

    layer: int
    seen_ns: int


class TokenWritten(NamedTuple):
    token: int
    written_ns: int


class AloneRun(NamedTuple):
    """The single process: its text, and the time it took."""

    tokens: tuple[int, ...]
    span: Span
