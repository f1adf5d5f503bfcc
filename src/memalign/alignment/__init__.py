"""Alignment: feedback in, both memories updated, in one transaction and one revision."""

from memalign.alignment.align import align, unalign
from memalign.alignment.report import AlignReport, FailedBatch

__all__ = ["AlignReport", "FailedBatch", "align", "unalign"]
