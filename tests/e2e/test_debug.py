"""/debug/*: served where the config says so, and true."""

import json
import threading
import time

import pytest

from daemon import Daemon


@pytest.fixture(scope="module")
def debugged():
    d = Daemon("--debug-endpoints", "--plan", "uniform:0.5", "--kv-sweep-steps", "1",
               "--max-batch", "4", "--served-model-name", "m")
    yield d
    assert d.stop() == 0, d.output()


def debug(d, path):
    status, _, data = d.get(path)
    return status, json.loads(data)


def test_kv_is_empty_when_idle(debugged):
    debugged.wait_idle()
    status, kv = debug(debugged, "/debug/kv")
    assert status == 200 and kv["running"] == []
    assert kv["pages"]["free"] == kv["pages"]["total"] == debugged.gauge("spand_kv_pages")
    assert kv["sweep"] == {"ok": True, "free": kv["pages"]["total"], "held": 0, "shared": 0,
                           "named": 0}
    assert kv["page_bytes"] == debugged.gauge("spand_kv_page_bytes")


def test_kv_tells_cached_pages_from_free_ones():
    """A prompt of 200 tokens leaves three whole pages a head, which the next one that begins so
    shares with the cache."""
    d = Daemon("--debug-endpoints", "--kv-sweep-steps", "1", "--served-model-name", "m")
    body = {"model": "m", "prompt": [5 + i % 90 for i in range(200)], "max_tokens": 4,
            "ignore_eos": True}
    try:
        for _ in range(2):
            assert d.post("/v1/completions", body)[0] == 200
            d.wait_idle()
            states = {s: d.metrics()[f'spand_kv_pages_by_state{{model_name="m",state="{s}"}}']
                      for s in ("free", "cached", "prefill", "decode", "shared")}
            assert sum(states.values()) == d.gauge("spand_kv_pages")
            assert states["cached"] == 3 * 32 and states["shared"] == states["decode"] == 0
            assert debug(d, "/debug/kv")[1]["sweep"]["ok"]
    finally:
        assert d.stop() == 0


def test_kv_shows_a_running_request_page_by_page(debugged):
    """Half of 1200 tokens is a span of 640, ten pages in each of 8 layers of 4 heads."""
    n_prompt = len(debugged.post("/tokenize", {"model": "m", "prompt": "The history"})[1]["tokens"])
    body = {"model": "m", "prompt": "The history", "max_tokens": 1200 - n_prompt,
            "ignore_eos": True}
    client = threading.Thread(target=debugged.post, args=("/v1/completions", body),
                              kwargs={"timeout": 600})  # sanitizers are slow
    client.start()
    while debugged.gauge("spand_kv_pages_used") == 0:  # the figures are those of the last step
        time.sleep(0.01)
    status, kv = debug(debugged, "/debug/kv")
    assert kv["sweep"]["ok"] and kv["sweep"]["held"] == 320
    assert kv["pages"]["fixed"] == 320 and kv["pages"]["prefill"] + kv["pages"]["decode"] == 320
    running = kv["running"][0]
    assert running["limit"] == 1200 and running["fixed"] and running["pages"] == 320
    status, slot = debug(debugged, f"/debug/kv/{running['slot']}")
    assert status == 200 and len(slot["heads"]) == 32
    pages = [p for head in slot["heads"] for p in head["pages"]]
    assert len(set(pages)) == len(pages) == 320
    assert all(head["sink"] == 64 and head["ring"] == 576 and head["mask"] == "block"
               for head in slot["heads"])
    metrics = debugged.metrics()
    by_state = {k: v for k, v in metrics.items() if k.startswith("spand_kv_pages_by_state")}
    assert sum(by_state.values()) == debugged.gauge("spand_kv_pages")
    assert debugged.gauge("spand_kv_pages_fixed") == 320
    client.join()
    debugged.wait_idle()


@pytest.mark.parametrize("path", ["/debug/kv/0", "/debug/kv/4", "/debug/kv/-1", "/debug/kv/x",
                                  "/debug/kv/99999999999999999999"])
def test_an_empty_slot_is_not_found(debugged, path):
    debugged.wait_idle()
    status, answer = debug(debugged, path)
    assert status == 404 and "slot" in answer["error"]["message"]


def test_plan_shows_every_head(debugged):
    status, plan = debug(debugged, "/debug/plan")
    assert status == 200 and plan["kind"] == "uniform" and plan["n"] == 8192
    assert plan["density_kv"] == 0.5 and plan["length"] == "request"
    assert plan["rules"] == [[[0, 0.5]] * 8] * 8
    assert plan["tokens_kv_heads"] == [[4096] * 4] * 8
    status, plan = debug(debugged, "/debug/plan/1000")
    assert status == 200 and plan["tokens_query_heads"] == [[512] * 8] * 8
    for path in ("/debug/plan/8193", "/debug/plan/x", "/debug/plan/-5"):
        assert debug(debugged, path)[0] == 404


def test_models_say_which_plan_runs(debugged):
    meta = json.loads(debugged.get("/v1/models")[2])["data"][0]["meta"]
    assert meta["plan"] == "uniform:0.5"
    assert meta["spans"]["kind"] == "uniform" and meta["spans"]["density_kv"] == 0.5
    assert meta["spans"]["span_includes_sink"] is True


def test_a_request_cannot_choose_its_plan(debugged):
    """Whatever it says: the field is not OpenAI's, and the spans stay those of the config."""
    debugged.post("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 2, "plan": "dense"})
    assert json.loads(debugged.get("/v1/models")[2])["data"][0]["meta"]["plan"] == "uniform:0.5"


def test_a_request_over_the_pool_is_refused_with_the_numbers():
    """1 MiB is 64 pages of 16 KiB, two for each of 32 heads: a half of 257 tokens, rounded down."""
    d = Daemon("--plan", "uniform:0.5", "--kv-memory", "1MiB", "--served-model-name", "m")
    try:
        status, answer = d.post("/v1/completions", {"model": "m", "prompt": [5] * 200,
                                                    "max_tokens": 57})
        assert status == 200 and answer["usage"]["total_tokens"] <= 257
        status, answer = d.post("/v1/completions", {"model": "m", "prompt": [5] * 200,
                                                    "max_tokens": 58, "ignore_eos": True})
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert answer["error"]["message"].startswith(
            "258 tokens take 96 pages of 16384 bytes, and the key-value pool has 64")
        d.wait_idle()
    finally:
        assert d.stop() == 0
