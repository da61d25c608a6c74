"""What the tests of training share."""

import pytest
import tiny_training
from tiny_training import OPTIONS, SAMPLED, SOURCE

import mmspec
from mmspec.training import asking as module
from mmspec.training.distill import distill


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps its precision and its processes for as long as Python runs."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def target():
    """A small target that reads real prompts."""
    return tiny_training.target()


@pytest.fixture(scope="session")
def whole(target, tmp_path_factory):
    """Folders of distillations that nothing interrupted, to be copied and not changed."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("greedy", "sampled")}
    distill(target, SOURCE, folders["greedy"], **OPTIONS)
    distill(target, SOURCE, folders["sampled"], **SAMPLED)
    return folders


@pytest.fixture
def asked(monkeypatch):
    """A list that grows by the number of prompts with every call of a distillation's target."""
    calls = []

    def counted(target, drafter, prompts, images, **options):
        calls.append(len(prompts))
        return mmspec.generate(target, drafter, prompts, images, **options)

    monkeypatch.setattr(module, "generate", counted)
    return calls
