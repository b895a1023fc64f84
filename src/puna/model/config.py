"""Sizes -> a checked LlamaConfig, with the published Llamas as data. checkpoint/hf/config.py reads files."""

from dataclasses import dataclass, fields

from puna.pipeline.errors import ConfigError

# Matrices of a layer with adapters, in the order of the computation.
ADAPTED = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's scaling of low rotary frequencies (rope.py)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int

    def __post_init__(self):
        _require_positive(self)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor {self.low_freq_factor} and high_freq_factor {self.high_freq_factor}",
                expected="low_freq_factor < high_freq_factor",
            )


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The shape and the arithmetic of a network.

    Example:
        >>> SIZES["1b"].num_layers
        16
    """

    dim: int
    hidden_dim: int
    head_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_context: int
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    is_reward: bool = False  # a score per text instead of logits

    def __post_init__(self):
        _require_positive(self)
        assert self.tie_embeddings or not self.is_reward, "a reward model has no output embeddings"
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} with num_kv_heads {self.num_kv_heads}",
                expected="num_heads to be a multiple of num_kv_heads",
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim}", expected="an even number, which RoPE can halve")

    @property
    def num_parameters(self) -> int:
        attention = 2 * self.dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * layer + self.dim * (2 if self.is_reward else 1)

    def kv_bytes_per_token(self, value_bytes: int, *, scale_bytes: int = 0) -> int:
        """Return the bytes of keys and values per position, with a scale per head for rounded caches."""
        return 2 * self.num_layers * self.num_kv_heads * (self.head_dim * value_bytes + scale_bytes)


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the matrices of a layer, by module path within the layer."""
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (q_dim, config.dim),
        "self_attn.k_proj": (kv_dim, config.dim),
        "self_attn.v_proj": (kv_dim, config.dim),
        "self_attn.o_proj": (config.dim, q_dim),
        "mlp.gate_proj": (config.hidden_dim, config.dim),
        "mlp.up_proj": (config.hidden_dim, config.dim),
        "mlp.down_proj": (config.dim, config.hidden_dim),
    }


def matrix_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every matrix by module path, in the order of the network, embeddings included."""
    layer = layer_shapes(config)
    shapes = {"embed_tokens": (config.vocab_size, config.dim)}
    shapes |= {f"layers.{index}.{part}": shape for index in range(config.num_layers) for part, shape in layer.items()}
    return shapes if config.tie_embeddings else shapes | {"lm_head": shapes["embed_tokens"]}


def _require_positive(sizes: RopeScaling | LlamaConfig) -> None:
    for field in fields(sizes):
        value = getattr(sizes, field.name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not 0 < value < float("inf"):
            raise ConfigError(f"{field.name} = {value}", expected="a positive number")


def published_scaling(factor: float) -> RopeScaling:
    """Return the scaling of Llama 3.1 (factor 8) or Llama 3.2 (factor 32)."""
    return RopeScaling(factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=8192)


def _published(dim: int, num_layers: int, num_heads: int, hidden_dim: int, *, rope_factor: float = 8.0) -> LlamaConfig:
    return LlamaConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        head_dim=dim // num_heads,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        vocab_size=128_256,
        max_context=131_072,
        rope_scaling=published_scaling(rope_factor),
        # 1B and 3B are Llama 3.2: RoPE scaled by 32, embeddings tied.
        tie_embeddings=rope_factor == 32.0,
    )


def _demo(dim: int, num_layers: int, num_heads: int, hidden_dim: int) -> LlamaConfig:
    """Return a size for two CPU cores; vocab_size is a placeholder until the tokenizer's is known."""
    return LlamaConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        head_dim=dim // num_heads,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads // 2,
        vocab_size=2048,
        max_context=1024,
        tie_embeddings=True,
    )


SIZES: dict[str, LlamaConfig] = {
    "8b": _published(4096, 32, 32, 14_336),
    "70b": _published(8192, 80, 64, 28_672),
    "405b": _published(16_384, 126, 128, 53_248),
    "1b": _published(2048, 16, 32, 8192, rope_factor=32.0),
    "3b": _published(3072, 28, 24, 8192, rope_factor=32.0),
    "demo-teacher": _demo(224, 2, 4, 672),
    "demo-student": _demo(112, 2, 4, 224),
}
