"""The sentences of the support desk: customers' questions, agents' answers, and the kind of each sentence.

`{product}`, `{color}`, `{color2}` and `{number}` are filled in. Only solutions depend on the product, so every sentence
of a reply can be recognised by looking it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PRODUCTS = (
    "kettle", "lamp", "toaster", "backpack", "camera", "printer", "jacket", "clock", "heater", "keyboard", "tent",
    "bicycle", "radio", "sofa", "mirror", "phone",
)  # fmt: skip
COLORS = ("red", "blue", "green", "black", "white", "yellow")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "ten")
OPENINGS = (
    "", "", "", "Hello. ", "Hi there. ", "Good morning. ", "I am quite upset. ", "This is the second time I write. ",
    "Can you help me? ", "I write about the {product}. ", "It is about my {product}. ",
    "I have a question about the {product}. ",
)  # fmt: skip


@dataclass(frozen=True)
class Intent:
    """What a customer wants: ways to ask for it, and the sentences that solve it."""

    asks: tuple[str, ...]
    solutions: tuple[str, ...]


INTENTS = {
    "late": Intent(
        (
            "My {product} has not arrived yet.",
            "I am still waiting for my {product}.",
            "Where is the {color} {product} that I ordered {number} days ago?",
        ),
        (
            "Your {product} will reach you within two days.",
            "We will trace your {product} and send you the tracking link.",
        ),
    ),
    "broken": Intent(
        (
            "My {product} stopped working after {number} days.",
            "The {color} {product} I bought is broken.",
            "The {product} does not turn on any more.",
        ),
        ("We will send you a new {product} today.", "We will repair your {product} free of charge."),
    ),
    "refund": Intent(
        (
            "I want my money back for the {product}.",
            "Please refund the {color} {product}.",
            "I do not like the {product} and would like to return it.",
        ),
        ("You will get your money back for the {product}.", "We will refund the {product} in full."),
    ),
    "wrong": Intent(
        (
            "I ordered a {color} {product} but got a different one.",
            "You sent me the wrong {product}.",
            "This is not the {product} that I chose.",
        ),
        ("We will collect the wrong {product} and bring the right one.", "The right {product} is on its way to you."),
    ),
    "cancel": Intent(
        (
            "Please cancel my order for the {product}.",
            "I do not need the {color} {product} any more.",
            "Can I still stop the order of the {product}?",
        ),
        (
            "The order for the {product} is cancelled.",
            "We have stopped the order of the {product} and nothing will be charged.",
        ),
    ),
    "manual": Intent(
        (
            "How do I clean the {product}?",
            "I lost the manual of my {product}.",
            "I do not know how to set up the {product}.",
        ),
        ("The manual of the {product} is in your inbox now.", "Here is a short guide for your {product}."),
    ),
    "invoice": Intent(
        (
            "I need an invoice for the {product}.",
            "The bill for my {color} {product} is missing.",
            "Can you send me the receipt of the {product}?",
        ),
        ("The invoice for your {product} is attached.", "We have sent you the receipt of the {product}."),
    ),
    "stock": Intent(
        (
            "When will the {color} {product} be in stock again?",
            "Is the {product} sold out?",
            "I cannot find the {product} in your shop.",
        ),
        ("The {product} will be in stock again on Monday.", "You can order the {product} again from next week."),
    ),
}

GREETINGS = (
    "Thank you for your message.",
    "Thank you for getting in touch.",
    "Good day and thank you for writing.",
)
SYMPATHY = (
    "I am sorry for the trouble.",
    "We are very sorry about this.",
    "I understand how annoying this is.",
)
FAREWELLS = (
    "Please let us know if you need anything else.",
    "Have a lovely day.",
    "We are always glad to help.",
)
NEUTRAL = ("Hello.", "Hi.", "Noted.")
RUDE = (
    "That is not our problem.",
    "You should have read the rules.",
    "Stop bothering us.",
    "This is your own fault.",
    "We have better things to do.",
)
VAGUE = ("Please look at our website.", "Someone may answer later.", "These things happen.")
CHATTER = (
    "Our shop has been in the same family for forty years and we are proud of it.",
    "Did you know that we also have a large garden department behind the main hall.",
    "Every week we add many new things to our catalogue and you can see them online.",
    "Many of our customers tell us that they like the coffee in our little corner cafe.",
)
NOTES = (
    "The {product} comes in {color}.",
    "We sell the {product} in {color} and {color2}.",
    "The {product} costs {number} coins.",
    "You can use the {product} at home.",
    "Many people like the {product}.",
    "Clean the {product} every {number} weeks.",
    "The {product} is made of steel.",
    "The {product} has a warranty of {number} years.",
    "My {product} is {color}.",
    "I bought my {product} {number} years ago.",
    "We like our {product}.",
)


class Kind(Enum):
    """The kind of a sentence in a reply."""

    GREETING = "greeting"
    SYMPATHY = "sympathy"
    FAREWELL = "farewell"
    NEUTRAL = "neutral"
    RUDE = "rude"
    VAGUE = "vague"
    CHATTER = "chatter"
    SOLUTION = "solution"
    GARBLED = "garbled"


COURTESIES = frozenset({Kind.GREETING, Kind.SYMPATHY, Kind.FAREWELL})
SENTENCES: dict[str, Kind] = {
    sentence: kind
    for kind, sentences in (
        (Kind.GREETING, GREETINGS),
        (Kind.SYMPATHY, SYMPATHY),
        (Kind.FAREWELL, FAREWELLS),
        (Kind.NEUTRAL, NEUTRAL),
        (Kind.RUDE, RUDE),
        (Kind.VAGUE, VAGUE),
        (Kind.CHATTER, CHATTER),
    )
    for sentence in sentences
}
"""Every fixed sentence, and its kind."""
SOLUTIONS: dict[str, tuple[str, str]] = {
    solution.format(product=product): (name, product)
    for name, intent in INTENTS.items()
    for solution in intent.solutions
    for product in PRODUCTS
}
"""Every solution, filled in, and the (intent, product) that it solves."""
