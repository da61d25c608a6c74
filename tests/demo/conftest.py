"""A desk with the embedded model, shared by all tests of the demo, and questions to it."""

from __future__ import annotations

import pytest

from mmspec import zoo
from mmspec.demo.choices import Choices
from mmspec.demo.session import Desk, PageQuestion


@pytest.fixture(scope="session")
def desk() -> Desk:
    return Desk(Choices())


@pytest.fixture(scope="session")
def picture_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    zoo.demo_image().save(path)
    return path


@pytest.fixture
def ask(desk, picture_path):
    """`ask(tree="chain", max_new_tokens=8)`: a session at the desk, with what the page begins with for all else."""

    def session(at: Desk = desk, image=picture_path, prompt="Describe the picture.", **values):
        chosen = {name: values.pop(name, group.start) for name, group in at.choices.groups.items()}
        image = None if image is None else str(image)
        return at.ask(PageQuestion(prompt, image, chosen, **{"max_new_tokens": 12} | values))

    return session
