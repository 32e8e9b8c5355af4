"""Records derived from other records: questions answered in a sentence, leads as summaries."""

from __future__ import annotations

import re

ARTICLES = ("the ", "a ", "an ")
QUESTION = re.compile(r"^(what|who|where|when|which|how)\b(.*?)\??$", re.IGNORECASE)
COPULA = re.compile(r"^\s+(is|are|was|were)\s+(.+)$", re.IGNORECASE)
PLAYS = re.compile(
    r"^\s+(plays|played|voices|voiced|wrote|invented|founded|won|owns|discovered|"
    r"directed|sang|sings|created|killed|designed|started|ran|developed|made)\s+(.+)$",
    re.IGNORECASE,
)
DID = re.compile(
    r"^(.*?)\s+(did|does|do)\s+(.+?)\s+(\w+(?:\s+(?:in|at|to|from|for|with|on))?)$", re.IGNORECASE
)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")
PREPOSITION = {"where": "in ", "when": "in "}
REGULAR_PAST = {
    "die": "died",
    "live": "lived",
    "play": "played",
    "start": "started",
    "happen": "happened",
    "move": "moved",
    "work": "worked",
    "marry": "married",
    "study": "studied",
    "end": "ended",
    "begin": "began",
    "win": "won",
    "go": "went",
    "come from": "came from",
    "write": "wrote",
    "take place": "took place",
    "belong to": "belonged to",
    "grow": "grew",
    "speak": "spoke",
    "teach": "taught",
}


def full_answer(question: str, answer: str) -> str | None:
    """The short answer put into a sentence that repeats the question, where a rule fits.

    Args:
        question: such as "Who plays Noah?".
        answer: such as "Jack.".
    Returns:
        such as "Jack plays Noah.", or None when no rule fits.
    """
    match = QUESTION.match(question.strip())
    if match is None:
        return None
    word, rest = match.group(1).lower(), match.group(2)
    short = answer.rstrip(". ")
    copula = COPULA.match(rest)
    if copula is not None:
        verb, thing = copula.groups()
        if word in ("what", "who"):
            return _sentence(f"{thing} {verb} {short}")
        if word in PREPOSITION:
            return _sentence(f"{thing} {verb} {PREPOSITION[word]}{short}")
        return None
    plays = PLAYS.match(rest)
    if word == "who" and plays is not None:
        return _sentence(f"{short} {plays.group(1)} {plays.group(2)}")
    did = DID.match(rest)
    if did is not None and not did.group(1).strip() and word in ("where", "when"):
        _, auxiliary, subject, verb = did.groups()
        if verb in REGULAR_PAST:
            form = REGULAR_PAST[verb] if auxiliary.lower() == "did" else verb + "s"
            return _sentence(f"{subject} {form} {PREPOSITION[word]}{short}")
    return None


def lead_summary(text: str, max_words: int = 60) -> str | None:
    """The first sentences of a text as its summary.

    Args:
        text: prose.
        max_words: limit; whole sentences only.
    Returns:
        one to three sentences, or None when the first is too long or too short.
    """
    sentences = SENTENCE_END.split(" ".join(text.split()))
    taken: list[str] = []
    for sentence in sentences[:3]:
        if sum(len(part.split()) for part in [*taken, sentence]) > max_words:
            break
        taken.append(sentence)
    summary = " ".join(taken)
    if len(summary.split()) < 8 or summary[-1] not in ".!?":
        return None
    return summary


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
