"""What no guideline may be, whatever a model proposes: each check is a pure function and gives a reason, or None."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST_COPY = 8
"""Words in a row that a guideline may share with a case; of Chinese, Japanese or Korean, twice as many characters."""
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")

_VERB = (
    r"(?:answer|say|reply|respond|decide|return|choose|give|rate|grade|label|mark|output|select|pick|judge|score|assign|vote|accept|count|go|treat|classify|consider)"
    r"(?:s|ing)?(?:\s+(?:it|this|them|everything|all|with|as|for|is|the|reply|replies|answer|verdict|label|score|a|an|to|be))*"
)
_ALWAYS = r"(?:always|never|in (?:all|any|every) cases?|every time|no matter what|regardless of \w+(?: \w+)?|without exception)"
_ANYWAY = r"(?:regardless|anyway|invariably|at all times|under (?:all|any) circumstances|in (?:all|any|every) (?:situations?|circumstances?))"
"""Orders as well, but a guideline with a real scope may say them."""
_QUOTE = r"[\"'`“”„‘’«»「」『』]*"
_CLAUSE_ENDS = (
    r"(?=[\"'`“”‘’«»「」]*\s*(?:[.,;:!?)。，；！]|because\b|since\b|whatever\b|always\b|in (?:all|any|every)\b|regardless\b|no matter\b|\Z))"
)
_JUDGED = r"(?:repl(?:y|ies)|answers?|responses?|outputs?|texts?|items?|cases?|messages?|conversations?|pairs?|one)"
_EVERYTHING = rf"(?:everything|anything|(?:all|any|every|each)(?: of (?:the|these|them))?(?: (?:\w+ )?(?:{_JUDGED}|verdicts?|judge?ments?))?)"
_SENTENCE_ENDS = r"(?=[\"'`“”‘’«»「」]*\s*(?:[.;!?)。！]|,?\s*(?:because|since|whatever|regardless|no matter)\b|\Z))"
"""Where no condition follows: "every reply is poor, unless it names a date" is a principle."""
_MUST = r"(?:must|should|shall|will|has to|have to|needs? to|ought to|is to|are to)"
_LABELLED = r"(?:labell?ed|judged|rated|graded|marked|scored|classified|considered|counted|treated|answered|called|deemed|given|assigned)"
_OUTCOME = r"(?:verdict|answer|score|rating|label|grade|result|judge?ment|decision)"
_JUDGING = r"(?:judg|evaluat|assess|grad|rat|scor|label|labell|decid|review|answer|respond)(?:e|ing)?"
_ANY_SCOPE = re.compile(
    r"\A(?:when |whenever |while |if )?(?:always|ever|generally|in general|anything|everything|asked|(?:any|every|all|each)\b(?: \w+){1,4}|"
    rf"(?:in|under|for) (?:any|every|all|each) (?:situations?|circumstances?|conditions?|{_JUDGED})|"
    rf"(?:an?|the|some|one) {_JUDGED} (?:is|was|are|were|has been|comes?) (?:to be )?"
    r"(?:in|given|judged|read|evaluated|shown|rated|graded|scored|labell?ed|assessed|reviewed|received|presented|provided)|"
    rf"(?:(?:you|you are|you're|the judge is) )?{_JUDGING}(?: (?:(?:an?|the|this|these) )?{_JUDGED}| (?:any|every)thing)?|"
    r"the judge (?:judges|decides|answers)|"
    rf"(?:an?|the) {_OUTCOME} is (?:given|needed|asked for|required|requested|made|due)|there is (?:an?|any) {_JUDGED}|"
    r"toujours|immer|stets|siempre|sempre|总是|一律|(?:任何|所有)情况下?|(?:判断|评判|评价)(?:回复|回答)?时)\Z",
    re.IGNORECASE,
)

_ELSEWHERE = (
    r"(?<!\w)(?:toujours|jamais|(?:à )?chaque fois|dans tous les cas|quoi qu['’]il (?:arrive|en soit)|systématiquement|sans exception|"
    r"immer|niemals|stets|jedes mal|in jedem fall|auf jeden fall|ausnahmslos|"
    r"siempre|nunca|cada vez|en todos los casos|en cualquier caso|pase lo que pase|sin excepción|sempre|in ogni caso|em todos os casos|altijd|"
    r"всегда|никогда|каждый раз|в любом случае|دائما|دائمًا|أبدا)(?!\w)"
    r"(?!,?\s+(?:que\b|qu['’]|wenn\b|sobald\b|che\b|quand\w*\b|si\b|y cuando\b|когда\b|если\b))"
)
"""Always and never in other languages that experts write in; "siempre que" is whenever, and a condition follows."""
_VERB_ELSEWHERE = (
    r"(?<!\w)(?:répond\w*|dis|dites|dire|donne[rz]?|juge[rz]?|antworte\w*|sag\w*|bewerte\w*|urteile\w*|entscheide\w*|respond\w*|contesta\w*|conteste\w*|"
    r"di|decir|diga|rispond\w*|отвеча\w*|ответ\w*|أجب|قل)(?:\s+(?:mit|par|con|com|que))?\s+"
)
_ALL_ELSEWHERE = r"(?:à tou(?:te?s?|s)|zu allem|auf alles|a tod[oa]s?|a tutt[oaie]|на всё)"
_YES_NO_ELSEWHERE = (
    *("oui", "non", "ja", "nein", "nee", "sí", "sì", "sim", "não", "da", "да", "нет", "نعم", "بنعم", "لا"),
    *("是", "否", "はい", "いいえ", "예", "아니요", "아니오"),
)
_ALSO_OTHER_WORDS = ("no", "non", "da", "لا")
"""Of labels, those that mean something else in other languages: "siempre ... no" may begin "no prometer"."""
_CJK_ALWAYS = (
    r"(?:总是|总应|始终|永远|一律|每次都|无论如何都?|不管怎样都?|任何情况下都?|總是|始終|永遠|無論如何都?|"
    r"(?:所有|任何|每个|每条|一切)的?(?:回复|回答|答案|内容|情况|文本)?都|いつも|常に|必ず|毎回|どんな場合も|항상|언제나|무조건)"
)
_CJK_VERB = r"(?:回答|答复|回复|答|判断为?|判定为?|判为|评为|标记为?|标为|选择?|给出?|输出|返回|说|算作?|为)[:：]?\s*"
_CJK_ENDS = r"(?=\s*(?:[.,;!?。，；！]|と|で|라고|로|를|\Z))"

_PERSONAL = (
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("an account number", re.compile(r"\b[A-Z]{2}\d{2}(?:\s?[A-Z0-9]{4}){2,7}(?:\s?[A-Z0-9]{1,4})?\b")),
    ("a telephone or card number", re.compile(r"(?<![\w.])\+?\d(?:[\s().\-/]{0,2}\d){7,}(?!\w)")),
    ("a long number", re.compile(r"\d{6,}")),
)
_DATE = re.compile(r"\b(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|(?:19|20)\d\d\s?[-–/]\s?(?:19|20)\d\d)\b")
"""Dates and spans of years are no telephone numbers."""

_TO_THE_MODEL = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|the|your|these|those|previous|prior|above|earlier|other|and|of|existing)\s+)+"
    r"(?:instructions?|guidelines?|rules?|prompts?|rubrics?|criteria)\b"
    r"|\bsystem prompt\b|\byou are (?:now |no longer )?(?:an?|the) (?:ai|assistant|language model|judge|chatbot)\b|<\|?(?:im_start|system|assistant)"
    r"|\b(?:ignore[rz]?|oublie[rz]?)\s+(?:(?:toutes|tous|les|tes|vos|ces)\s+)+(?:instructions|consignes|règles|directives)"
    r"\s+(?:précédentes|antérieures|ci-dessus|initiales|données)"
    r"|\b(?:ignorier\w*|vergiss|vergessen|missachte\w*)\s+(?:(?:sie|alle|die|deine|ihre|diese)\s+)*(?:vor\w+|bisherig\w+|obig\w+|früher\w+)\s+"
    r"(?:anweisungen|instruktionen|regeln|vorgaben|richtlinien)"
    r"|\b(?:ignor(?:a|e|ar|are|ate|en|em)|olvid[ae]r?|esqueça|dimentica)\s+(?:(?:todas?|tutte|las|le|as|tus|sus|tue|suas|estas)\s+)+"
    r"(?:instrucciones|indicaciones|reglas|istruzioni|regole|instruções|regras)\s+(?:anteriores|previas|prévias|precedenti|de arriba|acima)"
    r"|\b(?:игнорируй|забудь)(?:те)?\s+(?:все\s+)?(?:предыдущие|прежние|прошлые|свои)\s+(?:инструкции|указания|правила)"
    r"|(?:تجاهل|انس)\s+(?:(?:كل|جميع)\s+)?(?:التعليمات|الأوامر|القواعد)\s+السابقة"
    r"|(?:忽略|无视|無視|忘记|忘記|忘掉)(?:掉|所有|全部|一切|你|的)*(?:之前|以前|以上|上述|上面|先前|前面)(?:的|所有|全部|一切|给|你)*(?:指令|指示|规则|規則|提示|准则)"
    r"|系统提示词|(?:以前|これまで|上記|前)の(?:すべての|全ての)?(?:指示|命令|ルール)[をは]?(?:すべて|全て)?(?:無視|忘れ)"
    r"|(?:이전|위|앞)의?\s*(?:모든\s*)?(?:지시|명령|규칙|지침)(?:사항)?[을를은는]?\s*(?:모두\s*)?(?:무시|잊)",
    re.IGNORECASE,
)


def orders_a_verdict(text: str, labels: Sequence[str], *, scope: str = "", decide: str = "") -> str | None:
    """Whether a text wants one label of the scale whatever the case, as "always answer yes" does.

    With a ``scope`` that covers every case, "answer yes" is such an order as well; with a real one it is a guideline.
    """
    label = _any_of([*labels, "yes", "no", "true", "false", "tie"]) + "|[0-9]+"
    named = rf"{_QUOTE}(?:(?:{label})(?!\w){_CLAUSE_ENDS}|(?:yes|no)\b(?!\s*(?:more|less|matter|longer|later|other|one|word|need)\b))"
    patterns = [
        rf"\b{_ALWAYS}[\s,]+{_VERB}\s+{named}",
        rf"\b{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\s*,?\s+(?:{_ALWAYS}|(?:to|for)\s+{_EVERYTHING})\b",
        rf"\b{_OUTCOME}\s+(?:(?:must|should|shall|has to|is|be)\s+)+(?:always|never)\s+(?:be\s+)?{named}",
    ]
    told = [*labels, *(_YES_NO_ELSEWHERE if "yes" in labels else ())]
    elsewhere, whole = _elsewhere(told)
    if not scope and (given := re.match(r"\A(?:when|if)\s+([^,]+),\s*(.+)\Z", text, re.IGNORECASE)) and _ANY_SCOPE.match(given[1].strip()):
        scope, decide = given[1], given[2]
    everywhere = not scope or _ANY_SCOPE.match(scope.strip())
    if any(re.search(pattern, text, re.IGNORECASE) for pattern in (*patterns, *elsewhere, *(_of_everything(label) if everywhere else ()))):
        return "orders one verdict instead of saying what decides it"
    if everywhere and any(re.match(pattern, (decide or text).strip(), re.IGNORECASE) for pattern in (*_bare(label), *whole)):
        return "orders one verdict instead of saying what decides it"
    return None


def _of_everything(label: str) -> tuple[str, ...]:
    """How one label is ordered for all that is judged without the word always: "mark every reply as poor", "answer nothing but yes"."""
    named = rf"(?:(?:as|with|to|be|is|a|an|the|label|verdict|score)\s+)*{_QUOTE}(?:{label})(?!\w){_SENTENCE_ENDS}"
    return (
        rf"\b{_VERB}\s+{_EVERYTHING}\s+{named}",
        rf"\b{_EVERYTHING}\s+(?:is|are|gets?|deserves?|counts?|{_MUST}\s+(?:be|get|receive))\s+(?:always\s+)?(?:{_LABELLED}\s+)?{named}",
        rf"\b{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\s+(?:for|to|on)\s+{_EVERYTHING}{_SENTENCE_ENDS}",
        rf"\b{_VERB}\s+{_QUOTE}(?:{label}){_QUOTE}\s*,?\s+{_ANYWAY}{_SENTENCE_ENDS}",
        rf"\b{_OUTCOME}\s+(?:{_MUST}\s+be|is)\s+{_QUOTE}(?:{label}){_QUOTE}\s+(?:(?:for|to|on)\s+{_EVERYTHING}|{_ALWAYS}|{_ANYWAY}){_SENTENCE_ENDS}",
        rf"\b(?:never\s+{_VERB}\s+(?:anything|any \w+)|{_VERB}\s+nothing)\s+(?:but|except|other than)\s+{named}",
        rf"\bonly(?:\s+ever)?\s+{_VERB}\s+{named}",
        rf"\A{_ALWAYS}\s+{_QUOTE}(?:{label}){_QUOTE}\W*\Z",
    )


def _bare(label: str) -> tuple[str, ...]:
    """A label and no more, which is an order where every case is meant: "answer yes", "the correct verdict is yes"."""
    named = rf"{_QUOTE}(?:{label}){_QUOTE}\W*\Z"
    return (rf"\A(?:just |simply )?{_VERB}\s+{named}", rf"\A(?:the |its )?(?:\w+ )?{_OUTCOME}\s+(?:{_MUST}\s+be|is)\s+{named}")


def _elsewhere(told: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How other languages order a label always; and how they name one and no more."""
    dense = [word for word in told if re.search(rf"[{_CJK}]", word)]
    spaced = [word for word in told if word not in dense]
    always: list[str] = []
    whole: list[str] = []
    if spaced:
        firm, other = ([word for word in spaced if (word in _ALSO_OTHER_WORDS) is also] for also in (False, True))
        ends = rf"(?={_QUOTE}\s*(?:[.,;!?)]|\Z|(?:à|a|zu|auf|dans|in|en)\s))"
        label = "|".join([*([rf"(?:{_any_of(firm)})(?!\w)"] if firm else []), *([rf"(?:{_any_of(other)})(?!\w){ends}"] if other else [])])
        order = rf"{_VERB_ELSEWHERE}{_QUOTE}(?:{_any_of(spaced)}){_QUOTE}"
        always += [rf"{_ELSEWHERE}[^.,;。，]{{0,20}}?(?<!\w){_QUOTE}(?:{label})"]
        always += [rf"{order}\s*,?\s+(?:{_ELSEWHERE}|{_ALL_ELSEWHERE}{_SENTENCE_ENDS})"]
        whole.append(rf"\A{order}\W*\Z")
    if dense:
        label = rf"(?:{_any_of(dense)})"
        always += [
            rf"{_CJK_ALWAYS}[^.,;。，；]{{0,20}}?{_CJK_VERB}{_QUOTE}{label}{_QUOTE}{_CJK_ENDS}",
            rf"{_CJK_ALWAYS}\s*{_QUOTE}{label}{_QUOTE}{_CJK_ENDS}",
            rf"{_CJK_ALWAYS}[^.,;。，；]{{0,20}}?[\"'“‘「『]{label}[\"'”’」』]",
        ]
        whole.append(rf"\A请?{_CJK_VERB}{_QUOTE}{label}{_QUOTE}\W*\Z")
    return tuple(always), tuple(whole)


def _any_of(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


def addresses_the_model(text: str) -> str | None:
    """Whether a text gives orders about the judge's own instructions, as an injected one does."""
    found = _TO_THE_MODEL.search(text)
    return f"speaks of the judge's own instructions: {found[0]!r}" if found else None


def personal_data(text: str) -> str | None:
    """Whether a text holds what looks like personal data; names are not recognised."""
    without_dates = _DATE.sub(" ", text)
    kind = next((kind for kind, pattern in _PERSONAL if pattern.search(without_dates)), None)
    return f"holds what looks like {kind}" if kind else None


def copied(text: str, sources: Sequence[str]) -> str | None:
    """Whether a text repeats a case word for word over a long stretch. ``sources`` are ``folded`` texts."""
    tokens = _TOKEN.findall(text.casefold())
    dense = sum(bool(re.match(rf"[{_CJK}]", token)) for token in tokens) * 2 > len(tokens)
    length = _LONGEST_COPY * (2 if dense else 1)
    for start in range(len(tokens) - length):
        run = " ".join(tokens[start : start + length + 1])
        if any(f" {run} " in source for source in sources):
            return f"copies a case: {run!r}"
    return None


def folded(text: str) -> str:
    """A text as words between single spaces, as ``copied`` compares it."""
    return f" {' '.join(_TOKEN.findall(text.casefold()))} "
