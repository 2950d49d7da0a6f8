"""
The rules about names: one meaning each, used by the product, known where they are
imported from, listed where a reader looks for them.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.source_tree import INSTALLED, PACKAGES, ROOMS, Module, modules, top

# A program that a test starts as text; its imports count.
_IMPORT_LINE = re.compile(
    r"^ *(?:from (everbus[\w.]*) import (\w+)|import (everbus[\w.]*))", re.M
)
_FIRST_CELL = re.compile(r"^\|([^|]+)\|", re.M)
_MODULE = re.compile(r"`([\w./]+\.py)`")
_DOTTED = re.compile(r"everbus(\.\w+){2,}")
# Fake trees in here name what is not there.
_FAKES = frozenset({"tests.test_architecture"})
# Peers are measured only where they are installed.
_DYNAMIC = frozenset({"__getattr__"})


def twice_named_classes(root: Path) -> list[str]:
    """
    Class names that stand for two things in the product.
    """
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules(root):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module.name)
    return [
        f"class {name} is in {' and in '.join(found)}"
        for name, found in sorted(homes.items())
        if len(found) > 1
    ]


def dangling_imports(root: Path) -> list[str]:
    """
    Names of ours that are imported, replaced or written into a program of the tests,
    and are not there.
    """
    known = {module.name: module for module in modules(root, ROOMS)}
    return [
        f"{module.name} names {name}, which is not there"
        for module in known.values()
        if module.name not in _FAKES
        for name in sorted(module.imports | set(_names_in_text(module)))
        if top(name) in ROOMS and not _is_there(name, known)
    ]


def _is_there(name: str, known: dict[str, Module]) -> bool:
    home, rest = name, ""
    while home and home not in known:
        home, _, part = home.rpartition(".")
        rest = f"{part}.{rest}" if rest else part
    if not home or not rest:
        return bool(home) or name in PACKAGES
    bound = _bound_in(known[home].tree)
    first = top(rest)
    return first in bound or first == "*" or bool(_DYNAMIC & bound)


@cache
def _bound_in(tree: ast.Module) -> frozenset[str]:
    return frozenset(name for node in ast.walk(tree) for name in _binds(node))


def _binds(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or top(alias.name) for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _names_in_text(module: Module) -> Iterator[str]:
    """
    Names that are no imports: attributes of the package, texts, programs in texts.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            yield from _dotted(ast.unparse(node) if _begins_with_us(node) else "")
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", "")
            target = getattr(node.args[0], "value", "")
            if function in {"setattr", "delattr"} and isinstance(target, str):
                yield from _dotted(target)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for home, name, whole in _IMPORT_LINE.findall(node.value):
                yield (f"{home}.{name}" if home else whole).removeprefix(
                    f"{INSTALLED}."
                )


def _begins_with_us(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == INSTALLED


def _dotted(text: str) -> Iterator[str]:
    if _DOTTED.fullmatch(text):
        yield text.removeprefix(f"{INSTALLED}.")


# Users call these: the SDK, what is installed, and what a protocol asks for.
_PUBLIC_ROOMS = ("bus", "compose.testing")


def names_that_only_tests_use(root: Path) -> list[str]:
    """
    Public functions and methods that nothing in the product names, but its own def.
    """
    used = {name for module in modules(root) for name in _used_in(module.tree)}
    return [
        f"{module.name} defines {name} for tests only"
        for module in modules(root)
        if not module.name.startswith(_PUBLIC_ROOMS)
        for name in _defined_in(module.tree)
        if name not in used and f"{module.name}.{name}" not in ALLOWED
    ]


def _defined_in(tree: ast.Module) -> Iterator[str]:
    for owner in (tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))):
        for node in owner.body:
            plain = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            # A decorator or a foreign base class may call it by itself.
            if plain and not node.name.startswith("_") and not node.decorator_list:
                yield node.name


# `module:name`, as entry points and tables of commands name what is imported late.
_PLACE = re.compile(r"[a-z_]+:([a-z_]+)")


@cache
def _used_in(tree: ast.Module) -> frozenset[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
            names.update(_PLACE.findall(node.value))
    return frozenset(names)


# module.name: why it stays though only others than we call it.
ALLOWED = {
    "gateway.identity.jwks_source.redirect_request": "urllib calls it",
    "gateway.store.mongo.driver.transform_bson": "pymongo calls it",
    "compose.lazy_commands.list_commands": "typer calls it",
    "compose.verify.contents.digest_of": "the tests' checks are the product's",
    "compose.verify.readers.stored_entries": "the tests' checks are the product's",
}


def unlisted_modules(root: Path) -> list[str]:
    """
    Modules that the README of their folder, or of the nearest one above, leaves out.
    """
    return [
        f"{path.relative_to(root)} is not in {page.relative_to(root)}: add a row "
        f"| `{path.relative_to(page.parent).as_posix()}` | what it holds | there"
        for room in PACKAGES
        for path in sorted((root / room).rglob("*.py"))
        if path.name != "__init__.py"
        if (page := _page_of(path, root)).is_file()
        if f"`{path.relative_to(page.parent).as_posix()}`" not in page.read_text()
    ]


def vanished_modules(root: Path) -> list[str]:
    """
    Rows of a README's file table whose module is gone.
    """
    return [
        f"{page.relative_to(root)} lists {name}, which is not there: mend its row"
        for room in PACKAGES
        for page in sorted((root / room).rglob("README.md"))
        for cell in _FIRST_CELL.findall(page.read_text())
        for name in _MODULE.findall(cell)
        if not (page.parent / name).is_file()
    ]


def _page_of(path: Path, root: Path) -> Path:
    folders = (f for f in path.parents if f.is_relative_to(root))
    pages = [page for f in folders if (page := f / "README.md").is_file()]
    return pages[0] if pages else root / path.relative_to(root).parts[0] / "README.md"


RULES = (
    twice_named_classes,
    dangling_imports,
    names_that_only_tests_use,
    unlisted_modules,
    vanished_modules,
)
