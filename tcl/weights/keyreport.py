"""What became of every key when weights are loaded: nothing is dropped or left fresh in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, NamedTuple

from tcl.weights.layouts import OUTSIDE, Place

POSITIONS = "visual_encoder.pos_embed"  # [1, 1 + rows * columns, D]; the only weights that depend on the image size
SHOWN = 6  # names in a line for people

Shape = tuple[int, ...]


class Fit(NamedTuple):
    """A tensor of another shape than the model's: its key in the file, its shape there, and the model's."""

    source: str
    theirs: Shape
    ours: Shape


@dataclass
class KeyReport:
    """Every key of the file and every key of the model, each in exactly one class.

    Attributes:
        source: what was loaded, for people.
        kind: what it is; see `tcl.weights.layouts.Layout`.
        loaded: keys of the same name in file and model.
        remapped: the model's key -> the file's key.
        resized: the model's key -> position embeddings that were resampled to the model's grid.
        missing: the model's key -> its shape; it keeps its fresh initial value.
        unused: the file's key -> why it has no place here.
        unknown: the file's keys that belong to a part of the model, which has nothing of that name.
        wrong_shape: the model's key -> what does not fit.
    """

    source: str
    kind: str = ""
    loaded: list[str] = field(default_factory=list)
    remapped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, Fit] = field(default_factory=dict)
    missing: dict[str, Shape] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    wrong_shape: dict[str, Fit] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """The model's key -> the file's key, of all that is loaded."""
        resized = {name: fit.source for name, fit in self.resized.items()}
        return {name: name for name in self.loaded} | self.remapped | resized

    def counts(self) -> dict[str, int]:
        """Keys in each class."""
        return {name: len(keys) for name, keys in self._classes().items()}

    def summary(self) -> str:
        """One line."""
        counts = [f"{count} {name.replace('_', ' ')}" for name, count in self.counts().items() if count]
        return f"{self.source}{f' ({self.kind})' if self.kind else ''}: {', '.join(counts) or 'no keys'}"

    def lines(self) -> list[str]:
        """A few lines: which parts were loaded, and of the other classes what they hold."""
        lines = [self.summary()]
        if self.loaded or self.remapped:
            parts = Counter(name.partition(".")[0] for name in [*self.loaded, *self.remapped])
            lines.append("  loaded: " + ", ".join(f"{part} {count}" for part, count in parts.items()))
        if self.remapped:
            ours, theirs = next(iter(self.remapped.items()))
            lines.append(f"  remapped: {len(self.remapped)}, as {theirs} -> {ours}")
        lines += [f"  resized: {name} {_shapes(fit)}" for name, fit in self.resized.items()]
        if self.missing:
            lines.append(f"  missing, keep their initial values: {listed(self.missing)}")
        for why in dict.fromkeys(self.unused.values()):
            lines.append(f"  unused, {why}: {listed([key for key, reason in self.unused.items() if reason == why])}")
        if self.unknown:
            lines.append(f"  unknown: {listed(self.unknown)}")
        lines += [f"  wrong shape: {name} {_shapes(fit)}" for name, fit in self.wrong_shape.items()]
        return lines

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Every key: its class, its name, and what there is to say about it."""
        yield from (("loaded", name, "") for name in self.loaded)
        yield from (("remapped", name, f"from {source}") for name, source in self.remapped.items())
        yield from (("resized", name, _shapes(fit)) for name, fit in self.resized.items())
        yield from (("missing", name, str(list(shape))) for name, shape in self.missing.items())
        yield from (("unused", name, why) for name, why in self.unused.items())
        yield from (("unknown", name, "") for name in self.unknown)
        yield from (("wrong_shape", name, _shapes(fit)) for name, fit in self.wrong_shape.items())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fits = {
            name: {key: fit._asdict() for key, fit in keys.items()}
            for name, keys in (("resized", self.resized), ("wrong_shape", self.wrong_shape))
        }
        return {"source": self.source, "kind": self.kind, **self._classes(), **fits}

    def problem(self, may_lack: Callable[[str], bool]) -> str | None:
        """Why these weights do not make this model, if they do not.

        Args:
            may_lack: whether the source need not have one of the model's keys.
        """
        problems = []
        if self.wrong_shape:  # a whole file of other sizes comes down to one of them, and words say most
            name, fit = min(self.wrong_shape.items(), key=lambda item: "word_embeddings" not in item[0])
            more = len(self.wrong_shape) - 1
            problems.append(f"{name} is {fit.theirs} there, {fit.ours} here" + (f", and {more} more" if more else ""))
        missing = [name for name in self.missing if not may_lack(name)]
        for names, what in ((missing, "missing"), (self.unknown, "unknown")):
            if names:
                problems.append(f"{len(names)} {what} ({first_names(names)})")
        return "; ".join(problems) or None

    def and_then(self, other: KeyReport) -> KeyReport:
        """The report of two files that were loaded into one model, one after the other."""
        return KeyReport(
            f"{self.source} and {other.source}",
            ", ".join(filter(None, (self.kind, other.kind))),
            self.loaded + other.loaded,
            self.remapped | other.remapped,
            self.resized | other.resized,
            {name: shape for name, shape in self.missing.items() if name in other.missing},
            self.unused | other.unused,
            self.unknown + other.unknown,
            self.wrong_shape | other.wrong_shape,
        )

    def _classes(self) -> dict[str, Any]:
        names = ("loaded", "remapped", "resized", "missing", "unused", "unknown", "wrong_shape")
        return {name: getattr(self, name) for name in names}


def account(
    source: str,
    kind: str,
    theirs: Mapping[str, Shape],
    ours: Mapping[str, Shape],
    place: Callable[[str], Place],
) -> KeyReport:
    """Compare a file with a model, by names and shapes.

    Args:
        source: what the file is called, for people.
        kind: what it is.
        theirs: the file's keys.
        ours: the model's keys.
        place: where a key of the file belongs.
    """
    report = KeyReport(source, kind)
    taken: set[str] = set()
    for key, shape in theirs.items():
        target, why = place(key)
        if target is None or target in taken:
            report.unused[key] = why or ("another key has its place" if target else OUTSIDE)
        elif target not in ours:
            report.unknown.append(key)
        else:
            taken.add(target)
            if shape != ours[target]:
                misfits = (
                    report.resized if target == POSITIONS and _resizable(shape, ours[target]) else report.wrong_shape
                )
                misfits[target] = Fit(key, shape, ours[target])
            elif key == target:
                report.loaded.append(key)
            else:
                report.remapped[target] = key
    report.missing = {name: shape for name, shape in ours.items() if name not in taken}
    return report


def first_names(names: Collection[str]) -> str:
    """The first names, and how many there are beyond."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def listed(names: Collection[str]) -> str:
    """The names; where many belong to one part, the part and how many."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], []).append(name)
    shown = []
    for part, group in parts.items():
        which = " of cross-attention" if all(".crossattention." in name for name in group) else ""
        shown.append(f"{part}.* ({len(group)} keys{which})" if len(group) > SHOWN else ", ".join(group))
    return ", ".join(shown)


def _resizable(theirs: Shape, ours: Shape) -> bool:
    patches = theirs[1] - 1 if len(theirs) == 3 else 0
    return patches > 0 and theirs[0] == 1 and theirs[2] == ours[2] and isqrt(patches) ** 2 == patches


def _shapes(fit: Fit) -> str:
    return f"{list(fit.theirs)} -> {list(fit.ours)}"
