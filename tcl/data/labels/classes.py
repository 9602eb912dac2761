"""The classes of entailment, NLVR2 and text assignment, in the published order; classes that may be meant as one."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Classes of visual entailment in the published order."""

NLVR2 = ("False", "True")
"""Classes of NLVR2 in the published order."""

ASSIGNMENT = ("first", "second", "neither")
"""Classes of text assignment: the image that the text belongs to."""


def spelling_warning(counts: Mapping[str, int], what: str) -> str | None:
    """One line about classes that differ in case or spaces only; None where there are none.

    Args:
        counts: rows of each class.
        what: they are called, in the plural.
    """
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    groups = [labels for labels in alike.values() if len(labels) > 1]
    if not groups:
        return None
    first = " and ".join(f"{label!r} ({counts[label]})" for label in groups[0])
    more = f"; {len(groups) - 1} more such groups" if len(groups) > 1 else ""
    return f"{what} that differ in case or spaces only are learned as different ones: {first}{more}"
