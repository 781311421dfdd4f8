"""Text to tokens and back. Whether a prompt opens with a special token is the tokenizer.json's own decision.

The shipped one puts <|endoftext|> before each prompt: in training it stood between documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ray_kvfabric.errors import ConfigError

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Text:
    """A tokenizer, reduced to what the demo asks of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: Path) -> Text:
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # tokenizers raises no narrower class for a malformed file
            raise ConfigError(f"{path} cannot be read: {error}") from error

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Special tokens are left out."""
        return self._tokenizer.decode(list(tokens))

    def stream(self) -> TextStream:
        return TextStream(self)


class TextStream:
    """Turns tokens into text as they come, holding back characters whose bytes are still incomplete."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._shown: list[int] = []  # the tokens before the pending ones, for decoders that look back
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """What this token adds to the text, which may be nothing yet."""
        self._pending.append(token)
        added = self._added()
        return "" if added.endswith(_INCOMPLETE) else self._show(added)

    def finish(self) -> str:
        """What was held back, with replacement characters for bytes that never became a character."""
        return self._show(self._added())

    def _added(self) -> str:
        before = self._text.decode(self._shown)
        return self._text.decode(self._shown + self._pending)[len(before) :]

    def _show(self, added: str) -> str:
        if self._pending:
            self._shown, self._pending = self._pending, []
        return added
