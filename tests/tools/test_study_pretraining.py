"""The study of pre-training: what is trained, that nothing is trained twice, and what comes of the rows."""

import pytest
import study_pretraining
from PIL import Image

from vmamba.train.logs import read_rows


@pytest.fixture
def runs(monkeypatch):
    """Replaces both tools; gives the flags of each run, with the tool it is of."""
    made = []

    def fake(tool, columns):
        def main(argv, recipes):
            assert (recipes / f"{argv[argv.index('--dataset') + 1]}.yaml").is_file()
            plain = [word for word in argv if word != "--auto-resume"]
            flags = dict(zip(plain[::2], plain[1::2], strict=True))
            made.append((tool, flags))
            folder = study_pretraining.Path(flags["--output"]) / flags["--experiment"]
            folder.mkdir(exist_ok=True)
            loss = 1 / len(made)
            (folder / "summary.csv").write_text(f"epoch,{columns}\n0,9,9,9\n1,{loss},{loss},{100 - loss}\n")
            return 0
        return main

    monkeypatch.setattr(study_pretraining, "pretrain", fake("pretrain", "train_loss,eval_loss,lr"))
    monkeypatch.setattr(study_pretraining, "train", fake("train", "train_loss,eval_loss,eval_top1"))
    return made


def study(path, *more):
    flags = ["--dataset", "digits", "--seeds", "0", "1", "--device", "cpu", "--output", str(path / "runs")]
    return study_pretraining.main([*flags, "--results-file", str(path / "study.csv"), *more])


def test_both_starts_are_trained_alike(runs, tmp_path, capsys):
    assert study(tmp_path) == 0
    assert [tool for tool, _ in runs] == ["train", "pretrain", "train"] * 2
    for seed in (0, 1):
        scratch, before, tuned = (dict(flags) for _, flags in runs[3 * seed:3 * seed + 3])
        # one for all
        assert (before["--seed"], before["--experiment"]) == ("0", "pretrain_digits_vmamba_nano_toki_20")
        assert "--train-split" not in before        # all images, without labels
        assert scratch["--train-split"] == f"train[{10 * seed}%:{10 * seed + 10}%]"
        assert tuned.pop("--initial-checkpoint") == str(tmp_path / "runs" / before["--experiment"] / "last.safetensors")
        assert tuned.pop("--experiment") != scratch.pop("--experiment")
        assert tuned == scratch
    rows = read_rows(tmp_path / "study.csv")
    assert [(row["start"], row["pretrain_epochs"], row["eval_loss"], row["pretrain_eval_loss"]) for row in rows] == [
        ("scratch", "0", "1.0000", ""), ("toki", "20", "0.3333", "0.5000"),
        ("scratch", "0", "0.2500", ""), ("toki", "20", "0.1667", "0.2000")]
    out = capsys.readouterr().out
    assert "| toki, 20 epochs |     2 | 0.250 ± 0.118 |" in out


def test_a_study_goes_on_where_it_stopped(runs, tmp_path, capsys):
    study(tmp_path, "--seeds", "0", "--starts", "scratch")
    study(tmp_path, "--seeds", "0")
    assert [tool for tool, _ in runs] == ["train", "pretrain", "train"]
    assert "scratch seed 0: validation loss 1.0000, top-1 99.00 % (in the file)" in capsys.readouterr().out
    study(tmp_path, "--seeds", "0", "--pretrain-epochs", "5")
    assert [tool for tool, _ in runs[3:]] == ["pretrain", "train"]
    study(tmp_path, "--seeds", "0", "--epochs", "3")
    assert len(runs) == 8
    study(tmp_path, "--seeds", "0", "--img-size", "64", "--mask-size", "16")
    names = [flags["--experiment"] for _, flags in runs]
    assert len(runs) == 11
    assert len(set(names)) == 10    # with other epochs of fine-tuning, the encoder is the same
    assert [(flags.get("--img-size"), flags.get("--mask-size")) for _, flags in runs[7:]] == [
        (None, None), ("64", None), ("64", "16"), ("64", None)]
    study(tmp_path, "--seeds", "0", "--img-size", "64", "--mask-size", "32")
    assert [tool for tool, _ in runs[11:]] == ["pretrain", "train"]


def test_a_run_that_fails_leaves_no_row(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_pretraining, "train", lambda argv, recipes: 75)
    assert study(tmp_path) == 2
    assert "did not finish" in capsys.readouterr().err
    assert read_rows(tmp_path / "study.csv") == []


def test_plot(runs, tmp_path):
    assert study(tmp_path, "--plot", str(tmp_path / "study.png")) == 0
    assert Image.open(tmp_path / "study.png").width == 840
