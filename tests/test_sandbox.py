"""The sandbox: nothing out, nothing faked, a reason for everything, and fast enough."""

import importlib.util
import time

import pytest
import sandbox
from conftest import NO_SANDBOX
from inoculation import store

specification = importlib.util.spec_from_file_location("attacks", store.ROOT / "proofs" / "attacks.py")
attacks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(attacks)

needed = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]


@needed
def test_no_attack_is_through_in_the_best_tier_and_nothing_stays_behind():
    assert len(attacks.ATTACKS) >= 25
    found = attacks.attacked(list(attacks.ATTACKS), [sandbox.tier()])
    assert not found.through.any(), found[found.through]
    assert (found.ended != "").all()
    assert (found.seconds < sandbox.SECONDS + sandbox.GRACE + 2).all()
    assert not found.left.any()


@needed
@pytest.mark.parametrize("tier", [name for name in attacks.tiers() if not NO_SANDBOX and name != sandbox.tier()])
def test_other_tiers_hold_against_attacks_of_every_kind(tier):
    kinds = ["fork bomb", "memory at once", "many files", "kill everything", "home", "environment", "a socket", "write outside"]
    kinds += ["make the system writable", "change its rules", "an answer that equals everything", "tests in the memory"]
    found = attacks.attacked(kinds, [tier])
    assert not found.through.any(), found[found.through]


@needed
def test_an_attack_that_succeeds_would_be_seen(monkeypatch):
    monkeypatch.setitem(attacks.ATTACKS, "none", "def f():\n    return 'through'")
    assert attacks.attacked(["none"], [sandbox.tier()]).through.all()


@needed
@pytest.mark.parametrize(
    ("code", "passed"),
    [
        ("def f(x):\n    return x + 1", (True, True)),
        ("def f(x):\n    return 2", (True, False)),
        ("import math\ndef f(x):\n    print('x' * 9)\n    return math.floor(x) + 1", (True, True)),
        ("f = lambda x: x + 1.0", (True, True)),
        ("def g(x):\n    return x + 1\ndef f(x):\n    return g(x)", (True, True)),
        ("def f(x):\n    if x == 2:\n        raise KeyError(x)\n    return 2", (True, False)),
    ],
)
def test_a_candidate_passes_the_tests_that_hold(code, passed):
    found = sandbox.run(code, TESTS)
    assert found.passed == passed
    assert tuple(not reason for reason in found.reasons) == passed
    assert found.tier == sandbox.tier()


@needed
@pytest.mark.parametrize(
    ("code", "tests", "reason"),
    [
        ("def f(x):\n    return x\0", TESTS, "raises SyntaxError"),
        ("x = '" + "x" * 5_000_000 + "'", TESTS, "longer than 100,000 characters"),
        ("while True: pass", TESTS, "time limit"),
        ("def f(x:", TESTS, "raises SyntaxError"),
        ("raise ValueError", TESTS, "raises ValueError"),
        ("import numpy", TESTS, "raises ModuleNotFoundError"),
        ("f = 3", TESTS, "the test raises NameError"),
        ("def f(x):\n    return open", TESTS, "raises TypeError"),
        ("def f(x):\n    return x + 1", ["import nothing_of_this_name"], "the test raises ModuleNotFoundError"),
        ("def f(x):\n    return x + 1", ["assert f("], "the test raises SyntaxError"),
        ("def f(x):\n    return x + 1", ["while True: pass"], "time limit"),
        ("", TESTS, "the test raises NameError"),
        ("def f(x):\n    return '\ud800'", TESTS, "raises UnicodeEncodeError"),
        ("def f(x):\n    return chr(0xD800)", TESTS, "a test fails"),
    ],
    ids=range(14),
)
def test_bad_input_is_a_reason_never_a_crash_never_a_pass(code, tests, reason):
    found = sandbox.run(code, tests)
    assert not any(found.passed)
    assert set(found.reasons) == {reason}


@needed
@pytest.mark.parametrize("name", ["set", "sorted", "isinstance", "AssertionError", "__builtins__", "__import__"])
def test_what_a_candidate_calls_like_a_builtin_does_not_judge_it(name):
    code = f"def f(x):\n    return [0]\n{name} = lambda *a, **k: 1"
    tests = [
        "assert set(f(3)) == set([3])",
        "assert sorted(f(3)) == [3]",
        "assert isinstance(f(3), str)",
        "import math\nassert 0",
    ]
    assert not any(sandbox.run(code, tests).passed)
    forged = 'import __main__\n__main__._reply(4, {"names": ["set", "__builtins__"]}); __main__._reply(6, {"names": ["set"]})'
    assert not any(sandbox.run(f"{forged}\n{code}", tests).passed)


@needed
def test_plain_data_go_through_unchanged():
    values = "[1, 2.5, float('inf'), 'é\\n', None, True, (1, (2,)), {1: {2, 3}, (4,): b'5'}, frozenset({6}), 1j, 10**40]"
    found = sandbox.run("def f(x):\n    return x", [f"v = {values}\nw = f(v)\nassert (w, str(w)) == (v, str(v)), w"])
    assert found.passed == (True,)


@needed
def test_a_trivial_candidate_takes_a_fraction_of_a_second_even_on_a_busy_machine():
    started = time.monotonic()
    assert all(sandbox.run("def f(x):\n    return x + 1", TESTS).passed == (True, True) for _ in range(10))
    # How many a second is measured in proofs/attacks.csv; here other work may run beside it.
    assert time.monotonic() - started < 5


def test_without_bubblewrap_and_namespaces_nothing_is_run_and_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sandbox, "TIERS", {name: (lambda root: []) for name in sandbox.TIERS})
    sandbox.tier.cache_clear()
    try:
        with pytest.raises(sandbox.SandboxError, match="not run here.*not installed.*sudo apt install bubblewrap"):
            sandbox.run("def f(x):\n    return x + 1", TESTS)
    finally:
        sandbox.tier.cache_clear()


def test_a_tier_that_cannot_start_or_gives_nothing_is_a_reason(monkeypatch):
    commands = {"gone": ["/no/such/program"], "mute": ["/bin/true"], "loud": ["/bin/echo", "x"]}
    monkeypatch.setattr(sandbox, "TIERS", {name: (lambda root, c=command: c) for name, command in commands.items()})
    for name, says in (("gone", "cannot be started"), ("mute", "no result"), ("loud", "no result")):
        found = sandbox.run("def f(x):\n    return x + 1", TESTS, name)
        assert found.passed == (False, False)
        assert says in found.reasons[0]


@pytest.mark.parametrize(
    ("response", "code", "reason"),
    [
        ("def f(x):\n    return x", "def f(x):\n    return x", ""),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n", ""),
        ("```js\nlet x\n```", "", "code in another language (js)"),
        ("```python\nx = 1", "", "a code block that does not end"),
        ("```\nx = 1\n```\n```\ny = 2\n```", "", "2 code blocks"),
        ("Yes", "", "no code"),
        ("def f(:", "", "does not parse as Python"),
        ("def f():\n    return '\0'", "", "does not parse as Python"),
        ("x = 1\n" * 1_000_000, "", "longer than 20,000 characters"),
    ],
    ids=["bare", "fenced", "other", "unclosed", "several", "none", "broken", "null", "long"],
)
def test_code_is_taken_out_of_a_response_or_there_is_a_reason(response, code, reason):
    assert sandbox.python_code(response) == (code, reason)
