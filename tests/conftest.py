"""Shared by all tests: the same random numbers in every run, skipping CUDA tests without a device, reference data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fairface_synth as ffs

# A change is judged by the same examples as the one before it; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("default", deadline=None, max_examples=30, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=200)
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    torch.manual_seed(0)  # again: what a fixture drew does not depend on which test came first, nor does what follows


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
