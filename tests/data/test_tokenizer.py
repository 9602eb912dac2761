"""Cleaning and token ids equal the published ones exactly; a trained vocabulary is a function of its captions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl.data.tokenizer import CaptionTokenizer, clean_caption, clean_question
from tcl.errors import ConfigError, UsageError

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))
TOKENS = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
CAPTIONS = [
    "A man, riding a horse!",
    "a man rides a horses' back",
    "Été à la plage",
    "two horses on a beach",
    "7 men",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.load(GOLDEN / "vocab.txt")


@pytest.mark.parametrize("max_words", [5, 30, 50])
def test_cleaning_equals_the_published_one(max_words: int) -> None:
    for row in TEXT["rows"]:
        assert clean_caption(row["text"], max_words) == row[f"pre_caption_{max_words}"]
        assert clean_question(row["text"], max_words) == row[f"pre_question_{max_words}"]


@given(st.text())
def test_a_clean_caption_is_lower_case_short_and_without_punctuation(text: str) -> None:
    clean = clean_caption(text)
    assert len(clean.split(" ")) <= 30
    assert not set(clean) & set(",.'!?\"()*#:;~-/")
    assert clean_caption(text.upper()) == clean_caption(text.upper().lower())


def test_token_ids_equal_the_published_ones(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.vocab_size == len(TOKENS["vocab"])
    for row in TOKENS["rows"]:
        ids, mask = tokenizer([row["text"]], None, clean=False)
        assert ids[0].tolist() == row["input_ids"]
        assert mask[0].tolist() == row["attention_mask"]
        assert tokenizer.tokens(ids[0, 1:]) == row["tokens"]
        assert tokenizer([row["text"]], 25, clean=False)[0][0].tolist() == row["truncated25"]


def test_special_ids_come_from_the_vocabulary(tokenizer: CaptionTokenizer) -> None:
    ids = {
        "pad": tokenizer.pad_id,
        "unk": tokenizer.unk_id,
        "cls": tokenizer.cls_id,
        "sep": tokenizer.sep_id,
        "mask": tokenizer.mask_id,
    }
    assert ids == TOKENS["ids"]


def test_a_batch_is_padded_to_its_longest_text(tokenizer: CaptionTokenizer) -> None:
    ids, mask = tokenizer(["A dog.", "a woman and a man on the beach", ""], 6)
    assert ids.dtype == mask.dtype == np.int64
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]]
    assert ids[0].tolist() == [2, 5, 12, 0, 0, 0]


def test_training_gives_the_same_vocabulary_in_another_process() -> None:
    script = (
        "import sys, json; from tcl.data.tokenizer import CaptionTokenizer\n"
        "sys.stdout.write(CaptionTokenizer.train(json.loads(sys.argv[1]), 60).to_json())"
    )
    command = [sys.executable, "-c", script, json.dumps(CAPTIONS)]
    texts = {subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(2)}
    assert texts == {CaptionTokenizer.train(CAPTIONS, 60).to_json()}


@pytest.mark.parametrize("vocab_size", [15, 40, 60, 500])
def test_a_trained_vocabulary_stays_within_its_bound_and_survives_saving(vocab_size: int, tmp_path: Path) -> None:
    trained = CaptionTokenizer.train(CAPTIONS, vocab_size)
    assert trained.vocab_size <= vocab_size
    trained.save(tmp_path)
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = CaptionTokenizer.load(source)
        assert loaded.to_json() == trained.to_json()
        assert np.array_equal(loaded(CAPTIONS, 25)[0], trained(CAPTIONS, 25)[0])
    if vocab_size == 500:
        assert trained.unk_id not in trained(CAPTIONS, None)[0]
        assert trained.tokens(trained(["A HORSE."], None)[0][0]) == ["[CLS]", "a", "horse"]


def test_a_vocabulary_too_small_for_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no room"):
        CaptionTokenizer.train(CAPTIONS, 6)


def test_a_vocabulary_without_a_special_token_names_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(ConfigError, match=r"vocab\.txt.*\[MASK\]"):
        CaptionTokenizer.load(tmp_path)


@pytest.mark.parametrize("typed", [True, False])
def test_the_tokenizer_of_a_bert_is_loaded(tokenizer: CaptionTokenizer, tmp_path: Path, typed: bool) -> None:
    """As it lies on the hub: with parts that are not used, and from before models said their type."""
    values = json.loads(tokenizer.to_json())
    if not typed:
        del values["model"]["type"]
    values["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    values["truncation"] = {"max_length": 512, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    loaded = CaptionTokenizer.load(tmp_path)
    assert loaded.to_json() == tokenizer.to_json()
    np.testing.assert_array_equal(loaded(CAPTIONS, None)[0], tokenizer(CAPTIONS, None)[0])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "^(([a-z])+.)+[A-Z]"}, "behavior": "Isolated"},
        ),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}}] * 40}),
        ("normalizer", None),
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": []}),
    ],
)
def test_a_tokenizer_of_another_kind_is_not_loaded(
    tokenizer: CaptionTokenizer, tmp_path: Path, part: str, value: object
) -> None:
    """Some regular expressions take for ever, and some make the library panic."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_json()) | {part: value}))
    with pytest.raises(ConfigError, match=rf"tokenizer\.json: its {part} is \w+, not "):
        CaptionTokenizer.load(tmp_path)


def test_missing_and_malformed_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="neither"):
        CaptionTokenizer.load(tmp_path)
    with pytest.raises(UsageError, match="no such"):
        CaptionTokenizer.load(tmp_path / "absent" / "vocab.txt")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        CaptionTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        CaptionTokenizer.load(tmp_path / "vocab.txt")

    def offline(*_: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UsageError, match=r"bert-base-uncased from the hub: no route to host$"):
        CaptionTokenizer.load("bert-base-uncased")
