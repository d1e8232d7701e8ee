"""A client of one server: datasets and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.admin import Admin
from steelyard.arguments import float_array, id_array, pack_ids, seconds, whole
from steelyard.channel import check_address
from steelyard.credentials import Credentials, resolve
from steelyard.errors import InvalidArgument
from steelyard.info import DatasetInfo, RunInfo, Staleness, asks_for_mix, check_mix, dataset_info, run_info
from steelyard.missing import warn_of_all
from steelyard.run import Run
from steelyard.structs import to_struct
from steelyard.transport import Transport
from steelyard.v1 import datasets_pb2, runs_pb2

# Values of one request: with their ids well under the server's message limit.
_CHUNK = 1 << 19

_SHUFFLE: Mapping[str, Any] = {"method": "shuffle"}
_NO_MIX: Mapping[str, Any] = {"method": "none"}


def connect(address: str, *, credentials: Credentials | None = None, timeout: float = 30.0) -> Client:
    """A client of the server at HOST:PORT or unix:PATH. Nothing is sent before the first call.

    `credentials`: TLS and a token (steelyard.Credentials). What is not given is taken from the environment:
    STEELYARD_CA, STEELYARD_CERT, STEELYARD_KEY, STEELYARD_TOKEN_FILE, STEELYARD_SERVER_NAME. Without any of them the
    connection is plaintext. `timeout` is how long a call may take, in seconds; it includes waiting for a server that is
    not there yet.
    """
    return Client(check_address(address), credentials=resolve(credentials, address), timeout=timeout)


class Client:
    """Datasets and runs of one server.

    Picklable: the address, the timeout and the credentials travel, the connection does not. Safe to use from many
    threads. In a process forked from one that has used gRPC every call raises FailedPrecondition at once, because gRPC
    would sometimes hang there; spawn and forkserver children are free.

    Errors of every call: those of steelyard.errors; Unavailable and DeadlineExceeded name the server and what was
    asked of it. Calls that may be repeated are, for a second or two, while the server says UNAVAILABLE.
    """

    def __init__(
        self, address: str, *, credentials: Credentials | None = None, timeout: float = 30.0
    ) -> None:
        checked = None if credentials is None else credentials.checked(address)
        self._transport = Transport(check_address(address), seconds("timeout", timeout), checked)
        self._on_close: Callable[[], None] | None = None  # set by what owns this client's server

    @property
    def address(self) -> str:
        return self._transport.address

    @property
    def credentials(self) -> Credentials | None:
        return self._transport.credentials

    @property
    def timeout(self) -> float:
        """How long a call may take, in seconds."""
        return self._transport.timeout

    @property
    def admin(self) -> Admin:
        """Backups and checks, for whoever operates the server."""
        return Admin(self._transport)

    def __repr__(self) -> str:
        return f"steelyard.Client({self.address!r})"

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[str, float, Credentials | None]]:
        return _unpickled, (self.address, self.timeout, self.credentials)

    # -- datasets --------------------------------------------------------------------------------------------------

    def create_dataset(
        self, name: str, size: int, *, fingerprint: str = "", exist_ok: bool = False
    ) -> DatasetInfo:
        """Creates a dataset of `size` examples with the ids 0..size-1.

        `fingerprint` is the caller's word for the content, compared at a join. AlreadyExists, unless `exist_ok` and
        size and fingerprint agree with what is there.
        """
        request = datasets_pb2.CreateDatasetRequest(
            name=name, size=whole("size", size), fingerprint=fingerprint, exist_ok=exist_ok
        )
        answer = self._transport.call(
            lambda to: to.datasets.CreateDataset, request, f"creating dataset {name!r}", once=True
        )
        return dataset_info(answer.dataset)

    def dataset(self, name: str) -> DatasetInfo:
        """The dataset as it stands. NotFound."""
        request = datasets_pb2.GetDatasetRequest(name=name)
        return dataset_info(
            self._transport.call(
                lambda to: to.datasets.GetDataset, request, f"asking for dataset {name!r}"
            ).dataset
        )

    def list_datasets(self) -> list[DatasetInfo]:
        """All datasets, sorted by name."""
        answer = self._transport.call(
            lambda to: to.datasets.ListDatasets, datasets_pb2.ListDatasetsRequest(), "listing the datasets"
        )
        return [dataset_info(one) for one in answer.datasets]

    def delete_dataset(self, name: str) -> None:
        """Deletes a dataset that no run uses. FailedPrecondition while one does; NotFound."""
        request = datasets_pb2.DeleteDatasetRequest(name=name)
        self._transport.call(
            lambda to: to.datasets.DeleteDataset, request, f"deleting dataset {name!r}", once=True
        )

    def append_examples(self, name: str, count: int, expected_size: int | None = None) -> DatasetInfo:
        """Appends `count` examples; the first draw of every run after this returns may draw them.

        `expected_size` is the size that the caller believes the dataset has (asked for by default). With it the call
        may be repeated safely: where the dataset has `count` more than that already, the call is taken for a retry,
        appends nothing and returns the dataset as it is. So a second append of as many examples must give the new size.

        Callers that append side by side must each pass the size that they have seen, of an answer or of dataset(): of
        two that saw the same size one appends. The other gets FailedPrecondition, as everyone does for whom the dataset
        has another size, and looks again; but where both append as many, the other is taken for a retry of the first
        and returns as if it had appended.
        """
        if expected_size is None:
            expected_size = self.dataset(name).size
        request = datasets_pb2.AppendExamplesRequest(
            name=name, count=whole("count", count), expected_size=whole("expected_size", expected_size)
        )
        answer = self._transport.call(
            lambda to: to.datasets.AppendExamples, request, f"appending to dataset {name!r}"
        )
        return dataset_info(answer.dataset)

    def retire(self, name: str, ids: npt.ArrayLike) -> DatasetInfo:
        """Retires ids: no draw after this returns gives them out, in any run of the dataset.

        Batches that were drawn before are served as they were drawn, those that were drawn ahead for a trainer's
        prefetch included; so a trainer may still meet the ids for some batches. InvalidArgument names the first id out
        of range.
        """
        values = id_array(ids)
        info = None
        for first in range(0, max(len(values), 1), _CHUNK):
            request = datasets_pb2.RetireIdsRequest(name=name, ids=pack_ids(values[first : first + _CHUNK]))
            info = self._transport.call(
                lambda to: to.datasets.RetireIds, request, f"retiring ids of dataset {name!r}"
            ).dataset
        assert info is not None
        return dataset_info(info)

    def set_column(
        self,
        name: str,
        column: str,
        values: npt.ArrayLike,
        *,
        ids: npt.ArrayLike | None = None,
        start: int = 0,
    ) -> DatasetInfo:
        """Sets a static column: float32 `values` at `ids`, or at the ids from `start` on where none are given.

        Creates the column where there is none; ids never set hold NaN. Large arrays travel in parts, each applied at
        once and the whole not atomically; repeat the call after an error. InvalidArgument: ids out of range or
        repeated, counts that differ, infinite values, the name of a derived column.
        """
        floats = float_array("values", values)
        numbers = None if ids is None else id_array(ids)
        if numbers is not None and len(numbers) != len(floats):
            raise InvalidArgument(
                f"expected one value for each id, got {len(floats)} values for {len(numbers)} ids"
            )
        start = whole("start", start)
        info = None
        for first in range(0, max(len(floats), 1), _CHUNK):
            part = slice(first, first + _CHUNK)
            request = datasets_pb2.SetColumnRequest(
                name=name, column=column, values=wire.pack(floats[part], np.float32)
            )
            if numbers is None:
                request.start = start + first
            else:
                request.ids.CopyFrom(pack_ids(numbers[part]))
            purpose = f"setting column {column!r} of dataset {name!r}"
            info = self._transport.call(lambda to: to.datasets.SetColumn, request, purpose).dataset
        assert info is not None
        return dataset_info(info)

    # -- runs ------------------------------------------------------------------------------------------------------

    def create_run(
        self,
        name: str,
        *,
        dataset: str,
        batch_size: int,
        seed: int = 0,
        staleness: Staleness = 16,
        draw: Mapping[str, Any] = _SHUFFLE,
        mix: Mapping[str, Any] = _NO_MIX,
        weigh: Mapping[str, Any] | None = None,
        on_nonfinite: Literal["skip", "reject"] = "skip",
        report_timeout: float = 600.0,
        history_size: int = 8,
        retain_steps: int = 100_000,
        exist_ok: bool = False,
    ) -> Run:
        """Creates a run of `dataset`: global batches of `batch_size` ids, drawn and weighed by these policies; by
        default all examples weigh alike, or what the draw gives them where it gives weights.

        `mix`: how much of a batch each group of examples gives, the group being a number in a column of the dataset;
        then `draw` draws within each group.

        `staleness`: a draw lacks the reports of that many steps, no more and no fewer; "any": it takes what has
        arrived. `on_nonfinite`: whether a non-finite loss is left out or refuses its report. `report_timeout`: seconds
        after which a step whose reports stopped coming is closed. `history_size`: (step, loss) kept per example,
        0 for none.
        `retain_steps`: the last steps to which the run can be rewound without a bookmark.

        AlreadyExists, unless `exist_ok` and everything agrees with what is there; the message names the first
        difference. InvalidArgument: a policy with an unknown field (the message names the nearest) or a value out of
        range. NotFound: no such dataset.
        """
        if on_nonfinite not in ("skip", "reject"):
            raise InvalidArgument(f'on_nonfinite: expected "skip" or "reject", got {on_nonfinite!r}')
        reject = on_nonfinite == "reject"
        spec = runs_pb2.RunSpec(
            name=name,
            dataset=dataset,
            batch_size=whole("batch_size", batch_size, at_least=1, below=2**32),
            seed=whole("seed", seed),
            policy=runs_pb2.Policy(
                draw=to_struct(draw, "draw"),
                mix=to_struct(mix, "mix"),
                weigh=None if weigh is None else to_struct(weigh, "weigh"),
            ),
            staleness=_staleness(staleness),
            on_nonfinite=runs_pb2.ON_NONFINITE_REJECT if reject else runs_pb2.ON_NONFINITE_SKIP,
            report_timeout_seconds=seconds("report_timeout", report_timeout),
            history_size=whole("history_size", history_size, below=2**32),
            retain_steps=whole("retain_steps", retain_steps, at_least=1),
        )
        if asks_for_mix(mix):
            self._transport.require("mix", f"mix {dict(mix)!r}", f"creating run {name!r}")
        request = runs_pb2.CreateRunRequest(spec=spec, exist_ok=exist_ok)
        answer = self._transport.call(
            lambda to: to.runs.CreateRun, request, f"creating run {name!r}", once=True
        )
        check_mix(mix, answer.run, f"creating run {name!r}")
        warn_of_all(name, answer.run.missing_inputs)
        return Run(self, name)

    def run(self, name: str) -> Run:
        """The run of that name. NotFound."""
        run = Run(self, name)
        run.info()
        return run

    def list_runs(self) -> list[RunInfo]:
        """All runs, sorted by name."""
        answer = self._transport.call(
            lambda to: to.runs.ListRuns, runs_pb2.ListRunsRequest(), "listing the runs"
        )
        return [run_info(one) for one in answer.runs]

    def delete_run(self, name: str) -> None:
        """Deletes a run, its history and its journal. Its sessions end with NotFound. NotFound."""
        self._transport.call(
            lambda to: to.runs.DeleteRun,
            runs_pb2.DeleteRunRequest(name=name),
            f"deleting run {name!r}",
            once=True,
        )

    # -- the connection --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the connection: calls under way and later ones are Unavailable. Sessions have their own."""
        self._transport.close()
        action, self._on_close = self._on_close, None
        if action is not None:
            action()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unpickled(address: str, timeout: float, credentials: Credentials | None = None) -> Client:
    return Client(address, credentials=credentials, timeout=timeout)


def _staleness(value: Staleness) -> runs_pb2.Staleness:
    if isinstance(value, str):
        if value != "any":
            raise InvalidArgument(f'staleness: expected a number of steps or "any", got {value!r}')
        return runs_pb2.Staleness(any=True)
    return runs_pb2.Staleness(steps=whole("staleness", value, below=2**32))
