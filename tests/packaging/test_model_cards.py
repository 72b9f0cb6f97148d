"""model_cards/: one for each configuration, what the generator makes, in the Hub's form, with examples that run."""
import contextlib
import io
import re
import shutil
import sys

import pytest
import timm
from _cards import Card, configurations
from huggingface_hub import ModelCard
from PIL import Image

import model_cards
import vmamba  # noqa: F401

NAMES = list(configurations())
LICENCES = {"mit", "apache-2.0", "cc-by-nc-sa-4.0", "other"}
SMALL = [name for name in NAMES if name.startswith("test_")]
# weights that timm downloads, weights to be downloaded by hand, clips: and a small model to run in their place
STAND_INS = {"vim_tiny_patch16_224.in1k": "test_vim", "efficientvmamba_tiny.in1k": "test_efficientvmamba",
             "videomamba_tiny.k400_f8": "test_videomamba"}


def card_text(name):
    return (model_cards.FOLDER / f"{name}.md").read_text()


def test_every_configuration_has_a_card_and_no_other_has():
    assert sorted(path.stem for path in model_cards.FOLDER.iterdir()) == sorted(NAMES), f"run {model_cards.COMMAND}"


def test_every_model_has_a_configuration():
    ours = {name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("vmamba.")}
    assert {name.partition(".")[0] for name in NAMES} == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_card_is_what_the_generator_makes(name):
    assert card_text(name) == Card(name).text(), f"model_cards/{name}.md is stale: run {model_cards.COMMAND}"


@pytest.mark.parametrize("name", NAMES)
def test_metadata(name):
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    data = ModelCard(card_text(name), ignore_metadata_errors=False).data
    cfg = configurations()[name]
    assert data.library_name == "timm"
    assert data.pipeline_tag in data.tags
    assert {"timm", "vmamba"} < set(data.tags)
    assert data.license in LICENCES
    trained = not name.endswith(".untrained")
    assert data.license == (cfg.license if trained else "apache-2.0")
    assert (data.license == "other") == (data.license_name == "none-stated") == bool(data.license_link)
    assert bool(data.datasets) == trained
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", dataset) for dataset in data.datasets or [])


@pytest.mark.parametrize("name", NAMES)
def test_sections(name):
    text = card_text(name)
    cfg = configurations()[name]
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    kind = "Clip" if "Frames" in text else "Image"
    assert headings == [
        f"Model card for {name}", "Model Details", "Model Usage", f"{kind} classification", "Feature map extraction",
        f"{kind} embeddings", "Accuracy, published", "Speed, measured", "Citation"]
    assert text.count("import vmamba") == 1
    assert text.index("import vmamba") < text.index("timm.create_model")
    assert cfg.paper_name in text
    assert re.search(r"## Citation\n\n.*\[arXiv:\d{4}\.\d{5}\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\)", text)
    accuracies = re.findall(r"([\d.]+ %) \(published", " ".join(cfg.notes or ()))
    table = text.partition("## Accuracy, published")[2].partition("## Speed")[0]
    assert all(f" {accuracy} |" in table for accuracy in accuracies)
    assert table.count("(https://") == len(accuracies)


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_plain(name):
    """A model file's words on the licence, the configuration's licence and the card agree."""
    card = Card(name)
    details = card_text(name).partition("## Model Details")[2].partition("## Model Usage")[0]
    if card.untrained:
        assert "as there are no weights" in details
        assert "pretrained=True" not in card_text(name)
    elif card.cfg.license == "other":
        assert "no licence stated" in card.terms
        assert "**none is stated by their authors**" in details
    else:
        assert card.cfg.license in card.terms.lower()
        assert card.terms in details


def test_configurations_without_weights_say_so():
    assert "published its accuracy and not its weights" in card_text("localvmamba_tiny.in1k")
    assert "pretrained=True" not in card_text("localvmamba_tiny.in1k")
    assert "starts from random ones" in card_text("vmamba_nano.untrained")
    assert 'pretrained_cfg_overlay=dict(file="' in card_text("mlla_tiny.in1k")


def code_blocks(name):
    return [compile(code, f"{name}, block {i}", "exec") for i, code in enumerate(code_texts(name), start=1)]


def code_texts(name):
    return re.findall(r"```python\n(.*?)```", card_text(name), re.DOTALL)


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 260), "olive").save("photo.jpg")


@pytest.mark.parametrize("name", SMALL)
def test_usage_runs(name, photo):
    """The three blocks one after the other; what comments say of shapes is so."""
    space = {}
    texts, (first, second, third) = code_texts(name), code_blocks(name)
    exec(first, space)
    assert f"# {list(space['logits'].shape)}" in texts[0]
    assert space["classes"].shape == (1, 5)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(second, space)
    assert [list(y.shape) for y in space["maps"]] == expected_maps(texts[1], space["x"].shape)
    exec(third, space)
    assert f"# {list(space['embedding'].shape)}" in texts[2]


@pytest.mark.parametrize("name", STAND_INS)
def test_usage_of_weights_and_clips_runs(name, photo, monkeypatch):
    """The first block, with a small model in place of the large one and its download."""
    card, create_model = Card(name), timm.create_model

    def without_download(asked, pretrained, pretrained_cfg_overlay=None, **arguments):
        assert (asked, pretrained) == (name, True)
        assert (pretrained_cfg_overlay is not None) == (card.weights == "by hand")
        return create_model(STAND_INS[name], num_classes=card.cfg.num_classes, **arguments)

    monkeypatch.setattr(timm, "create_model", without_download)
    space = {}
    exec(code_blocks(name)[0], space)
    assert f"# {list(space['logits'].shape)}" in code_texts(name)[0]


@pytest.mark.parametrize("name", NAMES)
def test_usage_is_python(name):
    assert len(code_blocks(name)) == 3


def expected_maps(code, shape):
    """Shapes that the comment promises for an input of a shape."""
    text = re.search(r"# (.*)$", code, re.MULTILINE)[1]
    times = int((re.match(r"(\d+) times ", text) or [0, 1])[1])
    height, width = shape[-2:]
    maps = [[-(-height // int(part[2:])) if part[0] == "H" else -(-width // int(part[2:])) if part[0] == "W"
             else int(part) for part in shown.split(", ")] for shown in re.findall(r"\[(.*?)\]", text)]
    return maps * times


def test_check_names_what_is_stale_and_writes_nothing(tmp_path, monkeypatch, capsys):
    name = "test_vmamba.untrained"
    monkeypatch.setattr(model_cards, "ROOT", tmp_path)
    monkeypatch.setattr(model_cards, "FOLDER", tmp_path / "model_cards")
    monkeypatch.setattr(model_cards, "configurations", lambda: {name: configurations()[name]})
    assert model_cards.main(["--check"]) == 1
    assert not model_cards.FOLDER.exists()
    assert model_cards.main([]) == 0
    assert model_cards.main(["--check"]) == 0
    shutil.copy(model_cards.FOLDER / f"{name}.md", model_cards.FOLDER / "gone.in1k.md")
    (model_cards.FOLDER / f"{name}.md").write_text("old")
    capsys.readouterr()
    assert model_cards.main(["--check"]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"write model_cards/{name}.md", "remove model_cards/gone.in1k.md"]
    assert model_cards.COMMAND in output.err
    assert model_cards.main([]) == 0
    assert [path.name for path in model_cards.FOLDER.iterdir()] == [f"{name}.md"]
    assert (model_cards.FOLDER / f"{name}.md").read_text() == Card(name).text()


@pytest.mark.parametrize(("docstring", "message"), [
    ("A family.\n\nNo paper here.", "has no sentence 'Paper:"), (None, "has no sentence 'Paper:")])
def test_a_model_file_without_a_paper_is_named(docstring, message, monkeypatch):
    monkeypatch.setattr(sys.modules["vmamba.models.vmamba"], "__doc__", docstring)
    with pytest.raises(ValueError, match=message):
        Card("test_vmamba.untrained")
