"""Which patches are masked, at every resolution of an encoder, and the loss on them."""
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["draw_visible", "from_patches", "masked_patch_loss", "normalised_patches", "to_patches", "visible_at"]


def draw_visible(batch: int, grid: tuple[int, int], ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Draws what each image keeps, as many cells of the grid in every image.

    Args:
        batch: Images B.
        grid: Rows and columns of the patches that are masked or not.
        ratio: Part of the cells that is masked, 0 to 1; at least one is, and one is not.
        generator: Of the CPU; None is torch's own.

    Returns:
        [B, rows, columns] bool on the CPU, True where visible.

    Raises:
        ValueError: The grid has a single cell.
    """
    cells = grid[0] * grid[1]
    if cells < 2:
        raise ValueError(f"the grid of patches is {grid[0]} x {grid[1]}, but masking needs at least two patches")
    visible = min(max(cells - round(ratio * cells), 1), cells - 1)
    place = torch.rand(batch, cells, generator=generator).argsort(1).argsort(1)
    return (place < visible).view(batch, *grid)


def visible_at(visible: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask at another resolution of the same image: ``[B, rows, columns] -> [B, *size]``.

    Finer maps repeat a cell, so all maps agree on what is masked (the "bottom-up" masks of MambaMIM, arXiv:2408.08070).

    Raises:
        ValueError: The size is no multiple of the mask's.
    """
    grid = visible.shape[1:]
    if any(new % old for new, old in zip(size, grid, strict=True)):
        raise ValueError(
            f"a mask of {grid[0]} x {grid[1]} patches has no counterpart on a map of {size[0]} x {size[1]}")
    return visible.repeat_interleave(size[0] // grid[0], 1).repeat_interleave(size[1] // grid[1], 2)


def to_patches(images: Tensor, size: int) -> Tensor:
    """Square patches of ``size`` pixels: ``[B, C, H, W] -> [B, H / size, W / size, C * size * size]``."""
    patches = F.pixel_unshuffle(images, size)
    return patches.permute(0, 2, 3, 1)


def from_patches(patches: Tensor, size: int) -> Tensor:
    """What :func:`to_patches` was given."""
    return F.pixel_shuffle(patches.permute(0, 3, 1, 2), size)


def normalised_patches(images: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches with mean 0 and variance 1 each, their means, and their standard deviations.

    The targets of MambaMIM, and of He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377,
    section 4.1: ``(x - mean) / sqrt(var + 1e-6)`` over the pixels and channels of a patch.

    Args:
        images: [B, C, H, W].
        size: Side of the patches in pixels.

    Returns:
        Patches [B, H / size, W / size, C * size * size]; means and deviations with 1 as last dimension.
    """
    patches = to_patches(images.float(), size)
    mean, deviation = patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation


def masked_patch_loss(predicted: Tensor, images: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error of each image over its masked patches, against normalised patches.

    Args:
        predicted: [B, C, H, W], in the normalised values of the patches.
        images: [B, C, H, W].
        visible: [B, rows, columns] bool; patches are the H / rows pixels that a cell covers.

    Returns:
        [B] float32.
    """
    size = images.shape[2] // visible.shape[1]
    target, _, _ = normalised_patches(images, size)
    error = (to_patches(predicted.float(), size) - target).square().mean(-1)
    masked = (~visible).float()
    return (error * masked).sum((1, 2)) / masked.sum((1, 2))
