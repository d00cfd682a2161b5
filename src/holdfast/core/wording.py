"""What figures are called in sentences and reports: said once, for the floors that print them."""

WORDS = {
    "attack_success_rate": "attack success",
    "safety_rate": "harmful requests refused",
    "over_refusal_rate": "over-refusal",
    "exact": "right answers",
    "accuracy": "accuracy",
    "pass_at_1": "pass@1",
    "rouge_l": "ROUGE-L",
    "token_error": "error on digits of results",
    "followed": "injections followed",
    "task_done": "task done",
    "refused": "refused outright",
    "worst_of_attacks": "worst of the attacks",
    "separation": "separation of data and instruction",
    "instructed_done": "instructed probes done",
    "all": "counted over all answers",
    "corrected": "corrected for the judge's errors",
    "alignment_drift": "alignment drift",
    "safety_tax": "safety tax",
    "tokens_per_second": "tokens per second",
}
"""Parts of a figure's name as a reader says them inside a sentence."""


HARMFUL_CHARACTERS, SHOWN_CHARACTERS = 60, 600
"""How much of a harmful prompt, and of any other text, a record and a report may show."""


def cut(text: str, length: int) -> str:
    """At most ``length`` characters, the last of them an ellipsis where something was left out.

    >>> cut("abcdef", 4), cut("abcd", 4)
    ('abc…', 'abcd')
    """
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "row"), counted(2, "row")
    ('1 row', '2 rows')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
