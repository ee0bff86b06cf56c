"""Counts with their nouns, and sizes with their units, in messages and captions."""

SIBILANTS = ("s", "x", "ch", "sh")  # endings whose plural has -es


def counted(number: float, noun: str, form: str = "") -> str:
    """Return `1 step`, `2 steps`, `2 classes` and so on. `form`: format of the number, e.g. `,d`."""
    plural = "es" if noun.endswith(SIBILANTS) else "s"
    return f"{number:{form}} {noun}{'' if number == 1 else plural}"


def size_text(count: float) -> str:
    """Return a number of bytes in GiB, or in MiB below 1 GiB."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.2g} MiB"
