"""`kvfabric run`: a program written for LLM-DataDist, on this fabric instead, in the same process."""

from __future__ import annotations

import os
from typing import Any

import click

from ray_kvfabric.cli.knock import knock
from ray_kvfabric.cli.local_cluster import join_cluster, state_folder
from ray_kvfabric.cli.program import Program
from ray_kvfabric.errors import NotLinked


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is the name of a module, as for python -m.")
@click.option("--fabric", default="llm_datadist", show_default=True, help="Programs of another name do not meet.")
@click.option("--emulated-device", type=click.Choice(["host"]), help="Device caches lie in host memory.")
@click.option("--absent-peers", type=click.Choice(["loopback"]), help="A cluster that nobody runs is a mirror of one.")
@click.option("--replace", is_flag=True, help="Take the place of an installed llm_datadist too.")
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Of a Ray cluster, or local for one that only `kvfabric run` uses.  [default: the one of this host, else new]",
)
@click.option("--runtime-dir", envvar="XDG_RUNTIME_DIR", hidden=True)
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    script: str,
    arguments: tuple[str, ...],
    is_module: bool,
    fabric: str,
    emulated_device: str | None,
    absent_peers: str | None,
    replace: bool,
    address: str | None,
    runtime_dir: str | None,
) -> None:
    """Run SCRIPT, whose `import llm_datadist` finds this fabric. What follows SCRIPT is its own.

    Programs that are started in several terminals meet: all use one Ray cluster of this host. If none runs, the
    first starts one, which ends with the last.
    """
    program = Program(script, arguments, is_module)
    program.enter()
    _enter_cluster(address, runtime_dir)
    _install(replace, fabric=fabric, absent_peers=absent_peers, emulated_device=emulated_device)
    program.run()


def _enter_cluster(address: str | None, runtime_dir: str | None) -> None:
    """Makes the given cluster, or the one that all runs share, what Ray finds here and in child processes."""
    if address in (None, "local"):
        kept = join_cluster(state_folder(runtime_dir), own_only=address == "local")
        if kept.auth_mode is not None:
            os.environ.setdefault("RAY_AUTH_MODE", kept.auth_mode)
        address = kept.address
    else:
        _check(address)
    os.environ["RAY_ADDRESS"] = address


def _check(address: str) -> None:
    """Raises NotLinked where nobody listens."""
    try:
        knock(address)
    except OSError as error:
        raise NotLinked(f"no Ray cluster runs at {address} ({error})") from None


def _install(replace: bool, **options: Any) -> None:
    from ray_kvfabric.integrations import llm_datadist  # looks for a real one where the program would find it

    if not llm_datadist.install(replace=replace, **options):
        click.echo("kvfabric: an llm_datadist is installed here and stays; --replace takes its place", err=True)
