"""The one language that every role speaks: the schemas of the rows on the bus.

A schema is known by its id (``train/1``). It only grows: a column is added at the end, never renamed, retyped or moved,
so that a reader takes the columns it knows and reads the rest of an older row as null. Times are UTC, microseconds
since 1970. In every float column null means absent, 0.0 means zero and NaN means that arithmetic made a NaN.
"""

from enum import StrEnum

import pyarrow as pa

from telemetry_bus.metric_names import GPU_METRICS, LINK_METRICS

TIME = pa.timestamp("us", tz="UTC")
_ARROW: dict[str, pa.DataType] = {"float": pa.float32(), "double": pa.float64(), "int64": pa.int64()}


class Scope(StrEnum):
    """Whose numbers a ``train/1`` row carries. A rank is named as an origin only by rows from before a reduction."""

    MICROBATCH = "microbatch"
    SHARD = "shard"
    GLOBAL = "global"


class Severity(StrEnum):
    """How bad a finding is. By default critical pages, warning is a ticket, info is logged."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class FindingState(StrEnum):
    """Whether a finding begins trouble (or still says it) or says that it is over."""

    FIRING = "firing"
    RESOLVED = "resolved"


class EventKind(StrEnum):
    """What an ``event/1`` row tells."""

    JOB_START = "job_start"
    JOB_END = "job_end"
    NODE_INVENTORY = "node_inventory"
    XID = "xid"
    """An error code of a GPU's driver: ``code``; ``detail`` has count, action, mnemonic, origin."""
    SXID = "sxid"
    """An error code of an NVSwitch's driver."""
    KERNEL = "kernel"
    """Another line of the kernel's log that a training job feels: ``detail`` has condition and text."""
    ECC = "ecc"
    """Memory errors of a GPU that grew."""
    ROW_REMAP = "row_remap"
    """Rows of a GPU's memory were remapped, or wait for it, or could not be."""
    RECOVERY_ACTION = "recovery_action"
    """What the driver asks for a GPU has changed: ``code`` as the metric ``recovery_action``."""
    LINK = "link"
    """A network port went down, came up, flapped, or runs slower than it did."""
    GPU_USERS = "gpu_users"
    """Which jobs, ranks, pods use a GPU: told when it changes, and again from time to time."""
    DRIVER = "driver"
    CHECKPOINT_BEGIN = "checkpoint_begin"
    CHECKPOINT_END = "checkpoint_end"
    ANNOUNCED_CHANGE = "announced_change"
    PHASE = "phase"
    """A job began or ended what is no step: ``detail`` has phase and state (begin, end)."""
    HEARTBEAT = "heartbeat"
    """A training process lives while its training thread says nothing: ``detail`` has phase and idle_seconds."""
    STACK = "stack"
    """Where a process stands that says nothing: ``detail`` has frames, innermost first, of the training thread."""
    VERDICT = "verdict"
    """What a job did on a verdict: ``detail`` has outcome (shadow, called, stopped), step, bad_step, checkpoint."""
    ROWS_DROPPED = "rows_dropped"
    SPOOL = "spool"
    """What waits on a node's disk because the bus was away: frames, bytes, oldest_seconds, away."""


WITHOUT_GOODBYE = "ended without goodbye"
"""Status of a ``job_end`` event of a process that is gone and has not said so: killed, most likely."""


def _schema(*columns: tuple[str, pa.DataType], required: frozenset[str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name not in required) for name, kind in columns])


GPU = _schema(
    ("time", TIME),
    ("region", pa.string()),
    ("node", pa.string()),
    ("gpu", pa.int32()),
    ("instance", pa.string()),
    ("uuid", pa.string()),
    ("simulated", pa.bool_()),
    *((metric.name, _ARROW[metric.arrow]) for metric in GPU_METRICS),
    required=frozenset({"time", "node", "gpu", "simulated"}),
)
"""``gpu/1``: one row is one GPU (or MIG instance) at one instant."""

TRAIN = _schema(
    ("time", TIME),
    ("region", pa.string()),
    ("job", pa.string()),
    ("attempt", pa.string()),
    ("rank", pa.int32()),
    ("node", pa.string()),
    ("uuid", pa.string()),
    ("role", pa.string()),
    ("world_size", pa.int32()),
    ("dp", pa.int32()),
    ("tp", pa.int32()),
    ("pp", pa.int32()),
    ("ep", pa.int32()),
    ("step", pa.int64()),
    ("microbatch", pa.int32()),
    ("phase", pa.string()),
    ("scope", pa.string()),
    ("loss", pa.float64()),
    ("grad_norm", pa.float64()),
    ("update_norm", pa.float64()),
    ("nonfinite", pa.int64()),
    ("watched_elements", pa.int64()),
    ("total_elements", pa.int64()),
    ("first_nonfinite", pa.string()),
    ("loss_scale", pa.float64()),
    ("skipped", pa.bool_()),
    ("lr", pa.float64()),
    ("tokens", pa.int64()),
    ("step_seconds", pa.float64()),
    ("data_seconds", pa.float64()),
    ("wait_seconds", pa.float64()),
    required=frozenset({"time", "job", "attempt", "rank", "step"}),
)
"""``train/1``: one row is one rank at one step. ``nonfinite`` counts gradient elements; ``first_nonfinite`` is the
first parameter that has one, in the order in which backward produced them."""

LINK = _schema(
    ("time", TIME),
    ("region", pa.string()),
    ("node", pa.string()),
    ("kind", pa.string()),
    ("device", pa.string()),
    ("port", pa.int32()),
    ("gpu", pa.int32()),
    ("uuid", pa.string()),
    ("simulated", pa.bool_()),
    *((metric.name, _ARROW[metric.arrow]) for metric in LINK_METRICS),
    required=frozenset({"time", "node", "kind", "device", "simulated"}),
)
"""``link/1``: one row is one port of a network card, or one NVLink of a GPU, at one instant."""

METRIC = _schema(
    ("time", TIME),
    ("region", pa.string()),
    ("job", pa.string()),
    ("attempt", pa.string()),
    ("rank", pa.int32()),
    ("step", pa.int64()),
    ("name", pa.string()),
    ("layer", pa.string()),
    ("value", pa.float64()),
    required=frozenset({"time", "job", "attempt", "rank", "step", "name"}),
)
"""``metric/1``: one row is one named number of a job at a step."""

EVENT = _schema(
    ("time", TIME),
    ("region", pa.string()),
    ("kind", pa.string()),
    ("node", pa.string()),
    ("gpu", pa.int32()),
    ("uuid", pa.string()),
    ("job", pa.string()),
    ("attempt", pa.string()),
    ("rank", pa.int32()),
    ("step", pa.int64()),
    ("code", pa.int64()),
    ("message", pa.string()),
    ("detail", pa.string()),
    ("simulated", pa.bool_()),
    required=frozenset({"time", "kind", "simulated"}),
)
"""``event/1``: one row is one thing that happened. ``detail`` is a JSON object whose keys depend on the kind."""

FINDING = _schema(
    ("time", TIME),
    ("id", pa.string()),
    ("detector", pa.string()),
    ("kind", pa.string()),
    ("state", pa.string()),
    ("severity", pa.string()),
    ("region", pa.string()),
    ("job", pa.string()),
    ("attempt", pa.string()),
    ("node", pa.string()),
    ("gpu", pa.int32()),
    ("uuid", pa.string()),
    ("rank", pa.int32()),
    ("parameter", pa.string()),
    ("step", pa.int64()),
    ("onset_step", pa.int64()),
    ("onset_time", TIME),
    ("world_size", pa.int32()),
    ("ranks_affected", pa.int32()),
    ("title", pa.string()),
    ("message", pa.string()),
    ("evidence", pa.string()),
    ("causes", pa.string()),
    ("simulated", pa.bool_()),
    ("subject", pa.string()),
    required=frozenset({"time", "id", "detector", "kind", "state", "severity", "title", "simulated"}),
)
"""``finding/1``: one row is one thing that a detector says. ``time`` is event time. ``id`` is made from what the
finding is about: a detector that reads the log again says it under the same id. ``evidence`` is a JSON object,
``causes`` a JSON list of ``{"cause", "confidence", "evidence"}``. ``subject`` tells apart what may go wrong
several times over within one job or node at once: a source, a topic, a reason of refusal."""

VERDICT = _schema(
    ("time", TIME),
    ("job", pa.string()),
    ("attempt", pa.string()),
    ("step", pa.int64()),
    ("action", pa.string()),
    ("expires", TIME),
    ("nonce", pa.string()),
    ("signature", pa.string()),
    required=frozenset({"time", "job", "attempt", "step", "action", "expires", "nonce", "signature"}),
)
"""``verdict/1``: one row is one message to a job."""

TICK = _schema(("time", TIME), required=frozenset({"time"}))
"""``tick/1``: the bus's clock. Silence is found by ticks, so that a replay of the log finds the same silence."""

DEAD = _schema(
    ("time", TIME),
    ("topic", pa.string()),
    ("offset", pa.int64()),
    ("reason", pa.string()),
    ("message", pa.string()),
    ("payload_bytes", pa.int64()),
    ("payload", pa.binary()),
    ("partition", pa.int32()),
    required=frozenset({"time", "topic", "reason", "message", "payload_bytes"}),
)
"""``dead/1``: one row is one thing that could not be read, its reason, and its first bytes."""

SCHEMAS: dict[str, pa.Schema] = {
    "gpu/1": GPU,
    "link/1": LINK,
    "train/1": TRAIN,
    "metric/1": METRIC,
    "event/1": EVENT,
    "finding/1": FINDING,
    "verdict/1": VERDICT,
    "tick/1": TICK,
    "dead/1": DEAD,
}
