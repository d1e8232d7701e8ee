"""Runs the server of an image as a cluster would, from the image's unpacked files, and asks it.

    python deploy/image/check.py ROOT CONFIG

CONFIG is what `buildah inspect` says of the image: its user, variables and entry point are those that are used. The
user must be 65532. It is run without any capability, on a read-only root, with nothing to write but its data and /tmp;
in namespaces of its own for mounts and processes, on this machine's loopback. It must answer its health check and a
client, have compiled kernels at once, and drain when it is told to end. Needs root, for the mounts.

Where $BACKUP_TO names a folder or URL it must also back up to there, and the image must read that back; variables that
begin with AWS_ are its own then. An image with s3 (LOCK=s3) and any server of S3's kind can so be tried together.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import steelyard

SECONDS = 60.0
UID = 65532
BACKUP_TO = os.environ.get("BACKUP_TO", "")
START = """
    set -eu
    mount --bind {root} {root}
    mount -t proc proc {root}/proc
    mount --rbind /dev {root}/dev
    mount -t tmpfs -o mode=1777 tmpfs {root}/tmp
    mount --bind {data} {root}/var/lib/steelyard
    mount -o remount,bind,ro {root}
    exec setpriv --no-new-privs --bounding-set=-all,+setuid,+setgid,+sys_chroot \\
        chroot --userspec={user} --groups= {root} /usr/bin/env -i {command}
"""


def main(root: Path, config: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        data.chmod(0o777)
        port = free_port()
        arguments = ["serve", "--data-dir", "/var/lib/steelyard/data", "--listen", f"127.0.0.1:{port}"]
        if BACKUP_TO:
            arguments += ["--backup-to", BACKUP_TO]
        began = time.monotonic()
        with (data / "log").open("w+b") as log:
            serve = apart(root, data, config, [*arguments, "--log-format", "json"])
            child = subprocess.Popen(serve, stdout=log, stderr=log)
            try:
                seconds = ask(f"127.0.0.1:{port}", child, began)
                server = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0]
                confined(Path("/proc") / server)
                kernels = said(data / "log", "kernels_taken_over")
                spent = processor_seconds(Path("/proc") / server)
                # The server is the first process of its namespace, and its parent waits for it.
                subprocess.run(["kill", "-TERM", server], check=True)
                status = child.wait(SECONDS)
            except BaseException:
                child.send_signal(signal.SIGKILL)
                child.wait(SECONDS)
                print((data / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
                raise
        if status or not kernels["from_cache"]:
            raise SystemExit(f"expected status 0 and kernels from the image, got {status} and {kernels}")
        if BACKUP_TO:
            drill = ["restore", "--from", BACKUP_TO, "--verify-only"]
            subprocess.run(apart(root, data, config, drill), check=True, timeout=SECONDS)
    print(
        f"as uid {UID} on a read-only root: served a batch {seconds:.1f} s after its start, had the image's compiled"
        f" kernels {kernels['seconds']} s later with {spent:.1f} s of processor time in all, drained and ended with 0"
    )
    return 0


def apart(root: Path, data: Path, config: dict[str, Any], arguments: list[str]) -> list[str]:
    """The command that runs the image's program with these arguments, confined as a cluster would."""
    lent = [f"{name}={value}" for name, value in os.environ.items() if BACKUP_TO and name.startswith("AWS_")]
    command = shlex.join([*config["Env"], *lent, *config["Entrypoint"], *arguments])
    script = START.format(root=shlex.quote(str(root)), data=data, user=config["User"], command=command)
    spaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    return ["unshare", *spaces, "sh", "-c", script]


def ask(address: str, child: subprocess.Popen[bytes], began: float) -> float:
    """Seconds until it had answered a health check and served and taken back a batch."""
    with grpc.insecure_channel(address) as channel:
        ready, deadline = grpc.channel_ready_future(channel), began + SECONDS
        while not ready.done():
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(
                    f"the server did not answer within {SECONDS:g} s; its status: {child.poll()}"
                )
            time.sleep(0.02)
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise SystemExit(f"expected SERVING, got {answer}")
    with steelyard.connect(address) as client:
        client.create_dataset("d", size=1000)
        run = client.create_run("r", dataset="d", batch_size=32, seed=1)
        with run.join() as session:
            batch = session.next()
            session.report(batch, batch.ids.astype("float32"))
        taken = time.monotonic() - began
        if BACKUP_TO:
            made = client.admin.backup(timeout=SECONDS)
            print(f"backed up {made.bytes} bytes to {made.place}/{made.name}")
    return taken


def confined(process: Path) -> None:
    """SystemExit where it is not who it should be, may do more, or could write its root."""
    status = dict(
        line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
    )
    wanted = {"Uid": f"{UID}\t" * 3 + str(UID), "CapEff": "0" * 16, "CapPrm": "0" * 16, "NoNewPrivs": "1"}
    found = {key: status[key].strip() for key in wanted}
    if found != wanted:
        raise SystemExit(f"expected {wanted}, got {found}")
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    [root] = [mount for mount in mounts if mount[4] == "/"]
    if "ro" not in root[5].split(","):
        raise SystemExit(f"expected a read-only root, got {root[5]}")


def processor_seconds(process: Path) -> float:
    """What it has used since its start: unlike the time that passes, the same on a machine that does much else."""
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def said(log: Path, event: str) -> dict[str, object]:
    """The line of the log that tells of it. SystemExit: it has not come in time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            if re.search(rf'"{event}"', line):
                found: dict[str, object] = json.loads(line)
                return found
        time.sleep(0.05)
    raise SystemExit(f"the log does not tell of {event} within {SECONDS:g} s:\n{log.read_text()[-4000:]}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())["OCIv1"]["config"]))
