"""Settings every test runs under: no network, fixed seeds, few threads, `gpu` tests only where there is a GPU."""

import os

# before anything imports huggingface_hub, which reads them once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# before anything imports matplotlib
os.environ.setdefault("MPLBACKEND", "Agg")

import random
import socket

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton, which timm causes

SEED = 42


def pytest_configure(config):
    # more threads than two gain nothing at test sizes, and oversubscribe the cores under `pytest -n`
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(1 if workers > 1 else min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _own_orders(monkeypatch):
    """Scan orders that a test registers are forgotten after it."""
    # not at the top: Triton is imported with it, and reads the variable set above
    from vmamba.scans import registry

    for name in ("_SCANS", "_ALIASES", "_NUMBERED"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Fail a test that reaches beyond this machine, naming the address; torch.distributed may use local sockets."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests must not use the network (connection to {address!r})")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
