"""Captions of pairs: how long, how much of them is cut, which words the vocabulary lacks, which repeat.

Memory is bounded by 8-byte hashes, one for each pair and caption, so that ten million pairs fit.
"""

from __future__ import annotations

import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from tcl.data.check.figures import Listing, digest, most_common, percent, share, summary
from tcl.data.tokenizer import CaptionTokenizer, clean_caption
from tcl.machine.processes import ordered_map

if TYPE_CHECKING:
    from tcl.data.pairs.table import PairIndex

CHUNK_PAIRS = 512
MAX_WORDS = 30  # kept by `clean_caption`
WORD_SHOWN = 40  # characters of an unknown word that are kept
UNKNOWN_WORDS_KEPT = 50_000

_Pairs = list[tuple[str, list[str]]]


@dataclass
class Unknown:
    """What of the captions becomes `[UNK]`; tokens are counted without `[CLS]`, before the cut to `max_length`."""

    tokens: int = 0
    of_tokens: int = 0
    captions: int = 0
    words: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)

    def add(self, other: Unknown) -> None:
        """Count what another part of the data has."""
        self.tokens += other.tokens
        self.of_tokens += other.of_tokens
        self.captions += other.captions
        self.words.update(other.words)
        self.characters.update(other.characters)
        if len(self.words) > 2 * UNKNOWN_WORDS_KEPT:  # in a foreign language every word may be one
            self.words = Counter(dict(self.words.most_common(UNKNOWN_WORDS_KEPT)))

    def scripts(self) -> Counter[str]:
        """How often characters of each script are unknown: which languages the vocabulary was not made for."""
        scripts: Counter[str] = Counter()
        for character, count in self.characters.items():
            scripts[_script(character)] += count
        return scripts

    def to_json(self, captions: int) -> dict[str, Any]:
        """Plain values; `captions` is the number of all captions."""
        return {
            "tokens": {"count": self.tokens, "percent": percent(self.tokens, self.of_tokens)},
            "captions": share(self.captions, captions),
            "scripts": most_common(self.scripts()),
            "characters": most_common(self.characters),
            "words": most_common(self.words),
        }


@dataclass
class CaptionCheck:
    """Figures of all captions.

    Attributes:
        pairs: rows.
        captions: of all rows together.
        words: how many captions have how many words, before the cut to `MAX_WORDS`.
        tokens: likewise tokens, `[CLS]` included, before the cut to `max_length`; empty without a tokenizer.
        max_length: tokens that a model would keep.
        unknown: None without a tokenizer.
        repeated_images: rows whose image an earlier row has, as where each row holds one of several captions.
        repeated_pairs: captions that an earlier row has with the same image.
        shared: captions, cleaned, that stand with another image too.
        first_rows: the first row [I] of each image, ascending.
    """

    pairs: int = 0
    captions: int = 0
    words: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    max_length: int = 0
    unknown: Unknown | None = None
    repeated_images: int = 0
    repeated_pairs: int = 0
    shared: int = 0
    first_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        cut = sum(count for words, count in self.words.items() if words > MAX_WORDS)
        values: dict[str, Any] = {
            "count": self.captions,
            "words": summary(self.words),
            f"cut_at_{MAX_WORDS}_words": share(cut, self.captions),
            "repeated_images": share(self.repeated_images, self.pairs),
            "repeated_pairs": share(self.repeated_pairs, self.captions),
            "shared": share(self.shared, self.captions),
            "tokens": None,
            "unknown": None,
        }
        if self.unknown is not None:
            cut = sum(count for tokens, count in self.tokens.items() if tokens > self.max_length)
            values["tokens"] = {**summary(self.tokens), f"cut_at_{self.max_length}": share(cut, self.captions)}
            values["unknown"] = self.unknown.to_json(self.captions)
        return values


def check_captions(
    index: PairIndex,
    tokenizer: CaptionTokenizer | None = None,
    max_length: int = 25,
    *,
    workers: int = 1,
    listing: Listing | None = None,
    progress: Callable[[int], object] = lambda n: None,
) -> CaptionCheck:
    """Read every caption once; the figures do not depend on the number of workers.

    Args:
        index: the pairs.
        tokenizer: the vocabulary of the model; without it nothing is said about tokens.
        max_length: tokens that the model keeps, `[CLS]` included.
        workers: processes.
        listing: called for each repeated pair and each shared caption.
        progress: called with the number of pairs done since the last call.
    """
    result = CaptionCheck(max_length=max_length, unknown=Unknown() if tokenizer else None)
    images, counts, texts = array("Q"), array("I"), array("Q")
    make = partial(_Counter, tokenizer.to_json() if tokenizer else None)
    workers = min(workers, len(index) // CHUNK_PAIRS)
    for pairs, counted in ordered_map(make, _chunks(index), workers):
        result.pairs += len(pairs)
        result.words.update(counted.words)
        result.tokens.update(counted.tokens)
        if result.unknown is not None:
            result.unknown.add(counted.unknown)
        images.frombytes(counted.images)
        texts.frombytes(counted.texts)
        counts.extend(len(captions) for _, captions in pairs)
        progress(len(pairs))
    result.captions = len(texts)
    # Views, not copies: these are the arrays that grow with the data.
    arrays = np.frombuffer(images, np.uint64), np.frombuffer(counts, np.uint32), np.frombuffer(texts, np.uint64)
    _count_repetitions(result, *arrays, index, listing)
    return result


def _chunks(index: PairIndex) -> Iterator[_Pairs]:
    pairs = ((pair.image, pair.captions) for pair in index)
    while chunk := list(islice(pairs, CHUNK_PAIRS)):
        yield chunk


class _Counted(NamedTuple):
    """Of one chunk; hashes as the bytes of uint64 arrays."""

    words: Counter[int]
    tokens: Counter[int]
    unknown: Unknown
    images: bytes
    texts: bytes


class _Counter:
    """Counts a chunk of pairs, in whatever process; a tokenizer travels there as its JSON."""

    def __init__(self, tokenizer: str | None) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer) if tokenizer else None
        self.unk_id = (self.tokenizer and self.tokenizer.token_to_id("[UNK]")) or 0

    def __call__(self, pairs: _Pairs) -> _Counted:
        counted = _Counted(Counter(), Counter(), Unknown(), b"".join(digest(image.encode()) for image, _ in pairs), b"")
        texts = []
        for _, captions in pairs:
            for caption in captions:
                words = clean_caption(caption, max_words=sys.maxsize).split(" ")
                text = " ".join(words[:MAX_WORDS])
                counted.words[len(words)] += 1
                texts.append(digest(text.encode()))
                if self.tokenizer is not None:
                    self._count_tokens(text, counted)
        return counted._replace(texts=b"".join(texts))

    def _count_tokens(self, text: str, counted: _Counted) -> None:
        assert self.tokenizer is not None
        encoding = self.tokenizer.encode(text)
        counted.tokens[len(encoding.ids)] += 1
        unknown = counted.unknown
        unknown.of_tokens += len(encoding.ids) - 1
        number = encoding.ids.count(self.unk_id)
        if not number:
            return
        unknown.tokens += number
        unknown.captions += 1
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self.unk_id:
                word = text[start:stop]
                unknown.words[word[:WORD_SHOWN]] += 1
                normalizer = self.tokenizer.normalizer
                normal = normalizer.normalize_str(word) if normalizer else word
                unknown.characters.update(filter(self._is_unknown, normal))

    def _is_unknown(self, character: str) -> bool:
        assert self.tokenizer is not None
        lookup = self.tokenizer.token_to_id
        return not character.isspace() and lookup(character) is None and lookup(f"##{character}") is None


def _script(character: str) -> str:
    """`Cyrillic`, `Hangul`, `CJK`, ... of a letter, by its Unicode name."""
    if not unicodedata.category(character).startswith("L"):
        return "symbols"
    name = unicodedata.name(character, "other letters").split(" ")[0]
    return name if name == "CJK" else name.capitalize()


def _count_repetitions(
    result: CaptionCheck,
    images: np.ndarray,
    counts: np.ndarray,
    texts: np.ndarray,
    index: PairIndex,
    listing: Listing | None,
) -> None:
    """Which images, pairs and captions repeat.

    Args:
        result: gets the figures.
        images: hashes of the image of each row [N].
        counts: captions of each row [N].
        texts: hashes of the captions of all rows, one after another [M].
        index: names what is listed.
        listing: see `check_captions`.
    """
    _, first_rows = np.unique(images, return_index=True)
    result.first_rows = np.sort(first_rows)
    result.repeated_images = len(images) - len(first_rows)
    if not len(texts):
        return
    beside = np.repeat(images, counts)  # the image of each caption
    order = np.lexsort((beside, texts))  # stable: equal ones stay in the order of their rows
    new_text = _changes(texts[order])
    new_pair = new_text | _changes(beside[order])
    group = np.cumsum(new_text) - 1
    shared = np.bincount(group[new_pair])[group] > 1
    result.repeated_pairs = int((~new_pair).sum())
    result.shared = int(shared.sum())
    if listing is not None:
        starts = np.concatenate(([0], np.cumsum(counts)))
        for problem, positions in (("repeated pair", order[~new_pair]), ("shared caption", order[shared])):
            for position in np.sort(positions):
                row = int(np.searchsorted(starts, position, side="right")) - 1
                pair = index[row]
                caption = pair.captions[int(position - starts[row])]
                listing({"row": row, "image": pair.image, "problem": problem, "caption": caption})


def _changes(values: np.ndarray) -> np.ndarray:
    """Where a value is not the one before it [M]; true at the first."""
    return np.append(True, values[1:] != values[:-1])
