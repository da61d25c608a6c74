"""Set up before torch is imported: one thread per test process, so that parallel workers do not fight for cores."""

import copy
import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("mmspec", deadline=None, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "60")))
settings.load_profile("mmspec")


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


@pytest.fixture
def no_plots(monkeypatch):
    """Reports are saved without their plots, which take two seconds each time and have tests of their own."""
    monkeypatch.setattr("mmspec.evaluation.reporting.save_plots", lambda rows, folder: [])
