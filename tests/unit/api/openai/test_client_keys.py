"""Whose request it is, over HTTP."""

from tests.contract.scripted_generator import ScriptedGenerator
from tests.unit.api.http_app import client_of

from arborist.orchestrator.api.client_key import client_key


async def test_the_controller_knows_whose_request_it_is() -> None:
    """The same key is the same client over HTTP as over gRPC; without one the address counts."""
    generator = ScriptedGenerator()
    body = {"prompt": [1, 2], "max_tokens": 5, "n": 2}
    async with client_of(generator) as client:
        for headers in ({"Authorization": "Bearer k"}, {"X-API-Key": "k"}, {}):
            reply = await client.post("/v1/completions", json=body, headers=headers)
            assert reply.status_code == 200, reply.text

    keys = [one.client_key for one in generator.requests]
    assert keys[0] == keys[1] == client_key([("authorization", "Bearer k")], "")
    assert keys[2] == keys[3] == client_key([("x-api-key", "k")], "")
    assert keys[4] == keys[5] == "127.0.0.1"
