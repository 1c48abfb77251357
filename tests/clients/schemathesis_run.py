"""schemathesis with all its checks on the served description.

    tests/clients/run.sh schemathesis_run [options of schemathesis run]

Twice. Once with the description as it is: names of models are made up then, so most of what is sent
to the model's own endpoints ends in 404 behind the checks of the body. And once with the served
model's name and small numbers put into the description, so that requests do generate; what several
fields together or the context forbid is not described, so this time a 400 is no failure
(positive_data_acceptance is left out), all other checks are on.
"""

import json
import os
import subprocess
import sys
import tempfile

from daemon import Daemon

SMALL = {"max_tokens": 3, "max_completion_tokens": 3, "n": 2, "best_of": 2, "min_tokens": 2}


def narrow(description, model):
    """The description with the model's name, and numbers that keep answers short."""
    for name, schema in description["components"]["schemas"].items():
        for key, field in schema.get("properties", {}).items():
            if key == "model" and name.endswith("Request"):
                schema["properties"][key] = {"enum": [model, None] if "anyOf" in field else [model]}
            if key in SMALL:
                field["anyOf"][0]["maximum"] = SMALL[key]
    return description


def run(where, *options):
    command = ["schemathesis", "run", where, "--checks", "all", "--phases", "examples,coverage,fuzzing", "--seed", "1",
               "--request-timeout", "60", "--no-color", *options, *sys.argv[1:]]
    return subprocess.call(command)


def main():
    daemon = Daemon("--max-batch", "8", "--default-max-tokens", "4")
    code = run(daemon.url + "/openapi.json", "--max-examples", "50")
    description = narrow(json.loads(daemon.get("/openapi.json")[2]), "demo-llama")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "openapi.json")
        with open(path, "w") as f:
            json.dump(description, f)
        code = run(path, "--url", daemon.url, "--max-examples", "30", "--exclude-checks", "positive_data_acceptance",
               "--suppress-health-check", "filter_too_much") or code
    return daemon.stop() or code


if __name__ == "__main__":
    sys.exit(main())
