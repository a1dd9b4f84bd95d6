"""From an exporter's samples to GPUs, links, pods and XIDs of nodes. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from collectors.dcgm_fields import LEFT_ALONE, XID_NAMES, DcgmField, gpu_field, link_field
from collectors.dcgm_text import DcgmSample
from collectors.source import METRICS

GPUS_MAX = 4_096
"""GPUs and instances of one exporter, or of one that stands for a rack."""
UNKNOWN_MAX = 256
"""Names that are counted one by one; DCGM has some 300 fields."""
INDEX_MAX = 65_535
INT64_END = float(1 << 63)
Key = tuple[str, int, str | None]
"""Node, index of the GPU, and instance."""
_LEFT_ALONE = frozenset(name.upper() for name in LEFT_ALONE)
_POD = ("pod", "pod_name", "exported_pod")
_NAMESPACE = ("namespace", "pod_namespace", "exported_namespace")
_CONTAINER = ("container", "container_name", "exported_container")


@dataclass(slots=True)
class DcgmGpu:
    """One GPU or MIG instance. ``values`` are in the units of our metrics."""

    uuid: str | None
    name: str | None
    pci: str | None
    driver: str | None
    values: dict[str, float] = field(default_factory=dict)
    xid: int | None = None
    holders: set[tuple[str, str | None, str | None]] = field(default_factory=set)
    """Pod, namespace and container."""


@dataclass(slots=True)
class DcgmPage:
    """What one scrape says."""

    gpus: dict[Key, DcgmGpu] = field(default_factory=dict)
    links: dict[tuple[str, int, int], dict[str, float]] = field(default_factory=dict)
    """By node, GPU and link."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Lines of DCGM that are no field of ours, by name."""
    repeated: int = 0
    """A second value of the same metric of the same GPU, as for each of several pods; the first counts."""
    oldest: float | None = None
    """The oldest time that a sample carries (UTC seconds)."""


def read_page(samples: Sequence[DcgmSample], node: str | None, otherwise: str) -> DcgmPage:
    """The page of ``samples``. ``node`` overrides what the rows say, ``otherwise`` is where they say nothing."""
    page = DcgmPage()
    for sample in samples:
        if not sample.name.upper().startswith("DCGM_"):
            continue  # the exporter's own figures
        if sample.time is not None:
            page.oldest = sample.time if page.oldest is None else min(page.oldest, sample.time)
        index = _index(sample.labels.get("gpu"))
        where = node or sample.labels.get("hostname") or otherwise
        if index is None:
            page.unknown["rows of no GPU"] += 1
        elif "nvlink" in sample.labels:
            _take_link(page, sample, where, index)
        else:
            _take_gpu(page, sample, where, index)
    return page


def _take_gpu(page: DcgmPage, sample: DcgmSample, node: str, index: int) -> None:
    labels = sample.labels
    key = (node, index, labels.get("gpu_i_id") or None)
    gpu = page.gpus.get(key)
    if gpu is None:
        if len(page.gpus) >= GPUS_MAX:
            page.unknown["rows beyond the bound on GPUs"] += 1
            return
        gpu = page.gpus[key] = DcgmGpu(
            _first(labels, ("uuid", "gpu_uuid")),
            _first(labels, ("modelname", "model_name")),
            labels.get("pci_bus_id") or None,
            labels.get("dcgm_fi_driver_version") or None,
        )
    if pod := _first(labels, _POD):
        gpu.holders.add((pod, _first(labels, _NAMESPACE), _first(labels, _CONTAINER)))
    if sample.name.upper() in XID_NAMES:
        gpu.xid = int(sample.value) if 0 <= sample.value < INDEX_MAX else None
    elif (known := gpu_field(sample.name)) is not None:
        _give(page, gpu.values, known, sample)
    else:
        _note_unknown(page, sample.name)


def _take_link(page: DcgmPage, sample: DcgmSample, node: str, index: int) -> None:
    link, known = _index(sample.labels["nvlink"]), link_field(sample.name)
    if link is None or known is None:
        _note_unknown(page, sample.name)
    elif (node, index, link) in page.links or len(page.links) < GPUS_MAX:
        _give(page, page.links.setdefault((node, index, link), {}), known, sample)


def _give(page: DcgmPage, values: dict[str, float], known: DcgmField, sample: DcgmSample) -> None:
    if known.metric in values:
        page.repeated += 1
        return
    value = sample.value * known.factor
    if value <= 1.0 and sample.name.upper() in known.ratio_names:
        value *= 100.0
    metric = METRICS.get(known.metric)
    if metric is None or metric.arrow == "int64":
        if not 0 <= value < INT64_END:
            page.unknown[f"{sample.name}: no count"] += 1
            return
        value = int(value)
    values[known.metric] = value


def _note_unknown(page: DcgmPage, name: str) -> None:
    if name.upper() not in _LEFT_ALONE and (name in page.unknown or len(page.unknown) < UNKNOWN_MAX):
        page.unknown[name] += 1


def _first(labels: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((labels[name][:253] for name in names if labels.get(name)), None)


def _index(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 5):
        return None
    return int(text) if int(text) <= INDEX_MAX else None
