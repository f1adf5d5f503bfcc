"""GEPA optimizes a program against an aligned judge, on scripted models: no key, no network, some seconds.

With real models, put ``dspy.LM("openai/...")`` in place of ``ScriptedLM``, and ``model="openai/..."`` in the judge; the rest stays.
"""

from __future__ import annotations

import json
import logging
import os
import re
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else LiteLLM, which DSPy imports, fetches its price list

import dspy

from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.integrations.dspy import as_metric, feedback_from
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel

QUESTIONS = ("Where is my parcel?", "Why was I charged twice?", "Can I change my address?", "Why is the kettle broken?", "When do you open?")


class Respond(dspy.Signature):
    """Answer the customer."""

    question: str = dspy.InputField()
    reply: str = dspy.OutputField()


class ScriptedLM(dspy.BaseLM):
    """Stands for the program's model, which does what its instructions say, and for the one that reflects: it adds what experts look for."""

    def __init__(self) -> None:
        super().__init__("scripted", cache=False)

    def forward(self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **_: Any) -> Any:
        """A reply in the form of OpenAI's chat completions."""
        text = prompt or "\n".join(str(message["content"]) for message in messages or ())
        message = SimpleNamespace(content=self._reflected(text) if "feedback" in text.casefold() else self._replied(text), tool_calls=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage={}, model=self.model)

    @staticmethod
    def _replied(text: str) -> str:
        reply = "Sorry for the trouble. We look into it today." if "apology" in text else "Please wait."
        return f"[[ ## reply ## ]]\n{reply}\n\n[[ ## completed ## ]]"

    @staticmethod
    def _reflected(text: str) -> str:
        rules = dict.fromkeys(re.findall(r"When a customer complains[^.]*\.", text))
        instruction = " ".join(["Answer the customer.", *rules])
        return f"```\n{instruction}\n```" if "``` blocks" in text else json.dumps({"new_instruction": instruction})


def judged(request: ChatRequest) -> dict[str, Any]:
    """Stands for the judge's model: it follows the guidelines it is shown, and distils the one reason of the example."""
    text = "\n".join(message.content for message in request.messages)
    if request.purpose == "distil":
        rule = {"op": "add", "when": "a customer complains", "decide": "begin with an apology", "because": "it shows that we care", "cases": [1]}
        return {"operations": [rule]}
    cold = "begin with an apology" in text and "Sorry" not in request.messages[-1].content
    return {"rationale": "It is too cold: no apology." if cold else "It is fine.", "verdict": "no" if cold else "yes"}


def main() -> dspy.Module:
    """Align the judge with one expert's verdict, then optimize the program; prints both instructions."""
    judge = Judge(
        name="kind",
        instructions="Is the reply kind?",
        scale=Scale.boolean(),
        model=ScriptedChatModel(judged),
        embedder=HashEmbedder(),
    )
    labelled = [
        dspy.Example(
            question="Where is my order?", reply="Wait.", value=False, rationale="Too cold: begin with an apology.", annotator="ann"
        ).with_inputs("question")
    ]
    feedback = feedback_from(labelled, judge.scale)
    judge.align(feedback.records)

    program = dspy.Predict(Respond)
    examples = [dspy.Example(question=question).with_inputs("question") for question in QUESTIONS]
    with dspy.context(lm=ScriptedLM()):
        gepa = dspy.GEPA(metric=as_metric(judge), max_metric_calls=30, reflection_lm=ScriptedLM(), num_threads=1, seed=0)
        better = gepa.compile(program, trainset=examples[:3], valset=examples[3:])
        before, after = program(question=QUESTIONS[0]).reply, better(question=QUESTIONS[0]).reply
    print(f"before: {program.signature.instructions}\n    {before}")
    print(f"after:  {better.signature.instructions}\n    {after}")
    judge.close()
    return better


if __name__ == "__main__":
    logging.getLogger("dspy").setLevel(logging.ERROR)
    main()
