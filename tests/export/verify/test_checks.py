"""Every bound holds just inside and fails just outside, whichever case, output, row or entry is off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.verify.cases import Case
from export.verify.checks import Bounds, Check, Figures
from export.verify.comparison import Comparison
from tcl.encoders.graphs import Graph, Port
from tcl.errors import UsageError
from tests.vectors.vector_files import unit

# The table of docs/export.md.
TABLE = {
    **{("fp32", role): ("difference", 1e-5) for role in ("vectors", "states")},
    **{("fp16", role): ("cosine", 0.9995) for role in ("vectors", "states")},
    **{("bf16", role): ("cosine", 0.998) for role in ("vectors", "states")},
    **{(low, role): ("cosine", 0.99) for role in ("vectors", "states") for low in ("int8", "fp8")},
    **{(name, "logits"): ("difference", bound) for name, bound in (("fp32", 1e-4), ("fp16", 0.02), ("bf16", 0.1))},
    **{(low, "logits"): ("difference", 0.3) for low in ("int8", "fp8")},
}
Array = NDArray[np.float32]


def _check(role: str, precision: str, pairs: Sequence[tuple[Array, Array]], **moved: float) -> Check:
    """What is found of cases `a`, `b`, ..., each (actual, expected)."""
    figures = Figures(role)
    for name, (actual, expected) in zip("abcdef", pairs, strict=False):
        figures.add(name, actual, expected)
    return figures.check("graph", precision, "output", len(pairs), Bounds(moved), "here")


def _shaped(role: str, rows: int = 7) -> Array:
    """Random outputs; states are [B, T, W] and up to 8 large, logits at most 1."""
    if role == "logits":
        return np.random.default_rng(rows).uniform(-1, 1, (rows, 2)).astype(np.float32)
    values = unit(rows, 12, seed=rows)
    return values if role == "vectors" else (values * (8 / np.abs(values).max())).reshape(rows, 3, 4)


def _turned(row: Array, cosine: float) -> Array:
    """The same length in another direction."""
    other = np.random.default_rng(1).standard_normal(row.shape)
    other -= row * (other * row).sum() / (row * row).sum()
    other *= np.linalg.norm(row) / np.linalg.norm(other)
    return (row * cosine + other * np.sqrt(1 - cosine**2)).astype(np.float32)


@pytest.mark.parametrize(("precision", "role"), TABLE)
@pytest.mark.parametrize("passes", [True, False])
def test_one_row_of_one_case_just_inside_and_outside_its_bound(precision: str, role: str, passes: bool) -> None:
    kind, bound = TABLE[precision, role]
    pairs = [(_shaped(role, rows), _shaped(role, rows)) for rows in (2, 7, 1)]
    actual = pairs[1][0]
    if kind == "cosine":
        actual[4] = _turned(actual[4], bound + (1e-5 if passes else -1e-5))
    else:
        actual[4].flat[1] += bound * (0.98 if passes else 1.02) * (8 if role == "states" else 1)
    check = _check(role, precision, pairs)
    assert check.passed is passes
    assert check.bound == f"{kind} {bound:g}" and check.detail.endswith(f"(bound {bound:g}) at b")
    assert (check.graph, check.precision, check.subject, check.output) == ("graph", precision, "values", "output")
    assert (check.cases, check.runtime) == (3, "here")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("role", "largest", "scale"),
    [("vectors", 5, 1), ("logits", 0.5, 1), ("logits", 50, 50), ("states", 50, 50), ("states", 0.01, 0.01)],
)
def test_what_a_difference_is_relative_to(role: str, largest: float, scale: float, sign: int) -> None:
    expected = np.array([[0.1, -1, 0.5], [0.2, 0, -0.3]], np.float32) * np.float32(largest)
    actual = expected.copy()
    actual[1, 1] += sign * 0.01 * scale
    check = _check(role, "fp32", [(expected, expected), (actual, expected)])
    assert check.max_abs_diff == pytest.approx(0.01, rel=1e-3) and not check.passed
    assert _check(role, "fp32", [(actual, expected)], **{"fp32": 0.0101, "logits.fp32": 0.0101}).passed
    zeros, off = np.zeros((1, 3), np.float32), np.array([[0, 0.01, 0]], np.float32)
    assert _check(role, "fp32", [(zeros, zeros)]).max_abs_diff == 0
    assert _check(role, "fp32", [(off, zeros)]).max_abs_diff == pytest.approx(0.01)


def test_the_figures_are_those_of_all_rows() -> None:
    """Of states a row is all of its tokens; the mean is over rows, not over cases."""
    draw, rows, pairs = np.random.default_rng(0), [], []
    for count in (1, 5, 2):
        expected = draw.standard_normal((count, 3, 4)).astype(np.float32)
        actual = expected + 0.1 * draw.standard_normal(expected.shape).astype(np.float32)
        pairs.append((actual, expected))
        for a, b in zip(actual.reshape(count, 12), expected.reshape(count, 12), strict=True):
            rows.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    check = _check("states", "int8", pairs)
    assert check.min_cosine == pytest.approx(min(rows), rel=1e-5)
    assert check.mean_cosine == pytest.approx(np.mean(rows), rel=1e-5)
    largest = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    assert check.max_abs_diff == pytest.approx(largest, rel=1e-5)
    assert check.neighbours is None  # vectors alone
    logits = _check("logits", "fp32", pairs)
    assert logits.min_cosine is None and logits.mean_cosine is None  # so few have no direction worth a figure


def test_what_is_equal_passes_at_any_bound() -> None:
    pairs = [(unit(5), unit(5))]
    check = _check("vectors", "fp32", pairs, fp32=1e-30)
    assert check.passed and check.max_abs_diff == 0 and "at every case" in check.detail
    whole = np.array([[3, 4], [0, 1]], np.float32)
    check = _check("vectors", "fp16", [(whole, whole)], fp16=1.0)
    assert check.passed and check.min_cosine == check.mean_cosine == 1 and "at every case" in check.detail
    # The bound itself is inside: a half is exact.
    off = whole + np.array([[0.5, 0], [0, 0]], np.float32)
    assert _check("vectors", "fp32", [(off, whole)], fp32=0.5).passed
    across = np.array([[1, 1, 1, 1]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    assert _check("vectors", "fp16", [across], fp16=0.5).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("role", ["vectors", "states", "logits"])
def test_a_value_that_is_not_finite_fails(role: str, precision: str, value: float) -> None:
    """Wherever it stands, whatever comes before and after, and on whichever side."""
    wide = {"fp32": np.inf, "logits.fp16": np.inf, "logits.fp32": np.inf, "fp16": 1e-9}
    for place in range(3):
        pairs = [(_shaped(role, rows), _shaped(role, rows)) for rows in (7, 2, 7)]
        pairs[place][0][1].flat[1] = value
        check = _check(role, precision, pairs, **wide)
        assert not check.passed and check.detail == f"output is not finite at {'abc'[place]}"
        assert check.neighbours is None and json.dumps(check.to_json(), allow_nan=False)
        pairs[place][0][1].flat[1] = 0.5
        pairs[place][1][1].flat[1] = value  # of the model itself
        assert not _check(role, precision, pairs).passed
    first = [(np.full((2, 3), value, np.float32), np.ones((2, 3), np.float32))] * 2
    assert "not finite at a" in _check(role, precision, first).detail


def test_values_that_only_their_difference_overflows(recwarn: pytest.WarningsRecorder) -> None:
    far = np.full((2, 3), 3e38, np.float32)
    assert not _check("vectors", "fp32", [(far, -far)]).passed and not recwarn


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_of_equally_bad_cases_the_first_is_named(precision: str) -> None:
    good, bad = (unit(3), unit(3)), (unit(3, seed=1), unit(3))
    assert _check("vectors", precision, [good, bad, bad, good]).detail.endswith("at b")


def test_nothing_to_compare_does_not_pass() -> None:
    for role in ("vectors", "states", "logits"):
        check = _check(role, "fp32", [])
        assert not check.passed and check.detail == "nothing was compared" and check.mean_cosine is None


def _plain_neighbours(actual: Array, expected: Array) -> float:
    shares = []
    for row in range(len(actual)):
        nearest = []
        for side in (actual, expected):
            others = [other for other in range(len(side)) if other != row]
            nearest.append(set(sorted(others, key=lambda other: -float(side[other] @ side[row]))[:10]))
        shares.append(len(nearest[0] & nearest[1]) / 10)
    return float(np.mean(shares))


def test_neighbours_equal_sorting_everything() -> None:
    expected = unit(60)
    actual = expected + 0.3 * unit(60, seed=1)
    for split in ([], [20], [1, 2, 59]):
        pairs = list(zip(np.split(actual, split), np.split(expected, split), strict=True))
        assert _check("vectors", "int8", pairs).neighbours == pytest.approx(_plain_neighbours(actual, expected))
    assert _check("vectors", "int8", [(actual[:12], expected[:12])]).neighbours == pytest.approx(
        _plain_neighbours(actual[:12], expected[:12])
    )
    assert _check("vectors", "int8", [(actual[:11], expected[:11])]).neighbours is None  # the ten others of each


def test_neighbours_are_looked_for_among_some_rows_at_most() -> None:
    """However many a verification compares, it takes no more memory."""
    last = unit(50, seed=1), unit(50, seed=2)
    assert _check("vectors", "int8", [(unit(512), unit(512)), last]).neighbours == 1
    share = _check("vectors", "int8", [(unit(511), unit(511)), last]).neighbours
    assert share is not None and share < 1


def test_a_bound_close_to_one_is_not_shown_as_one() -> None:
    pair = np.array([[1, 2e-4]], np.float32), np.array([[1, 0]], np.float32)
    check = _check("vectors", "fp16", [pair], fp16=0.99999999)
    assert not check.passed and check.bound == "cosine 0.99999999"
    assert "smallest cosine 0.99999998 (bound 0.99999999)" in check.detail


def test_a_check_as_plain_values() -> None:
    check = Check("g", "fp16", "values", False, "d", "o", 3, float("nan"), float("-inf"), 0.5, None, "b", "r")
    assert check.to_json() == {
        **{"graph": "g", "precision": "fp16", "subject": "values", "passed": False, "detail": "d", "output": "o"},
        **{"cases": 3, "max_abs_diff": None, "min_cosine": None, "mean_cosine": 0.5, "neighbours": None},
        **{"bound": "b", "runtime": "r"},
    }
    assert Check("g", "fp16", "names", True).to_json()["cases"] == 0


# --- bounds --------------------------------------------------------------------------------------------------------


def test_bounds_that_are_not_moved() -> None:
    for (precision, role), bound in TABLE.items():
        assert Bounds().of(precision, role) == bound
    usual = {
        ("logits." if role == "logits" else "") + precision: bound for (precision, role), (_, bound) in TABLE.items()
    }
    assert Bounds().to_json() == {"bounds": usual, "moved": []}


def test_bounds_that_are_moved() -> None:
    bounds = Bounds.parse(["logits.int8=2", "fp16=0.999", "fp8=1", "fp32=0.5"])
    assert bounds.of("fp16", "vectors") == ("cosine", 0.999) == bounds.of("fp16", "states")
    assert bounds.of("int8", "logits") == ("difference", 2.0)
    assert bounds.of("fp8", "vectors") == ("cosine", 1.0) and bounds.of("fp32", "states") == ("difference", 0.5)
    assert bounds.of("int8", "vectors") == ("cosine", 0.99) and bounds.of("fp32", "logits") == ("difference", 1e-4)
    written = bounds.to_json()
    assert written["moved"] == ["fp16", "fp32", "fp8", "logits.int8"]
    assert written["bounds"] == Bounds().to_json()["bounds"] | {"fp16": 0.999, "fp32": 0.5, "fp8": 1, "logits.int8": 2}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("fp4=1", "no such bound", "one of fp32, fp16, "),
        ("logits.fp4=1", "no such bound", "logits.fp32, logits.fp16"),
        ("=1", "no such bound", "as in fp16=0.999"),
        ("fp16", "not a cosine above 0 and up to 1", "as in fp16=0.9995"),
        ("fp16=x", "not a cosine above 0 and up to 1", "as in fp16=0.9995"),
        ("int8=1.0001", "not a cosine above 0 and up to 1", "as in int8=0.99"),
        ("fp16=nan", "not a cosine above 0 and up to 1", "as in fp16=0.9995"),
        ("bf16=0", "not a cosine above 0 and up to 1", "as in bf16=0.998"),
        ("fp32=-1", "not a difference above 0", "as in fp32=1e-05"),
        ("logits.fp32=0", "not a difference above 0", "as in logits.fp32=0.0001"),
    ],
)
def test_bounds_that_make_no_sense(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bounds.parse(["fp16=0.9", text])
    assert caught.value.message == f"--bound {text}: {message}" and hint in str(caught.value.hint)


# --- cases ---------------------------------------------------------------------------------------------------------

GRAPH = Graph(
    "image_tokens",
    (Port("pixel_values", "uint8", ("batch", 3, 4, 4)), Port("states", "states", ("batch", 2))),
    (Port("image_embeds", "float32", ("batch", 6)), Port("image_tokens", "float32", ("batch", 3, 6))),
)


class Session:
    """Gives outputs that were made before, each time the same."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        self.outputs = outputs
        self.fed: list[dict[str, NDArray[Any]]] = []

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        self.fed.append(feed)
        return [self.outputs[name] for name in outputs]


def _case(name: str, batch: int = 2) -> Case:
    vectors, tokens = unit(batch, 6), unit(3 * batch, 6, seed=1).reshape(batch, 3, 6)
    feed = {"pixel_values": np.zeros((batch, 3, 4, 4), np.uint8), "states": np.ones((batch, 2), np.float32)}
    return Case(name, feed, {"image_embeds": vectors, "image_tokens": tokens})


def _passed(checks: list[Check]) -> dict[str, bool]:
    return {check.output or check.subject: check.passed for check in checks}


@pytest.mark.parametrize(("precision", "states"), [("fp32", np.float32), ("fp16", np.float16), ("bf16", np.float32)])
def test_cases_in_all_sessions(precision: str, states: type[np.floating[Any]]) -> None:
    comparison = Comparison(GRAPH, precision, "a runtime")
    comparison.passed("names", "as they should be")
    sessions = []
    for batch in (1, 2, 3):
        case = _case(f"batch {batch}", batch)
        sessions += [Session(case.expected), Session(case.expected)]
        comparison.run(case, sessions[-2:])
    checks = comparison.checks(Bounds())
    assert _passed(checks) == {"names": True, "shapes": True, "image_embeds": True, "image_tokens": True}
    assert [check.subject for check in checks] == ["names", "shapes", "values", "values"]
    assert {(check.graph, check.precision) for check in checks} == {("image_tokens", precision)}
    assert [check.cases for check in checks] == [0, 3, 3, 3] and checks[1].detail == "3 cases"
    assert {check.runtime for check in checks[2:]} == {"a runtime"} and checks[0].detail == "as they should be"
    for session in sessions:
        [feed] = session.fed
        assert {name: array.dtype for name, array in feed.items()} == {"pixel_values": np.uint8, "states": states}


def test_values_of_either_session_and_either_output() -> None:
    for place in (0, 1):
        for output in ("image_embeds", "image_tokens"):
            comparison, case = Comparison(GRAPH, "fp32", ""), _case("one")
            sessions = [Session(case.expected), Session(case.expected)]
            sessions[place].outputs = case.expected | {output: case.expected[output] * np.float32(1.01)}
            comparison.run(_case("before"), [Session(_case("before").expected)])
            comparison.run(case, sessions)
            comparison.run(_case("after"), [Session(_case("after").expected)])
            checks = comparison.checks(Bounds())
            assert [check.output for check in checks if not check.passed] == [output]
            assert "at one" in next(check.detail for check in checks if not check.passed)


@pytest.mark.parametrize("output", ["image_embeds", "image_tokens"])
@pytest.mark.parametrize(
    "change", ["a row less", "a row more", "turned", "one axis more", "one axis less", "a column less"]
)
def test_any_other_shape_fails(output: str, change: str) -> None:
    comparison, case = Comparison(GRAPH, "fp32", ""), _case("batch 2")
    right = case.expected[output]
    wrong = {
        "a row less": right[:-1],
        "a row more": np.concatenate([right, right[:1]]),
        "turned": right.swapaxes(0, 1),
        "one axis more": right[None],
        "one axis less": right.reshape(-1),
        "a column less": right[..., :-1],
    }[change]
    comparison.run(_case("batch 1", 1), [Session(_case("batch 1", 1).expected)])
    comparison.run(case, [Session(case.expected), Session(case.expected | {output: wrong})])
    after = Session(case.expected)
    comparison.run(case, [after])
    [check] = comparison.checks(Bounds())
    assert (check.subject, check.passed, check.cases) == ("shapes", False, 1) and not after.fed
    assert check.detail == f"batch 2: {output} {wrong.shape}, not {right.shape}"


def test_what_does_not_run_fails() -> None:
    class Broken(Session):
        def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]], /) -> list[NDArray[Any]]:
            raise ValueError("out of memory")

    comparison = Comparison(GRAPH, "int8", "")
    comparison.passed("axes", "")
    comparison.run(_case("batch 7", 7), [Broken({})])
    axes, shapes = comparison.checks(Bounds())
    assert axes.passed and not shapes.passed and shapes.detail == "batch 7: does not run: out of memory"
    assert (shapes.graph, shapes.precision, shapes.subject) == ("image_tokens", "int8", "shapes")


def test_half_precision_outputs_are_compared_as_they_are() -> None:
    """A float16 that overflowed is not finite, and one that did not is compared without rounding the model."""
    case = _case("one")
    halves = {name: array.astype(np.float16) for name, array in case.expected.items()}
    comparison = Comparison(GRAPH, "fp16", "")
    comparison.run(case, [Session(halves)])
    assert all(_passed(comparison.checks(Bounds())).values())
    assert all(check.max_abs_diff > 1e-5 for check in comparison.checks(Bounds())[1:])  # type: ignore[operator]


def test_no_case_at_all_fails() -> None:
    """As when a profile takes none of them."""
    assert _passed(Comparison(GRAPH, "fp32", "").checks(Bounds()))["image_embeds"] is False
