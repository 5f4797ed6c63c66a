"""What a checkpoint says of its origin: the detector, the dataset and the tracked run that it came from."""

import json
from pathlib import Path
from typing import Any

from stages.errors import InputError


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its origin; empty where it says nothing."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    return values if isinstance(values, dict) else {}
