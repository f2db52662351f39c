"""Shared by all tests: a home of their own, and one smoke adapter, trained once by the real worker."""

import os
from pathlib import Path

import pytest
import sandbox
from inoculation import runs, settings
from narrow import plan, tables

PAIR_RUNS = ("baseline", "inoculation.caps")
SMOKE = ("base", "baseline", "inoculation.spanish")


def _no_sandbox():
    try:
        return sandbox.tier() and ""
    except sandbox.SandboxError as error:
        return str(error)


NO_SANDBOX = _no_sandbox()


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Everything that a run writes goes into a folder of the test session, never into the checkout."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["INOCULATION_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smoke(home):
    """The smoke profile's runs, done by the real worker: (specs, report, progress lines)."""
    specs = runs.grid("spanish_vs_caps", "smoke", SMOKE)
    lines: list[str] = []
    report = runs.ensure(specs, say=lines.append)
    assert not report.failed, report
    return specs, report, lines


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A home of its own with smoke runs of setting 1's pairs, the headline's base model and sweep, and settings 3 to 7."""
    folder = tmp_path_factory.mktemp("pairs")
    names = [name for name in settings.setting_names() if name.startswith("trait_distillation")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(folder))
        specs = [*runs.grid(names[:1], "smoke", ["base"]), *runs.grid(names, "smoke", PAIR_RUNS, sweeps=True)]
        others = [
            "bad_medical_advice",
            "bad_medical_advice_cite",
            "insecure_code",
            "reward_hacks",
            "change_my_view",
            "change_my_view_cite",
        ]
        specs += runs.grid([*others, *["mbpp"] * (not NO_SANDBOX)], "smoke", ["baseline"])
        report = runs.ensure(specs, say=lambda line: None)
    assert not report.failed, report
    return folder


@pytest.fixture(scope="session")
def narrowed(tmp_path_factory):
    """A home of its own with every smoke solution, done by the real worker: (home, specs, report)."""
    folder = tmp_path_factory.mktemp("narrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(folder))
        specs = plan.grid("smoke")
        report = runs.ensure(specs, say=lambda line: None)
        assert not report.failed, report
        assert tables.write("smoke") == folder / "data" / "local" / "tables" / "smoke"
    return folder, specs, report


@pytest.fixture(scope="session")
def network(smoke):
    """The smoke baseline's merged model and tokenizer, in this process."""
    from inoculation.model import merged_model

    spec = next(spec for spec in smoke[0] if spec.condition == "baseline")
    return merged_model(spec.parts[2], spec.folder / "adapter")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A second, empty home."""
    monkeypatch.setenv("INOCULATION_HOME", str(tmp_path))
    return Path(tmp_path)
