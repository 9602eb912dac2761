"""A model for code that was written for sentence-transformers: `SentenceEncoder` does without that package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.encoders.embedder import Embedder
from tcl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceEncoder:
    """Texts to vectors under the names that sentence-transformers gave these things.

    Args:
        embedder: from `tcl.load`.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = False,
        precision: Literal["float32", "float16", "int8", "binary", "ubinary"] = "float32",
    ) -> NDArray[Any] | list[NDArray[Any]]:
        """Vectors of texts.

        Args:
            sentences: texts, or one.
            batch_size: texts per pass through the model.
            show_progress_bar: draw a bar.
            convert_to_numpy: one array [N, E]; otherwise a list of N vectors.
            normalize_embeddings: either way, for vectors of this model have length 1 from the start.
            precision: of the vectors. `ubinary` is packed bits as uint8, `binary` the same minus 128 as int8. In
                `int8` the largest magnitude of each vector is 127, whatever else is encoded.

        Returns:
            vectors; of a single text its own [E].

        Raises:
            DataError: a text holds no words.
            UsageError: an unknown precision.
        """
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        with _bar(len(texts)) if show_progress_bar else nullcontext() as progress:
            own: Any = "binary" if precision == "ubinary" else precision
            vectors = self.embedder.encode_texts(texts, batch_size, progress, own)
        if precision == "binary":
            vectors = (vectors ^ 0x80).view(np.int8)  # minus 128
        if single:
            vector: NDArray[Any] = vectors[0]
            return vector
        return vectors if convert_to_numpy else list(vectors)

    def get_sentence_embedding_dimension(self) -> int:
        """Width E of a vector."""
        return self.embedder.embed_dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def to_sentence_transformer(self) -> SentenceTransformer:
        """A `SentenceTransformer` around the model, for code that asks for that very class.

        Raises:
            UsageError: the package is not installed, or in another version.
        """
        if find_spec("sentence_transformers") is None:
            raise MissingExtraError("sentence-transformers", "st")
        try:
            from sentence_transformers import SentenceTransformer

            from tcl.encoders.sentence_module import TclModule
        except ImportError as error:
            raise UsageError(
                f"this needs another version of sentence-transformers: {error}", hint="pip install '.[st]'"
            ) from error

        # The model is where `tcl.load` put it; what passes through sentence-transformers are ids, pixels and vectors.
        return SentenceTransformer(modules=[TclModule(self.embedder)], device="cpu")


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("Texts", total=total)
        yield lambda done: bar.advance(task, done)
