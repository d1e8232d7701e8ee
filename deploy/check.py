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
import shutil
import subprocess
import sys
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


def lint(out: Path) -> str:
    for name, given in values():
        report = helm_python.lint(str(CHART), given, strict=True, namespace=NAMESPACE)
        found = [message for message in report["messages"] if message["severity"] > 1]
        if found or report["errors"]:
            raise WrongError(f"{name}: {found} {report['errors']}")
    return "the chart"


def render(out: Path) -> str:
    """Manifests, and the notes beside them."""
    with helm_python.Chart.load(str(CHART)) as chart:
        for name, given in values():
            files = chart.render(given, name=RELEASE, namespace=NAMESPACE)
            texts = {Path(path).name: text for path, text in files.items()}
            (out / f"{name}.txt").write_text(texts.pop("NOTES.txt"), encoding="utf-8")
            manifests = [text.strip() for text in texts.values() if text.strip()]
            whole = "---\n" + "\n---\n".join(manifests) + "\n"
            (out / f"{name}.yaml").write_text(whole, encoding="utf-8")
            # For whoever reads no YAML.
            documents = [document for document in yaml.safe_load_all(whole) if document]
            (out / f"{name}.json").write_text(json.dumps(documents, indent=1), encoding="utf-8")
    return f"{len(list(values()))} files of values"


def refusals(out: Path) -> str:
    with helm_python.Chart.load(str(CHART)) as chart:
        for word, given in REFUSED.items():
            try:
                chart.render(given, name=RELEASE, namespace=NAMESPACE)
            except helm_python.HelmError as error:
                if word not in str(error):
                    raise WrongError(f"expected {given} to be refused with {word!r}, got {error}") from None
            else:
                raise WrongError(f"expected {given} to be refused with {word!r}, got manifests")
    return f"{len(REFUSED)} values that are refused"


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
