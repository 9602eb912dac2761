"""Fixtures of the task tests."""

from __future__ import annotations

import copy

import pytest

from tcl.models.tcl import TCL


@pytest.fixture
def fresh_model(tiny_model: TCL) -> TCL:
    """A tiny model to build on."""
    return copy.deepcopy(tiny_model)
