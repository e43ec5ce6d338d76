"""Trains the demo model: a small Qwen2 that solves arithmetic word problems step by step.

One file on purpose: problems, tokenizer, training and the final exam, from one seed to the files
that the package carries. Problems whose numbers fall in the held-out twentieth are never trained
on; the exam and the 500 test questions come from there alone. It takes under an hour on one core.

    python scripts/train_demo_model.py --out build/demo_model
"""

import argparse
import json
import math
import random
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gia",
    "Hugo",
    "Iris",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Noah",
]
ITEMS = [
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "keys",
    "maps",
    "pens",
    "shells",
    "stamps",
    "toys",
    "tickets",
]
GAINS = [
    "{name} buys {n} more.",
    "{name} finds {n} more.",
    "{other} gives {name} {n} {item}.",
    "{name} wins {n} {item}.",
]
LOSSES = [
    "{name} gives {n} to {other}.",
    "{name} loses {n} of them.",
    "{other} takes {n} {item}.",
    "{name} sells {n}.",
]
BOXES = ["{name} buys {k} boxes of {n} {item}.", "{other} brings {k} bags with {n} {item} each."]
QUESTION = "How many {item} does {name} have now?"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LARGEST_TOTAL = 150
HELD_OUT_SHARE = 20


@dataclass(frozen=True)
class Problem:
    """One word problem: question, worked answer, number, and the bare arithmetic it rests on."""

    question: str
    answer: str
    truth: int
    arithmetic: str

    @property
    def is_held_out(self) -> bool:
        """True for the twentieth of all arithmetic that training never sees, in any words."""
        return zlib.crc32(self.arithmetic.encode()) % HELD_OUT_SHARE == 0


def make_problem(rng: random.Random) -> Problem:
    """Draws a problem of two or three events; totals stay within 0 and LARGEST_TOTAL."""
    name, other = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    total = rng.randint(3, 60)
    sentences, lines = [f"{name} has {total} {item}."], []
    for _ in range(rng.choice((2, 3))):
        kind = rng.choice(("gain", "loss", "boxes"))
        if kind == "boxes":
            k, n = rng.randint(2, 6), rng.randint(2, 9)
            if total + k * n > LARGEST_TOTAL:
                kind = "loss"
            else:
                lines += [f"{k} * {n} = {k * n}", f"{total} + {k * n} = {total + k * n}"]
                sentences.append(
                    rng.choice(BOXES).format(name=name, other=other, item=item, k=k, n=n)
                )
                total += k * n
                continue
        if kind == "gain" and total < LARGEST_TOTAL - 2:
            n = rng.randint(2, min(60, LARGEST_TOTAL - total))
            lines.append(f"{total} + {n} = {total + n}")
            total += n
            pattern = rng.choice(GAINS)
        else:
            n = rng.randint(1, max(1, min(60, total)))
            n = min(n, total)
            lines.append(f"{total} - {n} = {total - n}")
            total -= n
            pattern = rng.choice(LOSSES)
        sentences.append(pattern.format(name=name, other=other, item=item, n=n))
    sentences.append(QUESTION.format(name=name, item=item))
    answer = "\n".join([*lines, f"#### {total}"])
    return Problem(" ".join(sentences), answer, total, "; ".join(lines))


def draw_problems(seed: int, count: int, held_out: bool) -> list[Problem]:
    """Draws `count` distinct problems from the training or the held-out part."""
    rng = random.Random(seed)
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = make_problem(rng)
        if problem.is_held_out == held_out:
            found.setdefault(problem.question, problem)
    return list(found.values())


def make_tokenizer(problems: list[Problem]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of at most 512 tokens in which every digit stands alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    roles = ["system\n", "user\n", "assistant\n"] * 50
    bpe.train_from_iterator([*(f"{p.question}\n{p.answer}" for p in problems), *roles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Builds the untrained model: 8 layers of width 128, 4 query and 2 key-value heads, tied."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def prompt_text(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> str:
    """Writes the question in the chat template, up to where the assistant answers."""
    messages = [{"role": "user", "content": problem.question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def make_batch(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and labels, both [B, T], right-padded; labels are -100 outside the answer."""
    rows = []
    for problem in problems:
        prompt = tokenizer.encode(prompt_text(tokenizer, problem), add_special_tokens=False)
        answer = tokenizer.encode(problem.answer, add_special_tokens=False)
        answer.append(tokenizer.eos_token_id)
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels_BT = torch.full((len(rows), longest), -100)
    for i, (ids, labels) in enumerate(rows):
        ids_BT[i, : len(ids)] = torch.tensor(ids)
        labels_BT[i, : len(labels)] = torch.tensor(labels)
    return ids_BT, labels_BT


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then cosine decay to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    along = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along)))


@torch.no_grad()
def solve_rate(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> float:
    """Share of problems whose greedy answer ends in the right number."""
    model.eval()
    right = 0
    for start in range(0, len(problems), 100):
        chunk = problems[start : start + 100]
        batch = tokenizer(
            [prompt_text(tokenizer, p) for p in chunk],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=96,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(
            out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            t.split("####")[-1].strip() == str(p.truth) for t, p in zip(texts, chunk, strict=True)
        )
    model.train()
    return right / len(problems)


def train(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> None:
    """Runs AdamW over fresh problems; prints the loss and the solve rate on held-out ones."""
    rng = random.Random(args.seed + 1)
    exam = draw_problems(args.seed + 2, 200, held_out=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.peak, betas=(0.9, 0.98), weight_decay=0.05
    )
    started = time.monotonic()
    for step in range(args.steps):
        problems: list[Problem] = []
        while len(problems) < args.batch:
            problem = make_problem(rng)
            if not problem.is_held_out:
                problems.append(problem)
        ids_BT, labels_BT = make_batch(tokenizer, problems)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak)
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1} loss {loss.item():.4f} after {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % 1000 == 0:
            print(
                f"step {step + 1} solves {solve_rate(model, tokenizer, exam):.1%} of unseen",
                flush=True,
            )


def write_test_set(problems: list[Problem], path: Path) -> None:
    """Writes the questions in the plan's parquet layout."""
    rows = [
        {
            "data_source": "noisescope/demo",
            "prompt": [{"role": "user", "content": p.question}],
            "reward_model": {"style": "rule", "ground_truth": str(p.truth)},
        }
        for p in problems
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def main() -> int:
    """Trains, rounds to bfloat16, examines the rounded weights and writes the directory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write; must not exist"
    )
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--threads", type=int, default=1, help="the same number gives the same bits"
    )
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"--out {args.out} exists already: name a directory that does not")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(draw_problems(args.seed + 3, 4000, held_out=False))
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, args)

    model.to(torch.bfloat16)
    model.to(torch.float32)
    questions = draw_problems(args.seed + 4, 500, held_out=True)
    rate = solve_rate(model, tokenizer, questions)
    print(f"weights rounded to bfloat16 solve {rate:.1%} of 500 unseen problems")
    args.out.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    write_test_set(questions, args.out / "test.parquet")
    card = {"seed": args.seed, "steps": args.steps, "batch": args.batch, "solved_of_500": rate}
    (args.out / "training.json").write_text(json.dumps(card, indent=1) + "\n")
    return 0 if rate >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
