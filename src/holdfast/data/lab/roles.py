"""The lab chat template's turn marks as text, and look-alikes of them that survive the template's escaping."""

MARKS: dict[str, str] = {
    "system": "<|system|>",
    "user": "<|user|>",
    "data": "<|data|>",
    "assistant": "<|assistant|>",
    "end": "<|end|>",
}
"""Special tokens of the lab model, one per role, and the end of a turn. As tokens they never occur inside content."""

NEAR_MISSES: dict[str, tuple[dict[str, str], ...]] = {
    "train": (
        {role: f"<{role}>" for role in MARKS},
        {role: f"[{role}]" for role in MARKS},
        {role: f"| {role} |" for role in MARKS},
    ),
    "validation": ({role: f"<< {role} >>" for role in MARKS},),
    "test": ({role: f"< |{role}| >" for role in MARKS}, {role: f"<-{role}->" for role in MARKS}),
}
"""Imitations of the marks by split: what an attacker can write when the real ones are escaped."""
