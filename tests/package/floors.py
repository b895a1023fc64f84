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
        {"adapters", "grammar", "options", "pages", "runners", "text"},
        {"sampler"},
        {"choose"},
        {"request"},
        {"drafts", "scheduler"},
        {"engine"},
        {"local"},
    ),
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
    "training": (
        {"settings", "labelling"},
        {"parallel"},
        {"objectives"},
        {"loop"},
        {"reports"},
        {"fit"},
        {"distill", "dpo", "label", "pretrain", "reward", "sft", "tokenizer"},
    ),
    "training/objectives": (
        {"entropy", "losses", "objective", "pairs"},
        {"dpo", "reward", "text"},
        {"distillation", "next_token", "references"},
    ),
    "training/loop": (
        {"optimizer", "counts", "stopping", "defaults"},
        {"adapter", "state"},
        {"start", "training"},
        {"observer"},
        {"loop"},
    ),
    "training/reports": (
        {"chat_probes", "forgetting", "plot", "preview", "rows"},
        {"facts"},
        {"run_report"},
    ),
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
