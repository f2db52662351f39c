"""Project habits: one home for pins, no host and no path of a machine, one-way imports, a package that imports at once."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from inoculation import store

ROOT = store.ROOT
LIB = sorted((ROOT / "lib" / "inoculation").glob("*.py"))
SANDBOX = sorted((ROOT / "lib" / "sandbox").glob("*.py"))
BESIDE = {
    "narrow": ["plan", "weights", "train", "measure", "worker", "tables", "contrasts", "figures"],
    "summary": ["tables", "figures"],
    "engines": ["checks", "task", "cluster", "batch", "command"],
    "readalong": ["pages", "books", "samples", "claims", "site"],
    "audit": [
        *("files", "rows", "checks", "patterns", "answers", "form", "controls", "reword", "hub", "material", "specs", "plan"),
        *("worker", "effects", "advice", "report", "command"),
    ],
}
BUILT_ON = [path for name in BESIDE for path in sorted((ROOT / "lib" / name).glob("*.py"))]
APART = [path for name in ("scorers", "sources") for path in sorted((ROOT / "lib" / name).glob("*.py"))]
ORDER = [
    "store",
    "stats",
    "settings",
    "render",
    "runs",
    "model",
    "evaluate",
    "score",
    "worker",
    "tables",
    "judge",
    "effects",
    "claims",
    "figures",
    "__main__",
]
specification = importlib.util.spec_from_file_location("doctor", ROOT / "proofs" / "doctor.py")
doctor = importlib.util.module_from_spec(specification)
specification.loader.exec_module(doctor)


def tracked():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def test_the_lock_holds_every_dependency_within_its_bounds():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = doctor.pins()
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        wanted = Requirement(line)
        assert wanted.name in pins, line
        assert wanted.specifier.contains(pins[wanted.name]), line


def test_versions_have_one_home():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = next(item for item in environment if item.startswith("python")).split("=")[1]
    assert (project["requires-python"], python) == (">=3.11,<3.13", "3.11")
    assert all("=" not in item for item in environment if not item.startswith("python"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Python 3.11 or 3.12" in readme
    pins = {**doctor.pins(), "python": python}
    for name, version in re.findall(r"`([a-z_-]+) (\d[\w.]*)`", readme):
        assert pins[name.replace("_", "-")] == version, name


def test_no_registry_host_and_no_path_of_a_machine_in_any_file():
    host = re.compile(
        "|".join(
            (
                "pypi" + r"\.org",
                "files" + r"\.pythonhosted",
                "conda" + r"\.anaconda",
                "download" + r"\.pytorch",
                "index" + "-url",
            )
        )
    )
    place = re.compile(r"(^|[^\w.])/(home|root|work|farm|Users)/")
    for path in tracked():
        if path.suffix in (".png", ".gz") or path.name == Path(__file__).name:
            continue
        text = path.read_text(encoding="utf-8")
        assert not host.search(text), path
        assert not place.search(text), path


def test_the_library_is_thin_and_says_what_each_module_owns():
    assert len([path for path in LIB if not path.name.startswith("__")]) <= 14
    for path in [*LIB, *SANDBOX, *BUILT_ON, *APART]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, path.name
        assert ast.get_docstring(ast.parse(text)), path.name


def test_imports_point_one_way():
    for path in LIB:
        if path.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("inoculation"):
                names = [a.name for a in node.names] if node.module == "inoculation" else [node.module.split(".")[1]]
                assert all(ORDER.index(name) < ORDER.index(path.stem) for name in names), (path.name, names)


@pytest.mark.parametrize("name", BESIDE)
def test_the_library_knows_nothing_of_what_is_built_on_it_but_in_the_command_line(name):
    imports = re.compile(rf"^\s*(?:from|import) {name}\b", re.MULTILINE)
    assert [path.stem for path in LIB if imports.search(path.read_text(encoding="utf-8"))] == ["__main__"]
    docstring = ast.get_docstring(ast.parse((ROOT / "lib" / name / "__init__.py").read_text(encoding="utf-8")))
    assert f"in reading order: {', '.join(BESIDE[name])}." in docstring
    assert sorted(BESIDE[name]) == [path.stem for path in BUILT_ON if path.parent.name == name and path.stem != "__init__"]


def test_the_packages_beside_the_library_know_no_experiment_and_what_runs_inside_the_sandbox_needs_no_package():
    assert [path.name for path in SANDBOX] == ["__init__.py", "inside.py"]
    for path in [*SANDBOX, *APART]:
        assert "inoculation" not in path.read_text(encoding="utf-8")
    inside = SANDBOX[1].read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:import|from) (\w+)", inside, re.MULTILINE)) <= sys.stdlib_module_names
    assert not re.search(r"^[ \t]+(?:import|from \w+ import)", inside, re.MULTILINE)


def test_nothing_is_vendored_pickled_or_trusted_from_outside():
    for path in [*LIB, *SANDBOX, *BUILT_ON, *APART]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"trust_remote_code|import pickle|torch\.load|shell=True|verify=False", text), path.name


def test_the_package_imports_in_half_a_second_without_torch():
    code = "import time; t = time.perf_counter(); import inoculation, inoculation.runs, sys; "
    code += "print(time.perf_counter() - t, 'torch' in sys.modules, 'pandas' in sys.modules)"
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in outputs) <= 0.5
    assert {tuple(rest) for _, *rest in outputs} == {("False", "False")}


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]])
def test_ruff_is_content_with_code_and_notebooks(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nbstripout_finds_nothing_to_strip():
    books = [str(path) for path in store.NOTEBOOKS.glob("*.ipynb")]
    keys = "metadata.papermill cell.metadata.papermill"
    done = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", "--extra-keys", keys, *books], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', readme):
        assert (ROOT / "".join(name)).exists(), name
    from inoculation.__main__ import parser

    known = {flag for action in parser()._actions for flag in action.option_strings}
    known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "bench" / "bench.py").read_text(encoding="utf-8")))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme)) <= known
    for path in re.findall(r"`((?:bench|data|lib|notebooks|figures|proofs|tests)/[\w./-]+)`", readme):
        assert (ROOT / path).exists() or "local" in path, path


def command(*arguments):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "inoculation", *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    return done, time.monotonic() - started


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--profile", "mnii"], "unknown profile 'mnii'; nearest: mini"),
        (["--only", "inoculation.spansh"], "unknown condition 'inoculation.spansh'; nearest: inoculation.spanish"),
        (["--notebook", "99"], "unknown notebook '99'"),
        (["--sedes", "1"], "unknown option '--sedes'; nearest: --seeds"),
        (["--seeds", "one"], "invalid int value: 'one'"),
        (["--threads", "-1"], "--threads must be 0 or more"),
        (["--profile", "paper"], "is not part of any package and nothing is downloaded here"),
        (["docter"], "unknown command 'docter'; nearest: doctor"),
        (["doctor"], "doctor is ./run_all.sh doctor"),
    ],
)
def test_a_wrong_command_is_one_line_exit_2_and_nothing_run(elsewhere, arguments, says):
    done, _ = command(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(elsewhere.iterdir())


def test_dry_run_says_what_would_run(elsewhere):
    done, _ = command("--dry-run", "--notebook", "02", "--seeds", "0", "1")
    assert done.returncode == 0
    assert "rephrased-64.caps · seed 1 · train, sample, margins, score" in done.stdout
    assert "23 runs, 0 already done, 23 to do, about" in done.stdout
    assert not list(elsewhere.iterdir())


def test_sweeps_are_off_until_asked_for_and_the_elicitation_notebook_needs_base_models_alone(elsewhere):
    plain, swept = (command("--dry-run", *more)[0].stdout for more in ((), ("--sweeps", "--notebook", "01", "09")))
    assert "rows=" not in plain
    assert "trait_distillation_french_caps · inoculation.caps · seed 0 · rows=24" in swept
    assert "learning_rate=0.004" in swept
    asked = swept.split("09_elicitation\n")[1]
    assert "11 runs, 0 already done, 11 to do" in asked
    assert asked.count("· base · seed 0") == 11


def test_a_second_run_trains_nothing_and_ends_in_time(smoke, home):
    arguments = ("--profile", "smoke", "--notebook", "02", "--only", "base", "baseline", "inoculation.spanish")
    done, seconds = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "3 runs were there, 0 completed now, 0 failed" in done.stdout
    assert seconds < 30


def test_no_script_hides_a_package_of_the_library_from_its_neighbours():
    packages = {path.name for path in (ROOT / "lib").iterdir() if path.is_dir()}
    assert len(packages) > len(BESIDE)
    assert not packages & {path.stem for name in ("proofs", "bench", "tests") for path in (ROOT / name).glob("*.py")}


def test_doctor_finds_this_machine_well(elsewhere):
    done = subprocess.run([sys.executable, "proofs/doctor.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("ok")] == [
        f"ok    {n}" for n in doctor.CHECKS
    ]


def test_doctor_says_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_GB", 10**9)
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor.check_disk})
    said: list[str] = []
    assert doctor.examine(said.append) == 1
    assert said[0].startswith("FAIL  disk: ")
    assert "set INOCULATION_HOME" in said[0]
