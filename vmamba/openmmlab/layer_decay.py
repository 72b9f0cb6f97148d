"""Layer-wise learning-rate decay for backbones, as an optimizer constructor of mmengine."""
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn

from vmamba.errors import UserError

from .backbone import TimmFeatureBackbone

__all__ = ["TimmLayerDecayConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Learning rates that fall towards the input of a :class:`TimmFeatureBackbone`.

    A parameter of the backbone in layer i of n, as the model's ``group_matcher()`` counts them from the stem, gets
    ``decay_rate ** (n - i)`` of the learning rate; necks, heads and the norms of the maps get all of it (Bao et al.,
    BEiT, arXiv:2106.08254). Parameters that the model's ``no_weight_decay()`` names are not decayed.

    ``paramwise_cfg`` takes ``decay_rate``, in (0, 1], and everything that mmengine's default constructor takes::

        optim_wrapper = dict(
            constructor="TimmLayerDecayConstructor",
            paramwise_cfg=dict(decay_rate=0.9, norm_decay_mult=0.0), optimizer=..., type="OptimWrapper")

    Raises:
        UserError: No ``decay_rate`` or learning rate, or a model without such a backbone.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        self.decay_rate = float((paramwise_cfg or {}).get("decay_rate", 0.0))
        if not 0 < self.decay_rate <= 1:
            raise UserError("layer decay needs a decay_rate above 0, at most 1: paramwise_cfg=dict(decay_rate=0.9)")
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise UserError("layer decay needs a learning rate: optimizer=dict(type='AdamW', lr=1e-4)")
        self.top_lr = float(self.base_lr)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Append one parameter group for each parameter, with the learning rate of its layer."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # a part of the model, on the way through its tree
            return
        backbones = [m for m in module.modules() if isinstance(m, TimmFeatureBackbone)]
        if not backbones:
            raise UserError("layer decay needs a model with a backbone of type TimmFeatureBackbone")
        scales, exempt = _scales(backbones, self.decay_rate)
        for group in params:
            key = id(group["params"][0])
            if key in scales:
                group["lr"] = group.get("lr", self.top_lr) * scales[key]
            if key in exempt:
                group["weight_decay"] = 0.0


def _scales(backbones: list[TimmFeatureBackbone], decay_rate: float) -> tuple[dict[int, float], set[int]]:
    """Factor of the learning rate by id of the parameter, and the ids of those that are not decayed."""
    scales: dict[int, float] = {}
    exempt: set[int] = set()
    for backbone in backbones:
        model = backbone.model
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        count = max(layers.values()) + 1
        named = dict(model.named_parameters())
        scales |= {id(named[name]): decay_rate ** (count - layer) for name, layer in layers.items()}
        if hasattr(model, "no_weight_decay"):
            exempt |= {id(named[name]) for name in model.no_weight_decay() if name in named}
    return scales, exempt
