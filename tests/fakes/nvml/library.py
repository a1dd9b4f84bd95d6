"""The fake driver of the tests: compiles the C files beside it, and writes the file that says what they answer."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = "!3", "!4", "!15", "!999"
HANG = "hang"
ECC_CORRECTED, ECC_UNCORRECTED, MEMORY_TEMPERATURE, ENERGY = "field.3", "field.4", "field.82", "field.83"
PCIE_REPLAY, REMAP_UNCORRECTED, REMAP_PENDING, REMAP_FAILED = "field.94", "field.143", "field.144", "field.145"

HEALTHY = {
    "driver_version": "575.57.08",
    "name": "NVIDIA H100 80GB HBM3",
    "utilization_gpu": "97",
    "utilization_memory": "42",
    "memory_used": str(70_000 << 20),
    "memory_total": str(81_559 << 20),
    "temperature": "61",
    "power_usage": "691500",
    "power_limit": "700000",
    "clock_sm": "1755",
    "clock_memory": "2619",
    "performance_state": "0",
    "clocks_event_reasons": "4",
    "pcie_generation": "5",
    "pcie_width": "16",
    ECC_CORRECTED: "0",
    ECC_UNCORRECTED: "0",
    MEMORY_TEMPERATURE: "70u",
    ENERGY: "1234567890123",
    PCIE_REPLAY: "3u",
    REMAP_UNCORRECTED: "0u",
    REMAP_PENDING: "0u",
    REMAP_FAILED: "0u",
}


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

    def __post_init__(self) -> None:
        """Begin healthy."""
        self.lines = [f"* count {self.gpus}", *(f"* {key} {value}" for key, value in HEALTHY.items())]
        self.lines += [f"{gpu} uuid GPU-{gpu}" for gpu in range(self.gpus)]
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to load it."""
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_ANSWERS": str(self.file)}

    def say(self, key: str, value: str, gpu: int | None = None) -> None:
        """From now on ``key`` of ``gpu`` (``None``: of all) is ``value``."""
        self.lines.append(f"{'*' if gpu is None else gpu} {key} {value}")
        self._write()

    def lose(self, gpu: int) -> None:
        """The GPU falls off the bus."""
        for key in ("handle", "fields", *HEALTHY):
            self.say(key, GPU_IS_LOST, gpu)

    def heal(self) -> None:
        """Everything is as in the beginning."""
        self.__post_init__()

    def _write(self) -> None:
        # In one step: the library may read at any moment.
        new = self.file.with_suffix(".new")
        new.write_text("\n".join(self.lines) + "\n")
        new.replace(self.file)
