"""The import rules of CONTRIBUTING.md, read from the source, and the sizes of folders and files."""

import ast
from pathlib import Path

import hjepa_pl

ROOT = Path(hjepa_pl.__file__).parent
BASE = {"types", "functional", "utils"}
ALLOWED = {
    "types": set(),
    "functional": {"types"},
    "utils": {"types"},
    "masks": BASE,
    "losses": BASE,
    "optim": BASE,
    "models": BASE,
    "evaluation": BASE,
    "objectives": BASE | {"masks", "losses", "optim", "models"},
    "modules": BASE | {"masks", "losses", "optim", "models", "objectives", "backbones", "evaluation"},
    "callbacks": BASE | {"evaluation"},
    "callbacks/pictures": BASE | {"evaluation", "models", "objectives"},
    "data/sources": BASE,
    "data/augment": BASE,
    "data/loading": BASE | {"data/sources", "data/augment"},
    "data": BASE | {"data/sources", "data/augment", "data/loading"},
    "backbones": BASE | {"models", "data/sources", "data/augment", "data/loading"},
    "cli": BASE | {"losses", "masks", "models", "modules", "callbacks", "callbacks/pictures", "data", "data/sources"},
    "tools": BASE | {"masks", "models", "modules", "callbacks", "data", "data/sources", "data/augment", "cli"},
    "tools/check": BASE | {"masks", "modules", "data", "data/sources", "cli", "tools"},
    "tools/export": BASE | {"models", "backbones", "tools"},
    "tools/predict": BASE | {"backbones", "data/sources", "data/augment", "tools"},
    "tools/bench": BASE | {"modules", "callbacks", "tools"},
    "tools/evaluate": BASE
    | {"models", "evaluation", "backbones", "modules", "callbacks", "data", "data/sources", "data/augment"}
    | {"data/loading", "tools"},
    "tools/monitor": BASE | {"tools"},
    "tools/sweep": BASE | {"optim", "callbacks", "evaluation", "cli", "tools"},
    "__main__": {"types", "cli", "tools"},
    "__init__": {"modules", "data", "backbones"},
}
"""What each room (a folder, or a folder within data and tools) may import."""
LIGHTNING = {"modules", "callbacks", "callbacks/pictures", "data", "data/sources", "data/loading", "cli"}
LIGHTNING |= {"tools", "tools/bench", "tools/evaluate"}


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
    """Return the room of a file or folder: the folder, and within data and tools the folder in it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[:2]) if "/".join(parts[:2]) in ALLOWED else parts[0]


def test_imports_run_downward() -> None:
    for path in ROOT.rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "hjepa_pl" and len(parts) > 1 and (other := room(ROOT.joinpath(*parts[1:]))) != room(path):
                assert other in ALLOWED[room(path)], f"{path.relative_to(ROOT)} imports {name}"


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


def test_sizes_of_folders_and_files() -> None:
    """A folder has at most 15 files, a file at most 300 lines."""
    for folder in {p.parent for p in ROOT.rglob("*.py")}:
        files = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(files) <= 15, f"{folder.relative_to(ROOT)}: {len(files)} files"
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
