"""Every field of every request: fields.tsv against the parser's tables, and its ranges against the daemon.

fields.tsv has a line for each field and endpoint: its type or range, or "refused", and the tests that
hold what it does. Columns are separated by tabs, tests by spaces.
"""

import glob
import os
import re

import pytest

from daemon import ROOT

HERE = os.path.dirname(os.path.abspath(__file__))
APIS = {"API_COMPLETIONS": "completions", "API_CHAT": "chat", "API_EMBEDDINGS": "embeddings",
        "API_TOKENIZE": "tokenize", "API_DETOKENIZE": "detokenize"}
GROUPS = {"GEN": ["completions", "chat"], "MODEL": ["completions", "chat", "embeddings"], "~0u": list(APIS.values())}
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions", "embeddings": "/v1/embeddings",
         "tokenize": "/tokenize", "detokenize": "/detokenize"}
NUMBERS = {"MAX_INT": 2147483647, "ABOVE_0": 0, "MIN_REPEAT": 1e-5, "OPENAI_MAX_N": 128, "ENGINE_MAX_TOP": 20}


def number(text):
    text = text.strip()
    if text == "-MAX_INT - 1":
        return -2147483648
    return NUMBERS[text] if text in NUMBERS else float(text)


def scalar_range(kind, low, high):
    if kind == "FIELD_BOOL":
        return "boolean"
    if kind == "FIELD_INT64":
        return "integer, 64 bits"
    return (f"{'integer' if kind == 'FIELD_INT' else 'number'} {'above ' if low.strip() == 'ABOVE_0' else ''}"
            f"{number(low):.10g} to {number(high):.10g}")


def parser_tables():
    """{(field, endpoint): range} for scalars; "" for fields with a reader; "refused"."""
    with open(os.path.join(ROOT, "server", "openai_params.c")) as f:
        source = f.read()
    found = {}
    for table in ("fields", "readers", "refused"):
        body = re.search(table + r"\[\] = \{\n(.*?)\n\};", source, re.S).group(1)
        for name, apis, rest in re.findall(r'\{"(\w+)",\s*([A-Z_|\s]+|~0u),\s*([^}]*)\}', body):
            parts = [p for p in re.split(r",\s*(?![^()]*\))", rest)]
            value = "refused" if table == "refused" else ""
            if table == "fields":
                value = scalar_range(parts[0], parts[2], parts[3])
            for group in apis.split("|"):
                for api in GROUPS.get(group.strip()) or [APIS[group.strip()]]:
                    found[name, api] = value
    return found


def rows():
    with open(os.path.join(HERE, "fields.tsv")) as f:
        lines = [line.rstrip("\n").split("\t") for line in f if line.strip() and not line.startswith("#")]
    return {(name, api): (what, tests.split()) for name, api, what, tests in lines}


ROWS = rows()
SCALARS = [(name, api, what) for (name, api), (what, _) in ROWS.items()
           if re.match(r"(boolean|integer|number)\b", what) and parser_tables().get((name, api))]
REFUSED = [(name, api) for (name, api), (what, _) in ROWS.items() if what.startswith("refused")]


def test_every_field_has_its_line():
    tables = parser_tables()
    assert len(tables) > 90
    assert set(ROWS) == set(tables)
    for key, want in tables.items():
        got = ROWS[key][0]
        assert got.startswith("refused") if want == "refused" else got == want if want else got, (key, got, want)


def test_every_named_test_exists():
    names = set()
    for path in glob.glob(os.path.join(HERE, "test_*.py")):
        with open(path) as f:
            names |= {f"{os.path.basename(path)}::{name}" for name in re.findall(r"^def (test_\w+)", f.read(), re.M)}
    for path in glob.glob(os.path.join(ROOT, "tests", "*", "**", "*.c"), recursive=True):
        with open(path) as f:
            names |= set(re.findall(r"^START_TEST\((\w+)\)", f.read(), re.M))
    for key, (_, tests) in ROWS.items():
        assert tests, key
        for test in tests:
            assert test in names, (key, test)


def ask(daemon, model, api, **fields):
    body = {"model": model, "max_tokens": 1} if api in ("completions", "chat") else {}
    if api == "embeddings":
        body = {"model": model, "input": "x"}
    if api in ("completions", "tokenize"):
        body["prompt"] = "x"
    if api == "chat":
        body["messages"] = [{"role": "user", "content": "x"}]
    if api == "detokenize":
        body["tokens"] = [5]
    return daemon.post(PATHS[api], {**body, **fields})


def is_about(answer, name):
    return answer.get("error", {}).get("param") == name


@pytest.mark.parametrize("name, api, what", SCALARS, ids=lambda v: str(v).replace(" ", "-"))
def test_scalars_are_what_the_table_says(daemon, model, name, api, what):
    """null is the default; other types, and values one step beyond an end, are refused by name; the ends are not."""
    assert ask(daemon, model, api, **{name: None})[0] == 200
    wrong = ["1", [1], {}] + ([1, 0] if what == "boolean" else [True])
    if what.startswith("integer"):
        wrong.append(0.5)
    for value in wrong:
        status, answer = ask(daemon, model, api, **{name: value})
        assert status == 400 and is_about(answer, name), (value, answer)
    ends = re.match(r"(integer|number) (above )?(\S+) to (\S+)$", what)
    if not ends:
        return
    low, high = float(ends[3]), float(ends[4])
    step = 1 if ends[1] == "integer" else 0.001
    for value in ([low] if ends[2] else []) + [low - step, high + step]:
        status, answer = ask(daemon, model, api, **{name: int(value) if ends[1] == "integer" else value})
        assert status == 400 and is_about(answer, name), (value, answer)
        assert ends[4].split(".")[0] in answer["error"]["message"], answer
    for value in ([] if ends[2] else [low]) + [high]:
        status, answer = ask(daemon, model, api, **{name: int(value) if ends[1] == "integer" else value})
        # An end of a range may be too much beside other fields, but never by itself.
        assert status == 200 or not re.search(r"must be (an integer|a number)", answer["error"]["message"]), (value, answer)


@pytest.mark.parametrize("name, api", REFUSED, ids=lambda v: str(v))
def test_what_is_refused_is_named(daemon, model, name, api):
    """Nothing is asked for by null; what would change the answer is refused."""
    assert ask(daemon, model, api, **{name: None})[0] == 200
    for value in ("x", ["x"], {"x": 1}):
        status, answer = ask(daemon, model, api, **{name: value})
        assert status == 400 and is_about(answer, name), (value, answer)
        assert answer["error"]["code"] == "unsupported_parameter"


def test_max_completion_tokens_goes_before_max_tokens(daemon, model):
    status, answer = ask(daemon, model, "chat", max_completion_tokens=3, max_tokens=9, ignore_eos=True)
    assert status == 200 and answer["usage"]["completion_tokens"] == 3


def test_min_tokens_bans_the_end_until_then(daemon, model):
    stop = daemon.post("/tokenize", {"prompt": ".", "add_special_tokens": False})[1]["tokens"]
    short = ask(daemon, model, "completions", max_tokens=40, stop_token_ids=stop, logit_bias={str(stop[0]): 100}, temperature=0)[1]
    assert short["usage"]["completion_tokens"] == 1 and short["choices"][0]["stop_reason"] == stop[0]
    longer = ask(daemon, model, "completions", max_tokens=40, min_tokens=7, stop_token_ids=stop, logit_bias={str(stop[0]): 100},
                 temperature=0)[1]
    assert longer["usage"]["completion_tokens"] == 8


def test_include_stop_str_in_output_keeps_it(daemon, model):
    fields = dict(prompt="The history of the English language", max_tokens=30, temperature=0, ignore_eos=True)
    word = ask(daemon, model, "completions", **fields)[1]["choices"][0]["text"].split()[2]
    fields["stop"] = [word]
    without = ask(daemon, model, "completions", **fields)[1]["choices"][0]
    kept = ask(daemon, model, "completions", include_stop_str_in_output=True, **fields)[1]["choices"][0]
    assert kept["text"] == without["text"] + word and without["stop_reason"] == kept["stop_reason"] == word


def test_add_special_tokens_decides_about_the_first_token(daemon, model):
    ids = {flag: daemon.post("/tokenize", {"prompt": "x", "add_special_tokens": flag})[1]["tokens"] for flag in (True, False)}
    assert len(ids[True]) == len(ids[False]) + 1 and ids[True][1:] == ids[False]
    for flag in (True, False):
        answer = ask(daemon, model, "completions", add_special_tokens=flag, return_token_ids=True)[1]
        assert answer["choices"][0]["prompt_token_ids"] == ids[flag]
        assert ask(daemon, model, "embeddings", add_special_tokens=flag)[1]["usage"]["prompt_tokens"] == len(ids[flag])
    assert ask(daemon, model, "chat", add_special_tokens=True)[0] == 200


def test_add_generation_prompt_opens_the_answer(daemon, model):
    messages = [{"role": "user", "content": "x"}]
    ids = {flag: daemon.post("/tokenize", {"messages": messages, "add_generation_prompt": flag})[1]["tokens"]
           for flag in (True, False)}
    assert len(ids[True]) > len(ids[False]) and ids[True][:len(ids[False])] == ids[False]
    for flag in (True, False):
        answer = ask(daemon, model, "chat", add_generation_prompt=flag, return_token_ids=True)[1]
        assert answer["prompt_token_ids"] == ids[flag]


def test_return_tokens_as_token_ids_spells_numbers(daemon, model):
    answer = ask(daemon, model, "completions", logprobs=1, return_tokens_as_token_ids=True, return_token_ids=True)[1]
    choice = answer["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    answer = ask(daemon, model, "chat", logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)[1]
    assert all(t["token"].startswith("token_id:") for t in answer["choices"][0]["logprobs"]["content"])


def test_return_token_strs_spells_them(daemon, model):
    answer = daemon.post("/tokenize", {"prompt": "one two", "add_special_tokens": False, "return_token_strs": True})[1]
    assert "".join(answer["token_strs"]) == "one two" and len(answer["token_strs"]) == answer["count"]
    assert daemon.post("/tokenize", {"prompt": "one"})[1]["token_strs"] is None


def test_penalties_change_what_repeats(daemon, model):
    fields = dict(prompt="a a a a a a a a", max_tokens=30, temperature=0, ignore_eos=True)
    plain = ask(daemon, model, "completions", **fields)[1]["choices"][0]["text"]
    for name, value in (("repetition_penalty", 2), ("presence_penalty", 2), ("frequency_penalty", 2)):
        assert ask(daemon, model, "completions", **fields, **{name: value})[1]["choices"][0]["text"] != plain, name


def test_narrow_sampling_is_greedy(daemon, model):
    fields = dict(max_tokens=20, seed=1, ignore_eos=True)
    greedy = ask(daemon, model, "completions", temperature=0, **fields)[1]["choices"][0]["text"]
    assert ask(daemon, model, "completions", temperature=2, **fields)[1]["choices"][0]["text"] != greedy
    for name, value in (("top_k", 1), ("top_p", 1e-6), ("min_p", 1)):
        assert ask(daemon, model, "completions", temperature=2, **fields, **{name: value})[1]["choices"][0]["text"] == greedy, name
