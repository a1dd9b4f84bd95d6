"""Alertmanager's webhook receiver of ``bench page --peer prometheus``: stamps what arrives and prints it."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_BYTES_MAX = 16 * 1024 * 1024


class Handler(BaseHTTPRequestHandler):
    """One connection; it is kept open, as the sender keeps it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a notification: 204."""
        arrived = time.monotonic_ns()
        body = json.loads(self.rfile.read(min(int(self.headers["content-length"]), BODY_BYTES_MAX)))
        alerts = [{"status": alert["status"], "labels": alert["labels"]} for alert in body["alerts"]]
        sys.stdout.write(json.dumps({"monotonic_ns": arrived, "alerts": alerts}) + "\n")
        sys.stdout.flush()
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing on standard error."""


def main() -> None:
    """Listen on a free loopback port until the process is told to end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(json.dumps({"listening": server.server_address[1]}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
