"""Streams have no circles: not between files, and not between classes."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

STREAMS = "exchange_service.streams"
FOLDER = Path(__file__).parent.parent.joinpath(*STREAMS.split("."))


def mentions(tree: ast.AST, names: set[str]) -> set[str]:
    """Which of these names the code mentions, except as an argument or a result of a function that it is handed."""
    if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name) and tree.value.id == "Callable":
        return set()
    result = {tree.id} & names if isinstance(tree, ast.Name) else set()
    return result.union(*(mentions(child, names) for child in ast.iter_child_nodes(tree)))


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("exchange_service", cache_dir=None)
    modules = graph.find_descendants(STREAMS)
    assert len(modules) > 5
    imports = {module: graph.find_modules_directly_imported_by(module) & modules for module in modules}
    assert {STREAMS} & {imported for module in modules for imported in imports[module]} == set()
    assert list(TopologicalSorter(imports).static_order())


def test_no_two_classes_know_each_other() -> None:
    trees = [ast.parse(file.read_text()) for file in FOLDER.glob("*.py")]
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert len(classes) > 10
    known = {name: mentions(node, classes.keys() - {name}) for name, node in classes.items()}
    assert known["Streams"] >= {"Feeds", "Mailbox", "Subscription"}
    assert list(TopologicalSorter(known).static_order())
