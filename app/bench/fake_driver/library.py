"""The fake driver: compiles the C files beside this one, and writes the file that says what they answer."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = "!3", "!4", "!15", "!999"
HANG = "hang"
ECC_CORRECTED, ECC_UNCORRECTED, MEMORY_TEMPERATURE, ENERGY = "field.3", "field.4", "field.82", "field.83"
PCIE_REPLAY, REMAP_UNCORRECTED, REMAP_PENDING, REMAP_FAILED = "field.94", "field.143", "field.144", "field.145"
POWER_INSTANT, PCIE_TX, PCIE_RX, RECOVERY_ACTION = "field.186", "field.197", "field.198", "field.230"
NVLINKS, C2C_LINKS = "field.91", "field.170"

HEALTHY = {
    "driver_version": "575.57.08",
    "cuda_version": "12090",
    "nvml_version": "12.575.57.08",
    "name": "NVIDIA H100 80GB HBM3",
    "serial": "1650000000001",
    "board_part_number": "692-2G520-0200-000",
    "vbios_version": "96.00.89.00.01",
    "utilization_gpu": "97",
    "utilization_memory": "42",
    "utilization_encoder": "3",
    "utilization_decoder": "5",
    "memory_used": str(70_000 << 20),
    "memory_total": str(81_559 << 20),
    "memory_free": str(10_939 << 20),
    "memory_reserved": str(620 << 20),
    "temperature": "61",
    "temperature_margin": "26",
    "threshold_shutdown": "92",
    "threshold_slowdown": "89",
    "threshold_memory_max": "95",
    "threshold_gpu_max": "87",
    "power_usage": "691500",
    "power_limit": "700000",
    "clock_sm": "1755",
    "clock_memory": "2619",
    "performance_state": "0",
    "clocks_event_reasons": "4",
    "pcie_generation": "5",
    "pcie_width": "16",
    "pcie_generation_max": "5",
    "pcie_width_max": "16",
    "fabric_state": "3",
    "fabric_status": "0",
    "fabric_health": "1",
    "fabric_health_mask": "0x2",
    **{f"sram_{life}_{kind}": "0" for life in ("volatile", "aggregate") for kind in ("corrected", "parity", "secded")},
    "sram_threshold_exceeded": "0",
    "remap_max": "640",
    "remap_high": "0",
    "remap_partial": "0",
    "remap_low": "0",
    "remap_none": "0",
    "memory_unrepairable": "0",
    "mig_mode": "0",
    "compute_processes": "0",
    "graphics_processes": "0",
    "gpm": "1",
    **{f"gpm.{metric}": f"{metric}.5" for metric in range(1, 14)},
    "gpm.20": "100.0",
    "gpm.21": "200.0",
    "gpm.60": "3000.0",
    "gpm.61": "4000.0",
    ECC_CORRECTED: "0",
    ECC_UNCORRECTED: "0",
    "field.5": "2",
    "field.6": "0",
    **{f"field.{field}": "0u" for field in (29, 30, 31, 142, 301, 302)},
    **{f"field.{field}": "0" for field in (38, 45, 52, 59)},
    **{f"field.{field}": f"{field}000000000" for field in (*range(74, 82), 269, 270, 271)},
    MEMORY_TEMPERATURE: "70u",
    ENERGY: "1234567890123",
    NVLINKS: "18u",
    PCIE_REPLAY: "3u",
    "field.95": "0u",
    "field.138.4294967295": "1000000",
    "field.139.4294967295": "2000000",
    REMAP_UNCORRECTED: "0u",
    REMAP_PENDING: "0u",
    REMAP_FAILED: "0u",
    **{f"field.{field}.*": "0" for field in (161, 162, 163)},
    "field.164.*": "26562u",
    **{f"field.{field}.*": str(1_000 * field) for field in (138, 139, 202, 204)},
    **{f"field.{field}.*": "0" for field in (208, 211, 212, 215, 221)},
    "field.165.*": "1u",
    **{f"field.{field}": "0u" for field in range(169, 184)},
    C2C_LINKS: "1u",
    "field.171.*": "1u",
    "field.172.*": "44712u",
    POWER_INSTANT: "702250u",
    "field.193": "-5s",
    "field.194": "-2s",
    "field.195": "0s",
    "field.196": "0s",
    PCIE_TX: "1000",
    PCIE_RX: "2000",
    "field.202.4294967295": "1024000000",
    "field.204.4294967295": "2048000000",
    **{f"field.{field}.4294967295": "0" for field in (*range(206, 216), 219, 221, *range(236, 251))},
    **{f"field.{field}.4294967295": str(15 << 8 | 255) for field in (220, 222)},
    RECOVERY_ACTION: "0u",
    **{f"field.{field}.*": "0" for field in (231, 232, 233)},
}
"""A GPU that has everything, an H100 and its successors in one: what fails in a test is what the test made fail."""


def compile_fake(folder: Path) -> Path:
    """Compile the library into ``folder`` under the name that pynvml loads; return the folder."""
    target = folder / "libnvidia-ml.so.1"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{target.name}"]
    subprocess.run(["cc", *flags, "-o", target, *SOURCES], check=True)
    return folder


@dataclass
class FakeDriver:
    """A driver with healthy GPUs until it is told otherwise. ``library`` is the folder of the compiled library."""

    library: Path
    file: Path
    gpus: int = 2
    lines: list[str] = field(default_factory=list)
    xids: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin healthy."""
        self.lines = [f"* count {self.gpus}", *(f"* {key} {value}" for key, value in HEALTHY.items())]
        self.lines += [f"{gpu} uuid GPU-{gpu}" for gpu in range(self.gpus)]
        self.lines += [f"{gpu} pci 00000000:{0x1B + gpu:02X}:00.0" for gpu in range(self.gpus)]
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to load it."""
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_ANSWERS": str(self.file)}

    def say(self, key: str, value: str, gpu: int | str | None = None) -> None:
        """From now on ``key`` of ``gpu`` (``None``: of all, ``0:2``: of a MIG instance) is ``value``."""
        self.lines.append(f"{'*' if gpu is None else gpu} {key} {value}")
        self._write()

    def xid(self, gpu: int, *codes: int) -> None:
        """Let these XIDs happen on ``gpu``, after those that have happened there."""
        self.xids.setdefault(gpu, []).extend(codes)
        self.say("xids", ",".join(map(str, self.xids[gpu])), gpu)

    def divide(self, gpu: int, *instances: int) -> None:
        """Turn MIG on, with an instance at each of these places of NVML's list; its GPU instance is 7 more."""
        self.lines = [line for line in self.lines if not line.startswith(f"{gpu}:")] + [f"{gpu} mig_mode 1"]
        for index in instances:
            said = {
                "uuid": f"MIG-{gpu}-{index}",
                "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                "gpu_instance": str(7 + index),
                "compute_instance": "0",
                "memory_used": str((1_000 + index) << 20),
                "memory_total": str(9_856 << 20),
                "memory_free": str(8_000 << 20),
                "memory_reserved": str(0),
                "compute_processes": str(4_000 + index),
                "graphics_processes": "0",
                **{f"gpm.{metric}": f"{10 * metric + index}.0" for metric in range(1, 14)},
            }
            self.lines += [f"{gpu}:{index} {key} {value}" for key, value in said.items()]
        self._write()

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""
        self.lines += [f"{gpu} {key} {GPU_IS_LOST}" for key in ("handle", "fields", *HEALTHY)]
        self._write()

    def heal(self) -> None:
        """Everything is as in the beginning."""
        self.__post_init__()

    def _write(self) -> None:
        # In one step: the library may read at any moment.
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(self.lines) + "\n")
        new.replace(self.file)
