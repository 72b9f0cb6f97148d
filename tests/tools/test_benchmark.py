"""tools/benchmark.py and the measuring code behind it. No test looks at how long anything took."""

import csv
import re
from pathlib import Path

import _bench
import benchmark
import pytest
import torch
from torch._dynamo.testing import CompileCounter

CPU = torch.device("cpu")


def run(capsys, *argv):
    code = benchmark.main(["--device", "cpu", "--threads", str(torch.get_num_threads()), "--num-iter", "2",
                           "--num-warm-iter", "1", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_failing(capsys, *argv):
    try:
        code = benchmark.main([*argv, *([] if "--device" in argv else ["--device", "cpu"])])
    except SystemExit as leave:     # argparse's own way
        code = leave.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def table(output):
    """The cells of the Markdown table in a script's output, one dictionary per row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in output.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_rounds_are_interleaved_and_start_in_turn():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = _bench.time_interleaved(steps, CPU, num_iter=4)
    assert "".join(calls) == "abc" "bca" "cab" "abc"
    assert all(len(t.milliseconds) == 4 and t.ratio is None for t in timings.values())


def test_min_time_adds_rounds(monkeypatch):
    monkeypatch.setattr(_bench, "time_once", lambda step, device: step())
    timings = _bench.time_interleaved({"a": lambda: 10.0, "b": lambda: 40.0}, CPU, num_iter=1, min_time=0.05)
    assert timings["a"].milliseconds == (10.0,) * 5
    assert timings["b"].milliseconds == (40.0,) * 5


def test_ratio_is_the_median_over_rounds(monkeypatch):
    """The machine slows down threefold in round two: the times move, the ratio does not."""
    monkeypatch.setattr(_bench, "time_once", lambda step, device: step())
    base, other = iter([10.0, 30.0, 10.0]), iter([20.0, 60.0, 20.0])
    timings = _bench.time_interleaved(
        {"base": lambda: next(base), "other": lambda: next(other)}, CPU, num_iter=3, baseline="base")
    assert timings["other"].columns() == {
        "median_ms": "20.000", "p20_ms": "20.000", "p80_ms": "44.000", "time_ratio": "2.000", "num_iter": 3}
    assert timings["base"].ratio == 1.0


def test_table_and_csv(tmp_path, capsys):
    path = tmp_path / "results.csv"
    argv = ("test_convnext", "test_vit", "--batch-size", "1", "2", "--img-size", "64", "--bench", "inference", "train",
            "--baseline", "test_vit", "--results-file", str(path))
    for _ in range(2):
        code, out, _ = run(capsys, *argv)
        assert code == 0
        rows = table(out)
        assert [(r["bench"], r["batch_size"], r["model"]) for r in rows] == [
            (bench, size, model)
            for bench in ("inference", "train") for size in "12" for model in ("test_convnext", "test_vit")]
        assert all(r["time_ratio"] == "1.000" for r in rows if r["model"] == "test_vit")
        assert all(float(r["median_ms"]) > 0 and r["img_size"] == "64x64" for r in rows)
    with path.open() as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == 16
    assert set(saved[0]) == {*benchmark.CSV_COLUMNS, *_bench.ENVIRONMENT_COLUMNS}
    for row in saved:
        assert row["baseline"] == "test_vit"
        assert row["torch"] == torch.__version__
        assert row["device"]
        rate = int(row["batch_size"]) / float(row["median_ms"]) * 1e3
        assert float(row["img_per_s"]) == pytest.approx(rate, abs=0.01, rel=1e-3)   # both are rounded


def test_own_image_size_and_options(capsys):
    code, out, _ = run(capsys, "test_resnet", "--bench", "inference", "train", "--amp-dtype", "bfloat16",
                       "--channels-last", "--batch-size", "2")
    assert code == 0
    assert [r["img_size"] for r in table(out)] == ["160x160", "160x160"]


def test_sizes_of_the_same_number_of_pixels(capsys):
    code, out, _ = run(capsys, "test_convnext", "--img-size", "64", "32", "96", "--batch-size", "1", "4",
                       "--same-pixels")
    assert code == 0
    assert [(r["img_size"], r["batch_size"]) for r in table(out)] == [
        ("64x64", "1"), ("64x64", "4"), ("32x32", "4"), ("32x32", "16"), ("96x96", "1"), ("96x96", "2")]


def test_channels_last_for_the_models_named(capsys, monkeypatch):
    seen = {}
    make_step = benchmark.make_step

    def look(model, x, *args):
        seen[type(model).__name__] = x.is_contiguous(memory_format=torch.channels_last)
        return make_step(model, x, *args)

    monkeypatch.setattr(benchmark, "make_step", look)
    argv = ("test_convnext", "test_resnet", "--img-size", "64", "--num-iter", "1")
    for named, expected in (([], (True, True)), (["test_resnet"], (False, True))):
        run(capsys, *argv, "--channels-last", *named)
        assert seen == dict(zip(("ConvNeXt", "ResNet"), expected, strict=True))


def test_modes(capsys, monkeypatch, tmp_path):
    compiled, marks = [], []

    def compile_(model, **options):
        compiled.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    path = tmp_path / "results.csv"
    code, out, _ = run(capsys, "test_convnext", "test_vit", "--mode", "eager", "compiled", "--results-file", str(path))
    assert code == 0
    assert [r["mode"] for r in table(out)] == ["eager"] * 2 + ["compiled"] * 2
    assert compiled == [{}, {}]
    assert not marks
    args = benchmark.parse_args(["test_vit", "--device", "cpu", "--num-warm-iter", "3"])
    args.device = CPU
    step, columns = benchmark.prepare(
        lambda: benchmark.build_model("test_vit", None, CPU), 1, False, "cudagraph", False, args)
    step()
    assert compiled[2:] == [{"mode": "reduce-overhead"}]
    assert len(marks) == 4      # before each step: three to warm up, one here
    assert columns["mode"] == "cudagraph"


class Named(torch.nn.Module):
    """A model whose code is compiled anew for each name."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.weight * len(self.name)


def test_all_models_of_a_class_are_compiled(monkeypatch):
    counter = CompileCounter()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend=counter))
    builders = {f"{i}": lambda i=i: (Named("n" * i), (3, 2, 2)) for i in range(12)}
    args = benchmark.parse_args(["0", "--num-iter", "1"])
    args.device = CPU
    rows = benchmark.measure(builders, 1, False, "compiled", args)
    assert [row["model"] for row in rows] == list(builders)
    assert counter.frame_count == 12


def test_training_step_changes_the_weights():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    before = model[1].weight.detach().clone()
    step = benchmark.make_step(model, torch.randn(2, 3, 2, 2), train=True, amp_dtype=None)
    step()
    assert not torch.equal(model[1].weight, before)
    inference = benchmark.make_step(model, torch.randn(2, 3, 2, 2), train=False, amp_dtype=torch.bfloat16)
    assert inference().dtype == torch.bfloat16
    assert not model.training


def test_model_that_does_not_fit_is_left_out(capsys, monkeypatch):
    build_model = benchmark.build_model

    def refuse(name, *args):
        if name == "test_vit":
            raise torch.OutOfMemoryError
        return build_model(name, *args)

    monkeypatch.setattr(benchmark, "build_model", refuse)
    code, out, err = run(capsys, "test_vit", "test_convnext", "--img-size", "64")
    assert code == 1
    assert "test_vit does not fit into the memory at batch 1" in err
    assert [(r["model"], r["time_ratio"]) for r in table(out)] == [("test_convnext", "")]


@pytest.mark.parametrize(("argv", "message"), [
    (["test_convnxt"], "unknown model 'test_convnxt'; near names: test_convnext"),
    (["test_vit", "--baseline", "test_convnext"], "--baseline test_convnext is not one of the models"),
    (["test_vit", "--batch-size", "0"], "--batch-size"),
    (["test_vit", "--img-size", "0"], "argument --img-size: must be at least 1"),
    (["test_vit", "--same-pixels"], "--same-pixels needs --img-size"),
    (["test_vit", "--channels-last", "test_resnet"], "--channels-last test_resnet is not one of the models"),
    (["test_vit", "--mode", "cudagraph"], "--mode cudagraph needs a CUDA device; use compiled"),
    (["test_vit", "--num-iter", "0"], "--num-iter"),
    (["test_vit", "--threads", "0"], "argument --threads: must be at least 1"),
    (["test_vit", "--img-size", "97"], "test_vit does not take images of 97x97"),
    (["test_vit", "--device", "tpu"], "unknown device 'tpu'"),
    (["test_vit", "--device", "meta"], "'meta' is not supported"),
    (["test_vit", "--results-file", "missing/folder/x.csv"], "cannot write missing/folder/x.csv"),
])
def test_bad_arguments(capsys, argv, message):
    assert message in run_failing(capsys, *argv).splitlines()[-1]


def test_other_csv_is_kept(tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text("epoch,loss\n1,2\n")
    assert "other columns" in run_failing(capsys, "test_vit", "--results-file", str(path))
    assert path.read_text() == "epoch,loss\n1,2\n"


def test_flags_of_make_benchmark_exist():
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    flags = re.search(r"^BENCHMARK_ARGS \?= (.*)$", makefile, re.MULTILINE)[1]
    assert benchmark.parse_args(["test_vit", *flags.split()]).bench == ["inference", "train"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at the message of a machine without a GPU")
def test_no_gpu(capsys):
    assert "no CUDA device" in run_failing(capsys, "test_vit", "--device", "cuda")


@pytest.mark.gpu
def test_gpu(capsys):
    code = benchmark.main(["test_convnext", "test_vit", "--device", "cuda", "--bench", "inference", "train",
                           "--num-iter", "2", "--amp-dtype", "float16", "--mode", "eager", "cudagraph"])
    rows = table(capsys.readouterr().out)
    assert code == 0
    assert len(rows) == 8
    assert all(int(r["peak_memory_mb"]) > 0 for r in rows)
