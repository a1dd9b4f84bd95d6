"""``nantucket doctor``: looks at everything this machine's roles need, and says what to do about each fault."""

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape

from alerting.errors import AlertingError
from alerting.store import StoreReader
from app.checks import Check, Checked, Verdict
from app.output import console, print_json
from app.roles.alert import receivers_of
from app.settings import Settings, SettingsError
from app.source_checks import source_checks
from app.tail import missing_log
from app.wiring import link_options
from collectors.spool import waiting_in
from telemetry_bus import Topic, open_bus
from telemetry_bus.embedded import EmbeddedBus, sqlite_version
from telemetry_bus.errors import BusError, GatewayRefused
from telemetry_bus.federation import bus_states
from telemetry_bus.gateway import GatewayOutlet
from telemetry_bus.outlet import is_gateway
from telemetry_bus.runtime.clock import Clock, SystemClock

DISK_FREE_BYTES_MIN = 5 * 1024**3
"""The embedded log may grow to some 4.3 GiB over all topics before its own bounds hold it."""
CHECK_SECONDS_MAX = 15.0
CONNECT_SECONDS_MAX = 5.0
LOG_CHECK_SECONDS_MAX = 5.0
"""A small log is looked through whole; of a large one as much as that allows."""
CLOCK_STEP_SECONDS_MAX = 0.5
NTP_SIGNS = ("/run/systemd/timesync/synchronized", "/run/chrony")


async def doctor(settings: Settings, *, as_json: bool) -> int:
    """Run every check, print what it found, and return 1 if there is a fault."""
    out = console(as_json=as_json)
    faults = 0
    for name, check in CHECKS.items():
        for result in await _bounded(name, check, settings):
            faults += result.verdict is Verdict.FAULT
            _say(result, out, as_json=as_json)
    return 1 if faults else 0


def _say(result: Checked, out: Console, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
        return
    mark = {Verdict.OK: "[green]ok  [/]", Verdict.NOTE: "[yellow]note[/]", Verdict.FAULT: "[red]FAULT[/]"}
    out.print(f"{mark[result.verdict]} {result.check}: {escape(result.found)}")
    if result.remedy:
        out.print(f"      {escape(result.remedy)}")


async def _bounded(name: str, check: Check, settings: Settings) -> Sequence[Checked]:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            found = await check(settings, SystemClock())
            return [found] if isinstance(found, Checked) else found
    except TimeoutError:
        remedy = "Something hangs there: look at the process list and the kernel log."
        return [Checked(name, Verdict.FAULT, f"no answer within {CHECK_SECONDS_MAX:.0f} s", remedy)]
    except OSError as error:
        remedy = "Mend the owner or mode, or run doctor as the user who runs the roles."
        return [Checked(name, Verdict.FAULT, f"cannot be looked at: {error}", remedy)]


async def _state(settings: Settings, _clock: Clock) -> Checked:
    folder = settings.state
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Checked("state", Verdict.FAULT, f"{existing} is not a folder", "Choose another with --state FOLDER.")
    if not os.access(existing, os.W_OK):
        return Checked(
            "state", Verdict.FAULT, f"{existing} is not writable by this user", "Choose another with --state FOLDER."
        )
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free < DISK_FREE_BYTES_MIN:
        return Checked(
            "state",
            Verdict.FAULT,
            found,
            f"Free at least {DISK_FREE_BYTES_MIN / 1024**3:.0f} GiB, or set state elsewhere.",
        )
    return Checked("state", Verdict.OK, found)


async def _gateway(settings: Settings, clock: Clock) -> Checked:
    """The gateway that stands in the bus's place for who only sends: is it there, and does it let this node in?"""
    url = settings.bus_url
    try:
        async with GatewayOutlet(url, clock, link_options(settings)) as outlet:
            welcome = await outlet.reached()
    except GatewayRefused as error:
        remedy = "Set link.token to the gateway's token (environment: NANTUCKET_LINK__TOKEN), or run the same versions."
        return Checked("bus", Verdict.FAULT, str(error), remedy)
    except BusError as error:
        remedy = "Start nantucket gateway there, or mend the URL, the certificates (link.ca, link.cert) or the network."
        return Checked("bus", Verdict.FAULT, str(error), remedy)
    pace = welcome.bytes_per_second / 1e6
    found = f"the gateway {url} lets this node in; it grants a backlog of {pace:.1f} MB/s"
    return Checked("bus", Verdict.OK, found)


async def _bus(settings: Settings, clock: Clock) -> Checked:
    if is_gateway(settings.bus_url):
        return await _gateway(settings, clock)
    if (missing := missing_log(settings.bus_url)) is not None:
        if settings.bus is None:
            return Checked("bus", Verdict.NOTE, f"{missing} is not there yet; the first role that starts makes it")
        remedy = "Mend the URL of the bus; if it is right, the first role that starts makes the log."
        return Checked("bus", Verdict.FAULT, f"{missing} is not there", remedy)
    try:
        async with open_bus(settings.bus_url, clock, settings.kafka.options) as bus:
            ends = {topic: sum((await bus.ends(topic)).values()) for topic in Topic}  # every one must be there
            await bus.committed("doctor")  # and where positions are kept
            whole = not isinstance(bus, EmbeddedBus) or await bus.check(LOG_CHECK_SECONDS_MAX)
            away = [f"{state.url}: {state.problem}" for state in bus_states(bus) if state.away_since is not None]
    except BusError as error:
        return Checked("bus", Verdict.FAULT, str(error), "Nothing can be published or read until the bus answers.")
    if away:
        remedy = "Frames of its region are not read until it answers; the other buses are."
        return Checked("bus", Verdict.FAULT, f"away: {'; '.join(away)}", remedy)
    said = ", ".join(f"{topic} at {ends[topic]}" for topic in (Topic.GPU, Topic.TRAIN, Topic.FINDINGS))
    unseen = "" if whole else f"; no damage in what of its file was seen in {LOG_CHECK_SECONDS_MAX:g} s"
    verdict = Verdict.OK if whole else Verdict.NOTE
    return Checked("bus", verdict, f"{settings.bus_url}{_carried_by(settings.bus_url)}; {said}{unseen}")


def _carried_by(url: str) -> str:
    return f" (SQLite {sqlite_version()})" if "file:" in url else ""


async def _spool(settings: Settings, clock: Clock) -> Checked:
    folder = settings.spool_path
    if not (folder / "log.sqlite").exists():
        return Checked("spool", Verdict.NOTE, f"{folder} is not there yet; the first collector makes it")
    try:
        depth = await waiting_in(folder, clock)
    except BusError as error:
        remedy = "The collector sets a damaged spool aside when it starts; on a network file system set spool.folder."
        return Checked("spool", Verdict.FAULT, str(error), remedy)
    if not depth.frames:
        return Checked("spool", Verdict.OK, f"{folder}: nothing waits")
    age = "" if depth.oldest_seconds is None else f", the oldest for {depth.oldest_seconds:.0f} s"
    found = f"{folder}: {depth.frames} frames ({depth.bytes / 1024**2:.1f} MiB) wait{age}"
    remedy = "The bus is or was away from here; a collector that runs sends them when it is back."
    return Checked("spool", Verdict.NOTE, found, remedy)


async def _store(settings: Settings, _clock: Clock) -> Checked:
    if not settings.store_path.exists():
        return Checked("store", Verdict.NOTE, f"{settings.store_path} is not there yet; the alert role makes it")
    try:
        async with StoreReader(settings.store_path) as store:
            await store.ready()
    except AlertingError as error:
        return Checked(
            "store",
            Verdict.FAULT,
            str(error),
            "Incidents cannot be shown or recorded, and warnings wait; critical findings are still paged, by an alert "
            "role that starts now from 15 minutes back on. A damaged file: move it away, and the role makes a new one.",
        )
    return Checked("store", Verdict.OK, str(settings.store_path))


async def _socket(settings: Settings, _clock: Clock) -> Checked:
    path = settings.socket_path
    if not path.exists():
        return Checked("training socket", Verdict.NOTE, f"{path} is not there: no collector runs here now")
    if not stat.S_ISSOCK(path.stat().st_mode):
        return Checked(
            "training socket", Verdict.FAULT, f"{path} is not a socket", "Remove it, or set collect.socket elsewhere."
        )
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        return Checked(
            "training socket", Verdict.FAULT, f"{path}: {error.strerror}", "Start nantucket up or collect on this node."
        )
    writer.close()
    return Checked("training socket", Verdict.OK, f"a collector listens at {path}")


async def _receivers(settings: Settings, clock: Clock) -> Checked:
    if not settings.receivers:
        remedy = "Add [receivers.NAME] with url and secret to the configuration, then run nantucket alerts test NAME."
        return Checked("receivers", Verdict.NOTE, "none is configured: nobody would be paged", remedy)
    try:
        receivers_of(settings, clock)
    except SettingsError as error:
        return Checked("receivers", Verdict.FAULT, str(error), "Mend the configuration.")
    away = [name for name, item in settings.receivers.items() if not await _reachable(item.url.get_secret_value())]
    if away:
        remedy = "Check the address, the network and the receiver itself; then run nantucket alerts test NAME."
        return Checked("receivers", Verdict.FAULT, f"no connection to {', '.join(away)}", remedy)
    return Checked(
        "receivers",
        Verdict.OK,
        f"{', '.join(settings.receivers)} can be reached (nantucket alerts test NAME sends a page)",
    )


async def _reachable(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            _, writer = await asyncio.open_connection(parts.hostname, port)
        writer.close()
        return True
    return False


async def _clock(_settings: Settings, clock: Clock) -> Checked:
    wall, running = clock.now(), clock.monotonic()
    await asyncio.sleep(0.2)
    step = (clock.now() - wall) - (clock.monotonic() - running)
    if abs(step) > CLOCK_STEP_SECONDS_MAX:
        return Checked(
            "clock",
            Verdict.FAULT,
            f"the wall clock stepped by {step:+.1f} s while being watched",
            "Look at chrony or NTP.",
        )
    synchronised = await asyncio.to_thread(lambda: any(Path(path).exists() for path in NTP_SIGNS))
    if not synchronised:
        return Checked(
            "clock", Verdict.NOTE, "runs evenly; no sign of NTP (chrony or systemd-timesyncd) on this machine"
        )
    return Checked("clock", Verdict.OK, "runs evenly, under NTP")


CHECKS: dict[str, Check] = {
    "state": _state,
    "bus": _bus,
    "spool": _spool,
    "store": _store,
    "sources": source_checks,
    "training socket": _socket,
    "receivers": _receivers,
    "clock": _clock,
}
