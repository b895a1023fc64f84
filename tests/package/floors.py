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
        {"errors", "estimate", "finding", "machine", "progress", "stages", "units"},
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
        {"fields", "safe_files", "source"},
        {"compressed", "gguf", "safetensors"},
        {"hf"},
        {"adapters", "meta"},
        {"checkpoint"},
        {"detect"},
    ),
    "data": (
        {"augment", "document", "labels", "overlap", "preference", "shards", "spans"},
        {"dataset"},
        {"packing"},
        {"encode"},
        {"pieces"},
    ),
    "inference": ({"engine"}, {"completer"}),
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
    ),
    "inference/engine/grammar": ({"check", "schema"}, {"grammar"}),
    "planning": ({"plan", "doctor"},),
    "planning/doctor": (
        {"render", "report", "template_child"},
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
        {"pruning"},
        {"cost"},
        {"merge", "prune", "quantize"},
    ),
    "conversion/compression/pruning": (
        {"slicing", "obs", "targets"},
        {"layerwise", "rotate"},
        {"importance", "refit"},
        {"selection", "report"},
    ),
    "conversion/exchange": (
        {"fidelity", "hub", "licences", "peers", "reference", "vocabulary"},
        {"export", "import_model"},
    ),
    "serving": (
        {"browser", "errors"},
        {"admission"},
        {"generation"},
        {"protocol", "responses"},
        {"middleware"},
        {"requests", "served_model"},
        {"openapi", "preparation"},
        {"routes"},
        {"app"},
        {"serve"},
    ),
    "agents": ({"terminal"}, {"command"}),
}
