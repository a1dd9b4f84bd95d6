"""What XID 154 says: the driver asks for something else now."""

import re
from typing import Any

CODE = 154
_CHANGE = re.compile(
    r"recovery action changed from 0x(?P<old>[0-9a-fA-F]{1,8}) \((?P<old_words>[^)]{0,64})\) "
    r"to 0x(?P<new>[0-9a-fA-F]{1,8}) \((?P<new_words>[^)]{0,64})\)"
)


def recovery_in(code: int, text: str) -> dict[str, Any]:
    """The old and the new action, as numbers (those of the metric ``recovery_action``) and in the driver's words."""
    found = _CHANGE.search(text) if code == CODE else None
    if found is None:
        return {}
    before = {"action": int(found["old"], 16), "words": found["old_words"]}
    after = {"action": int(found["new"], 16), "words": found["new_words"]}
    return {"recovery_before": before, "recovery_after": after}
