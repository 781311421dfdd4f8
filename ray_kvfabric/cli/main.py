"""`kvfabric`: the group of subcommands. A subcommand's module is imported only when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any

import click

from ray_kvfabric import __version__
from ray_kvfabric.errors import FabricError

# name: (module, what --help says); the command's object in the module is called as the command is
COMMANDS = {
    "demo": ("ray_kvfabric.cli.demo", "A prompt is prefilled by one actor and decoded by another."),
    "run": ("ray_kvfabric.cli.run", "Run a program written for LLM-DataDist on a fabric of this host."),
    "doctor": ("ray_kvfabric.cli.doctor", "What this machine can do, and what it lacks."),
    "status": ("ray_kvfabric.cli.status", "Endpoints, caches, links and transfers of a running fabric."),
    "up": ("ray_kvfabric.cli.updown", "Start a detached fabric from a YAML file."),
    "down": ("ray_kvfabric.cli.updown", "End a fabric, whoever started it."),
    "explain": ("ray_kvfabric.cli.explain", "Which transport would serve an endpoint, and why no other."),
    "bench": ("ray_kvfabric.cli.bench", "Measure pushes beside the limits of this machine."),
}


class Refusal(click.ClickException):
    """An error of the fabric as one red line; exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.secho(f"kvfabric: {' '.join(self.message.split())}", fg="red", err=True, file=file)


class LazyGroup(click.Group):
    """Knows its commands by name; --help imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name][0]
        try:
            found: click.Command = getattr(import_module(module), cmd_name)
        except (ImportError, AttributeError) as error:
            raise Refusal(f"the command {cmd_name!r} cannot be loaded: {error}") from error
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FabricError as error:
            raise Refusal(str(error) or type(error).__name__) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvfabric")
def main() -> None:
    """A Ray actor-based fabric of paged KV caches: look at it, start it, measure it."""
