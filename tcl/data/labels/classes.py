"""The classes of entailment, NLVR2 and text assignment, in the published order."""

from __future__ import annotations

ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Classes of visual entailment in the published order."""

NLVR2 = ("False", "True")
"""Classes of NLVR2 in the published order."""

ASSIGNMENT = ("first", "second", "neither")
"""Classes of text assignment: the image that the text belongs to."""
