import pytest
import show_scan
import torch
from PIL import Image

from vmamba.scans import ScanOrder, consistent_traverse, scan_order


def test_panels_are_directions_without_padding():
    order = ScanOrder("x", (2, 2), torch.tensor([[3, -1, 0], [1, 2, -1]], dtype=torch.int32), 4)
    first, second = show_scan.panels(order)
    assert (first.title, first.places.tolist(), first.times.tolist()) == ("direction 0", [[1, 1], [0, 0]], [0, 1])
    assert (second.title, second.places.tolist(), second.times.tolist()) == ("direction 1", [[0, 1], [1, 0]], [0, 0.5])


def test_panels_of_copies_share_the_time():
    found = show_scan.panels(scan_order("ms_half", (1, 2)))
    assert [panel.title for panel in found] == [f"direction 0, copy {c}" for c in range(3)]
    assert [panel.places[:, 1].tolist() for panel in found] == [[1, 0], [0, 1], [1, 0]]
    assert torch.cat([panel.times for panel in found]).tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_panels_in_space():
    (panel,) = show_scan.panels(consistent_traverse((2, 1, 2)))
    assert panel.places.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]]


def colours(path, box):
    """Number of strongly coloured pixels in a part of a picture, given as parts of its width."""
    image = Image.open(path).convert("RGB")
    box = (int(box[0] * image.width), 30, int(box[1] * image.width), image.height)
    return sum(max(p) - min(p) > 60 for p in image.crop(box).get_flattened_data())


@pytest.mark.parametrize(("name", "size"), [
    ("atrous", ["5", "4"]), ("h+h_flip+w2+w2_flip", ["1", "3"]), ("random4", ["4", "4"])])
def test_each_direction_is_drawn(name, size, tmp_path, capsys):
    path = tmp_path / "scan.png"
    assert show_scan.main([name, "--size", *size, "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    for k in range(4):
        assert colours(path, (k / 4, (k + 1) / 4)) > 20


def test_one_token_and_voxels_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show_scan.main(["h", "--size", "1", "1"]) == 0
    assert show_scan.main(["consistent_traverse", "--size", "2", "3", "2"]) == 0
    assert colours("consistent_traverse.png", (0, 1)) > 20
    assert (tmp_path / "h.png").is_file()


def test_gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(show_scan, "gallery", lambda: ["cross", "window4"])
    assert show_scan.main(["--gallery", str(tmp_path / "new")]) == 0
    drawn = {path.name for path in (tmp_path / "new").iterdir()}
    assert drawn == {f"scan_{name}.png" for name in ("cross", "window4", *show_scan.solid_gallery())}


@pytest.mark.parametrize(("argv", "message"), [
    (["hilbrt4"], "error: unknown scan order 'hilbrt4'; did you mean 'hilbert4'"),
    (["cross", "--size", "0", "3"], "error: size must be two positive integers (H, W), got (0, 3)"),
    (["cross", "--size", "2", "3", "4"], "error: size must be two positive integers (H, W), got (2, 3, 4)"),
    (["hilbert_voxels"], "error: hilbert_voxels is for voxels: --size needs three positive integers, got (8, 8)"),
    ([], "name orders to draw, or say --gallery DIR"),
    (["cross", "bidi", "--output", "x.png"], "--output is for one order"),
])
def test_wrong_requests_are_explained(argv, message, capsys):
    try:
        code = show_scan.main(argv)
    except SystemExit as leave:  # argparse's own way
        code = leave.code
    assert code == 2
    assert message in capsys.readouterr().err
