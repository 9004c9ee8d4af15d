"""One vocabulary for race and gender: what sources say, and what it is called here.

That of the LatentPlayInterface data layer of Rahimi et al. (IJCB 2023); what a source does not say is "unknown".
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"
RACES = ("asian", "black", "white", "indian", "hispanic", "middleeastern", UNKNOWN)
GENDERS = ("male", "female", UNKNOWN)

VOCABULARY = {"race": RACES, "gender": GENDERS}
_NO_ANSWER = dict.fromkeys(("", "unknown", "unkown", "none", "nan", "na", "other", "others"), UNKNOWN)
WORDS: dict[str, dict[str, str]] = {  # what sources say, by `plain`, and what it is called here
    "race": {
        **_NO_ANSWER,
        **{race: race for race in RACES},
        "african": "black",
        "caucasian": "white",
        "eastasian": "asian",
        "southeastasian": "asian",
        "latino": "hispanic",
        "latinohispanic": "hispanic",
    },
    "gender": {
        **_NO_ANSWER,
        **dict.fromkeys(("male", "m", "man", "men"), "male"),
        **dict.fromkeys(("female", "f", "woman", "women"), "female"),
    },
}


def plain(text: str) -> str:
    """For comparing: no case, no punctuation; but "3-9" is not "39"."""
    return re.sub(r"[\W_]+", "-" if re.search(r"\d", text) else "", text.strip().casefold())
