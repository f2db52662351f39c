"""Notebooks: the argument in short cells, stripped in git, and each one executed at smoke scale."""

import ast
import json
import time

import nbformat
import pytest
from conftest import NO_SANDBOX
from inoculation import __main__ as cli
from inoculation import runs, settings, store, tables

NOTEBOOKS = sorted(store.NOTEBOOKS.glob("*.ipynb"))
SHORT = store.NOTEBOOKS / "02_spanish_vs_caps.ipynb"


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def parameters(path):
    (cell,) = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    return ast.parse(cell.source).body


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestShape:
    def test_is_stripped(self, path):
        book = json.loads(path.read_text(encoding="utf-8"))
        assert "papermill" not in book["metadata"]
        for cell in book["cells"]:
            assert "papermill" not in cell["metadata"]
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None)

    def test_reads_like_prose(self, path):
        code, prose = cells(path, "code"), cells(path, "markdown")
        assert len(prose) >= len(code)
        assert 8 <= len(code) <= 16
        assert max(cell.source.count("\n") + 1 for cell in code) <= 12

    def test_defines_nothing(self, path):
        for cell in cells(path, "code"):
            defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(cell.source)))

    def test_parameters_are_literals_and_nothing_is_computed_by_hand(self, path):
        values = {statement.targets[0].id: ast.literal_eval(statement.value) for statement in parameters(path)}
        every = {"profile": "mini", "conditions": "all", "seeds": "all", "full": False, "sweeps": False, "threads": 0}
        every["compute"] = False
        assert values == {name: {**every, "answers": cli.EXAMPLE}[name] for name in cli.TAKES.get(path.stem, every)}

    def test_belongs_to_a_setting(self, path):
        assert path.stem in [*cli.TAKES, *(settings.load_setting(name).notebook for name in settings.setting_names())]


@pytest.mark.parametrize(
    ("number", "stored", "conditions", "held"),
    [
        ("01", "pairs", ["baseline", "inoculation.caps"], 6),
        ("02", "smoke", ["base", "baseline", "inoculation.spanish"], 3),
        ("03", "pairs", ["baseline"], 2),
        ("04", "pairs", ["baseline"], 1),
        ("05", "pairs", ["baseline"], 1),
        pytest.param("06", "pairs", ["baseline"], 1, marks=pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)),
        ("07", "pairs", ["baseline"], 2),
    ],
)
def test_runs_top_to_bottom_at_smoke_scale_and_never_loads_torch(
    number, stored, conditions, held, request, monkeypatch, tmp_path
):
    found = request.getfixturevalue(stored)
    if stored == "pairs":
        monkeypatch.setenv("INOCULATION_HOME", str(found))
    (path,) = store.NOTEBOOKS.glob(f"{number}_*.ipynb")
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys\nprint('torch loaded:', 'torch' in sys.modules)"))
    nbformat.write(book, tmp_path / "in.ipynb")
    values = {"profile": "smoke", "conditions": conditions, "seeds": [0], "sweeps": number == "01", "compute": True}
    started = time.monotonic()
    assert cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", values) == []
    assert time.monotonic() - started < 60
    printed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert f"{held} runs were there, 0 completed now, 0 failed" in printed
    assert printed.count("image/png") >= 2
    assert "&lt;|im_start|&gt;system" in printed
    assert "torch loaded: False" in printed


def test_the_elicitation_notebook_shows_what_is_there_and_never_loads_torch(pairs, monkeypatch, tmp_path):
    monkeypatch.setenv("INOCULATION_HOME", str(pairs))
    book = nbformat.read(store.NOTEBOOKS / f"{cli.ELICITATION}.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys\nprint('torch loaded:', 'torch' in sys.modules)"))
    nbformat.write(book, tmp_path / "in.ipynb")
    assert cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"profile": "smoke", "compute": False}) == []
    printed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "11 runs, 1 already done, 10 to do" in printed
    assert "inoculation.caps" in printed
    assert "image/png" in printed
    assert "torch loaded: False" in printed


def test_the_narrow_notebook_runs_top_to_bottom_at_smoke_scale_and_never_loads_torch(narrowed, monkeypatch, tmp_path):
    monkeypatch.setenv("INOCULATION_HOME", str(narrowed[0]))
    (path,) = store.NOTEBOOKS.glob("08_*.ipynb")
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys\nprint('torch loaded:', 'torch' in sys.modules)"))
    nbformat.write(book, tmp_path / "in.ipynb")
    assert cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"profile": "smoke", "seeds": [0], "compute": True}) == []
    printed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "6 runs were there, 0 completed now, 0 failed" in printed
    assert printed.count("image/png") == 8
    assert "drift: not run" in printed
    assert "&lt;|im_start|&gt;system" in printed
    assert "torch loaded: False" in printed


@pytest.mark.parametrize(("name", "pictures", "says"), [("00_start_here", 2, "Riché"), ("10_summary", 4, "by seed   ")])
def test_the_story_is_told_from_the_reference_and_never_loads_torch(name, pictures, says, elsewhere):
    book = nbformat.read(store.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys\nprint('torch loaded:', 'torch' in sys.modules)"))
    nbformat.write(book, elsewhere / "in.ipynb")
    assert cli.execute(elsewhere / "in.ipynb", elsewhere / "out.ipynb", {"profile": "mini"}) == []
    printed = (elsewhere / "out.ipynb").read_text(encoding="utf-8")
    assert printed.count('"image/png"') == pictures
    assert "what follows is reference: bad_medical_advice, " in printed
    assert says in printed
    assert "torch loaded: False" in printed


def test_the_site_is_told_from_nothing_at_all_and_executes_only_what_it_must(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_all.sh", "site", "--profile", "smoke", "--notebook", "10"])
    assert cli.main() == 0
    assert "10_summary, profile smoke, computing nothing" in capsys.readouterr().out
    built = store.local() / "site" / "smoke"
    assert "not run: bad_medical_advice, " in (built / "10_summary.html").read_text(encoding="utf-8")
    assert 'href="10_summary.html"' in (built / "index.html").read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["run_all.sh", "--dry-run", "--notebook", "10"])
    assert cli.main() == 0
    assert capsys.readouterr().out == "10_summary\n  trains nothing\n"


def test_the_audit_notebook_shows_what_is_trained_of_the_example_and_never_loads_torch(audited, monkeypatch, tmp_path):
    monkeypatch.setenv("INOCULATION_HOME", str(audited))
    book = nbformat.read(store.NOTEBOOKS / f"{cli.AUDIT}.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("import sys\nprint('torch loaded:', 'torch' in sys.modules)"))
    nbformat.write(book, tmp_path / "in.ipynb")
    assert cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"profile": "smoke", "compute": False}) == []
    printed = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "front_desk: smollm2-135m-instruct, screening only" in printed
    assert "Message for the front desk:" in printed
    assert '"image/png"' in printed
    assert "widget-view+json" in printed
    assert "torch loaded: False" in printed


def test_every_notebook_is_run_above():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11"]


def test_a_parameter_the_notebook_does_not_have_is_refused_before_the_kernel(tmp_path):
    with pytest.raises(store.SettingError, match="unknown parameter of .* 'seed'; nearest: seeds"):
        cli.execute(SHORT, tmp_path / "x.ipynb", {"seed": [0]})
    assert not (tmp_path / "x.ipynb").exists()


def test_a_failing_cell_is_one_readable_paragraph(tmp_path):
    book = nbformat.read(SHORT, as_version=4)
    book.cells = [*book.cells[:4], nbformat.v4.new_code_cell("raise RuntimeError('the figure is missing')")]
    nbformat.write(book, tmp_path / "in.ipynb")
    values = {"profile": "smoke", "conditions": ["base"], "seeds": [0], "full": False, "threads": 0, "compute": False}
    (problem,) = cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", values)
    assert "RuntimeError: the figure is missing" in problem
    assert "\n" not in problem


def test_a_dead_kernel_is_one_readable_paragraph(tmp_path):
    book = nbformat.read(SHORT, as_version=4)
    book.cells = [*book.cells[:4], nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")]
    nbformat.write(book, tmp_path / "in.ipynb")
    problems = cli.execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"profile": "smoke"})
    assert problems == ["in: its kernel died; finished runs are kept, the same command goes on from there"]


def test_by_hand_a_notebook_shows_the_reference_where_you_have_nothing(elsewhere):
    found = tables.latest("spanish_vs_caps", "mini")
    assert found.origin == "reference"
    assert "12 to do, about 26 minutes" in runs.plan(runs.grid("spanish_vs_caps", "mini"))
    with pytest.raises(LookupError, match="set compute = True, or run"):
        tables.latest("spanish_vs_caps", "paper")
