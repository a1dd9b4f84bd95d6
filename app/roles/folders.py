"""Folders that a role makes for itself."""

from pathlib import Path

from app.settings import SettingsError


def make_folder_of(path: Path, key: str, mode: int = 0o755) -> None:
    """Make the folder of ``path``, or say which setting leads elsewhere."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise SettingsError(
            f"{key}: the folder of {path} cannot be made: {error.strerror}. Expected a folder that this user may "
            f"write: set {key} or state elsewhere."
        ) from error
