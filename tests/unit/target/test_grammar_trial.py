"""The process in which schemas are tried."""

import sys
from pathlib import Path

import pytest

from arborist.target.grammar_trial import GrammarTrial

KEY = "a-key-of-16-chars"


def test_it_inherits_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles what strangers send, and needs none."""
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nprintenv > {tmp_path}/seen\necho '\"tried\"'\nexec cat > /dev/null\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("ARBORIST_CONTROLLER__API_KEYS", KEY)
    monkeypatch.setenv("ARBORIST_API_KEY", KEY)

    trial = GrammarTrial({})
    answer = trial.reason_against("{}")
    trial.close()

    assert answer == "tried"
    assert KEY not in (tmp_path / "seen").read_text()
