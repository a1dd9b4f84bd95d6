"""Where a node stands: rack, switch, pod, machine. From the configuration, a file of labels, and sysfs.

The file is as Kubernetes' downward API writes labels: ``name="value"`` a line, the value quoted as Go quotes it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

LABELS_MAX = 64
NAME_CHARACTERS_MAX = 317
"""A label's name in Kubernetes: a prefix of 253, a slash, and 63."""
VALUE_CHARACTERS_MAX = 256
FILE_BYTES_MAX = 64 * 1024
DMI = {"machine": "product_name", "vendor": "sys_vendor", "chassis": "chassis_serial"}
"""Labels by the name of the file under ``class/dmi/id``; serial numbers are readable for root alone."""
_LINE = re.compile(r'([^="\s]{1,317})=("(?:[^"\\]|\\.)*")\s*')


def labels_of(given: Sequence[str], file: Path | None, sysfs: Path) -> dict[str, str]:
    """``given`` (``name=value``) before the file's before the machine's. What cannot be read is not there. Blocks."""
    found: dict[str, str] = {}
    for part in (dict(word.split("=", 1) for word in given), _of_file(file), _of_machine(sysfs)):
        for name, value in part.items():
            if len(found) < LABELS_MAX:
                found.setdefault(name[:NAME_CHARACTERS_MAX], value[:VALUE_CHARACTERS_MAX])
    return found


def _of_file(file: Path | None) -> Mapping[str, str]:
    found = {}
    for line in _text(file).splitlines() if file is not None else ():
        if (label := _LINE.fullmatch(line)) is not None:
            try:
                found[label[1]] = str(json.loads(label[2]))
            except ValueError:
                continue  # an escape that Go has and JSON has not
    return found


def _of_machine(sysfs: Path) -> Mapping[str, str]:
    read = {name: _text(sysfs / "class" / "dmi" / "id" / file).strip() for name, file in DMI.items()}
    return {name: value for name, value in read.items() if value and value.isprintable()}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""
