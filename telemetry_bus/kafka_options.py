"""How a Kafka-protocol cluster is spoken to: what a deployment says of it besides its address.

Apart from the bus itself, so that who never speaks to a cluster does not load its client. What each is for stands in
docs/kafka.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from telemetry_bus.runtime.secret import Secret

SecurityProtocol = Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
ProfileName = Literal["default", "warpstream"]

TIMEOUT_SECONDS: Mapping[ProfileName, float] = {"default": 5.0, "warpstream": 20.0}
"""A partition has a new leader within seconds. WarpStream's object storage takes 0.4 s at p99, and an agent that goes
away costs a retry: 20 s hold many of them."""


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Everything but the address. ``produce_timeout_seconds`` of None is the profile's."""

    security_protocol: SecurityProtocol = "plaintext"
    sasl_mechanism: SaslMechanism = "SCRAM-SHA-512"
    username: str | None = None
    password: Secret[str] | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    profile: ProfileName = "default"
    zone: str | None = None
    produce_timeout_seconds: float | None = None

    @property
    def timeout_seconds(self) -> float:
        """How long a call may take before the bus is said to be away."""
        if self.produce_timeout_seconds is not None:
            return self.produce_timeout_seconds
        return TIMEOUT_SECONDS[self.profile]
