"""Whether a folder can carry the log."""

import os
from pathlib import Path

from telemetry_bus.errors import InaccessibleFolder, UnsuitableFolder

NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "afs",
        "9p",
        "glusterfs",
        "wekafs",
        "fuse.sshfs",
        "fuse.glusterfs",
    }
)
"""Where the shared memory of a write-ahead log is not shared, or locks are not kept."""


def prepare(folder: Path) -> None:
    """Make ``folder`` (readable by its owner only) and refuse it if it lies on a network file system."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InaccessibleFolder(str(folder), error) from error
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise InaccessibleFolder(str(folder), "this user may not write there")
    # Not the files beside log.sqlite: they come and go with the processes that use it.
    for file in (folder / "log.sqlite", folder / "log.wake"):
        if file.exists() and not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            raise InaccessibleFolder(str(folder), f"this user may not write {file.name} there")
    refuse_network(folder, Path("/proc/self/mountinfo"))


def refuse_network(folder: Path, mountinfo: Path) -> None:
    """Raise UnsuitableFolder if ``folder`` lies on a network file system, as the kernel's ``mountinfo`` lists it."""
    kind = filesystem_of(folder.resolve(), mountinfo)
    if kind in NETWORK_FILESYSTEMS:
        raise UnsuitableFolder(str(folder), kind)


def filesystem_of(folder: Path, mountinfo: Path) -> str:
    """The type of the file system that holds ``folder`` as ``mountinfo`` lists it; "" where there is no such list."""
    if not mountinfo.exists():
        return ""
    best, kind = "", ""
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode().decode("unicode_escape")
        if folder.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, after.split()[0]
    return kind
