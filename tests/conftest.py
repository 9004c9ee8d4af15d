"""Shared by all tests: few threads, skipping CUDA tests without a device, and the optional reference folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fairface_synth as ffs

settings.register_profile("default", deadline=None, max_examples=30)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data that only the project's own machines have."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder")
    return folder


@pytest.fixture(scope="session")
def world() -> ffs.models.demo.DemoWorld:
    return ffs.load_demo()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
