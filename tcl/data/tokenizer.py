"""Caption cleaning and WordPiece tokens, exactly as the published method does both."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tcl.errors import ConfigError, UsageError, reason_of
from tcl.files.hub import quiet_hub
from tcl.files.json_object import Malformed, read_object

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER = {
    "model": {"type?": str, "vocab": {"*": int}, "max_input_chars_per_word?": int},
    "normalizer?": {"type": str},
    "pre_tokenizer?": {"type": str},
    "added_tokens?": [dict],
}
EXAMPLE = 60  # characters of a text that are shown
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")  # of which the first that is there counts

_PUNCTUATION = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_WHITESPACE_RUN = re.compile(r"\s{2,}")


def readable(text: str) -> str:
    """The text with half of a surrogate pair, as a cut emoji leaves behind, turned into a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case a caption, remove punctuation, and cut it after `max_words` words.

    A caption of punctuation only becomes empty; the pair index treats such a caption as missing.

    Args:
        text: the caption as it was written.
        max_words: words kept, counted between single spaces.

    Returns:
        the text the tokenizer sees.
    """
    text = readable(text).lower().translate(_PUNCTUATION).replace("<person>", "person")
    text = _WHITESPACE_RUN.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int = 50) -> str:
    """Clean a question: as `clean_caption`, but inner and leading whitespace stays as it is.

    Args:
        text: the question as it was written.
        max_words: words kept, counted between single spaces.
    """
    text = readable(text).lower().translate(_PUNCTUATION).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


@dataclass
class UnknownWords:
    """How many texts hold words that the vocabulary does not know: all such words are one and the same to a model.

    Attributes:
        texts: looked at.
        some: of them with such a word.
        alone: of them with such words alone.
        example: the first of these, else of those.
    """

    texts: int = 0
    some: int = 0
    alone: int = 0
    example: str = ""

    def add(self, text: str, ids: NDArray[np.int64], unk_id: int) -> None:
        """Count a text by its ids [S], `[CLS]` first."""
        unknown = ids[1:] == unk_id
        if unknown.any():
            if not self.some or (unknown.all() and not self.alone):
                self.example = text
            self.some += 1
            self.alone += bool(unknown.all())
        self.texts += 1

    def __add__(self, other: UnknownWords) -> UnknownWords:
        first, second = (other, self) if other.alone and not self.alone else (self, other)
        counts = self.texts + other.texts, self.some + other.some, self.alone + other.alone
        return UnknownWords(*counts, first.example or second.example)

    def warning(self) -> str | None:
        """One line that says so; None where all words are known."""
        if not self.some:
            return None
        alone = f", {self.alone} of them nothing else" if self.alone else ""
        contain = "contains" if self.some == 1 else "contain"
        return (
            f"{self.some} of {self.texts} texts {contain} words that the model's vocabulary does not know{alone}; "
            f"for example {self.example[:EXAMPLE]!r}"
        )


class CaptionTokenizer:
    """WordPiece tokens of captions: `[CLS] words`, without `[SEP]`, as published.

    Args:
        tokenizer: any tokenizer whose vocabulary has the five BERT special tokens; its post-processor, padding and
            truncation are replaced.
        source: where the vocabulary came from, named in errors.

    Raises:
        ConfigError: a special token is missing from the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer") -> None:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        missing = [token for token, token_id in ids.items() if token_id is None]
        if missing:
            raise ConfigError(
                f"{source}: the vocabulary has no {', '.join(missing)}",
                hint="use a BERT-style vocabulary: it lists [PAD], [UNK], [CLS], [SEP] and [MASK]",
            )
        known = (token_id for token_id in ids.values() if token_id is not None)  # in the order of SPECIAL_TOKENS
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = known
        # A special token counts as one only where it stands alone between spaces, as in the published tokenizer.
        tokenizer.add_special_tokens(
            [AddedToken(token, single_word=True, normalized=False, special=True) for token in SPECIAL_TOKENS]
        )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", self.cls_id)]
        )
        self._tokenizer = tokenizer
        self._vocab_size = max(tokenizer.get_vocab().values()) + 1

    @classmethod
    def load(cls, source: str | Path) -> CaptionTokenizer:
        """Load a vocabulary.

        Args:
            source: a `tokenizer.json` or `vocab.txt`, a folder with one of them, or a hub id such as
                `bert-base-uncased`.

        Raises:
            UsageError: nothing is there, or the hub cannot be reached.
            ConfigError: the file is not a BERT-style vocabulary.
        """
        path = Path(source)
        if path.is_dir():
            path = _vocabulary_in(path)
        elif not path.is_file():
            path = _download(str(source))
        if path.suffix == ".txt":
            return cls(_from_vocab_txt(path), str(path))
        return cls(_from_json(path), str(path))

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
        """Train a WordPiece vocabulary on captions; the same captions give the same vocabulary, byte for byte.

        Args:
            captions: captions as written; they are cleaned here.
            vocab_size: upper bound of the number of entries, special tokens included.

        Raises:
            ConfigError: `vocab_size` has no room for an alphabet.
        """
        texts = [clean_caption(caption) for caption in captions]
        alphabet = _alphabet(texts, vocab_size)
        unknown = {character for text in texts for character in text} - alphabet - {" "}
        if unknown:
            dropped = str.maketrans("", "", "".join(unknown))
            texts = [text.translate(dropped) for text in texts]
        # The trainer numbers the "##" characters in the order of a randomly seeded hash map, and breaks ties between
        # merges by these numbers. Naming them beforehand is what makes the result a function of the captions.
        pieces = sorted(alphabet) + [f"##{character}" for character in sorted(alphabet)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=[*SPECIAL_TOKENS, *pieces], show_progress=False
        )
        learner = _bert_style({})
        with _single_threaded():
            learner.train_from_iterator(texts, trainer)
        return cls(_bert_style(learner.get_vocab()), "trained vocabulary")

    def to_json(self) -> str:
        """The whole tokenizer as text; equal tokenizers give equal text."""
        return self._tokenizer.to_str(pretty=True)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into an existing folder."""
        (Path(folder) / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of entries; token ids are below it."""
        return self._vocab_size

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary entries of token ids; an id beyond the vocabulary reads as `[UNK]`."""
        return [self._tokenizer.id_to_token(int(token_id)) or "[UNK]" for token_id in ids]

    def __call__(
        self, texts: Sequence[str], max_length: int | None, clean: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise a batch, padded to its longest text.

        Args:
            texts: B texts.
            max_length: ids kept per text, `[CLS]` included; None keeps all.
            clean: pass the texts through `clean_caption` first.

        Returns:
            input_ids [B, S] and attention_mask [B, S], both int64; the mask is 1 at tokens and 0 at padding.
        """
        if clean:
            texts = [clean_caption(text) for text in texts]
        # One by one: the batch call starts threads, and threads before a fork make the library warn in every worker.
        rows = [self._tokenizer.encode(text).ids[:max_length] for text in texts]
        longest = max((len(row) for row in rows), default=0)
        input_ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
            attention_mask[i, : len(row)] = 1
        return input_ids, attention_mask


def _bert_style(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    """Only what BERT has: regular expressions and replacements of others can take for ever, or end the process."""
    try:
        values = read_object(path, TOKENIZER)
    except Malformed as error:
        raise ConfigError(f"{path} is not a tokenizer file: {error}") from error
    if "max_input_chars_per_word" in values["model"]:  # nothing else has it; files of older versions say no type
        values["model"].setdefault("type", "WordPiece")
    for name, own in (("model", "WordPiece"), ("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        kind = (values.get(name) or {}).get("type", "missing")
        if kind != own:
            raise ConfigError(
                f"{path}: its {name} is {kind}, not {own}", hint="use the tokenizer of a BERT, or a vocab.txt"
            )
    parts = {name: values.get(name) for name in ("version", "added_tokens", "normalizer", "pre_tokenizer", "model")}
    try:
        return Tokenizer.from_str(json.dumps(parts))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path} is not a tokenizer file: {reason_of(error)}") from error


def _from_vocab_txt(path: Path) -> Tokenizer:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a vocabulary: not UTF-8 text") from error
    entries = [line.rstrip("\r") for line in lines]
    if entries and not entries[-1]:
        entries.pop()  # the newline at the end of the file
    return _bert_style({entry: i for i, entry in enumerate(entries)})


def _vocabulary_in(folder: Path) -> Path:
    for name in VOCABULARY_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{folder} has neither tokenizer.json nor vocab.txt", hint="name a folder of a BERT-style model")


def _download(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.endswith((".json", ".txt")) or name.count("/") > 1:
        raise UsageError(f"no such tokenizer file or folder: {name}", hint="a path, or a hub id like bert-base-uncased")
    from huggingface_hub import hf_hub_download

    try:
        with quiet_hub():
            return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # network, hub and cache errors share no base class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(
            f"cannot get the tokenizer {name} from the hub: {reason}",
            hint="without network: name a local folder with tokenizer.json or vocab.txt",
        ) from error


def _alphabet(texts: Sequence[str], vocab_size: int) -> set[str]:
    """The characters of the texts; only the most frequent ones where the vocabulary has no room for all."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    by_frequency = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2  # each character needs an entry of its own and one with "##"
    if room < 1:
        raise ConfigError(f"a vocabulary of {vocab_size} entries has no room for letters", hint="use at least 200")
    return {character for _, character in by_frequency[:room]}


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Keep the tokenizers library from starting threads, which later forks of loader workers would trip over."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
