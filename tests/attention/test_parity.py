"""Every mechanism and variant against its PyTorch reference, and its weights there and back."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from flaxattn.attention import ATTENTION
from tests.attention import contract, parity

MODULES = [
    importlib.import_module(f"tests.attention.{path.stem}")
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path != Path(__file__)
]
CASES = [case for module in MODULES for case in getattr(module, "CASES", [])]


@pytest.mark.parametrize(
    ("case", "shape", "dtype"),
    [
        pytest.param(
            case,
            shape,
            dtype,
            id=f"{case.rows[-1]}-{'x'.join(map(str, shape))}-{dtype}",
            marks=[pytest.mark.slow] if slow else [],
        )
        for case in CASES
        for dtype in parity.BOUNDS
        for shape, slow in case.shapes(dtype)
    ],
)
def test_matches_reference(case, shape, dtype, record_property):
    parity.check(record_property, case, shape, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rows[-1])
def test_weights_come_back_bit_for_bit(case):
    reference = case.reference()
    parity.randomise(reference, np.random.default_rng(0))  # torch leaves some as memory has it
    shape = (1, *case.on.maps[0], case.on.features)
    contract.check_round_trip(case.layer, reference, case.naming, shape)


def test_every_name_and_variant_has_its_row():
    compared = {parity.mechanism(row) for case in CASES for row in case.rows}
    for name, create in ATTENTION.items():
        for variant in (None, *getattr(create, "variants", ())):
            assert (name, variant) in compared
