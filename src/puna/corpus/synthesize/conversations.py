"""(seed, split, world, number) -> a customer's conversation with expectations for the assistant messages.

A turn is a question about the page in the system message, an unanswerable question, or a request for a tool.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Literal

from puna.corpus.synthesize.content.names import draw_name, draw_of_split
from puna.corpus.synthesize.content.scenes import (
    Asked,
    Expected,
    Scene,
    Turn,
    add_talk,
    join_asked,
    make_scene,
    make_turn,
)
from puna.corpus.synthesize.content.talk import NOT_SAID, refuse
from puna.corpus.synthesize.content.values import draw_identifier, draw_price
from puna.corpus.synthesize.pages import Page, ask, ask_unanswerable, draw_page
from puna.corpus.synthesize.phrases import CAN_CALL, FROM_PAGES, GREETINGS, ROLES, THANKS
from puna.corpus.synthesize.tools import FOLLOWED_BY, TOOLS, Outcome, schema, signature
from puna.corpus.synthesize.worlds import TOPICS, WEEKDAYS, World
from puna.evaluation.tasks import Question
from puna.formats.chat.conversation import Message, ToolCall

Step = Literal["page", "tool"]

# Sequences of turns with sampling weights.
TOOL_PLANS: dict[tuple[Step, ...], int] = {("tool",): 6, ("tool", "tool"): 2, ("page", "tool"): 2, ("tool", "page"): 1}
PAGE_PLANS: dict[tuple[Step, ...], int] = {("page",): 2, ("page", "page"): 4, ("page", "page", "page"): 4}
# Number of facts per question, with sampling weights.
NUM_FACTS = {1: 80, 2: 15, 3: 5}
PAGE_WITH_TOOLS_ONLY = 0.1
UNUSED_TOOLS = 0.25
TOOL_MISSING = 0.2  # share of unanswerable questions that need a missing tool
CODES = ("order_id", "return_number", "ticket", "code", "card_number")
# Pages with several products are harder to read: twice the weight.
PAGES = ("products", *TOPICS)


def draw_conversation(
    world: World,
    seed: int,
    number: int,
    *,
    tool_share: float,
    refusal_share: float,
    talk_share: float = 0.0,
    schemas: bool = False,
) -> Scene:
    """Draw conversation `number` of a world, independent of the world's further conversations.

    Example:
        >>> world = make_world(0, "train", 0)
        >>> draw_conversation(world, 0, 1, tool_share=0.5, refusal_share=0.1).conversation.messages[0].role
        'system'
    """
    rng = Random(f"{seed}/{world.id}/{number}")
    plans = TOOL_PLANS if rng.random() < tool_share else PAGE_PLANS
    plan = rng.choices(tuple(plans), tuple(plans.values()))[0]
    with_page = "page" in plan or rng.random() < PAGE_WITH_TOOLS_ONLY
    page = draw_page(world, rng.choice(PAGES), rng) if with_page else None
    called = rng.sample(tuple(TOOLS), plan.count("tool"))
    # Tools are also offered in conversations without calls: offering a tool must not trigger a call.
    offered = _offer(called, rng) if called or rng.random() < UNUSED_TOOLS else []
    turns = add_talk(_turns(world, page, plan, called, offered, refusal_share, rng), world.name, talk_share, rng)
    scene = make_scene(
        _system(world, page, offered, rng),
        turns,
        environment="ipython" if offered else "",
        identifier=f"{world.id}/{number}",
        metadata={"world": world.id, "split": world.split, "topic": "shop"},
    )
    tools = tuple(schema(name) for name in offered) if schemas else ()
    return scene._replace(conversation=replace(scene.conversation, tools=tools))


def questions(scene: Scene) -> Iterator[Question]:
    """Yield a question for every assistant message, with the true history as the prompt."""
    conversation = scene.conversation
    indices = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    for index, expected in zip(indices, scene.expected, strict=True):
        identifier = f"{conversation.id}/{index}"
        metadata = {**conversation.metadata, "kind": expected.kind}
        prompt = replace(conversation, messages=conversation.messages[:index], id=identifier, metadata=metadata)
        yield Question(identifier, prompt, expected.values, expected.grade, group=metadata["world"])


def _turns(
    world: World,
    page: Page | None,
    plan: tuple[Step, ...],
    called: list[str],
    offered: list[str],
    refusal_share: float,
    rng: Random,
) -> list[Turn]:
    facts = rng.sample(page.facts, len(page.facts)) if page else []
    names = iter(called)
    turns: list[Turn] = []
    for step in plan:
        if step == "tool":
            turns.append(_tool_turn(world, next(names), rng))
            continue
        assert page
        if not facts or rng.random() < refusal_share:
            needs_tool = not offered and rng.random() < TOOL_MISSING
            asked = _ask_for_missing_tool(world, rng) if needs_tool else ask_unanswerable(world, page, rng)
        else:
            count = rng.choices(tuple(NUM_FACTS), tuple(NUM_FACTS.values()))[0]
            several = [ask(page, facts.pop(), rng) for _ in range(min(count, len(facts)))]
            asked = join_asked(several, rng) if len(several) > 1 else several[0]
        turns.append(make_turn(asked, question=_politely(asked.question, rng)))
    return turns


def _ask_for_missing_tool(world: World, rng: Random) -> Asked:
    """Return a request for a tool missing from the conversation."""
    request = rng.choice(TOOLS[rng.choice(tuple(TOOLS))].requests).format(**_draw_slots(world, rng))
    return Asked("refusal", request, refuse(rng), (NOT_SAID,))


def _tool_turn(world: World, name: str, rng: Random) -> Turn:
    slots = _draw_slots(world, rng)
    messages = [Message("user", _politely(rng.choice(TOOLS[name].requests).format(**slots), rng))]
    expected: list[Expected] = []
    outcome: Outcome | None = None
    for call in (name, FOLLOWED_BY[name]) if name in FOLLOWED_BY else (name,):
        # The second call looks up a result of the first call, and therefore succeeds.
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
    expected.append(Expected(name, "contains", {"contains": needles}))
    return Turn(tuple(messages), tuple(expected))


def _draw_slots(world: World, rng: Random) -> dict[str, str]:
    person, host = draw_name(rng, world.split), draw_name(rng, world.split)
    return {
        **{name: draw_of_split(lambda: draw_identifier(rng), world.split) for name in CODES},
        "email": f"{person}@{host}.example".lower(),
        "product": rng.choice(world.products),
        "quantity": str(rng.randrange(2, 10)),
        "count": str(rng.randrange(11, 99)),
        "day": rng.choice(WEEKDAYS),
        "amount": world.currency.format(draw_price(rng, 5, 300)),
    }


def _offer(called: list[str], rng: Random) -> list[str]:
    """Return the called tools with one or two further tools, shuffled."""
    needed = {*called, *(FOLLOWED_BY[name] for name in called if name in FOLLOWED_BY)}
    others = [name for name in TOOLS if name not in needed]
    offered = [*sorted(needed), *rng.sample(others, rng.choice((1, 2)))]
    rng.shuffle(offered)
    return offered


def _system(world: World, page: Page | None, offered: list[str], rng: Random) -> str:
    lines = [rng.choice(ROLES).format(name=world.name)]
    if page:
        lines.append(rng.choice(FROM_PAGES))
    if offered:
        lines.append(CAN_CALL.format(tools=", ".join(signature(name) for name in offered)))
    return " ".join(lines) + (f"\n\n{page.text}" if page else "")


def _politely(text: str, rng: Random) -> str:
    greeting = rng.choice(GREETINGS) if rng.random() < 0.2 else ""
    return greeting + text + (rng.choice(THANKS) if rng.random() < 0.15 else "")
