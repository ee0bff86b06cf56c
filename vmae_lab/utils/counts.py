"""Counts with their nouns in messages and captions."""

SIBILANTS = ("s", "x", "ch", "sh")  # endings whose plural has -es


def counted(number: float, noun: str, form: str = "") -> str:
    """Return `1 step`, `2 steps`, `2 classes` and so on. `form`: format of the number, e.g. `,d`."""
    return f"{number:{form}} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the regular plural of a noun or of a phrase that ends with it."""
    return noun + ("es" if noun.endswith(SIBILANTS) else "s")
