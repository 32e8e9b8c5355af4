"""One Ray for the whole run: `arborist serve` with the tiny golden pair."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from arborist.v1 import generation_pb2 as pb
from arborist.v1 import generation_pb2_grpc as pb_grpc
from tests.ray.serving import ServeProcess
from tests.unit.api.tokenizers import byte_level_tokenizer

PAIR = Path(__file__).resolve().parents[1] / "golden" / "eagle2"
PROMPT = (11, 42, 7, 99, 3)


@dataclass
class Served:
    """What the tests share."""

    process: ServeProcess
    ready: dict[str, str]
    trace_file: Path
    stub: pb_grpc.GenerationServiceStub

    def generate(self, *, speculation: bool = True, max_tokens: int = 24) -> list[pb.Round]:
        """Runs one greedy request; returns its rounds."""
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), max_tokens=max_tokens)
        request.ignore_eos = True
        request.speculation.enabled = speculation
        events = list(self.stub.Generate(request, timeout=60))
        return [one.round for one in events if one.HasField("round")]


def token_ids(rounds: list[pb.Round]) -> list[int]:
    """Returns the tokens of all rounds."""
    return [token for one in rounds for token in one.token_ids]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that is ready; at the end Ctrl-C must leave nothing behind."""
    folder = tmp_path_factory.mktemp("serve")
    trace_file = folder / "trace.jsonl"
    # The golden target has no tokenizer; a conversation needs one.
    target = Path(shutil.copytree(PAIR / "target", folder / "target"))
    byte_level_tokenizer()._backend.save_pretrained(target)
    config = folder / "serve.yaml"
    config.write_text(
        f"target: {{model: {target}, name: tiny, port: 0, metrics_port: 0, "
        "kv_capacity_tokens: 8192, num_threads: 1}\n"
        f"draft: {{model: {PAIR / 'eagle_head'}, port: 0, metrics_port: 0, "
        "kv_capacity_tokens: 8192, num_threads: 1}\n"
        "controller: {http_port: 0, grpc_port: 0, metrics_port: 0}\n"
        # So small a model is faster without a draft; these tests are about drafts.
        "speculation: {depth: 3, top_k: 4, num_draft_tokens: 8, adaptive: false}\n"
        "ray: {num_cpus: 2, lease_s: 3, renew_period_s: 0.5}\n"
    )
    arguments = ("--config", str(config), "--trace-file", str(trace_file))
    process = ServeProcess(*arguments, folder=folder)
    try:
        ready = process.wait_ready()
        with grpc.insecure_channel(ready["grpc"]) as channel:
            yield Served(process, ready, trace_file, pb_grpc.GenerationServiceStub(channel))
        code, left = process.stop()
        assert (code, left) == (0, [])
        assert "Traceback" not in process.log
    finally:
        process.kill()
