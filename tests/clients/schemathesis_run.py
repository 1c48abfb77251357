"""schemathesis with all its checks on the served description: tests/clients/run.sh schemathesis_run [options]."""

import subprocess
import sys

from daemon import Daemon


def main():
    daemon = Daemon("--max-batch", "8", "--default-max-tokens", "4")
    code = subprocess.call(["schemathesis", "run", daemon.url + "/openapi.json", "--checks", "all",
                            "--max-examples", "20", "--phases", "examples,coverage,fuzzing", "--seed", "1",
                            "--request-timeout", "60", "--no-color", *sys.argv[1:]])
    return daemon.stop() or code


if __name__ == "__main__":
    sys.exit(main())
