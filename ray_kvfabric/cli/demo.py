"""kvfabric demo: a prompt prefilled by one actor and continued by another, from KV blocks pushed in between."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ray_kvfabric.demo.checkpoint import default_prompt
from ray_kvfabric.demo.place import RESOURCES, Place
from ray_kvfabric.demo.report import Screen
from ray_kvfabric.demo.request import ModelChoice, Request
from ray_kvfabric.demo.run import run
from ray_kvfabric.demo.summary import summarize
from ray_kvfabric.demo.timeline import draw, require_matplotlib

_AT_LEAST_1 = click.IntRange(min=1)
_SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
}


def _size_options(command: Any) -> Any:
    for name, field in reversed(_SIZES.items()):
        option = click.option(f"--{name.replace('_', '-')}", type=_AT_LEAST_1, help=f"{field} of random weights.")
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False)
@click.option("--prompt-file", type=click.File(), help="Reads the prompt from a file, or - for stdin.")
@click.option("--max-new-tokens", type=_AT_LEAST_1, default=96, show_default=True)
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of draws and random weights.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A Llama directory.")
@click.option("--random-weights", is_flag=True, help="Draws the weights of a model of the sizes below.")
@_size_options
@click.option("--block-tokens", type=_AT_LEAST_1, default=16, show_default=True, help="Tokens in a block.")
@click.option(
    "--device",
    type=click.Choice(("cpu", *RESOURCES)),
    default="cpu",
    show_default=True,
    help="Where K and V of both workers lie.",
)
@click.option("--transport", metavar="NAME", help="Pushes by this one.  [default: the fabric's choice]")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draws the timeline into this file.")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object on stdout.")
@click.option(
    "--leave-out-block",
    "left_out_block",
    type=int,
    help="Does not push this block of the prompt, to show that it counts.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds for each wait.",
)
@click.option("--address", help="A Ray cluster, or local for a new one.  [default: the one of this host, else new]")
def demo(as_json: bool, plot: Path | None, address: str | None, **options: Any) -> None:
    """Splits a language model's work over two Ray actors and shows that the text is the same as without.

    One actor prefills PROMPT and pushes its KV blocks, layer by layer, into the other's cache; that one writes what
    follows. Exits with 1 when the text differs from a single process's.
    """
    if plot is not None:
        require_matplotlib()
    place = Place(options["device"], options["transport"])
    prompt = _prompt(options["prompt"], options["prompt_file"])
    model = _model(options)
    text = model.text()
    request = _request(tuple(text.encode(prompt)), options)
    screen = Screen(Console(file=sys.stderr if as_json else sys.stdout), text, prompt)
    with redirect_stdout(sys.stderr):  # Ray prints its complaints; stdout is ours
        try:
            outcome = run(model, request, screen, address, place)
        finally:
            screen.end_text()
    summary = summarize(outcome, screen.text)
    screen.finish(summary)
    if plot is not None:
        draw(outcome, summary, plot)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    if not summary.tokens_match:
        raise SystemExit(1)


def _prompt(prompt: str | None, prompt_file: Any) -> str:
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("give PROMPT or --prompt-file, not both")
    if prompt_file is not None:
        return str(prompt_file.read())
    return default_prompt() if prompt is None else prompt


def _model(options: dict[str, Any]) -> ModelChoice:
    sizes = {_SIZES[name]: options[name] for name in _SIZES if options[name] is not None}
    if sizes and not options["random_weights"]:
        raise click.UsageError("sizes are those of --random-weights")
    if options["random_weights"] and options["model"] is not None:
        raise click.UsageError("give --model or --random-weights, not both")
    if options["random_weights"]:
        return ModelChoice.random(options["seed"], **sizes)
    return ModelChoice.shipped() if options["model"] is None else ModelChoice(options["model"])


def _request(tokens: tuple[int, ...], options: dict[str, Any]) -> Request:
    names = ("max_new_tokens", "temperature", "seed", "block_tokens", "left_out_block", "timeout_s")
    return Request(tokens=tokens, **{name: options[name] for name in names})
