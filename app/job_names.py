"""The names of jobs, by the rule of the SDK: what it would have to change is refused here."""

from app.settings import SettingsError
from nantucket._identity import NAME_MAX, name_of


def checked_job(name: str) -> str:
    """``name``, if a job can go by it. Raises :class:`~app.settings.SettingsError` (exit status 2)."""
    _taken, problem = name_of(name, "unnamed")
    if problem is None:
        return name
    raise SettingsError(
        f"JOB: expected 1 to {NAME_MAX} letters, digits or ._:@+- with a letter or digit first, found "
        f"{name[:NAME_MAX]!r}. Give the name that the job itself gives to nantucket.init(job=...)."
    )
