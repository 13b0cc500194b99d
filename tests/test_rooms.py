"""The rooms of the house depend downwards only, and torch stays where models run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "warehouse"
#: Each line may import what stands in the lines above it; within a room everything may meet.
FLOORS = (
    ("errors", "vocabulary", "assets", "advice"),
    ("extras", "mistakes", "atomic", "arrow"),
    ("scenario", "lake"),
    ("scenario_files", "prefixes"),
    ("models", "catalog"),
    ("capture", "query", "report", "exchange", "probes"),
    ("lens", "serve", "cluster"),
    ("api", "cli"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(HOUSE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports anywhere, and whether it does so as it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    first = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node in first) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, node in first
            yield from ((f"{node.module}.{name.name}", node in first) for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_rooms_depend_downwards_only(path):
    room = room_of(path)
    if (
        room == "__init__"
    ):  # the face of the package: what it names is imported when it is asked for
        assert not [name for name, at_once in imports(path) if at_once and "warehouse" in name]
        return
    used = {name.split(".")[1] for name, _ in imports(path) if name.startswith("warehouse.")}
    wrong = {other for other in used - {room} if FLOOR[other] >= FLOOR[room]}
    assert not wrong, f"{room} stands beside or below {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_torch_is_imported_where_models_run(path):
    at_once = {name.split(".")[0] for name, at_once in imports(path) if at_once}
    room = room_of(path)
    if room not in ("models", "capture", "lens"):
        assert not at_once & {"torch", "transformers", "accelerate"}
    if room in ("lake", "models"):
        assert "duckdb" not in at_once


def test_every_room_says_what_it_is_for():
    for path in HOUSE.glob("*/__init__.py"):
        assert len(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()) > 2


def test_the_test_sees_imports(tmp_path):
    """Of any form: at once, in a function, of a module or of what is in it."""
    path = tmp_path / "some.py"
    path.write_text(
        "import torch.nn\nfrom warehouse import api\ndef f():\n    from warehouse.lens import lens\n"
    )
    assert set(imports(path)) == {
        ("torch.nn", True), ("warehouse", True), ("warehouse.api", True),
        ("warehouse.lens", False), ("warehouse.lens.lens", False),
    }  # fmt: skip
