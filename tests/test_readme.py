"""README can be followed: every command is one that exists, the worked example runs, a number is traced as it says."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from inoculation import __main__ as cli
from inoculation import settings, store
from summary import tables

README = (store.ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = list(dict.fromkeys(re.findall(r"\./run_all\.sh[^`\n#]*", README)))
EXAMPLE = "spanish_as_prefix"


def section(title):
    """The lines of the shell block in a section, without comments."""
    block = README.split(f"## {title}\n")[1].split("```bash\n")[1].split("```")[0]
    return [line.split("  #")[0].strip() for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_names_what_exists(command, monkeypatch):
    words = shlex.split(command)[1:]
    scripts = re.findall(r"^  (\w+)\) shift", (store.ROOT / "run_all.sh").read_text(encoding="utf-8"), re.MULTILINE)
    if words and words[0] in scripts:
        return
    monkeypatch.setattr(sys, "argv", ["run_all.sh", *words])
    options = cli._options(cli.parser())
    assert settings.load_profile(options.profile)
    known = [*settings.setting_names(), EXAMPLE]
    assert options.setting in ("", *known)
    if options.source:
        assert set(options.source) <= set(settings.load_setting(options.setting).data["imported"]["sources"])
    elif options.notebook != ["12"]:
        names = [name for names in cli._chosen_notebooks(options.notebook).values() for name in names]
        assert cli._grid(options, list(dict.fromkeys(names)))


def test_the_minutes_are_the_profiles_own():
    total = sum(int(re.search(r"(\d+) minutes", told)[1]) for told in tables.minutes()["mini"])
    for said in re.findall(r"about (\d{3}) minutes", README):
        assert abs(int(said) - total) <= 5


def test_the_map_has_every_notebook_with_the_profiles_own_runs_and_minutes():
    rows = dict(re.findall(r"^\| \[\w+\]\(notebooks/(\w+)\.ipynb\) \|.*\| ([^|]*) \|$", README, re.MULTILINE))
    assert sorted(rows) == sorted(path.stem for path in store.NOTEBOOKS.glob("*.ipynb"))
    for notebook, told in tables.minutes().set_index("notebook")["mini"].items():
        assert rows[notebook].startswith(told)


def test_what_it_says_of_audits_is_what_the_proofs_measured():
    found = pd.read_csv(store.ROOT / "proofs" / "finder.csv")
    planted = found[(found.check == "recall") & (found.rows >= 200) & (found.coverage == 0.5)]
    hits, of = planted.hits.sum(), planted.of.sum()
    recall = f"Of {planted.kind.nunique()} kinds planted in half of 200 rows or more, {hits:.0f} of {of} were found"
    assert recall in README
    whole = found[found.check.isin(["clean, tuning", "clean, checked"]) & (found.rows > 24)]
    alarms = whole[whole.hits > 0].groupby("host").hits.sum()
    assert alarms.sum() == 4
    assert "four phrases of public prompts were false alarms, and none of this project's own rows" in README
    assert not [host for host in alarms.index if (store.DATA / "mini" / f"{host.split(', ')[0]}.jsonl").exists()]
    cost = pd.read_csv(store.ROOT / "proofs" / "audits.csv").query("unit == 'minutes'").set_index("check")
    assert "about 14 minutes for 400 rows" in README
    assert (cost.measured - 14).abs().max() < 1
    (runs,) = cost.loc["audit of front_desk", ["note"]].str.extract(r"^(\d+) runs")[0]
    assert f"then about {runs} runs, two seeds" in README


def run(line, folder):
    """One line of README in a copy of the project, with this test's Python for ./run_all.sh."""
    line = line.replace("./run_all.sh", f"{shlex.quote(sys.executable)} -m inoculation")
    unset = {name: value for name, value in os.environ.items() if name != "INOCULATION_HOME"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=unset | {"PYTHONPATH": str(folder / "lib")}, capture_output=True, text=True
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def test_the_worked_example_can_be_followed(tmp_path):
    for name in ("lib", "notebooks", "data", "examples"):
        shutil.copytree(store.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("local", "__pycache__"))
    shutil.copy(store.ROOT / "CITATION.cff", tmp_path)
    lines = section("Add a setting")
    copied = [line for line in lines if not line.startswith("./run_all.sh")]
    smoke, seeds, explained = [line for line in lines if line.startswith("./run_all.sh")]
    for line in copied:
        run(line, tmp_path)
    run(smoke, tmp_path)
    executed = (tmp_path / "data" / "local" / "notebooks" / "smoke" / f"12_{EXAMPLE}.ipynb").read_text(encoding="utf-8")
    assert "0 runs were there, 2 completed now, 0 failed" in executed
    scores = pd.read_csv(tmp_path / "data" / "local" / "tables" / "smoke" / "scores.csv")
    assert set(scores.setting) == {EXAMPLE}
    assert "36 runs, 0 already done, 36 to do, about 79 minutes" in run(f"{seeds} --dry-run", tmp_path)
    assert "verdict   not run" in run(explained, tmp_path)


def test_a_number_is_traced_to_the_responses_behind_it():
    explained, rows, responses = (run(line, store.ROOT) for line in section("Trace a number"))
    (values,) = re.findall(r"^by seed   (.*)$", explained, re.MULTILINE)
    assert len(rows.splitlines()) == len(values.split(", ")) == 5
    first = rows.splitlines()[0].rsplit(",", 1)[1]
    assert len(responses.splitlines()) == 3
    assert all(first in line for line in responses.splitlines())
