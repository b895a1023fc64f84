"""A network and a few fixed conversations -> probability of the end of turn, and loss on the answers.

A run measures both values before and after training. Measuring changes no weight and draws no random number.

Shapes: T tokens of a conversation, M trained tokens among them, D model width, V vocabulary.
"""

import torch

from puna.data.packing import Batch
from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama

# Questions with clearly complete answers, in languages of Llama 3.1.
PROBES = (
    ("Hello!", "Hello! How can I help you?"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Are you open on Sundays?", "No, we are closed on Sundays."),
    ("Thank you for your help.", "You are welcome!"),
    ("Wie spät ist es?", "Es ist neun Uhr."),
    ("¿Dónde está la estación?", "La estación está en el centro."),
    ("Combien coûte le billet ?", "Le billet coûte dix euros."),
    ("Quando apre il negozio?", "Il negozio apre alle nove."),
)


@torch.no_grad()
def measure_chat(model: Llama, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, float] | None:
    """Return `end`, the mean end-of-turn probability after an answer, and `loss`, the mean loss over all answer tokens.

    A reward model generates no text; the result is None.

    Example:
        measure_chat(model, tokenizer, torch.bfloat16)  # {"end": 0.97, "loss": 1.3}
    """
    if model.config.is_reward:
        return None
    chat, was_training = ChatFormat(tokenizer), model.training
    rows = [
        chat.encode(Conversation((Message("user", question), Message("assistant", answer))))
        for question, answer in PROBES
    ]
    ids, trained = [torch.tensor(row.ids) for row in rows], [torch.tensor(row.mask[1:]) for row in rows]
    tokens_T, targets_T = torch.cat([row[:-1] for row in ids]), torch.cat([row[1:] for row in ids])
    batch = Batch(tokens_T, targets_T, torch.cat(trained), tuple(len(row) - 1 for row in ids))
    model.eval()
    hidden_MD = batch.hidden_states(model, dtype)[batch.trained_T]
    model.train(was_training)
    logs_MV = torch.log_softmax(model.logits(hidden_MD).float(), dim=-1)
    targets_M = targets_T[batch.trained_T].to(logs_MV.device)
    log_probabilities_M = logs_MV.gather(1, targets_M[:, None])[:, 0].cpu()
    # The last trained token of a conversation is the end of its answer.
    ends = torch.cumsum(torch.tensor([int(row.sum()) for row in trained]), 0) - 1
    return {"end": float(log_probabilities_M[ends].exp().mean()), "loss": float(-log_probabilities_M.mean())}
