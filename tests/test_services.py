"""A missing service is never passed over in silence: `scripts/services.py` and what tests/conftest.py makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import services

REPOSITORY = Path(__file__).resolve().parent.parent
UNKNOWN = replace(services.service("prometheus"), name="nowhere", executables=("nantucket-no-such-program",))
NEEDS_PROMETHEUS = '''
"""One test that needs a service."""


def test_it(service_binary) -> None:
    """The service is there."""
    assert service_binary("prometheus").exists()
'''


def make_executable(path: Path) -> Path:
    """Put a program that does nothing at the path."""
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def run_without_services(arguments: list[str], empty: Path, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run a module of Python on a machine that has no service, no cache of them and no way to get any."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PATH": str(empty), "SERVICES_FOLDER": str(empty), "PIP_NO_INDEX": "1"} | (
        {"CI": "true"} if ci else {}
    )
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_service_in_path_is_used_before_one_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person has chosen to install wins."""
    cached = make_executable(tmp_path / "nowhere" / "usr" / "bin" / "nantucket-no-such-program")
    monkeypatch.setenv("SERVICES_FOLDER", str(tmp_path))
    assert UNKNOWN.locate() == cached
    chosen = make_executable(tmp_path / "path" / "nantucket-no-such-program")
    monkeypatch.setenv("PATH", str(chosen.parent), prepend=os.pathsep)
    assert UNKNOWN.locate() == chosen


def test_a_service_that_is_nowhere_says_what_needs_it_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: what is missing, what for, where it was looked for, what to do."""
    monkeypatch.setenv("SERVICES_FOLDER", str(tmp_path))
    assert UNKNOWN.locate() is None
    line = UNKNOWN.missing()
    assert "\n" not in line
    for part in (UNKNOWN.name, UNKNOWN.executables[0], UNKNOWN.needed_by, str(tmp_path), "apt-get install prometheus"):
        assert part in line


def test_a_service_without_what_runs_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka's jars without Java are no Kafka."""
    kafka = services.service("kafka")
    launcher = make_executable(tmp_path / "services" / "kafka" / "usr" / "bin" / kafka.executables[0])
    java = make_executable(tmp_path / "path" / "java")
    monkeypatch.setenv("SERVICES_FOLDER", str(tmp_path / "services"))
    monkeypatch.setenv("PATH", str(java.parent))
    assert kafka.locate() == launcher
    java.unlink()
    assert kafka.locate() is None


@pytest.mark.parametrize(
    ("said", "version"),
    [
        pytest.param('openjdk version "17.0.15" 2025-04-15', 17, id="17"),
        pytest.param('java version "1.8.0_392"', 1, id="8, by its old name"),
        pytest.param("no java", 0, id="something else"),
    ],
)
def test_the_version_of_java_is_read_from_what_it_says(said: str, version: int) -> None:
    """Kafka 4 does not run on an older Java: better said than found out."""
    assert services.java_version(said) == version


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """A slip in a test's service name is not a missing service."""
    with pytest.raises(
        services.ServiceError, match=r"'postgre'.*cc, chromium, prometheus, alertmanager, kafka, frameworks, openssl"
    ):
        services.service("postgre")


@pytest.mark.parametrize(("ci", "status"), [pytest.param(False, 0, id="a person"), pytest.param(True, 1, id="CI")])
def test_what_cannot_be_had_is_named_and_is_a_failure_in_ci(tmp_path: Path, ci: bool, status: int) -> None:
    """A person may go on without a service; continuous integration may not."""
    done = run_without_services(["scripts.services"], tmp_path, ci=ci)
    assert done.returncode == status
    for known in services.SERVICES:
        assert f"not available: {known.name}:" in done.stderr


def test_a_test_without_its_service_is_not_run_and_the_last_lines_say_so(tmp_path: Path) -> None:
    """Nothing is skipped silently."""
    (tmp_path / "test_one.py").write_text(NEEDS_PROMETHEUS)
    done = run_without_services(pytest_arguments(tmp_path), tmp_path, ci=False)
    assert done.returncode == 0, done.stdout
    assert "test_one.py::test_it because prometheus is missing" in done.stdout.replace("\n", " ")
    assert "not available: chromium is missing" in done.stdout


def test_a_test_without_its_service_fails_in_ci(tmp_path: Path) -> None:
    """Under CI=true nothing may be missing."""
    (tmp_path / "test_one.py").write_text(NEEDS_PROMETHEUS)
    done = run_without_services(pytest_arguments(tmp_path), tmp_path, ci=True)
    assert done.returncode == 1
    assert "prometheus is missing" in done.stdout


def pytest_arguments(folder: Path) -> list[str]:
    """Return the arguments that run the tests of another folder under this suite's own rules."""
    return [
        "pytest",
        "-c",
        str(REPOSITORY / "pyproject.toml"),
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        str(folder),
    ]
