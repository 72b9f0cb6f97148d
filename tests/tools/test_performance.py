"""The performance tables and plots: made of the CSV files, and the committed tables are what the files say."""
import importlib
import re

import _results
import _zoo
import benchmark
import performance_tables
import plot_performance
import pytest
import timm
from performance_tables import DOCUMENTS, MODES, TABLES

ROOT = _results.ROOT
ROW = {
    "bench": "inference", "model": "vmamba_tiny_s1l8", "params_m": "30.25", "batch_size": "128", "img_size": "224x224",
    "amp_dtype": "bfloat16", "mode": "eager", "img_per_s": "5000.00", "median_ms": "25.600", "p80_ms": "26.100",
    "time_ratio": "1.000", "peak_memory_mb": "1280", "date": "2026-01-01T10:00Z", "command": "python a.py",
    "commit": "abc", "device": "GPU", "threads": "2", "torch": "2.11.0", "timm": "1.0.31", "vmamba": "0.1.0",
}


@pytest.fixture
def measured(monkeypatch):
    """A function that says what benchmarks/models_gpu.csv holds: ``ROW`` with changes, one dictionary for each row."""
    def set_rows(*changes, file="models_gpu"):
        rows = _results.newest({**ROW, **change} for change in changes)
        for module in (_results, _zoo, performance_tables, plot_performance):
            monkeypatch.setattr(module, "read_rows", lambda name: rows if name == file else [])

    return set_rows


def parse(markdown):
    """Cells of a Markdown table, one dictionary per row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_committed_tables_are_what_the_files_say(name):
    text = (ROOT / name).read_text()
    assert performance_tables.fill(text) == text, "run python tools/performance_tables.py"


def test_every_table_is_shown():
    shown = [name for document in DOCUMENTS for _, name, _ in
             performance_tables.MARKED.findall((ROOT / document).read_text())]
    assert sorted(shown) == sorted(TABLES)


def test_published_and_measured_are_columns_of_their_own(measured):
    measured({}, {"mode": "compiled", "img_per_s": "9000.00"}, {"bench": "train", "img_per_s": "2000.00"},
             {"model": "test_vit", "img_per_s": "1.00"}, {"model": "convnext_tiny"})
    assert parse(TABLES["overview"]()) == [
        {"model": "`vmamba_tiny_s1l8`", "parameters (M)": "30.25", "top-1, published": "82.6",
         "inference, eager": "5,000", "inference, compiled": "9,000", "training, eager": "2,000", "run": "1"},
        *({"model": f"`{name}`", "parameters (M)": "30.25", "top-1, published": top1, "inference, eager": speed,
           "inference, compiled": "", "training, eager": "", "run": "1"}
          for name, top1, speed in (("test_vit", "", "1"), ("convnext_tiny", "82.1", "5,000")))]


def test_the_newest_row_of_a_setting_counts_and_names_its_run(measured):
    later = {"img_per_s": "6000.00", "date": "2026-01-02T10:00Z"}
    measured(later, {}, {"model": "convnext_tiny", "date": "2026-01-01T09:00Z"})
    table = parse(TABLES["inference"]())
    assert [(row["eager, images/s"], row["run"]) for row in table] == [("6,000", "2"), ("5,000", "1")]
    assert [row["date"] for row in parse(TABLES["runs"]())] == ["2026-01-01T09:00Z", "2026-01-02T10:00Z"]


def test_devices_have_tables_of_their_own(measured):
    measured({}, {"device": "other GPU", "img_per_s": "1.00"})
    first, _, second = TABLES["inference"]().partition("\n\nother GPU:\n\n")
    assert first.startswith("GPU:\n\n")
    assert [row["eager, images/s"] for row in parse(first)] == ["5,000"]
    assert [row["eager, images/s"] for row in parse(second)] == ["1"]


def test_latency(measured):
    measured({}, {"batch_size": "1", "median_ms": "7.123", "p80_ms": "7.500"},
             {"batch_size": "1", "mode": "cudagraph", "median_ms": "1.001", "p80_ms": "1.104"})
    assert parse(TABLES["latency"]()) == [
        {"model": "`vmamba_tiny_s1l8`", "eager, ms": "7.12", "eager, 80 %": "7.50", "CUDA graph, ms": "1.00",
         "CUDA graph, 80 %": "1.10", "run": "1"}]


def test_image_sizes(measured):
    large = {"img_size": "448x448", "batch_size": "32", "img_per_s": "1250.00"}
    measured({}, large, {"batch_size": "1", "img_per_s": "100.00"}, {"model": "convnext_tiny"},
             {"bench": "train"}, {**large, "bench": "train"})
    assert parse(TABLES["inference by size"]()) == [
        {"model": "`vmamba_tiny_s1l8`", "mode": "eager", "224": "5,000", "448": "1,250", "run": "1"}]
    assert parse(TABLES["training memory by size"]()) == [
        {"model": "`vmamba_tiny_s1l8`", "mode": "eager", "224": "10.0", "448": "40.0", "run": "1"}]


def test_scan_orders(measured):
    measured({"scan": "cross"}, {"scan": "hilbert4", "time_ratio": "1.040"},
             {"scan": "hilbert4", "time_ratio": "1.020", "img_size": "1024x1024", "batch_size": "6"}, file="scans_gpu")
    assert parse(TABLES["scans"]())[1] == {
        "order": "`hilbert4`", "model": "vmamba_tiny_s1l8", "mode": "eager", "inference, 224": "1.040",
        "inference, 1024": "1.020", "run": "1"}


def test_profiles(measured):
    row = {"step_ms": "10.000", "part": "scan", "ms": "6.251", "percent": "62.5", "launches": "14"}
    idle = {**row, "part": "idle", "ms": "3.749", "percent": "37.5", "launches": "0"}
    train = {"bench": "train", "part": "optimizer", "step_ms": "20.000", "ms": "20.000", "percent": "100.0",
             "launches": "1200"}
    earlier = {"date": "2025-12-31T10:00Z", "ms": "9.000"}
    measured({**row, **earlier}, {**row, **earlier, "part": "reductions"}, row, idle, train, file="profile_gpu")
    setting = {"model": "`vmamba_tiny_s1l8`", "batch": "128", "size": "224x224", "run": "1"}
    assert parse(TABLES["profile"]()) == [
        setting | {"part": "scan", "inference, eager": "6.25 ms, 62.5 %, 14", "training, eager": ""},
        setting | {"part": "optimizer", "inference, eager": "", "training, eager": "20.00 ms, 100.0 %, 1,200"},
        setting | {"part": "idle", "inference, eager": "3.75 ms, 37.5 %", "training, eager": ""},
        setting | {"part": "whole step", "inference, eager": "10.00 ms, 100.0 %, 14",
                   "training, eager": "20.00 ms, 100.0 %, 1,200"}]


def test_the_zoo_has_the_fastest_mode_and_names_it_and_the_device(measured):
    measured({}, {"device": "NVIDIA H100 80GB HBM3", "img_per_s": "9000.00", "date": "2026-01-02T10:00Z"},
             {"mode": "compiled", "img_per_s": "8000.00", "date": "2026-01-03T10:00Z"},
             {"mode": "eager", "bench": "train", "img_per_s": "1000.00", "peak_memory_mb": "7000"},
             {"mode": "cudagraph", "bench": "train", "img_per_s": "2000.00", "peak_memory_mb": "6000"})
    assert _zoo.measured("vmamba_tiny_s1l8", "inference", "img_per_s") == "9,000 (H100, eager)"
    assert _zoo.measured("vmamba_tiny_s1l8", "train", "img_per_s") == "2,000 (GPU, CUDA graph)"
    assert _zoo.measured("vmamba_tiny_s1l8", "train", "peak_memory_mb") == "6,000 (GPU, CUDA graph)"
    assert _zoo.measured("vmamba_small", "train", "img_per_s") == ""


def test_clips_of_several_lengths(measured):
    shape = {"batch_size": "8", "peak_memory_mb": "100"}
    measured({**shape, "frames": "8", "img_size": "8x224x224", "frames_per_s": "4000.0"},
             {**shape, "frames": "64", "img_size": "64x224x224", "frames_per_s": "4100.0", "time_ratio": "7.805",
              "peak_memory_mb": "700"},
             {**shape, "frames": "8", "img_size": "8x224x224", "frames_per_s": "1000.0", "bench": "train"},
             file="video_gpu")
    assert parse(TABLES["video"]())[0] == {
        "model": "`vmamba_tiny_s1l8`", "batch": "8", "frames": "8", "inference, eager, frames/s": "4,000",
        "inference, eager, time ratio": "1.000", "inference, eager, MiB": "100", "training, eager, frames/s": "1,000",
        "training, eager, time ratio": "1.000", "training, eager, MiB": "100", "run": "1"}
    assert parse(TABLES["video"]())[1]["inference, eager, time ratio"] == "7.805"


def test_exports(measured):
    row = {"params_m": "0.50", "batch_size": "1", "img_size": "160x160", "difference": "", "sizes": "any", "reason": ""}
    measured({**row, "format": "PyTorch", "median_ms": "27.5"},
             {**row, "format": ".onnx", "difference": "8.9e-08", "time_ratio": "0.906"},
             {**row, "format": ".pt", "sizes": "none", "time_ratio": "", "reason": "cannot be | scripted"},
             {**row, "format": ".onnx", "difference": "1.0e-07", "model": "test_vim", "time_ratio": "0.500"},
             file="export_cpu")
    model = {"model": "`vmamba_tiny_s1l8`", "run": "1"}
    assert parse(TABLES["export"]()) == [
        model | {"ONNX": "any, 8.9e-08", "TorchScript": "no"},
        {"model": "`test_vim`", "run": "1", "ONNX": "any, 1.0e-07", "TorchScript": ""}]
    assert parse(TABLES["export latency"]()) == [
        model | {"size": "160x160", "PyTorch, ms": "28", "ONNX, ratio": "0.906"}]
    assert "| `vmamba_tiny_s1l8` |    .pt | cannot be \\| scripted |" in TABLES["export limits"]()


def test_exports_that_all_take_any_size_have_no_limits(measured):
    measured({"params_m": "0.50", "format": ".onnx", "difference": "8.9e-08", "sizes": "any", "reason": ""},
             file="export_cpu")
    assert TABLES["export limits"]() == "No cell is either."


def test_check_and_write(measured, tmp_path, monkeypatch, capsys):
    measured({})
    monkeypatch.setattr(performance_tables, "ROOT", tmp_path)
    monkeypatch.setattr(performance_tables, "DOCUMENTS", ("page.md",))
    page = tmp_path / "page.md"
    before = "# Speed\n\n<!-- performance: latency -->\nold\n<!-- performance end -->\nafter\n"
    page.write_text(before)
    assert performance_tables.main(["--check"]) == 1
    assert page.read_text() == before
    assert performance_tables.main([]) == 0
    assert page.read_text() == before.replace("old", "\nNot measured yet.\n")
    assert performance_tables.main(["--check"]) == 0
    page.write_text(before.replace("latency", "speeed"))
    assert performance_tables.main([]) == 2
    assert "there is no table 'speeed'; known: zoo, published, overview" in capsys.readouterr().err


def test_plots(measured, tmp_path, capsys):
    measured()
    assert plot_performance.main(["--output-dir", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())
    large = {"img_size": "448x448", "batch_size": "32"}
    measured({}, {"mode": "compiled"}, {"model": "convnext_tiny"}, large, {"device": "other GPU"})
    assert plot_performance.main(["--output-dir", str(tmp_path)]) == 0
    assert not (tmp_path / plot_performance.RESOLUTION).exists()    # of one model alone
    measured({}, {"mode": "compiled"}, {"model": "convnext_tiny"}, large, {**large, "model": "convnext_tiny"},
             {"device": "other GPU"})
    assert plot_performance.main(["--output-dir", str(tmp_path)]) == 0
    for name in performance_tables.PICTURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "wrote" in capsys.readouterr().out


def test_published_accuracies_name_models_of_timm_and_their_papers():
    """ImageNet accuracies of the suite's weights are in their configurations, and not here."""
    for row in _results.published():
        assert timm.is_model(row["model"])
        if row["dataset"] == "ImageNet-1K" and _results.is_ours(row["model"]):
            assert "weights not released" in row["setting"]
        assert re.fullmatch(r"\d\d\.\d{1,2}", row["value"])
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|doi:10\.\S+|[\w.-]+/[\w.-]+", row["source"])


@pytest.mark.parametrize("script", ["benchmark", "benchmark_scans", "profile_model"])
def test_the_commands_of_the_page_have_flags_that_exist(script, capsys):
    page = (ROOT / "docs" / "performance.md").read_text().partition("## Measure again")[2].partition("##")[0]
    commands = [c for c in page.replace("\\\n", " ").splitlines() if f"tools/{script}.py " in c]
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args(["--help"])
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert commands
    assert {flag for command in commands for flag in re.findall(r"--[a-z][\w-]*", command)} <= known


def test_modes_are_those_of_the_benchmark():
    assert list(MODES) == list(benchmark.MODES)
