"""Where compiled kernels come from: a cache that is cold, half made, shared, forbidden, or not there at all."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import steelyard.testing
from steelyard_server import kernel_cache, kernels_at_start
from steelyard_server.config import Settings
from steelyard_server.server import Server

SECONDS = 100

# What a server's process says of its kernels, and how it ends.
SERVE = """
    import json, logging, sys, time
    from pathlib import Path
    from steelyard_server.config import Settings
    from steelyard_server.core import kernels
    from steelyard_server.kernels_at_start import NoCompiledKernelsError
    from steelyard_server.server import Server

    wait, *values = sys.argv[2:]
    said = []
    logging.basicConfig(level="INFO", handlers=[h := logging.NullHandler()])
    h.handle = lambda record: said.append(f"{record.levelname} {record.msg}")
    server = Server(Settings(data_dir=Path(sys.argv[1]), listen="127.0.0.1:0", kernels=values[0]))
    start = time.monotonic()
    try:
        server.start()
    except NoCompiledKernelsError as error:
        print(json.dumps({"refused": str(error)}))
        sys.exit()
    at_first = kernels.active.__name__
    deadline = time.monotonic() + float(wait)
    ends = ("kernels_taken_over", "kernels_stay_in_numpy")
    while not any(end in line for line in said for end in ends) and time.monotonic() < deadline:
        time.sleep(0.02)
    stopping = time.monotonic()
    server.stop(0.0)
    stopped = time.monotonic() - stopping
    print(json.dumps({
        "at_first": at_first, "at_last": kernels.active.__name__, "stopped": stopped,
        "said": [line for line in said if "'event': 'kernels_" in line], "numba": "numba" in sys.modules,
    }))
"""
PLAIN = "steelyard_server.core.kernels.plain"
COMPILED = "steelyard_server.core.kernels.compiled"


def process(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_a_server_without_a_cache_answers_in_numpy_and_takes_over_what_a_child_compiles(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    came = answer(process(SERVE, tmp_path / "data", SECONDS, "auto", NUMBA_CACHE_DIR=str(cache)))
    assert (came["at_first"], came["at_last"]) == (PLAIN, COMPILED)
    begun, said = came["said"]
    assert "kernels_compiling" in begun
    assert "INFO" in said
    assert "'from_cache': False" in said
    # The next one finds it done.
    came = answer(process(SERVE, tmp_path / "data", SECONDS, "compiled", NUMBA_CACHE_DIR=str(cache)))
    assert (came["at_first"], came["at_last"]) == (COMPILED, COMPILED)
    assert "'from_cache': True" in str(came["said"])


LOAD = "from steelyard_server import kernel_cache as c; c.load(c.folder()); print('{\"done\": 1}')"
FEW = 3


def copied(cache: Path) -> Path:
    """The kernels of this machine, complete, in a folder of the test's own: compiling all of them takes long."""
    mine = kernel_cache.folder()
    if not kernel_cache.is_complete(mine):
        subprocess.run([sys.executable, "-m", kernel_cache.__name__], check=True, timeout=SECONDS)
    return shutil.copytree(mine, cache / mine.name)


def left_unfinished(cache: Path) -> Path:
    """A folder as of a process that was killed before it had compiled the last few kernels."""
    place = copied(cache)
    (place / "complete").unlink()
    for file in sorted(place.rglob("*.nbi"))[:FEW]:
        file.unlink()
    return place


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_kept_kernels_that_cannot_be_loaded_are_compiled_anew(tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    kept = sorted(copied(cache).rglob("*.nb[ic]"))
    # Both files of a kernel. One that cannot be read has all thrown away, so that is tried with all of them.
    for file in kept if damage == "truncated" else kept[: 2 * FEW]:
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:20])
        else:
            file.unlink()
    came = answer(process(SERVE, tmp_path / "data", SECONDS, "auto", NUMBA_CACHE_DIR=str(cache)))
    assert came["at_last"] == COMPILED
    assert "'from_cache': False" in came["said"][-1]
    assert ("kernels_compiled_again" in str(came["said"])) == (damage == "truncated")
    came = answer(process(SERVE, tmp_path / "data", SECONDS, "auto", NUMBA_CACHE_DIR=str(cache)))
    assert "'from_cache': True" in came["said"][-1]


def test_a_server_that_stops_while_its_kernels_are_compiled_leaves_no_child(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    child = process(SERVE, tmp_path / "data", 0.5, "auto", NUMBA_CACHE_DIR=str(cache))
    came = answer(child)
    assert came["at_last"] == PLAIN
    assert ["kernels_compiling" in line for line in came["said"]] == [True]
    assert compiling_into(cache) == []


def test_a_server_that_is_killed_while_its_kernels_are_compiled_leaves_no_child(tmp_path: Path) -> None:
    """One that is killed again and again would else leave a compiler behind each time, all at work at once."""
    cache = tmp_path / "cache"
    child = process(SERVE, tmp_path / "data", SECONDS, "auto", NUMBA_CACHE_DIR=str(cache))
    deadline = time.monotonic() + SECONDS
    while not (compilers := compiling_into(cache)):
        assert time.monotonic() < deadline, "no child compiles"
        time.sleep(0.05)
    child.kill()
    child.communicate(timeout=SECONDS)
    while compiling_into(cache):
        assert time.monotonic() < deadline, f"still compiling: {compilers}"
        time.sleep(0.05)
    assert not any(kernel_cache.is_complete(place) for place in cache.iterdir()), (
        "it ended by having compiled all"
    )


def compiling_into(cache: Path) -> list[str]:
    alive = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True, timeout=30)
    compiling = [line for line in alive.stdout.splitlines() if kernel_cache.__name__ in line]
    return [line for line in compiling if str(cache) in environment_of(line.split()[0])]


def environment_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def test_two_processes_that_compile_at_once_both_get_kernels(tmp_path: Path) -> None:
    place = left_unfinished(tmp_path)
    assert len(list(place.rglob("*.nbi"))) + FEW == len(list(kernel_cache.folder().rglob("*.nbi")))
    pair = [process(LOAD, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert [answer(child) for child in pair] == [{"done": 1}] * 2
    assert kernel_cache.is_complete(place)
    assert len(list(place.rglob("*.nbi"))) == len(list(kernel_cache.folder().rglob("*.nbi")))
    assert answer(process(LOAD, NUMBA_CACHE_DIR=str(tmp_path))) == {"done": 1}


@pytest.mark.parametrize("theirs", ["writable by all", "a link"])
def test_kernels_are_not_taken_from_a_folder_among_temporary_files_that_others_could_have_filled(
    tmp_path: Path, theirs: str
) -> None:
    """Whatever lies in the folder is run."""
    temporary, closed = tmp_path / "tmp", tmp_path / "closed"
    temporary.mkdir()
    closed.touch()
    base = temporary / f"steelyard-kernels-{os.getuid()}"
    if theirs == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        base.symlink_to(tmp_path / "elsewhere")
    else:
        base.mkdir()
        base.chmod(0o777)
    code = """
        import json
        from steelyard_server import kernel_cache
        first, beside, *others = kernel_cache._bases()
        kernel_cache._bases = lambda: [first, *others]  # beside the code it could be written here
        try:
            print(json.dumps({"place": str(kernel_cache.folder())}))
        except OSError as error:
            print(json.dumps({"refused": str(error)}))
    """
    elsewhere = {"TMPDIR": str(temporary), "NUMBA_CACHE_DIR": str(closed), "XDG_CACHE_HOME": str(closed)}
    said = answer(process(code, **elsewhere))
    assert "belongs to somebody else" in said["refused"]
    base.unlink() if base.is_symlink() else base.rmdir()
    place = Path(answer(process(code, **elsewhere))["place"])
    assert place.parent == base
    assert base.stat().st_mode & 0o777 == 0o700


WITHOUT_NUMBA = "import sys; sys.modules['numba'] = None\n" + textwrap.dedent(SERVE)
COLD = "from steelyard_server import kernel_cache; kernel_cache.is_complete = lambda place: False\n"
SPOILT = "from steelyard_server.core.kernels import proof; proof.differences = lambda a, b: ['finds']\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (WITHOUT_NUMBA, "ModuleNotFoundError: No module named 'numba"),
        (
            "import sys; sys.executable = '/nowhere'\n" + COLD + textwrap.dedent(SERVE),
            "could be started: .*/nowhere",
        ),
        (
            "import sys; sys.executable = None\n" + COLD + textwrap.dedent(SERVE),
            "does not know its interpreter",
        ),
        (SPOILT + textwrap.dedent(SERVE), "the compiled kernels and NumPy disagree here on finds"),
    ],
)
def test_where_kernels_cannot_be_had_one_warning_says_why_and_numpy_serves(
    tmp_path: Path, code: str, why: str
) -> None:
    came = answer(process(code, tmp_path / "data", SECONDS, "auto"))
    assert (came["at_first"], came["at_last"]) == (PLAIN, PLAIN)
    [said] = [line for line in came["said"] if not line.startswith("INFO")]
    assert said.startswith("WARNING")
    assert re.search(why, said)
    came = answer(process(code, tmp_path / "data", SECONDS, "compiled"))
    assert re.search(why, str(came["refused"]))


def test_a_server_told_to_stay_in_numpy_imports_no_compiler(tmp_path: Path) -> None:
    came = answer(process(SERVE, tmp_path / "data", 0.5, "numpy"))
    assert (came["at_last"], came["said"], came["numba"]) == (PLAIN, [], False)


def test_a_code_that_cannot_be_written_beside_is_cached_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    beside = kernel_cache.folder()
    bases = [file / "beside", tmp_path / "home"]
    monkeypatch.setattr(kernel_cache, "_bases", lambda: iter(bases))
    assert kernel_cache.folder() == tmp_path / "home" / beside.name
    bases.pop()
    with pytest.raises(OSError, match="no folder for compiled kernels can be written: .*Not a directory"):
        kernel_cache.folder()


NOBODY = 65532


def theirs(cache: Path) -> Path:
    """The kernels of this machine, complete, in a folder of another user's that only he may write."""
    place = copied(cache)
    for path in [cache, *cache.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    return place


@pytest.fixture
def unprivileged() -> list[str]:
    """What a command begins with so that permissions count for it, whoever runs the tests."""
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []


def test_a_server_that_may_only_read_the_kernels_that_another_user_compiled_takes_a_copy(
    tmp_path: Path, unprivileged: list[str]
) -> None:
    """As in an image with a read-only root, by a user without a home."""
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    place = theirs(cache)
    # Beside the code it can be written here.
    code = """
        import steelyard_server.kernel_cache as cache
        given, _, *others = cache._bases()
        cache._bases = lambda: [given, *others]
    """
    command = [*unprivileged, sys.executable, "-c", textwrap.dedent(code) + textwrap.dedent(SERVE)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NUMBA_CACHE_DIR": str(cache),
        "TMPDIR": str(temporary),
        "XDG_CACHE_HOME": "/proc/nowhere",
    }
    with subprocess.Popen(
        [*command, str(tmp_path / "data"), str(SECONDS), "auto"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        came = answer(child)
    assert came["at_last"] == COMPILED
    [said] = came["said"]
    assert "'from_cache': True" in said
    [copy] = (temporary / f"steelyard-kernels-{os.getuid()}").iterdir()
    assert copy.name == place.name
    assert kernel_cache.is_complete(copy)


def test_a_copy_that_was_discarded_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else kept kernels that cannot be loaded would be copied for ever, and never compiled."""
    closed, mine = tmp_path / "closed", tmp_path / "mine"
    name = kernel_cache.folder().name
    (closed / name).mkdir(parents=True)
    (closed / name / "one.nbi").touch()
    (closed / name / "complete").write_text("one.nbi")
    monkeypatch.setattr(kernel_cache, "_bases", lambda: iter([closed, mine]))
    monkeypatch.setattr(tempfile, "TemporaryFile", refusing(closed))
    place = kernel_cache.folder()
    assert place == mine / name
    assert kernel_cache.is_complete(place)
    kernel_cache.discard(place)
    assert kernel_cache.folder() == place
    assert not kernel_cache.is_complete(place)


def refusing(closed: Path) -> Any:
    """TemporaryFile on a disk where `closed` cannot be written, which a test by root cannot have otherwise."""
    real = tempfile.TemporaryFile

    def temporary_file(dir: Path) -> Any:  # noqa: A002 -- the name of the real one
        if dir.is_relative_to(closed):
            raise PermissionError(13, "Permission denied", str(dir))
        return real(dir=dir)

    return temporary_file


def test_other_sources_have_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    here = kernel_cache.folder()
    monkeypatch.setattr(kernel_cache, "_processor", lambda: "another")
    assert kernel_cache.folder() != here


@pytest.mark.parametrize("change", ["moved", "touched"])
def test_sources_that_numba_takes_for_others_have_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Else a folder that is complete for one of two installations would let the other compile in its own process."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    sources = tmp_path / "one"
    shutil.copytree(kernel_cache._SOURCES, sources)
    monkeypatch.setattr(kernel_cache, "_SOURCES", sources)
    here = kernel_cache.folder()
    assert kernel_cache.folder() == here
    if change == "moved":
        monkeypatch.setattr(kernel_cache, "_SOURCES", sources.rename(tmp_path / "two"))
    else:
        os.utime(sources / "kernels" / "compiled" / "find.py", (1, 1))
    assert kernel_cache.folder() != here


def test_a_user_without_a_home_has_a_folder_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # knows nobody
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert list(kernel_cache._bases())[1:] == [tmp_path / f"steelyard-kernels-{os.getuid()}"]


def test_a_machine_without_temporary_files_has_the_folder_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert kernel_cache.folder().parent == tmp_path
    assert list(kernel_cache._bases())[-1].parent == Path("/dev/shm")


def test_kernels_for_a_named_processor_are_the_same_ones_on_every_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    here = kernel_cache.folder()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    generic = kernel_cache.folder()
    assert generic != here
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+avx2")
    assert kernel_cache.folder() != generic
    # The machine is not asked what it is.
    assert kernel_cache._processor() == "generic +avx2"


def test_a_takeover_that_waits_for_another_one_stops_at_once() -> None:
    with kernels_at_start._one_at_a_time:
        takeover = kernels_at_start.Takeover()
        takeover.start()
        takeover.stop()
        assert takeover.wait(10)


def test_a_server_stops_within_its_grace_and_in_order_while_kernels_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(place: Path) -> None:
        loading.set()
        assert go_on.wait(SECONDS)

    # Of another server of this process, and of this one: of each the lock would be waited for.
    monkeypatch.setattr(kernel_cache, "is_complete", lambda place: True)
    monkeypatch.setattr(kernels_at_start, "_load", load)
    monkeypatch.setattr(kernels_at_start.kernels, "active", kernels_at_start.plain)
    settings = [
        Settings(data_dir=tmp_path / name, listen="127.0.0.1:0", kernels="auto", grace_seconds=2)
        for name in "ab"
    ]
    servers = [Server(setting) for setting in settings]
    try:
        for server in servers:
            server.start()
        assert loading.wait(SECONDS)
        assert [server.stop() for server in servers] == [True, True]
        assert not go_on.is_set()
        assert any(thread.name == "kernels" for thread in threading.enumerate())
    finally:
        go_on.set()
        assert all(server._kernels.wait(SECONDS) for server in servers)


# A process that forks while a server in it imports numba, and what becomes of a child that imports numba too.
FORK = """
    import json, os, signal, sys, time
    from steelyard_server.kernels_at_start import Takeover

    takeover = Takeover()
    takeover.start()
    deadline = time.monotonic() + 60
    while "numba" not in sys.modules:
        assert time.monotonic() < deadline, "numba is not imported"
        time.sleep(0.001)
    child = os.fork()
    if not child:
        signal.alarm(30)
        import numba
        os._exit(0)
    print(json.dumps({"status": os.waitpid(child, 0)[1]}))
    takeover.stop()
    assert takeover.wait(60)
"""


def test_a_process_forked_while_the_kernels_are_loaded_can_import_what_they_need() -> None:
    assert answer(process(FORK)) == {"status": 0}


def test_the_command_compiles_once(tmp_path: Path) -> None:
    left_unfinished(tmp_path)
    command = [sys.executable, "-m", kernel_cache.__name__]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=SECONDS
        ).stdout
        for _ in range(2)
    ]
    assert said[0].startswith("compiled the kernels in ")
    assert said[1] == ""


def test_the_batches_of_a_server_do_not_depend_on_its_kernels(tmp_path: Path) -> None:
    drawn = []
    for kind in ("numpy", "compiled"):
        with steelyard.testing.ServerProcess(tmp_path / kind, kernels=kind) as server:
            client = server.client()
            client.create_dataset("d", size=5000)
            run = client.create_run(
                "r", dataset="d", batch_size=64, seed=3, staleness=0, draw={"method": "scored", "floor": 0.1}
            )
            batches = []
            with run.join() as session:
                for _ in range(20):
                    batch = session.next()
                    session.report(batch, (batch.ids % 7 + batch.step).astype("float32"))
                    batches.append((batch.ids.tolist(), batch.probability.tolist()))
            drawn.append(batches)
    assert drawn[0] == drawn[1]
