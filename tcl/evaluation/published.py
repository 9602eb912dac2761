"""Published evaluations of retrieval: which test set, which checkpoint, which settings, which figures.

Figures whose source is the paper's leaderboard entry or its authors are as published there. Those in `to_verify` were
written down from memory of the paper and have not been compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcl.errors import UsageError

_ORDER = tuple(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
_BOARD = "paperswithcode.com/paper/vision-language-pre-training-with-triple"
_AUTHORS = "github.com/uta-smile/TCL/issues/10"
_VECTORS = "arXiv 2302.11084, project page"
_PAPER = "arXiv 2202.10401"


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        what: the checkpoint, and how candidates were ranked.
        figures: recall in percent, named `i2t_r1` to `t2i_r10`; image to text is the papers' TR.
        source: where they stand.
        to_verify: names of the figures that have not been compared with their source.
    """

    what: str
    figures: dict[str, float]
    source: str
    to_verify: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetrievalProtocol:
    """One published evaluation.

    Attributes:
        name: as `--protocol` takes it.
        dataset: the test set.
        images: how many it has.
        texts: how many it has.
        checkpoint: what the published figures were made with.
        candidates: per query, re-ranked.
        image_size: pixels, square.
        rows: what was published, the row of the paper first.
    """

    name: str
    dataset: str
    images: int
    texts: int
    checkpoint: str
    candidates: int
    image_size: int
    rows: tuple[Published, ...]

    def differences(self, images: int, texts: int, candidates: int, image_size: tuple[int, int]) -> list[str]:
        """What keeps figures measured so from being compared with the published ones."""
        found = []
        if (images, texts) != (self.images, self.texts):
            found.append(f"{images} images and {texts} texts instead of {self.images} and {self.texts}")
        if candidates != self.candidates:
            found.append(f"{candidates} candidates re-ranked instead of {self.candidates}")
        if image_size != (self.image_size, self.image_size):
            found.append(f"images of {image_size[1]} x {image_size[0]} pixels instead of {self.image_size}")
        return found


def find_protocol(name: str) -> RetrievalProtocol:
    """A protocol by its name.

    Raises:
        UsageError: there is none of this name.
    """
    for protocol in RETRIEVAL:
        if protocol.name == name:
            return protocol
    raise UsageError(f"no protocol {name!r}", hint=f"known are {', '.join(protocol.name for protocol in RETRIEVAL)}")


def _figures(*recalls: float) -> dict[str, float]:
    return dict(zip(_ORDER, recalls, strict=True))


RETRIEVAL = (
    RetrievalProtocol(
        "coco-zero-shot",
        "the 5K test split of COCO (Karpathy)",
        images=5000,
        texts=25010,
        checkpoint="the pre-trained one (TCL_4M.pth), which was not fine-tuned",
        candidates=256,
        image_size=384,
        rows=(
            Published("pre-trained, re-ranked", _figures(71.4, 90.8, 95.4, 53.5, 79.0, 87.1), _BOARD),
            Published("pre-trained, vectors alone", _figures(57.6, 84.3, 91.8, 41.8, 70.6, 80.6), _VECTORS),
        ),
    ),
    RetrievalProtocol(
        "flickr-zero-shot",
        "the 1K test split of Flickr30k (Karpathy)",
        images=1000,
        texts=5000,
        checkpoint="the one fine-tuned on COCO retrieval, not the pre-trained one",
        candidates=128,
        image_size=384,
        rows=(
            Published(
                "fine-tuned on COCO, re-ranked",
                _figures(93.0, 99.1, 99.6, 79.6, 95.1, 97.4),
                f"{_PAPER}, table 2",
                to_verify=("i2t_r5", "i2t_r10", "t2i_r5", "t2i_r10"),
            ),
            Published(
                "pre-trained alone, re-ranked",
                _figures(89.4, 98.6, 99.6, 73.36, 92.16, 95.52),
                _AUTHORS,
            ),
            Published("vectors alone", _figures(73.8, 93.3, 96.9, 59.1, 84.6, 91.1), _VECTORS),
        ),
    ),
    RetrievalProtocol(
        "coco",
        "the 5K test split of COCO (Karpathy)",
        images=5000,
        texts=25010,
        checkpoint="the one fine-tuned on COCO retrieval",
        candidates=256,
        image_size=384,
        rows=(
            Published(
                "fine-tuned on COCO, re-ranked",
                _figures(75.6, 92.8, 96.7, 59.0, 83.2, 89.9),
                _PAPER,
                to_verify=("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r5", "t2i_r10"),
            ),
        ),
    ),
    RetrievalProtocol(
        "flickr",
        "the 1K test split of Flickr30k (Karpathy)",
        images=1000,
        texts=5000,
        checkpoint="the one fine-tuned on Flickr30k retrieval",
        candidates=128,
        image_size=384,
        rows=(
            Published(
                "fine-tuned on Flickr30k, re-ranked",
                _figures(94.9, 99.5, 99.8, 84.0, 96.7, 98.5),
                _PAPER,
                to_verify=_ORDER,
            ),
        ),
    ),
)
