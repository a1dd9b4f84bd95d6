"""The ways to tell somebody: one file each, and the table of all of them."""

from collections.abc import Mapping

from alerting.receivers.receiver import Receiver
from alerting.receivers.webhook import WebhookReceiver, WebhookSettings

RECEIVERS: Mapping[str, type[WebhookSettings]] = {"webhook": WebhookSettings}
"""The ``type`` of a receiver in the configuration, and the settings that it takes."""

__all__ = ["RECEIVERS", "Receiver", "WebhookReceiver", "WebhookSettings"]
