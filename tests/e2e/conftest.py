"""Fixtures: one daemon for the session, the SDK's client, and a check that nothing is left behind."""

import os
import sys

import openai
import pytest

sys.path.insert(0, os.path.dirname(__file__))
from daemon import Daemon  # noqa: E402


@pytest.fixture(scope="session")
def daemon():
    d = Daemon("--max-batch", "8", "--max-prompts", "64", "--max-choices", "64")
    yield d
    code = d.stop()
    assert code == 0, d.output()
    assert "ERROR: AddressSanitizer" not in d.output()
    assert "LeakSanitizer" not in d.output()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request):
    """Gauges return to zero after every test that used the shared daemon."""
    yield
    if "daemon" in request.fixturenames:
        request.getfixturevalue("daemon").wait_idle()


@pytest.fixture(scope="session")
def model(daemon):
    import json
    return json.loads(daemon.get("/v1/models")[2])["data"][0]["id"]


@pytest.fixture(scope="session")
def client(daemon):
    return openai.OpenAI(base_url=daemon.url + "/v1", api_key="none")
