"""tools/study_models.py: what is trained, what its rows say, and that it goes on where it stopped."""
import pytest
import study_models
from _study import read


def study(path, *more):
    return study_models.main(["--results-file", str(path / "s.csv"), "--device", "cpu", "--models", "test_vmamba",
                              "test_vit", *more])


@pytest.fixture
def recipe(image_folder, tmp_path):
    """A run of seconds, with averaged weights."""
    path = tmp_path / "small.yaml"
    path.write_text(f"data_dir: {image_folder}\nimg_size: 160\nbatch_size: 16\nepochs: 2\nwarmup_epochs: 0\nlr: 2e-3\n"
                    "hflip: 0\nworkers: 0\nmodel_ema: true\nmodel_ema_decay: 0.5\n")
    return path


@pytest.mark.slow
def test_rows_are_of_the_last_epoch_and_of_averaged_weights(recipe, tmp_path, capsys):
    assert study(tmp_path, "--recipe", str(recipe), "--seeds", "0", "1") == 0
    rows = read(tmp_path / "s.csv")
    assert [(row["model"], row["seed"], row["epochs"]) for row in rows] == [
        ("test_vmamba", "0", "2"), ("test_vit", "0", "2"), ("test_vmamba", "1", "2"), ("test_vit", "1", "2")]
    assert all(float(row["best_top1"]) >= float(row["top1"]) for row in rows)
    assert len({row["params_m"] for row in rows}) == 2
    assert all(int(row["cpu_seconds"]) > 0 for row in rows)
    out = capsys.readouterr().out
    assert "small.yaml, 2 epochs" in out
    before = (tmp_path / "s.csv").read_text()
    assert study(tmp_path, "--recipe", str(recipe), "--seeds", "0", "1") == 0
    assert (tmp_path / "s.csv").read_text() == before
    assert "test_vit seed 1" in capsys.readouterr().out


def test_a_run_of_another_length_is_another_run(recipe):
    args = study_models.parse_args(["--results-file", "s.csv", "--recipe", str(recipe)])
    for epochs, same in (("2", True), ("1", False)):
        row = {"recipe": "small.yaml", "model": "resnet18", "seed": "0", "epochs": epochs}
        assert study_models.is_run(row, "resnet18", 0, args) is same


def test_a_wrong_name_is_known_before_anything_is_trained(tmp_path, capsys):
    assert study(tmp_path, "--models", "test_vmamba", "resnet1") == 2
    assert "unknown model 'resnet1'; near names: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_compared_models_are_of_one_size():
    """The ViT has vmamba_nano's parameters, within a tenth."""
    sizes = {}
    for name, (model, arguments) in study_models.MODELS.items():
        kwargs = {key: int(value) for key, value in (argument.split("=") for argument in arguments)}
        built = study_models.build_classifier(model, num_classes=10, in_chans=1, device="meta", **kwargs)
        sizes[name] = sum(parameter.numel() for parameter in built.parameters())
    assert sizes["vit_nano"] == pytest.approx(sizes["vmamba_nano"], rel=0.1)
    assert sizes["resnet18"] > sizes["vmamba_nano"]
