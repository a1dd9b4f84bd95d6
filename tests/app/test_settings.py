"""One file, the environment and options: precedence, and one clear message for each thing that is wrong."""

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import nantucket
from app.cli import app
from app.settings import Settings, SettingsError, default_socket, load, secret_of, state_folder, variable
from detectors import NonFinite, Stall, all_detectors
from scripts.configuration_page import configuration_page, keys

SECRET = "whsec_c2VjcmV0LW9mLWEtdGVzdA=="
REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = {key.place: key.schema for key in keys()}
THIS_CALL_ONLY = {"--config", "--json", "--help", "--once", "--since", "--minutes", "--attempt", "--step"}
"""Options that say what this one call does, and configure nothing."""
OTHER_SUBJECTS = {
    "demo",
    "follow",
    "replay",
    "bench collect",
    "bench copies",
    "bench fanout",
    "bench page",
    "bench pipeline",
    "bench sdk",
    "bench spool",
}
"""Commands that read no configuration: what they do is all in their options."""


@pytest.fixture(autouse=True)
def no_foreign_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what configures Nantucket where the tests run."""
    for name in [name for name in os.environ if name.startswith("NANTUCKET_")]:
        monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    """A configuration file with `text`."""
    path = folder / "nantucket.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, **options: Any) -> list[str]:
    """The lines of the message with which the configuration `text` is refused, without the heading."""
    with pytest.raises(SettingsError) as caught:
        load(written(folder, text), options)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def nantucket_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


WRONG = {
    "unknown key": ("colour = 1", "colour: unknown key; allowed here: alert, bus, collect"),
    "unknown key of a section": ("[serve]\nprot = 1", "serve.prot: unknown key; allowed here: host, port, public_url"),
    "unknown key of a receiver": (
        f"[receivers.r]\nurl='http://h'\nsecret='{SECRET}'\nx=1",
        "receivers.r.x: unknown key",
    ),
    "text for a number": ("[serve]\nport = 'x'", "serve.port: found 'x'; input should be a valid integer"),
    "truth for a number": ("[serve]\nport = true", "serve.port: found True; expected a number"),
    "truth for a rate": ("[collect]\nhz = true", "collect.hz: found True; expected a number"),
    "number for text": ("node = 5", "node: found 5; input should be a valid string"),
    "empty name": ("node = ''", "node: found ''; string should have at least 1 character"),
    "name with a slash": ("node = 'a/b'", "node: found 'a/b'; expected a name of printable characters without '/'"),
    "name of two lines": ('node = "a\\nb"', "node: found 'a\\nb'; expected a name of printable"),
    "name that blinks": ('region = "\\u001b[5meu"', "region: found '\\x1b[5meu'; expected a name of printable"),
    "too many": ("[collect]\nsimulate = 400001", "collect.simulate: found 400001; input should be less than or equal"),
    "too few": ("[collect]\nsimulate = -1", "collect.simulate: found -1; input should be greater than or equal to 0"),
    "seed below zero": ("[collect]\nseed = -1", "collect.seed: found -1; input should be greater than or equal to 0"),
    "no port": ("[collect]\nport = 65536", "collect.port: found 65536; input should be less than or equal to 65535"),
    "not a number": ("[collect]\nhz = nan", "collect.hz: found nan; input should be a finite number"),
    "no rate": ("[collect]\nhz = 0", "collect.hz: found 0; input should be greater than 0"),
    "endless cost": ("usd_per_gpu_hour = inf", "usd_per_gpu_hour: found inf; input should be a finite number"),
    "no choice": (
        "[collect]\nsource = 'x'",
        "collect.source.0: found 'x'; input should be 'auto', 'nvml', 'dcgm_exporter', 'simulated'",
    ),
    "value for a section": ("serve = 1", "serve: found a value; this is a section, allowed in it: host, port"),
    "section for a value": ("[bus]\nx = 1", "bus: found a table; input should be a valid string"),
    "empty token": ("[serve]\ntoken = ''", "serve.token: found ***;"),
    "receiver without address": (f"[receivers.r]\nsecret = '{SECRET}'", "receivers.r.url: missing; every receiver"),
    "receiver's kind": (
        f"[receivers.r]\nurl='http://h'\nsecret='{SECRET}'\ntiers=['x']",
        "receivers.r.tiers.0: found ***; input should be 'page' or 'ticket'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_entry_of_the_file_is_one_line_with_key_value_and_what_is_allowed(tmp_path: Path, case: str) -> None:
    """Whoever mistypes reads where, what was found, and what may stand there."""
    text, begins = WRONG[case]
    lines = refusal(tmp_path, text)
    assert len(lines) == 1
    assert lines[0].startswith(begins)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Three mistakes are three lines of one message, not three attempts."""
    lines = refusal(tmp_path, "colour = 1\n[serve]\nport = -1\n[collect]\nhz = 11")
    assert sorted(line.partition(":")[0] for line in lines) == ["collect.hz", "colour", "serve.port"]


@pytest.mark.parametrize(
    "text",
    [
        f"[receivers.r]\nsecret = '{SECRET}'",
        f"[receivers.r]\nsecert = '{SECRET}'\nurl = '{SECRET}'",
        f"[receivers]\nr = '{SECRET}'",
        f"[receivers.r]\nurl = ['{SECRET}']\nsecret = ['{SECRET}']",
        f"receivers = '{SECRET}'",
        f"serve = '{SECRET}'",
        f"[serve]\ntoken = ['{SECRET}']",
        f"[serve.token]\nvalue = '{SECRET}'",
        f"[alert]\nheartbeat_url = ['{SECRET}']",
    ],
)
def test_a_message_never_shows_a_secret(tmp_path: Path, text: str) -> None:
    """However a secret was misplaced, the message that says so may be copied into a ticket."""
    assert SECRET not in "\n".join(refusal(tmp_path, text))


def test_settings_in_a_log_show_no_secret(tmp_path: Path) -> None:
    """The settings mask what is secret, the addresses of receivers included."""
    text = (
        f"[serve]\ntoken='{SECRET}'\n[alert]\nheartbeat_url='https://h/{SECRET}'\n"
        f"[receivers.r]\nurl='https://h/{SECRET}'\nsecret='{SECRET}'"
    )
    assert SECRET not in repr(load(written(tmp_path, text), {}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Away, not TOML, not text: each says which file and what is the matter."""
    with pytest.raises(SettingsError, match=r"gone\.toml cannot be read: No such file"):
        load(tmp_path / "gone.toml", {})
    with pytest.raises(SettingsError, match="is not TOML"):
        load(written(tmp_path, "a = "), {})
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(SettingsError, match="is not TOML"):
        load(tmp_path / "bytes.toml", {})


def test_the_option_wins_then_the_environment_then_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precedence holds for each key alone: what is set elsewhere in the section stays."""
    path = written(tmp_path, "[serve]\nport = 1\nhost = 'file'\npublic_url = 'file'")
    monkeypatch.setenv("NANTUCKET_SERVE__PORT", "2")
    monkeypatch.setenv("NANTUCKET_SERVE__HOST", "environment")
    serve = load(path, {"serve": {"port": 3}}).serve
    assert (serve.port, serve.host, serve.public_url) == (3, "environment", "file")


def test_a_receiver_can_come_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets reach a container by its environment."""
    monkeypatch.setenv("NANTUCKET_RECEIVERS__ONCALL__URL", "https://example.org/")
    monkeypatch.setenv("NANTUCKET_RECEIVERS__ONCALL__SECRET", SECRET)
    monkeypatch.setenv("NANTUCKET_RECEIVERS__ONCALL__TIERS", "page, ticket")
    receiver = load(None, {}).receivers["oncall"]
    assert (receiver.secret.get_secret_value(), receiver.tiers) == (SECRET, ("page", "ticket"))


@pytest.mark.parametrize(
    ("name", "value", "begins"),
    [
        ("NANTUCKET_COLOUR", "1", "colour (environment NANTUCKET_COLOUR): unknown key"),
        ("NANTUCKET_SERVE__PROT", "1", "serve.prot (environment NANTUCKET_SERVE__PROT): unknown key"),
        ("NANTUCKET_SERVE__PORT", "x", "serve.port (environment NANTUCKET_SERVE__PORT): found 'x'"),
        ("NANTUCKET_SERVE", "x", "serve (environment NANTUCKET_SERVE): found a value; this is a section"),
        ("NANTUCKET_BUS__X", "x", "bus: found a table"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, begins: str) -> None:
    """A mistake in a container's environment is found by the variable's own name."""
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("NANTUCKET_SERVE__HOST", "127.0.0.1")
    with pytest.raises(SettingsError) as caught:
        load(None, {})
    assert str(caught.value).splitlines()[1].strip().startswith(begins)


def test_variables_of_the_sdk_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that is set up for training may start `nantucket` too."""
    jobs = ("URL", "TOKEN", "TOKEN_FILE", "ATTEMPT", "STACK_SECONDS", "VERDICTS", "VERDICT_KEY", "VERDICT_KEY_FILE")
    for name in (*(f"NANTUCKET_{each}" for each in jobs), "NANTUCKET_CONFIG"):
        monkeypatch.setenv(name, "x")
    assert isinstance(load(None, {}), Settings)


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (("serve", "--port", "99999"), {}, "serve.port: found '99999'; input should be less than or equal to 65535"),
        (("job", "token", "j"), {"NANTUCKET_COLOUR": "1"}, "colour (environment NANTUCKET_COLOUR): unknown key"),
        (("serve", "--host", "0.0.0.0"), {}, "without a token"),
        (("detect", "--bus", "ftp://x"), {}, "the bus URL 'ftp://x' is not understood"),
        (
            ("alert",),
            {"NANTUCKET_RECEIVERS__R__URL": "nonsense", "NANTUCKET_RECEIVERS__R__SECRET": SECRET},
            "receivers.r.url: expected https://HOST/PATH",
        ),
        (
            ("collect", "--socket", "/proc/version/x"),
            {},
            "collect.socket: the folder of /proc/version/x cannot be made",
        ),
        (("up", "--colour"), {}, "No such option"),
        (("demo", "--simulate", "-1"), {}, "--simulate"),
        (("demo", "--linger", "inf"), {}, "expected a finite number of seconds"),
        (("tail", "--since", "inf"), {}, "expected a finite number of seconds"),
        (("tail", "weather"), {}, "weather"),
    ],
)
def test_wrong_usage_ends_the_real_command_with_status_2(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    """Standard output stays empty, the message is on standard error, and it is no traceback."""
    done = nantucket_command(*words, NANTUCKET_STATE=str(tmp_path), **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def configured_options() -> dict[str, tuple[list[str], str | None]]:
    """Each option that configures something, with the command that has it and its variable."""
    found: dict[str, tuple[list[str], str | None]] = {}
    pending: list[tuple[list[str], Any]] = [([], get_command(app))]
    while pending:
        words, command = pending.pop()
        pending += [([*words, name], below) for name, below in getattr(command, "commands", {}).items()]
        if " ".join(words) in OTHER_SUBJECTS or hasattr(command, "commands"):
            continue
        for parameter in command.params:
            name = max(parameter.opts, key=len)
            if name.startswith("--") and name not in THIS_CALL_ONLY:
                found[f"{' '.join(words)} {name}"] = (words, parameter.envvar)
    return found


OPTIONS = configured_options()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[detect.thresholds.stal]\nfloor_seconds = 5", "there is no detector 'stal'"),
        ("[detect.thresholds.stall]\nfloor = 5", "floor"),
        ("[detect.thresholds.stall]\nfloor_seconds = -5", "floor_seconds is -5.0, expected a number above zero"),
    ],
)
def test_a_threshold_that_no_detector_has_is_named(tmp_path: Path, text: str, says: str) -> None:
    """The detector, its setting, and what it may be."""
    with pytest.raises(SettingsError, match=re.escape(says)):
        load(written(tmp_path, text), {})


def test_thresholds_reach_their_detector(tmp_path: Path) -> None:
    """The others keep their defaults."""
    given = load(written(tmp_path, "[detect.thresholds.stall]\nfloor_seconds = 5"), {}).detect.thresholds
    configs = {type(config).__name__: config for config in all_detectors(given)}
    assert (configs["Stall"], configs["NonFinite"]) == (Stall(floor_seconds=5.0), NonFinite())


VALUES = {"collect.source": "simulated", "detect.slice": "3/7"}
"""A right value where it is no number."""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_a_key_and_a_variable(tmp_path: Path, option: str) -> None:
    """What the file says wrongly about a key is healed by the option and by the variable: both reach that key."""
    words, name = OPTIONS[option]
    key = next(key for key in KEYS if variable(key) == name)
    wrong = "[[x]]" if "." not in key else f"[{key.split('.', maxsplit=1)[0]}]\n{key.split('.')[1]} = ['wrong']"
    text = "usd_per_gpu_hour = 'never'\n" + (wrong if "." in key else f"{key} = ['wrong']\n")
    config = str(written(tmp_path, text))
    value = VALUES.get(key, "7")
    subject = ["x"] if words in (["job", "token"], ["job", "key"], ["alerts", "test"]) else []
    subject = ["x", "y"] if words == ["annotate"] else subject
    arguments = [*words, *subject, "--config", config]
    runner = CliRunner()
    plain = runner.invoke(app, arguments).exception
    by_option = runner.invoke(app, [*arguments, option.rsplit(maxsplit=1)[-1], value]).exception
    assert name is not None
    by_variable = runner.invoke(app, arguments, env={name: value}).exception
    assert re.search(rf"\n  {re.escape(key)}(\.0)?: found", str(plain))
    for healed in (by_option, by_variable):
        assert "usd_per_gpu_hour: found" in str(healed)
        assert key not in str(healed).replace("usd_per_gpu_hour", "").replace(config, "")


@pytest.mark.parametrize(
    ("text", "environment"),
    [('bus = ["kafka://a:1,b:2", "file:///x"]', {}), ("", {"NANTUCKET_BUS": "kafka://a:1,b:2|file:///x"})],
    ids=["file", "environment"],
)
def test_several_buses_are_a_list_or_one_text_with_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, environment: dict[str, str]
) -> None:
    """A bus for each region, home first: a comma stays what is between the brokers of one."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load(written(tmp_path, text), {}).bus_url == "kafka://a:1,b:2|file:///x"


@pytest.mark.parametrize("value", ["[]", "['wrong']", "[7]", "['file:///a|file:///b']"])
def test_a_list_of_buses_has_urls_in_it(tmp_path: Path, value: str) -> None:
    """What is no URL is refused with what is expected."""
    (line,) = refusal(tmp_path, f"bus = {value}")
    assert line.startswith("bus: found")
    assert "expected a URL, or a list of URLs" in line


def test_the_page_about_the_configuration_says_what_the_code_says() -> None:
    """`make docs` writes docs/configuration.md from the model; every key is in it, with a meaning."""
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == configuration_page()
    assert all(schema["description"] for schema in KEYS.values())
    assert len(KEYS) >= 20


def test_the_example_on_that_page_is_a_configuration(tmp_path: Path) -> None:
    """What a reader copies is taken."""
    example = configuration_page().split("```toml\n")[1].split("```")[0]
    assert load(written(tmp_path, example), {}).serve.port == tomllib.loads(example)["serve"]["port"]


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "{here}"},
        {"HOME": "{here}", "XDG_RUNTIME_DIR": "{here}/run"},
        {"HOME": "{here}", "XDG_RUNTIME_DIR": ""},
        {"HOME": "{here}", "XDG_STATE_HOME": "{here}/state"},
    ],
    ids=["home", "runtime", "empty runtime", "state"],
)
def test_the_socket_is_where_the_sdk_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    """Once a collector listens at its default place, a job that says nothing finds it."""
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(here=tmp_path))
    path = default_socket()
    if os.geteuid() == 0:
        assert path == Path("/run/nantucket/collector.sock")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert nantucket.default_url() == f"unix://{path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("runtime", [None, "run"])
def test_another_users_socket_is_where_the_sdk_looks_by_itself(runtime: str | None) -> None:
    """As for root, a user's own `nantucket up` is found by that user's jobs."""
    script = (
        "import os, json, nantucket\nfrom app.settings import default_socket\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "path = default_socket(); before = nantucket.default_url()\n"
        "path.parent.mkdir(parents=True); path.touch()\n"
        "print(json.dumps([before, nantucket.default_url(), f'unix://{path}']))"
    )
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NANTUCKET_"))}
        environment |= {"HOME": home} | ({"XDG_RUNTIME_DIR": f"{home}/{runtime}"} if runtime else {})
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    before, found, listening = json.loads(done.stdout)
    assert before == found == listening


def test_a_chosen_state_folder_has_its_own_socket(tmp_path: Path) -> None:
    """A second Nantucket on one machine does not take the first one's jobs."""
    assert load(None, {"state": tmp_path}).socket_path == tmp_path / "collector.sock"
    assert load(None, {"state": state_folder()}).socket_path == default_socket()


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """Whoever comes first makes it; everybody at once reads the same, and nobody half of it."""
    folder, found = tmp_path / "state", set[bytes]()
    threads = [threading.Thread(target=lambda: found.add(secret_of(folder))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(secret) for secret in found] == [32]
    assert stat.S_IMODE((folder / "job-secret").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["job-secret"]


def test_a_damaged_secret_is_refused(tmp_path: Path) -> None:
    """An empty file is no secret: anybody could make credentials with it."""
    (tmp_path / "job-secret").touch()
    with pytest.raises(SettingsError, match="has 0 bytes, expected 32"):
        secret_of(tmp_path)
