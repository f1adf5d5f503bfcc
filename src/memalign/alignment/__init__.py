"""Alignment: feedback in, both memories updated, in one transaction and one revision."""

from memalign.alignment.align import align, unalign
from memalign.alignment.budget import Limits
from memalign.alignment.distil import HOSTED, IN_PROCESS
from memalign.alignment.report import AlignReport, FailedBatch

__all__ = ["HOSTED", "IN_PROCESS", "AlignReport", "FailedBatch", "Limits", "align", "unalign"]
