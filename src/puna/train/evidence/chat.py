"""A network and a few fixed conversations -> how surely it ends its answers, and how well it knows them.

Measured before and after a run. Changes no weight and draws no random number.

Shapes: T tokens of a conversation, M trained tokens among them, D model width, V vocabulary.
"""

import torch

from puna.chat.conversation import Conversation, Message
from puna.chat.format import ChatFormat
from puna.data.packing import Batch
from puna.model.llama import Llama
from puna.tokenizer.tokenizer import Tokenizer

# Questions with an answer that is plainly over, in languages of Llama 3.1.
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
    """Return `end`, the mean probability of the end of turn after an answer, and `loss`, the mean over its tokens.

    None for a reward model, which writes nothing.

    Example:
        measure_chat(model, tokenizer, torch.bfloat16)  # {"end": 0.97, "loss": 1.3}
    """
    if model.config.is_reward:
        return None
    was_training = model.training
    model.eval()
    chat, ends, losses = ChatFormat(tokenizer), list[float](), list[torch.Tensor]()
    for asked, answered in PROBES:
        ids, mask = chat.encode(Conversation((Message("user", asked), Message("assistant", answered))))
        tokens, trained_T = torch.tensor(ids), torch.tensor(mask[1:])
        batch = Batch(tokens[:-1], tokens[1:], trained_T, (len(ids) - 1,))
        hidden_MD = batch.hidden_states(model, dtype)[trained_T]
        logs_MV = torch.log_softmax(model.logits(hidden_MD).float(), dim=-1)
        targets_M = batch.targets_T[trained_T].to(logs_MV.device)
        losses.append(-logs_MV.gather(1, targets_M[:, None])[:, 0].cpu())
        ends.append(float(logs_MV[-1, targets_M[-1]].exp()))
    model.train(was_training)
    return {"end": sum(ends) / len(ends), "loss": float(torch.cat(losses).mean())}
