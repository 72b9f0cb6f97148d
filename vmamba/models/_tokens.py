"""What the token families share: patches, blocks at one resolution, and everything timm expects of a backbone."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import (
    calculate_drop_path_rates,
    get_device_dtype,
    global_pool_nlc,
    resample_abs_pos_embed,
    trunc_normal_,
)
from torch import Tensor, nn

from vmamba._timm import build_model_with_cfg, checkpoint, feature_take_indices, update_model_input_size

from ._checkpoint import AllOrNothing, read_pickles_safely

__all__ = ["TokenBackbone", "build_tokens", "drop_path_rates", "fit_pos_embed", "stack_paths"]

POOLS = ("", "token", "avg", "max", "avgmax")


def middle(tokens: int) -> int:
    """Place of the class token among ``tokens`` tokens, itself counted: after the first half of the patches."""
    return (tokens - 1) // 2


def resample_pos_embed(
        pos_embed: Tensor, new_size: tuple[int, int], old_size: tuple[int, int], class_token: bool,
) -> Tensor:
    """Resize a position embedding to another grid of patches; a class token's stays in the middle.

    Bicubic without antialiasing, as in the code of the families' authors.

    Args:
        pos_embed: [1, tokens, C] for ``old_size``.
        new_size: Rows and columns.
        old_size: Rows and columns.
        class_token: Whether the middle one of the tokens is no patch.
    """
    new, old = [new_size[0], new_size[1]], [old_size[0], old_size[1]]
    if not class_token:
        return resample_abs_pos_embed(pos_embed, new, old, num_prefix_tokens=0, antialias=False)
    i = middle(pos_embed.shape[1])
    patches = torch.cat([pos_embed[:, :i], pos_embed[:, i + 1:]], dim=1)
    patches = resample_abs_pos_embed(patches, new, old, num_prefix_tokens=0, antialias=False)
    j = (new_size[0] * new_size[1]) // 2
    return torch.cat([patches[:, :j], pos_embed[:, i:i + 1], patches[:, j:]], dim=1)


class TokenBackbone(AllOrNothing):
    """Patches, position embedding, a class token in the middle or none, blocks, norm, pooling and classifier.

    The position embedding is resized to the grid of the images at hand, so any size of at least one patch works.
    A family adds the constructor that builds its patches, blocks and norm.

    Args:
        patch_embed: Images [B, in_chans, H, W] to patches [B, rows, columns, C], with ``grid_size`` and ``stride``.
        blocks: Blocks on tokens, called with them and rows and columns of the grid; [B, L, C] both ways.
        norm: Norm after the last block.
        embed_dim: Channels C.
        class_token: Put a class token in the middle of the sequence.
        img_size: Side, or (height, width), of the images that the position embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "token" (the class token), "avg", "max" or "avgmax" of the patches, or "" for none.
        drop_rate: Dropout before the classifier.
        decay_ssm: Apply weight decay to ``A_log``.
        wide_stream: Keep the sum of the blocks' outputs in float32 where weights and activations are narrower.

    Raises:
        ValueError: ``global_pool`` is none of these, or "token" without a class token.
    """

    def __init__(
            self, patch_embed: Any, blocks: Sequence[nn.Module], norm: nn.Module, embed_dim: int,
            class_token: bool, img_size: int | tuple[int, int], in_chans: int, num_classes: int, global_pool: str,
            drop_rate: float, decay_ssm: bool, wide_stream: bool = False, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.grad_checkpointing, self.decay_ssm, self.wide_stream = False, decay_ssm, wide_stream
        self.patch_embed = patch_embed
        self.grid_size: tuple[int, int] = self._grid_of(img_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if class_token else None
        self.global_pool = self._checked_pool(global_pool)
        tokens = self.grid_size[0] * self.grid_size[1] + int(class_token)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, embed_dim, **dd))
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.fc_norm: nn.Module = nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_embed.stride, "module": f"blocks.{i}"}
            for i in range(len(blocks))]
        self.init_weights(needs_reset=False)

    def _grid_of(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        return self.patch_embed.grid_size(height, width)

    @torch.jit.ignore
    def _checked_pool(self, global_pool: str) -> str:
        if global_pool not in POOLS:
            raise ValueError(f"global_pool is {global_pool!r}, but needs one of {', '.join(map(repr, POOLS))}")
        if global_pool == "token" and self.cls_token is None:
            raise ValueError("global_pool is 'token', but this model has no class token; use 'avg'")
        return global_pool

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise: embeddings and classifier truncated normal, output projections smaller the deeper the model is.

        Everything else as its module resets itself.

        Args:
            needs_reset: Also reset the other modules, e.g. after ``to_empty()``.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if needs_reset and callable(reset):
                reset()
        for embedding in (self.pos_embed, self.cls_token):
            if embedding is not None:
                trunc_normal_(embedding, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(".out_proj"):  # Radford et al. 2019 (GPT-2), section 2.3
                with torch.no_grad():
                    module.weight.div_(len(self.blocks) ** 0.5)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Embeddings, and the authors' vectors, which are stacked here so that timm's rule does not see them."""
        vectors = ("pos_embed", "cls_token", ".D", ".dt_bias", ".conv_bias", ".direction_B")
        exempt = vectors if self.decay_ssm else (*vectors, ".A_log")
        return {name for name, _ in self.named_parameters() if name.endswith(exempt)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        dd = get_device_dtype(self)
        self.head = nn.Linear(self.embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make the position embedding one for images of another size, by resampling it."""
        grid = self._grid_of(img_size)
        resized = resample_pos_embed(self.pos_embed.detach(), grid, self.grid_size, self.cls_token is not None)
        self.pos_embed = nn.Parameter(resized.clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid
        update_model_input_size(self, img_size)

    def embed(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Images [B, in_chans, H, W] -> tokens [B, L, C] with positions, the class token in their middle; the grid."""
        x = self.patch_embed(x)
        B, H, W, _ = x.shape
        pos_embed = resample_pos_embed(self.pos_embed, (H, W), self.grid_size, self.cls_token is not None)
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            i = (H * W) // 2
            x = torch.cat([x[:, :i], self.cls_token.expand(B, -1, -1).to(x.dtype), x[:, i:]], dim=1)
        if self.wide_stream:  # by type promotion, because a traced graph cannot ask for a dtype
            pos_embed = pos_embed + pos_embed.new_zeros(1, dtype=torch.float32)
        return x + pos_embed, H, W

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            return_prefix_tokens: bool = False,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = "NCHW",
            intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Feature maps after blocks.

        Args:
            x: Images [B, in_chans, H, W].
            indices: Last n blocks if int, all if None, those listed otherwise.
            return_prefix_tokens: Give pairs of a map and the class token [B, 1, C] where the model has one.
            norm: Apply the final norm to every map.
            stop_early: Do not run blocks after the last one asked for.
            output_fmt: "NCHW" (contiguous) or "NLC", without the class token.
            intermediates_only: Return only the list of maps.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, but needs 'NCHW' or 'NLC'")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x, height, width = self.embed(x)
        intermediates: list[Any] = []
        for i, block in enumerate(self.blocks[:max_index + 1] if stop_early else self.blocks):
            x = self.apply_block(block, x, height, width)
            if i in take_indices:
                y = self.norm(x) if norm else x.to(self.pos_embed.dtype)  # the stream may be wider
                y, token = self._split(y)
                if output_fmt == "NCHW":
                    y = y.transpose(1, 2).unflatten(2, (height, width)).contiguous()
                intermediates.append((y, token) if return_prefix_tokens and token is not None else y)
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def apply_block(self, block: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        """One block outside of traced graphs; a family whose blocks take more adds it."""
        return checkpoint(block, x, *rest) if self.grad_checkpointing else block(x, *rest)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, C] -> patches and the class token [B, 1, C], None without one."""
        if self.cls_token is None:
            return x, None
        i = middle(x.shape[1])
        return torch.cat([x[:, :i], x[:, i + 1:]], dim=1), x[:, i:i + 1]

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Drop what the asked-for feature maps do not need; returns the kept indices."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[:max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> normalised tokens [B, L, C], the class token in their middle."""
        x, height, width = self.embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, height, width)
            else:
                x = block(x, height, width)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, L, C] -> logits [B, num_classes]."""
        if self.global_pool == "token":
            x = x[:, (x.shape[1] - 1) // 2]
        elif self.global_pool != "":
            patches, _ = self._split(x)
            x = global_pool_nlc(patches, pool_type=self.global_pool, num_prefix_tokens=0)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth of the blocks, rising linearly from 0 to ``rate``."""
    return cast("list[float]", calculate_drop_path_rates(rate, depth))


def fit_pos_embed(state: dict[str, Tensor], model: TokenBackbone) -> dict[str, Tensor]:
    """``state`` with its position embedding resized to the grid of ``model``, for a ``checkpoint_filter_fn``."""
    pos_embed = state.get("pos_embed")
    if pos_embed is None or pos_embed.shape == model.pos_embed.shape or pos_embed.ndim != 3:
        return state
    class_token = model.cls_token is not None
    side = int((pos_embed.shape[1] - int(class_token)) ** 0.5)
    if side * side + int(class_token) != pos_embed.shape[1]:
        return state  # from no square grid: refused with the other misfits
    return {**state, "pos_embed": resample_pos_embed(pos_embed, model.grid_size, (side, side), class_token)}


def stack_paths(state: Mapping[str, Tensor], stacks: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Stack what the paths of a mixer have apart: official ``<mixer>.<one of names>`` to our ``<mixer>.<stack>``.

    A depthwise convolution [D, 1, taps] loses its channel axis. A stack of which one is missing stays apart, to be
    refused by name.

    Args:
        state: Official parameters.
        stacks: The stack's name, and the official names of its parts in the order of the paths.
    """
    state = dict(state)
    for mixer in sorted({k.partition(".mixer.")[0] for k in state if ".mixer." in k}):
        for stack, names in stacks.items():
            keys = [f"{mixer}.mixer.{name}" for name in names]
            if all(k in state for k in keys):
                parts = [state.pop(k) for k in keys]
                state[f"{mixer}.mixer.{stack}"] = torch.stack([p.squeeze(1) if p.ndim == 3 else p for p in parts])
    return state


def build_tokens(
        cls: type[TokenBackbone], variant: str, pretrained: bool, filter_fn: Callable, model_args: dict[str, Any],
        kwargs: dict[str, Any],
) -> Any:
    """timm's builder for a token family; ``features_only`` gives the maps of the last three blocks, as of a ViT."""
    return build_model_with_cfg(
        cls, variant, pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **read_pickles_safely({**model_args, **kwargs}),
    )
