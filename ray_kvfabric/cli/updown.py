"""`kvfabric up FILE` and `kvfabric down NAME`: a detached fabric of the running Ray cluster."""

from __future__ import annotations

import click

from ray_kvfabric import fabric
from ray_kvfabric.cli.cluster import running_cluster
from ray_kvfabric.cli.output import console, print_json, table
from ray_kvfabric.config import FabricConfig

address_option = click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster; left out: the running one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@address_option
@json_option
def up(file: str, address: str | None, as_json: bool) -> None:
    """Start the fabric of a YAML FILE so that it stays when this command ends."""
    config = FabricConfig.from_file(file)
    with running_cluster(address):
        started = fabric.up(config)
        members = started.members()
    if as_json:
        ids = [member.endpoint.cluster_id for member in members]
        print_json({"fabric": config.name, "lifetime": "detached", "endpoints": ids})
        return
    rows = [
        (each.endpoint.cluster_id, each.endpoint.role, each.endpoint.pid, each.endpoint.node[:12], len(each.caches))
        for each in members
    ]
    console().print(table(f"fabric {config.name}: up", (">endpoint", "role", ">pid", "node", ">caches"), rows))
    click.echo(f"kvfabric down {config.name}  ends it")


@click.command()
@click.argument("name")
@address_option
@json_option
def down(name: str, address: str | None, as_json: bool) -> None:
    """End the fabric NAME: its workers, its scheduler, its placements."""
    with running_cluster(address):
        ended = fabric.down(name)
    if as_json:
        print_json({"fabric": name, "actors_ended": ended})
    else:
        click.echo(f"fabric {name}: down, {ended} actors ended")
