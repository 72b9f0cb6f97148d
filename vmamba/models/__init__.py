"""Model families; importing this package registers every model with timm."""
from . import (
    a2mamba,
    efficientvmamba,
    localvim,
    localvmamba,
    mambavision,
    mlla,
    msvmamba,
    plainmamba,
    res_vmamba,
    rsmamba,
    spatial_mamba,
    videomamba,
    vim,
    vim2,
    vmamba,
    vmamba_m2,
    vssd,
)

__all__ = [
    "a2mamba", "efficientvmamba", "localvim", "localvmamba", "mambavision", "mlla", "msvmamba", "plainmamba",
    "res_vmamba", "rsmamba", "spatial_mamba", "videomamba", "vim", "vim2", "vmamba", "vmamba_m2", "vssd"]
