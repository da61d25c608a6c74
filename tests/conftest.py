"""Set up before torch is imported: one thread per test process, so that parallel workers do not fight for cores."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("mmspec", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")))
settings.load_profile("mmspec")


@pytest.fixture(scope="session", autouse=True)
def no_measuring(tmp_path_factory):
    """`tree=auto` with costs of its own in place of measured ones: seconds are saved, and shapes are the same on every
    machine. Nothing reaches the user's cache. Tests of measuring itself ask for `measuring`."""
    from mmspec.speed import Costs, Curve, Line, calibration

    real = calibration.measure_costs

    def given(target, drafter, request, **_):
        rows = {"score": Curve((1, 33), (8e-3, 9e-3)), "first": Line(1e-3), "level": Line(6e-4, 3e-5)}
        return Costs(**rows, overhead=Line(7e-4, 1e-5), dynamic=Line(0.0, 1e-4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(calibration, "measure_costs", given)
        yield real


@pytest.fixture
def no_plots(monkeypatch):
    """Reports are saved without their plots, which take two seconds each time and have tests of their own."""
    monkeypatch.setattr("mmspec.evaluation.reporting.save_plots", lambda rows, folder: [])


@pytest.fixture
def measuring(no_measuring, monkeypatch, tmp_path):
    """`tree=auto` measures as users have it, and keeps the costs in a folder of the test, which is returned."""
    from mmspec.speed import calibration

    monkeypatch.setattr(calibration, "measure_costs", no_measuring)
    monkeypatch.setenv("MMSPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
