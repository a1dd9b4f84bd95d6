"""The configuration: one file, the same keys as environment variables and as options of the command line.

Precedence: option, then environment (``NANTUCKET_BUS``, ``NANTUCKET_SERVE__PORT``), then file, then default. An unknown
key or a wrong type is refused with the key, the value and what is allowed.
"""

import contextlib
import os
import pwd
import secrets
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from telemetry_bus.bus import SEPARATOR, Slice
from telemetry_bus.kafka_options import KafkaOptions
from telemetry_bus.metric_names import GPU_METRIC_NAMES
from telemetry_bus.runtime.secret import Secret


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


def _no_truth(value: Any) -> Any:
    """``true`` is no number, though Python and pydantic take it for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _words(value: Any) -> Any:
    """A list, or the words of one variable of the environment: ``page,ticket``."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _a_name(value: str) -> str:
    """A name that can be printed on one line and be the first part of a source's name, ``NODE/gpu``."""
    if "/" in value or not value.isprintable() or value != value.strip():
        raise ValueError("expected a name of printable characters without '/' or spaces around it")
    return value


def _bars(value: Any) -> Any:
    """A list of URLs as one text."""
    if not isinstance(value, list):
        return value
    if not (value and all(isinstance(url, str) and "://" in url and SEPARATOR not in url for url in value)):
        raise ValueError("expected a URL, or a list of URLs: file:///FOLDER, kafka://HOST:PORT")
    return SEPARATOR.join(value)


Buses = Annotated[str, BeforeValidator(_bars)]
Name = Annotated[str, AfterValidator(_a_name)]
Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]
Port = Annotated[Whole, Field(ge=0, le=65535)]


class Strict(BaseModel):
    """Refuses keys that it does not know, and numbers that are none. Its errors never show what was given."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


SourceName = Literal["auto", "nvml", "dcgm_exporter", "simulated", "kernel_log", "network", "gpu_users"]
"""The sources of a node, by their registered names, and the choice of those that fit."""


def _metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the closed set."""
    if unknown := [name for name in names if name not in GPU_METRIC_NAMES]:
        raise ValueError(f"expected names of GPU metrics (docs/metrics.md), found {', '.join(map(repr, unknown))}")
    return names


def _an_exporter(url: SecretStr) -> SecretStr:
    """Where dcgm-exporter answers; a secret, for it may carry a password."""
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL such as http://127.0.0.1:9400/metrics")
    return url


ExporterUrl = Annotated[SecretStr, AfterValidator(_an_exporter)]


def _a_user(value: str) -> int:
    if value.isascii() and value.isdecimal() and int(value) < 1 << 32:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except (KeyError, ValueError) as error:
        raise ValueError("expected the name of a user of this machine, or a number") from error


def _a_label(value: str) -> str:
    name, equals, _ = value.partition("=")
    if not (name and equals and value.isprintable()):
        raise ValueError("expected NAME=VALUE")
    return value


Label = Annotated[str, AfterValidator(_a_label)]
User = Annotated[str, AfterValidator(_a_user)]


class CollectSettings(Strict):
    """What a node's collector reads and where training jobs deliver."""

    hz: Number = Field(default=1.0, gt=0, le=10, description="Samples a second of each GPU.")
    fast: Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_metrics)] = Field(
        default=(),
        max_length=16,
        description="Metrics of GPUs that alone are read anew more often than once a second, where `hz` is above 1. "
        "None: all that are read each second.",
    )
    source: Annotated[tuple[SourceName, ...], BeforeValidator(_words)] = Field(
        default=("auto",),
        max_length=8,
        description="What is read, one or several. `auto`: `nvml` if there is a driver, and beside it the node's "
        "`kernel_log`, `network` and `gpu_users`; `dcgm_exporter` and `simulated` if they are asked for.",
    )
    dcgm_exporter: Annotated[tuple[ExporterUrl, ...], BeforeValidator(_words)] = Field(
        default=(),
        max_length=64,
        description="URLs of dcgm-exporters to read, each its `/metrics` (docs/dcgm.md).",
    )
    dcgm_seconds: Number = Field(default=10.0, ge=1, le=300, description="Seconds between two readings of them.")
    dcgm_rename: bool = Field(
        default=False, description="Give all their rows this node's name, where they give a pod's."
    )
    profile: bool = Field(
        default=True,
        description="Read profiling metrics (GPM) where the GPU has them. `nantucket profiling pause` stops that for a "
        "while.",
    )
    kernel_log: Path = Field(default=Path("/dev/kmsg"), description="Where the kernel's lines are read.")
    sysfs: Path = Field(default=Path("/sys"), description="Where the kernel shows network cards; of the host.")
    interfaces: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), max_length=64, description="Network cards and interfaces to read (`mlx5_0`, `eth0`). None: all."
    )
    procfs: Path = Field(default=Path("/proc"), description="Where the kernel shows processes; of the host.")
    pod_resources: Path = Field(
        default=Path("/var/lib/kubelet/pod-resources/kubelet.sock"),
        description="Socket on which the kubelet says which pod has which GPU.",
    )
    simulate: Whole = Field(default=0, ge=0, le=400_000, description="Simulated GPUs, always marked as simulated.")
    seed: Whole = Field(default=0, ge=0, description="Seed of the simulated fleet.")
    socket: Path | None = Field(
        default=None, description="Unix socket for training jobs; default: where the SDK looks by itself."
    )
    port: Port | None = Field(default=None, description="Authenticated loopback port for training jobs.")
    labels: Annotated[tuple[Label, ...], BeforeValidator(_words)] = Field(
        default=(),
        max_length=64,
        description="Where this node stands, `name=value`: rack=r12,switch=leaf-3. They are in the node's inventory.",
    )
    labels_file: Path | None = Field(
        default=None, description="More of them, as Kubernetes' downward API writes labels into a file."
    )
    users: Annotated[tuple[User, ...], BeforeValidator(_words)] = Field(
        default=(),
        max_length=256,
        description="Users, by name or number, whose processes may report on the socket. None: whoever may open it.",
    )
    token_required: bool = Field(
        default=False, description="Ask for the job's token on the socket too, as the port always does."
    )


def _a_slice(value: str) -> str:
    index, slash, count = value.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count) <= SLICES_MAX):
        raise ValueError(f"expected INDEX/COUNT with INDEX from 0 to COUNT - 1 and at most {SLICES_MAX} slices")
    return value


def _thresholds(value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    if value:
        # All detectors come with it: only where somebody sets one.
        from detectors import DetectorError, detector_config  # noqa: PLC0415

        for name, settings in value.items():
            try:
                detector_config(name, **settings)
            except (DetectorError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from error
    return value


class DetectSettings(Strict):
    """What one detector process reads."""

    slice: Annotated[str, AfterValidator(_a_slice)] = Field(
        default="0/1",
        description="Slice INDEX/COUNT: a fixed set of the bus's partitions, so that COUNT processes read it once "
        "between them. Two copies of one slice may run at once.",
    )

    thresholds: Annotated[dict[str, dict[str, float]], AfterValidator(_thresholds)] = Field(
        default_factory=dict,
        description="Settings of detectors other than their defaults, a table for each: [detect.thresholds.stall] "
        "floor_seconds = 300. docs/detectors.md has their names.",
    )

    @property
    def part(self) -> Slice:
        """The slice as the bus takes it."""
        index, _, count = self.slice.partition("/")
        return Slice(int(index), int(count))


class SpoolSettings(Strict):
    """What a node keeps on its own disk while the bus is away."""

    folder: Path | None = Field(
        default=None, description="Folder on a local disk, of one collector alone; default: spool in the state."
    )
    bytes: Whole = Field(
        default=1024**3,
        ge=8 * 1024**2,
        le=1024**4,
        description="What it may hold: half of it training rows, a quarter GPU rows. Beyond it the oldest go, counted.",
    )
    age_seconds: Number = Field(
        default=15_000.0, ge=60, le=86_400, description="What is older goes, counted: four hours and ten minutes."
    )


class ServeSettings(Strict):
    """Where the page and the API listen."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; anything but loopback needs a token.")
    port: Port = Field(default=8580, description="Port of the page and the API; 0 takes a free one.")
    token: SecretStr | None = Field(default=None, min_length=1, description="Bearer token that every reader must show.")
    public_url: str | None = Field(default=None, description="How people reach the page: the base of links in pages.")
    ring_mib: Whole = Field(
        default=16,
        ge=16,
        le=65_536,
        description="Memory for the newest frames of each topic, in MiB. All GPUs of a large fleet come to 85 MiB a "
        "second at 300,000 GPUs: a reader that is slower than the ring is long is moved forward.",
    )


class MetricsSettings(Strict):
    """Where a process that serves no page tells its figures."""

    host: str = Field(
        default="127.0.0.1",
        description="Address of /metrics and /healthz of collect, detect and alert; anything but loopback needs "
        "serve.token, which a scrape then shows.",
    )
    port: Port | None = Field(
        default=None, description="Port of /metrics and /healthz of collect, detect and alert; 0 takes a free one."
    )


class AlertSettings(Strict):
    """How incidents are delivered."""

    store: Path | None = Field(
        default=None, description="File of the incident store; default: alerts.sqlite in the state."
    )
    heartbeat_url: SecretStr | None = Field(
        default=None, description="Called regularly while everything works; its silence is an alarm."
    )
    runbooks: str | None = Field(default=None, description="Base URL of runbooks; the finding's kind is appended.")
    verdicts: bool = Field(
        default=False,
        description="Tell jobs that asked for it at launch to stop when their numbers are not finite, once a job and "
        "day (docs/verdicts.md). It is the switch for all of them.",
    )


class ReceiverSettings(Strict):
    """One receiver of pages."""

    type: Literal["webhook"] = Field(default="webhook", description="Kind of receiver.")
    url: SecretStr = Field(min_length=1, description="Where to post; whoever knows it can often post there too.")
    secret: SecretStr = Field(min_length=1, description="Standard Webhooks secret, whsec_...")
    tiers: Annotated[tuple[Literal["page", "ticket"], ...], BeforeValidator(_words)] = Field(
        default=("page",), description="Which incidents it gets."
    )


class GatewaySettings(Strict):
    """Where a gateway listens, how it merges, and what it lets in."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; anything but loopback needs gateway.token or gateway.client_ca.",
    )
    port: Port = Field(default=8581, description="Port of the links of collectors; 0 takes a free one.")
    http_port: Port | None = Field(
        default=8582, description="Port of POST /v1/frames and of the other HTTP entries; 0 takes a free one."
    )
    token: SecretStr | None = Field(
        default=None, min_length=1, max_length=1_024, description="Token that whoever connects must show."
    )
    cert: Path | None = Field(default=None, description="The gateway's certificate (PEM): TLS on both ports.")
    key: Path | None = Field(default=None, description="Its key (PEM); default: in the certificate's file.")
    client_ca: Path | None = Field(
        default=None, description="Authority (PEM) that must have signed the certificate of whoever connects."
    )
    group: Name | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Partition key of the frames that come straight from nodes (the rack's name, the same on each of "
        "its gateways), under which they are merged; default: this gateway's own node name.",
    )
    merge_seconds: Number = Field(
        default=0.25, ge=0, le=10, description="How long a frame may wait for others to be merged with."
    )
    in_flight_bytes: Whole = Field(
        default=256 * 1024 * 1024, ge=32 * 1024 * 1024, description="Bytes that may be under way to the bus at once."
    )
    backlog_bytes_per_second: Number = Field(
        default=100e6, ge=1024, description="Pace of the backlog of all returning nodes together."
    )
    report_seconds: Number = Field(
        default=0.5, gt=0, le=10, description="How long a finding tries the bus before this gateway pages it itself."
    )


class LinkSettings(Strict):
    """What collect (or a gateway) shows to the gateway above it."""

    token: SecretStr | None = Field(default=None, min_length=1, max_length=1_024, description="The gateway's token.")
    ca: Path | None = Field(
        default=None, description="Authority (PEM) of the gateway's certificate; default: what this machine trusts."
    )
    cert: Path | None = Field(default=None, description="This node's certificate (PEM), for mutual TLS.")
    key: Path | None = Field(default=None, description="Its key (PEM); default: in the certificate's file.")


class KafkaSettings(Strict):
    """How a Kafka-protocol cluster is spoken to (docs/kafka.md); its address is in ``bus``."""

    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="Whether connections are encrypted, and whether a user logs in."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How the user logs in."
    )
    username: str | None = Field(default=None, description="The user.")
    password: SecretStr | None = Field(default=None, min_length=1, description="The user's password.")
    ca: Path | None = Field(
        default=None, description="Authority (PEM) of the brokers' certificates; default: what this machine trusts."
    )
    cert: Path | None = Field(default=None, description="Our certificate (PEM), for mutual TLS.")
    key: Path | None = Field(default=None, description="Its key (PEM).")
    profile: Literal["default", "warpstream"] = Field(
        default="default", description="Batching and timeouts for brokers with disks, or for WarpStream's object store."
    )
    zone: Name | None = Field(
        default=None, max_length=200, description="Zone of this machine: brokers of the same zone are preferred."
    )
    produce_timeout_seconds: Number | None = Field(
        default=None,
        ge=0.5,
        le=300,
        description="How long a call may take before the bus is away; default: the profile's, 5 or 20.",
    )
    partitions: Whole | None = Field(
        default=None, ge=1, le=10_000, description="Of each telemetry topic that `bus init` makes; default: 32."
    )
    replication: Whole | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Copies of each record in topics that `bus init` makes; default: 3, or the number of brokers.",
    )

    @property
    def options(self) -> KafkaOptions:
        """What the bus wants to know."""
        return KafkaOptions(
            self.security_protocol,
            self.sasl_mechanism,
            self.username,
            secret(self.password),
            self.ca,
            self.cert,
            self.key,
            self.profile,
            self.zone,
            self.produce_timeout_seconds,
        )


PREFIX = "NANTUCKET_"
SLICES_MAX = 1_024
"""More slices than partitions read nothing."""
SECRET_BYTES = 32
SECRET_KEYS = frozenset(
    {
        "serve.token",
        "alert.heartbeat_url",
        "collect.dcgm_exporter",
        "gateway.token",
        "link.token",
        "kafka.password",
    }
)
"""Keys whose value a message never shows; all below ``receivers`` besides."""
FOREIGN = frozenset(
    {
        *("NANTUCKET_URL", "NANTUCKET_TOKEN", "NANTUCKET_TOKEN_FILE", "NANTUCKET_ATTEMPT", "NANTUCKET_STACK_SECONDS"),
        *("NANTUCKET_VERDICTS", "NANTUCKET_VERDICT_KEY", "NANTUCKET_VERDICT_KEY_FILE", "NANTUCKET_CONFIG"),
    }
)
"""Variables with our prefix that are not keys: the SDK's, and the path of the file itself."""


class Settings(Strict):
    """Everything that can be configured. ``bus`` and ``state`` are all that most people set."""

    state: Path = Field(default_factory=state_folder, description="Folder for everything that is kept on this machine.")
    bus: Buses | None = Field(
        default=None,
        description="URL of the bus; default: the embedded log in the state folder. Several (a list, or one text with "
        "a bar between them) are read as one, a bus for each region, home first.",
    )
    node: Name = Field(
        default_factory=socket.gethostname, min_length=1, max_length=200, description="Name of this node."
    )
    region: Name | None = Field(default=None, max_length=200, description="Region of this node.")
    usd_per_gpu_hour: Number = Field(
        default=2.0, ge=0, description="What an hour of one GPU costs, for the cost on a page."
    )
    collect: CollectSettings = CollectSettings()
    detect: DetectSettings = DetectSettings()
    spool: SpoolSettings = SpoolSettings()
    serve: ServeSettings = ServeSettings()
    metrics: MetricsSettings = MetricsSettings()
    alert: AlertSettings = AlertSettings()
    gateway: GatewaySettings = GatewaySettings()
    link: LinkSettings = LinkSettings()
    kafka: KafkaSettings = KafkaSettings()
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
    def spool_path(self) -> Path:
        """The folder of the spool, the default filled in."""
        return self.spool.folder or self.state / "spool"

    @property
    def socket_path(self) -> Path:
        """The socket for training jobs: where the SDK looks by itself, or in a state folder that was chosen."""
        if self.collect.socket is not None:
            return self.collect.socket
        return default_socket() if self.state == state_folder() else self.state / "collector.sock"


def secret(value: SecretStr | None) -> Secret[str] | None:
    """A secret of the configuration as the rest of the program carries it."""
    return None if value is None else Secret(value.get_secret_value())


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
    """What the environment sets, as nested keys."""
    found: dict[str, Any] = {}
    for name, value in sorted(os.environ.items()):
        if not name.startswith(PREFIX) or name in FOREIGN:
            continue
        nested: Any = value
        for key in reversed(name.removeprefix(PREFIX).lower().split("__")):
            nested = {key: nested}
        found = _merged(found, nested)
    return found


def variable(key: str) -> str:
    """The environment variable of ``key``: ``serve.port`` is ``NANTUCKET_SERVE__PORT``."""
    return PREFIX + key.upper().replace(".", "__")


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
    """``over`` laid over ``base``; what should be a section and is none stays, so that it is refused."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if not isinstance(value, Mapping) or below is None:
            result[key] = value
        elif isinstance(below, Mapping):
            result[key] = _merged(below, value)
    return result


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = [f"the configuration cannot be used{f' ({path}, environment and options)' if path else ''}:"]
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        where = f"{key} (environment {variable(key)})" if variable(key) in os.environ else key
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key; allowed here: {', '.join(_allowed(fault['loc'][:-1]))}")
        elif fault["type"] == "missing":
            lines.append(f"  {where}: missing; {_meaning(fault['loc'])}")
        elif fault["type"] in ("model_type", "dict_type"):
            allowed = ", ".join(_allowed(fault["loc"]))
            lines.append(f"  {where}: found a value; this is a section, allowed in it: {allowed}")
        else:
            lines.append(f"  {where}: found {_shown(key, fault['input'])}; {message[0].lower()}{message[1:]}")
    return "\n".join(lines)


def _shown(key: str, value: Any) -> str:
    """``value`` as a message may show it: whatever is or may hold a secret is not shown."""
    if isinstance(value, Mapping):
        return "a table"
    place = key.rstrip("0123456789").rstrip(".")  # of a list, as its items
    return "***" if key.startswith("receivers.") or place in SECRET_KEYS else repr(value)


def _meaning(place: tuple[int | str, ...]) -> str:
    field = ReceiverSettings.model_fields[str(place[-1])]
    return f"every receiver needs it ({field.description})"


def _allowed(place: tuple[int | str, ...]) -> list[str]:
    """The keys of a section; only receivers have sections of other names."""
    if place[:1] == ("receivers",):
        return sorted(ReceiverSettings.model_fields)
    section: Any = Settings.model_fields[str(place[0])].annotation if place else Settings
    return sorted(section.model_fields)


def secret_of(folder: Path) -> bytes:
    """The secret from which the credentials of jobs are made; itself made on first use, for the owner only."""
    path = folder / "job-secret"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _make_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"state: the secret {path} cannot be made or read: {error.strerror}. Choose another folder with --state."
        ) from error
    if len(secret) < SECRET_BYTES:
        raise SettingsError(f"state: the secret {path} has {len(secret)} bytes, expected {SECRET_BYTES}. Remove it.")
    return secret


def _make_secret(path: Path) -> None:
    """Write it beside its place and link it there: no other process ever reads half of it."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(beside)
    beside.unlink()
