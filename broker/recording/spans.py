"""Lengths of time, in words."""


def ago(micros: int) -> str:
    """`+12.3 ms` after the beginning."""
    return f"{'-' if micros < 0 else '+'}{span(abs(micros))}"


def span(micros: int) -> str:
    """A length of time, three digits or so: `85 µs`, `1.24 ms`, `3.5 s`, `2 min 5 s`."""
    if micros < 1000:
        return f"{micros} µs"
    if micros < 1_000_000:
        return f"{micros / 1000:.3g} ms"
    seconds = micros / 1e6
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
