"""Is data fit for training? Figures of captions and images, and the limits they must keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tcl.data.check.figures import percent

if TYPE_CHECKING:
    from tcl.data.check.captions import CaptionCheck
    from tcl.data.check.images import ImageCheck


@dataclass(frozen=True)
class Limits:
    """What is tolerated, in percent; beyond it `tcl data check` fails.

    Args:
        bad: images that are missing or unreadable, of those read.
        skipped: rows without image or caption, of all rows.
        duplicates: images whose file is a copy of another image's, of those that could be read.
        unknown: tokens that are `[UNK]`.
    """

    bad: float = 5.0
    skipped: float = 5.0
    duplicates: float = 20.0
    unknown: float = 5.0

    def exceeded(self, skipped: int, captions: CaptionCheck, images: ImageCheck) -> list[str]:
        """What is beyond a limit, each as a sentence that names the option which sets it."""
        figures = [
            (self.bad, images.bad, images.checked, "of the images are missing or unreadable", "bad"),
            (self.skipped, skipped, captions.pairs + skipped, "of the rows were skipped", "skipped"),
            (self.duplicates, images.copies, images.readable, "of the images are copies of another", "duplicates"),
        ]
        if captions.unknown is not None:
            tokens = captions.unknown
            figures.append((self.unknown, tokens.tokens, tokens.of_tokens, "of the tokens are [UNK]", "unknown"))
        return [
            f"{percent(part, whole):.4g} % {what} (--max-{option} {limit:g})"
            for limit, part, whole, what, option in figures
            if part * 100 > limit * whole
        ]


def report(
    skipped: int, skipped_reasons: list[str], captions: CaptionCheck, images: ImageCheck, limits: Limits
) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    exceeded = limits.exceeded(skipped, captions, images)
    return {
        "ok": not exceeded,
        "exceeded": exceeded,
        "limits": asdict(limits),
        "pairs": captions.pairs,
        "skipped": {"rows": skipped, "examples": skipped_reasons},
        "captions": captions.to_json(),
        "images": images.to_json(),
    }
