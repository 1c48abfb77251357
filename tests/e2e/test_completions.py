"""Fields of /v1/completions that change which tokens come, or which answers are given."""

import json
import random

import pytest

PROMPT = "The history of"


def complete(daemon, model, **fields):
    status, answer = daemon.post("/v1/completions", {
        "model": model, "prompt": PROMPT, "max_tokens": 12, "seed": 3, **fields})
    assert status == 200, answer
    return answer


def mean_logprob(choice):
    values = choice["logprobs"]["token_logprobs"]
    return sum(values) / len(values)


def test_best_of_gives_the_likeliest_of_the_samples(daemon, model):
    args = dict(logprobs=0, temperature=1.3, prompt=[PROMPT, "Once"])
    every = complete(daemon, model, n=5, **args)
    best = complete(daemon, model, n=2, best_of=5, **args)
    assert [c["index"] for c in best["choices"]] == [0, 1, 2, 3]
    for prompt in range(2):
        ranked = sorted(every["choices"][5 * prompt:5 * prompt + 5], key=mean_logprob, reverse=True)
        got = best["choices"][2 * prompt:2 * prompt + 2]
        assert [c["text"] for c in got] == [c["text"] for c in ranked[:2]]
        assert [c["logprobs"] for c in got] == [c["logprobs"] for c in ranked[:2]]
    assert best["usage"] == every["usage"]


def test_best_of_without_logprobs_shows_none(daemon, model):
    answer = complete(daemon, model, best_of=3)
    assert len(answer["choices"]) == 1
    assert answer["choices"][0]["logprobs"] is None


def test_allowed_token_ids_are_the_only_ones(daemon, model):
    answer = complete(daemon, model, allowed_token_ids=[40, 41, 50], temperature=2,
                      return_token_ids=True, max_tokens=40)
    assert set(answer["choices"][0]["token_ids"]) <= {40, 41, 50}
    assert len(answer["choices"][0]["token_ids"]) == 40


def test_bad_words_never_come(daemon, model):
    plain = complete(daemon, model, temperature=0, max_tokens=30)["choices"][0]["text"]
    word = plain.split()[1]
    filtered = complete(daemon, model, temperature=0, max_tokens=30, bad_words=[word])
    assert word not in filtered["choices"][0]["text"].split()
    assert filtered["choices"][0]["text"] != plain


def test_nothing_left_to_draw_is_an_error(daemon, model):
    ids = []
    for word in ("the", " the"):
        ids += daemon.post("/tokenize", {
            "model": model, "prompt": word, "add_special_tokens": False})[1]["tokens"]
    assert len(ids) == 2
    status, answer = daemon.post("/v1/completions", {
        "model": model, "prompt": PROMPT, "allowed_token_ids": ids, "bad_words": ["the"]})
    assert status == 500
    assert "no token is left" in answer["error"]["message"]


@pytest.mark.parametrize("keep", [3, -1])
def test_truncate_prompt_tokens_keeps_the_end(daemon, model, keep):
    ids = daemon.post("/tokenize", {"model": model, "prompt": "word " * 9000})[1]["tokens"]
    most = json.loads(daemon.get("/v1/models")[2])["data"][0]["max_model_len"]
    answer = complete(daemon, model, prompt=ids, truncate_prompt_tokens=keep, max_tokens=2,
                      return_token_ids=True)
    n = keep if keep > 0 else most - 2
    assert answer["usage"]["prompt_tokens"] == n
    assert answer["choices"][0]["prompt_token_ids"] == ids[-n:]
    assert complete(daemon, model, truncate_prompt_tokens=1, echo=True, max_tokens=0)[
        "choices"][0]["text"] == " of"


def test_no_tokens_at_all(daemon, model):
    choice = complete(daemon, model, max_tokens=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


def test_priority_needs_the_scheduler_for_it(daemon, model):
    assert daemon.post("/v1/completions", {
        "model": model, "prompt": PROMPT, "priority": 5})[0] == 400
    assert complete(daemon, model, priority=0)


def cached_tokens(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_prompt_seen_before_is_not_computed_again(daemon, model):
    ids = [random.Random(5).randrange(100, 5000) for _ in range(200)]
    first = complete(daemon, model, prompt=ids, logprobs=2)
    again = complete(daemon, model, prompt=ids, logprobs=2)
    assert (cached_tokens(first), cached_tokens(again)) == (0, 192)
    assert again["choices"] == first["choices"]
    salted = complete(daemon, model, prompt=ids, logprobs=2, cache_salt="mine")
    assert cached_tokens(salted) == 0 and salted["choices"] == first["choices"]
    longer = complete(daemon, model, prompt=ids[:130] + [7] * 50, n=3)
    assert cached_tokens(longer) == 128
