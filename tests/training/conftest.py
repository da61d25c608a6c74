"""What the tests of training share."""

import pytest


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps its precision and its processes for as long as Python runs."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
