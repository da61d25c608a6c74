"""Set up before torch is imported: one thread per test process, so that parallel workers do not fight for cores."""

import copy
import gc
import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("mmspec", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")))
settings.load_profile("mmspec")


def pytest_collection_finish():
    """What was imported and collected stays until the end; without it the garbage collector has little to look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What `tree=auto` learns stays away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """The embedded target is read from its files once for each precision and device; whoever loads it gets a copy."""
    from mmspec import loading

    real, read = loading._load, {}

    def load(name, source, kind, dtype, device, kwargs, *adapters):
        if name != loading.EMBEDDED_TARGET or kwargs or adapters:
            return real(name, source, kind, dtype, device, kwargs, *adapters)
        key = str(dtype), str(device)
        if key not in read:
            read[key] = real(name, source, kind, dtype, device, kwargs)
        return copy.deepcopy(read[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_load", load)
        yield


@pytest.fixture(autouse=True)
def known_costs(request, monkeypatch):
    """`tree=auto` believes in costs of ours, so that shapes are the same on every machine; `learns` leaves it as users
    have it."""
    if "learns" in request.fixturenames:
        return
    from mmspec.speed import AutoTree, Costs, Curve, Line
    from mmspec.speed.knowledge import Knowledge

    rows = {"score": Curve((1, 33), (8e-3, 9e-3)), "first": Line(1e-3), "level": Line(6e-4, 3e-5)}
    costs = Costs(**rows, plain_overhead=4e-4, overhead=Line(7e-4, 1e-5), dynamic=Line(0.0, 1e-4))

    def known(self, drafter):
        self._clock = None
        return Knowledge(self.costs or costs)

    monkeypatch.setattr(AutoTree, "_what_is_known", known)


@pytest.fixture
def learns():
    """`tree=auto` learns, as users have it."""


@pytest.fixture
def no_plots(monkeypatch):
    """Reports are saved without their plots, which take two seconds each time and have tests of their own."""
    monkeypatch.setattr("mmspec.evaluation.reporting.save_plots", lambda rows, folder: [])
