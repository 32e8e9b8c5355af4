"""Whose request it is."""

from arborist.orchestrator.api.client_key import client_key


def test_a_key_is_known_by_its_digest() -> None:
    """One key, one client, whatever connection it comes by; the secret is not in it."""
    one = client_key([("authorization", "Bearer secret")], "ipv4:10.0.0.1:5000")
    same = client_key((("x-request-id", "7"), ("authorization", b"Bearer secret")), "")
    other = client_key([("x-api-key", "Bearer secret")], "")

    assert one == same
    assert len({one, other, client_key([("x-api-key", "other")], "")}) == 3
    assert "secret" not in one + other


def test_without_a_key_the_address_counts() -> None:
    """Connections of one host are one client, over gRPC and HTTP; empty headers are none."""
    assert client_key([], "ipv4:10.0.0.1:5000") == client_key([], "10.0.0.1:0") == "10.0.0.1"
    assert client_key([("x-api-key", "")], "ipv6:%5B::1%5D:77") == client_key([], "::1:0") == "::1"
    assert client_key([], "unix:") == "unix:"
