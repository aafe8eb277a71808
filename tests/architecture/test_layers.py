"""The house keeps its shape: arrows, what an import costs, and how long a file may grow."""

import ast
import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for package in ("hstvg", "pipelines") for path in (ROOT / package).rglob("*.py")
)
PIPELINES = sorted(path.stem for path in (ROOT / "pipelines").glob("[a-z]*.py"))

LIBRARIES = {"torch", "ray", "deepspeed", "transformers", "diffusers", "av", "wandb"}
CONFIG = {"hydra", "omegaconf", "pyarrow"}

MAX_FILE = 400
MAX_PIPELINE = 60
"""Code lines: no blanks, comments or docstrings."""
MAX_FUNCTION = 60
MAX_LOOP = 120
"""Lines; the training loop may be longer, so that it can be read in one piece."""
LOOP = "hstvg/train/loop.py::train"
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(source: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    lines: set[int] = set()
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone: a docstring, of a module, a class, a function or a field.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and length of every function of a file, decorators left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            found.append((f"{relative(path)}::{node.name}", length))
    return found


def test_the_arrows_point_down(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    kept = lint_imports(config_filename="pyproject.toml", no_cache=True) == 0
    assert kept, capsys.readouterr().out


@pytest.mark.parametrize("module", ["hstvg", *(f"pipelines.{name}" for name in PIPELINES)])
def test_an_import_brings_nothing_heavy(module):
    done = run_python("-c", f"import sys, {module}; print(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & (LIBRARIES | CONFIG)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_answers_help(name):
    # Asked of the interpreter itself, so that a module loaded for it is seen.
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('pipelines.{name}', run_name='__main__')\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Keys and defaults" in done.stdout
    assert "dry_run: false" in done.stdout
    loaded = {module.split(".")[0] for module in done.stderr.split()}
    assert not loaded & LIBRARIES


def test_data_tasks_do_without_torch():
    """They are many and short-lived; its import would cost each a second and 200 MB."""
    done = run_python("-c", "import sys, hstvg.runtime.reader; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_files_stay_short():
    lengths = {path: code_lines(path.read_text()) for path in SOURCES}
    long = {
        relative(path): length
        for path, length in lengths.items()
        if length > (MAX_PIPELINE if path.parent.name == "pipelines" else MAX_FILE)
    }
    assert not long


def test_functions_stay_short():
    long = {
        name: length
        for path in SOURCES
        for name, length in functions(path)
        if length > (MAX_LOOP if name == LOOP else MAX_FUNCTION)
    }
    assert not long


def test_no_file_has_a_name_that_says_nothing():
    assert not [relative(path) for path in SOURCES if path.stem in VAGUE]


def test_the_ruler_measures_code_alone():
    module = ['"""Doc."""', "", "# why", "x = 1  # one", '"""Field."""', ""]
    function = ["def f():", '    """Doc', '    string."""', "    return (", "        1", "    )"]
    assert code_lines("\n".join([*module, *function])) == 5
