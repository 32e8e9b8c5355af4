"""Addresses from the configuration, names resolved."""

import asyncio
import socket

import pytest

from arborist.core.errors import UnavailableError
from arborist.orchestrator.directory import FixedDirectory


def resolver(monkeypatch, answers: dict[str, list[str]]) -> None:
    """Answers names as told, every other one not at all."""

    async def getaddrinfo(self, host, port, **kwargs):
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (
                socket.AF_INET6 if ":" in ip else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (ip, port),
            )
            for ip in answers[host]
        ]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)


async def test_addresses_are_taken_as_they_are():
    """An IP address needs no resolving, in either family."""
    directory = FixedDirectory(["10.0.0.1:9102", "[fd00::1]:9102"], [])
    found = await directory.snapshot()
    assert found.targets == ("10.0.0.1:9102", "[fd00::1]:9102")
    assert found.drafts == ()


async def test_a_name_stands_for_all_its_addresses(monkeypatch):
    """A headless DNS name follows its workers, one address each, repeated ones once."""
    answers = {"targets": ["10.0.0.2", "10.0.0.1", "fd00::1"], "six": ["fd00::2"]}
    resolver(monkeypatch, answers)
    directory = FixedDirectory(["targets:9102", "10.0.0.1:9102"], ["six:9101"])
    found = await directory.snapshot()
    assert found.targets == ("10.0.0.1:9102", "10.0.0.2:9102")
    assert found.drafts == ("[fd00::2]:9101",)
    answers["targets"] = ["10.0.0.3"]
    assert (await directory.snapshot()).targets == ("10.0.0.3:9102", "10.0.0.1:9102")


async def test_a_name_that_does_not_resolve_is_unavailable(monkeypatch):
    """The pool then keeps what it knows."""
    resolver(monkeypatch, {})
    with pytest.raises(UnavailableError, match="workers"):
        await FixedDirectory(["workers:9102"], []).snapshot()
