"""A job's credential: who may write a job's rows.

The token of a job is an HMAC of its name under a secret of the installation, so that a collector checks it without a
list of jobs. It says nothing but "may report as this job", it does not expire, and a new secret ends all of them.
"""

import base64
import hashlib
import hmac

from telemetry_bus.runtime.secret import Secret

SECRET_BYTES_MIN = 32
"""As many as the HMAC has: a shorter secret would be the weaker part. `openssl rand 32` makes one."""
_VERSION = "ntk1"
_PURPOSE = b"nantucket job token 1\0"


def job_token(secret: bytes, job: str) -> str:
    """The token with which ``job`` reports: ``ntk1.`` and 43 characters that are safe in a URL and a header."""
    digest = hmac.new(secret, _PURPOSE + job.encode(), hashlib.sha256).digest()
    return f"{_VERSION}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


class JobCredentials:
    """Makes and checks the tokens of one secret."""

    def __init__(self, secret: Secret[bytes]) -> None:
        if len(secret.reveal()) < SECRET_BYTES_MIN:
            found, wanted = len(secret.reveal()), SECRET_BYTES_MIN
            raise ValueError(f"the secret: expected at least {wanted} random bytes (openssl rand), found {found}")
        self._secret = secret

    def __repr__(self) -> str:
        return f"JobCredentials({self._secret!r})"

    def token(self, job: str) -> str:
        """The token of ``job``."""
        return job_token(self._secret.reveal(), job)

    def check(self, job: str, token: str) -> bool:
        """Whether ``token`` is that of ``job``; the time it takes does not tell how much of it is right."""
        return hmac.compare_digest(self.token(job).encode(), token.encode("utf-8", "surrogatepass"))
