"""The commands, run in this process against a real endpoint on the loopback address."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from conftest import distilled, says
from endpoint import ScriptedEndpoint, completion, fault
from memalign import Judge, Retention, Scale
from memalign.agreement import Agreement
from memalign.cli import app
from memalign.cli.evaluate import _show
from memalign.models import ChatRequest, Message
from memalign.open_scale import OpenScale

Run = Callable[..., Result]

INSTRUCTIONS = "Is the reply polite?"


def answered(body: dict[str, Any]) -> str:
    """One guideline for each reason; "no" to rude replies once there is a guideline, else "yes"."""
    request = ChatRequest(messages=tuple(Message(message["role"], message["content"]) for message in body["messages"]))
    schema = json.dumps(body.get("response_format", {}))
    if "operations" in schema:
        return json.dumps(distilled(request))
    if "groups" in schema:
        return json.dumps({"groups": []})
    taught = "Guidelines of the experts" in request.messages[0].content
    return json.dumps(says("no" if taught and "rude" in request.messages[-1].content else "yes"))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(answered) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("MEMALIGN_RETRIES", "1")
        yield running


@pytest.fixture
def run(db: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MEMALIGN_DB", db)

    def invoke(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def judge(run: Run, endpoint: ScriptedEndpoint) -> str:
    run("init", "--judge", "polite", "--instructions", INSTRUCTIONS, "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/test-embed")
    return "polite"


def row(number: int, value: Any = False, rationale: str = "Never be rude.", **more: Any) -> dict[str, Any]:
    outputs = f"a {'kind' if value else 'rude'} reply, number {number}"
    return {"id": f"r{number}", "inputs": f"question {number}", "outputs": outputs, "value": value, "rationale": rationale} | more


def jsonl(path: Path, *rows: Mapping[str, Any] | str) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def taught(run: Run, judge: str, tmp_path: Path) -> str:
    run("align", jsonl(tmp_path / "feedback.jsonl", row(1), row(2), row(3, value=True, rationale="")))
    return judge


def test_a_change_of_embedder_is_followed_and_finished(run: Run, taught: str, db: str, endpoint: ScriptedEndpoint) -> None:
    assert 'to_embed": 0' in run("memory", "list", "--json").stdout
    changed = run("init", "--judge", taught, "--embedder", "openai/another").stdout
    assert "the former embedder serves meanwhile; to do it now: memalign memory index" in changed
    left = "3 of 3 text(s) are still to be embedded by openai/another; until then judgements search by openai/test-embed"
    assert left in run("memory", "list").stdout
    assert left in run("doctor", "--no-models", "--db", db).stdout
    endpoint.requests.clear()
    done = run("memory", "index").stdout
    assert done.startswith("3 text(s) embedded\nindex of 3 items made")
    assert {asked.body["model"] for asked in endpoint.requests} == {"another"}
    assert "still to be embedded" not in run("memory", "list").stdout
    assert json.loads(run("memory", "index", "--json").stdout)["embedded"] == 0


def cases_shown(endpoint: ScriptedEndpoint) -> int:
    return sum(message["role"] == "assistant" for message in endpoint.requests[-1].body["messages"])


def test_which_cases_are_shown_is_set_for_good(run: Run, taught: str, db: str, endpoint: ScriptedEndpoint) -> None:
    one = ["judge", "--inputs", "question 9", "--outputs", "a rude reply, number 9"]
    run("init", "--judge", taught, "--retrieve", "floor=-1")
    run(*one)
    assert cases_shown(endpoint) == 3
    assert "retrieval changed" in run("init", "--judge", taught, "--retrieve", "words=on", "--retrieve", "sources=elsewhere.jsonl").stdout
    run(*one)
    assert cases_shown(endpoint) == 0
    run("init", "--judge", taught, "--retrieve", "sources=", "--retrieve", "k=1", "--retrieve", "verdict_margin=0")
    run(*one)
    assert cases_shown(endpoint) == 1
    judge = Judge.load(db, taught)
    assert judge.retrieval.to_dict() == {"words": True, "verdict_margin": 0.0}
    assert (judge.k, judge.floor) == (1, -1.0)


def test_which_cases_are_shown_is_tried_without_being_stored(run: Run, taught: str, db: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    before = Judge.load(db, taught).settings
    one = ["judge", "--inputs", "question 9", "--outputs", "a rude reply, number 9", "--retrieve", "floor=-1"]
    for given, count in (((), 3), (("k=2",), 2), (("until=2020-01-01",), 0), (("annotators=ann", "annotators=ben"), 0), (("words=on", "k=0"), 0)):
        run(*one, *(part for text in given for part in ("--retrieve", text)))
        assert cases_shown(endpoint) == count, given
    run("eval", jsonl(tmp_path / "unseen.jsonl", row(9)), "--retrieve", "floor=-1", "--retrieve", "k=1", code=0)
    assert cases_shown(endpoint) == 1
    assert Judge.load(db, taught).settings == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("flor=1", "did you mean floor?"),
        ("k", "is not NAME=VALUE"),
        ("k=few", "k takes a whole number, not 'few'"),
        ("words=perhaps", "words takes on or off"),
        ("verdict_margin=9", "from 0 to 2"),
        ("since=yesterday", "retrieval: "),
        ("k=-1", "k must be 0 or more"),
        ("floor=nan", "floor"),
    ],
)
def test_settings_of_retrieval_that_are_none(run: Run, taught: str, given: str, said: str) -> None:
    assert said in run("judge", "--outputs", "x", "--retrieve", given, code=2).stderr
    assert said in run("init", "--judge", taught, "--retrieve", given, code=2).stderr


# Options that all commands share


@pytest.mark.parametrize("command", ["demo", "init", "align", "judge", "eval", "calibrate", "doctor", "memory", "memory list", "memory show"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    assert "Usage:" in run(*command.split(), "--help").stdout


def test_the_version(run: Run) -> None:
    assert run("--version").stdout.startswith("memalign 0.")


def test_a_missing_memory_is_named_and_not_made(run: Run, tmp_path: Path) -> None:
    result = run("memory", "list", "--db", str(tmp_path / "typo.db"), code=2)
    assert result.stderr.startswith("error: there is no memory")
    assert "Traceback" not in result.output
    assert not (tmp_path / "typo.db").exists()


def test_a_folder_and_a_foreign_file_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database at all, just a page of notes")
    assert "folder" in run("memory", "list", "--db", str(tmp_path), code=2).stderr
    assert "not a usable SQLite database" in run("memory", "list", "--db", str(tmp_path / "notes.db"), code=2).stderr


def test_a_mistyped_judge_lists_the_known_ones(run: Run, judge: str) -> None:
    assert "it holds: 'polite'; did you mean 'polite'?" in run("memory", "list", "--judge", "polit", code=2).stderr


def test_of_several_judges_one_has_to_be_chosen(run: Run, judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "--judge", "short", "--instructions", "Is it short?", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e")
    assert "'polite', 'short'" in run("memory", "list", code=2).stderr
    monkeypatch.setenv("MEMALIGN_JUDGE", "short")
    assert json.loads(run("memory", "list", "--json").stdout)["judge"] == "short"


def test_arguments_that_are_no_text_are_refused(run: Run, taught: str, db: str) -> None:
    for arguments in (("memory", "unalign", "\udcff"), ("memory", "show", "\udcff"), ("init", "--judge", taught, "--instructions", "a\udcff")):
        assert "\\udcff' is not valid UTF-8" in run(*arguments, code=2).stderr
    assert Judge.load(db, taught).instructions == INSTRUCTIONS


def test_errors_keep_their_traceback_for_who_debugs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from memalign.errors import ConfigurationError

    monkeypatch.setenv("MEMALIGN_DEBUG", "1")
    with pytest.raises(ConfigurationError):
        run("memory", "list")


def test_an_error_in_json_is_one_document(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    missing = run("align", str(tmp_path / "nowhere.jsonl"), "--json", code=2)
    told = json.loads(missing.stdout)
    assert (told["kind"], told["retryable"]) == ("ConfigurationError", False)
    assert missing.stderr == f"error: {told['error']}\n"
    endpoint.then(503)
    told = json.loads(run("judge", "--outputs", "x", "--json", code=3).stdout)
    assert (told["kind"], told["retryable"]) == ("ModelUnavailable", True)
    assert json.loads(run("memory", "show", "g9", "--json", code=2).stdout)["kind"] == "NotFound"
    assert run("memory", "show", "g9", code=2).stdout == ""


# init


def test_init_says_what_changed(run: Run, judge: str, db: str) -> None:
    same = run("init", "--judge", "polite", "--instructions", INSTRUCTIONS, "--model", "openai/m")
    assert "nothing changed" in same.stdout
    changed = run("init", "--judge", "polite", "--k", "7", "--no-explain").stdout
    assert changed.splitlines() == ["judge 'polite': k changed from 5 to 7", "judge 'polite': explain changed from True to False"]
    local = run("init", "--judge", "polite", "--model", "local/qwen2.5-coder-1.5b").stdout
    assert "model changed from 'openai/m' to 'local/qwen2.5-coder-1.5b'" in local
    assert "k changed" not in local  # it was chosen, and stays
    assert "judge 'polite': k changed" not in local  # it was chosen
    stored = Judge.load(db, "polite")
    assert (stored.k, stored.reflection_model) == (7, "local/qwen2.5-coder-1.5b")


def test_init_keeps_limits_of_retention(run: Run, db: str) -> None:
    limits = Retention(max_age_days=365, max_records=3)
    judge = Judge("kind", "Is it kind?", Scale.boolean(), "openai/m", memory=db, retention=limits)
    _ = judge.memory.judge_id  # registers it
    judge.close()
    assert run("init", "--judge", "kind", "--k", "7").stdout == "judge 'kind': k changed from 5 to 7\n"
    assert Judge.load(db, "kind").retention == limits
    changed = run("init", "--judge", "kind", "--max-age-days", "30", "--temperature", "0.5").stdout
    assert "retention changed from" in changed
    assert "temperature changed from 0.0 to 0.5" in changed
    assert Judge.load(db, "kind").retention == Retention(max_age_days=30, max_records=3), "what is not given stays"
    assert "to None" in run("init", "--judge", "kind", "--max-age-days", "0", "--max-records", "0").stdout
    assert Judge.load(db, "kind").retention is None


def test_init_in_json_and_what_comes_next(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memalign.embedders.minilm.is_installed", lambda: False)
    new = ["init", "--db", str(tmp_path / "new.db"), "--judge", "kind", "--instructions", "x", "--scale", "boolean", "--model", "openai/m"]
    told = run(*new)
    assert told.stdout.splitlines()[-1] == f"to teach it, run: memalign align FEEDBACK.jsonl --db {tmp_path / 'new.db'}"
    assert "pip install 'memalign[minilm]', or repeat this with --embedder" in told.stderr
    again = json.loads(run(*new, "--k", "7", "--json").stdout)
    assert (again["judge"], again["registered"], again["changed"]) == ("kind", False, {"k": [5, 7]})
    first = json.loads(run(*new[:3], "--judge", "other", *new[5:], "--json").stdout)
    assert (first["registered"], first["changed"], first["settings"]["model"]) == (True, {}, "openai/m")


def test_annotators_are_weighed(run: Run, judge: str, db: str) -> None:
    first = run("init", "--judge", judge, "--weight", "ann=2", "--weight", "a=b=0.5").stdout
    assert first == "judge 'polite': weights changed from {} to {'ann': 2.0, 'a=b': 0.5}\n"
    assert "weights of annotators (others 1): ann 2, a=b 0.5" in run("memory", "list").stdout
    assert json.loads(run("memory", "list", "--json").stdout)["weights"] == {"ann": 2.0, "a=b": 0.5}
    assert "nothing changed" in run("init", "--judge", judge, "--weight", "ann=2").stdout
    run("init", "--judge", judge, "--k", "7", "--weight", "ann=0", "--weight", "a=b=")
    assert Judge.load(db, judge).weights == {"ann": 0.0}
    for given, said in (("ann", "is not ANNOTATOR=NUMBER"), ("ann=two", "takes a number from 0, not 'two'"), ("ann=-1", "must be numbers from 0")):
        assert said in run("init", "--judge", judge, "--weight", given, code=2).stderr
    for given in ("ann=nan", "ann=inf"):
        assert "must be numbers from 0" in run("init", "--judge", judge, "--weight", given, code=2).stderr
    assert Judge.load(db, judge).weights == {"ann": 0.0}
    run("init", "--judge", judge, "--weight", "ann=1")
    assert "weights of annotators" not in run("memory", "list").stdout


def test_init_refuses_another_scale_and_incomplete_judges(run: Run, judge: str, tmp_path: Path) -> None:
    assert "cannot be changed to score:1-5" in run("init", "--judge", "polite", "--scale", "score:1-5", code=2).stderr
    assert "give --instructions, --scale, --model" in run("init", "--judge", "new", code=2).stderr
    for scale, model in (("stars", "openai/m"), ("boolean", "gpt"), ("boolean", "nobody/gpt")):
        fresh = str(tmp_path / "fresh.db")
        result = run("init", "--db", fresh, "--judge", "new", "--instructions", "x", "--scale", scale, "--model", model, code=2)
        assert result.stderr.startswith("error: unknown") or "provider/model" in result.stderr
        assert not Path(fresh).exists()


def test_instructions_can_come_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "task.txt").write_text("Is it kind?\n")
    run("init", "--judge", "kind", "--instructions", f"@{tmp_path / 'task.txt'}", "--scale", "pairwise", "--model", "openai/m")
    assert "nothing changed" in run("init", "--judge", "kind", "--instructions", "Is it kind?").stdout
    assert "cannot read the instructions" in run("init", "--judge", "kind", "--instructions", "@nowhere.txt", code=2).stderr


# align


def test_align_learns_and_the_same_again_costs_nothing(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "feedback.jsonl", row(1), row(2))
    first = json.loads(run("align", file, "--json", "--actor", "lead").stdout)
    assert (first["new"], len(first["added"]), first["problems"], first["revision"]) == (2, 1, [], 1)
    asked = len(endpoint.requests)
    assert "0 new, 0 changed, 2 unchanged" in run("align", file).stdout
    assert len(endpoint.requests) == asked
    assert json.loads(run("memory", "history", "--json").stdout)[0]["actor"] == "lead"


def test_bad_rows_are_reported_and_good_ones_go_on(run: Run, judge: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "feedback.jsonl", row(1), "{broken", row(2, value="perhaps"), row(3), row(4, colour="red"))
    result = run("align", file, code=1)
    assert f"skipped: {file}: row 2: is not complete JSON" in result.stderr
    assert f"skipped: {file}: row 3, field 'value': 'perhaps' is not on the scale" in result.stderr
    assert f"remark: {file}: row 5, field 'colour'" in result.stderr
    assert "3 new" in result.stdout
    again = json.loads(run("align", file, "--json", code=1).stdout)
    assert [(problem["row"], problem["field"], problem["warning"]) for problem in again["problems"]] == [
        (2, "", False),
        (3, "value", False),
        (5, "colour", True),
    ]


def test_records_of_two_files_with_one_id_do_not_replace_each_other(run: Run, judge: str, tmp_path: Path) -> None:
    mine = jsonl(tmp_path / "ann.jsonl", row(1, annotator="ann"), row(2, annotator="ann"))
    theirs = jsonl(tmp_path / "bob.jsonl", row(1, value=True, annotator="bob"), row(2, annotator="ann"), row(3, annotator="bob"))
    result = run("align", mine, theirs, code=1)
    assert f"skipped: {theirs}: row 1, field 'id': row 1 of {mine} has the same id 'r1' with other content" in result.stderr
    assert "revision 1: 3 new, 0 changed, 1 unchanged" in result.stdout
    assert "changed" in run("align", theirs).stdout


def test_a_remark_alone_is_no_problem(run: Run, judge: str, tmp_path: Path) -> None:
    assert "colour" in run("align", jsonl(tmp_path / "feedback.jsonl", row(1, colour="red")), code=0).stderr


def test_strict_stores_nothing(run: Run, judge: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "feedback.jsonl", row(1), "{broken")
    assert "nothing was stored" in run("align", file, "--strict", code=2).stderr
    assert json.loads(run("memory", "list", "--json").stdout)["counts"]["episodes"] == 0


def test_feedback_on_standard_input_and_in_csv(run: Run, judge: str, tmp_path: Path) -> None:
    run("align", "-", stdin=json.dumps(row(1)) + "\n")
    (tmp_path / "more.csv").write_text("id,inputs,outputs,label,rationale\nr2,question,a rude reply,no,Never be rude.\n")
    run("align", str(tmp_path / "more.csv"))
    assert json.loads(run("memory", "list", "--json").stdout)["counts"]["episodes"] == 2


def test_a_missing_file_is_a_usage_error(run: Run, judge: str, tmp_path: Path) -> None:
    assert "there is no file" in run("align", str(tmp_path / "nowhere.jsonl"), code=2).stderr
    assert "known endings" in run("align", str(tmp_path / "feedback.xml"), code=2).stderr


def test_an_item_beyond_the_embedders_window_is_named_and_stops_no_other(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    too_long = fault("This model's maximum context length is 8192 tokens")
    endpoint.then(400, too_long)
    told = run("align", jsonl(tmp_path / "long.jsonl", row(1, rationale="")), code=1).stdout
    assert "1 record(s) not distilled (r1): openai/test-embed refuses the item" in told
    assert "maximum context length is 8192 tokens" in told
    endpoint.then(400, too_long).then().then(400, too_long)
    more = json.loads(run("align", jsonl(tmp_path / "more.jsonl", row(2, rationale="")), "--json", code=1).stdout)
    assert ([batch["feedback_ids"] for batch in more["failed_batches"]], more["unconsumed"]) == ([["r1"]], 1)
    assert json.loads(run("memory", "list", "--json").stdout)["counts"]["episodes"] == 1
    assert json.loads(run("align", "--json").stdout)["unconsumed"] == 0


def test_a_dropped_connection_while_aligning_loses_nothing(
    run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.then(drop=True).then(drop=True)
    assert "gave no answer in 1 attempt" in run("align", jsonl(tmp_path / "feedback.jsonl", row(1), row(2)), code=3).stderr
    monkeypatch.setenv("MEMALIGN_RETRIES", "3")
    endpoint.then(drop=True)
    report = json.loads(run("align", "--json").stdout)
    assert ([guideline["evidence_for"] for guideline in report["added"]], report["unconsumed"]) == ([["r1", "r2"]], 0)


def test_failed_batches_are_taken_up_by_align_without_a_file(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    usual, endpoint.chat = endpoint.chat, lambda body: "no JSON at all"
    result = run("align", jsonl(tmp_path / "feedback.jsonl", row(1)), code=1)
    assert "not distilled" in result.stdout
    assert re.search(r"1 record\(s\) still wait .* run: memalign align --db \S+", result.stdout)
    assert re.search(r"1 record\(s\) are stored but not fully learned; .* memalign align --db \S+", run("memory", "list").stdout)
    endpoint.chat = usual
    assert "added  g1" in run("align").stdout


def test_a_judge_with_an_open_scale_learns(run: Run, db: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    usual = endpoint.chat
    endpoint.chat = lambda body: json.dumps(says(0.5)) if "verdict" in json.dumps(body.get("response_format", {})) else usual(body)
    scale = OpenScale.of({"type": "number"})
    Judge("polite", INSTRUCTIONS, scale, "openai/m", memory=db, embedder="openai/test-embed").align([])
    file = jsonl(tmp_path / "feedback.jsonl", row(1, value=0.25), row(1, value=0.75, id="r2", annotator="ben"))
    shown = run("align", file).stdout
    assert "2 new" in shown
    assert "experts on" not in shown, "agreement beyond chance is not defined where labels cannot be listed"
    again = json.loads(run("align", file, "--json").stdout)
    assert (again["unchanged"], again["experts"]) == (2, None)
    assert "verdict: 0.5" in run("judge", "--outputs", "a rude reply").stdout


def test_a_verified_alignment_shows_what_it_found_and_an_expert_may_decide_otherwise(
    run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    """The judge of this endpoint says yes to everything, so that no guideline helps."""
    usual = endpoint.chat

    def stubborn(body: Any) -> Any:
        judging = "verdict" in json.dumps(body.get("response_format", {}))
        return json.dumps({"rationale": "Fine.", "verdict": "yes"}) if judging else usual(body)

    endpoint.chat = stubborn
    rows = [row(number) | {"outputs": f"a rude reply {number}", "value": False} for number in range(6)]
    result = run("align", jsonl(tmp_path / "feedback.jsonl", *rows), "--verify", "fast", "--html", str(tmp_path / "report.html"))
    assert "verified (fast), refused: fixed 0 of 6 error(s)" in result.stdout
    assert "fixes none of 6 error(s)" in result.stdout
    assert "memalign memory accept ID" in result.stdout
    page = (tmp_path / "report.html").read_text()
    assert "Refused by verification" in page
    (guideline,) = json.loads(run("memory", "list", "--all", "--json").stdout)["guidelines"]
    assert guideline["state"] == "candidate"
    shown = run("memory", "accept", guideline["id"]).stdout
    assert "g1 is active" in shown
    assert "verified for revision 1: refused: 0 fixed, 0 broken, 6 unchanged, exact McNemar p 1.000 (fixes none of 6 error(s))" in shown
    assert json.loads(run("memory", "accept", "g1", "--json").stdout)["trials"][0]["outcome"] == "refused"
    assert "no guideline" in run("memory", "accept", "g77", code=2).stderr


def test_options_of_align_that_cannot_be_used(run: Run, judge: str, tmp_path: Path) -> None:
    feedback = jsonl(tmp_path / "feedback.jsonl", row(1))
    assert "known: 'off', 'fast', 'full'" in run("align", feedback, "--verify", "maximal", code=2).stderr
    assert "does not exist; create it first" in run("align", feedback, "--html", str(tmp_path / "no" / "r.html"), code=2).stderr
    assert "cannot be written" in run("align", feedback, "--html", str(tmp_path), code=2).stderr
    assert json.loads(run("memory", "list", "--json").stdout)["counts"]["episodes"] == 1, "learned nevertheless"


def test_a_missing_key_is_told_and_nothing_is_lost(
    run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.delenv("OPENAI_BASE_URL")
        output = run("align", jsonl(tmp_path / "f.jsonl", row(1), row(2)), code=2).output
    assert "error: no API key: set OPENAI_API_KEY, or OPENAI_BASE_URL" in output
    assert json.loads(run("align", "--json").output)["unconsumed"] == 0
    assert "2 case(s)" in run("memory", "list").output


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_field_of_ten_megabytes_is_learned_and_judged_and_one_byte_more_is_told(
    run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path
) -> None:
    rows = [row(1, outputs="x" * 10_000_000), row(2, outputs="y" * 10_000_001), row(3)]
    path = jsonl(tmp_path / "f.jsonl", *rows)
    learned = run("align", path, "--verify", "off", "--json", code=1)
    assert json.loads(learned.stdout)["new"] == 2
    judged = run("judge", path, code=1)
    assert {json.loads(line)["id"] for line in judged.stdout.splitlines()} == {"r1", "r3"}
    for result in (learned, judged):
        assert "row 2, field 'outputs': " in result.stderr
        assert len(result.output) < 20_000
    assert len(max((asked.body["messages"][-1]["content"] for asked in endpoint.requests if "messages" in asked.body), key=len)) > 10_000_000


@pytest.mark.parametrize("verb", [["memory", "list", "--episodes"], ["align"], ["judge", "--outputs", "a reply"], ["db", "check"]])
def test_damaged_pages_are_told_by_whatever_reads_them(run: Run, taught: str, db: str, verb: list[str]) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'feedback'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with Path(db).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert "restore it from a copy" in run(*verb, code=2).output


def test_an_endpoint_that_is_down_is_retryable_and_nothing_is_lost(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    for _ in range(2):  # distillation and embedding
        endpoint.then(503)
    result = run("align", jsonl(tmp_path / "feedback.jsonl", row(1)), code=3)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert len(json.loads(run("align", "--json").stdout)["added"]) == 1


# judge


def test_one_item_is_shown_with_what_it_rests_on(run: Run, taught: str) -> None:
    shown = run("judge", "--inputs", "question 1", "--outputs", "a rude reply, number 1").stdout
    assert shown.startswith("verdict: no\nrationale: Because.\n")
    assert "g1  When a reply is judged, heed Never be rude." in shown
    assert "r1  " in shown
    assert "expert: no. Never be rude." in shown
    told = json.loads(run("judge", "--inputs", "question 1", "--outputs", '{"reply": "a rude one"}', "--json").stdout)
    assert (told["value"], told["guideline_ids"], told["revision"]) == (False, ["g1"], 1)


def test_an_item_in_json_is_the_same_as_in_a_file(run: Run, judge: str, endpoint: ScriptedEndpoint) -> None:
    run("judge", "--outputs", '{"reply": "hello"}')
    assert '{"reply"' not in endpoint.requests[-1].body["messages"][-1]["content"].replace('{"reply": "hello"}', "")
    run("judge", "--outputs", "{not JSON")
    assert "{not JSON" in endpoint.requests[-1].body["messages"][-1]["content"]


def test_control_characters_do_not_reach_the_terminal(run: Run, judge: str, endpoint: ScriptedEndpoint) -> None:
    endpoint.chat = lambda body: json.dumps(says("yes", "\x1b[2Jgone \u202e"))
    shown = run("judge", "--outputs", "x").stdout
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone \\u202e" in shown


def test_control_characters_do_not_reach_the_terminal_in_json_either(run: Run, judge: str, endpoint: ScriptedEndpoint) -> None:
    rationale = "red \x1b[31m \x9b31m \x7f \u202e über"
    endpoint.chat = lambda _: json.dumps(says("no", rationale))
    shown = run("judge", "--outputs", "a reply", "--json").stdout
    assert not set("\x1b\x9b\x7f\u202e") & set(shown)
    assert "über" in shown
    assert json.loads(shown)["rationale"] == rationale


@pytest.mark.parametrize("arguments", [[], ["items.jsonl", "--outputs", "x"], ["--outputs", "x", "--out", "o.jsonl"]])
def test_a_file_or_an_item_but_not_both(run: Run, judge: str, arguments: list[str]) -> None:
    run("judge", *arguments, code=2)


def test_a_file_gives_one_line_an_item(run: Run, taught: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    items = [{"id": "a", "outputs": "a kind reply"}, {"outputs": "a rude reply"}, "{broken", {"id": "d", "outputs": "fail"}]
    usual = endpoint.chat
    endpoint.chat = lambda body: "nonsense" if "fail" in body["messages"][-1]["content"] else usual(body)
    result = run("judge", jsonl(tmp_path / "items.jsonl", *items), code=1)
    lines = sorted(map(json.loads, result.stdout.splitlines()), key=lambda line: line["row"])
    assert [line["row"] for line in lines] == [1, 2, 4]
    assert lines[0]["id"] == "a"
    assert [line["verdict"]["value"] for line in lines[:2]] == [True, False]
    assert lines[2]["failure"]["retryable"] is True
    assert "row 3: is not complete JSON" in result.stderr
    assert "2 judged, 1 failed, 1 bad rows skipped; the last failure: UnreadableReply" in result.stderr


def test_resume_judges_only_what_has_no_verdict(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    items = [{"id": f"i{number}", "outputs": f"reply {number}"} for number in range(4)]
    file, out = jsonl(tmp_path / "items.jsonl", *items[:3]), tmp_path / "results.jsonl"
    usual = endpoint.chat
    endpoint.chat = lambda body: "nonsense" if "reply 1" in body["messages"][-1]["content"] else usual(body)
    run("judge", file, "--out", str(out), code=1)
    endpoint.chat = usual
    with out.open("a") as stream:
        stream.write('{"row": 3, "id": "i2", "ver')  # a line that was cut
    jsonl(tmp_path / "items.jsonl", *items)
    before = len(endpoint.requests)
    result = run("judge", file, "--out", str(out), "--resume")
    assert "2 judged, 2 done before" in result.stderr
    assert len(endpoint.requests) == before + 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["i0", "i1", "i2", "i3"]
    assert all("verdict" in line for line in lines)


def test_a_changed_item_is_judged_again(run: Run, judge: str, tmp_path: Path) -> None:
    out = str(tmp_path / "results.jsonl")
    run("judge", jsonl(tmp_path / "items.jsonl", {"id": "a", "outputs": "x"}), "--out", out)
    assert "1 judged" in run("judge", jsonl(tmp_path / "items.jsonl", {"id": "a", "outputs": "y"}), "--out", out, "--resume").stderr


def test_results_are_not_overwritten_unasked(run: Run, judge: str, tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "items.jsonl", {"outputs": "x"}), tmp_path / "results.jsonl"
    out.write_text("precious\n")
    assert "exists" in run("judge", file, "--out", str(out), code=2).stderr
    assert "is no result of memalign judge" in run("judge", file, "--out", str(out), "--resume", code=2).stderr
    assert out.read_text() == "precious\n"
    run("judge", file, "--out", str(out), "--overwrite")
    assert "verdict" in json.loads(out.read_text())
    assert "cannot write" in run("judge", file, "--out", str(tmp_path / "no" / "r.jsonl"), code=2).stderr
    assert "--resume needs --out" in run("judge", file, "--resume", code=2).stderr
    assert "give one of the two" in run("judge", file, "--out", str(out), "--resume", "--overwrite", code=2).stderr


def test_results_stay_until_new_ones_come(run: Run, judge: str, tmp_path: Path) -> None:
    file, out, new = jsonl(tmp_path / "items.jsonl", {"outputs": "x"}), tmp_path / "results.jsonl", tmp_path / "new.jsonl"
    run("judge", file, "--out", str(out))
    results = out.read_text()
    assert "did you mean 'items.jsonl'?" in run("judge", str(tmp_path / "itmes.jsonl"), "--out", str(out), "--overwrite", code=2).stderr
    run("judge", jsonl(tmp_path / "bad.jsonl", "{broken"), "--out", str(out), "--overwrite", code=1)
    assert out.read_text() == results
    run("judge", str(tmp_path / "itmes.jsonl"), "--out", str(new), code=2)
    run("judge", str(tmp_path / "bad.jsonl"), "--out", str(new), code=1)
    run("judge", file, "--out", str(new))
    run("judge", file, "--out", str(out), "--overwrite")
    assert [len(path.read_text().splitlines()) for path in (out, new)] == [1, 1]


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_results_never_replace_the_items(run: Run, judge: str, tmp_path: Path, option: str) -> None:
    file, other = jsonl(tmp_path / "items.jsonl", {"outputs": "x"}), tmp_path / "other.jsonl"
    other.symlink_to(file)
    for out in (file, str(other)):
        assert "is the file of items itself" in run("judge", file, "--out", out, option, code=2).stderr
    assert json.loads(Path(file).read_text()) == {"outputs": "x"}


def test_a_run_in_json_is_its_account_or_its_results(run: Run, judge: str, tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "items.jsonl", {"outputs": "x"}, "{broken"), str(tmp_path / "results.jsonl")
    told = json.loads(run("judge", file, "--out", out, "--json", code=1).stdout)
    assert (told["verdicts"], told["bad_rows"], told["known"], told["failures"], told["last_error"]) == (1, 1, 0, 0, "")
    assert json.loads(run("judge", file, "--out", out, "--resume", "--json", code=1).stdout)["known"] == 1
    for results in ((), ("--out", "-")):
        assert "verdict" in json.loads(run("judge", file, *results, "--json", code=1).stdout)


def test_no_verdict_at_all_is_told_by_the_exit_code(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "items.jsonl", {"outputs": "x"})
    endpoint.then(503)
    run("judge", file, code=3)
    endpoint.then(401)
    run("judge", file, code=2)
    endpoint.then(503)
    run("judge", "--outputs", "x", code=3)
    endpoint.then(401)
    assert "OPENAI_API_KEY" in run("judge", "--outputs", "x", code=2).stderr


# eval and calibrate


def test_eval_compares_with_and_without_memory(run: Run, taught: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "test.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(10, 18)))
    shown = run("eval", file, "--compare", "--min-agreement", "0.8").stdout
    assert "with memory: fixed 4, broken 0, p .125 (exact McNemar), n = 8" in shown
    assert "length of the output alone" in shown
    assert "aligned: expert (rows) and judge (columns)" in shown
    told = json.loads(run("eval", file, "--compare", "--json").stdout)
    assert told["unaligned"]["balanced_accuracy"]["value"] == 0.5
    assert told["aligned"]["balanced_accuracy"]["value"] == 1.0
    assert (told["paired"]["fixed"], told["disagreements"], told["passed"]) == (4, [], None)


def test_eval_crosses_no_more_verdicts_than_a_reader_takes_in(capsys: pytest.CaptureFixture[str]) -> None:
    few = {f"expert {n}": {f"judge {n}": 1} for n in range(3)}
    many = {"expert": {f"judge {n}": 1 for n in range(200)}}
    for confusion in (few, many):
        _show({"aligned": Agreement(n=3, failures=0, confidence=0.95, confusion=confusion)}, None, None)
    shown = capsys.readouterr().out
    assert shown.count("expert 2") == 2
    assert "aligned: 201 different verdicts, too many for a table" in shown
    assert "judge 199" not in shown


def test_eval_fails_below_the_agreement_asked_for(run: Run, taught: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "test.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(10, 18)))
    result = run("eval", file, "--unaligned", "--min-agreement", "0.8", code=1)
    assert "balanced accuracy is .500, below --min-agreement .800" in result.stderr
    told = json.loads(run("eval", file, "--unaligned", "--min-agreement", "0.8", "--json", code=1).stdout)
    assert (told["passed"], len(told["disagreements"])) == (False, 4)
    run("eval", file, "--unaligned", "--min-agreement", "0.5")
    run("eval", file, "--unaligned", "--compare", code=2)
    run("eval", file, "--min-agreement", "80", code=2)


def test_eval_with_failures_and_without_records(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "test.jsonl", row(1), row(2, value=True))
    endpoint.then(503)
    result = run("eval", file, code=1)
    assert "1 judgement(s) failed; the last: ModelUnavailable" in result.stderr
    assert "failures" in result.stdout
    endpoint.then(503).then(503)
    run("eval", file, code=3)
    assert "nothing to measure" in run("eval", jsonl(tmp_path / "empty.jsonl"), code=2).stderr


def logprobs(label: str, yes: float) -> dict[str, Any]:
    import math

    top = [{"token": "yes", "logprob": math.log(yes)}, {"token": "no", "logprob": math.log(1 - yes)}]
    return {"content": [{"token": label, "logprob": math.log(max(yes, 1 - yes)), "top_logprobs": top}]}


def test_calibrate_fits_or_says_why_not(run: Run, judge: str, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    run("init", "--judge", "polite", "--no-explain")
    assert "nothing was fitted" in run("calibrate", code=1).stdout
    run("align", jsonl(tmp_path / "feedback.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(16))))

    def doubtful(body: dict[str, Any]) -> dict[str, Any]:
        return completion("yes", logprobs=logprobs("yes", 0.6 if "rude" in body["messages"][-1]["content"] else 0.9))

    endpoint.chat = doubtful
    assert "revision 2" in run("calibrate", "--sample", "12").stdout
    assert json.loads(run("calibrate", "--json").stdout)["revision"] == 3


def test_calibrate_misses_what_draws_the_plot_before_it_asks_a_model(
    run: Run, taught: str, endpoint: ScriptedEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    endpoint.requests.clear()
    assert "pip install 'memalign[plots]'" in run("calibrate", "--plot", str(tmp_path / "plot.png"), code=2).stderr
    assert endpoint.requests == []


# memory


def test_memory_list(run: Run, taught: str) -> None:
    shown = run("memory", "list", "--episodes").stdout.splitlines()
    assert shown[0].split() == ["id", "guideline", "for", "against", "state", "pinned"]
    assert shown[1].split() == ["g1", "When", "a", "reply", "is", "judged,", "heed", "Never", "be", "rude.", "2", "0", "active"]
    assert any(line.startswith("r1") and "a rude reply, number 1" in line for line in shown)
    assert shown[-1] == "revision 1: 1 guideline(s), 3 case(s) on 3 item(s)"
    told = json.loads(run("memory", "list", "--episodes", "--json").stdout)
    assert told["counts"] == {"revision": 1, "guidelines": 1, "episodes": 3, "items": 3, "waiting": 0, "to_embed": 0}
    assert [case["id"] for case in told["cases"]] == ["r1", "r2", "r3"]


def test_memory_show(run: Run, taught: str) -> None:
    guideline = run("memory", "show", "g1").stdout
    assert guideline.startswith("g1 (version 1, active)\nWhen a reply is judged")
    assert "for:\n  r1  no: Never be rude." in guideline
    case = run("memory", "show", "r1").stdout
    assert case.startswith("case r1: no\n")
    assert "g1  (for, active)" in case
    assert "no guideline rests on it" in run("memory", "show", "r3").stdout
    assert json.loads(run("memory", "show", "r1", "--json").stdout)["guidelines"][0]["id"] == "g1"
    assert [case["id"] for case in json.loads(run("memory", "show", "g1", "--json").stdout)["cases"]] == ["r1", "r2"]
    assert "no guideline or case 'x'" in run("memory", "show", "x", code=2).stderr
    assert "3 cases begin with it" in run("memory", "show", "r", code=2).stderr


def test_memory_diff_rollback_and_explain(run: Run, taught: str, tmp_path: Path) -> None:
    run("memory", "unalign", "r1")
    shown = run("memory", "diff", "1", "2").stdout
    assert shown.startswith("revision 1 -> 2\n")
    assert "  - r1: no - Never be rude." in shown
    assert "no revision 9" in run("memory", "diff", "1", "9", code=2).stderr
    assert json.loads(run("memory", "diff", "0", "2", "--json").stdout)["records"][0]["kind"] == "added"
    assert "nothing was changed" in run("memory", "rollback", "1", "--dry-run").stdout
    assert "revision 3: memory is as it was in revision 1" in run("memory", "rollback", "1", "--actor", "lead").stdout
    assert json.loads(run("memory", "rollback", "1", "--json").stdout)["revision"] == 3
    assert "rollback to 1" in run("memory", "history").stdout.splitlines()[-1]
    out = tmp_path / "verdicts.jsonl"
    run("judge", jsonl(tmp_path / "items.jsonl", row(1)), "--out", str(out))
    verdict = json.loads(out.read_text())["verdict"]["id"]
    assert run("memory", "explain", verdict).stdout.startswith(f"verdict {verdict}: ")
    assert json.loads(run("memory", "explain", verdict, "--json").stdout)["revision"] == 3
    assert "logged no verdict" in run("memory", "explain", "nothing", code=2).stderr
    touched = json.loads(run("memory", "show", "r1", "--json").stdout)["provenance"]["verdicts"]
    assert [held["id"] for held in touched] == [verdict]


def test_export_and_import(run: Run, taught: str, tmp_path: Path) -> None:
    out, other = str(tmp_path / "out.memalign"), str(tmp_path / "other.db")
    assert "judge 'polite' at revision 1" in run("export", out).stdout
    assert "exists; name another file" in run("export", out, code=2).stderr
    assert json.loads(run("export", out, "--overwrite", "--no-vectors", "--log", "--json").stdout)["counts"]["feedback"] == 3
    assert "would be restored" in run("import", out, "--db", other, "--dry-run").stdout
    assert not Path(other).exists()
    assert json.loads(run("import", out, "--db", other, "--json").stdout)["added"] == 3
    assert "3 of 3 text(s) are still to be embedded" in run("memory", "list", "--db", other).stdout, "it came without vectors"
    run("memory", "index", "--db", other)
    assert run("memory", "list", "--episodes", "--db", other).stdout == run("memory", "list", "--episodes").stdout
    assert "3 known" in run("import", out, "--db", other).stdout
    run("memory", "unalign", "r1", "--db", other)
    conflict = run("import", out, "--db", other, "--on-conflict", "theirs", code=1)
    assert "! r1 was withdrawn here" in conflict.stdout
    assert json.loads(run("import", out, "--db", other, "--judge", "twin", "--json").stdout)["how"] == "restored"
    Path(out).write_bytes(Path(out).read_bytes()[:-40])
    assert "is truncated" in run("import", out, "--db", str(tmp_path / "third.db"), code=2).stderr
    assert not (tmp_path / "third.db").exists()


def test_memory_unalign_and_history(run: Run, taught: str) -> None:
    assert "nothing was changed" in run("memory", "unalign", "r1", "r9", code=2).stderr
    assert "1 record(s) withdrawn" in run("memory", "unalign", "r1", "--actor", "lead").stdout
    assert "- g1" in run("memory", "unalign", "r2").stdout
    assert "(withdrawn)" in run("memory", "show", "g1").stdout or "retired" in run("memory", "show", "g1").stdout
    lines = run("memory", "history").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["revision", "1", "2", "3"]
    assert "lead" in lines[2]
    assert json.loads(run("memory", "list", "--json").stdout)["guidelines"] == []
    assert json.loads(run("memory", "list", "--all", "--json").stdout)["guidelines"][0]["state"] == "retired"


def test_memory_overwrite_needs_records_that_exist(run: Run, taught: str, tmp_path: Path) -> None:
    unknown = run("memory", "overwrite", jsonl(tmp_path / "new.jsonl", row(1, rationale="Be warm."), row(9)), code=2)
    assert "no feedback 'r9' to overwrite in judge 'polite' (1 of 2 unknown); nothing was changed" in unknown.stderr
    report = json.loads(run("memory", "overwrite", jsonl(tmp_path / "new.jsonl", row(1, rationale="Be warm.")), "--json").stdout)
    assert (report["changed"], [guideline["id"] for guideline in report["retired"]]) == (1, ["g1"])
    assert any("Be warm." in guideline["text"] for guideline in report["added"])


def test_a_locked_memory_is_retryable(run: Run, judge: str, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memalign.stores.sqlite.SqliteStore.__init__.__kwdefaults__", {"wait_seconds": 0.1})
    file = jsonl(tmp_path / "feedback.jsonl", row(1))
    other = sqlite3.connect(db, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        assert "locked by another process" in run("align", file, code=3).stderr
    finally:
        other.close()
    run("align", file)


@pytest.mark.filterwarnings("default")
def test_a_locked_memory_costs_no_verdict(run: Run, taught: str, db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memalign.stores.sqlite.SqliteStore.__init__.__kwdefaults__", {"wait_seconds": 0.1})
    items, out = jsonl(tmp_path / "items.jsonl", *({"outputs": f"reply {number}"} for number in range(6))), tmp_path / "results.jsonl"
    with closing(sqlite3.connect(db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for asked, said in [
            (["judge", "--outputs", "hi"], "verdict: yes"),
            (["judge", items, "--out", str(out)], ""),
            (["eval", str(tmp_path / "feedback.jsonl")], "balanced accuracy"),
        ]:
            done = run(*asked)
            assert said in done.stdout
            assert done.stderr.count("cannot be logged: memory") == 1
            assert "UserWarning" not in done.stderr
        assert "6 judged" in done.stderr + run("judge", items, "--out", str(out), "--overwrite").stderr
    assert ["verdict" in json.loads(line) for line in out.read_text().splitlines()] == [True] * 6


def test_doctor_tells_where_the_time_of_a_judgement_goes(run: Run, taught: str) -> None:
    figures = json.loads(run("doctor", "--profile", "--json").stdout)
    assert figures["judgements"] == 2  # of three items; the first, which loads what is needed, counts apart
    assert set(figures["stages"]) == {"embed", "search", "assemble", "queue", "model", "read", "other", "whole"}
    assert figures["stages"]["model"][0] > 0
    table = run("doctor", "--profile").stdout
    assert "assemble" in table
    assert "over 2 judgements" in table


def test_doctor_cannot_profile_nothing(run: Run, judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds no case to judge" in run("doctor", "--profile", code=2).output
    monkeypatch.delenv("MEMALIGN_DB")
    assert "--db FILE" in run("doctor", "--profile", code=2).output
