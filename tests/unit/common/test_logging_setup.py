"""The log: one line per event, for people or for machines."""

import json
import logging

import pytest

from arborist.common.config import TelemetryConfig
from arborist.common.logging_setup import configure_logging


@pytest.fixture(autouse=True)
def logger():
    """The package's logger, put back as it was."""
    one = logging.getLogger("arborist")
    before = (one.handlers[:], one.level, one.propagate)
    yield one
    one.handlers[:], one.level, one.propagate = before


def test_json_lines_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of the json format can be read back."""
    configure_logging(TelemetryConfig(log_format="json"), "target")
    logging.getLogger("arborist.target").info("ready %s", 'at "home"')
    line = json.loads(capsys.readouterr().err)

    assert line["message"] == 'ready at "home"'
    assert (line["level"], line["role"], line["logger"]) == ("info", "target", "arborist.target")


def test_setting_up_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The second call replaces the first."""
    for _ in range(2):
        configure_logging(TelemetryConfig(log_level="warning"), "draft")
    logging.getLogger("arborist.draft").info("not shown")
    logging.getLogger("arborist.draft").warning("shown")

    assert capsys.readouterr().err.splitlines()[0].endswith("W draft: shown")
