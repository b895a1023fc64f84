"""The floors of the package and of every room, from the ground up.

An entry (a file or a folder) imports entries of the floors below, never of the own floor or of a floor above.
tests/package/test_architecture.py holds the source to these tables; docs/architecture.md is generated from the tables.
"""

# Folders whose stages exchange artifacts only: code of one folder never imports code of another.
STAGE_FOLDERS = (
    "corpus/ingest",
    "corpus/synthesize",
    "training",
    "conversion/compression",
    "conversion/exchange",
    "evaluation/evaluate",
    "evaluation/release",
)

FLOORS: dict[str, tuple[set[str], ...]] = {
    "": (
        {"pipeline"},
        {"model"},
        {"formats"},
        {"data"},
        {"inference", "planning"},
        {"evaluation"},
        {"corpus", "training", "conversion"},
        {"serving", "agents"},
        {"cli"},
    ),
    "pipeline": (
        {"errors", "estimate", "machine", "progress", "stages", "units"},
        {"storage"},
        {"config", "offline", "artifacts"},
        {"run", "registry"},
        {"execution"},
    ),
    "model": (
        {"config", "gradients", "kernels", "lora", "scheme"},
        {"float8", "rope"},
        {"llama"},
        {"attend", "quantized", "reward"},
        {"adapted", "compare"},
    ),
    "formats": ({"tokenizer"}, {"chat"}, {"checkpoint"}),
    "formats/checkpoint": (
        {"directory", "fields", "source"},
        {"compressed", "gguf", "layout"},
        {"hf_config", "weights", "writer"},
        {"adapters", "meta"},
        {"checkpoint"},
        {"formats"},
    ),
    "data": (
        {"document", "drills", "identifiers", "labels", "overlap", "preference", "shards", "spans"},
        {"dataset"},
        {"packing"},
        {"pieces"},
    ),
    "inference": ({"engine"}, {"completer"}),
    "inference/completer": ({"completer", "settings"}, {"http", "local"}, {"endpoint"}, {"opening"}),
    "inference/engine": (
        {"adapters", "cache", "detokenizer", "grammar", "options", "outputs"},
        {"runners", "sampling"},
        {"scheduling"},
        {"speculative"},
        {"engine"},
        {"local"},
    ),
    "inference/engine/sampling": ({"params"}, {"sampler"}),
    "inference/engine/scheduling": ({"request"}, {"scheduler"}),
    "inference/engine/speculative": ({"drafter", "prompt_lookup"}, {"draft_model"}),
    "inference/engine/runners": (
        {"cuda_graphs", "runner", "torch_pages"},
        {"decode_step", "native_runner"},
        {"torch_runner"},
        {"opening"},
    ),
    "inference/engine/grammar": ({"check", "schema"}, {"grammar"}),
    "inference/engine/grammar/schema": ({"formats", "patterns"}, {"dialect"}, {"fit"}),
    "training/teacher": ({"settings", "teacher"}, {"answering", "local", "scoring", "shards"}, {"rate"}),
    "planning": ({"plan", "doctor"},),
    "planning/doctor": (
        {"finding", "render", "template_child"},
        {"modelfile", "template", "values"},
        {"directory"},
        {"adapter", "gguf"},
        {"examine"},
        {"command"},
    ),
    "evaluation": ({"tasks", "diagnose"}, {"evaluate", "release"}, {"review"}),
    "corpus": ({"ingest", "synthesize"},),
    "conversion": ({"compression", "exchange"},),
    "conversion/compression": (
        {"kv_cache", "rounding"},
        {"calibrate"},
        {"surgery"},
        {"cost"},
        {"merge", "prune", "quantize"},
    ),
    "serving": (
        {"browser", "refusals"},
        {"answers", "generation"},
        {"offload", "protocol"},
        {"middleware"},
        {"requests"},
        {"grammars", "openapi"},
        {"served"},
        {"chat_reply", "completions"},
        {"chat_completions"},
        {"app"},
        {"serve"},
    ),
    "agents": ({"terminal"}, {"command"}),
}
