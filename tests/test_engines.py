"""Engines: two Ray nodes and submitit's local jobs over one store; what the machinery does is tried again, an error never."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import pandas as pd
import pytest
import standin
import submitit
from engines import batch, checks, cluster, command, task
from inoculation import runs, store
from inoculation.store import SettingError

HERE = str(Path(__file__).parent)
GIGABYTES = 10**9
CORES = len(os.sched_getaffinity(0))
ALONE = (
    "import sys, standin; from engines import cluster, task; task.BACKOFF_SECONDS = 0.2;"
    "print(cluster.ensure(standin.specs(int(sys.argv[1])), 1, 0, sys.argv[2]))"
)


@pytest.fixture(scope="module")
def nodes():
    """A Ray cluster of two nodes with memory for two runs each, on this machine; the second has what Ray takes for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        size = {"num_cpus": max(2, CORES), "memory": 8 * GIGABYTES, "object_store_memory": 10**8, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=size)
        found.size = size
        found.second = found.add_node(**size, num_gpus=1)
        yield found
        found.shutdown()


@pytest.fixture
def hurried(elsewhere, monkeypatch):
    """An empty home, where waiting is short."""
    monkeypatch.setenv("PYTHONPATH", HERE)
    monkeypatch.setattr(task, "BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr(task, "BUSY_SECONDS", 0.2)
    # Also where there is a Slurm.
    monkeypatch.setattr(submitit.AutoExecutor, "which", staticmethod(lambda: "local"))
    return elsewhere


def written(specs):
    """What the stages of some runs wrote."""
    return {
        (spec.seed, path.name): path.read_bytes()
        for spec in specs
        for path in [spec.folder / "spec.json", *(spec.file(stage) for stage in ("sample", "margins", "score"))]
    }


def until(seen, seconds=60):
    end = time.monotonic() + seconds
    while not seen() and time.monotonic() < end:
        time.sleep(0.05)
    assert seen()


def alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def waiting(seed):
    """The process of a run that was told to wait, once it does."""
    until(standin.said(seed).exists)
    return int(standin.said(seed).read_text())


@pytest.fixture(scope="module")
def swept(nodes, tmp_path_factory):
    """One sweep over two nodes, of runs that end well (0, 5, 6), die once (1), fail (2), die always (3), are locked (4)."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(tmp_path_factory.mktemp("swept")))
        patch.setattr(task, "BACKOFF_SECONDS", 0.2)
        patch.setattr(task, "BUSY_SECONDS", 0.2)
        patch.setattr(task, "TRIES", 3)
        specs, orders = standin.specs(7), {1: "die", 2: "raise", 3: "die", 5: "look"}
        for seed, what in orders.items():
            standin.order(seed, what)
        locked = store.Run(specs[4].folder).lock()
        locked.__enter__()

        def listen(line):
            said.append(line)
            if str(specs[3]) in line and "again in" in line:
                standin.order(3, "die")
            if str(specs[6]) in line:
                said.append(f"the locked run is {'missing' if specs[4].missing() else 'there'}")
                locked.__exit__(None, None, None)

        yield cluster.ensure(specs, 1, 0, nodes.address, say=listen), specs, said


def test_a_sweep_on_two_nodes_writes_what_one_worker_writes(swept, tmp_path, monkeypatch):
    done, specs, said = swept
    well = [spec for spec in specs if spec.seed not in (2, 3)]
    assert (done.found, done.completed) == (0, 5)
    found = written(well)
    assert not list(store.home().rglob(".sweep-*"))
    assert any("4 runs at a time, each with 1 CPU and 3.5 GB of memory" in line for line in said)
    monkeypatch.setenv("INOCULATION_HOME", str(tmp_path))
    assert runs.ensure(well, 1, say=lambda line: None).completed == 5
    assert written(well) == found


def test_a_killed_worker_is_tried_again_and_given_up_in_the_end_and_an_error_never(swept):
    done, specs, said = swept
    tried = {seed: sum(str(specs[seed]) in line and "exit status -9" in line for line in said) for seed in (0, 1, 2, 3)}
    assert tried == {0: 0, 1: 1, 2: 0, 3: 3}
    assert done.failed[str(specs[2])] == "ValueError: told to"
    assert "exit status -9" in done.failed[str(specs[3])]
    assert runs.failure_file(specs[2]).read_text(encoding="utf-8") == "ValueError: told to\n"


def test_a_run_that_another_process_works_on_is_left_to_it_and_waited_for(swept):
    _, specs, said = swept
    assert "the locked run is missing" in said
    assert not specs[4].missing()


def test_a_run_without_a_gpu_sees_none(swept):
    assert standin.said(5).read_text(encoding="utf-8") == ""


def test_a_smoke_run_on_ray_is_byte_for_byte_that_of_this_machine(nodes, smoke, home, hurried):
    from test_runs import BASELINE, stage_bytes

    assert cluster.ensure([BASELINE], CORES, 0, nodes.address, say=lambda line: None).completed == 1
    here = stage_bytes(BASELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INOCULATION_HOME", str(home))
        assert stage_bytes(BASELINE) == here


def test_a_lost_node_costs_its_runs_a_second_try_and_leaves_no_process(nodes, hurried):
    for seed in range(4):
        standin.order(seed, "wait")
    specs, done = standin.specs(4), []
    sweep = threading.Thread(target=lambda: done.append(cluster.ensure(specs, 1, 0, nodes.address, print)))
    sweep.start()
    workers = [waiting(seed) for seed in range(4)]
    nodes.remove_node(nodes.second, allow_graceful=False)
    until(lambda: sum(map(alive, workers)) == 2)
    store.write_whole(hurried / "go", "")
    sweep.join(60)
    assert (done[0].completed, done[0].failed) == (4, {})
    until(lambda: not any(map(alive, workers)))
    nodes.second = nodes.add_node(**nodes.size, num_gpus=1)


def test_a_killed_driver_leaves_no_process_and_the_same_command_goes_on(nodes, hurried):
    standin.order(0, "wait")
    driver = subprocess.Popen([sys.executable, "-c", ALONE, "2", nodes.address])
    worker = waiting(0)
    until(lambda: not standin.specs(2)[1].missing())
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    until(lambda: not alive(worker), 30)
    done = cluster.ensure(standin.specs(2), 1, 0, nodes.address, print)
    assert (done.found, done.completed) == (1, 1)


def test_a_run_with_a_gpu_sees_that_one(nodes, hurried):
    standin.order(0, "look")
    assert cluster.ensure(standin.specs(1), 1, None, nodes.address, print).completed == 1
    assert standin.said(0).read_text(encoding="utf-8") == "0"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda patch: patch.setattr(checks, "versions", lambda: {**KNOWN, "trl": "9.9"}), "trl is 1.15.0 there and 9.9 here"),
        (lambda patch: patch.setattr(runs, "NEEDED_GB", 99), "no node has room for a run, which takes 1 CPU and 99.0 GB"),
    ],
)
def test_a_cluster_that_is_not_fit_is_one_line_before_anything_starts(nodes, hurried, monkeypatch, fault, says):
    fault(monkeypatch)
    with pytest.raises(SettingError) as error:
        cluster.ensure(standin.specs(1), 1, 0, nodes.address, print)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(hurried.rglob("manifest.json"))


KNOWN = checks.versions()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"versions": {**KNOWN, "peft": "0.1"}}, "peft is 0.21.2 there and 0.1 here; ./run_all.sh installs requirements.lock"),
        ({"files": {**checks.files(), "lib/inoculation/runs.py": "?"}}, "lib/inoculation/runs.py there is not as it is here"),
        ({"files": {**checks.files(), "data/settings/mine.yaml": "?"}}, "data/settings/mine.yaml there is not as it is here"),
        ({"token": Path("nowhere")}, "the run store is not shared"),
        ({"token": Path(__file__)}, "are not seen there; mount it so that flock works"),
        ({"models": frozenset(["Qwen/Qwen2.5-7B"])}, "is not part of any package"),
        ({"keys": {standin.specs(1)[0]: "another"}}, "would have another key there; is its CPU of another kind"),
    ],
)
def test_a_node_says_what_is_not_alike(elsewhere, change, says):
    with checks.noted(standin.specs(1)) as noted:
        assert checks.unfit(noted) == ""
        fault = checks.unfit(dataclasses.replace(noted, **change))
    assert says in fault
    assert "\n" not in fault


def test_jobs_write_what_one_worker_writes_and_fail_as_it_does(hurried, tmp_path):
    standin.order(2, "raise")
    specs, said = standin.specs(4), []
    done = batch.ensure(specs, 1, 0, 2, ["timeout_min=5", "partition=none"], say=said.append)
    assert (done.completed, list(done.failed.values())) == (3, ["ValueError: told to"])
    assert said[0] == "local: 4 runs in 2 jobs, each with 1 CPUs"
    assert batch.ensure(specs, 1, 0, 2, [], say=said.append).completed == 1
    assert all(not spec.missing() for spec in specs)


def test_a_job_that_is_killed_is_submitted_again_with_what_is_left(hurried):
    standin.order(1, "wait")
    done: list[runs.Report] = []
    sweep = threading.Thread(target=lambda: done.append(batch.ensure(standin.specs(2), 1, 0, 1, [], print)))
    sweep.start()
    worker = waiting(1)
    holder = int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(holder, signal.SIGKILL)
    sweep.join(60)
    assert (done[0].completed, done[0].failed) == (2, {})
    until(lambda: not alive(worker))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["partition"], "expected KEY=VALUE"),
        (["colour=red"], "colour"),
        (["timeout_min=soon"], "timeout_min"),
        (["gres=gpu:1"], "gres: say --gpus"),
    ],
)
def test_a_parameter_that_slurm_cannot_have_is_said(hurried, given, says):
    with pytest.raises(SettingError, match=says):
        batch.ensure(standin.specs(1), 1, 0, 1, given, print)


def test_nfs_locks_which_only_a_writer_gets_are_seen(elsewhere, monkeypatch):
    known = fcntl.flock

    def as_nfs(file, how):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        known(file, how)

    with checks.noted(standin.specs(1)) as noted:
        monkeypatch.setattr(fcntl, "flock", as_nfs)
        assert checks.unfit(noted) == ""


def test_a_node_goes_by_the_folder_and_the_variables_of_who_asks(elsewhere, monkeypatch):
    monkeypatch.setenv("INOCULATION_CACHE", str(elsewhere / "cache"))
    with checks.noted(standin.specs(1)) as noted:
        monkeypatch.delenv("INOCULATION_HOME")
        monkeypatch.delenv("INOCULATION_CACHE")
        assert checks.unfit(noted) == ""
        assert (store.home(), store.model_cache()) == (elsewhere, elsewhere / "cache" / "models")
        monkeypatch.setenv("INOCULATION_CACHE", "its own")
        checks.take_on(noted)
        assert os.environ["INOCULATION_CACHE"] == "its own"


def test_the_token_of_a_killed_sweep_does_not_stay(elsewhere):
    left = store.run_store() / f"{checks.TOKEN}left"
    store.write_whole(left, "")
    with checks.noted(standin.specs(1)) as first, checks.noted(standin.specs(1)) as second:
        assert set(store.run_store().glob(f"{checks.TOKEN}*")) == {first.token, second.token}


def test_a_worker_is_kept_for_what_it_was_started_for_and_ends_when_nothing_comes(hurried, monkeypatch):
    monkeypatch.setattr(task, "IDLE_SECONDS", 0.2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    warm = task._Warm()
    first = warm.ready("standin", 1)
    warm.rest()
    assert warm.ready("standin", 1) is first
    assert warm.ready("standin", 2) is not first
    assert first.process.poll() is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    second = warm.ready("standin", 2)
    assert "CUDA_VISIBLE_DEVICES=1\0" in Path(f"/proc/{second.process.pid}/environ").read_text()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    warm.rest()
    until(lambda: second.process.poll() is not None)
    assert warm.worker is None


def test_a_worker_that_cannot_start_is_an_error_and_a_line_that_is_cut_ends_it(hurried):
    with tempfile.TemporaryFile() as log:
        broken = runs.Worker("no.such.module", 1, log)
        events = list(broken.do(standin.specs(2)))
        assert [event["event"] for event in events] == ["failed"]
        assert "No module named" in events[0]["reason"]
        cut = runs.Worker("standin", 1, log)
        cut.process.stdin.write('[{"setting": "spanish_vs_c')
        cut.process.stdin.close()
        assert cut.process.wait(30) == -signal.SIGKILL


def sweep_of(nodes):
    """A sweep over nodes that are only names with their memory, and the options of every task that it would send."""
    sent: list[dict] = []
    remote = types.SimpleNamespace(options=lambda **own: types.SimpleNamespace(remote=lambda *given: sent.append(own)))
    progress = runs.Progress(2, print, runs.Report())
    sweep = cluster._Sweep(progress, None, {"CPU": 1, "GPU": 0, "memory": 3.0}, standin.specs(2), nodes=nodes)
    sweep.remote, sweep.told = remote, None
    return sweep, sent


def test_what_lacked_memory_is_given_more_elsewhere_and_a_node_that_is_not_fit_nothing():
    sweep, sent = sweep_of({"a": 8.0, "b": 5.0})
    sweep._task(cluster._Try(0, 0))
    sweep._task(cluster._Try(0, 0, starved=1, avoided="b"))
    sweep._task(cluster._Try(0, 0, starved=1, avoided="a"))
    assert [(own["memory"], own.get("label_selector")) for own in sent] == [
        (3.0, None),
        (6.0, {cluster.NODE: "!in(b)"}),
        (5.0, {cluster.NODE: "!in(a)"}),
    ]
    sweep._shun({"id": "b", "node": "10.0.0.2", "reason": "another trl"})
    one = cluster._Try(0, 0, starved=2, avoided="a")
    sweep._task(one)
    assert (sent[-1]["memory"], sent[-1]["label_selector"], one.fits) == (8.0, {cluster.NODE: "!in(b)"}, {"a"})
    with pytest.raises(SettingError, match="no node is left that is fit; node 10.0.0.1: no model"):
        sweep._shun({"id": "a", "node": "10.0.0.1", "reason": "no model"})


def test_a_port_that_answers_and_is_not_rays_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True).start()
        with pytest.raises(SettingError, match="what answers is no Ray"):
            cluster._reachable(f"127.0.0.1:{port}")


def test_a_parameter_is_taken_as_it_is_written():
    given = [
        "time=1:30:00",
        "account=0123",
        "partition=on",
        "mem_gb=3.5",
        "timeout_min=60",
        "mail_user=@x",
        "setup=[module load cuda]",
    ]
    assert list(batch._read(given).values()) == ["1:30:00", "0123", "on", 3.5, 60, "@x", ["module load cuda"]]


def test_shares_are_all_runs_once_and_do_not_depend_on_what_is_done():
    specs = standin.specs(7)
    shares = [command.share(specs, (part, 3)) for part in (1, 2, 3)]
    assert sorted(spec.seed for share in shares for spec in share) == list(range(7))
    assert command.share(specs, None) == specs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: nothing answers there"),
        (["--engine", "ray", "--address", "head"], "--address head: nothing answers there"),
        (["--engine", "ray", "--address", "ray://head:10001"], "Ray's client is not supported"),
        (["--address", "auto"], "--address belongs to --engine ray"),
        (["--engine", "ray", "--jobs", "2"], "--jobs and --slurm belong to --engine slurm"),
        (["--gpus", "1"], "--gpus is 0 or more and belongs to"),
        (["--engine", "kubernetes"], "invalid choice: 'kubernetes'"),
        (["--shard", "5/4"], "'5/4' is none of N shares"),
        (["--shard", "1/2", "--engine", "ray"], "--shard does runs here and nothing else"),
        (["--engine", "ray", "--figures-only"], "--engine belongs to runs and audit, not to drawing"),
        (["claims", "--setting", "spanish_vs_caps", "--engine", "ray"], "--engine belongs to runs and audit"),
    ],
)
def test_an_engine_that_cannot_be_meant_is_one_line_exit_2_and_nothing_run(elsewhere, arguments, says):
    base = ["--profile", "smoke", "--notebook", "02", "--only", "base"] if arguments[0].startswith("-") else []
    done = subprocess.run([sys.executable, "-m", "inoculation", *arguments, *base], capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(elsewhere.rglob("manifest.json"))


def test_the_kept_proof_is_of_every_fault_and_holds():
    found = pd.read_csv(store.ROOT / "proofs" / "cluster.csv", dtype={"must_be": str}).fillna("")
    for row in found.itertuples():
        *how, value = row.must_be.split() or [row.found]
        kept = {"at most": row.found <= float(value), "at least": row.found >= float(value)}
        assert kept.get(" ".join(how), row.found == float(value)), row
    assert {
        "node killed",
        "nodes cut off from each other",
        "driver, SIGKILL",
        "driver, SIGINT",
        "two drivers, one store",
    } <= set(found.check)
    assert {"out of memory (kernel)", "out of memory (Ray's monitor)", "mini, two nodes", "a Python error"} <= set(found.check)
    orphans = found[found.measure == "orphan processes"]
    assert len(orphans) >= 10
    assert set(orphans.must_be) == {"0"}


def test_the_simulation_was_made_of_what_was_measured():
    record = json.loads((store.ROOT / "figures" / "scale.json").read_text(encoding="utf-8"))
    assert record["inputs"] == {name: store.file_digest(store.ROOT / "proofs" / name) for name in ("costs.csv", "scale.yaml")}
    costs = pd.read_csv(store.ROOT / "proofs" / "costs.csv").set_index("name").value
    cluster = pd.read_csv(store.ROOT / "proofs" / "cluster.csv").set_index(["check", "measure"]).found
    assert costs["overhead_seconds"] == cluster["overhead", "seconds a run outside its stages, mean"]
