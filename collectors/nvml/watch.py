"""What happens to the GPUs of a node between two readings, as events. Pure: answers of the driver's reader come in."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from collectors.errors import FieldFailure
from collectors.nvml.health import Change, GpuHealth
from collectors.nvml.rows import Parts
from collectors.source import EventRow
from telemetry_bus.schemas import EventKind

SOURCE = "nvml"


class GpuWatch:
    """Remembers the GPUs of ``node`` by what they are, not by their numbers, which shift when one is gone."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._events: list[EventRow] = []
        self._uuids: dict[int, str | None] = {}
        self._hello: Mapping[str, Any] = {}
        self._told: Mapping[str, Any] | None = None
        self._instances: dict[int, list[tuple[str, str]]] = {}
        self._is_new = False
        self._lost: dict[str, int] = {}
        self._hung: dict[str, int] = {}
        self._needs_reset: dict[str, int] = {}
        self._health: dict[str, GpuHealth] = {}

    def take_events(self) -> list[EventRow]:
        """What has happened since it was asked last."""
        events, self._events = self._events, []
        return events

    def troubles(self) -> list[str]:
        """What is wrong now, for a person."""
        return [
            *(f"GPU {gpu} does not answer" for gpu in sorted(self._hung.values())),
            *(f"GPU {gpu} is lost" for gpu in sorted(self._lost.values())),
            *(f"GPU {gpu} gives nothing until it is reset" for gpu in sorted(self._needs_reset.values())),
        ]

    def started(self, hello: Mapping[str, Any]) -> None:
        """A reader of the driver says what is there. What was there before and is not any more is lost."""
        before = {uuid: gpu for gpu, uuid in self._uuids.items() if uuid is not None}
        self._hello, self._is_new = hello, True
        self._uuids = {gpu["gpu"]: gpu["uuid"] for gpu in hello["gpus"]}
        self._hung.clear()
        if not hello["gpus"]:
            self._tell_inventory()
        for uuid, gpu in before.items():
            if uuid not in self._uuids.values() and uuid not in self._lost:
                self._lost[uuid] = gpu
                words = f"GPU {gpu} is lost: the driver does not list it any more"
                self._say_of(uuid, gpu, Change(EventKind.DRIVER, words, {"state": "gpu_lost"}), words)

    def read(self, parts: Parts, hung: Collection[int]) -> None:
        """One reading: what was answered, and which GPUs' calls do not return."""
        self._notice_hung(hung)
        for part in parts:
            if part["instance"] is None:
                self._notice_loss(part)
                self._notice_reset(part)
                health = self._health.setdefault(self._who(part["gpu"]), GpuHealth())
                for change in health.observe(part["values"]):
                    self._say_of(self._uuids.get(part["gpu"]), part["gpu"], change)
        self._notice_instances(parts)

    def silent(self, words: str, state: str) -> None:
        """The driver does not answer at all, or does so again."""
        self._say(words, state)

    def _notice_hung(self, hung: Collection[int]) -> None:
        for gpu in hung:
            if self._who(gpu) not in self._hung:
                self._hung[self._who(gpu)] = gpu
                self._say(f"GPU {gpu}: the driver does not answer; the others go on", "hung", gpu)
        for who, gpu in list(self._hung.items()):
            if gpu not in hung:
                del self._hung[who]
                self._say(f"GPU {gpu}: the driver answers again", "answers", gpu)

    def _notice_loss(self, part: Mapping[str, Any]) -> None:
        gpu = part["gpu"]
        who = self._who(gpu)
        if part["lost"] and who not in self._lost:
            self._lost[who] = gpu
            self._say(f"GPU {gpu} is lost: the driver does not reach it", "gpu_lost", gpu)
        elif not part["lost"] and who in self._lost:
            del self._lost[who]
            self._say(f"GPU {gpu} is back", "gpu_back", gpu)

    def _notice_reset(self, part: Mapping[str, Any]) -> None:
        gpu, who = part["gpu"], self._who(part["gpu"])
        if FieldFailure.RESET_REQUIRED in part["failures"].values():
            if who not in self._needs_reset:
                self._needs_reset[who] = gpu
                self._say(f"GPU {gpu} gives nothing until it is reset", "reset_required", gpu)
        elif part["values"]:
            self._needs_reset.pop(who, None)

    def _notice_instances(self, parts: Parts) -> None:
        """Tell of another division, and of what is there once the first reading has shown its instances."""
        if not parts:
            return
        found: dict[int, list[tuple[str, str]]] = {part["gpu"]: [] for part in parts}
        for part in parts:
            if part["instance"] is not None:
                found[part["gpu"]].append((part["instance"], part["uuid"]))
        changed = [gpu for gpu, instances in found.items() if instances != self._instances.get(gpu, [])]
        self._instances.update(found)
        for gpu in () if self._is_new else changed:
            names = ", ".join(name for name, _ in found[gpu]) or "none"
            self._say(f"GPU {gpu} is divided anew; its MIG instances: {names}", "mig_changed", gpu)
        if changed or self._is_new:
            self._is_new = False
            self._tell_inventory()

    def _tell_inventory(self) -> None:
        gpus = [gpu | self._divided(gpu["gpu"]) for gpu in self._hello["gpus"]]
        said = {name: value for name, value in self._hello.items() if name != "ready"} | {"gpus": gpus}
        if said == self._told:
            return
        self._told = said
        message = f"{self._node}: {len(gpus)} GPUs, driver {self._hello['driver_version']}"
        detail = {"hostname": self._node, **said, "simulated": False}
        self._events.append(EventRow(EventKind.NODE_INVENTORY, self._node, message, False, detail=detail))

    def _divided(self, gpu: int) -> dict[str, Any]:
        instances = self._instances.get(gpu)
        return {"instances": [{"instance": name, "uuid": uuid} for name, uuid in instances]} if instances else {}

    def _who(self, gpu: int) -> str:
        return self._uuids.get(gpu) or f"#{gpu}"

    def _say(self, words: str, state: str, gpu: int | None = None) -> None:
        uuid = None if gpu is None else self._uuids.get(gpu)
        self._say_of(uuid, gpu, Change(EventKind.DRIVER, words, {"state": state}), words)

    def _say_of(self, uuid: str | None, gpu: int | None, change: Change, words: str | None = None) -> None:
        text = f"{self._node}: {words or f'GPU {gpu}: {change.message}'}"
        detail = {"source": SOURCE, **change.detail}
        self._events.append(EventRow(change.kind, self._node, text, False, gpu, uuid, change.code, detail))


def identities(hello: Mapping[str, Any]) -> Sequence[tuple[int, str, str]]:
    """Number, uuid and PCI address of every GPU that says all of them."""
    known = [(gpu["gpu"], gpu["uuid"], gpu.get("pci")) for gpu in hello["gpus"]]
    return [(gpu, uuid, pci) for gpu, uuid, pci in known if uuid is not None and pci is not None]
