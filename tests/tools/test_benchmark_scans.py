import csv

import benchmark_scans
import pytest

from vmamba.scans import default_directions


def run(*argv):
    return benchmark_scans.main(["--model", "test_vmamba", "--device", "cpu", "--num-iter", "1", "--num-warm-iter", "1",
                                 *argv])


def test_each_order_beside_cross(tmp_path, capsys):
    path = tmp_path / "scans.csv"
    assert run("--scans", "hilbert4", "random4", "--img-size", "32", "64", "--batch-size", "4", "--same-pixels",
               "--bench", "inference", "train", "--results-file", str(path)) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["bench"], row["img_size"], row["batch_size"], row["scan"]) for row in rows] == [
        (bench, size, batch, scan) for bench in ("inference", "train")
        for size, batch in (("32x32", "4"), ("64x64", "1")) for scan in ("cross", "hilbert4", "random4")]
    assert {(row["model"], row["baseline"]) for row in rows} == {("test_vmamba", "cross")}
    assert all(row["time_ratio"] == "1.000" for row in rows if row["scan"] == "cross")
    assert capsys.readouterr().out.count("| hilbert4") == 4


def test_the_order_is_that_of_the_model(monkeypatch):
    seen = []
    make_step = benchmark_scans.benchmark.make_step

    def look(model, *args):
        seen.append({module.scan for module in model.modules() if hasattr(module, "scan")})
        return make_step(model, *args)

    monkeypatch.setattr(benchmark_scans.benchmark, "make_step", look)
    assert run("--scans", "snake4", "--img-size", "32") == 0
    assert seen == [{"cross"}, {"snake4"}]


def test_all_orders_of_four_directions_are_compared():
    names = benchmark_scans.parse_args([]).scans
    assert names[0] == "cross"
    assert {"hilbert4", "snake4", "random4", "atrous"} <= set(names)
    assert all(default_directions(name) == 4 for name in names)


@pytest.mark.parametrize(("argv", "message"), [
    (["--scans", "hilbrt4"], "unknown scan order 'hilbrt4'; did you mean 'hilbert4'"),
    (["--model", "test_vit", "--scans", "snake4"], "cannot build test_vit"),
])
def test_wrong_names_are_known_before_anything_is_measured(capsys, argv, message):
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "preparing" not in captured.err
