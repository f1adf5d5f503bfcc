"""``memalign memory show``: a guideline or a case, where it comes from, and what it led to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import AsJson, Database, JudgeName
from memalign.errors import NotFound

if TYPE_CHECKING:
    from memalign.judge import Judge
    from memalign.memory import Provenance
    from memalign.records import Episode, Feedback, Guideline

_SHORT = 160
_VERDICTS = 5
"""How many of the verdicts that something touched are listed for readers."""


def show(
    key: Annotated[str, typer.Argument(metavar="ID", help="Of a guideline or a case.")], db: Database, judge: JudgeName = "", json: AsJson = False
) -> None:
    """Show a guideline with its cases, or a case with its guidelines: all versions, and the verdicts that it touched."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit

    with opened(db, judge) as found:
        guidelines = {guideline.id: guideline for guideline in found.memory.guidelines(all_states=True)}
        held = {episode.feedback.id: episode for episode in found.memory.episodes()}
        came = _provenance(found, key, held)
    if json:
        shown: dict[str, Any]
        if came.kind == "guideline":
            guideline = guidelines.get(came.id)
            cases = () if guideline is None else guideline.evidence_for + guideline.evidence_against
            shown = {"guideline": guideline and asdict(guideline), "cases": [_episode(held[case]) for case in cases if case in held]}
        else:
            resting = [guideline for guideline in guidelines.values() if came.id in guideline.evidence_for + guideline.evidence_against]
            shown = {"case": _episode(held[came.id]) if came.id in held else None, "guidelines": [asdict(guideline) for guideline in resting]}
        emit({**shown, "provenance": came.to_dict()})
    elif came.kind == "guideline":
        _show_guideline(found, came, guidelines.get(came.id), held)
    else:
        _show_case(found, came, held.get(came.id))


def _provenance(judge: Judge, key: str, held: Mapping[str, Episode]) -> Provenance:
    """Of a guideline's id, a case's id, or what only one case that memory holds begins with."""
    try:
        return judge.memory.provenance(key)
    except NotFound:
        matches = [case for case in held if case.startswith(key)]
        if len(matches) == 1:
            return judge.memory.provenance(matches[0])
        told = f"{len(matches)} cases begin with it: give more of the id" if matches else "see: memalign memory list --episodes"
        raise NotFound(f"no guideline or case {key!r} in judge {judge.name!r}; {told}") from None


def _show_guideline(judge: Judge, came: Provenance, guideline: Guideline | None, held: Mapping[str, Episode]) -> None:
    from memalign.cli.printing import say

    newest = came.guidelines[-1]
    pinned = ", pinned" if newest.pinned else ""
    say(f"{newest.id} (version {newest.version}, {newest.state if guideline is not None else 'no longer held'}{pinned})")
    say(newest.text)
    for version in came.guidelines[:-1]:
        if version.text != newest.text:
            say(f"version {version.version} said: {version.text}")
    records = {record.id: record for record in came.records}
    roles = {role: list(dict.fromkeys(link.record_id for link in came.links if link.role == role)) for role in ("for", "against", "seen")}
    roles["seen"] = [case for case in roles["seen"] if case not in roles["for"] + roles["against"]]
    for role, title in (("for", "for:"), ("against", "against:"), ("seen", "in sight when it was made, but no evidence:")):
        if roles[role]:
            say(title)
        for case in roles[role]:
            withdrawn = "" if case in held else "  (withdrawn)"
            _say_case(judge, f"  {case}{withdrawn}", records[case].feedback)
    _say_verdicts(judge, came)


def _show_case(judge: Judge, came: Provenance, episode: Episode | None) -> None:
    from memalign.cli.printing import say
    from memalign.rendering import item_text

    newest = came.records[-1]
    feedback = newest.feedback if episode is None else episode.feedback
    state = "" if episode is not None else " (waits for the next align)" if newest.since is None else " (withdrawn)"
    say(f"case {feedback.id}{state}: {judge.scale.label_of(feedback.value)}" + (f", by {feedback.annotator}" if feedback.annotator else ""))
    say(item_text(feedback.item))
    if feedback.rationale:
        say(f"reason: {feedback.rationale}")
    if episode is not None and episode.judged is not None:
        say(f"the judge had said: {judge.scale.label_of(episode.judged)}")
    where = f" from {feedback.source}" if feedback.source else ""
    say(f"given {feedback.created_at:%Y-%m-%d %H:%M}{where}")
    for version in came.records[:-1]:
        if not version.feedback.says_the_same_as(feedback):
            _say_case(judge, f"version {version.version} said:", version.feedback)
    roles: dict[str, str] = {}
    for link in came.links:
        roles[link.guideline_id] = link.role if roles.get(link.guideline_id, "seen") == "seen" else roles[link.guideline_id]
    resting = {version.id: version for version in came.guidelines if roles[version.id] != "seen"}
    seen = {version.id: version for version in came.guidelines if roles[version.id] == "seen"}
    say("guidelines that rest on it:" if resting else "no guideline rests on it")
    for rests in resting.values():
        say(f"  {rests.id}  ({roles[rests.id]}, {rests.state})  {rests.text}")
    if seen:
        say(f"made with it in sight: {', '.join(seen)}")
    _say_verdicts(judge, came)


def _say_case(judge: Judge, head: str, feedback: Feedback) -> None:
    from memalign.cli.printing import say
    from memalign.rendering import item_text, one_line

    reason = one_line(feedback.rationale, _SHORT)
    say(f"{head}  {judge.scale.label_of(feedback.value)}{': ' + reason if reason else ''}")
    say(f"      {one_line(item_text(feedback.item), _SHORT)}")


def _say_verdicts(judge: Judge, came: Provenance) -> None:
    from memalign.cli.printing import say

    say(f"verdicts that it touched: {came.verdict_count}")
    for verdict in came.verdicts[:_VERDICTS]:
        say(f"  {verdict.id or '-'}  {judge.scale.label_of(verdict.value)}  revision {verdict.revision}, by {', '.join(verdict.through)}")


def _episode(episode: Episode) -> dict[str, Any]:
    return {**asdict(episode.feedback), "judged": episode.judged, "stored_at": episode.stored_at}
