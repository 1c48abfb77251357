"""guidellm against the daemon, with the tokenizer from the model's directory: tests/clients/run.sh guidellm_run

Prints how many requests came back, and their rates. Exits with 1 unless all of them did, with the tokens
that were asked for.
"""

import json
import os
import subprocess
import sys
import tempfile

from daemon import MODEL, Daemon

N, STREAMS, OUTPUT = 48, 4, 16


def main():
    daemon, code = Daemon("--max-batch", "8"), 0
    for path in ("/v1/completions", "/v1/chat/completions"):
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "report.json")
            code = subprocess.call([
                "guidellm", "run", "--disable-console", "--backend",
                f"kind=openai_http,target={daemon.url},request_format={path}",
                "--profile", f"kind=concurrent,streams={STREAMS}", "--constraint", f"kind=max_requests,count={N}",
                "--tokenizer", f"kind=huggingface_auto,model={MODEL}",
                "--data", f"kind=synthetic_text,prompt_tokens=64,output_tokens={OUTPUT}", "--output", f"kind=json,path={report}",
                *sys.argv[1:]]) or code
            with open(report) as f:
                metrics = json.load(f)["benchmarks"][0]["metrics"]
        totals = metrics["request_totals"]
        tokens = metrics["output_token_count"]["successful"]["mean"]
        print(f"{path}: {totals['successful']} of {totals['total']} requests, {totals['errored']} errors, {tokens:.1f} tokens an "
              f"answer, first token after {metrics['time_to_first_token_ms']['successful']['median']:.0f} ms, "
              f"{metrics['inter_token_latency_ms']['successful']['median']:.1f} ms between tokens", flush=True)
        if totals["successful"] != N or totals["errored"] or abs(tokens - OUTPUT) > 0.5:
            code = 1
    return daemon.stop() or code


if __name__ == "__main__":
    sys.exit(main())
