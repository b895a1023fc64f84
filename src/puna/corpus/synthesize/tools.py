"""Tools of a shop: schemas, wordings of requests, results, and answers to the results. Data.

A request's text holds the arguments. The arguments of a second call stand in the first call's result.
"""

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """A result of a tool and the assistant's answer; result and right answer contain all `needles`.

    Example:
        >>> TOOLS["card_balance"].outcomes[0].needles
        ('{amount}',)
    """

    result: dict[str, str]
    answer: str
    needles: tuple[str, ...]


class Tool(NamedTuple):
    """A function of the shop; `parameters` maps names to descriptions, all of type string. Example: see `schema`."""

    description: str
    parameters: dict[str, str]
    requests: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


TOOLS: dict[str, Tool] = {
    "look_up_order": Tool(
        "Find the state of an order.",
        {"order_id": "The order's number"},
        (
            "Where is my order {order_id}?",
            "Can you check order {order_id} for me?",
            "What is the status of order {order_id}?",
            "I am still waiting for {order_id}. Where is it?",
            "My order number is {order_id}. When does it come?",
            "Has order {order_id} been sent?",
            "Please look up {order_id}.",
            "I ordered something, the number is {order_id}. Any news?",
            "Any news about {order_id}?",
        ),
        (
            Outcome(
                {"order_id": "{order_id}", "status": "shipped", "arrives": "{day}"},
                "Order {order_id} is shipped and arrives on {day}.",
                ("shipped", "{day}"),
            ),
            Outcome(
                {"order_id": "{order_id}", "status": "packed", "leaves": "{day}"},
                "Order {order_id} is packed and leaves on {day}.",
                ("packed", "{day}"),
            ),
            Outcome(
                {"order_id": "{order_id}", "status": "delivered", "delivered": "{day}"},
                "Order {order_id} was delivered on {day}.",
                ("delivered", "{day}"),
            ),
            Outcome({"error": "not found"}, "Order {order_id} was not found.", ("not found",)),
        ),
    ),
    "cancel_order": Tool(
        "Cancel an order that is not shipped.",
        {"order_id": "The order's number"},
        (
            "Please cancel order {order_id}.",
            "I want to cancel {order_id}.",
            "Can you cancel my order {order_id}?",
            "I do not need {order_id} any more. Cancel it, please.",
            "Cancel {order_id} for me.",
            "I made a mistake with order {order_id}, please cancel it.",
            "Is it possible to cancel order {order_id}? I want to.",
            "My order {order_id} should be cancelled.",
        ),
        (
            Outcome(
                {"order_id": "{order_id}", "status": "cancelled", "refund": "{amount}"},
                "Order {order_id} is cancelled and you get {amount} back.",
                ("cancelled", "{amount}"),
            ),
            Outcome(
                {"order_id": "{order_id}", "status": "shipped"},
                "Order {order_id} is shipped and cannot be cancelled.",
                ("shipped",),
            ),
        ),
    ),
    "start_return": Tool(
        "Register a return.",
        {"order_id": "The order's number"},
        (
            "I want to return order {order_id}.",
            "I would like to send back {order_id}.",
            "Please start a return for {order_id}.",
            "Order {order_id} does not please me. I want to send it back.",
            "How can I return {order_id}? Please start it.",
            "Can you register a return for order {order_id}?",
            "I am sending back {order_id}. Please register it.",
            "Return order {order_id}, please.",
        ),
        (
            Outcome(
                {"order_id": "{order_id}", "return_number": "{return_number}"},
                "The return of order {order_id} has the number {return_number}.",
                ("{return_number}",),
            ),
        ),
    ),
    "check_stock": Tool(
        "Count what is in stock.",
        {"product": "The product's name"},
        (
            "Is the {product} in stock?",
            "Do you have the {product} in the shop?",
            "Can I get the {product} now?",
            "Is the {product} available?",
            "How many of the {product} are in stock?",
            "Please check the stock of the {product}.",
            "I would like to fetch the {product}. Is it there?",
            "Are there any left of the {product}?",
        ),
        (
            Outcome(
                {"product": "{product}", "stock": "{count}"},
                "We have {count} of the {product} in stock.",
                ("{count}",),
            ),
            Outcome(
                {"product": "{product}", "stock": "sold out", "next_delivery": "{day}"},
                "The {product} is sold out until {day}.",
                ("sold out", "{day}"),
            ),
        ),
    ),
    "reserve_product": Tool(
        "Put products aside for a customer.",
        {"product": "The product's name", "quantity": "How many"},
        (
            "Please reserve {quantity} of the {product} for me.",
            "I want to reserve {quantity} of the {product}.",
            "Can you put {quantity} of the {product} aside?",
            "Keep {quantity} of the {product} for me, please.",
            "I need {quantity} of the {product}. Please reserve them.",
            "Could you reserve {quantity} of the {product}?",
            "Set {quantity} of the {product} aside until I come.",
            "I will fetch {quantity} of the {product}. Please keep them.",
        ),
        (
            Outcome(
                {"product": "{product}", "quantity": "{quantity}", "code": "{code}"},
                "We keep {quantity} of the {product} under {code}.",
                ("{code}",),
            ),
        ),
    ),
    "book_repair": Tool(
        "Book a repair.",
        {"product": "The product's name", "day": "A day of the week"},
        (
            "My {product} is broken. Can I bring it on {day}?",
            "Please book a repair of my {product} for {day}.",
            "I want to bring my {product} for repair on {day}.",
            "Can you repair my {product} on {day}?",
            "I need a repair for my {product} on {day}.",
            "The {product} does not work. I could come on {day} for a repair.",
            "Book a repair on {day} for the {product}, please.",
            "Is a repair of the {product} possible on {day}? Please book it.",
        ),
        (
            Outcome(
                {"product": "{product}", "day": "{day}", "ticket": "{ticket}"},
                "The repair of the {product} is booked for {day}, the ticket is {ticket}.",
                ("{day}", "{ticket}"),
            ),
        ),
    ),
    "card_balance": Tool(
        "Read what is left on a gift card.",
        {"card_number": "The card's number"},
        (
            "How much is left on my gift card {card_number}?",
            "What is the balance of card {card_number}?",
            "Can you check the gift card {card_number}?",
            "I have the gift card {card_number}. How much does it hold?",
            "Is there any money on card {card_number}?",
            "My card is {card_number}. What can I still spend?",
            "Please tell me the balance of {card_number}.",
            "What is on my card {card_number}?",
        ),
        (
            Outcome(
                {"card_number": "{card_number}", "balance": "{amount}"},
                "The card {card_number} holds {amount}.",
                ("{amount}",),
            ),
        ),
    ),
    # The result is an order number for the next call: an identifier to copy from a result.
    "find_order": Tool(
        "Find a customer's last order.",
        {"email": "The customer's e-mail address"},
        (
            "I forgot my order number. My e-mail is {email}. Where is my order?",
            "Where is my order? I used {email}.",
            "I ordered with {email} but lost the number. When does it come?",
            "Can you find my order? The address is {email}.",
            "Please look up the order of {email}.",
            "My e-mail is {email}. What is the status of my order?",
            "I have no number, only my e-mail {email}. Has my order been sent?",
            "What happened to the order that I made with {email}?",
        ),
        (Outcome({"email": "{email}", "order_id": "{order_id}"}, "", ()),),
    ),
}

FOLLOWED_BY = {"find_order": "look_up_order"}


def schema(name: str) -> dict[str, Any]:
    """Return a tool definition in the layout of OpenAI's API.

    Example:
        >>> schema("check_stock")["function"]["parameters"]["required"]
        ['product']
    """
    properties = {key: {"type": "string", "description": text} for key, text in TOOLS[name].parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": TOOLS[name].description, "parameters": parameters}
    return {"type": "function", "function": function}


def signature(name: str) -> str:
    """Return name and parameters for a prompt: "look_up_order(order_id)"."""
    return f"{name}({', '.join(TOOLS[name].parameters)})"
