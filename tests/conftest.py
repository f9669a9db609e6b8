"""For all tests: what programs write by default, runs/ and cache/, stays out of the repository."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
