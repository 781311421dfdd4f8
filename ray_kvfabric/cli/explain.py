"""`kvfabric explain`: which transport would carry a push to an endpoint's cache, and why no other one does."""

from __future__ import annotations

import click

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.cli.cluster import running_cluster
from ray_kvfabric.cli.output import console, print_json, table
from ray_kvfabric.cli.updown import address_option, json_option
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.control.directory import Member
from ray_kvfabric.errors import NotLinked
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import EndpointInfo, Route
from ray_kvfabric.transport.registry import Verdict, create, judge, names


@click.command()
@click.argument("cluster_id", type=click.IntRange(0, 2**64 - 1))
@click.option("--model-id", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option("--from", "source_id", type=click.IntRange(0, 2**64 - 1), help="The pushing endpoint; without it, each.")
@click.option("--name", default="default", show_default=True, help="Of the fabric.")
@address_option
@json_option
def explain(
    cluster_id: int, model_id: int, source_id: int | None, name: str, address: str | None, as_json: bool
) -> None:
    """Which transport would carry a push to the cache MODEL_ID of endpoint CLUSTER_ID."""
    with running_cluster(address):
        members = Fabric(FabricConfig(name=name)).members()
    by_id = {member.endpoint.cluster_id: member for member in members}
    route = _find(by_id, cluster_id).route(CacheName("model", 0, model_id))
    choices = [(source, judge_from(source, route)) for source in _sources(by_id, cluster_id, source_id)]
    if as_json:
        print_json([_describe(source, route, verdicts) for source, verdicts in choices])
        return
    rows = [
        (source.cluster_id, verdict.name, _said(verdict, serving(verdicts)))
        for source, verdicts in choices
        for verdict in verdicts
    ]
    title = f"to cache {route.cache.cache_id} (model_id {model_id}) of {route.endpoint}"
    console().print(table(title, (">from", "transport", "verdict"), rows))


def _find(members: dict[int, Member], cluster_id: int) -> Member:
    if cluster_id not in members:
        known = ", ".join(map(str, members)) or "none"
        raise NotLinked(f"no endpoint has cluster_id {cluster_id}; known: {known}")
    return members[cluster_id]


def _sources(members: dict[int, Member], target_id: int, source_id: int | None) -> list[EndpointInfo]:
    if source_id is not None:
        return [_find(members, source_id).endpoint]
    others = [member.endpoint for key, member in members.items() if key != target_id]
    return others or [members[target_id].endpoint]


def judge_from(source: EndpointInfo, route: Route) -> list[Verdict]:
    """As the source itself would: what it does not offer, it does not consider."""
    return [
        verdict
        if verdict.name in source.transports
        else Verdict(verdict.name, f"endpoint {source.cluster_id} does not offer it")
        for verdict in judge(map(create, names()), source, route, route.cache.memory)
    ]


def serving(verdicts: list[Verdict]) -> str | None:
    """The transport that is taken: the first that could serve."""
    return next((verdict.name for verdict in verdicts if verdict.refusal is None), None)


def _describe(source: EndpointInfo, route: Route, verdicts: list[Verdict]) -> dict[str, object]:
    return {
        "from": source.cluster_id,
        "to": route.endpoint.cluster_id,
        "cache_id": route.cache.cache_id,
        "transport": serving(verdicts),
        "verdicts": [{"transport": each.name, "refusal": each.refusal} for each in verdicts],
    }


def _said(verdict: Verdict, taken: str | None) -> str:
    if verdict.refusal is not None:
        return f"no: {verdict.refusal}"
    return "serves" if verdict.name == taken else f"could serve; {taken} is preferred"
