"""What a job believes: the server signs, the SDK's own code checks, and every kind of lie counts for nothing."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nantucket import _verdict
from nantucket._verdict import Judge, NotBelieved, key_of
from telemetry_bus import verdicts
from telemetry_bus.runtime.secret import Secret

SECRET = bytes(range(32))
NOW = 1_700_000_000.0
JOB, ATTEMPT, STEP = "leviathan-7b", "123.0", 4_711
KEY = verdicts.verdict_key(SECRET, JOB)


def body(**changes: Any) -> dict[str, Any]:
    """A right verdict as it goes to the job, with some fields changed afterwards."""
    nonce = verdicts.nonce_of("finding-1")
    made = verdicts.signed(
        Secret(KEY), job=JOB, attempt=ATTEMPT, step=STEP, action=verdicts.Action.STOP, nonce=nonce, now=NOW
    )
    return {**made.body(), **changes}


def judged(message: dict[str, Any], now: float = NOW, judge: Judge | None = None) -> str:
    """The reason for which it is not believed, or nothing."""
    try:
        (judge or Judge(KEY, JOB, ATTEMPT)).believe(message, now)
    except NotBelieved as error:
        return error.reason
    return ""


def test_a_right_verdict_is_believed_and_says_which_step() -> None:
    """The server's signature and the SDK's check are one agreement, kept in two distributions."""
    verdict = Judge(KEY, JOB, ATTEMPT).believe(body(), NOW + 1.0)
    assert verdict == ("stop", STEP, NOW + verdicts.VALID_SECONDS, verdicts.nonce_of("finding-1"))


def test_signature_and_key_are_the_recorded_ones() -> None:
    """The two are released apart: a change of what is signed would be a new version."""
    assert verdicts.key_text(KEY) == "nvk1.dLQksc9Jqmznd7gm8FkxWpMsp4kh3gQkQVTeoa7OznI"
    assert body()["signature"] == "v1.7GZ1inuCywLvmSRp0oYIVrAPz25My9Gm92XK0m9w5AE"


def test_the_key_goes_to_the_job_as_a_text_and_comes_back() -> None:
    """What `nantucket job key` prints is what NANTUCKET_VERDICT_KEY takes."""
    assert key_of(f" {verdicts.key_text(KEY)}\n") == KEY


@pytest.mark.parametrize(
    "text", ["", "nvk1.", "nvk1.short", "ntk1." + "A" * 43, "nvk1." + "é" * 43, "nvk2." + "A" * 43]
)
def test_a_text_that_is_no_key_is_refused_and_not_shown(text: str) -> None:
    """A wrong secret may be a right one of something else."""
    with pytest.raises(ValueError, match="nantucket job key") as caught:
        key_of(text)
    assert len(text) < 6 or text[5:] not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"step": STEP + 1}, "forged", id="another-step"),
        pytest.param({"expires_ms": round((NOW + 800) * 1000)}, "forged", id="a-later-end"),
        pytest.param({"nonce": "another"}, "forged", id="another-nonce"),
        pytest.param({"action": "checkpoint"}, "forged", id="another-action"),
        pytest.param({"signature": "v1." + "A" * 43}, "forged", id="another-signature"),
        pytest.param({"signature": "v2" + body()["signature"][2:]}, "forged", id="another-version"),
        pytest.param({"signature": "v1.é"}, "forged", id="no-base64"),
        pytest.param({"job": "another"}, "foreign", id="another-job"),
        pytest.param({"attempt": "123.1"}, "foreign", id="another-attempt"),
        pytest.param({"step": -1}, "malformed", id="a-negative-step"),
        pytest.param({"step": True}, "malformed", id="a-true-step"),
        pytest.param({"step": float("nan")}, "malformed", id="a-nan-step"),
        pytest.param({"step": 2**63}, "malformed", id="a-huge-step"),
        pytest.param({"nonce": "n" * 65}, "malformed", id="a-long-nonce"),
        pytest.param({"job": JOB + "\0"}, "malformed", id="a-zero-byte"),
        pytest.param({"signature": None}, "malformed", id="no-signature"),
    ],
)
def test_a_verdict_that_was_altered_counts_for_nothing(changes: dict[str, Any], reason: str) -> None:
    """Each field is covered, and the reason says what is wrong."""
    assert judged(body(**changes)) == reason


def test_a_verdict_under_the_key_of_another_job_is_forged() -> None:
    """Whoever holds one job's key cannot stop another."""
    assert judged(body(), judge=Judge(verdicts.verdict_key(SECRET, "another"), JOB, ATTEMPT)) == "forged"


@pytest.mark.parametrize(
    ("after", "reason"), [(0.0, ""), (599.9, ""), (600.0, "expired"), (3_600.0, "expired"), (-300.1, "too_long")]
)
def test_a_verdict_ends_and_cannot_be_kept_for_later(after: float, reason: str) -> None:
    """An old one is void, and so is one whose end lies further off than that of any of ours."""
    assert judged(body(), NOW + after) == reason


def test_a_verdict_is_believed_once_and_a_lie_does_not_use_it_up() -> None:
    """A replay stops nothing, and whoever guesses a nonce cannot make the right one deaf."""
    judge = Judge(KEY, JOB, ATTEMPT)
    assert judged(body(step=1), judge=judge) == "forged"
    assert judged(body(), judge=judge) == ""
    assert judged(body(), judge=judge) == "repeated"


@given(
    st.dictionaries(st.sampled_from(list(body())), st.none() | st.booleans() | st.integers() | st.text() | st.floats())
)
def test_whatever_comes_is_judged_and_nothing_is_raised(changes: dict[str, Any]) -> None:
    """The collector's process is not trusted either."""
    reason = judged(body(**changes))
    assert reason in {"", *_verdict.REASONS}
    assert reason or all(body()[name] == value for name, value in changes.items() if name != "type")


def test_two_copies_of_the_alert_role_say_the_same_verdict_once() -> None:
    """The nonce comes from the finding, so the second is a repetition."""
    judge = Judge(KEY, JOB, ATTEMPT)
    second = verdicts.signed(
        Secret(KEY), job=JOB, attempt=ATTEMPT, step=STEP, action=verdicts.Action.STOP,
        nonce=verdicts.nonce_of("finding-1"), now=NOW + 0.2,
    )  # fmt: skip
    assert [judged(each, NOW + 1, judge) for each in (body(), second.body())] == ["", "repeated"]


def test_the_signature_is_safe_in_json_and_as_long_as_its_hash() -> None:
    """32 bytes of HMAC-SHA256."""
    encoded = body()["signature"].removeprefix("v1.")
    assert len(base64.urlsafe_b64decode(encoded + "=")) == 32
