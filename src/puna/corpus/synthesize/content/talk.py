"""Small talk of users, questions beyond the page, and the replies of the assistant, in English. Data.

`{name}` is the name of the business. A right reply to small talk contains every needle and no refusal.
"""

from random import Random
from typing import NamedTuple

# Phrase in every wording of an English refusal.
NOT_SAID = "does not say"
REFUSALS = (
    "I'm sorry, the page does not say that. Please ask our team.",
    "The page does not say that. Can I help you with something else?",
    "I looked for it, but the page does not say so. A colleague may know.",
    "I cannot answer this: the page does not say it. Please contact us.",
    "That is something the page does not say. I can answer questions about what stands on it.",
)
REFUSALS_WITH_SUBJECT = (
    "I'm sorry, the page does not say anything about {about}. Please ask our team.",
    "The page does not say anything about {about}. Can I help you with something else?",
    "I cannot tell you {about}: the page does not say it. Please contact us.",
)


class Talk(NamedTuple):
    """Wordings of one user message, the replies, and the needles that a right reply contains.

    Example:
        >>> TALK["bye"].needles
        ('goodbye',)
    """

    said: tuple[str, ...]
    replies: tuple[str, ...]
    needles: tuple[str, ...]


TALK: dict[str, Talk] = {
    "greeting": Talk(
        ("Hello!", "Hello", "Hi!", "Hi", "Hi there!", "Hey", "Hey there", "Hello there!", "Greetings!", "hello", "hi",
         "Good day!", "Good day", "Hello, is anybody there?", "Hello?", "Good to see you.", "Howdy!"),
        ("Hello! I am the assistant of {name}. How can I help you?",
         "Hello, welcome to {name}! How can I help you?"),
        ("{name}",),
    ),
    "morning": Talk(
        ("Good morning!", "Good morning", "Good morning to you!", "good morning", "Morning!"),
        ("Good morning! I am the assistant of {name}. How can I help you?",),
        ("{name}",),
    ),
    "evening": Talk(
        ("Good evening!", "Good evening", "Good evening to you.", "good evening"),
        ("Good evening! I am the assistant of {name}. How can I help you?",),
        ("{name}",),
    ),
    "how_are_you": Talk(
        ("How are you?", "How are you doing?", "How is it going?", "Hello, how are you?", "Hi, how are you today?",
         "What's up?", "Are you well?"),
        ("I am doing fine, thank you! I am the assistant of {name}. How can I help you?",),
        ("{name}",),
    ),
    "who": Talk(
        ("Who are you?", "What are you?", "Who am I talking to?", "What is your name?", "Tell me about yourself.",
         "And who are you?", "Who is this?", "With whom am I speaking?", "who are you", "Introduce yourself, please."),
        ("I am the assistant of {name}: a computer program, not a human.",),
        ("{name}", "program"),
    ),
    "human": Talk(
        ("Are you human?", "Are you a human?", "Are you a real person?", "Am I talking to a person?",
            "Are you a robot?",
         "Are you a machine?", "Is this a bot?", "Are you real?", "Do you have feelings?", "Are you alive?"),
        ("I am a computer program, not a human. I am the assistant of {name}.",),
        ("program", "not a human"),
    ),
    "what_can_you_do": Talk(
        ("What can you do?", "How can you help me?", "What can I ask you?", "Can you help me?", "I need help.",
         "Help!", "I have a question.", "Can I ask you something?", "What do you know?", "May I ask a question?"),
        ("Yes, I can help with questions about {name}. What would you like to know?",),
        ("{name}", "help"),
    ),
    "thanks": Talk(
        ("Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "Great, thank you!", "Perfect, thanks.",
         "That helps, thank you.", "Many thanks!", "Cool, thanks!", "thank you", "thanks", "Wonderful, thanks a lot!"),
        ("You're welcome! Is there anything else I can do for you?",
         "You're welcome! I am glad that I could help."),
        ("welcome",),
    ),
    "bye": Talk(
        ("Goodbye!", "Bye!", "Bye bye", "See you!", "Goodbye.", "Have a nice day!", "That was all. Bye!",
            "See you soon.",
         "Thanks, bye!", "Good night!", "That is all, goodbye."),
        ("Goodbye! We look forward to seeing you at {name}.", "Goodbye, and thank you for asking {name}."),
        ("goodbye",),
    ),
    "praise": Talk(
        ("Great!", "Okay.", "Ok", "Good to know.", "I see.", "Perfect.", "Wonderful!", "All right.", "Nice!",
            "Understood."),
        ("Is there anything else I can do for you?",),
        ("anything else",),
    ),
}  # fmt: skip
OPENERS = ("greeting", "greeting", "greeting", "morning", "evening", "how_are_you", "who", "human", "what_can_you_do")
CLOSERS = ("thanks", "thanks", "bye", "bye", "praise", "who", "human")

# Questions that the generated pages do not answer.
OFF_TOPIC = (
    "What is the capital of France?", "Will it rain tomorrow?", "Who won the match yesterday?", "Tell me a joke.",
    "Write me a poem.", "Can you do my homework?", "What is 17 times 23?", "Who is the president?",
    "How do I bake bread?",
    "Do you like music?", "What is the meaning of life?", "How tall is Mount Everest?", "Can you recommend a film?",
    "What should I cook tonight?", "When does the train leave?", "Who wrote Hamlet?", "How far away is the moon?",
    "What do you think about politics?", "Is there life on Mars?", "How do I learn the guitar?",
    "Translate this, please.",
    "What is the stock price today?", "Can you call me a taxi?", "Do you sell horses?", "May I bring my dog?",
    "Do you take credit cards?", "Is there a toilet?", "Do you have a car park?", "Is there a lift?",
    "Can I pay in cash?",
    "Do you speak Japanese?", "Are you hiring?", "Who is your landlord?", "How many people work for you?",
    "Which bus goes to you?", "Do you deliver to the moon?", "Is there free coffee?", "What is your bank account?",
)  # fmt: skip


def refuse(rng: Random, about: str = "") -> str:
    """Draw a refusal; with a subject `about`, half of the refusals name the subject.

    Example:
        >>> NOT_SAID in refuse(Random(0), about="parking")
        True
    """
    if about and rng.random() < 0.5:
        return rng.choice(REFUSALS_WITH_SUBJECT).format(about=about)
    return rng.choice(REFUSALS)
