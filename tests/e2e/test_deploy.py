"""What can be checked of systemd/ and deploy/ without a service manager or a cluster."""

import json
import os
import re
import shutil
import subprocess

import jsonschema
import pytest

from daemon import ROOT

DEPLOY = os.path.join(ROOT, "deploy")
UNIT = os.path.join(ROOT, "systemd", "spand.service")


def need(program):
    if not shutil.which(program):
        pytest.skip(f"no {program} here")


def test_the_unit_exposes_little():
    need("systemd-analyze")
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--no-pager", UNIT],
                          capture_output=True, text=True)
    score = float(re.search(r"Overall exposure level for spand\.service: ([\d.]+)", done.stdout).group(1))
    assert score <= 1.5, score


@pytest.mark.parametrize("name", ["spand.service", "spand.socket"])
def test_units_are_valid(name):
    need("systemd-analyze")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                           os.path.join(ROOT, "systemd", name)], capture_output=True, text=True)
    wrong = [line for line in done.stderr.splitlines() if "spand" in line and "not executable" not in line]
    assert not wrong, done.stderr


def test_stop_and_watchdog_times_fit_the_settings():
    unit = open(UNIT).read()
    config = json.load(open(os.path.join(ROOT, "config", "default.json")))
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit).group(1)) * 1000 > config["drain_timeout_ms"]
    kube = open(os.path.join(DEPLOY, "kubernetes", "spand.yaml")).read()
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", kube).group(1))
    drain = int(re.search(r"--drain-timeout-ms=(\d+)", kube).group(1))
    assert grace * 1000 > drain + 10000


def test_sysusers_and_tmpfiles_are_valid(tmp_path):
    need("systemd-sysusers")
    for program, name in (("systemd-sysusers", "spand.sysusers"), ("systemd-tmpfiles", "spand.tmpfiles")):
        command = [program, f"--root={tmp_path}", os.path.join(ROOT, "systemd", name)]
        if program == "systemd-tmpfiles":
            command.insert(1, "--create")
        done = subprocess.run(command, capture_output=True, text=True)
        assert "Unknown" not in done.stderr and "nvalid" not in done.stderr, done.stderr


def test_every_query_of_the_dashboard_and_the_alerts_has_its_series(daemon):
    """A query for a series that does not exist draws nothing and alerts nobody."""
    # A fresh daemon has no answers yet; this makes the counters with labels appear.
    assert daemon.get("/health")[0] == 200
    known = {key.split("{")[0] for key in daemon.metrics()} | {"up"}
    dashboard = json.load(open(os.path.join(DEPLOY, "grafana", "dashboards", "spand.json")))
    queries = [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    queries += re.findall(r"expr: (?:>-\n)?(.*?)\n        for:",
                          open(os.path.join(DEPLOY, "prometheus", "alerts.yml")).read(), re.S)
    assert len(queries) > 25
    asked = {n for q in queries for n in re.findall(r"\bspand_[a-z0-9_]+", q)}
    assert not asked - known, asked - known
    for title in ("first token", "Between", "Throughput", "pool", "Spans"):
        assert any(title in p["title"] for p in dashboard["panels"]), title


def test_the_dashboards_queries_parse(daemon, tmp_path):
    need("promtool")
    dashboard = json.load(open(os.path.join(DEPLOY, "grafana", "dashboards", "spand.json")))
    rules = [{"record": f"q{i}", "expr": t["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")}
             for i, t in enumerate(t for p in dashboard["panels"] for t in p["targets"])]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifests_fit_the_published_schemas():
    """kubernetes-validate carries the API's schemas; custom resources are only parsed."""
    yaml = pytest.importorskip("yaml")
    validate = pytest.importorskip("kubernetes_validate")
    kinds = set()
    for name in sorted(os.listdir(os.path.join(DEPLOY, "kubernetes"))):
        for document in yaml.safe_load_all(open(os.path.join(DEPLOY, "kubernetes", name))):
            kinds.add(document.get("kind"))
            group = document.get("apiVersion", "")
            if "." not in group or group.startswith(("policy", "apps")):
                if "kind" in document:
                    validate.validate(document, validate.latest_version(), strict=True)
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodMonitor", "InferencePool"} <= kinds


# What inference.networking.k8s.io/v1 (releases 1.0 to 1.5 of the inference extension) says of an
# InferencePool's spec; a field that it does not know would be dropped without a word.
NUMBER = {"type": "object", "required": ["number"], "additionalProperties": False,
          "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 65535}}}
INFERENCE_POOL = {
    "type": "object", "additionalProperties": False,
    "required": ["endpointPickerRef", "selector", "targetPorts"],
    "properties": {
        "selector": {"type": "object", "additionalProperties": False, "required": ["matchLabels"], "properties": {
            "matchLabels": {"type": "object", "minProperties": 1, "maxProperties": 64, "additionalProperties": {
                "type": "string", "maxLength": 63, "pattern": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}}}},
        "targetPorts": {"type": "array", "minItems": 1, "maxItems": 1, "items": NUMBER},
        "endpointPickerRef": {"type": "object", "additionalProperties": False, "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 253},
            "group": {"type": "string", "maxLength": 253},
            "kind": {"type": "string", "minLength": 1, "maxLength": 63},
            "port": NUMBER,
            "failureMode": {"enum": ["FailOpen", "FailClose"]}}}}}


def test_the_inference_pool_fits_its_definition():
    yaml = pytest.importorskip("yaml")
    folder = os.path.join(DEPLOY, "kubernetes")
    documents = [d for name in sorted(os.listdir(folder)) for d in yaml.safe_load_all(open(os.path.join(folder, name)))]
    (pool,) = [d for d in documents if d.get("kind") == "InferencePool"]
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    jsonschema.validate(pool["spec"], INFERENCE_POOL)
    picker = pool["spec"]["endpointPickerRef"]
    assert picker.get("kind", "Service") != "Service" or "port" in picker
    (deployment,) = [d for d in documents if d.get("kind") == "Deployment"]
    template = deployment["spec"]["template"]
    labels = pool["spec"]["selector"]["matchLabels"].items()
    assert labels <= template["metadata"]["labels"].items()  # it finds our pods, at the port they listen on
    ports = [p["containerPort"] for c in template["spec"]["containers"] for p in c["ports"]]
    assert pool["spec"]["targetPorts"][0]["number"] in ports
    (route,) = [d for d in documents if d.get("kind") == "HTTPRoute"]
    backend = route["spec"]["rules"][0]["backendRefs"][0]
    assert (backend["group"], backend["kind"], backend["name"]) == (
        "inference.networking.k8s.io", "InferencePool", pool["metadata"]["name"])


def test_nginx_takes_the_example(tmp_path):
    need("nginx")
    text = open(os.path.join(DEPLOY, "nginx.conf")).read()
    # The certificates are nobody's here, and Debian 12's nginx has http2 on the listen line.
    text = re.sub(r"ssl_certificate\S* .*;", "", text).replace("listen 443 ssl;", "listen 127.0.0.1:8443;")
    text = text.replace("http2 on;", "")
    path = tmp_path / "nginx.conf"
    path.write_text(f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}}\n"
                    f"http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;\n"
                    f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
                    f"{text} }}")
    done = subprocess.run(["nginx", "-t", "-c", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_install_puts_everything_in_its_place(tmp_path):
    done = subprocess.run(["make", "-s", "-C", ROOT, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/x",
                           "CUDA=0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unit = (tmp_path / "lib/systemd/system/spand.service").read_text()
    assert "ExecStart=/opt/x/bin/spand serve" in unit
    config = json.loads((tmp_path / "etc/spand/spand.json").read_text())
    assert config["model"] == "/opt/x/share/spand/models/demo-llama"
    assert (tmp_path / "opt/x/share/spand/models/demo-llama/config.json").exists()
    assert os.access(tmp_path / "opt/x/bin/spand", os.X_OK)
    (tmp_path / "etc/spand/spand.json").write_text("{}")
    subprocess.run(["make", "-s", "-C", ROOT, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/x", "CUDA=0"],
                   check=True, capture_output=True)
    assert (tmp_path / "etc/spand/spand.json").read_text() == "{}"  # the operator's own
