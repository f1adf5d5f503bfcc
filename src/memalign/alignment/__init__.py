"""Alignment: feedback in, both memories updated, in one transaction and one revision; and what experts take back, out of both."""

from memalign.alignment.adopt import Learned, adopt
from memalign.alignment.align import align, record
from memalign.alignment.asking import HOSTED, IN_PROCESS
from memalign.alignment.budget import Limits
from memalign.alignment.coach import Advice, coach
from memalign.alignment.gate import DRAWS
from memalign.alignment.proof import Refused, Replayed, Verification
from memalign.alignment.report import AlignReport, FailedBatch
from memalign.alignment.utility import RECORDS, measure
from memalign.alignment.verify import Mode, Replay, Trying
from memalign.alignment.withdrawal import Withdrawal

__all__ = [
    "DRAWS",
    "HOSTED",
    "IN_PROCESS",
    "RECORDS",
    "Advice",
    "AlignReport",
    "FailedBatch",
    "Learned",
    "Limits",
    "Mode",
    "Refused",
    "Replay",
    "Replayed",
    "Trying",
    "Verification",
    "Withdrawal",
    "adopt",
    "align",
    "coach",
    "measure",
    "record",
]
