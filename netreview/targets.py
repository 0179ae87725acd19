"""Finds what the command line names in people's own modules, files and notebooks, and makes it."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import io
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

OWN = ("netreview", "torch", "numpy")  # never taken for a student's files of the same name


class Unusable(Exception):
    """What was named on the command line is not there, or does not work."""


def made(target: str, arguments: str = ""):
    """What MODULE:CALLABLE, FILE.py:CALLABLE or NOTEBOOK.ipynb:CALLABLE gives when it is called.

    Of a notebook, and of a file where that is enough, only imports, definitions and plain assignments are run.
    `arguments` are the call's, as Python writes them: "10, dropout=0.1". What is no class and no function is returned
    as it is.

    Raises:
        Unusable: there is no such thing, or it cannot be made; the message says why in a sentence.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise Unusable(
            f"{target!r} names no callable: give MODULE:CALLABLE, path/to/file.py:CALLABLE or notebook.ipynb:CALLABLE."
        )
    with _as_if_run_there(place) as missing:
        try:
            try:
                return _called(_namespace(place, name)[name], name, arguments)
            except NameError:  # it takes more of the file than its definitions
                if not place.endswith(".py"):
                    raise
                return _called(_all_of(Path(place), {})[name], name, arguments)
        except Unusable:
            raise
        except (Exception, SystemExit) as error:  # their code may raise anything
            lacking = f" ({' and '.join(missing)} cannot be imported, so stand-ins were used)" if missing else ""
            message = str(error).strip().partition("\n")[0][:300]
            raise Unusable(f"{target} cannot be made: {type(error).__name__}: {message}{lacking}") from error


def _called(thing, name: str, arguments: str):
    if not isinstance(thing, type) and not inspect.isroutine(thing):
        return thing
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        given = [ast.literal_eval(value) for value in call.args]
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise Unusable(f"--args {arguments!r}: give values as Python writes them, such as 10, dropout=0.1.") from error
    with contextlib.suppress(ValueError):  # some have no signature that can be read
        try:
            inspect.signature(thing).bind(*given, **named)
        except TypeError as error:
            raise Unusable(f"{name} takes other arguments ({error}): give them, as {_example(thing)}.") from error
    return thing(*given, **named)


def _example(thing) -> str:
    needed = [p.name for p in inspect.signature(thing).parameters.values() if p.default is p.empty]
    return f'--args "{", ".join(f"{name}=..." for name in needed)}"'


def _namespace(place: str, name: str) -> dict:
    """The names that a module, a file or a notebook defines; as much of it is run as `name` takes."""
    path = Path(place)
    if path.suffix not in (".py", ".ipynb"):
        module = importlib.import_module(place)
        if not hasattr(module, name):
            raise Unusable(f"{place} has no {name}; it defines {_some(vars(module))}.")
        return vars(module)
    if not path.is_file():
        raise Unusable(f"There is no file {place}.")
    try:
        definitions = _definitions(path)
    except SyntaxError as error:
        raise Unusable(f"{place} is no valid Python: line {error.lineno}, {error.msg}.") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Unusable(f"{place} cannot be read as a notebook or a file of Python ({error}).") from error
    namespace = _run(definitions, path, name)
    if name not in namespace and path.suffix == ".py":
        _all_of(path, namespace)
    if name not in namespace:
        raise Unusable(f"{place} has no {name}; it defines {_some(namespace)}.")
    return namespace


def _all_of(path: Path, namespace: dict) -> dict:
    """Run a whole file, as an import does."""
    namespace |= {"__name__": path.stem, "__file__": str(path), "__package__": _package(path)}
    exec(compile(source(path), str(path), "exec"), namespace)
    return namespace


def _some(names) -> str:
    defined = [name for name, value in names.items() if inspect.isclass(value) or inspect.isfunction(value)]
    return ", ".join(defined[:8]) or "no class and no function"


def source(path: Path) -> str:
    """The Python of a file, or of a notebook's code cells without the lines that are for the shell or for IPython."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".py":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    kept = []
    for cell in cells:
        lines = ["" if line.lstrip().startswith(("!", "%", "?")) else line for line in cell.splitlines()]
        cell = "\n".join(lines)
        with contextlib.suppress(SyntaxError):  # one broken cell takes nothing from the others
            ast.parse(cell)
            kept.append(cell)
    return "\n\n".join(kept)


_DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def _definitions(path: Path) -> list[ast.stmt]:
    """The statements that import, define, or assign something that is computed without a call."""
    return [statement for statement in ast.parse(source(path)).body if _is_definition(statement)]


def _is_definition(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        calls = [part for part in ast.walk(statement) if isinstance(part, ast.Call)]
        return all(ast.unparse(call.func) in ("torch.device", "torch.cuda.is_available", "partial") for call in calls)
    if isinstance(statement, ast.Try | ast.If):  # an import that may fail
        return all(_is_definition(inner) or isinstance(inner, ast.Pass) for inner in statement.body) and not (
            isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
        )
    return isinstance(statement, _DEFINES)


def _run(statements: list[ast.stmt], path: Path, name: str) -> dict:
    """Run statements one by one, in a module of their own; one that fails takes nothing from the others."""
    module = types.ModuleType(path.stem)
    module.__file__, module.__package__ = str(path), _package(path)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up
    for statement in statements:
        try:
            exec(compile(ast.Module([statement], []), str(path), "exec"), vars(module))
        except Exception:
            if getattr(statement, "name", None) == name and path.suffix == ".ipynb":
                raise
    return vars(module)


def _package(path: Path) -> str:
    """The package that a file belongs to, for its relative imports."""
    folder = path.resolve().parent
    parts = []
    while (folder / "__init__.py").exists() or (not parts and "from ." in source(path)):
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


@contextlib.contextmanager
def _as_if_run_there(place: str) -> Iterator[list[str]]:
    """Import from a file's folder and those above it, as far as here, before all else; yields what was stood in for.

    What was imported from there is forgotten afterwards, and modules of the same names are as they were.
    """
    is_file = Path(place).suffix in (".py", ".ipynb")
    folders = [Path.cwd()]
    if is_file:
        folder = Path(place).resolve().parent
        folders = [folder, *[above for above in list(folder.parents)[:2] if above != Path(above.anchor)], Path.cwd()]
    local = {entry.stem for folder in folders for entry in _python_in(folder)} - {*OWN, *sys.stdlib_module_names}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in local}
    before, path, arguments, stand_ins = set(sys.modules), sys.path[:], sys.argv, _StandIns(place)
    sys.path[:0] = [str(folder) for folder in dict.fromkeys(folders)]
    sys.argv = [place]  # the module may have a command line of its own
    sys.meta_path.append(stand_ins)
    importlib.invalidate_caches()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield stand_ins.missing
    finally:
        sys.meta_path.remove(stand_ins)
        sys.path[:], sys.argv = path, arguments
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {*local, *stand_ins.missing}:
                del sys.modules[name]
        sys.modules.update(hidden)


def _python_in(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [entry for entry in folder.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()]
    return []


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last in importing, and gives an empty module in place of a package that is not installed."""

    def __init__(self, place: str):
        self.place, self.missing = place, []

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if name == self.place or name.startswith("_") or top in sys.stdlib_module_names or top in OWN:
            return None
        if "." in name and top not in self.missing:  # a package that is there, without this part
            return None
        if top not in self.missing:
            self.missing.append(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = _stand_in
        return module

    def exec_module(self, module):
        pass


def _stand_in(name: str):
    """A class that gives stand-ins for all that is asked of it."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _Anything(type):
    def __getattr__(cls, name: str):
        return _stand_in(name)

    def __call__(cls, *_, **__):
        return cls
