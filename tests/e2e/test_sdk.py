"""The OpenAI Python SDK, unmodified, against the daemon."""

import openai
import pytest

PROMPT = "The history of the English language"


def test_models_list_and_retrieve(client, model):
    listed = client.models.list()
    assert [m.id for m in listed.data] == [model]
    assert client.models.retrieve(model).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_completion_has_the_required_fields(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == model
    choice = answer.choices[0]
    assert choice.index == 0 and choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_missing_max_tokens_is_16(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_stream_equals_no_stream(client, model):
    args = dict(model=model, prompt=PROMPT, max_tokens=40, temperature=0.9, seed=11)
    whole = client.completions.create(**args)
    parts, reasons = [], []
    for chunk in client.completions.create(**args, stream=True):
        assert chunk.object == "text_completion"
        parts.append(chunk.choices[0].text)
        reasons.append(chunk.choices[0].finish_reason)
    assert "".join(parts) == whole.choices[0].text
    assert [r for r in reasons if r] == [whole.choices[0].finish_reason]
    assert reasons[-1] is not None


def test_stream_usage_is_the_last_chunk(client, model):
    chunks = list(client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0,
                                            stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens > 0
    assert 0 < chunks[-1].usage.completion_tokens <= 6
    assert all(c.usage is None for c in chunks[:-1])


def test_seed_repeats_and_differs(client, model):
    def text(seed):
        return client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=1.0,
                                         seed=seed).choices[0].text
    assert text(5) == text(5)
    assert len({text(s) for s in range(4)}) > 1


def test_n_gives_distinct_indexed_choices(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, n=3, seed=3,
                                       temperature=1.0)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.text for c in answer.choices}) > 1


def test_batch_of_prompts_times_n(client, model):
    prompts = ["One day", "The sea", "A function"]
    answer = client.completions.create(model=model, prompt=prompts, n=2, max_tokens=4, echo=True,
                                       temperature=0)
    assert [c.index for c in answer.choices] == list(range(6))
    for choice in answer.choices:
        assert choice.text.startswith(prompts[choice.index // 2])


def test_token_prompts_equal_text_prompts(daemon, client, model):
    ids = daemon.post("/tokenize", {"model": model, "prompt": PROMPT})[1]["tokens"]
    args = dict(model=model, max_tokens=12, temperature=0)
    by_text = client.completions.create(prompt=PROMPT, **args).choices[0].text
    assert client.completions.create(prompt=ids, **args).choices[0].text == by_text
    both = client.completions.create(prompt=[ids, ids], **args)
    assert [c.text for c in both.choices] == [by_text, by_text]


def test_batch_gives_what_each_prompt_gives_alone(client, model):
    prompts = ["The cat", "In the beginning God created the heaven and the earth. And", "x"]
    args = dict(model=model, max_tokens=20, temperature=0)
    batch = client.completions.create(prompt=prompts, **args)
    for i, prompt in enumerate(prompts):
        assert batch.choices[i].text == client.completions.create(prompt=prompt, **args).choices[0].text


def test_stop_string_is_not_returned(client, model):
    args = dict(model=model, prompt=PROMPT, max_tokens=60, temperature=0)
    text = client.completions.create(**args).choices[0].text
    stop = text[10:14]
    cut = client.completions.create(**args, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == text[:text.index(stop)]
    streamed = "".join(c.choices[0].text
                       for c in client.completions.create(**args, stop=stop, stream=True))
    assert streamed == cut.text


def test_logprobs_lists_are_parallel(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0,
                                       logprobs=3)
    lp = answer.choices[0].logprobs
    n = answer.usage.completion_tokens
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == n
    for token, logprob, top in zip(lp.tokens, lp.token_logprobs, lp.top_logprobs):
        assert logprob <= 0
        assert top[token] == pytest.approx(logprob)
        assert max(top.values()) == pytest.approx(logprob)  # greedy takes the best
        assert 3 <= len(top) <= 4
    assert lp.text_offset[0] == 0


def test_echo_scores_the_prompt(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    lp = answer.choices[0].logprobs
    assert answer.choices[0].text == PROMPT
    assert len(lp.tokens) == answer.usage.prompt_tokens
    assert lp.token_logprobs[0] is None
    assert all(v < 0 for v in lp.token_logprobs[1:])
    assert answer.usage.completion_tokens == 0


def test_echo_logprobs_equal_generated_logprobs(client, model):
    """Scoring what was generated gives the logprobs that generation gave."""
    first = client.completions.create(model=model, prompt=PROMPT, max_tokens=10, temperature=0,
                                      logprobs=0, extra_body={"return_token_ids": True})
    ids = first.choices[0].prompt_token_ids + first.choices[0].token_ids
    scored = client.completions.create(model=model, prompt=ids, max_tokens=0, echo=True, logprobs=0)
    n = len(first.choices[0].token_ids)
    assert scored.choices[0].logprobs.token_logprobs[-n:] == pytest.approx(
        first.choices[0].logprobs.token_logprobs, abs=0.05)


def test_logit_bias_forces_a_token(daemon, client, model):
    token = daemon.post("/tokenize", {"model": model, "prompt": "zebra"})[1]["tokens"][-1]
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=3, temperature=0,
                                       logit_bias={str(token): 100},
                                       extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [token] * 3


def test_chat(client, model):
    args = dict(model=model, messages=[{"role": "user", "content": "What is a compiler?"}],
                max_tokens=20, temperature=0)
    answer = client.chat.completions.create(**args)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    parts = []
    chunks = list(client.chat.completions.create(**args, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    for chunk in chunks:
        parts.append(chunk.choices[0].delta.content or "")
    assert "".join(parts) == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1


def test_chat_logprob_bytes_spell_the_text(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say something."}], max_tokens=12,
        logprobs=True, top_logprobs=2, temperature=0)
    content = answer.choices[0].logprobs.content
    spelt = b"".join(bytes(t.bytes) for t in content)
    assert answer.choices[0].message.content.encode() in spelt
    assert all(len(t.top_logprobs) == 2 for t in content)


def test_special_tokens_in_user_text_stay_text(daemon, client, model):
    def tokens(text):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], max_tokens=1)
        return answer.usage.prompt_tokens
    assert tokens("<|end|>") > tokens("x") + 1


def test_errors_are_the_sdks_exceptions(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, temperature=2.5)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-17", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=10_000_000)
    assert caught.value.code == "context_length_exceeded"


def test_with_raw_response_headers(client, model):
    raw = client.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=1)
    assert raw.headers["x-request-id"]
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.parse().choices[0].finish_reason in ("length", "stop")


def test_retries_reach_a_daemon_that_comes_back(daemon, model):
    """The SDK's own retry: the first connection breaks off, the second is answered."""
    import socket
    import threading
    front = socket.create_server(("127.0.0.1", 0))
    n_seen = []

    def pump(source, sink):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def serve():
        front.accept()[0].close()
        n_seen.append(1)
        near, _ = front.accept()
        n_seen.append(1)
        far = socket.create_connection(("127.0.0.1", daemon.port))
        threading.Thread(target=pump, args=(near, far), daemon=True).start()
        pump(far, near)

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{front.getsockname()[1]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=2) as client:
        answer = client.completions.create(model=model, prompt="x", max_tokens=1)
    assert answer.usage.completion_tokens == 1 and len(n_seen) == 2
    front.close()


def test_overload_is_429_and_the_sdk_retries(model):
    """A full queue answers 429 with Retry-After; with retries every request gets through."""
    import concurrent.futures
    from daemon import Daemon
    d = Daemon("--max-batch", "1", "--max-waiting", "1")
    try:
        eager = openai.OpenAI(base_url=d.url + "/v1", api_key="none", max_retries=0)
        patient = openai.OpenAI(base_url=d.url + "/v1", api_key="none", max_retries=20)

        def ask(client):
            return client.completions.create(model=model, prompt="Once", max_tokens=64,
                                             extra_body={"ignore_eos": True})
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            results = []
            for future in [pool.submit(ask, eager) for _ in range(12)]:
                try:
                    results.append(future.result())
                except openai.RateLimitError as error:
                    assert 1 <= int(error.response.headers["retry-after"]) <= 60
                    results.append(error)
        refused = [r for r in results if isinstance(r, openai.RateLimitError)]
        assert refused and len(refused) < 12
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(ask, patient) for _ in range(4)]:
                assert future.result().usage.completion_tokens == 64
        d.wait_idle()
    finally:
        assert d.stop() == 0


def test_eight_streams_at_once_equal_one_at_a_time(client, model):
    import concurrent.futures
    prompts = [f"Chapter {i}. " + "word " * (7 * i) for i in range(8)]

    def ask(prompt):
        return client.completions.create(model=model, prompt=prompt, max_tokens=32, seed=1,
                                         temperature=0.8).choices[0].text
    alone = [ask(p) for p in prompts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, prompts)) == alone
