"""Where a node stands, from the configuration, a Kubernetes file, and what the kernel shows of the machine."""

import json
from pathlib import Path

from collectors.agent import NodeAgent
from collectors.labels import LABELS_MAX, labels_of
from collectors.source import EventRow, SourceReading
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.schemas import EventKind


def test_what_is_configured_goes_before_the_file_before_the_machine(tmp_path: Path) -> None:
    """Each adds what the others do not say; lines that are none are passed over."""
    file = tmp_path / "labels"
    file.write_text('topology.kubernetes.io/zone="eu-1a"\nrack="from the file"\nbad\nx="a \\"b\\""\ny="\\q"\n')
    dmi = tmp_path / "sys" / "class" / "dmi" / "id"
    dmi.mkdir(parents=True)
    (dmi / "product_name").write_text("DGX H100\n")
    (dmi / "sys_vendor").write_text("\x00\x01")
    assert labels_of(("rack=r12", "note=a=b"), file, tmp_path / "sys") == {
        "rack": "r12",
        "note": "a=b",
        "topology.kubernetes.io/zone": "eu-1a",
        "x": 'a "b"',
        "machine": "DGX H100",
    }


def test_nothing_that_can_be_read_is_no_label(tmp_path: Path) -> None:
    """No file, no sysfs, a folder in its place; and a file of any number of labels is bounded."""
    assert labels_of((), tmp_path, tmp_path / "nowhere") == {}
    many = tmp_path / "many"
    many.write_text("".join(f'n{at}="v"\n' for at in range(500)))
    assert len(labels_of((), many, tmp_path)) == LABELS_MAX


def test_the_node_s_own_inventory_carries_them() -> None:
    """Another node's, which an exporter told, does not."""
    agent = NodeAgent([], lambda *_: None, SystemClock(), node="n1", labels={"rack": "r12"})  # type: ignore[arg-type]
    rows = [EventRow(EventKind.NODE_INVENTORY, node, "m", False, detail={"gpus": []}) for node in ("n1", "n2")]
    frames = agent._frames(SourceReading(None, events=rows), 1.0)
    told = [json.loads(text) for _, frame in frames for text in frame.strings("detail") if text is not None]
    assert told == [{"gpus": [], "labels": {"rack": "r12"}}, {"gpus": []}]
