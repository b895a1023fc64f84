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
        {"inference", "planning", "testing"},
        {"evaluation"},
        {"conversion", "corpus", "training"},
        {"agents", "serving"},
        {"cli"},
    ),
    "pipeline": (
        {"errors", "estimate", "finding", "machine", "progress", "stages", "units"},
        {"storage"},
        {"artifacts", "config", "offline"},
        {"registry", "run"},
        {"execution"},
    ),
    "model": (
        {"config", "gradients", "kernels"},
        {"precision", "rope"},
        {"llama"},
        {"attend", "quantization", "reward"},
        {"adapters", "compare"},
    ),
    "model/adapters": (
        {"lora"},
        {"adapted"},
    ),
    "model/gradients": (
        {"operations", "padding"},
        {"blocks"},
    ),
    "model/kernels": (
        {"build", "device", "memory", "reference", "threads"},
        {"native"},
    ),
    "model/quantization": (
        {"scheme"},
        {"float8"},
        {"quantized"},
    ),
    "formats": (
        {"tokenizer"},
        {"chat"},
        {"checkpoint"},
    ),
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
    "inference": (
        {"engine"},
        {"completer"},
    ),
    "inference/completer": (
        {"completer", "settings"},
        {"http", "local"},
        {"endpoint"},
        {"opening"},
    ),
    "inference/engine": (
        {"adapters", "cache", "detokenizer", "grammar", "options", "outputs"},
        {"runners", "sampling"},
        {"scheduling"},
        {"speculative"},
        {"engine"},
        {"local"},
    ),
    "inference/engine/grammar": (
        {"check", "schema"},
        {"grammar"},
    ),
    "inference/engine/runners": (
        {"cuda_graphs", "runner", "torch_pages"},
        {"decode_step", "native_runner"},
        {"torch_runner"},
        {"opening"},
    ),
    "inference/engine/sampling": (
        {"params"},
        {"sampler"},
    ),
    "inference/engine/scheduling": (
        {"request"},
        {"scheduler"},
    ),
    "inference/engine/speculative": (
        {"drafter", "prompt_lookup"},
        {"draft_model"},
    ),
    "inference/engine/grammar/schema": (
        {"formats", "patterns"},
        {"dialect"},
        {"fit"},
    ),
    "planning": ({"doctor", "plan"},),
    "planning/doctor": (
        {"render", "report", "template_child"},
        {"modelfile", "template", "values"},
        {"hf"},
        {"adapter", "gguf"},
        {"examine"},
        {"command"},
    ),
    "planning/plan": (
        {"arithmetic", "measure"},
        {"steps", "training"},
        {"answer", "layout"},
        {"advice"},
        {"tables"},
        {"plan"},
    ),
    "planning/doctor/hf": (
        {"files", "opened"},
        {"added", "layout", "settings", "stops", "templates"},
        {"vocabulary"},
        {"check"},
    ),
    "evaluation": (
        {"diagnose", "tasks"},
        {"scores"},
        {"evaluate", "release", "review"},
    ),
    "evaluation/diagnose": (
        {"reasons", "record"},
        {"comparison_group", "order", "report"},
        {"rules"},
    ),
    "evaluation/evaluate": (
        {"comparison_groups", "cost", "judges", "slices"},
        {"diagnosis", "grading"},
        {"asking", "exam"},
        {"earlier", "report"},
        {"evaluate"},
    ),
    "evaluation/release": (
        {"paired_comparison", "settings", "short_ids", "terms", "whole_prompts"},
        {"facts", "rules"},
        {"card", "leaks"},
        {"decision"},
        {"gate", "page"},
        {"release"},
    ),
    "evaluation/review": (
        {"label_file", "page", "pairs"},
        {"sample"},
        {"session"},
        {"server", "summary"},
        {"review"},
    ),
    "evaluation/tasks": (
        {"fields", "paired_test", "question"},
        {"intervals", "labels", "null_models", "reward_model"},
        {"grading"},
        {"next_turn_questions"},
        {"task"},
    ),
    "evaluation/diagnose/rules": (
        {"answers", "chat", "comparisons", "forgetting", "labels", "learning", "masks"},
        {"fit"},
        {"table"},
    ),
    "evaluation/evaluate/judges": ({"agreement", "judging"},),
    "evaluation/release/page": (
        {"picture", "style"},
        {"blocks"},
        {"conversations", "evidence", "exam"},
        {"meaning"},
        {"page"},
    ),
    "evaluation/release/rules": (
        {"verdict"},
        {"exam", "judged"},
    ),
    "evaluation/tasks/grading": (
        {"extraction", "no_call", "similarity", "tool_call"},
        {"contains", "facts", "judge"},
        {"exact", "refusal"},
        {"table"},
    ),
    "evaluation/tasks/grading/extraction": (
        {"fact", "number_words"},
        {"tables"},
        {"dates", "names", "numbers"},
        {"codes", "times"},
        {"extract"},
    ),
    "corpus": ({"ingest", "synthesize"},),
    "conversion": ({"compression", "exchange"},),
    "conversion/compression": (
        {"calibration_texts", "kv_cache", "rounding", "settings"},
        {"calibrate"},
        {"pruning"},
        {"cost"},
        {"merge", "prune", "quantize"},
    ),
    "conversion/exchange": (
        {"fidelity", "hub", "licences", "peers", "reference", "vocabulary"},
        {"export", "import_model"},
    ),
    "conversion/compression/pruning": (
        {"obs", "slicing", "targets"},
        {"layerwise", "rotate"},
        {"importance", "refit"},
        {"report", "selection"},
    ),
    "training/teacher": (
        {"settings", "teacher"},
        {"answering", "local", "scoring", "shards"},
        {"rate"},
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
    "agents": (
        {"terminal"},
        {"command"},
    ),
    "testing": ({"dataset", "endpoint", "stage", "tiny_checkpoint"},),
}
