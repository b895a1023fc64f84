"""The benchmarks that need hardware which is not here at least run."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_gpus_benchmark_runs_on_a_cpu(tmp_path: Path):
    told = "--size demo-student --device cpu --prompt 32 --context 16 --tokens 4 --batches 1 2 --rounds 1 --write"
    path = tmp_path / "gpu.md"
    subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *told.split(), str(path)], check=True, timeout=600)
    table = [line for line in path.read_text().splitlines() if line.startswith("| ") and "%" in line]
    assert [line.split(" | ")[0] for line in table] == ["| Puna bf16", "| transformers bf16", "| Puna fp8"]
