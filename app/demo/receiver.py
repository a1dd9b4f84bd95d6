"""A webhook receiver as somebody else would write one, in a process of its own.

It verifies every delivery with the Standard Webhooks library, honours the delivery's id, stamps what arrives with this
machine's clocks, and writes one JSON line a delivery to standard output. The first line says where it listens.
"""

import argparse
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

BODY_BYTES_MAX = 1024 * 1024


class Handler(BaseHTTPRequestHandler):
    """One connection; it is kept open, as the sender keeps it."""

    protocol_version = "HTTP/1.1"
    webhook: Webhook
    seen: set[str]
    answer_seconds: float

    def do_POST(self) -> None:
        """Take a delivery: 204, or 401 if its signature does not fit."""
        arrived = {"time_unix": time.time(), "monotonic_ns": time.monotonic_ns()}
        length = int(self.headers.get("content-length") or 0)
        if not 0 < length <= BODY_BYTES_MAX:
            self._answer(413)
            return
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        delivery = headers.get("webhook-id", "")
        try:
            self.webhook.verify(body, headers)
        except WebhookVerificationError as error:
            self._say({**arrived, "id": delivery, "verified": False, "error": str(error)})
            self._answer(401)
            return
        repeated = delivery in self.seen
        self.seen.add(delivery)
        time.sleep(self.answer_seconds)
        self._answer(204)
        answered = {"answered_ns": time.monotonic_ns(), "id": delivery, "verified": True, "repeated": repeated}
        self._say({**arrived, **answered, "body": json.loads(body)})

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def _say(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def log_message(self, *_args: object) -> None:
        """Say nothing on standard error: what matters is in the lines on standard output."""


def main() -> None:
    """Listen until the process is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 takes a free one")
    parser.add_argument("--answer-seconds", type=float, default=0.0, help="how long it thinks before it answers")
    options = parser.parse_args()
    secret = sys.stdin.readline().strip()
    Handler.webhook, Handler.seen, Handler.answer_seconds = Webhook(secret), set(), options.answer_seconds
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    sys.stdout.write(json.dumps({"listening": server.server_address[1]}) + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
