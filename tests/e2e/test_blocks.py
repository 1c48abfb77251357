"""Block Transformers over HTTP: the golden continuations, 8 unequal requests in flight."""

import json
import os
import random
import threading
import time

import pytest

from daemon import ROOT, Daemon, run

GOLDEN = os.path.join(ROOT, "tests", "golden", "block")
TOKENIZER = os.path.join(ROOT, "tests", "fixtures", "engine", "tiny", "tokenizer.json")


def make_dir(path, variant):
    """A golden folder and a tokenizer whose first ids are bytes."""
    for name in ("config.json", "model.safetensors"):
        os.symlink(os.path.realpath(os.path.join(GOLDEN, variant, name)), path / name)
    os.symlink(TOKENIZER, path / "tokenizer.json")
    with open(os.path.join(GOLDEN, variant, "golden.json")) as f:
        return str(path), json.load(f)


@pytest.fixture(scope="module", params=["neox_concat", "neox_leftpad", "llama_project"])
def served(request, tmp_path_factory):
    path, golden = make_dir(tmp_path_factory.mktemp(request.param), request.param)
    daemon = Daemon("--max-batch", "8", "--dtype", "f32", "--device", "cpu", "--threads", "1",
                    model=path)
    with open(os.path.join(path, "config.json")) as f:
        daemon.config = json.load(f)
    yield daemon, golden
    daemon.wait_idle()
    assert daemon.stop() == 0, daemon.output()


def complete(daemon, prompt, **fields):
    return daemon.post("/v1/completions", {
        "model": daemon_model(daemon), "prompt": prompt, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, **fields})


def daemon_model(daemon):
    return json.loads(daemon.get("/v1/models")[2])["data"][0]["id"]


def check(daemon, entry, n, results, fields):
    prompt = entry["prompt"] or ""
    status, answer = complete(daemon, prompt, max_tokens=n, **fields)
    results.append((status, answer, entry, n))


def test_unequal_requests_in_flight(served):
    """Eleven clients over eight seats, some of whom come while others are in the middle."""
    daemon, golden = served
    results, threads = [], []
    for i, entry in enumerate(golden["greedy"]):
        threads.append(threading.Thread(target=check, args=(
            daemon, entry, 64 - 5 * i, results, {})))
        threads[-1].start()
        if i in (3, 7):
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert len(results) == 11
    for status, answer, entry, n in results:
        assert status == 200, answer
        choice = answer["choices"][0]
        assert choice["token_ids"] == entry["continuation"][:n]
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["prompt_tokens"] == len(entry["prompt"])
        assert answer["usage"]["completion_tokens"] == n


def test_end_inside_of_a_block(served):
    """A stop token at any place: what lies behind it in its block never shows."""
    daemon, golden = served
    for entry in golden["greedy"]:
        for at in (1, 2, 5):
            token = entry["continuation"][at]
            first = entry["continuation"].index(token)
            status, answer = complete(daemon, entry["prompt"] or "", max_tokens=30,
                                      stop_token_ids=[token])
            assert status == 200, answer
            choice = answer["choices"][0]
            assert choice["finish_reason"] == "stop"
            assert choice["token_ids"][:first] == entry["continuation"][:first]
            assert answer["usage"]["completion_tokens"] == first + 1


def test_stop_string_inside_of_a_block(served):
    """Ids below 95 are the printable bytes: what stands before the stop string is all that shows."""
    daemon, golden = served
    entry = golden["greedy"][-1]
    whole = complete(daemon, entry["prompt"], max_tokens=40)[1]["choices"][0]["text"]
    for at in range(1, 12):
        stop = whole[at:at + 2]
        status, answer = complete(daemon, entry["prompt"], max_tokens=40, stop=[stop])
        assert status == 200, answer
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == whole[:whole.index(stop)]


def test_streams_what_it_answers(served):
    daemon, golden = served
    entry = golden["greedy"][6]
    events = daemon.events("/v1/completions", {
        "model": daemon_model(daemon), "prompt": entry["prompt"], "temperature": 0,
        "ignore_eos": True, "return_token_ids": True, "max_tokens": 23, "stream": True})
    ids = [i for e in events[:-1] for c in e["choices"] for i in c.get("token_ids") or []]
    assert ids == entry["continuation"][:23]


def test_echo_with_logprobs(served):
    daemon, golden = served
    entry = golden["greedy"][-1]
    status, answer = complete(daemon, entry["prompt"], max_tokens=3, echo=True, logprobs=1)
    assert status == 200, answer
    logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert len(logprobs) == len(entry["prompt"]) + 3
    assert all(value is not None and value <= 0 for value in logprobs[8:])


def test_pages_are_told_in_tokens(served):
    """What an endpoint picker reads: 64 blocks of four tokens a page."""
    daemon, _ = served
    info = [k for k in daemon.metrics() if k.startswith("vllm:cache_config_info")]
    assert len(info) == 1 and 'block_size="256"' in info[0]


def test_seeds_repeat(served):
    daemon, golden = served
    prompt = golden["greedy"][5]["prompt"]
    answers = [complete(daemon, prompt, max_tokens=25, temperature=1.2, seed=seed)[1]
               for seed in (1, 2, 1)]
    ids = [a["choices"][0]["token_ids"] for a in answers]
    assert ids[0] == ids[2] != ids[1]


def test_context_is_counted_in_tokens(served):
    daemon, _ = served
    status, answer = complete(daemon, list(range(60)) * 4, max_tokens=16)
    assert status == 200 and answer["usage"]["completion_tokens"] == 16
    status, answer = complete(daemon, list(range(60)) * 4, max_tokens=17)
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"


def lead_of(daemon, n):
    """Tokens in front of a prompt of n, by its model's configuration."""
    if daemon.config["alignment"] == "left_pad":
        return -n % 4
    return 4 if daemon.config["start_block"] or n < 4 else 0


def cached_tokens(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def found_tokens(daemon):
    return daemon.gauge("spand_prefix_tokens_found_total")


def shared(daemon, n, n_same):
    """Of a prompt of n tokens, those in whole blocks of which n_same are known and one is computed."""
    lead = lead_of(daemon, n)
    return max(0, min((lead + n_same) // 4, (lead + n) // 4 - 1) * 4 - lead)


def test_prompts_share_blocks(served):
    """What was computed before comes from the cache, by blocks of four, and changes no answer."""
    daemon, _ = served
    rng = random.Random(7)
    ids = [rng.randrange(10, 60) for _ in range(130)]
    fields = {"max_tokens": 9, "logprobs": 2}
    before = found_tokens(daemon)
    first = complete(daemon, ids, **fields)[1]
    again = complete(daemon, ids, **fields)[1]
    salted = complete(daemon, ids, cache_salt="mine", **fields)[1]
    assert (cached_tokens(first), cached_tokens(salted)) == (0, 0)
    assert cached_tokens(again) == shared(daemon, 130, 130) > 120
    assert first["choices"] == again["choices"] == salted["choices"]
    # Another end, at each place of a block; equal lengths, so that pads are equal too.
    for n_same in (85, 86, 87, 88):
        other = complete(daemon, ids[:n_same] + [1] + ids[n_same + 1:], **fields)[1]
        assert cached_tokens(other) == shared(daemon, 130, n_same)
        again = complete(daemon, ids[:n_same] + [1] + ids[n_same + 1:], cache_salt=str(n_same),
                         **fields)[1]
        assert cached_tokens(again) == 0 and other["choices"] == again["choices"]
    daemon.wait_idle()
    assert found_tokens(daemon) - before == \
        shared(daemon, 130, 130) + sum(shared(daemon, 130, n) for n in range(85, 89))


def test_samples_and_turns_share_blocks(served):
    """Samples share all but the last block; a conversation what it had as prompts."""
    daemon, _ = served
    rng = random.Random(8)
    ids = [rng.randrange(10, 60) for _ in range(101)]
    before = found_tokens(daemon)
    answer = complete(daemon, ids, n=3, max_tokens=5, temperature=1, seed=3)[1]
    assert cached_tokens(answer) == 0  # the prompt counts once, and so does what it found
    daemon.wait_idle()
    assert found_tokens(daemon) - before == 2 * shared(daemon, 101, 101)
    known = 101
    for turn in range(3):
        ids = ids + answer["choices"][0]["token_ids"] + [11 + turn] * 3  # 8 tokens: pads stay
        answer = complete(daemon, ids, max_tokens=5)[1]
        assert cached_tokens(answer) == shared(daemon, len(ids), known)
        known = len(ids)


@pytest.mark.skipif("E2E_OTHER_DEVICE" not in os.environ, reason="names the other device, cuda")
@pytest.mark.parametrize("model", ["demo-block", "demo-llama"])
def test_another_device_gives_the_same_tokens(model):
    """Greedy in f32: one by one on the CPU, and a crowd of unequal requests on the other device."""
    path = os.path.join(ROOT, "models", model)
    prompts = [list(range(3, 3 + n)) for n in (1, 2, 3, 4, 5, 7, 8, 21, 60, 200)] * 2
    answers = []
    for device, seats in (("cpu", 1), (os.environ["E2E_OTHER_DEVICE"], 8)):
        daemon = Daemon("--max-batch", str(seats), "--dtype", "f32", "--device", device, model=path)
        results = [None] * len(prompts)

        def ask(i):
            results[i] = complete(daemon, prompts[i], max_tokens=64 - 3 * i)[1]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
            if seats == 1:
                thread.join()
        for thread in threads:
            thread.join()
        assert daemon.stop() == 0, daemon.output()
        answers.append([r["choices"][0]["token_ids"] for r in results])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("shape, params, per_token", [
    ("block-33m", 33846272, 768), ("block-170m", 173164032, 4608),
    ("block-420m", 420313088, 12288), ("block-1.4b", 1448800256, 24576)])
def test_inspect_counts_as_the_paper(shape, params, per_token):
    """Parameters of the paper's table 3; keys and values by its section 2.3."""
    done = run("inspect", "--json", "--model", os.path.join(ROOT, "tests", "fixtures", "shapes", shape),
               "--tokens", "2176", "--page-entries", "16")
    found = json.loads(done.stdout)
    assert found["params"] == params
    assert found["kv_bytes_per_token"] == per_token
    assert found["kv_bytes_per_seq"] == per_token * 2176  # 544 blocks, 34 pages a head


@pytest.mark.parametrize("name, other", [
    ("token_decoder.expansion_layer.bias", "token_decoder.expansion_layer.base"),
    ("embedder.embeddings.weight", "embedder.embedding_.weight"),
    ("block_decoder.gpt_neox.layers.1.mlp.dense_4h_to_h.weight",
     "block_decoder.gpt_neox.layers.9.mlp.dense_4h_to_h.weight"),
])
def test_missing_parts_are_named(tmp_path, name, other):
    make_dir(tmp_path, "neox_concat")
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert weights.count(f'"{name}"'.encode()) == 1 and len(name) == len(other)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").write_bytes(
        weights.replace(f'"{name}"'.encode(), f'"{other}"'.encode()))
    result = run("generate", "--model", str(tmp_path), "--prompt", "a", "--max-tokens", "1",
                 "--device", "cpu")
    assert result.returncode != 0
    assert f"tensor {name}: missing" in result.stderr.decode()


@pytest.mark.parametrize("change, words", [
    ({"block_length": 5}, "5 tokens of hidden_size 4 side by side are 20 wide"),
    ({"block_length": 9}, "block_length is 9"),
    ({"vocab_size": 60}, "tensor embedder.embeddings.weight: shape [64,4], want [60,4]"),
    ({"n_prefix": 3}, "token_decoder.expansion_layer.weight: shape [32,16,1], want [48,16,1]"),
    ({"token_decoder": None}, "token_decoder is missing"),
    ({"token_decoder": {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 63}},
     "token_decoder: vocab_size is 63, the embedder's is 64"),
    ({"token_decoder": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "intermediate_size": 24}},
     "layers of different kinds"),
    ({"alignment": "right"}, "alignment is right, want left or left_pad"),
])
def test_another_shape_is_refused_with_words(tmp_path, change, words):
    make_dir(tmp_path, "neox_concat")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    result = run("generate", "--model", str(tmp_path), "--prompt", "a", "--max-tokens", "1",
                 "--device", "cpu")
    assert result.returncode != 0
    assert words in result.stderr.decode()
