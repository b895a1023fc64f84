"""Numbers -> readable text: bytes, counts, dollars, durations."""


def show_bytes(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def show_count(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if value >= 10 else f"{value:,.2g}"


def show_usd(value: float | None) -> str:
    if value is None or value < 0.001:
        return "-" if value is None else "<$0.001"
    return f"${value:,.0f}" if value >= 100 else f"${value:,.3g}"


def show_duration(seconds: float) -> str:
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"
