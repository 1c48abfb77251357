"""`spand inspect` on the shapes of published models: figures, maps, refusals."""

import json
import os
import xml.dom.minidom

import pytest

from daemon import ROOT, run

FIXTURES = os.path.join(ROOT, "tests", "fixtures")
MODEL = os.path.join(FIXTURES, "shapes", "llama-3-8b")
PLAN = os.path.join(FIXTURES, "moa-plans", "gradientai--Llama-3-8B-Instruct-262k",
                    "moa_alpha_beta.json")


def inspect(*args):
    done = run("inspect", "--model", MODEL, *args)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_text_has_the_map_and_no_colours_in_a_pipe():
    code, out, _ = inspect("--plan", PLAN, "--tokens", "8192", "--memory", "80GiB")
    assert code == 0 and "\033" not in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    spans = [row for row in rows if len(row) == 11 and row[-1] == "%"]
    assert len(spans) == 32 and all(len(group) == 4 for group in spans[5][1:9])
    assert "1373184" in out and "65.48 %" in out and "batch 99" in out


def test_json_agrees_with_itself():
    code, out, _ = inspect("--plan", PLAN, "--tokens", "16384", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["slots_kv_heads"] == 2821120
    same = [row for row in answer["by_length"] if row["n"] == 16384][0]
    assert all(answer[key] == value for key, value in same.items())
    assert answer["plan"]["kind"] == "file" and answer["plan"]["distinct_rules"] == 11


def test_svg_is_whole(tmp_path):
    path = tmp_path / "spans.svg"
    code, _, _ = inspect("--plan", PLAN, "--tokens", "4096", "--svg", str(path))
    assert code == 0
    root = xml.dom.minidom.parse(str(path)).documentElement
    tips = [t.firstChild.data for t in root.getElementsByTagName("title")]
    assert len(tips) == 32 * (32 + 8 + 1)
    assert "layer 31, head 0: 1024 tokens" in tips


@pytest.mark.parametrize("args, code, says", [
    (["--svg", "/no/such/dir/x.svg"], 1, "/no/such/dir/x.svg"),
    (["--plan", "/no/such/plan.json"], 2, "/no/such/plan.json"),
    (["--plan", os.path.join(MODEL, "config.json")], 2, "alphas"),
    (["--plan", os.path.join(FIXTURES, "engine", "mixed-spans.json")], 2,
     "alphas has 3 layers, the model has 32"),
    (["--plan-length", "soon"], 2, "plan-length"),
    (["--span-convention", "both"], 2, "span-convention"),
])
def test_what_is_wrong_is_named(args, code, says):
    got, _, err = inspect(*args)
    assert got == code and says in err
