"""Benchmarks and the device's check run by hand: what they name of the package is there."""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parent
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef)
SCRIPTS = sorted([*TESTS.glob("benchmarks/*.py"), *TESTS.glob("device/*.py")])


def imported(scope: ast.AST) -> Iterator[tuple[str, str, str]]:
    """What is imported of the package in a scope, but not in functions of it: (module, name, as)."""
    for node in own(scope):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "warehouse"
        ):
            yield from ((node.module, name.name, name.asname or name.name) for name in node.names)


def own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, without those of functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, SCOPES):
            yield from own(node)


def bound(scope: ast.AST) -> set[str]:
    """Names that something in a scope stands for another thing by."""
    arguments = {node.arg for node in ast.walk(scope) if isinstance(node, ast.arg)}
    stores = (node for node in ast.walk(scope) if isinstance(node, ast.Name))
    return arguments | {node.id for node in stores if isinstance(node.ctx, ast.Store)}


def value(module: str, name: str) -> object:
    """What a module has by a name; a module of its own that was not imported yet, too.

    Raises:
        AttributeError: nothing.
    """
    home = import_module(module)
    if not hasattr(home, name) and hasattr(home, "__path__") and find_spec(f"{module}.{name}"):
        return import_module(f"{module}.{name}")
    return getattr(home, name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_names_is_there(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, SCOPES))]:
        names = {known: value(module, name) for module, name, known in imported(scope)}
        for known in bound(scope) & set(names):
            del names[known]
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                home = names.get(node.value.id)
                if isinstance(home, ModuleType):
                    assert hasattr(home, node.attr), f"{home.__name__} has no {node.attr}"


def test_a_name_that_is_not_there_is_found():
    with pytest.raises(AttributeError):
        value("warehouse.scenario", "read_file")
    (function,) = ast.parse(
        "def f():\n    from warehouse import scenario as s\n    s.parse({})"
    ).body
    assert list(imported(function)) == [("warehouse", "scenario", "s")]
