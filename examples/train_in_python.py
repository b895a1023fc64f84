"""Train a model from Python: write data and a recipe, run the recipe, ask the model.

    python examples/train_in_python.py build/example [STEPS]

A second call reuses everything that is up to date, and a killed call resumes, as with `puna raise`.
"""

import sys
from pathlib import Path

import puna

TEACHER = Path(__file__).parents[1] / "recipes" / "teacher"

# What a recipe file holds; "@ingest" is the artifact of the step above.
RECIPE = """
[synthesize]
split = "train"
num_worlds = 8
conversations_per_world = 4
language_share = 0

[sft]
data = ["@synthesize"]
batch_tokens = 1024
"""


def main(out: Path, steps: int = 20) -> None:
    """Fine-tune the demo's teacher for some steps and print one answer and the lineage."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "recipe.toml"
    path.write_text(f'out = "{out / "artifacts"}"\n{RECIPE}')

    artifacts = puna.run_recipe(path, {"sft.init_from": str(TEACHER), "sft.steps": steps})
    print(f"trained for {steps} steps: {artifacts['sft']}")

    model = puna.LocalCompleter.open(artifacts["sft"])
    question = puna.Conversation((puna.Message("user", "Hello!"),))
    (reply,) = model.complete([puna.Prompt(question)], puna.Sampling(max_tokens=32))
    print(f"answer: {reply.message.content}")

    puna.verify(artifacts["sft"])  # raises an error if a file was altered after training
    print(f"lineage: {puna.trace(artifacts['sft'])['stage']} <- {puna.trace(artifacts['synthesize'])['stage']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
