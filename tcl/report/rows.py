"""The single samples that a report shows, each with what the model makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReportSample:
    """A pair, and the captions that the model finds nearest to its image.

    Attributes:
        thumbnail: the image, as a small JPEG or PNG file.
        caption: its own caption.
        by_vectors: captions with their cosine, best first.
        by_matching: captions with their probability of a match, best first.
    """

    thumbnail: bytes
    caption: str
    by_vectors: list[tuple[str, float]] = field(default_factory=list)
    by_matching: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class LabelSample:
    """A row of a task with labels, and what the model says of it.

    Attributes:
        thumbnails: its image, or both.
        text: the question, statement or phrase.
        truth: the right labels or answers.
        predicted: labels with their probability, best first.
        note: what else there is to say.
    """

    thumbnails: list[bytes]
    text: str
    truth: list[str] = field(default_factory=list)
    predicted: list[tuple[str, float]] = field(default_factory=list)
    note: str = ""


Sample = ReportSample | LabelSample
