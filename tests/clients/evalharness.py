"""lm-evaluation-harness's local-completions against the daemon, and its hf model on the same weights.

    tests/clients/run.sh evalharness

Three tasks (lm_eval_tasks/) with log-likelihoods, rolling log-likelihoods and generation. Scores must
be equal, generated texts identical, and each log-likelihood within 1e-3.
"""

import os
import sys

import lm_eval
from lm_eval.tasks import TaskManager

from daemon import MODEL, Daemon

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = ["spand_cloze", "spand_texts", "spand_next"]
TOLERANCE = 1e-3


def evaluate(kind, args):
    out = lm_eval.simple_evaluate(
        model=kind, model_args=args, tasks=TASKS, task_manager=TaskManager(include_path=os.path.join(HERE, "lm_eval_tasks")),
        log_samples=True, bootstrap_iters=0, batch_size=1)
    return out["results"], out["samples"]


def numbers(value):
    """All numbers in a nest of lists, in order."""
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def compare(task, ours, theirs):
    """Returns requests, the largest difference of a log-likelihood, and texts that differ."""
    n, worst, texts = 0, 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        n += len(a["resps"])
        if task == "spand_next":
            texts += a["resps"] != b["resps"]
            continue
        for x, y in zip(numbers(a["resps"]), numbers(b["resps"]), strict=True):
            worst = max(worst, abs(x - y))
    return n, worst, texts


def main():
    os.chdir(HERE)
    daemon = Daemon("--dtype", "f32", "--max-batch", "8")
    ours, our_samples = evaluate("local-completions", {
        "model": "demo-llama", "base_url": daemon.url + "/v1/completions", "tokenizer": MODEL, "num_concurrent": 4,
        "max_retries": 1, "tokenizer_backend": "huggingface", "add_bos_token": True})
    code = daemon.stop()
    theirs, their_samples = evaluate("hf", {"pretrained": MODEL, "dtype": "float32", "device": "cpu", "add_bos_token": True})
    for task in TASKS:
        n, worst, texts = compare(task, our_samples[task], their_samples[task])
        scores = {k: (ours[task][k], theirs[task][k]) for k in ours[task] if k.endswith(",none") and "stderr" not in k}
        print(f"{task}: {n} requests, log-likelihoods at most {worst:.2g} apart, {texts} texts differ")
        for name, (a, b) in scores.items():
            print(f"    {name.split(',')[0]:16} {a:.6f} here, {b:.6f} by transformers")
            if abs(a - b) > TOLERANCE * max(1, abs(b)):
                code = 1
        if worst > TOLERANCE or texts:
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
