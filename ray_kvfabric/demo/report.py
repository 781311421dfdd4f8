"""What a person sees: steps with their seconds, the text as it is written, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from ray_kvfabric.demo.request import LayerReceived, TokenWritten
from ray_kvfabric.demo.summary import Summary
from ray_kvfabric.demo.text import Text

_TAIL_CHARACTERS = 200  # of the prompt, shown before the text


class Screen:
    """An Audience on a terminal, or in a file."""

    def __init__(self, console: Console, text: Text, prompt: str) -> None:
        self._console = console
        self._stream = text.stream()
        self._prompt = prompt
        self._pieces: list[str] = []
        self._is_writing = False

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A spinner while it lasts, then a line with its seconds."""
        self.end_text()
        begin = time.monotonic()
        with self._console.status(text):
            yield
        self._console.print(f"[green]done[/] {text}  [dim]{time.monotonic() - begin:.1f} s[/]", highlight=False)

    def received(self, event: LayerReceived, num_layers: int) -> None:
        self._console.print(
            f"[green]done[/] layer {event.layer + 1} of {num_layers} landed in the decode worker's cache",
            highlight=False,
        )

    def written(self, event: TokenWritten) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._show("\n..." + self._prompt[-_TAIL_CHARACTERS:], "dim")
        self._pieces.append(self._stream.push(event.token))
        self._show(self._pieces[-1], "bold")

    def end_text(self) -> None:
        """Puts the cursor at the beginning of a line, also when the text broke off."""
        if self._is_writing:
            self._is_writing = False
            self._pieces.append(self._stream.finish())
            self._show(self._pieces[-1] + "\n\n", "bold")

    def _show(self, piece: str, style: str) -> None:
        self._console.print(piece, style=style, end="", markup=False, highlight=False, soft_wrap=True)

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._pieces)

    def finish(self, summary: Summary) -> None:
        self._console.print(table(summary))
        self._console.print(verdict(summary), highlight=False)


def table(summary: Summary) -> Table:
    rows = Table(title="KV blocks pushed from the prefill to the decode worker", show_header=False)
    rows.add_column(justify="left")
    rows.add_column(justify="right")
    for name, value in _rows(summary).items():
        rows.add_row(name, value)
    return rows


def _rows(summary: Summary) -> dict[str, str]:
    return {
        "blocks": f"{summary.blocks_pushed}, each of {summary.layers} layers",
        "bytes": f"{summary.bytes_pushed:,} ({summary.bytes_pushed / 2**20:.2f} MiB)",
        "from": summary.prefill_memory,
        "to": summary.decode_memory,
        "transport": summary.transport,
        "moving": f"{summary.moving_ms:.2f} ms",
        "speed": f"{summary.gbps:.2f} GB/s",
        "hidden behind compute": f"{summary.hidden_fraction:.0%} (at most {summary.hidden_limit:.0%})",
        "prefill": f"{summary.prompt_tokens - 1} tokens in {summary.prefill_ms:.0f} ms",
        "decode": f"{summary.new_tokens} tokens in {summary.decode_ms:.0f} ms "
        f"({summary.decode_tokens_per_s:.0f} a second)",
        "single process": f"{summary.single_process_ms:.0f} ms for both",
    }


def verdict(summary: Summary) -> str:
    if summary.tokens_match:
        return f"[green]All {summary.new_tokens} tokens equal those of the single process.[/]"
    return f"[red]The text differs from the single process at new token {summary.first_difference}.[/]"
