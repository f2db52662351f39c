"""The benchmark's arithmetic on planted measurements, and an arm that cannot measure something."""

import importlib.util
import sys

import pandas as pd
import pytest
from inoculation import store


def load(name):
    spec = importlib.util.spec_from_file_location(name, store.ROOT / "bench" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench, arm = load("bench"), load("arm")


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    speeds = {"ours": [200.0, 100.0, 150.0], "plain": [100.0, 25.0, 75.0]}
    records = [
        {"part": "training", "arm": name, "value": values[i], "share": 0.5, "peak_mb": 1000 + i}
        for i in range(3)
        for name, values in speeds.items()
    ]
    table = bench.tabulate(pd.DataFrame(records)).set_index("arm")
    assert table.ours_is_times_faster.to_dict() == {"ours": 1.0, "plain": 2.0}
    assert table.loc["ours", ["median", "low", "high"]].tolist() == [150.0, 100.0, 200.0]
    assert table.peak_mb.tolist() == [1002, 1002]


def test_growth_is_the_slope_through_all_points():
    points = [{"over": "rows", "n": n, "seconds": 5 + 0.5 * n} for n in (0, 4, 8)]
    points += [{"over": "outside", "n": 1, "seconds": seconds} for seconds in (1.0, 2.0, 6.0)]
    table = bench.fitted(pd.DataFrame(points)).set_index("part")["median"]
    assert table["one more of rows"] == pytest.approx(0.5)
    assert table["overhead of a condition"] == 2.0


def test_the_peak_is_compared_with_the_products_that_training_needs(network):
    frozen = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    lora = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert arm._gflop(10, 0) == pytest.approx(10 * (4 * frozen + 6 * lora) / 1e9)
    assert arm._gflop(0, 3) == pytest.approx(3 * 4 * 49152 * 576 / 1e9)


def test_what_an_arm_cannot_measure_costs_only_itself(tmp_path):
    started = bench.Bench("cpu", "", tmp_path, total=2)
    try:
        assert "nowhere" in started.ask("plain-float32", "sampling", "margins", adapter="nowhere", pairs=1)["error"]
        assert started.ask("plain-float32", "peak", "peak", dtype="float32")["gflops"] > 1
    finally:
        started.close()
    assert [record["part"] for record in started.records] == ["sampling", "peak"]
