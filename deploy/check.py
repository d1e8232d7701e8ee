"""Checks what is deployed, as far as that goes without a cluster: `make deploy-check`.

    .venv/deploy/bin/python deploy/check.py [--out FOLDER] [--only STEP,...]

Each step prints a line with its seconds, and all that it found wrong. What it renders lies in FOLDER afterwards, a file
for each file of values in deploy/chart/ci. Nothing is asked over a network. A program that is not on this machine is
named and passed over; where CI is set, that is a failure.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart" / "steelyard"
BIN = Path(sys.executable).parent
SECONDS = 120
RELEASE, NAMESPACE = "demo", "sampling"
# Kinds of operators: Kubernetes' own schemas do not have them.
FOREIGN = ("cert-manager.io/", "monitoring.coreos.com/")
BACKUP = {"enabled": True, "to": "/backups", "existingClaim": "backups"}
# Of a StatefulSet's spec; all else stays as it was made.
MAY_CHANGE = {
    *("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "minReadySeconds"),
    "persistentVolumeClaimRetentionPolicy",
}
# Values that must be refused, and a word of the reason.
REFUSED: dict[str, dict[str, Any]] = {
    "got none of them": {},
    "got both": {"insecure": True, "tls": {"existingSecret": "a"}},
    "expected no access.table": {"insecure": True, "access": {"table": "principals = []"}},
    "no access.existingSecret with insecure": {"insecure": True, "access": {"existingSecret": "a"}},
    "additional properties 'replicas' not allowed": {"insecure": True, "replicas": 2},
    "additional properties 'max_run' not allowed": {"insecure": True, "config": {"max_run": 3}},
    "additional properties 'listen' not allowed": {"insecure": True, "config": {"listen": "0.0.0.0:1"}},
    "max_runs": {"insecure": True, "config": {"max_runs": 0}},
    "/ports/grpc": {"insecure": True, "ports": {"grpc": 70777}},
    "/image/digest": {"insecure": True, "image": {"digest": "latest"}},
    "/storage/accessMode": {"insecure": True, "storage": {"accessMode": "ReadWriteMany"}},
    "expected backup.to": {"insecure": True, "backup": {"enabled": True}},
    "expected backup.client.existingSecret": {"tls": {"existingSecret": "a"}, "backup": BACKUP},
    "expected no backup.client": {"insecure": True, "backup": {**BACKUP, "client": {"existingSecret": "a"}}},
    "clientCerts is required": {
        "tls": {"existingSecret": "a"},
        "backup": {**BACKUP, "client": {"existingSecret": "a", "token": "token"}},
    },
    "table of principals": {
        "tls": {"existingSecret": "a", "clientCerts": "none"},
        "access": {"existingSecret": "b"},
        "backup": {**BACKUP, "client": {"existingSecret": "a"}},
    },
    "got one": {
        "tls": {"existingSecret": "a"},
        "backup": {**BACKUP, "client": {"existingSecret": "a", "cert": "tls.crt"}},
    },
    "expected backup.existingClaim": {"insecure": True, "backup": {"to": "/backups"}},
    "/backup/schedule": {"insecure": True, "backup": {"schedule": "daily"}},
    "no tls.clientCa where": {"insecure": True, "tls": {"clientCa": {"configMap": "a"}}},
    "tls.clientCa.configMap or tls.clientCa.existingSecret": {
        "tls": {"existingSecret": "a", "clientCa": {"configMap": "b", "existingSecret": "c"}}
    },
    "expected restore.from or backup.to": {"insecure": True, "restore": {"enabled": True}},
    "/storage/folder": {"insecure": True, "storage": {"folder": "../other"}},
    "app.kubernetes.io/name": {"insecure": True, "podLabels": {"app.kubernetes.io/name": "a"}},
    "/fullnameOverride": {"insecure": True, "fullnameOverride": "1st.sampler"},
    "three different ports": {"insecure": True, "ports": {"grpc": 7078}},
    "a folder of its own": {"insecure": True, "backup": {**BACKUP, "to": "/tmp"}},  # noqa: S108
    "'checksum/config'": {"insecure": True, "podAnnotations": {"checksum/config": "a"}},
    "/runAsUser": {"insecure": True, "runAsUser": 0},
    "issuerRef.name": {"tls": {"certManager": {"enabled": True}}},
}


class WrongError(Exception):
    """What a step found: one line or more."""


def values() -> Iterator[tuple[str, dict[str, Any]]]:
    found = sorted((DEPLOY / "chart" / "ci").glob("*.yaml"))
    if not found:
        raise WrongError("expected files of values in deploy/chart/ci, got none")
    for path in found:
        yield path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))


def later() -> Iterator[tuple[str, dict[str, Any]]]:
    """What a release is upgraded to: of deploy/chart/ci/later, NAME.WHAT.yaml is laid over NAME.yaml."""
    begun = dict(values())
    for path in sorted((DEPLOY / "chart" / "ci" / "later").glob("*.yaml")):
        yield path.stem, merged(begun[path.stem.partition(".")[0]], yaml.safe_load(path.read_text("utf-8")))


def merged(base: Any, over: Any) -> Any:
    """As Helm lays values over values: maps by their keys, anything else as a whole."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def lint(out: Path) -> str:
    for name, given in values():
        report = helm_python.lint(str(CHART), given, strict=True, namespace=NAMESPACE)
        found = [message for message in report["messages"] if message["severity"] > 1]
        if found or report["errors"]:
            raise WrongError(f"{name}: {found} {report['errors']}")
    return "the chart"


def render(out: Path) -> str:
    """Manifests, and the notes beside them: of each file of values, and of what releases are upgraded to."""
    for path in out.glob("*.*"):
        path.unlink()
    with helm_python.Chart.load(str(CHART)) as chart:
        for name, given in values():
            written(out, name, chart.render(given, name=RELEASE, namespace=NAMESPACE))
    with tempfile.TemporaryDirectory() as folder:
        newer = Path(shutil.copytree(CHART, Path(folder) / CHART.name))
        text = (newer / "Chart.yaml").read_text(encoding="utf-8")
        text = re.sub(r'^(version|appVersion): "?[^"\n]+"?$', r'\1: "99.0.0"', text, flags=re.MULTILINE)
        (newer / "Chart.yaml").write_text(text, encoding="utf-8")
        with helm_python.Chart.load(str(newer)) as chart:
            for name, given in later():
                written(out, name, chart.render(given, name=RELEASE, namespace=NAMESPACE))
    return f"{len([*values(), *later()])} files of values"


def written(out: Path, name: str, files: dict[str, str]) -> None:
    texts = {Path(path).name: text for path, text in files.items()}
    (out / f"{name}.txt").write_text(texts.pop("NOTES.txt"), encoding="utf-8")
    manifests = [text.strip() for text in texts.values() if text.strip()]
    whole = "---\n" + "\n---\n".join(manifests) + "\n"
    (out / f"{name}.yaml").write_text(whole, encoding="utf-8")
    # For whoever reads no YAML.
    documents = [document for document in yaml.safe_load_all(whole) if document]
    (out / f"{name}.json").write_text(json.dumps(documents, indent=1), encoding="utf-8")


def upgrades(out: Path) -> str:
    """Nothing is changed that Kubernetes lets nobody change in an object that is there."""
    for name, _ in later():
        before, after = (fixed(out / f"{stem}.json") for stem in (name.partition(".")[0], name))
        for key in before.keys() & after.keys():
            if before[key] != after[key]:
                raise WrongError(
                    f"{name}: {' '.join(key)} is changed where nobody may: {before[key]} to {after[key]}"
                )
    return f"{len(list(later()))} upgrades"


def fixed(path: Path) -> dict[tuple[str, str], Any]:
    """By kind and name, what of each object must stay as it was made."""
    found = {}
    for document in json.loads(path.read_text(encoding="utf-8")):
        key, spec = (document["kind"], document["metadata"]["name"]), document.get("spec")
        if document["kind"] == "StatefulSet":
            found[key] = {name: value for name, value in spec.items() if name not in MAY_CHANGE}
        elif document["kind"] == "Service":
            found[key] = spec.get("clusterIP")
    return found


def refusals(out: Path) -> str:
    with helm_python.Chart.load(str(CHART)) as chart:
        for word, given in REFUSED.items():
            refused(chart, word, given, RELEASE)
        refused(chart, "a name that begins with a letter", {"insecure": True}, "1st")
    return f"{len(REFUSED) + 1} values that are refused"


def refused(chart: helm_python.Chart, word: str, given: dict[str, Any], release: str) -> None:
    try:
        chart.render(given, name=release, namespace=NAMESPACE)
    except helm_python.HelmError as error:
        if word not in str(error):
            raise WrongError(f"expected {given} to be refused with {word!r}, got {error}") from None
    else:
        raise WrongError(f"expected {given} to be refused with {word!r}, got manifests")


def kubernetes(out: Path) -> str:
    """Each object against the schemas of the three newest versions there are, unknown fields refused."""
    import kubernetes_validate

    held = (BIN.parent / "lib").glob("python*/site-packages/kubernetes_validate/kubernetes-json-schema/v*")
    versions = sorted({tuple(map(int, path.name[1:].split(".")[:2])) for path in held})[-3:]
    count = 0
    for path in [*sorted(out.glob("*.yaml")), *sorted((DEPLOY / "examples").glob("*.yaml"))]:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not document or document["apiVersion"].startswith(FOREIGN):
                continue
            count += 1
            for version in versions:
                try:
                    kubernetes_validate.validate(document, ".".join(map(str, version)), strict=True)
                except kubernetes_validate.ValidationError as error:
                    raise WrongError(
                        f"{path.name}, {document['kind']}: {error.message} at {list(error.path)}"
                    ) from None
    return f"{count} objects against {', '.join('.'.join(map(str, version)) for version in versions)}"


def policy(out: Path) -> str:
    """checkov. A check that is passed over says why where it is: in the Dockerfile, or as the object's annotation."""
    files = [*out.glob("*.yaml"), *(DEPLOY / "examples").glob("*.yaml"), *dockerfiles()]
    command = [
        BIN / "checkov",
        "--framework",
        "kubernetes",
        "dockerfile",
        "--skip-download",
        "--quiet",
        "--compact",
    ]
    said = json.loads(
        call([*command, "-o", "json", *(part for file in sorted(files) for part in ("-f", file))], (0, 1))
    )
    reports = said if isinstance(said, list) else [said]
    failed = [
        f"{check['check_id']} {check['check_name']}: {check['resource']} in {Path(check['file_path']).name}"
        for report in reports
        for check in report["results"]["failed_checks"]
    ]
    if failed:
        raise WrongError("\n".join(failed))
    return ", ".join(
        f"{report['check_type']}: {report['summary']['passed']} passed, {report['summary']['skipped']} passed over"
        for report in reports
    )


def dockerfiles() -> list[Path]:
    return [DEPLOY / "Dockerfile", DEPLOY / "examples" / "trainer.Dockerfile"]


def dockerfile(out: Path) -> str:
    call([BIN / "hadolint", "--failure-threshold", "style", *dockerfiles()])
    return "hadolint"


def yaml_style(out: Path) -> str:
    rules = "{line-length: disable, document-start: disable, braces: {max-spaces-inside: 1}}"
    config = f"{{extends: default, rules: {rules}}}"
    files = [path for path in DEPLOY.rglob("*.yaml") if "templates" not in path.parts]
    call([BIN / "yamllint", "--strict", "-d", config, *sorted(files)])
    return f"{len(files)} files"


def compose(out: Path) -> str:
    call([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"])
    return "compose.yaml"


def shell(out: Path) -> str:
    files = [ROOT / ".ci" / "run", *sorted(DEPLOY.rglob("*.sh"))]
    call([program("shellcheck"), *files])
    return f"{len(files)} scripts"


def systemd(out: Path) -> str:
    """The unit as systemd reads it, and what a process of it could do: exposure of 10 at most, here less than 2."""
    analyze = program("systemd-analyze")
    unit = DEPLOY / "systemd" / "steelyard.service"
    # The program that it starts is not on this machine.
    copy = out / "steelyard.service"
    copy.write_text(
        unit.read_text(encoding="utf-8").replace("/opt/steelyard/current/bin/steelyard", sys.executable)
    )
    # What it says of other units of this machine is none of ours.
    lines = [
        line
        for line in call([analyze, "verify", "--man=no", copy], (0, 1)).splitlines()
        if "steelyard" in line
    ]
    if lines:
        raise WrongError("\n".join(lines))
    said = call([analyze, "security", "--offline=true", "--threshold=20", "--no-pager", copy])
    return said.strip().splitlines()[-1].lstrip("→ ")


def call(command: list[Any], good: tuple[int, ...] = (0,)) -> str:
    """What it wrote. WrongError: it ended with another status."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
        check=False,
    )
    if done.returncode not in good:
        raise WrongError(
            f"{Path(command[0]).name}: status {done.returncode}\n{done.stdout}{done.stderr}".strip()
        )
    return done.stdout + done.stderr if 1 in good and not done.stdout else done.stdout


class MissingError(Exception):
    """A program that is not on this machine."""


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{name} was not found; Debian has it in a package")
    return found


STEPS: tuple[Callable[[Path], str], ...] = (
    lint,
    render,
    upgrades,
    refusals,
    kubernetes,
    policy,
    dockerfile,
    yaml_style,
    compose,
    shell,
    systemd,
)


def main() -> int:
    names = [step.__name__ for step in STEPS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "deploy")
    parser.add_argument("--only", default=",".join(names), help=f"some of {', '.join(names)}")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    say = functools.partial(print, flush=True)
    wrong = False
    for step in STEPS:
        if step.__name__ not in args.only.split(","):
            continue
        began = time.monotonic()
        try:
            said, verdict = step(args.out), "ok"
        except MissingError as error:
            said, verdict = str(error), "FAILED" if os.environ.get("CI") == "true" else "not here"
        except WrongError as error:
            said, verdict = str(error), "FAILED"
        wrong = wrong or verdict == "FAILED"
        say(f"{step.__name__:<11} {verdict:<8} {time.monotonic() - began:5.1f} s  {said}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
