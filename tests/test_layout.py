"""Proof of the plan of the house: each floor imports only from floors below it, at the top of its files; no circles.

support/scripts.py is handed a folder and loads the scripts that it finds there; it knows none by name.
"""

import ast
import graphlib

import pytest

import common

FLOORS = [["support"], ["common"], ["bn", "gn", "ln"], ["studies"], ["tools"], ["tests", "test_common"]]  # lowest first
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
HEAVY = {"torchvision", "matplotlib"}  # may be imported where they are used, said so beside it


def sources():
    """All Python files of the project: module name -> text."""
    root = common.ROOT
    paths = [*root.glob("*.py"), *(path for name in FLOOR_OF for path in root.glob(f"{name}/*.py"))]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return {names[path]: path.read_text(encoding="utf-8") for path in paths}


def imports(text, modules):
    """(line, what is imported) of every import statement; of `from folder import module` the modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield node.lineno, name if name in modules else node.module


def faults(modules):
    """What is wrong with the imports of {module: text}: a list of sentences."""
    found, graph = [], {}
    for module, text in modules.items():
        home, lines = module.partition(".")[0], text.splitlines()
        floor = FLOOR_OF.get(home, FLOOR_OF["bn"])  # a script of one's own stands beside the others
        for number, target in imports(text, modules):
            package, line = target.partition(".")[0], lines[number - 1]
            if package in FLOOR_OF:
                graph.setdefault(module, set()).add(target)
                together = package == home or {package, home} <= set(FLOORS[-1])
                if FLOOR_OF[package] >= floor and not together:
                    found.append(f"{module} imports {target}, which is not below it")
            if line.startswith(" ") and not (package in HEAVY and "# heavy" in line):
                found.append(f"{module} imports {target} not at its top")
        if ("import_module" in text and module != "support.scripts") or "__import__" in text:
            found.append(f"{module} imports by a name that can't be followed")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as circle:
        found.append(f"a circle: {' -> '.join(circle.args[1])}")
    return found


def test_nothing_imports_upwards():
    modules = sources()
    assert len(modules) > 30
    modules.pop("tests.test_layout")  # which names what it looks for
    assert faults(modules) == []


@pytest.mark.parametrize(("module", "line", "fault"), [
    ("support.runs", "import common", "support.runs imports common, which is not below it"),
    ("common", "from tools import report", "common imports tools.report, which is not below it"),
    ("bn", "import gn", "bn imports gn, which is not below it"),
    ("studies.dropout", "def f():\n    from tools.bench import page", "studies.dropout imports tools.bench, which"),
    ("studies.dropout", "def f():\n    import statistics", "studies.dropout imports statistics not at its top"),
    ("studies.study", "from studies import dropout", "a circle: studies."),
    ("common", "importlib.import_module('bn')", "common imports by a name that can't be followed"),
])
def test_an_import_upwards_is_found(module, line, fault):
    modules = sources()
    modules.pop("tests.test_layout")
    modules[module] += f"\n{line}\n"
    assert any(found.startswith(fault) for found in faults(modules))


def test_every_file_says_what_it_is_for_and_every_folder_which_question_it_answers():
    docstrings = {module: ast.get_docstring(ast.parse(text)) for module, text in sources().items()}
    assert all(docstrings.values())
    for folder in ("support", "studies", "tools", "tests"):
        assert "?" in docstrings[folder], folder
