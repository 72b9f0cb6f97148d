"""tools/benchmark_ops.py: what it reports, and that it reports nothing for a wrong result."""

import csv

import benchmark_ops
import pytest

SMALL = ("--device", "cpu", "--batch-size", "2", "--dim", "6", "--size", "3", "5", "--state", "2", "--rank", "2",
         "--num-iter", "2", "--num-warm-iter", "1")


@pytest.mark.parametrize("op", ["selective_scan", "ss2d_scan"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_backends_of_this_machine(tmp_path, op, dtype):
    path = tmp_path / "ops.csv"
    argv = [op, *SMALL, "--backend", "reference", "torch", "auto", "--bench", "both", "--dtype", dtype,
            "--results-file", str(path)]
    assert benchmark_ops.main(argv) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["bench"], r["backend"]) for r in rows] == [
        (bench, backend) for bench in ("inference", "train") for backend in ("reference", "torch", "auto")]
    for row in rows:
        assert (row["op"], row["dtype"], row["size"], row["num_iter"]) == (op, dtype, "3x5", "2")
        assert float(row["time_ratio"]) > 0
        assert row["baseline"] == "reference"
    assert all(row["time_ratio"] == "1.000" for row in rows if row["backend"] == "reference")
    assert rows[0]["device"]


@pytest.mark.parametrize("bench", ["inference", "train"])
def test_wrong_result_is_not_timed(capsys, monkeypatch, bench):
    scan = benchmark_ops.selective_scan

    def slightly_wrong(u, *, backend, **kwargs):
        return scan(u if backend == "reference" else u * 1.01, backend=backend, **kwargs)

    monkeypatch.setattr(benchmark_ops, "selective_scan", slightly_wrong)
    assert benchmark_ops.main(["selective_scan", *SMALL, "--bench", bench]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: backend auto is wrong, so it is not timed: the output differs" in captured.err


@pytest.mark.parametrize(("argv", "message"), [
    (["--backend", "cuda"], "backend is 'cuda'"),
    (["--backend", "triton"], "it needs CUDA"),
])
def test_backend_that_cannot_run(capsys, argv, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # set where kernels are tested without a GPU
    assert benchmark_ops.main(["selective_scan", *SMALL, *argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_bad_size(capsys):
    with pytest.raises(SystemExit) as leave:
        benchmark_ops.main(["selective_scan", "--dim", "0"])
    assert leave.value.code == 2
    assert "sizes must be at least 1" in capsys.readouterr().err
