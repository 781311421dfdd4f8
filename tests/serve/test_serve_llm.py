"""Over HTTP through Ray Serve LLM, as a user deploys it, every engine in processes of its own: the right answers,
whatever each side has cached, whoever hangs up or is refused, and whichever replica is killed.

`make stress-serve` runs many endings of each kind, `make test-serve` a few.
"""

from __future__ import annotations

import os
import random
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from ray import serve

from ray_kvfabric.fabric import Fabric
from tests.serve.deployment import TOKENS, Deployment, arguments, free_port
from tests.serve.engine import Engine
from tests.serve.load import DEADLINE_S, Answers, Load, Replicas, hang_up
from tests.serve.trio import MODEL, VERSION, prompts

ABORTS = int(os.environ.get("ABORTS", "24"))
DEATHS = int(os.environ.get("DEATHS", "1"))
SEED = int(os.environ.get("SEED", "5"))
REPLICAS = (2, 2 if DEATHS > 1 else 1)  # of prefill and decode; every second death is a decode replica's
GREEDY = {"temperature": 0.5, "top_k": 1}  # temperature 0 allows one answer only
SHRINKS = {  # from two replicas to one, as soon as may be
    "min_replicas": 1, "initial_replicas": 2, "max_replicas": 2, "target_ongoing_requests": 8,
    "downscale_delay_s": 3, "upscale_delay_s": 600, "metrics_interval_s": 1, "look_back_period_s": 2,
}  # fmt: skip
LEAVE_S = 5.0  # less than a lease
METRICS = ("bytes_pushed", "bytes_received", "receives")
LENGTHS = (5, 40, 64, 150, 301, 500, 800, 1200, 90, 190, 290, 390, 640, 960, 1100, 1700)


@pytest.fixture(scope="module")
def answers() -> Answers:
    args = arguments("unused", (1, 1), MODEL)["decode_config"]["engine_kwargs"]
    del args["kv_transfer_config"]
    engine = Engine({"model": str(MODEL), "disable_log_stats": True, **args}).wait_up()
    asked = prompts(LENGTHS, seed=SEED)
    for index, prompt in enumerate(asked):
        engine.add(str(index), prompt, TOKENS)
    right = [engine.wait(str(index))["token_ids"] for index in range(len(asked))]
    engine.close()
    return Answers(list(zip(asked, right, strict=True)), random.Random(SEED))


@pytest.fixture(scope="module")
def port(address: str) -> Iterator[int]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture(scope="module")
def split(port: int, answers: Answers, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    probes = tmp_path_factory.mktemp("split")
    deployment = Deployment("split", port, arguments("http", REPLICAS, probes), probes)
    deployment.start()
    return deployment


def test_the_answers_are_those_of_an_undivided_engine_whatever_each_side_has_cached(
    split: Deployment, answers: Answers
) -> None:
    assert f"vllm-{VERSION}." in split.fingerprint(answers.prompts[0])
    for forgotten in ((), (), ("Prefill",), ("Decode",), ("Prefill", "Decode")):
        for side in forgotten:
            split.forget_prefixes(side)
        assert split.complete_all(answers.prompts) == answers.right, f"once {forgotten} had forgotten"
    split.settle()


def test_calls_with_several_prompts_or_answers_get_each_the_right_one(split: Deployment, answers: Answers) -> None:
    several, right = answers.prompts[4:8], answers.right[4:8]
    split.forget_prefixes("Prefill")
    split.forget_prefixes("Decode")
    choices = split.post("completions", prompt=several, max_tokens=TOKENS)["choices"]
    assert [each["token_ids"] for each in sorted(choices, key=lambda each: each["index"])] == right
    fields = {"max_tokens": TOKENS, "n": 3, "min_tokens": 5, **GREEDY}
    choices = split.post("completions", prompt=several[0], **fields)["choices"]
    assert [each["token_ids"] for each in choices] == [right[0]] * 3
    split.settle()


def test_a_chat_gets_the_answer_that_its_rendered_prompt_gets(split: Deployment) -> None:
    words = [
        {"role": "user", "content": "Describe a module that reads files, and what it returns when there is none. " * 9}
    ]
    chat = split.post("chat/completions", messages=words, max_tokens=TOKENS)
    rendered = split.post("completions", prompt=chat["prompt_token_ids"], max_tokens=TOKENS)
    assert chat["choices"][0]["token_ids"] == rendered["choices"][0]["token_ids"]
    split.settle()


def test_what_was_pushed_is_counted_at_rays_metrics_endpoint(split: Deployment, answers: Answers) -> None:
    split.complete_all(answers.prompts[:4])
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 40
    while True:  # Ray collects every ten seconds
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = {
            name: sum(map(float, re.findall(rf"^\S*kvfabric_{name}\S* (\S+)$", text, re.MULTILINE))) for name in METRICS
        }
        if all(found.values()):
            break
        assert time.monotonic() < end, found
        time.sleep(1)


def test_callers_that_hang_up_or_are_refused_cost_no_block_and_nobody_elses_answer(
    split: Deployment, answers: Answers
) -> None:
    rng = random.Random(SEED)
    fates = [rng.choice(["hang up", "hang up", "refused", "answered"]) for _ in range(ABORTS)]

    def live(fate: str, pair: tuple[list[int], list[int]], after_s: float) -> str:
        prompt, right = pair
        if fate == "hang up":
            hang_up(split, prompt, after_s)
        elif fate == "refused":
            with pytest.raises(RuntimeError, match="400"):
                split.complete(prompt * 500, timeout_s=DEADLINE_S)
        else:
            assert split.complete(prompt, timeout_s=DEADLINE_S) == right
        return fate

    with ThreadPoolExecutor(6) as threads:
        done = [threads.submit(live, fate, answers.pick(), rng.random() * 0.4) for fate in fates]
        print(dict(Counter(each.result(timeout=DEADLINE_S * ABORTS) for each in done)))
    split.settle()
    assert split.complete_all(answers.prompts) == answers.right
    split.settle()


def test_replicas_that_are_killed_under_load_harm_nobody_else(split: Deployment, answers: Answers) -> None:
    rng = random.Random(SEED)
    sides = {side: Replicas(split, side) for side in ("Prefill", "Decode")}
    for number in range(DEATHS):
        side = ("Prefill", "Decode")[number % 2]
        before = {name: set(each.now()) for name, each in sides.items()}
        assert [len(each) for each in before.values()] == list(REPLICAS)
        load = Load(split, answers)
        time.sleep(1.0 + rng.random())
        victim = rng.choice(sorted(before[side]))
        sides[side].kill_busy(victim)
        time.sleep(5.0)
        load.stop()
        print(f"{side} killed: {dict(load.told)}, the longest answer took {load.longest_s:.1f} s")
        assert load.told["WRONG"] == load.told["HUNG"] == 0
        assert load.told["right"] > 0
        if side == "Prefill":
            assert load.told["error"] == 0, "the decode side computes what a lost prefill does not bring"
        sides[side].wait_for(2)
        for name, pids in before.items():
            assert pids - set(sides[name].now()) == ({victim} if name == side else set()), "what was not killed runs on"
        split.settle()
        assert len(split.engines()) == sum(REPLICAS)


@pytest.mark.slow
def test_a_replica_that_is_scaled_away_sends_first_what_it_has_promised(
    port: int, answers: Answers, tmp_path: Path
) -> None:
    args = arguments("http-scaled", (2, 1), tmp_path)
    options = args["prefill_config"]["deployment_config"]
    del options["num_replicas"]
    options["autoscaling_config"] = SHRINKS
    deployment = Deployment("scaled", port, args, tmp_path)
    deployment.start()
    prefills = Replicas(deployment, "Prefill")
    load = Load(deployment, answers, threads=2)
    end = time.monotonic() + 90
    while len(prefills.now()) > 1:
        assert time.monotonic() < end
        time.sleep(0.2)
    with Fabric.connect("http-scaled") as fabric:  # the engine, a process of the replica's, may end after it
        end = time.monotonic() + LEAVE_S
        while (roles := Counter(member.endpoint.role for member in fabric.members())) != {"PROMPT": 1, "DECODER": 1}:
            assert time.monotonic() < end, f"it has not left the fabric: {roles}"
            time.sleep(0.2)
    time.sleep(2.0)
    load.stop()
    assert set(load.told) == {"right"}
    failed = sum(told.failed for told in deployment.engines().values())
    assert failed <= 2, "nothing had to be computed again, but what Serve handed to a replica that was gone already"
    deployment.settle()
    serve.delete("scaled")


@pytest.mark.slow
def test_a_prefill_that_writes_nothing_gives_other_answers(answers: Answers, port: int, tmp_path: Path) -> None:
    """The negative control."""
    args = arguments("http-broken", (1, 1), tmp_path, "tests.serve.broken")
    deployment = Deployment("broken", port, args, tmp_path)
    deployment.start()
    got = deployment.complete_all(answers.prompts)
    for prompt, right, mine in zip(answers.prompts, answers.right, got, strict=True):
        assert mine != right or len(prompt) < 8, f"a prompt of {len(prompt)} tokens"
    serve.delete("broken")
