"""The promises of the repository itself: who may import what, what the locks pin, what the wheel carries."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
SERVER = ("alerting", "app", "collectors", "dashboards", "detectors", "telemetry_bus")

# One door per driver: module -> the file or the folder, from the root, where it may be imported.
DOORS: dict[str, str | tuple[str, ...]] = {
    "apsw": "telemetry_bus/embedded",
    "confluent_kafka": "telemetry_bus/kafka/driver/",
    "fastapi": ("dashboards/", "telemetry_bus/gateway/"),
    "faust": "detectors/agents.py",
    "google": ("telemetry_bus/gateway/", "app/follow/formats/protobuf.py"),
    "h2": "collectors/gpu_users/grpc_call.py",
    "matplotlib": "app/replay/",
    "opentelemetry": "telemetry_bus/gateway/otlp.py",
    "pynvml": ("collectors/nvml/driver", "app/bench/exporter_like.py"),  # the peer does as others do
    "sqlalchemy": "alerting/store",
    "typer": "app/",
    "uvicorn": "telemetry_bus/runtime/http_server.py",
}
# In pieces, so that this file does not name them either.
REGISTRY_HOSTS = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("maven", "org"),
        ("repo", "maven"),
        ("deb", "debian"),
    )
)


def tracked_files() -> list[Path]:
    """Return every file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    names = sorted(set(listed.stdout.decode().split("\0")) - {""})
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def sources(*folders: str) -> list[Path]:
    """Return the Python files under the folders."""
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level module) of every absolute import in the file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.lineno, node.module.partition(".")[0]


def locked(name: str) -> dict[str, list[Requirement]]:
    """Return the pins of a lock by canonical name: several where versions differ by Python or platform."""
    text = (REPOSITORY / "requirements" / name).read_text().replace("\\\n", " ")
    pins: dict[str, list[Requirement]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            pin = Requirement(line.partition(" --hash=")[0])
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


def declared(*groups: str) -> list[Requirement]:
    """Return what pyproject.toml asks for: `server` is the distribution's own dependencies, others are groups."""
    project = PYPROJECT["project"]["dependencies"]
    return [
        Requirement(line)
        for group in groups
        for line in (project if group == "server" else PYPROJECT["dependency-groups"][group])
    ]


def installed_closure(wanted: list[Requirement]) -> dict[str, str]:
    """Return name -> version of everything that the requirements bring in on this machine."""
    found: dict[str, str] = {}
    waiting = [(requirement, "") for requirement in wanted]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        key = (canonicalize_name(requirement.name), extra, tuple(sorted(requirement.extras)))
        if key in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add(key)
        distribution = importlib.metadata.distribution(requirement.name)
        found[canonicalize_name(requirement.name)] = distribution.version
        needs = [Requirement(line) for line in distribution.requires or []]
        waiting += [(need, chosen) for need in needs for chosen in ("", *requirement.extras)]
    return found


def here(pin: Requirement) -> bool:
    """Return whether the pin is meant for this Python and platform."""
    return pin.marker is None or pin.marker.evaluate()


def test_no_file_names_a_package_registry() -> None:
    """Which registry or mirror packages come from is the machine's business."""
    pattern = re.compile("|".join(re.escape(host) for host in REGISTRY_HOSTS).encode())
    naming = [
        f"{path.relative_to(REPOSITORY)}: {found[0].decode()}"
        for path in tracked_files()
        if (found := pattern.search(path.read_bytes()))
    ]
    assert naming == []


@pytest.mark.parametrize(
    ("lock", "groups"),
    [
        pytest.param("server.txt", ("server",), id="server"),
        pytest.param("build.txt", ("build",), id="build"),
        pytest.param("dev.txt", ("server", "build", "dev"), id="dev"),
    ],
)
def test_a_lock_pins_what_pyproject_asks_for_and_nothing_else(lock: str, groups: tuple[str, ...]) -> None:
    """A lock is up to date: it holds the closure of the declared requirements, in versions that they allow."""
    pins = locked(lock)
    pinned_here = {name for name, choices in pins.items() if any(here(pin) for pin in choices)}
    assert pinned_here == set(installed_closure(declared(*groups))), "run `make lock`"
    for requirement in declared(*groups):
        for pin in pins[canonicalize_name(requirement.name)]:
            (version,) = pin.specifier
            assert requirement.specifier.contains(version.version), f"{pin} is not {requirement}: run `make lock`"


def test_what_is_installed_is_what_the_lock_pins() -> None:
    """The suite runs on the pinned versions, not on what happened to be there."""
    installed = installed_closure(declared("server", "build", "dev"))
    pinned = {
        name: version.version
        for name, choices in locked("dev.txt").items()
        for pin in choices
        if here(pin)
        for version in pin.specifier
    }
    assert installed == pinned


@pytest.mark.parametrize("lock", ["server.txt", "build.txt", "dev.txt"])
def test_every_pin_has_a_hash_and_no_address(lock: str) -> None:
    """A lock says what a package is (its hash), never where it comes from."""
    text = (REPOSITORY / "requirements" / lock).read_text()
    entries = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.lstrip().startswith("#")]
    assert entries
    assert [entry for entry in entries if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)] == []
    assert "://" not in text


def test_the_smaller_locks_agree_with_the_developers_lock() -> None:
    """The demo and the image run the versions that the tests ran."""
    everything = locked("dev.txt")
    for lock in ("server.txt", "build.txt"):
        for name, pins in locked(lock).items():
            assert [str(pin.specifier) for pin in pins] == [str(pin.specifier) for pin in everything[name]]


def test_the_pages_lock_is_whole_and_has_no_address() -> None:
    """`npm ci` takes the lock on any platform: it holds every optional package that another one names."""
    lock = json.loads((REPOSITORY / "dashboards" / "web" / "package-lock.json").read_text(encoding="utf-8"))
    packages: dict[str, dict[str, Any]] = lock["packages"]
    held = {path.rpartition("node_modules/")[2] for path in packages}
    wanted = {name for package in packages.values() for name in package.get("optionalDependencies", {})}
    assert wanted - held == set(), "pin with `overrides` a version that is published for every platform"
    assert [path for path, package in packages.items() if "resolved" in package] == []


def test_the_server_imports_every_package_that_it_depends_on() -> None:
    """A dependency that nothing imports is one more thing to trust for nothing."""
    imported = {module for path in sources(*SERVER) for _, module in imported_modules(path)}
    provides: dict[str, set[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for distribution in distributions:
            provides.setdefault(canonicalize_name(distribution), set()).add(module)
    unused = [
        requirement.name
        for requirement in declared("server")
        if not provides[canonicalize_name(requirement.name)] & imported
    ]
    assert unused == []


@pytest.mark.parametrize("driver", sorted(DOORS))
def test_a_driver_has_one_door(driver: str) -> None:
    """Each driver is imported in one place, which maps its exceptions to ours; and that place does import it."""
    places = {
        str(path.relative_to(REPOSITORY)): line
        for path in sources(*SERVER)
        for line, module in imported_modules(path)
        if module == driver
    }
    outside = [f"{place}:{line}" for place, line in places.items() if not place.startswith(DOORS[driver])]
    assert outside == [], f"{driver} is imported only under {DOORS[driver]}"
    assert places, f"nothing imports {driver}: take it out of DOORS"


INTEGRATIONS = {
    "huggingface.py": {"transformers"},
    "lightning.py": {"lightning", "pytorch_lightning"},
    "jax.py": {"jax"},
}
"""Modules of the SDK that a job imports by name, each with the framework that it is for."""


def test_the_sdk_imports_the_standard_library_only() -> None:
    """A training job installs one top-level name and nothing else; an integration imports its framework, which is there
    already."""
    foreign = [
        f"{path.relative_to(REPOSITORY)}:{line}: {module}"
        for path in sources("sdk/src")
        for line, module in imported_modules(path)
        if module != "nantucket"
        and module not in sys.stdlib_module_names
        and module not in INTEGRATIONS.get(path.name, set())
    ]
    assert foreign == []
    assert sources("sdk/src")
    assert "dependencies" not in tomllib.loads((REPOSITORY / "sdk" / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import time\ntime.time()\n", id="time.time"),
        pytest.param("from time import time_ns\ntime_ns()\n", id="time_ns by name"),
        pytest.param("from datetime import UTC, datetime\ndatetime.now(UTC)\n", id="datetime.now"),
    ],
)
def test_the_linter_refuses_the_wall_clock_outside_the_clock(source: str) -> None:
    """Time comes in: only the files that pyproject.toml names, each with its reason, read the wall clock."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "concise", "-"]

    def findings(filename: str) -> str:
        return subprocess.run(
            [*command, "--stdin-filename", filename],
            input=source,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        ).stdout

    assert "TID251" in findings("detectors/stall.py")
    assert "TID251" not in findings("telemetry_bus/runtime/clock.py")


def test_every_exception_from_the_linter_is_for_a_file_that_exists() -> None:
    """An exception that nothing needs any more is taken out."""
    patterns = PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    stale = [pattern for pattern in patterns if not any(REPOSITORY.glob(pattern))]
    assert stale == []


def test_the_wheel_carries_the_built_page_and_no_source_of_it(tmp_path: Path) -> None:
    """An installed server serves the page without Node; what only a build needs stays out of the wheel."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("nantucket_server-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dashboards/web/dist/index.html" in names, "the page is not built: run `make setup`"
    assert [name for name in names if name.startswith("dashboards/web/") and "/dist/" not in name] == []
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(SERVER)


def test_the_changelog_speaks_of_the_version_that_is_built() -> None:
    """A release says what an operator has to do."""
    assert f"## {PYPROJECT['project']['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()
