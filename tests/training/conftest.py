"""Fixtures of several files of tests."""

import pytest
from short_training import settings_for

import ssd.training.run as training
from ssd.data.shapes import write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, 7, 3)
    return str(folder)


@pytest.fixture
def settings(shapes):
    return settings_for(shapes)


@pytest.fixture
def at_step(monkeypatch):
    """Has something done just before a step of the run is taken."""
    step = training.train_step

    def does(number, action):
        calls = []

        def interrupted(*args):
            calls.append(1)
            if len(calls) == number:
                action()
            return step(*args)

        monkeypatch.setattr(training, "train_step", interrupted)

    return does
