"""The weights of a step that has left memory: again from its reports, which the journal keeps.

They lie between its draw and the record that closed it: the last of its reports, a StepClosed, an attempt that went on
behind it, or the draw that left it behind. Where a rule read more than the reports (columns as of the draw, the steps
before), the run is folded again from the newest checkpoint before the draw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from steelyard import weigh
from steelyard_server.core.events import AttemptBegan, BatchDrawn, Event, LossesReported, StepClosed
from steelyard_server.runs import rules
from steelyard_server.runs.errors import Missing
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.messages import Slice
from steelyard_server.runs.reader import JournalReader
from steelyard_server.runs.steps import StepRecord
from steelyard_server.runs.weighing import step_weights


@dataclass(frozen=True, slots=True, eq=False)
class Unweighed:
    """A batch that `rule` weighs by what memory has no more. `seed` and `window`: the run's, and its report_window."""

    served: Slice
    rule: weigh.Rule
    seed: int
    window: int

    @property
    def needs_fold(self) -> bool:
        """Whether reports are not enough."""
        return rules.needs_fold(self.rule)

    def weighed(self, reader: JournalReader) -> Slice:
        """The batch with its weights. Reads up to `window` steps of the journal, a few where all was reported.

        Missing where some of its reports are pruned. Superseded, RecordDamaged: as the reader.
        """
        return self._of(closed_record(reader, self.served.drawn.step, self.window))

    def folded(self, log: RunLog) -> Slice:
        """The same by folding the run again: as long as loading it takes. Nothing may be undone meanwhile.

        Missing where what leads there is pruned.
        """
        return self._of(log.weighed_record(self.served.drawn.step))

    def _of(self, record: StepRecord | None) -> Slice:
        step = self.served.drawn.step
        if record is None:
            raise Missing(f"the batch of step {step} is retained, but not all that weighs it")
        weight = step_weights(self.rule, record, self.seed)
        return replace(self.served, drawn=record.drawn, weight=weight)


def closed_record(reader: JournalReader, step: int, window: int) -> StepRecord | None:
    """What was served and reported at `step`, as the run held it when the step was closed; None where the journal ends
    before that, or has a hole."""
    record: StepRecord | None = None
    for page in reader.pages(reader.place_of(step)):
        for _, event in page:
            if record is None:
                assert isinstance(event, BatchDrawn), event
                record = StepRecord.of(event)
            elif isinstance(event, LossesReported) and event.step == step:
                record.take(event.offset, event.signals)
            elif _closes(event, step, window):
                return record
            if record.closed:
                return record
    return None


def _closes(event: Event, step: int, window: int) -> bool:
    match event:
        case StepClosed():
            return event.step == step
        case AttemptBegan():
            return event.start_step > step
        case BatchDrawn():
            return event.step > step + window
    return False
