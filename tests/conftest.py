"""Shared by all tests: a home of their own, and one smoke adapter, trained once by the real worker."""

import os
from pathlib import Path

import pytest
from ahead import NO_SANDBOX as NO_SANDBOX
from ahead import SPECS, Ahead
from narrow import plan, tables

# Smoke runs go on beside other tests (tests/ahead.py); OpenMP threads that spin while they wait would slow both several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The hub is told before anything imports it that nothing is fetched here; else every look at it waits for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    """Tests that compute with the model in this process come last: beside the process of ahead.py they take times as long."""
    items.sort(key=lambda item: "network" in item.fixturenames)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """Everything that a run writes goes into a folder of the test session, never into the checkout."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["INOCULATION_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smoke(ahead):
    """The smoke profile's runs in the session's home, done by the real worker: (specs, report, progress lines)."""
    _, report, lines = ahead.done("smoke")
    return SPECS["smoke"](), report, lines


@pytest.fixture(scope="session", autouse=True)
def ahead(request, home, tmp_path_factory):
    """Begins what `smoke`, `audited`, `narrowed` and `pairs` hold, so that it is nearly done when a test first asks for it."""
    given = [(item, getattr(item, "callspec", None)) for item in request.session.items]
    params = [(item, spec.params if spec else {}) for item, spec in given]
    asked = {name for item, own in params for name in [*(set(item.fixturenames) - set(own)), own.get("stored")]}
    folders = {name: home if name == "smoke" else tmp_path_factory.mktemp(name) for name in SPECS if name in asked}
    begun = Ahead(folders)
    yield begun
    begun.close()


@pytest.fixture(scope="session")
def pairs(ahead):
    """A home of its own with smoke runs of setting 1's pairs, the headline's base model and sweep, and settings 3 to 7."""
    return ahead.done("pairs")[0]


@pytest.fixture(scope="session")
def narrowed(ahead):
    """A home of its own with every smoke solution, done by the real worker: (home, specs, report)."""
    folder, report, _ = ahead.done("narrowed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(folder))
        assert tables.write("smoke") == folder / "data" / "local" / "tables" / "smoke"
    return folder, plan.grid("smoke"), report


@pytest.fixture(scope="session")
def audited(ahead):
    """A home of its own with three smoke runs of the example audit: base model, baseline and its own prompt."""
    return ahead.done("audited")[0]


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
