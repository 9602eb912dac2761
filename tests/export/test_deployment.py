"""A machine without torch: what runs there, what is imported, and what foreign consumers know graphs by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from tcl.encoders.bundle import Bundle
from tcl.encoders.bundle_tar import pack
from tcl.encoders.graphs import ONNX_RUNTIME
from tcl.encoders.onnx import OnnxEncoder
from tcl.models.tcl import TCL

ROOT = Path(__file__).parents[2]
RUN = """
import sys
absent = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript")
for name in absent:
    sys.modules[name] = None  # any import of it fails
from tcl_cli.main import run
bundle, packed = sys.argv[1:]
def must(*arguments):
    code = run(list(arguments))
    assert code == 0, (code, arguments)
must("embed", "scenes:val:5", "--out", "v.npy", "--model", bundle, "--keep-tokens")
must("embed", "scenes:val:5", "--kind", "text", "--out", "t.parquet", "--model", packed)
must("search", "a red circle", "--index", "v.npy", "--model", bundle)
must("search", "a red circle", "--index", "v.npy", "--model", packed, "--rerank", "3")
must("search", "a red circle", "--index", "t.parquet", "--model", bundle, "--json")
must("embed", "scenes:val:5", "--out", "w.npy", "--model", bundle)
must("search", "a red circle", "--index", "w.npy", "--model", bundle, "--rerank", "3")  # opens the images again
for name in sys.modules:
    assert name.partition(".")[0] not in absent or sys.modules[name] is None, name
"""


def test_everything_a_bundle_does_runs_without_torch_and_onnx(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle.folder, tmp_path / "tiny.tar")
    command = [sys.executable, "-c", RUN, str(bundle.folder), "tiny.tar"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "v.npy").shape == (5, 16)
    assert done.stdout.count("\nrank\tscore\tlogit\tmatch") == 2, "re-ranked hits have a probability of a match"


def test_preprocessing_without_torch_gives_the_same_vectors(bundle: Bundle, tmp_path: Path) -> None:
    """It differs by a grey level at most from that with torch, and the vectors by 1e-4 in cosine."""
    draw, files = np.random.default_rng(0), []
    for number, (width, height) in enumerate([(640, 480), (800, 1100), (333, 500), (65, 49), (30, 70)]):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        files.append(tmp_path / f"{number}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=92)
    sources = [*files, *(f"scenes:val:0:{number}" for number in range(11))]
    encoder = OnnxEncoder(bundle.folder)
    pixels = [encoder.processor.fast(resizer).images(sources) for resizer in ("pillow", "torch")]  # type: ignore[arg-type]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1
    vectors = [encoder.encode_image(rows) for rows in pixels]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() >= 1 - 1e-4


IMAGE, TEXT = ("pixel_values",), ("input_ids", "attention_mask")
NAMES = {
    "image_encoder": (IMAGE, ("image_embeds",)),
    "text_encoder": (TEXT, ("text_embeds",)),
    "image_tokens": (IMAGE, ("image_embeds", "image_tokens")),
    "image_key_values": (("image_tokens",), ("image_key_values",)),
    "matcher": ((*TEXT, "image_key_values"), ("itm_logits",)),
}


def test_graphs_have_the_names_that_consumers_of_clip_models_use(every_precision: Bundle) -> None:
    assert set(every_precision.graphs) == set(NAMES)
    for graph, precisions in every_precision.graphs.items():
        for precision in ONNX_RUNTIME:
            path = every_precision.folder / str(precisions[precision]["file"])
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = [[port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs())]
            assert found == [list(names) for names in NAMES[graph]], path.name


def test_a_consumer_that_knows_only_names(bundle: Bundle, tiny_model: TCL) -> None:
    """What sentence-transformers and transformers.js do: a tokenizer's named arrays go to the inputs of these names."""
    tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    tokenizer.enable_padding()
    texts = ["a small red circle", "a large green star at the top"]
    encoded = tokenizer.encode_batch(texts)
    arrays = {
        "input_ids": np.array([each.ids for each in encoded]),
        "token_type_ids": np.array([each.type_ids for each in encoded]),
        "attention_mask": np.array([each.attention_mask for each in encoded]),
    }
    session = onnxruntime.InferenceSession(str(bundle.folder / "text_encoder.onnx"))
    wanted = {port.name for port in session.get_inputs()}
    found = session.run(["text_embeds"], {name: array for name, array in arrays.items() if name in wanted})[0]
    expected = tiny_model.encode_text(*tiny_model.processor.texts(texts)).text_feat.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
