"""A checkpoint loaded in-process -> replies, in the chat format of the checkpoint's training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.adapters.folder import checkpoint_at
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.inference.completer.completer import Prompt, Reply, ReplyToken, Sampling, ignore
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import DEFAULTS, EngineOptions
from puna.inference.engine.outputs import Completion, TokenLogprob
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.kernels.device import DeviceName

NO_ROOM = "the prompt leaves no room for an answer"


@dataclass(frozen=True)
class LocalCompleter:
    """A checkpoint, or an adapter with the base model, loaded in-process.

    Example:
        >>> model = LocalCompleter.open(Path("build/prune"), device="cpu")
        >>> [reply.failure for reply in model.complete([Prompt(conversation)], Sampling(max_tokens=16))]
        ['']
    """

    sampler: LocalSampler
    chat: ChatFormat
    stop_ids: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, options: EngineOptions = DEFAULTS, device: DeviceName = "auto") -> "LocalCompleter":
        """Load a checkpoint onto a device, by default an accelerator where available."""
        sampler = LocalSampler.open(path, options=options, device=device)
        chat = ChatFormat(sampler.tokenizer)
        stop_ids = chat.stop_ids + Checkpoint.open(checkpoint_at(path)).stop_ids
        return cls(sampler, chat, tuple(dict.fromkeys(stop_ids)))

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, tell: Callable[[int], None] = ignore
    ) -> list[Reply]:
        """Answer every prompt; a prompt as long as the context fails with NO_ROOM and the number of tokens."""
        ids = [self.chat.prompt(prompt.conversation) for prompt in prompts]
        fitting = [at for at, each in enumerate(ids) if len(each) < self.sampler.max_context]
        completions = self.complete_tokens(
            [ids[at] for at in fitting],
            [prompts[at].seed for at in fitting],
            sampling,
            lambda done: tell(len(ids) - len(fitting) + done),
        )
        replies = [Reply(failure=f"{NO_ROOM}: {len(each):,} tokens") for each in ids]
        for at, completion in zip(fitting, completions, strict=True):
            replies[at] = self._read(prompts[at].conversation, completion, len(ids[at]))
        return replies

    def complete_tokens(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        tell: Callable[[int], None] = ignore,
    ) -> list[Completion]:
        """Continue prompts of token ids, each shorter than the context, until the assistant's turn ends.

        Example:
            >>> model.complete_tokens([model.chat.prompt(conversation)], [7], Sampling(max_tokens=1))[0].finish_reason
            'length'
        """
        params = [self._params(len(prompt), seed, sampling) for prompt, seed in zip(prompts, seeds, strict=True)]
        return self.sampler.complete(prompts, params, progress=tell)

    def _params(self, num_prompt_tokens: int, seed: int, sampling: Sampling) -> SamplingParams:
        return SamplingParams(
            max_tokens=min(sampling.max_tokens, self.sampler.max_context - num_prompt_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop_ids=self.stop_ids,
            seed=seed,
            logprobs=sampling.top_logprobs,
        )

    def _read(self, asked: Conversation, completion: Completion, num_prompt_tokens: int) -> Reply:
        if completion.finish_reason == "error":
            failure = f"the model failed: {completion.error}"
            return Reply(failure=failure, finish_reason="error", num_prompt_tokens=num_prompt_tokens)
        message = self.chat.parse(completion.ids, asked.tools)
        logprobs = tuple(map(self._read_logprob, completion.logprobs)) if completion.logprobs else None
        return Reply(message, len(completion.ids), "", completion.finish_reason, num_prompt_tokens, logprobs)

    def _read_logprob(self, entry: TokenLogprob) -> ReplyToken:
        decode = self.sampler.tokenizer.decode_bytes
        top = tuple((decode([token]), logprob) for token, logprob in entry.top)
        return ReplyToken(decode([entry.id]), entry.logprob, top)
