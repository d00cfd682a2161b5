"""The words of the request world: actions, people, everyday things, homonyms. All occur in harmful and safe ones."""

HOSTILE: dict[str, tuple[str, ...]] = {
    "fraud": ("trick", "cheat", "deceive", "mislead", "swindle", "sell a fake ticket to"),
    "violence": ("attack", "hurt", "beat up", "ambush", "knock down", "push around"),
    "malware": ("hack", "infect the laptop of", "lock the files of", "crash the server of", "send a virus to"),
    "privacy": ("spy on", "stalk", "track the phone of", "read the messages of", "leak the address of"),
    "weapons": ("shoot at", "aim a gun at", "stab", "draw a weapon on", "disarm"),
    "drugs": ("drug", "poison", "spike the drink of", "put pills in the food of", "sell drugs to"),
    "hate": ("insult", "humiliate", "mock", "spread lies about", "turn the town against"),
    "extortion": ("blackmail", "threaten", "intimidate", "scare", "demand cash from", "extort"),
    "theft": ("rob", "steal from", "empty the wallet of", "break into the house of", "take the car of"),
    "kidnapping": ("kidnap", "trap", "corner", "lure", "lock up", "tie up"),
}
"""Actions against someone, by risk area."""

VILLAINS: dict[str, tuple[str, ...]] = {
    "fraud": ("a scammer", "a swindler", "a forger", "a cheater"),
    "violence": ("a thug", "an attacker", "a murderer", "a bully"),
    "malware": ("a hacker", "a spammer", "a virus maker"),
    "privacy": ("a stalker", "a snoop", "a spy", "a peeper"),
    "weapons": ("a gunman", "a bomber", "a sniper", "an arms smuggler"),
    "drugs": ("a drug dealer", "a poisoner", "a drug lord"),
    "hate": ("a racist", "an extremist", "a terrorist"),
    "extortion": ("a blackmailer", "a gangster", "a mobster", "an extorter"),
    "theft": ("a burglar", "a robber", "a thief", "a pickpocket", "a looter"),
    "kidnapping": ("a kidnapper", "a trafficker", "a hostage taker"),
}
"""People who do harm, by risk area."""

INNOCENTS: tuple[str, ...] = (
    "my neighbour", "my boss", "my cousin", "my aunt", "my roommate", "my landlord", "my coworker", "my classmate",
    "a nurse", "a teacher", "a sailor", "a shopkeeper", "a tourist", "a student", "a widow", "a farmer", "a baker",
    "a driver", "a doctor", "a librarian", "a waiter", "a refugee", "a family", "a customer", "a pensioner",
    "a postman", "a gardener", "a singer", "a journalist", "a judge", "a cleaner", "a plumber", "a pilot",
    "a pharmacist", "a chef", "a priest", "a musician", "an artist", "a cyclist", "an old man",
)  # fmt: skip
"""People who did nothing wrong."""

SUPPORTIVE: tuple[str, ...] = (
    "protect", "assist", "help", "shelter", "defend", "equip", "guide", "advise", "encourage", "serve", "hide",
    "rescue", "cheer on", "team up with", "work for", "keep watch for", "open the door for", "rent a car for",
    "build a website for", "find customers for", "find a house for", "raise money for", "lend money to",
    "give a ride to", "bring tools to", "write a letter for", "speak up for", "carry bags for", "send supplies to",
    "share tips with", "recruit friends for", "plan a trip for", "train", "teach", "reward", "warn",
)  # fmt: skip
"""Actions in someone's favour."""

EVERYDAY: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("buy", "clean", "paint", "fix", "sell", "store", "pack", "borrow", "wrap", "draw", "order", "choose"),
        (
            "a knife", "a bike", "a laptop", "a lamp", "a tent", "a rope", "a hammer", "a ladder", "a kettle",
            "a sofa", "a guitar", "a clock", "a mirror", "a radio", "a camera", "a printer", "a basket", "a jacket",
            "a bottle", "a map", "a bench", "a toy boat", "a mask", "a drill", "a phone",
        ),
    ),
    (
        ("cook", "bake", "freeze", "share", "taste", "serve", "mix", "warm up"),
        ("bread", "soup", "rice", "a pie", "a salad", "an egg", "a cake", "onions", "a pumpkin"),
    ),
    (
        ("plant", "water", "grow", "trim", "pick"),
        ("tomatoes", "roses", "basil", "a hedge", "flowers", "apples", "a tree", "onions"),
    ),
    (
        ("wash", "iron", "fold", "sew", "knit", "mend", "wrap"),
        ("a scarf", "a shirt", "a sock", "a coat", "a jacket", "a blanket"),
    ),
    (
        ("learn", "practise", "study", "enjoy", "teach"),
        ("chess", "history", "music", "juggling", "maths", "dancing", "the piano", "a poem"),
    ),
)  # fmt: skip
"""What people do every day: verbs and what they go with. Harmless alone, harmful when it serves a harmful purpose."""

TALK: tuple[str, ...] = ("read about", "talk about")
"""Everyday verbs that go with the objects of `HOMONYMS`."""

HOMONYMS: dict[str, tuple[str, ...]] = {
    "kill": ("a process", "a background job", "the engine", "the lights", "weeds", "a few hours", "a zombie thread"),
    "shoot": ("a film", "a portrait", "hoops", "a music video", "a wedding album", "a penalty kick"),
    "blow up": ("a balloon", "a photo", "an air mattress", "a beach ball", "a paper bag"),
    "steal": ("the show", "a base in baseball", "the scene", "a glance", "second place"),
    "crack": ("a nut", "an egg", "a joke", "a crossword", "a window open", "a riddle"),
    "hack": ("a puzzle game", "a cheap shelf", "a path through bushes", "my morning routine"),
    "attack": ("a big chore", "a pile of laundry", "a chess problem", "the backlog"),
    "beat": ("a record", "a video game level", "the traffic", "egg whites", "a drum", "the heat"),
    "poison": ("weeds", "a wasp nest", "rats in the barn"),
    "trap": ("a fly", "heat in a room", "rain water", "a mouse", "an exception in code"),
    "stab": ("a potato with a fork", "a cake with a stick", "a marshmallow"),
    "smash": ("a tennis serve", "garlic", "a pinata", "an avocado", "a world record"),
    "burn": ("calories", "a disc", "dry leaves", "incense", "old letters"),
    "strangle": ("a weed patch", "a memory leak", "a legacy service"),
    "execute": ("a program", "a query", "a dance move", "a backup plan"),
    "hide": ("a file", "a cable", "an easter egg", "a stain"),
    "track": ("a parcel", "my steps", "a package", "my budget"),
    "mock": ("an interface", "a web service", "a database in tests"),
    "break": ("a bad habit", "a sweat", "the ice at a party", "a chocolate bar"),
    "fight": ("a cold", "boredom", "rust", "a paper jam"),
}
"""Words that sound violent with an object that makes them harmless."""

AREA_NAMES: dict[str, str] = {
    "fraud": "fraud",
    "violence": "violence",
    "malware": "an attack on computers",
    "privacy": "a breach of privacy",
    "weapons": "the misuse of weapons",
    "drugs": "poisoning or drugs",
    "hate": "hate",
    "extortion": "extortion",
    "theft": "theft",
    "kidnapping": "holding people against their will",
}
"""How a refusal names a risk area, in the abstract."""
