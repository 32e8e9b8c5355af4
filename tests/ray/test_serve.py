"""`arborist serve`: controller, draft and target placed by Ray, found by the directory."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from arborist.v1 import generation_pb2 as pb
from tests.ray.conftest import Served, token_ids

# The first test to run waits for Ray.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def get(served: Served, path: str) -> object:
    """Returns the JSON of an HTTP GET."""
    with urllib.request.urlopen(f"http://{served.ready['http']}{path}", timeout=30) as response:
        return json.load(response)


def eventually(condition: Callable[[], bool], within_s: float = 120) -> bool:
    """Waits for a condition to hold."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.1)
    return False


def speculates(served: Served) -> bool:
    """Says whether the controller has a draft now."""
    models = served.stub.ListModels(pb.ListModelsRequest(), timeout=10).models
    return bool(models) and models[0].speculation


def test_each_part_is_a_process_of_its_own(served: Served) -> None:
    """One controller, one draft, one target, three processes."""
    parts = [served.process.replicas(one) for one in ("Controller", "DraftWorker", "TargetWorker")]

    assert [len(one) for one in parts] == [1, 1, 1]


def test_the_ready_line_tells_what_fits(served: Served) -> None:
    """KV capacity, in sessions of the model's context."""
    ready = served.ready

    assert (ready["model"], ready["draft"]) == ("tiny", "eagle_head")
    assert (ready["kv"], ready["sessions"], ready["length"]) == ("8192", "16", "512")


def test_the_http_api_answers(served: Served) -> None:
    """`/health` and `/v1/models` come through Serve."""
    assert get(served, "/health") == {"status": "ready"}
    models = get(served, "/v1/models")

    assert isinstance(models, dict)
    assert [one["id"] for one in models["data"]] == ["tiny"]


def test_a_chat_streams_over_http(served: Served) -> None:
    """The same text as over gRPC, in server-sent events that come through Serve; then metrics."""
    messages = [{"role": "user", "content": "abc"}]
    body = {"messages": messages, "max_tokens": 24, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"http://{served.ready['http']}/v1/chat/completions",
        data=json.dumps({**body, "stream_options": {"include_usage": True}}).encode(),
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        lines = [one.decode().strip() for one in response]
    events = [one.removeprefix("data: ") for one in lines if one]
    assert events.pop() == "[DONE]"
    *chunks, counts = map(json.loads, events)
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)

    same = pb.GenerateRequest(max_tokens=24, ignore_eos=True)
    same.messages.messages.add(role="user", content="abc")
    rounds = [one.round for one in served.stub.Generate(same, timeout=60)]
    assert text == "".join(one.text for one in rounds) != ""
    assert counts["usage"]["completion_tokens"] == 24
    assert counts["metrics"]["speculative_decoding"]["num_spec_steps"] < 24
    with urllib.request.urlopen(f"http://{served.ready['http']}/metrics", timeout=30) as page:
        assert b"arborist_generation_tokens_total" in page.read()


def test_the_grpc_port_has_health_and_reflection(served: Served) -> None:
    """The controller's own port says SERVING and names its service."""
    with grpc.insecure_channel(served.ready["grpc"]) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="arborist.v1.GenerationService"), timeout=10
        )
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(iter(stub.ServerReflectionInfo(asked, timeout=10)))

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    names = [one.name for one in answer.list_services_response.service]
    assert "arborist.v1.GenerationService" in names


def test_speculation_says_what_plain_decoding_says(served: Served) -> None:
    """Same tokens with and without a draft, in fewer rounds than tokens only with one."""
    drafted = served.generate(speculation=True)
    plain = served.generate(speculation=False)

    assert token_ids(drafted) == token_ids(plain)
    assert len(token_ids(plain)) == len(plain) == 24
    assert any(one.num_draft_tokens for one in drafted)


def test_a_trace_joins_all_three_processes(served: Served) -> None:
    """Every worker's span hangs below a span of the controller, in one tree per request."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]), max_tokens=8)
    events = list(served.stub.Generate(request, timeout=60))
    trace_id = events[0].started.trace_id
    rounds = [one.round for one in events if one.HasField("round")]

    def spans() -> list[dict]:
        lines = served.trace_file.read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["trace_id"] == trace_id]

    assert eventually(lambda: any(one["name"] == "generate" for one in spans()), 30)
    assert eventually(
        lambda: (
            {one["parent_span_id"] for one in spans()} - {""} <= {one["span_id"] for one in spans()}
        ),
        30,
    )
    services = {one["service"] for one in spans()}
    assert services == {"arborist-controller", "arborist-draft", "arborist-target"}
    assert len([one for one in spans() if one["parent_span_id"] == ""]) == 1
    delivered = [one for one in spans() if one["name"] == "round"]
    assert len(delivered) == len([one for one in rounds if one.round_index >= 0])


def test_a_lost_draft_changes_no_token_and_comes_back(served: Served) -> None:
    """Killed in the middle of things: the output stays, Serve brings another one."""
    expected = token_ids(served.generate(speculation=False, max_tokens=64))
    (worker,) = served.process.replicas("DraftWorker")
    worker.kill()

    assert token_ids(served.generate(max_tokens=64)) == expected
    assert eventually(lambda: speculates(served) and not worker.alive)
    assert any(one.num_draft_tokens for one in served.generate())


def test_a_lost_target_comes_back(served: Served) -> None:
    """Serve starts another one, the controller finds it at its new address, tokens stay."""
    expected = token_ids(served.generate())
    (worker,) = served.process.replicas("TargetWorker")
    worker.kill()
    assert eventually(lambda: not worker.alive)

    codes: list[grpc.StatusCode] = []

    def answers() -> bool:
        try:
            return token_ids(served.generate()) == expected
        except grpc.RpcError as error:
            codes.append(error.code())
            return False

    assert eventually(answers)
    assert set(codes) <= {grpc.StatusCode.UNAVAILABLE}
    assert eventually(lambda: speculates(served))


def test_a_lost_directory_is_no_loss(served: Served) -> None:
    """Controllers keep what they know; the directory comes back and fills up again."""
    (directory,) = served.process.directory_actor()
    directory.kill()
    assert eventually(lambda: not directory.alive)

    assert len(token_ids(served.generate())) == 24
    assert eventually(lambda: bool(served.process.directory_actor()))
    assert speculates(served)


def test_a_port_in_use_is_one_line(served: Served) -> None:
    """The second server starts nothing and says what to do."""
    port = served.ready["grpc"].rpartition(":")[2]
    arguments = ("serve", "--grpc-port", port, "--port", "0")
    done = subprocess.run(
        [sys.executable, "-m", "arborist.cli.main", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 2
    assert f"controller.grpc_port = {port}: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
