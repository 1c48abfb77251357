"""NVIDIA's aiperf against the daemon, with the tokenizer from the model's directory: tests/clients/run.sh aiperf_run

Prints how many requests came back, and their rates. Exits with 1 unless all of them did.
"""

import json
import os
import subprocess
import sys
import tempfile

from daemon import MODEL, Daemon

N, STREAMS, OUTPUT = 48, 4, 16
ENDPOINTS = {"completions": ["--streaming", "--extra-inputs", "ignore_eos:true"],
             "chat": ["--streaming", "--extra-inputs", "ignore_eos:true"],
             "embeddings": []}


def main():
    daemon, code = Daemon("--max-batch", "8"), 0
    for endpoint, options in ENDPOINTS.items():
        with tempfile.TemporaryDirectory() as folder:
            code = subprocess.call([
                "aiperf", "profile", "-m", "demo-llama", "-u", daemon.url, "--endpoint-type", endpoint, "--tokenizer", MODEL,
                "--concurrency", str(STREAMS), "--request-count", str(N), "--prompt-input-tokens-mean", "64",
                "--prompt-input-tokens-stddev", "0", "--prompt-output-tokens-mean", str(OUTPUT),
                "--prompt-output-tokens-stddev", "0", "--artifact-dir", folder, "--random-seed", "1", "--ui", "none", *options,
                *sys.argv[1:]], stdout=subprocess.DEVNULL) or code
            with open(os.path.join(folder, "profile_export_aiperf.json")) as f:
                report = json.load(f)
        n = int(report["request_count"]["avg"])
        errors = int((report.get("error_request_count") or {"avg": 0})["avg"])
        text = f"{endpoint}: {n} of {N} requests, {errors} errors, {report['request_latency']['avg']:.0f} ms a request"
        if "time_to_first_token" in report:
            text += (f", {report['output_sequence_length']['avg']:.1f} tokens an answer, first token after "
                     f"{report['time_to_first_token']['avg']:.0f} ms, {report['inter_token_latency']['avg']:.1f} ms between tokens")
        print(text, flush=True)
        if n != N or errors:
            code = 1
    return daemon.stop() or code


if __name__ == "__main__":
    sys.exit(main())
