"""The rules of the house, read off the files: who imports whom, sizes, what text may not say."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ("", "nodes", "rspa_core", "kernels", "adapters")
PACKAGES = (*LIBRARY, "benchmarks")
COMFY = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "server", "folder_paths", "nodes")
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".js", ".cfg", ".css", ".html", ""}
# Part of rspa_core that kernels may know: data types and plain torch, nothing that dispatches.
DISPATCHING = {"rspa_core", "rspa_core.dispatch", "rspa_core.attention"}


@dataclass(frozen=True)
class Import:
    """One import: the dotted target (relative ones resolved from the root as `.nodes.x`)."""

    file: str
    line: int
    target: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.target.lstrip(".").split(".")[0]

    @property
    def inside(self) -> bool:
        """Whether the target is a part of this pack."""
        return self.target.startswith(".")

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def project_files() -> list[Path]:
    """Files that git tracks or would track; without git, everything outside hidden folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
        return [path for path in found if path.is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.parts[len(ROOT.parts) :])
    ]


def package_files(*folders: str) -> list[Path]:
    """Python files of the given top-level folders; "" is the root folder itself."""
    return [
        path
        for path in project_files()
        if path.suffix == ".py"
        and (path.relative_to(ROOT).parts[0] if path.parent != ROOT else "") in folders
    ]


def module_parts(path: Path) -> list[str]:
    """Folder parts from the root of the package that contains `path`."""
    return list(path.relative_to(ROOT).parts[:-1])


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a file, except those for type checkers only."""
    name = path.relative_to(ROOT).as_posix()

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, lazy)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield Import(name, node.lineno, node.module or "", lazy)
                return
            parts = module_parts(path)
            base = parts[: len(parts) - node.level + 1] + (node.module or "").split(".")
            base = [part for part in base if part]
            if node.module:
                yield Import(name, node.lineno, "." + ".".join(base), lazy)
            else:  # from .. import x: x is a module or a name of the package
                for alias in node.names:
                    yield Import(name, node.lineno, "." + ".".join([*base, alias.name]), lazy)
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def all_imports(*folders: str) -> list[Import]:
    return [each for path in package_files(*folders) for each in imports_of(path)]


def failures(found: list[object]) -> str:
    return "\n".join(map(str, found))


def test_only_nodes_know_comfyui() -> None:
    wrong = [
        each
        for each in all_imports("", "rspa_core", "kernels", "benchmarks")
        if not each.inside
        and each.top in COMFY
        # The benchmark of whole forwards drives a ComfyUI checkout once it is asked to.
        and not (each.file.startswith("benchmarks/") and each.lazy)
    ]
    assert not wrong, failures(wrong)


def test_only_kernels_know_triton() -> None:
    others = all_imports("", "nodes", "rspa_core", "benchmarks")
    wrong = [
        each
        for each in others
        if each.top == "triton"
        # Compiles kernels for GPUs that are not there.
        and each.file != "benchmarks/cards/compiled.py"
    ]
    assert not wrong, failures(wrong)


def test_nothing_imports_nodes_but_the_front_door_lazily() -> None:
    wrong = [
        each
        for each in all_imports("", "rspa_core", "kernels")
        if each.inside and each.top == "nodes" and not (each.file == "__init__.py" and each.lazy)
    ]
    assert not wrong, failures(wrong)


def test_rspa_core_reaches_kernels_lazily_in_one_place() -> None:
    wrong = [
        each
        for each in all_imports("rspa_core")
        if each.inside
        and each.top == "kernels"
        and not (each.file == "rspa_core/dispatch.py" and each.lazy)
    ]
    assert not wrong, failures(wrong)


def test_kernels_and_rspa_core_do_not_import_in_a_circle() -> None:
    wrong = [
        each
        for each in all_imports("kernels")
        if each.inside and each.top == "rspa_core" and each.target.lstrip(".") in DISPATCHING
    ]
    assert not wrong, failures(wrong)


def test_nodes_reach_kernels_only_through_rspa_core() -> None:
    wrong = [each for each in all_imports("nodes") if each.inside and each.top == "kernels"]
    assert not wrong, failures(wrong)


def test_nodes_reach_benchmarks_lazily_in_one_place() -> None:
    wrong = [
        each
        for each in all_imports("", "nodes", "rspa_core", "kernels", "adapters")
        if each.inside
        and each.top == "benchmarks"
        and not (each.file == "nodes/benchmark.py" and each.lazy)
    ]
    assert not wrong, failures(wrong)


def test_imports_inside_the_pack_are_relative() -> None:
    # ComfyUI loads the root folder under the folder's own name, whatever that is.
    wrong = [each for each in all_imports(*LIBRARY) if each.target.startswith("rectified_spaattn")]
    assert not wrong, failures(wrong)


def test_library_code_does_not_print_evaluate_or_start_programs() -> None:
    wrong = []
    for path in package_files(*LIBRARY):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"print", "eval", "exec", "os.system", "os.popen"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {called}")
    wrong += [
        str(each)
        for each in all_imports(*LIBRARY)
        if each.top in {"subprocess", "pip", "requests"}
        # A kernel that may hang is tried in a process of its own.
        and (each.file, each.top) != ("kernels/selfcheck.py", "subprocess")
    ]
    assert not wrong, failures(wrong)


def test_library_code_keeps_no_global_state() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in package_files(*LIBRARY)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Global)
    ]
    assert not wrong, failures(wrong)


# Character classes keep these patterns from matching their own source line.
FORBIDDEN_TEXT = {
    "an absolute path of one machine": re.compile(
        r"(?<![\w.~/:-])/(?:roo[t]|hom[e]/\w+|wor[k]|tm[p]|Use[r]s/\w+)(?:/|\b)"
    ),
    "how the work was organised": re.compile(
        # A fixture's scope="..." and "once per ..." are pytest's words.
        r"(?<![\"\w])(?<!per )"
        r"(?:sess[i]ons?|sub-?age[n]ts?|co-?work[e]rs?|work[p]lace|tick[e]ts?)\b(?!\")"
    ),
    "an issue number": re.compile(r"(?:iss[u]e|pull requ[e]st|PR|ta[s]k)\s+#?\d+\b|\(#\d+\)"),
    "a merge that was not finished": re.compile(r"^(?:<{7}|>{7}|[|]{7}) "),
    "an unfinished place": re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|TB[D])\b"),
}


@pytest.mark.parametrize("what", list(FORBIDDEN_TEXT))
def test_text_does_not_contain(what: str) -> None:
    wrong = []
    for path in project_files():
        if path.suffix not in TEXT or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := FORBIDDEN_TEXT[what].search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {match.group()!r}")
    assert not wrong, failures(wrong)


def test_packages_are_all_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])
    present = {
        ".".join(["rectified_spaattn", *module_parts(path)])
        for path in package_files(*PACKAGES)
        if path.name == "__init__.py"
    }
    assert listed == present


def test_nothing_is_installed_by_comfyui_manager() -> None:
    # Manager runs pip on a requirements.txt and runs an install.py; the pack needs neither.
    assert not (ROOT / "requirements.txt").exists()
    assert not (ROOT / "install.py").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dependencies"] == []


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_front_door_needs_neither_comfyui_nor_triton(tmp_path: Path) -> None:
    heavy = "{name.split('.')[0] for name in sys.modules} & {'triton', 'torch', 'comfy', 'nodes'}"
    code = f"import sys, rectified_spaattn as pack; print({heavy}, pack.WEB_DIRECTORY)"
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "set() ./web", result.stderr


def test_method_loads_neither_triton_nor_safetensors(tmp_path: Path) -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules;"
        "import rectified_spaattn.rspa_core, rectified_spaattn.rspa_core.run.profile;"
        "print(before == ('triton' in sys.modules), 'rectified_spaattn.kernels' in sys.modules);"
        "print([name for name in sys.modules if name.startswith('safetensors')])"
    )
    result = run_python(code, tmp_path)
    assert result.stdout.split() == ["True", "False", "[]"], result.stderr


def test_installing_does_not_expose_a_top_level_nodes_module(tmp_path: Path) -> None:
    result = run_python("import nodes", tmp_path)
    assert "No module named 'nodes'" in result.stderr


def test_folder_loads_under_any_name_like_a_custom_node() -> None:
    # ComfyUI names the module after the path of the folder, with dots replaced.
    name = "custom_nodes/comfyui-rectified-spaattn_x_"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        assert callable(module.comfy_entrypoint)
        assert (ROOT / module.WEB_DIRECTORY).is_dir()
    finally:
        del sys.modules[name]
