"""Words: how the log counts things."""


def counted(number: int, noun: str) -> str:
    """Count things for people: 1 request, 2 requests, 10,000 batches."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"
