"""The demo's end, for people: the page that somebody would have got, and whether it was true."""

from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def tell(out: Console, result: dict[str, Any]) -> None:
    """Print the page and the verdict on it."""
    if "page" not in result:
        out.print(f"[bold red]The demo failed:[/] {result.get('error', 'no reason given')}")
        return
    incident = result["page"]["incident"]
    out.print(
        Panel(
            Group(Text(incident["title"], style="bold", overflow="fold", no_wrap=False), "", _page(incident)),
            title="PAGE",
            border_style="red",
            expand=False,
        )
    )
    verdict = "[bold green]true[/]" if result["ok"] else "[bold red]not what happened[/]"
    out.print(
        f"The receiver had it {result['bad_step_to_page_ms']:.0f} ms after the bad step; "
        f"job, step, rank and parameter, held against the job's own ledger, are {verdict}. "
        f"Frames seen: {result['dashboard']['frames_seen']}, missing: {result['frames_missing']}."
    )


def _page(incident: dict[str, Any]) -> Table:
    where, cost = incident["where"], incident["cost"]
    rows = Table.grid(padding=(0, 2))
    rows.add_row("job", f"{incident['job']}, attempt {incident['attempt']}")
    rows.add_row("since", f"step {incident['onset_step']}")
    rows.add_row("rank", str(where["rank"]))
    rows.add_row("parameter", str(where["parameter"]))
    rows.add_row("cost", f"${cost['usd_so_far']:.2f} so far, ${cost['usd_per_hour']:.2f} an hour")
    for cause in incident["likely_causes"]:
        rows.add_row("likely", f"{cause['cause']} ({cause['confidence']:.0%}): {cause['evidence']}")
    return rows
