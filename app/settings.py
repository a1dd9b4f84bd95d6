"""The configuration: one file, the same keys as environment variables and as options of the command line.

Precedence: option, then environment (``NANTUCKET_BUS``, ``NANTUCKET_SERVE__PORT``), then file, then default. An unknown
key or a wrong type is refused with the key, the value and what is allowed.
"""

import os
import secrets
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError


class SettingsError(Exception):
    """The configuration cannot be used: the message names each key, its value and what is allowed."""


def state_folder() -> Path:
    """Where Nantucket keeps its state: root's ``/var/lib/nantucket``, else ``$XDG_STATE_HOME/nantucket``."""
    if os.geteuid() == 0 and "XDG_STATE_HOME" not in os.environ:
        return Path("/var/lib/nantucket")
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "nantucket"


def default_socket() -> Path:
    """Where the SDK looks if nobody says: root's ``/run/nantucket``, else this user's runtime or state folder."""
    if os.geteuid() == 0:
        return Path("/run/nantucket/collector.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path.home() / ".local" / "state"
    return folder / "nantucket" / "collector.sock"


class Strict(BaseModel):
    """Refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CollectSettings(Strict):
    """What a node's collector reads and where training jobs deliver."""

    hz: float = Field(default=1.0, gt=0, le=10, description="Samples a second of each GPU.")
    source: Literal["auto", "nvml", "simulated"] = Field(default="auto", description="Where GPU rows come from.")
    simulate: int = Field(default=0, ge=0, le=400_000, description="Simulated GPUs, always marked as simulated.")
    seed: int = Field(default=0, description="Seed of the simulated fleet.")
    socket: Path | None = Field(
        default=None, description="Unix socket for training jobs; default: where the SDK looks by itself."
    )
    port: int | None = Field(default=None, ge=0, le=65535, description="Authenticated loopback port for training jobs.")


class ServeSettings(Strict):
    """Where the page and the API listen."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; anything but loopback needs a token.")
    port: int = Field(default=8580, ge=0, le=65535, description="Port of the page and the API; 0 takes a free one.")
    token: SecretStr | None = Field(default=None, description="Bearer token that every reader must show.")
    public_url: str | None = Field(default=None, description="How people reach the page: the base of links in pages.")


class AlertSettings(Strict):
    """How incidents are delivered."""

    store: Path | None = Field(
        default=None, description="File of the incident store; default: alerts.sqlite in the state."
    )
    heartbeat_url: str | None = Field(
        default=None, description="Called regularly while everything works; its silence is an alarm."
    )
    runbooks: str | None = Field(default=None, description="Base URL of runbooks; the finding's kind is appended.")


class ReceiverSettings(Strict):
    """One receiver of pages."""

    type: Literal["webhook"] = Field(default="webhook", description="Kind of receiver.")
    url: str = Field(description="Where to post.")
    secret: SecretStr = Field(description="Standard Webhooks secret, whsec_...")
    tiers: tuple[Literal["page", "ticket"], ...] = Field(default=("page",), description="Which incidents it gets.")


FOREIGN = frozenset({"NANTUCKET_URL", "NANTUCKET_TOKEN", "NANTUCKET_ATTEMPT", "NANTUCKET_CONFIG"})
"""Variables with our prefix that are not keys: the SDK's, and the path of the file itself."""


class Settings(Strict):
    """Everything that can be configured. ``bus`` and ``state`` are all that most people set."""

    state: Path = Field(default_factory=state_folder, description="Folder for everything that is kept on this machine.")
    bus: str | None = Field(default=None, description="URL of the bus; default: the embedded log in the state folder.")
    node: str = Field(
        default_factory=socket.gethostname, min_length=1, max_length=200, description="Name of this node."
    )
    region: str | None = Field(default=None, description="Region of this node.")
    usd_per_gpu_hour: float = Field(
        default=2.0, ge=0, description="What an hour of one GPU costs, for the cost on a page."
    )
    collect: CollectSettings = CollectSettings()
    serve: ServeSettings = ServeSettings()
    alert: AlertSettings = AlertSettings()
    receivers: dict[str, ReceiverSettings] = Field(default_factory=dict, description="Receivers of pages, by name.")

    @property
    def bus_url(self) -> str:
        """The bus's URL, the default filled in."""
        return self.bus or (self.state / "bus").absolute().as_uri()

    @property
    def store_path(self) -> Path:
        """The file of the incident store, the default filled in."""
        return self.alert.store or self.state / "alerts.sqlite"

    @property
    def socket_path(self) -> Path:
        """The socket for training jobs: where the SDK looks by itself, or in a state folder that was chosen."""
        if self.collect.socket is not None:
            return self.collect.socket
        return default_socket() if self.state == state_folder() else self.state / "collector.sock"


def load(path: Path | None, options: Mapping[str, Any]) -> Settings:
    """The settings from ``path`` (TOML), the environment and ``options`` (nested, without what was not given).

    Raises :class:`SettingsError`, which names every key that is wrong.
    """
    from_file = _read(path) if path is not None else {}
    environment = _from_environment()
    try:
        return Settings.model_validate(_merged(_merged(from_file, environment), options))
    except ValidationError as error:
        raise SettingsError(_explain(error, path)) from error


def _from_environment() -> dict[str, Any]:
    """What the environment sets, as nested keys; refuses names that begin like ours and are none."""
    found: dict[str, Any] = {}
    for name, value in os.environ.items():
        if not name.startswith("NANTUCKET_") or name in FOREIGN:
            continue
        keys = name.removeprefix("NANTUCKET_").lower().split("__")
        at = found
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"the configuration {path} cannot be read: {error.strerror}. Name another with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the configuration {path} is not TOML: {error}") from error


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = [f"the configuration cannot be used{f' ({path}, environment and options)' if path else ''}:"]
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key; allowed here: {', '.join(_allowed(fault['loc'][:-1]))}")
        else:
            shown = "***" if "secret" in key or "token" in key else repr(fault["input"])
            lines.append(f"  {key}: found {shown}; {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return "\n".join(lines)


def _allowed(place: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in place:
        if part == "receivers":
            model = dict
        elif model is dict:
            model = ReceiverSettings
        else:
            model = model.model_fields[part].annotation
    return sorted(model.model_fields) if model is not dict else ["a name of your choice"]


def secret_of(folder: Path) -> bytes:
    """The secret from which the credentials of jobs are made; itself made on first use, for the owner only."""
    path = folder / "job-secret"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()
