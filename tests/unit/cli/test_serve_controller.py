"""`arborist serve-controller`: what it makes of flags, file and environment."""

from pathlib import Path

import pytest

from arborist.cli import serve_controller
from arborist.cli.main import main
from arborist.common.config import ArboristConfig


@pytest.mark.parametrize(
    ("flag", "variable", "text", "port"),
    [
        (None, None, "{}", None),
        ("0", None, "{}", 0),
        (None, "8123", "{}", 8123),
        (None, None, "controller: {http_port: 8000}", 8000),
        ("8124", "8123", "controller: {http_port: 8000}", 8124),
    ],
)
def test_http_is_served_where_a_port_is_set(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flag: str | None,
    variable: str | None,
    text: str,
    port: int | None,
) -> None:
    """By the flag, the environment or the file, also one that equals the default."""
    served: list[int | None] = []

    async def serve(settings: ArboristConfig, *, with_http: bool) -> None:
        served.append(settings.controller.http_port if with_http else None)

    monkeypatch.setattr(serve_controller, "_serve", serve)
    monkeypatch.setattr(serve_controller, "configure_logging", lambda *_: None)
    if variable is not None:
        monkeypatch.setenv("ARBORIST_CONTROLLER__HTTP_PORT", variable)
    path = tmp_path / "arborist.yaml"
    path.write_text(text)
    flags = [] if flag is None else [f"--http-port={flag}"]

    with pytest.raises(SystemExit):
        main(["serve-controller", "--target-addresses=a:1", f"--config={path}", *flags])

    assert served == [port]
