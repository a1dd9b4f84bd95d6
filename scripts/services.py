"""The real programs that the tests talk to: where they are, and how to get the ones that are missing.

`python -m scripts.services` gets what is missing and says what cannot be had; `--list` only looks. On Debian nothing
is asked: packages with many libraries are installed (as root), the others are unpacked into a cache outside the
repository, so that no daemon of theirs starts on a standard port. Kafka's jars are fetched into that cache by the
machine's Maven, the training frameworks by pip. Elsewhere one line says what is missing and how to get it.
Exit status: 0, or 1 under CI=true when something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FETCH_SECONDS_MAX = 600  # the largest set (chromium, about 100 MB of archives) over a slow line
KAFKA_VERSION = "4.1.0"
JAVA_MIN = 17  # what Kafka 4's broker is compiled for
KAFKA_POM = """<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>nantucket</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{kafka}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""
KAFKA_LAUNCHER = """#!/bin/sh
# Kafka {kafka}: runs the class that is its first argument; JAVA_OPTS go to Java.
exec java $JAVA_OPTS -cp "$(dirname "$0")/../../libs/*" "$@"
"""


REPOSITORY = Path(__file__).resolve().parent.parent
FRAMEWORKS = REPOSITORY / "requirements" / "frameworks.txt"
FRAMEWORKS_KEY = hashlib.sha256(FRAMEWORKS.read_bytes()).hexdigest()[:12]
FRAMEWORKS_LAUNCHER = """#!/bin/sh
# The Python in which PyTorch, Transformers, Lightning and JAX are installed for tests.
exec "$(dirname "$0")/../../environment/bin/python" "$@"
"""


class ServiceError(Exception):
    """A program that the tests need is not here and cannot be had; the message says which and how to get it."""


@dataclass(frozen=True)
class Service:
    """One program: the names it goes by, what needs it, and how to get it on Debian."""

    name: str
    executables: tuple[str, ...]
    needed_by: str
    packages: tuple[str, ...]
    fetch: Callable[[Service], None]
    reads: Path | None = None
    """A folder that the program reads from one place only; without it the program is as good as missing."""
    runs_on: str | None = None
    """A program in PATH that runs it; without it the program is as good as missing."""
    remedy: str = ""
    """What a person may do where no package has it."""

    def locate(self) -> Path | None:
        """Return the program in PATH, else in the cache, else None."""
        if self.reads is not None and not self.reads.exists():
            return None
        if self.runs_on is not None and shutil.which(self.runs_on) is None:
            return None
        for executable in self.executables:
            if found := shutil.which(executable):
                return Path(found)
            cached = cache_folder() / self.name / "usr" / "bin" / executable
            if os.access(cached, os.X_OK):
                return cached
        return None

    def missing(self) -> str:
        """Say in one line what is missing, for what, and how to get it."""
        remedy = f"on Debian, run as root: apt-get install {' '.join(self.packages)}" if self.packages else self.remedy
        return (
            f"{self.name} is missing (needed by {self.needed_by}): no {' or '.join(self.executables)} in PATH or in "
            f"{cache_folder()}; {remedy}"
        )


def cache_folder() -> Path:
    """Return the folder of unpacked services: $SERVICES_FOLDER, else nantucket/services in the user's cache."""
    if chosen := os.environ.get("SERVICES_FOLDER"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nantucket" / "services"


def install(service: Service) -> None:
    """Install the packages with their libraries; on Debian as root only."""
    if not on_debian() or os.geteuid() != 0:
        raise ServiceError(service.missing())
    _with_fresh_lists(["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *service.packages])


def unpack(service: Service) -> None:
    """Unpack the packages, without their daemons and dependencies, into the cache; on Debian, root or not."""
    if not on_debian():
        raise ServiceError(service.missing())
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"{service.name}-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        _with_fresh_lists(["apt-get", "download", "--quiet=2", *service.packages], folder=Path(scratch))
        for archive in sorted(Path(scratch).glob("*.deb")):
            _run(["dpkg", "-x", str(archive), str(root)])
        target = cache_folder() / service.name
        shutil.rmtree(target, ignore_errors=True)  # what an older run left behind without the program in it
        root.rename(target)


def unpack_and_link(service: Service) -> None:
    """Unpack, and link the folder that Debian's build reads to where it was unpacked; as root only."""
    unpack(service)
    reads = service.reads
    assert reads is not None
    if not reads.exists():
        if os.geteuid() != 0:
            raise ServiceError(f"{service.missing()} ({reads} cannot be linked without root)")
        reads.unlink(missing_ok=True)  # a link into a cache that is gone
        reads.parent.mkdir(parents=True, exist_ok=True)
        reads.symlink_to(cache_folder() / service.name / reads.relative_to("/"))


def fetch_kafka(service: Service) -> None:
    """Fetch the broker's jars with Maven into the cache; Java and Maven are installed first, on Debian as root."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        install(service)
    version = java_version(_run(["java", "-version"]))
    if version < JAVA_MIN:
        raise ServiceError(f"{service.missing()} (java is version {version}, Kafka {KAFKA_VERSION} needs {JAVA_MIN})")
    cache_folder().mkdir(parents=True, exist_ok=True)
    target = cache_folder() / service.name
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"{service.name}-") as scratch:
        root = Path(scratch) / "root"
        (root / "usr" / "bin").mkdir(parents=True)
        pom = Path(scratch) / "pom.xml"
        pom.write_text(KAFKA_POM.format(kafka=KAFKA_VERSION))
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={root / 'libs'}"]
        _run(["mvn", "--batch-mode", "--quiet", "--file", str(pom), *copy])
        launcher = root / "usr" / "bin" / service.executables[0]
        launcher.write_text(KAFKA_LAUNCHER.format(kafka=KAFKA_VERSION))
        launcher.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def fetch_frameworks(service: Service) -> None:
    """Make an environment with the training frameworks in the cache: 95 s and 5.6 GB where torch has no CPU build."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    target = cache_folder() / service.name
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f"{service.name}-") as scratch:
        root = Path(scratch) / "root"
        _run([sys.executable, "-m", "venv", str(root / "environment")])
        pip = [str(root / "environment" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        _run([*pip, "install", "--quiet", "--no-cache-dir", "--only-binary", ":all:", "-r", str(FRAMEWORKS)])
        (root / "usr" / "bin").mkdir(parents=True)
        launcher = root / "usr" / "bin" / service.executables[0]
        launcher.write_text(FRAMEWORKS_LAUNCHER)
        launcher.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        root.rename(target)


def java_version(said: str) -> int:
    """Return the number of a Java from what its ``-version`` says; 0 where it is not understood."""
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def on_debian() -> bool:
    """Return whether this machine has Debian's packages."""
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def _with_fresh_lists(command: list[str], folder: Path | None = None) -> None:
    """Run apt-get; if it fails, as it does with an old package list, update the list and run it again."""
    try:
        _run(command, folder)
    except ServiceError:
        if os.geteuid() != 0:
            raise
        _run(["apt-get", "update", "--quiet=2"])
        _run(command, folder)


def _run(command: list[str], folder: Path | None = None) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"`{' '.join(command)}` did not run to its end: {error}") from error
    if done.returncode != 0:
        last_lines = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ServiceError(f"`{' '.join(command)}` failed with exit status {done.returncode}: {last_lines}")
    return done.stdout + done.stderr


SERVICES: tuple[Service, ...] = (
    Service(
        name="cc",
        executables=("cc", "gcc", "clang"),
        needed_by="the NVML tests, which compile a fake driver library",
        packages=("gcc", "libc6-dev"),
        fetch=install,
    ),
    Service(
        name="chromium",
        executables=("chromium", "chromium-browser", "google-chrome"),
        needed_by="the tests of the live page",
        packages=("chromium", "fonts-dejavu-core"),
        fetch=install,
    ),
    Service(
        name="prometheus",
        executables=("prometheus",),
        needed_by="`nantucket bench page --peer prometheus`",
        packages=("prometheus",),
        fetch=unpack,
    ),
    Service(
        name="alertmanager",
        executables=("prometheus-alertmanager", "alertmanager"),
        needed_by="`nantucket bench page --peer prometheus`",
        packages=("prometheus-alertmanager",),
        fetch=unpack_and_link,
        reads=Path("/usr/share/prometheus/alertmanager"),
    ),
    Service(
        name="kafka",
        executables=(f"nantucket-kafka-{KAFKA_VERSION}",),
        needed_by="the tests of the Kafka bus, and benchmarks with --bus kafka",
        packages=("default-jre-headless", "maven"),
        fetch=fetch_kafka,
        runs_on="java",
    ),
    Service(
        name="frameworks",
        executables=(f"nantucket-frameworks-{FRAMEWORKS_KEY}",),
        needed_by="the tests of the SDK with PyTorch, Transformers, Lightning and JAX, and `nantucket bench sdk`",
        packages=(),
        fetch=fetch_frameworks,
        remedy=f"`python -m scripts.services` installs {FRAMEWORKS.relative_to(REPOSITORY)} there with pip",
    ),
    Service(
        name="openssl",
        executables=("openssl",),
        needed_by="the tests of TLS, which make certificates",
        packages=("openssl",),
        fetch=install,
    ),
)


def service(name: str) -> Service:
    """Return the service of that name."""
    for known in SERVICES:
        if known.name == name:
            return known
    raise ServiceError(f"no service is called {name!r}; known are {', '.join(known.name for known in SERVICES)}")


def ensure(wanted: Service) -> Path:
    """Return where the program is, getting it first where it is missing."""
    if (here := wanted.locate()) is not None:
        return here
    print(f"getting {wanted.name} ({' '.join(wanted.packages) or wanted.remedy})", file=sys.stderr)
    wanted.fetch(wanted)
    if (here := wanted.locate()) is None:
        raise ServiceError(f"{wanted.missing()} (the packages came, the program was not in them)")
    return here


def main() -> int:
    """Get every service, or with --list say where each one is."""
    parser = argparse.ArgumentParser(prog="python -m scripts.services", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only say where each program is, and get nothing")
    only_list = parser.parse_args().list
    missing = []
    for known in SERVICES:
        if only_list:
            print(f"{known.name}: {known.locate() or known.missing()}")
            continue
        try:
            ensure(known)
        except ServiceError as error:
            missing.append(f"not available: {known.name}: {error}")
    print("\n".join(missing), end="\n" if missing else "", file=sys.stderr)
    return 1 if missing and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
