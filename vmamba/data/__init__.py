"""Image datasets and loaders for the training tools: three bundled real datasets, and everything timm reads."""
from .bundled import BUNDLED, BundledDataset
from .datasets import class_names, create_dataset, dataset_errors, share_out
from .loaders import create_eval_loader, create_train_loader

__all__ = [
    "BUNDLED",
    "BundledDataset",
    "class_names",
    "create_dataset",
    "create_eval_loader",
    "create_train_loader",
    "dataset_errors",
    "share_out",
]
