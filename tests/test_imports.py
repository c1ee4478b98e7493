"""The import rules of design 3, read from the source: downward between rooms, no cycles, Lightning on top only."""

import ast
from pathlib import Path

import hjepa_pl

ROOT = Path(hjepa_pl.__file__).parent
ALLOWED = {
    "types": set(),
    "functional": {"types"},
    "masks": {"types", "functional"},
    "losses": {"types", "functional"},
    "optim": {"types", "functional"},
    "models": {"types", "functional"},
    "data": {"types", "functional"},
    "evaluation": {"types", "functional"},
    "modules": {"types", "functional", "masks", "losses", "optim", "models"},
    "callbacks": {"types", "functional", "evaluation"},
    "refusals": {"types"},
    "keys": {"types"},
    "failures": set(),
    "config_files": {"types"},
    "words": {"types", "config_files"},
    "schema": {"modules", "data", "callbacks", "outputs"},
    "resume": {"types", "refusals"},
    "ckpt_path": {"types", "resume"},
    "outputs": {"types", "callbacks"},
    "watchers": {"types", "callbacks", "outputs"},
    "cli": {
        "types",
        "functional",
        "masks",
        "losses",
        "optim",
        "models",
        "data",
        "evaluation",
        "modules",
        "callbacks",
        "outputs",
        "refusals",
        "keys",
        "resume",
        "schema",
        "ckpt_path",
        "watchers",
    },
    "launch": {"types", "functional", "data", "modules", "callbacks", "refusals", "failures", "cli"},
    "tools": {
        "types",
        "functional",
        "masks",
        "models",
        "data",
        "modules",
        "callbacks",
        "refusals",
        "config_files",
        "words",
        "cli",
        "launch",
    },
    "__main__": {"types", "config_files", "words", "schema", "failures", "launch", "tools"},
    "__init__": {"modules", "data"},
}
LIGHTNING = {"modules", "callbacks", "data", "cli", "outputs", "watchers", "schema"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def test_imports_run_downward() -> None:
    for path in ROOT.rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "hjepa_pl" and len(parts) > 1 and parts[1] != room(path):
                assert parts[1] in ALLOWED[room(path)], f"{path.relative_to(ROOT)} imports {name}"


def test_lightning_is_imported_on_top_only() -> None:
    for path in ROOT.rglob("*.py"):
        if any(n.split(".")[0] in ("lightning", "pytorch_lightning") for n in imports(path)):
            assert room(path) in LIGHTNING, path


def test_no_cycles() -> None:
    graph = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(["hjepa_pl", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = {n for n in imports(path) if n.startswith("hjepa_pl")}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
