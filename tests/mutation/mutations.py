"""What is changed in the code: the mutants of a file, by operators of cosmic-ray and a few of our own.

Left out as noise: annotations, messages, logging, and arguments that change speed or devices alone.
"""

from __future__ import annotations

import ast
import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast, is_number
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

Position = tuple[tuple[int, int], tuple[int, int]]

# One replacement for each operator; those left out fail wherever these do.
OF_COSMIC_RAY = """
    ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd
    ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer RemoveDecorator ZeroIterationForLoop
    ReplaceUnaryOperator_USub_UAdd ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_Invert
    ReplaceComparisonOperator_Eq_NotEq ReplaceComparisonOperator_NotEq_Eq
    ReplaceComparisonOperator_Lt_LtE ReplaceComparisonOperator_LtE_Lt
    ReplaceComparisonOperator_Gt_GtE ReplaceComparisonOperator_GtE_Gt
    ReplaceComparisonOperator_Is_IsNot ReplaceComparisonOperator_IsNot_Is
    ReplaceBinaryOperator_Add_Sub ReplaceBinaryOperator_Sub_Add ReplaceBinaryOperator_Mul_Div
    ReplaceBinaryOperator_Div_Mul ReplaceBinaryOperator_FloorDiv_Div ReplaceBinaryOperator_Mod_FloorDiv
    ReplaceBinaryOperator_Pow_Mul ReplaceBinaryOperator_BitOr_BitAnd ReplaceBinaryOperator_BitAnd_BitOr
    ReplaceBinaryOperator_LShift_RShift ReplaceBinaryOperator_RShift_LShift
""".split()
DROPPED_METHODS = set(
    "detach float double half long clamp clamp_ clone abs masked_fill sort tolist strip lower".split()
)
SYMMETRIC = set("max min isinstance getattr hasattr transpose logaddexp".split())
MESSAGES = set("warn warning info debug message print damage one_line".split())
CONDITIONAL = set("if elif while".split())
TURNED = set("== != is".split()) | {"is not"}
QUIET_KEYWORDS = set("device non_blocking pin_memory fused strict encoding hint flush".split())
TELLING_DECORATORS = ("no_grad", "inference_mode")  # the others only fail when they are gone


class OwnOperator(Operator):
    """Changes the node at the places that `changes` yields, each with the function that does it."""

    def changes(self, node: Any) -> Iterator[Any]:
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[Position]:
        for _ in self.changes(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return list(self.changes(node))[index]()

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class Negate(OwnOperator):
    """The condition of an `if`, a `while` or a conditional expression; `==` and the like are turned round elsewhere."""

    def changes(self, node: Any) -> Iterator[Any]:
        places = []
        if node.type in ("if_stmt", "while_stmt", "test", "comp_if"):  # "test" is a conditional expression
            places = [i + 1 for i, child in enumerate(node.children) if child.get_code().strip() in CONDITIONAL]
        for i in places:
            condition = node.children[i]
            turned = condition.type == "comparison" and condition.children[1].get_code().strip() in TURNED
            if condition.type != "not_test" and not turned:
                yield lambda i=i, condition=condition: with_child(
                    node, i, name(f"not ({condition.get_code().strip()})", " ")
                )


class ChangeNumber(OwnOperator):
    """Whole numbers up and down by one, zero up alone; others twice and half."""

    def changes(self, node: Any) -> Iterator[Any]:
        if is_number(node):
            value = ast.literal_eval(node.value)
            if isinstance(value, int):
                changed = (value + 1, value - 1) if value else (1,)
            else:
                changed = (value * 2, value / 2) if value else (1.0,)
            for number in changed:
                yield lambda number=number: name(str(number), node.prefix)


class DeleteStatement(OwnOperator):
    """A call for its effect, and a change of an attribute or an element."""

    def changes(self, node: Any) -> Iterator[Any]:
        if node.parent is None or node.parent.type != "simple_stmt" or function_of(node).endswith("__init__"):
            return
        is_call = node.type == "atom_expr" and node.children[-1].get_code().startswith("(")
        is_update = node.type == "expr_stmt" and (
            node.children[0].type == "atom_expr" or getattr(node.children[1], "value", "=") != "="
        )
        if is_call or (is_update and node.children[1].type != "annassign"):
            yield lambda: name("pass", node.get_first_leaf().prefix)


class SwapArguments(OwnOperator):
    """The first two positional arguments of a call."""

    def changes(self, node: Any) -> Iterator[Any]:
        if node.type != "arglist" or not is_call(node.parent) or called(node.parent) in SYMMETRIC:
            return
        first, comma, second, *rest = node.children
        literals = [child.type in ("number", "string") for child in (first, second)]
        if "argument" not in (first.type, second.type) and literals[0] == literals[1]:
            yield lambda: replace(node, [bare(second, ""), comma, bare(first, " "), *rest])


class DropKeyword(OwnOperator):
    """A keyword argument of a call with several."""

    def changes(self, node: Any) -> Iterator[Any]:
        if node.type == "arglist" and is_call(node.parent):
            for i, child in enumerate(node.children):
                if is_keyword(child) and child.children[0].value not in QUIET_KEYWORDS:
                    rest = node.children[: i - 1] + node.children[i + 1 :] if i else node.children[2:]
                    yield lambda rest=rest: replace(node, rest)


class DropMethod(OwnOperator):
    """A method that passes on its tensor changed: x.detach() becomes x."""

    def changes(self, node: Any) -> Iterator[Any]:
        if node.type == "atom_expr":
            for i in range(1, len(node.children) - 1):
                name = node.children[i].get_code().strip()
                if name.startswith(".") and name[1:] in DROPPED_METHODS and is_call(node.children[i + 1]):
                    yield lambda i=i: replace(node, node.children[:i] + node.children[i + 2 :])


OWN = (Negate, ChangeNumber, DeleteStatement, SwapArguments, DropKeyword, DropMethod)


def name(text: str, prefix: str) -> Any:
    return parso.python.tree.Name(text, (0, 0), prefix)


def with_child(node: Any, position: int, child: Any) -> Any:
    node.children[position] = child
    return node


def is_call(node: Any) -> bool:
    return node.type == "trailer" and node.children[0].value == "("


def called(trailer: Any) -> str:
    """The last name before the brackets of a call."""
    leaf = trailer.get_previous_leaf()
    return leaf.value if leaf is not None else ""


def is_keyword(node: Any) -> bool:
    return node.type == "argument" and node.children[1].type == "operator" and node.children[1].value == "="


def replace(node: Any, children: list[Any]) -> Any:
    node.children = children
    return node


def bare(node: Any, prefix: str) -> Any:
    node.get_first_leaf().prefix = prefix
    return node


def parents(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each node above, and its child on the way down."""
    while node.parent is not None:
        yield node.parent, node
        node = node.parent


def function_of(node: Any) -> str:
    """`Class.method`, or the empty string outside of both."""
    node = node.parent.children[-1].name if node.type == "decorator" else node
    names = [up.name.value for up, _ in parents(node) if up.type in ("funcdef", "classdef")]
    return ".".join(reversed(names))


def is_noise(node: Any) -> bool:
    if node.type == "decorator":
        return not any(name in node.get_code() for name in TELLING_DECORATORS)
    if node.type == "operator" and node.parent.type in ("parameters", "lambdef", "param"):
        return True  # keyword-only
    if "TYPE_CHECKING" in (node.children[1].get_code().strip() if node.type == "if_stmt" else ""):
        return True
    if node.type == "factor" and is_number(node.children[1]) and "-" in node.children[0].value:
        return True  # the number itself is changed
    if node.type == "operator" and node.value == "/" and any("_FILE" in n.get_code() for n in node.parent.children):
        return True  # a path
    for parent, child in [(node, node), *parents(node)]:
        if parent.type in ("raise_stmt", "fstring", "tfpdef"):
            return True
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type == "annassign" and child is parent.children[1]:
            return True
        if parent.type == "atom_expr" and any(is_call(c) and called(c) in MESSAGES for c in parent.children):
            return True
        if is_keyword(parent) and parent.children[0].value in QUIET_KEYWORDS:
            return True
    return False


@dataclass(frozen=True)
class Mutant:
    operator: str
    function: str
    line: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    code: str

    @property
    def identity(self) -> tuple[str, ...]:
        """What it is called in the list of accepted ones: stays when code moves."""
        return (self.function or "module", *(f"- {line}" for line in self.old), *(f"+ {line}" for line in self.new))


def mutants(source: str) -> Iterator[Mutant]:
    """All different mutants that compile, by operator and from top to bottom."""
    seen = {ast.dump(ast.parse(source))}
    nodes = list(ast_nodes(get_ast(source)))
    for operator in [get_operator(f"core/{name}")() for name in OF_COSMIC_RAY] + [own() for own in OWN]:
        for place, node in enumerate(nodes):
            for index, _ in enumerate(operator.mutation_positions(node)):
                if is_noise(node):
                    continue
                code = mutated(source, operator, place, index)
                try:
                    meaning = ast.dump(ast.parse(code))
                except SyntaxError:
                    continue
                if meaning not in seen:
                    seen.add(meaning)
                    yield Mutant(type(operator).__name__, function_of(node), *changed_lines(source, code), code)


def mutated(source: str, operator: Operator, place: int, index: int) -> str:
    tree = get_ast(source)  # anew, for operators change it in place
    node = next(itertools.islice(ast_nodes(tree), place, None))
    siblings = node.parent.children
    position = next(i for i, sibling in enumerate(siblings) if sibling is node)
    changed = operator.mutate(node, index)
    siblings[position : position + 1] = [] if changed is None else [changed]
    return tree.get_code()


def changed_lines(before: str, after: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """The number of the first one, how they were, and how they are."""
    place, *diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    line = int(place.split()[1].strip("-").split(",")[0])
    old, new = (tuple(line[1:].strip() for line in diff if line[0] == sign and line[1:].strip()) for sign in "-+")
    return line, old, new
