"""What compose.yaml says is what the programs understand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml

from app import cli

REPOSITORY = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
ROLES = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
SCRAPE = yaml.safe_load((REPOSITORY / "deploy" / "prometheus.yml").read_text())


def option(arguments: list[str], name: str) -> str:
    """Return the value of an option in a command's arguments."""
    return arguments[arguments.index(name) + 1]


def test_the_roles_are_all_there() -> None:
    """compose.yaml starts every role of one machine, and Prometheus beside them."""
    assert set(ROLES) == {"collect", "detect", "alert", "serve"}
    assert set(COMPOSE["services"]) - set(ROLES) == {"prometheus"}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_roles_command_is_one_that_the_command_line_takes(role: str) -> None:
    """A command in compose.yaml parses: its name, its options, and the types of their values."""
    name, *arguments = ROLES[role]["command"]
    assert name == role
    root = typer.main.get_group(cli.app)
    with root.commands[name].make_context(name, arguments) as context:
        assert context.args == []


def test_all_roles_share_one_bus_on_one_volume() -> None:
    """The roles meet at the bus and nowhere else."""
    addresses = {option(service["command"], "--bus") for service in ROLES.values()}
    assert addresses == {"file:///var/lib/nantucket/bus"}
    assert {option(service["command"], "--state") for service in ROLES.values()} == {"/var/lib/nantucket"}
    assert {volume for service in ROLES.values() for volume in service["volumes"]} == {"state:/var/lib/nantucket"}


def test_prometheus_scrapes_the_address_and_the_token_of_serve() -> None:
    """The page leaves loopback with a token only, and Prometheus is given the same one."""
    (job,) = SCRAPE["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"serve:{option(ROLES['serve']['command'], '--port')}"]}]
    (secret,) = COMPOSE["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    variable = COMPOSE["secrets"][secret]["environment"]
    assert re.match(rf"\$\{{{variable}:\?", ROLES["serve"]["environment"]["NANTUCKET_SERVE__TOKEN"])


def test_prometheus_reads_its_configuration(service_binary: Callable[[str], Path], tmp_path: Path) -> None:
    """The real promtool takes deploy/prometheus.yml, with the secret where compose.yaml puts it."""
    token = tmp_path / "serve_token"
    token.write_text("a token of the test")
    configuration = tmp_path / "prometheus.yml"
    text = (REPOSITORY / "deploy" / "prometheus.yml").read_text()
    configuration.write_text(text.replace("/run/secrets/serve_token", str(token)))
    promtool = service_binary("prometheus").with_name("promtool")
    done = subprocess.run(
        [str(promtool), "check", "config", str(configuration)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
