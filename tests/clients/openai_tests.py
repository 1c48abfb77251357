"""The OpenAI SDK's own API tests, as they are, against the daemon.

    tests/clients/run.sh openai_tests [pytest arguments]

They come with the SDK's source distribution and are meant for a mock server that answers from the
OpenAPI description whatever it is asked. What that means for a server that looks at its requests:

  all parameters   tests that send every parameter at once, with example values that contradict each
                   other or ask for what this server refuses: a logit_bias for the token "foo",
                   stream_options without stream, a suffix, audio, dimensions 1
  strict base64    the SDK asks for embeddings in base64 by itself, and decodes them behind the strict
                   validation, which wants numbers: a server that does as it is asked fails it
  stored answers   retrieve, update, list and delete of stored chat completions, delete of a model

These are counted apart; any other failure is one. The daemon bears the model's name that the tests use.
"""

import collections
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree

from daemon import ROOT, Daemon

VERSION = "3.54.0"
FILES = ["test_completions.py", "chat/test_completions.py", "test_embeddings.py", "test_models.py"]
STORED = re.compile(r"_(retrieve|update|list|list_with_all_params|delete)(\[|$)")


def sources():
    """The unpacked source distribution, below build/."""
    folder = os.path.join(ROOT, "build", "clients", "openai-source")
    tree = os.path.join(folder, f"openai-{VERSION}")
    if not os.path.isdir(tree):
        subprocess.check_call([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
                               "--no-binary", ":all:", f"openai=={VERSION}", "-d", folder])
        with tarfile.open(os.path.join(folder, f"openai-{VERSION}.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
    return tree


def kind_of(name, path):
    if "with_all_params" in name and not STORED.search(name):
        return "all parameters"
    if path == "test_embeddings.py" and "[loose]" not in name:
        return "strict base64"
    if path.startswith("chat/") and STORED.search(name) or path == "test_models.py" and "_delete" in name:
        return "stored answers"
    return "other"


def run(tree, path):
    """Counts by outcome and kind, and the names of failures that are ours."""
    with open(os.path.join(tree, "tests", "api_resources", path)) as f:
        names = re.findall(r'(?:model=|retrieve\(\s*)"([^"]+)"', f.read())
    daemon = Daemon("--served-model-name", collections.Counter(names).most_common(1)[0][0], "--default-max-tokens", "16")
    report = os.path.join(ROOT, "build", "clients", "openai-report.xml")
    subprocess.call([sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=",
                     "--junitxml", report, os.path.join("tests", "api_resources", path), *sys.argv[1:]], cwd=tree,
                    env={**os.environ, "TEST_API_BASE_URL": daemon.url + "/v1"}, stdout=subprocess.DEVNULL)
    assert daemon.stop() == 0
    counts, ours = collections.Counter(), []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        kind = kind_of(case.get("name"), path)
        counts["failed" if bad else "skipped" if case.find("skipped") is not None else "passed", kind] += 1
        if bad and kind == "other":
            ours.append(f"{path}: {case.get('classname').rsplit('.', 1)[1]}.{case.get('name')}")
    return counts, ours


def main():
    tree, code = sources(), 0
    for path in FILES:
        counts, ours = run(tree, path)
        n = sum(counts.values())
        passed = sum(c for (outcome, _), c in counts.items() if outcome == "passed")
        apart = ", ".join(f"{c} {kind}" for (outcome, kind), c in sorted(counts.items()) if outcome == "failed" and kind != "other")
        print(f"{path:26} {n:3} tests, {passed} passed, {len(ours)} failed; do not apply: {apart or 'none'}", flush=True)
        for name in ours:
            print(f"    {name}")
        code |= bool(ours) or passed == 0
    return code


if __name__ == "__main__":
    sys.exit(main())
