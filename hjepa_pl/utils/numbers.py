"""Refusals of numbers and words that cannot be meant, by the key that they were given for."""

import math

from hjepa_pl.types import ConfigError


def check_number(key: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Refuse what is no number, is not finite or lies outside [low, high] (or (low, high] with `open_low`)."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < low or value > high or (open_low and value == low):  # type: ignore[operator]
        lower = f"above {low:g}" if open_low else f"at least {low:g}"
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ConfigError(f"`{key}={value!r}` is refused: give a number {lower}{upper}.")


def check_whole(key: str, value: object, low: int) -> None:
    """Refuse what is not a whole number of at least `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"`{key}={value!r}` is refused: give a whole number of at least {low}.")


def check_range(key: str, value: object, low: float, high: float = math.inf) -> tuple[float, float]:
    """Return `value` as an ascending pair above `low` and up to `high`, or refuse it."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ConfigError(f"`{key}={value!r}` is refused: give two numbers, the smaller one first.")
    for number in value:
        check_number(key, number, low, high, open_low=True)
    if value[0] > value[1]:
        raise ConfigError(f"`{key}={list(value)}` is refused: give the smaller number first.")
    return float(value[0]), float(value[1])


def check_statistics(mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int | None) -> None:
    """Refuse a mean or deviation that is no number, or that is not one number per channel."""
    for key, values, low in (("mean", mean, -1e6), ("std", std, 0.0)):
        for value in values or ():
            check_number(key, value, low, open_low=True)
        if values is not None and channels is not None and len(values) != channels:
            raise ConfigError(f"`{key}={list(values)}` does not fit {channels} channel(s): give as many numbers.")


def check_name(key: str, value: object) -> None:
    """Refuse an empty name or one that is no text."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`{key}={value!r}` is refused: give a text that is not empty.")
