"""How `kl_*.json` were made: KL per layer, draw and question, as measured on two small models.

    python tests/data/measure_kl.py ../shared/models/stories260K

The demo model answers 200 of its questions; stories260K scores 200 stories of 64 tokens that it
sampled itself (torch seed 0). Each single layer, all operators, two draws, relative noise of 0.05
and of 0.2; float32. The clean model's NLL of each question, mean over its tokens, stands beside
them. The tests draw their simulated studies from these columns.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from noisescope.demo import demo_model_dir, demo_questions
from noisescope.diagnose import diagnose_layers
from noisescope.models import LoadedModel, load_model
from noisescope.noise import RelativeGaussian
from noisescope.records import CLEAN
from noisescope.tasks import Task, load_task, make_task

QUESTIONS = 200
DRAWS = 2
DIGITS = 4  # significant ones


def main() -> None:
    demo = load_model(demo_model_dir(), dtype="float32", device="cpu")
    write("demo", demo, load_task(demo_questions(), QUESTIONS))
    stories = load_model(Path(sys.argv[1]), dtype="float32", device="cpu")
    write("stories260K", stories, sampled_stories(stories))


def sampled_stories(loaded: LoadedModel) -> Task:
    """Returns 200 texts of 64 tokens that the model itself finds likely."""
    torch.manual_seed(0)
    begin = torch.full((QUESTIONS, 1), loaded.model.config.bos_token_id)
    ids = loaded.model.generate(
        begin, do_sample=True, top_k=0, max_new_tokens=64, min_new_tokens=64, pad_token_id=0
    )
    return make_task([{"prompt_ids": row.tolist()} for row in ids], name="stories")


def write(name: str, loaded: LoadedModel, task: Task) -> None:
    for scale in (0.05, 0.2):
        found = diagnose_layers(
            loaded, task, RelativeGaussian(scale), window=1, draws=DRAWS, operators="all"
        )
        records = found.records
        samples = [s.name for s in task.samples]
        by_key = {(r.condition, r.draw, r.sample): r.kl_nats for r in records}
        clean = {r.sample: r.nll_nats for r in records if r.condition == CLEAN}
        conditions = [s.condition for s in found.summaries]
        kl_LKN = [
            [[round_to(by_key[c, k, s]) for s in samples] for k in range(DRAWS)] for c in conditions
        ]
        data = {"model": name, "noise_scale": scale, "conditions": conditions}
        data |= {"clean_nll_N": [round_to(clean[s]) for s in samples], "kl_LKN": kl_LKN}
        path = Path(__file__).parent / f"kl_{name}_{scale}.json"
        path.write_text(json.dumps(data, separators=(",", ":")) + "\n")
        means = np.array(kl_LKN).mean(axis=(1, 2))
        print(path.name, dict(zip(conditions, means.round(5).tolist(), strict=True)))


def round_to(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    main()
