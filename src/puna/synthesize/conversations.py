"""(seed, split, world, number) -> one customer's conversation, and what is expected of each assistant message.

Each turn is a question on the page in the system message, which may not answer it, or a request that needs a tool.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any, Literal, NamedTuple

from puna.chat.conversation import Conversation, Message, ToolCall
from puna.synthesize.pages import Asked, Page, ask, ask_in_vain, draw_page
from puna.synthesize.phrases import CAN_CALL, FROM_PAGE, GREETINGS, ROLE, THANKS
from puna.synthesize.tools import FOLLOWED_BY, TOOLS, Outcome, schema, signature
from puna.synthesize.worlds import TOPICS, WEEKDAYS, World, draw_amount, draw_code, draw_name
from puna.tasks import Question

Turn = Literal["page", "tool"]

# Turns and their weights: with a tool, without one.
TOOL_PLANS: dict[tuple[Turn, ...], int] = {("tool",): 6, ("tool", "tool"): 2, ("page", "tool"): 2, ("tool", "page"): 1}
PAGE_PLANS: dict[tuple[Turn, ...], int] = {("page",): 4, ("page", "page"): 4, ("page", "page", "page"): 2}
PAGE_WITH_TOOLS_ONLY = 0.1
# Several products on a page are the harder reading, so they come up twice as often.
PAGES = ("products", *TOPICS)


class Expected(NamedTuple):
    """How one assistant message is judged: the kind of turn, the name of a grade, what the grade needs."""

    kind: str
    grade: Literal["contains", "tool_call", "refusal"]
    values: dict[str, Any]  # becomes Question.expected


class Scene(NamedTuple):
    """A conversation, and one expectation for each of its assistant messages, in order."""

    conversation: Conversation
    expected: tuple[Expected, ...]


def draw_conversation(
    world: World, seed: int, number: int, *, tool_share: float, refusal_share: float, schemas: bool = False
) -> Scene:
    """Draw conversation `number` of a world, without the ones before it."""
    rng = Random(f"{seed}/{world.id}/{number}")
    plans = TOOL_PLANS if rng.random() < tool_share else PAGE_PLANS
    plan = rng.choices(tuple(plans), tuple(plans.values()))[0]
    with_page = "page" in plan or rng.random() < PAGE_WITH_TOOLS_ONLY
    page = draw_page(world, rng.choice(PAGES), rng) if with_page else None
    called = rng.sample(tuple(TOOLS), plan.count("tool"))
    offered = _offer(called, rng) if called else []
    turns = _turns(world, page, plan, called, refusal_share, rng)
    system = Message("system", _system(world, page, offered))
    expected = tuple(e for messages, expectations in turns for e in expectations)
    conversation = Conversation(
        (system, *(message for messages, _ in turns for message in messages)),
        tools=tuple(schema(name) for name in offered) if schemas else (),
        environment="ipython" if called else "",
        id=f"{world.id}/{number}",
        metadata={"kind": "+".join(dict.fromkeys(e.kind for e in expected)), "world": world.id, "split": world.split},
    )
    return Scene(conversation, expected)


def questions(scene: Scene) -> Iterator[Question]:
    """Ask for each assistant message, given the true history before it."""
    conversation = scene.conversation
    places = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    for place, expected in zip(places, scene.expected, strict=True):
        identifier = f"{conversation.id}/{place}"
        metadata = {**conversation.metadata, "kind": expected.kind}
        prompt = replace(conversation, messages=conversation.messages[:place], id=identifier, metadata=metadata)
        yield Question(identifier, prompt, expected.values, expected.grade, group=metadata["world"])


def _turns(
    world: World, page: Page | None, plan: tuple[Turn, ...], called: list[str], refusal_share: float, rng: Random
) -> list[tuple[list[Message], list[Expected]]]:
    facts = rng.sample(page.facts, len(plan)) if page else []
    names = iter(called)
    turns: list[tuple[list[Message], list[Expected]]] = []
    for place, turn in enumerate(plan):
        if turn == "tool":
            turns.append(_tool_turn(world, next(names), rng))
        else:
            assert page
            in_vain = rng.random() < refusal_share
            turns.append(_page_turn(ask_in_vain(world, page, rng) if in_vain else ask(page, facts[place], rng), rng))
    return turns


def _page_turn(asked: Asked, rng: Random) -> tuple[list[Message], list[Expected]]:
    values: dict[str, Any] = {"contains": list(asked.needles)}
    if asked.distractors:
        values["distractors"] = list(asked.distractors)
    grade = "refusal" if asked.kind == "refusal" else "contains"
    messages = [Message("user", _politely(asked.question, rng)), Message("assistant", asked.answer)]
    return messages, [Expected(asked.kind, grade, values)]


def _tool_turn(world: World, name: str, rng: Random) -> tuple[list[Message], list[Expected]]:
    slots = _draw_slots(world, rng)
    messages = [Message("user", _politely(rng.choice(TOOLS[name].requests).format(**slots), rng))]
    expected: list[Expected] = []
    outcome: Outcome | None = None
    for call in (name, FOLLOWED_BY[name]) if name in FOLLOWED_BY else (name,):
        # A second call looks up what the first one has found, so it does not fail.
        outcomes = [other for other in TOOLS[call].outcomes if not outcome or "error" not in other.result]
        outcome = rng.choice(outcomes)
        arguments = {key: slots[key] for key in TOOLS[call].parameters}
        result = {key: text.format(**slots) for key, text in outcome.result.items()}
        messages.append(Message("assistant", tool_calls=(ToolCall(call, arguments),)))
        messages.append(Message("tool", json.dumps(result, ensure_ascii=False)))
        expected.append(Expected(name, "tool_call", {"name": call, "arguments": arguments}))
    assert outcome
    messages.append(Message("assistant", outcome.answer.format(**slots)))
    needles = [needle.format(**slots) for needle in outcome.needles]
    return messages, [*expected, Expected(name, "contains", {"contains": needles})]


def _draw_slots(world: World, rng: Random) -> dict[str, str]:
    person, host = draw_name(rng, world.split), draw_name(rng, world.split)
    return {
        "order_id": draw_code(rng, world.split, world.order_prefix, 5),
        "return_number": draw_code(rng, world.split, "RT", 4),
        "ticket": draw_code(rng, world.split, "R", 4),
        "code": draw_code(rng, world.split, "K", 4),
        "card_number": draw_code(rng, world.split, "GC", 6),
        "email": f"{person}@{host}.example".lower(),
        "product": rng.choice(world.products),
        "quantity": str(rng.randrange(2, 10)),
        "count": str(rng.randrange(11, 99)),
        "day": rng.choice(WEEKDAYS),
        "amount": world.currency.format(draw_amount(rng, 5, 300)),
    }


def _offer(called: list[str], rng: Random) -> list[str]:
    """List the tools that the conversation needs among one or two that it does not, in any order."""
    needed = {*called, *(FOLLOWED_BY[name] for name in called if name in FOLLOWED_BY)}
    others = [name for name in TOOLS if name not in needed]
    offered = [*sorted(needed), *rng.sample(others, rng.choice((1, 2)))]
    rng.shuffle(offered)
    return offered


def _system(world: World, page: Page | None, offered: list[str]) -> str:
    lines = [ROLE.format(name=world.name)]
    if page:
        lines.append(FROM_PAGE)
    if offered:
        lines.append(CAN_CALL.format(tools=", ".join(signature(name) for name in offered)))
    return " ".join(lines) + (f"\n\n{page.text}" if page else "")


def _politely(text: str, rng: Random) -> str:
    greeting = rng.choice(GREETINGS) if rng.random() < 0.2 else ""
    return greeting + text + (rng.choice(THANKS) if rng.random() < 0.15 else "")
