"""What every test may use: real services, shared recordings, a folder for pictures, a loop that is never blocked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from scripts import services

pytest_plugins = ["tests.kafka_service", "tests.sdk.frameworks", "tests.e2e.machine"]
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
ARTIFACTS = REPOSITORY / "test-artifacts"
SERVER_PACKAGES = ["alerting", "app", "collectors", "dashboards", "detectors", "telemetry_bus"]
# Blocking calls inside the event loop that are allowed: (end of the file's path, function, why it may).
MAY_BLOCK: tuple[tuple[str, str, str], ...] = (
    ("app/bench/fake_driver/library.py", "_write", "a test changes what the fake driver says, in a file of a page"),
    ("collectors/registry.py", "_simulated", "its model is read once, before there is anything to wait for"),
    ("app/bench/fake_driver/library.py", "compile_fake", "a test compiles it before there is anything to wait for"),
)

# Hypothesis fails an example that takes longer than 200 ms: a timed assertion, which a busy machine breaks at random.
settings.register_profile("nantucket", deadline=None, print_blob=True)
settings.load_profile("nantucket")


@pytest.fixture(autouse=True)
def never_block_the_loop() -> Iterator[BlockBuster]:
    """Make a blocking call of the server's code inside the event loop an error, in every test."""
    with blockbuster_ctx(scanned_modules=SERVER_PACKAGES) as blockbuster:
        for function in blockbuster.functions.values():
            for file, name, _why in MAY_BLOCK:
                function.can_block_in(file, name)
        yield blockbuster


@pytest.fixture(scope="session")
def service_binary() -> Callable[[str], Path]:
    """Return the path of a real service by its name in `scripts/services.py`: `service_binary("chromium")`.

    Where the service is missing, the test is not run and the last lines of the output say so; under CI=true it fails.
    """

    def find(name: str) -> Path:
        wanted = services.service(name)
        if (path := wanted.locate()) is None:
            not_run(wanted.missing())
        return path

    return find


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder of recordings beside the repository; where it is not there, the test is not run."""
    if not SHARED.is_dir():
        pytest.skip(f"no recordings: {SHARED} is not there")
    return SHARED


@pytest.fixture
def artifacts_folder() -> Path:
    """Return the folder for what a person may want to look at afterwards, such as screenshots."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a test marked `needs_shared` where the recordings are not there."""
    if item.get_closest_marker("needs_shared") is not None and not SHARED.is_dir():
        pytest.skip(f"no recordings: {SHARED} is not there")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that may take longest, so that no core waits for one at the end; the rest stays shuffled."""
    items.sort(key=_allowed_seconds, reverse=True)


def _allowed_seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else 0.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name in the last lines each service that is missing and each test that was not run."""
    lines = [f"not available: {missing.missing()}" for missing in services.SERVICES if missing.locate() is None]
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        lines.append(f"not run: {report.nodeid} because {reason.removeprefix('Skipped: ')}")
    if lines:
        terminalreporter.section("not run")
        terminalreporter.write_line("\n".join(lines))


def not_run(reason: str) -> NoReturn:
    """Leave the running test out for a missing service; under CI=true, where nothing may be missing, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
