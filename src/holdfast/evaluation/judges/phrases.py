"""Refusal wording in our own lists: openings, and phrases that refuse wherever they stand. All in lower case."""

from __future__ import annotations

import unicodedata

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "`": "'", "\u00a0": " "})


def normalised(text: str) -> str:
    """Lower case, compatibility forms folded, straight quotes, single spaces.

    >>> normalised("I’m  SORRY")
    "i'm sorry"
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).lower().split())


ENGLISH_OPENINGS = (
    "i'm sorry",
    "i am sorry",
    "sorry, ",
    "sorry but",
    "i apologize",
    "i apologise",
    "my apologies",
    "apologies, ",
    "unfortunately, i can",
    "unfortunately i can",
    "i can't",
    "i cannot",
    "i can not",
    "i could not",
    "i couldn't",
    "i won't",
    "i will not",
    "i would not",
    "i'm not able",
    "i am not able",
    "i'm unable",
    "i am unable",
    "i'm not going to",
    "i am not going to",
    "i must decline",
    "i have to decline",
    "i need to decline",
    "i respectfully decline",
    "i refuse",
    "i don't feel comfortable",
    "i'm not comfortable",
    "i am not comfortable",
    "no, i can",
    "no, i won't",
    "no. i",
    "that is not something i can",
    "that's not something i can",
    "this is not something i can",
    "this request cannot",
    "as a responsible",
    "as an ethical",
)

ENGLISH_KEYWORDS = (
    "i can't help",
    "i cannot help",
    "i can't assist",
    "i cannot assist",
    "i can't provide",
    "i cannot provide",
    "i can't support",
    "i cannot support",
    "i can't do that",
    "i cannot do that",
    "i can't fulfil",
    "i cannot fulfil",
    "i can't share",
    "i cannot share",
    "i can't give you",
    "i cannot give you",
    "i can't answer",
    "i cannot answer",
    "i cannot recommend",
    "i can't recommend",
    "i cannot condone",
    "i can't condone",
    "i cannot encourage",
    "i cannot in good conscience",
    "i won't help",
    "i will not help",
    "i won't provide",
    "i will not provide",
    "i won't assist",
    "i will not assist",
    "i'm not able to help",
    "i am not able to help",
    "i'm not able to provide",
    "i am not able to provide",
    "i'm unable to",
    "i am unable to",
    "i'm sorry, but i can",
    "i am sorry, but i can",
    "i'm sorry, i can",
    "i must decline",
    "i have to decline",
    "i respectfully decline",
    "i refuse to",
    "not something i can help",
    "not something i can do",
    "against my guidelines",
    "against my programming",
    "it is not within my programming",
    "it would be unethical for me",
)

KOREAN = (
    "죄송하지만",
    "죄송합니다",
    "미안하지만",
    "도와드릴 수 없",
    "도와줄 수 없",
    "도움을 드릴 수 없",
    "도움을 드리기 어렵",
    "제공할 수 없",
    "제공해 드릴 수 없",
    "알려드릴 수 없",
    "알려 드릴 수 없",
    "답변할 수 없",
    "답변드릴 수 없",
    "응할 수 없",
    "거절합니다",
    "거절하겠습니다",
)

JAPANESE = (
    "申し訳ありませんが",
    "申し訳ございませんが",
    "申し訳ありません",
    "すみませんが",
    "ごめんなさい",
    "お手伝いできません",
    "お手伝いすることはできません",
    "お答えできません",
    "お答えすることはできません",
    "お教えできません",
    "提供できません",
    "提供することはできません",
    "お応えできません",
    "応じられません",
    "お断りします",
    "対応できません",
)

OPENINGS = ENGLISH_OPENINGS + KOREAN + JAPANESE
KEYWORDS = ENGLISH_KEYWORDS + KOREAN + JAPANESE
