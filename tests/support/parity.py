"""Comparing a model with a fixture of the official implementation: weights by name, logits, features by summary."""
import json

import timm
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS, fill


def load_golden(path):
    """A fixture's metadata and tensors, by its JSON path below the folder of fixtures."""
    path = GOLDENS / path
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def official_state(meta):
    """The official state dict that the fixture was made with."""
    return dict(fill.fill_state_dict(meta["entries"], meta["overrides"]))


def build_official(meta, name, filter_fn, **kwargs):
    """Our model ``name`` with the fixture's weights, taken through the family's checkpoint filter."""
    model = timm.create_model(name, **kwargs).eval()
    model.load_state_dict(filter_fn(official_state(meta), model))
    return model


def summary(x):
    """What fixtures hold of a feature: mean, population standard deviation and 64 samples."""
    flat = x.detach().reshape(-1)
    samples = flat[torch.arange(64) * flat.numel() // 64]
    return torch.cat([flat.mean()[None], flat.std(correction=0)[None], samples])


def assert_parity(model, meta, tensors, modules, atol=2e-5):
    """Logits within ``atol``, and every feature within it at the feature's own scale.

    Args:
        model: Our model with the fixture's weights.
        meta: The fixture.
        tensors: Its tensors.
        modules: Our module for each of the fixture's feature names.
        atol: Ten times the float32 noise of the reference, by which the fixtures' tolerance was chosen.
    """
    taps = {}
    handles = [
        model.get_submodule(module).register_forward_hook(lambda m, i, out, name=name: taps.__setitem__(name, out))
        for name, module in modules.items()]
    with torch.no_grad():
        logits = model(fill.seeded_randn(meta["input"]["name"], meta["input"]["shape"]))
    for handle in handles:
        handle.remove()

    assert sorted(modules) == sorted(meta["features"])
    for name, feature in meta["features"].items():
        tap = taps[name].permute(0, 3, 1, 2) if feature["layout"] == "NCHW" else taps[name]
        tap = tap.flatten(1, -2) if len(feature["shape"]) == 3 else tap  # a map here, where it is tokens there
        assert list(tap.shape) == feature["shape"]
        expected = tensors[f"feat.{name}"]
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            summary(tap), expected, atol=atol * scale, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(logits, tensors["logits"], atol=atol, rtol=0)
