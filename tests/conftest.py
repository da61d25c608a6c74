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
def own_cache(tmp_path_factory):
    """What `tree=auto` learns stays away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_plots(monkeypatch):
    """Reports are saved without their plots, which take two seconds each time and have tests of their own."""
    monkeypatch.setattr("mmspec.evaluation.reporting.save_plots", lambda rows, folder: [])
