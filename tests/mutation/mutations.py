"""The mutants of a file: operators of cosmic-ray, and a few of our own where it has none.

Left out as noise: annotations, messages, decorators whose loss breaks the import, and what changes speed alone.
"""

from __future__ import annotations

import ast
import copy
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast, is_number
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

Changes = Iterator[Callable[[], Any]]  # each gives what comes in place of the node; None deletes it

# One replacement for each operator: a test that misses the others misses this one.
OF_COSMIC_RAY = re.compile(
    r"""core/( Replace(True|False|And|Or|Break|Continue)With\w+ | ExceptionReplacer | RemoveDecorator
    | ZeroIterationForLoop | ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_Invert)
    | ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Is_IsNot|IsNot_Is)
    | ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Div|Mod_FloorDiv|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr
    |LShift_RShift|RShift_LShift) )""",
    re.VERBOSE,
)
TURNED = re.compile(r"==|!=|is|is not")  # by cosmic-ray
DROPPED = re.compile(r"\.(detach|float|double|half|long|clamp_?|clone|abs|masked_fill|sort|tolist|strip|lower)")
SYMMETRIC = re.compile(r"max|min|isinstance|getattr|hasattr|transpose|logaddexp")
QUIET = re.compile(r"device|non_blocking|pin_memory|fused|strict|encoding|hint|flush")  # keyword arguments
MESSAGES = re.compile(r"warn|warning|info|debug|message|print|weights_error|one_line")  # calls
TELLING = re.compile(r"no_grad|inference_mode")  # decorators whose loss only a test can notice


def of_cosmic_ray(operator: Operator) -> Callable[[Any], Changes]:
    def changes(node: Any) -> Changes:
        if node.type == "except_clause" and "." in text(node):
            return  # `module.Error` is more than its ExceptionReplacer can read
        for index, _ in enumerate(operator.mutation_positions(node)):
            yield lambda index=index: operator.mutate(node, index)

    return changes


def negate_condition(node: Any) -> Changes:
    if node.type in ("if_stmt", "while_stmt", "test", "comp_if"):  # "test" is a conditional expression
        for i, word in enumerate(node.children[:-1]):
            condition = node.children[i + 1]
            turned = condition.type == "comparison" and TURNED.fullmatch(text(condition.children[1]))
            if text(word) in ("if", "elif", "while") and condition.type != "not_test" and not turned:
                yield lambda i=i, it=condition: put(node, i + 1, [Name(f"not ({text(it)})", (0, 0), " ")])


def change_number(node: Any) -> Changes:
    """Whole numbers by one, others twice and half."""
    if is_number(node):
        value = ast.literal_eval(node.value)
        whole = isinstance(value, int)
        others = [value + 1 if whole else value * 2 or 1.0, *([value - 1 if whole else value / 2] if value else [])]
        for number in others:
            yield lambda number=number: Name(str(number), (0, 0), node.prefix)


def delete_statement(node: Any) -> Changes:
    """A call for its effect, a `del`, an update, the setting of an attribute or element; not in `__init__`."""
    if node.parent is None or node.parent.type != "simple_stmt" or function_of(node).endswith("__init__"):
        return
    called_for_effect = node.type == "atom_expr" and is_call(node.children[-1])
    sets = node.type == "expr_stmt" and node.children[0].type == "atom_expr" and node.children[1].type != "annassign"
    updates = node.type == "expr_stmt" and node.children[1].type == "operator" and text(node.children[1]) != "="
    if called_for_effect or sets or updates or node.type == "del_stmt":
        yield lambda: Name("pass", (0, 0), node.get_first_leaf().prefix)


def swap_arguments(node: Any) -> Changes:
    """The first two positional ones."""
    if node.type == "arglist" and is_call(node.parent) and not SYMMETRIC.fullmatch(called(node.parent)):
        first, _, second = node.children[:3]
        literals = [child.type in ("number", "string") for child in (first, second)]
        if "argument" not in (first.type, second.type) and literals[0] == literals[1]:
            yield lambda: put(put(node, 0, [Name(text(second), (0, 0))]), 2, [Name(text(first), (0, 0), " ")])


def drop_keyword(node: Any) -> Changes:
    """A keyword argument, where there are others."""
    if node.type == "arglist" and is_call(node.parent):
        for i, child in enumerate(node.children):
            if i and is_keyword(child) and not QUIET.fullmatch(child.children[0].value):
                yield lambda i=i: put(node, i - 1, [], 2)


def drop_method(node: Any) -> Changes:
    """`x.detach()` becomes `x`."""
    if node.type == "atom_expr":
        for i in range(1, len(node.children) - 1):
            if DROPPED.fullmatch(text(node.children[i])) and is_call(node.children[i + 1]):
                yield lambda i=i: put(node, i, [], 2)


OWN = (negate_condition, change_number, delete_statement, swap_arguments, drop_keyword, drop_method)
OPERATORS = {own.__name__: own for own in OWN} | {
    name.removeprefix("core/"): of_cosmic_ray(get_operator(name)())
    for name in operator_names()
    if OF_COSMIC_RAY.fullmatch(name)
}


def text(node: Any) -> str:
    return node.get_code().strip()


def put(node: Any, position: int, children: list[Any], count: int = 1) -> Any:
    node.children[position : position + count] = children
    return node


def is_call(node: Any) -> bool:
    return node.type == "trailer" and node.children[0].value == "("


def called(brackets: Any) -> str:
    return text(brackets.get_previous_leaf())


def is_keyword(node: Any) -> bool:
    return node.type == "argument" and text(node.children[1]) == "="


def upwards(node: Any) -> Iterator[tuple[Any, Any]]:
    """Each node from this one up, and its child on the way."""
    child = node
    while node is not None:
        yield node, child
        node, child = node.parent, node


def function_of(node: Any) -> str:
    """`Class.method`; the empty string outside of functions and classes."""
    if node.type == "decorator":
        node = node.parent.children[-1].name
    names = [up.name.value for up, _ in upwards(node) if up.type in ("funcdef", "classdef")]
    return ".".join(reversed(names))


def is_noise(node: Any) -> bool:
    if node.type == "decorator":
        return not TELLING.search(text(node))
    if node.type == "factor" and is_number(node.children[1]):
        return True  # -1: the number itself is changed
    if node.type == "operator" and node.parent.type in ("parameters", "lambdef", "param"):
        return True  # the mark of keyword-only parameters
    if node.type == "operator" and text(node) == "/" and re.search(r"_FILE|_FOLDER|['\"]", node.parent.get_code()):
        return True  # a path
    if node.type == "if_stmt" and text(node.children[1]) == "TYPE_CHECKING":
        return True
    return any(
        up.type in ("raise_stmt", "fstring", "tfpdef")
        or (up.type == "funcdef" and child is up.annotation)
        or (up.type == "annassign" and child is up.children[1])
        or (up.type == "atom_expr" and any(is_call(c) and MESSAGES.fullmatch(called(c)) for c in up.children))
        or (is_keyword(up) and QUIET.fullmatch(text(up.children[0])))
        for up, child in upwards(node)
    )


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
        """What `accepted.txt` calls it; stays when code moves."""
        return (self.function or "module", *(f"- {line}" for line in self.old), *(f"+ {line}" for line in self.new))


def mutants(source: str) -> Iterator[Mutant]:
    """All that compile and differ, from top to bottom."""
    seen = {ast.dump(ast.parse(source))}
    tree = get_ast(source)
    for node in list(ast_nodes(tree)):
        if is_noise(node):
            continue
        for operator, changes in OPERATORS.items():
            for change in list(changes(node)):
                code = mutated(tree, node, change)
                try:
                    meaning = ast.dump(ast.parse(code))
                except SyntaxError:
                    continue
                if meaning not in seen:
                    seen.add(meaning)
                    yield Mutant(operator, function_of(node), *changed_lines(source, code), code)


def mutated(tree: Any, node: Any, change: Callable[[], Any]) -> str:
    """The code with the change, which is then taken back."""
    siblings = node.parent.children
    before = [(part, "children" if hasattr(part, "children") else "value") for part in ast_nodes(node)]
    values = [copy.copy(getattr(part, name)) for part, name in before]
    position = next(i for i, sibling in enumerate(siblings) if sibling is node)
    changed = change()
    siblings[position : position + 1] = [] if changed is None else [changed]
    code = tree.get_code()
    siblings[position : position + (changed is not None)] = [node]
    for (part, name), value in zip(before, values, strict=True):
        setattr(part, name, value)
    return code


def changed_lines(before: str, after: str) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """The number of the first one, how they were, and how they are."""
    place, *diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    old, new = (tuple(line[1:].strip() for line in diff if line[0] == sign and line[1:].strip()) for sign in "-+")
    return int(re.findall(r"\d+", place)[0]), old, new
