"""What compose.yaml says is what the programs understand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app import cli
from app.settings import load

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


def test_prometheus_scrapes_every_role_with_the_token() -> None:
    """Page and figures leave loopback with a token only, and Prometheus is given the same one."""
    (job,) = SCRAPE["scrape_configs"]
    ports = {
        role: option(service["command"], "--port" if role == "serve" else "--metrics-port")
        for role, service in ROLES.items()
    }
    assert job["static_configs"] == [{"targets": [f"{role}:{port}" for role, port in ports.items()]}]
    (secret,) = COMPOSE["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    variable = COMPOSE["secrets"][secret]["environment"]
    for service in ROLES.values():
        assert re.match(rf"\$\{{{variable}:\?", service["environment"]["NANTUCKET_SERVE__TOKEN"])


def test_the_example_configuration_is_one_with_and_without_its_comments(tmp_path: Path) -> None:
    """As it stands it configures no receiver; with the '#' taken away it configures one."""
    text = (REPOSITORY / "deploy" / "nantucket.example.toml").read_text()
    assert COMPOSE["configs"]["nantucket"]["file"] == "${NANTUCKET_TOML:-deploy/nantucket.example.toml}"
    assert all(service["environment"]["NANTUCKET_CONFIG"] == "/etc/nantucket.toml" for service in ROLES.values())
    assert {config["target"] for service in ROLES.values() for config in service["configs"]} == {"/etc/nantucket.toml"}
    whole, bare = tmp_path / "whole.toml", tmp_path / "bare.toml"
    body = "\n".join(line.removeprefix("# ") for line in text.split("\n\n", 1)[1].splitlines())
    whole.write_text(body)
    bare.write_text(text)
    assert list(load(whole, {}).receivers) == ["oncall"]
    assert load(bare, {}).receivers == {}


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


FLEET = yaml.safe_load((REPOSITORY / "deploy" / "compose.fleet.yaml").read_text())
FLEET_ROLES = {name: service for name, service in FLEET["services"].items() if "build" in service}


@pytest.mark.parametrize("name", sorted(FLEET_ROLES))
def test_a_command_of_the_fleet_is_one_that_the_command_line_takes(name: str) -> None:
    """Each parses: its name, its options, and the types of their values."""
    words = list(FLEET_ROLES[name]["command"])
    command: Any = typer.main.get_group(cli.app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(name, words) as context:
        assert context.args == []


@pytest.mark.parametrize("name", sorted(FLEET_ROLES))
def test_the_variables_of_the_fleet_are_keys(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What compose gives a role by its environment is what the settings know, and every secret has to be chosen."""
    for variable, value in FLEET_ROLES[name]["environment"].items():
        if variable == "NANTUCKET_CONFIG":
            continue
        assert not variable.endswith("TOKEN") or re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value)
        monkeypatch.setenv(variable, value)
    assert load(None, {}).bus_url == ("gateway://gateway:8581" if name == "collect" else "kafka://kafka:9092")


def test_only_who_pages_gets_the_receivers() -> None:
    """A GPU node holds no pager's secret, and neither does who only reads."""
    assert {name for name, service in FLEET_ROLES.items() if "configs" in service} == {"gateway", "alert"}


def test_the_slices_of_the_fleet_are_all_there() -> None:
    """Each partition is read by one of them."""
    slices = [
        option(service["command"], "--slice") for service in FLEET_ROLES.values() if "--slice" in service["command"]
    ]
    assert sorted(slices) == [f"{at}/{len(slices)}" for at in range(len(slices))]
