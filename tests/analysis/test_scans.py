"""The scans of every family, taken while it runs: they are what the operators computed, and lie where they should."""
import pytest
import timm
import torch

from tests.support.tolerances import assert_close
from vmamba.analysis import ScanRecorder, implicit_attention, record_scans, scan_layers, scan_maps, state_size
from vmamba.errors import UserError
from vmamba.ops import ss2d_scan

# between them every way in which a family scans
MODELS = ["test_vmamba", "test_vmamba_m2", "test_vim", "test_localvim", "test_localvim_midcls", "test_videomamba",
          "test_plainmamba", "test_rsmamba", "test_mambavision", "test_spatial_mamba", "test_msvmamba",
          "test_efficientvmamba", "test_localvmamba", "test_a2mamba"]


def model_and_images(name, size=(48, 70), **kwargs):
    return timm.create_model(name, **kwargs).eval(), torch.randn(2, 3, *size)


@pytest.fixture(scope="module")
def scanned():
    """Scans of each model on images that no patch divides, run once."""
    found = {}

    def scans(name):
        if name not in found:
            torch.manual_seed(1)
            found[name] = record_scans(*model_and_images(name))
        return found[name]

    return scans


@pytest.mark.parametrize("name", MODELS)
def test_a_model_does_not_notice(name):
    model, images = model_and_images(name)
    with torch.no_grad():
        expected = model(images)
        with ScanRecorder(model) as recorder:
            assert_close(model(images), expected)
        assert recorder.scans
        count = len(recorder.scans)
        model(images)
    assert len(recorder.scans) == count
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_arguments_give_what_the_model_computed(name, scanned):
    for scan in scanned(name):
        arguments = (scan.arrange_x(scan.x), scan.proj, scan.dt_weight, scan.dt_bias, scan.A_log, scan.D_skip)
        assert_close(scan.arrange_y(scan.y), ss2d_scan(*arguments, scan.order, merge=None))


@pytest.mark.parametrize("name", MODELS)
def test_attention_matrix_times_input_is_the_output(name, scanned):
    """M u + D u, for every direction of the last scans, step by step and merged on the map."""
    for scan in scanned(name)[-2:]:
        total = torch.zeros_like(scan.output_map(scan.y), dtype=torch.float64)
        for k in range(scan.directions):
            walk = scan.walk(k)
            y = torch.einsum("bdts,bsd->btd", implicit_attention(walk), walk.u)
            if walk.skip is not None:
                y = y + walk.skip * walk.u
            visited = walk.places >= 0
            total.index_add_(1, walk.places[visited], y[:, visited])
        assert_close(total, scan.output_map(scan.y), dtype=torch.float32)


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_rows_and_columns_of_the_matrix(name, scanned):
    scan = scanned(name)[-1]
    place = scan.size[0] * scan.size[1] // 2
    maps = scan_maps(scan, place)
    merged = 0
    for k in range(scan.directions):
        walk = scan.walk(k)
        matrix = implicit_attention(walk)
        merged = merged + matrix[:, :, walk.places == place][..., walk.places == place].sum((-2, -1))
        for s, other in enumerate(walk.places.tolist()):
            if other >= 0 and (walk.places == other).sum() == 1:        # not of a scan over copies
                row = matrix[:, :, walk.places == place, s].sum(-1).abs().mean(1)
                column = matrix[:, :, s, walk.places == place].sum(-1).abs().mean(1)
                assert_close(maps.reads[k, :, other], row)
                assert_close(maps.is_read[k, :, other], column)
    assert_close(maps.reads_merged[:, place], merged.abs().mean(1))


@pytest.mark.parametrize("name", MODELS)
def test_every_place_has_its_token(name, scanned):
    """Each place of the map and the class token have one token of each direction."""
    for scan in scanned(name):
        count = scan.size[0] * scan.size[1] + int(scan.class_token)
        seen = torch.stack([torch.bincount(p[p >= 0], minlength=count) for p in scan.places])
        assert seen.shape == (scan.directions, count)
        if name == "test_mambavision":
            assert (seen.sum(0) == 1).all()     # a direction is a window
        elif scan.order.num_tokens > 2 * count:
            assert (seen == 3).all()            # the half map of MSVMamba is walked three times
        else:
            assert (seen == 1).all()


@pytest.mark.parametrize(("name", "reach"), [("test_vim", 3), ("test_videomamba", 3), ("test_mambavision", None)])
def test_places_follow_the_image(name, reach):
    """A change of one patch reaches what is scanned there, and as far as the convolution before the scan does."""
    model, images = model_and_images(name, (64, 96))
    changed = images.clone()
    changed[..., 32:48, 48:64] += 1
    first, second = (record_scans(model, x)[0] for x in (images, changed))
    assert first.size == (4, 6)
    difference = (first.input_map(first.x) - second.input_map(second.x)).abs().amax((0, 2))
    place = 2 * 6 + 3
    if reach is None:       # two-dimensional convolutions in front
        assert int(difference.argmax()) == place
    else:
        assert difference.nonzero().flatten().tolist() == list(range(place - reach, place + reach + 1))


def test_state_is_that_of_the_recurrence(scanned):
    """One channel and state are read out by C = 1: the output without skip is the state."""
    scan = scanned("test_spatial_mamba")[-1]        # its scans give their states
    expected = scan.arrange_y(scan.y)[:, 0].square().mean(-1).sqrt()
    assert_close(state_size(scan.walk(0)), expected[:, scan.order.index[0].long()], dtype=torch.float32)


def test_scan_of_padding_decays_there():
    scan = record_scans(*model_and_images("test_localvmamba"))[-1]
    assert scan.order.has_padding
    walk = scan.walk(2)
    padding = walk.places < 0
    assert padding.any()
    assert (walk.u[:, padding] == 0).all()
    assert (walk.delta[:, padding] > 0).all()


@pytest.mark.parametrize("name", ["test_mlla", "test_vssd"])
def test_models_without_scans_are_refused(name):
    with pytest.raises(UserError, match="runs no scans"):
        record_scans(*model_and_images(name))


def test_unknown_layers_and_shuffled_tokens_are_refused():
    model, images = model_and_images("test_vmamba")
    with pytest.raises(UserError, match=r"no scan layer 'stages.9'; it has stages.0.blocks.0.mixer"):
        record_scans(model, images, ["stages.9"])
    with pytest.raises(UserError, match="cannot tell where on the image"):
        record_scans(*model_and_images("test_rsmamba", shuffle="random"))


def test_only_the_layers_asked_for():
    model, images = model_and_images("test_vim")
    scans = record_scans(model, images, ["blocks.1.mixer"])
    assert [scan.layer for scan in scans] == ["blocks.1.mixer"]
    assert scan_layers(model) == [f"blocks.{i}.mixer" for i in range(3)]


def test_place_out_of_range():
    scan = record_scans(*model_and_images("test_vim"))[0]
    with pytest.raises(ValueError, match=r"\[0, 12\]"):
        scan_maps(scan, 25)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["test_vmamba", "test_vim", "test_mambavision", "test_vmamba_m2"])
def test_on_a_gpu(name):
    """Calls that leave out the dispatcher are seen all the same, and maps are those of the CPU."""
    model, images = model_and_images(name)
    expected = scan_maps(record_scans(model, images)[-1], 2)
    found = scan_maps(record_scans(model.cuda(), images.cuda())[-1], 2)
    # kernels and library products in float32, TF32 included
    torch.testing.assert_close(found.reads.cpu(), expected.reads, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.states.cpu(), expected.states, rtol=1e-2, atol=1e-3)
