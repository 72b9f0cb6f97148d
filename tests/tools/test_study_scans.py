import _study
import pytest
import study_scans
from PIL import Image

from vmamba.scans import scan_order


@pytest.fixture
def runs(monkeypatch):
    """Replaces the training; gives the flags of each run."""
    flags = []

    def train(argv, recipes):
        assert (recipes / f"{argv[argv.index('--dataset') + 1]}.yaml").is_file()
        flags.append(dict(zip(argv[::2], argv[1::2], strict=True)))
        folder = _study.Path(flags[-1]["--output"]) / flags[-1]["--experiment"]
        folder.mkdir()
        top1 = 10 * len(flags)
        (folder / "summary.csv").write_text(f"epoch,train_loss,eval_top1\n0,2,99\n1,1,{top1}\n")
        return 0

    monkeypatch.setattr(_study, "train", train)
    return flags


def study(path, *more):
    flags = ["--datasets", "digits", "--scans", "cross", "hilbert4", "--seeds", "0", "1", "--device", "cpu"]
    return study_scans.main([*flags, "--results-file", str(path / "study.csv"), *more])


def test_each_order_and_seed_is_trained_once(runs, tmp_path, capsys):
    assert study(tmp_path) == 0
    assert [(run["--model-kwargs"], run["--seed"]) for run in runs] == [
        ("scan=cross", "0"), ("scan=hilbert4", "0"), ("scan=cross", "1"), ("scan=hilbert4", "1")]
    rows = _study.read(tmp_path / "study.csv")
    assert [row["eval_top1"] for row in rows] == ["10.00", "20.00", "30.00", "40.00"]  # of the last epoch
    assert {row["epochs"] for row in rows} == {"2"}
    out = capsys.readouterr().out
    assert "| hilbert4 |    30.00 |              14.14 |    2 |" in out
    assert out.index("| hilbert4") < out.index("| cross")


def test_a_study_goes_on_where_it_stopped(runs, tmp_path, capsys):
    study(tmp_path, "--seeds", "0")
    study(tmp_path)
    assert [run["--seed"] for run in runs] == ["0", "0", "1", "1"]
    assert "digits hilbert4 seed 0: 20.00 % (in the file)" in capsys.readouterr().out
    study(tmp_path, "--epochs", "5")
    assert [run.get("--epochs") for run in runs] == [None] * 4 + ["5"] * 4
    assert runs[-1]["--warmup-epochs"] == "2"


def test_plot(runs, tmp_path):
    assert study(tmp_path, "--plot", str(tmp_path / "study.png")) == 0
    assert Image.open(tmp_path / "study.png").width == 400


def test_default_orders_have_the_four_directions_of_the_map():
    names = study_scans.four_directions()
    assert {"cross", "hilbert4", "local4", "atrous"} <= set(names)
    for name in names:
        order = scan_order(name, (3, 3))
        assert (order.num_directions, order.num_tokens) == (4, 9)


def test_unknown_order_is_explained_before_anything_runs(runs, tmp_path, capsys):
    assert study(tmp_path, "--scans", "cross", "hilbrt4") == 2
    assert "error: unknown scan order 'hilbrt4'; did you mean 'hilbert4'" in capsys.readouterr().err
    assert not runs


@pytest.mark.slow
def test_a_real_run(tmp_path):
    """An epoch on the smallest dataset through the real training."""
    assert study(tmp_path, "--scans", "hilbert4", "--seeds", "0", "--epochs", "1", "--model", "test_vmamba") == 0
    (row,) = _study.read(tmp_path / "study.csv")
    assert (row["scan"], row["epochs"]) == ("hilbert4", "1")
    assert float(row["eval_top1"]) > 10
