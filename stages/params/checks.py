"""Checks that several sections share."""

from stages.errors import InputError


def choose(section: str, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{section}.{key}: {value!r} is not one of {', '.join(allowed)}")


def at_least(section: str, params: object, **bounds: float) -> None:
    for key, low in bounds.items():
        value = getattr(params, key)
        if value < low:
            raise InputError(f"{section}.{key}: {value!r} is below {low}")


def share(section: str, params: object, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(params, key) <= 1:
            raise InputError(f"{section}.{key}: {getattr(params, key)!r} is not between 0 and 1")
