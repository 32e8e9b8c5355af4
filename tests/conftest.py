"""What every test stands on: a quiet environment, and no silent skip."""

import os

# Before anything imports torch: two cores are shared by several processes of a test, and a spinning
# OpenMP thread in each of them makes all of them many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Tests read nothing from outside and report nowhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
for _name in [name for name in os.environ if name.startswith(("ARBORIST_", "OTEL_"))]:
    del os.environ[_name]

import shutil
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SKIPS = pytest.StashKey["list[tuple[str, str, bool]]"]()


def _missing_tool(marker: str) -> str | None:
    """Says what a marked test lacks on this machine, or None when it can run."""
    if marker == "node":
        if not (shutil.which("node") and shutil.which("npm")):
            return "Node.js and npm"
        client = REPOSITORY / "node_modules/arborist-client"
        return None if client.exists() else "the packages of npm (make typescript)"
    if marker == "browser":
        found = any(shutil.which(name) for name in ("chromium", "chromium-browser"))
        return None if found else "Chromium"
    if marker == "buf":
        return None if (REPOSITORY / "node_modules/.bin/buf").exists() else "buf (npm ci)"
    import torch  # Late: most test runs never ask for a GPU.

    return None if torch.cuda.is_available() else "a CUDA device"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--fail-on-skip``."""
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail the run when a test is skipped for any reason but a missing GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Starts the list of skipped tests."""
    config.stash[SKIPS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests whose tool this machine does not have."""
    missing: dict[str, str | None] = {}
    for item in items:
        for marker in ("browser", "buf", "gpu", "node"):
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in missing:
                missing[marker] = _missing_tool(marker)
            if missing[marker] is not None:
                item.add_marker(pytest.mark.skip(reason=f"needs {missing[marker]}"))
                break


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Returns the reason alone, without file and line."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Notes a skipped test, and whether only a missing GPU explains it."""
    report: pytest.TestReport = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        gpu = item.get_closest_marker("gpu") is not None
        item.config.stash[SKIPS].append((report.nodeid, _skip_reason(report), gpu))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Notes a file that skipped itself as a whole."""
    report: pytest.CollectReport = yield
    if report.skipped:
        collector.config.stash[SKIPS].append((report.nodeid, _skip_reason(report), False))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run for a skip that ``--fail-on-skip`` forbids."""
    forbidden = any(not gpu for _, _, gpu in session.config.stash[SKIPS])
    passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if session.config.getoption("--fail-on-skip") and forbidden and passed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints one counted line of what was skipped and why."""
    skips = config.stash[SKIPS]
    if not skips:
        return
    counts = Counter(reason for _, reason, _ in skips)
    parts = ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))
    terminalreporter.write_line(f"tests skipped: {len(skips)}: {parts}")
    if config.getoption("--fail-on-skip"):
        for nodeid, reason, gpu in skips:
            if not gpu:
                terminalreporter.write_line(f"--fail-on-skip: {nodeid}: {reason}", red=True)
