"""Training: tokens per second and peak memory against ``transformers.Trainer``.

Both sides start from the same weights on disk and see the same batches in the same order with the same padding: the
peer's rows are stored in our order and read with its sequential sampler, by a collator that, as ours, passes no mask
(with padding on the right a causal model needs none). So the loss curves must agree as well. The peer gets its rows
ready as numbers and logs nothing; our side makes and tokenises its rows and writes its log.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Settings, peak_rss, take_turns, worker

BATCH, SEED, RATE = 32, 0, 1e-3
WARM = 3
"""Steps before the clock starts."""
MODEL = {
    "model_type": "llama",
    "hidden_size": 224,
    "intermediate_size": 576,
    "num_hidden_layers": 6,
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
}
VOCABULARY = 1536
CURVE_BOUND = {"fp32": 1e-3, "bf16": 3e-2}
"""Largest relative difference of two losses of one step: the order of sums differs, and training amplifies it."""


def measure(settings: Settings) -> list[Result]:
    """Both precisions; bfloat16 only where the processor has it."""
    steps = 6 if settings.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        facts = worker("training", ["prepare", folder, str(steps)], settings.threads)
        precisions = ["fp32", "bf16"] if facts["bf16"] else ["fp32"]
        results: list[Result] = []
        for precision in precisions:
            rest = [folder, str(steps), precision]
            answers = take_turns("training", ["ours", *rest], ["peer", *rest], settings.threads)
            results += _results(precision, facts, answers)
        return results


def _results(precision: str, facts: dict[str, Any], answers: dict[str, list[dict[str, Any]]]) -> list[Result]:
    ours, peer = answers["ours"], answers["peer"]
    pairs = list(zip(ours[0]["losses"], peer[0]["losses"], strict=True))
    apart = max(abs(a - b) / b for a, b in pairs)
    agrees = apart <= CURVE_BOUND[precision]
    curve = (
        f"loss curves over {len(pairs)} steps: largest relative difference {apart:.1e} "
        f"(at most {CURVE_BOUND[precision]:.0e})"
    )
    padding = (
        f"padding in this order {facts['padding']:.1%}, with the peer's group_by_length {facts['peer_padding']:.1%}"
    )
    return [
        Result(
            f"training, {precision}",
            "tokens/s",
            [a["tokens_per_second"] for a in ours],
            [a["tokens_per_second"] for a in peer],
            "transformers.Trainer",
            "at least",
            1.0,
            [curve, padding],
            agrees,
        ),
        Result(
            f"peak memory of training, {precision}",
            "MiB",
            [a["peak"] / 2**20 for a in ours],
            [a["peak"] / 2**20 for a in peer],
            "transformers.Trainer",
            "at most",
            1.0,
        ),
    ]


def prepare(folder: Path, steps: int) -> dict[str, Any]:
    """Write the model with its tokenizer, and the peer's rows in the order of our batches."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from holdfast.data.batches import Batches
    from holdfast.data.lab import rows
    from holdfast.models.build import new_model, train_tokenizer
    from holdfast.models.chat import ChatFormat

    examples = rows("alignment", "train", BATCH * steps, SEED)
    texts = [text for row in examples for text in (*(m.content for m in row.messages), row.answer)]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    new_model({**MODEL, "vocab_size": VOCABULARY}, tokenizer, SEED).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    chat = ChatFormat(tokenizer)
    encoded = {row.id: row for row in map(chat.training, examples)}
    data = Batches(list(encoded.values()), BATCH, SEED, pad_id=chat.pad_id)
    tokens, cells = [], 0
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for step in range(steps):
            (batch,) = data.step(step)
            tokens.append(int(batch.attention_mask.sum()))
            cells += batch.input_ids.numel()
            for row in (encoded[name] for name in batch.row_ids):
                labels = [i if learnt else -100 for i, learnt in zip(row.ids, row.response, strict=True)]
                file.write(json.dumps({"input_ids": row.ids, "labels": labels}) + "\n")
    facts = {"tokens": tokens, "pad_id": chat.pad_id}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    lengths = [len(row) for row in encoded.values()]
    grouped = get_length_grouped_indices(lengths, BATCH, generator=torch.Generator().manual_seed(SEED))
    peer_cells = sum(BATCH * max(lengths[i] for i in grouped[at : at + BATCH]) for at in range(0, len(grouped), BATCH))
    return {
        "bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "padding": 1 - sum(tokens) / cells,
        "peer_padding": 1 - sum(lengths) / peer_cells,
    }


def ours(folder: Path, steps: int, precision: str) -> dict[str, Any]:
    """`holdfast.training.loop.train`; a step begins when the loop asks for the weights of its batch."""
    from holdfast.data.lab import rows
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.training.config import TrainConfig
    from holdfast.training.loop import train
    from holdfast.training.objective import NextToken

    starts: list[float] = []

    class Timed(NextToken):
        def weights(self, batch: Any) -> dict[str, float]:
            starts.append(time.perf_counter())
            return NextToken.weights(self, batch)

    config = TrainConfig(
        learning_rate=RATE, warmup=0.0, steps=steps, batch_size=BATCH, max_length=512, precision=precision, seed=SEED
    )
    loaded = load_model(ModelConfig(source=str(folder / "model"), device="cpu"))
    with tempfile.TemporaryDirectory() as out:
        examples = rows("alignment", "train", BATCH * steps, SEED)
        result = train(loaded, examples, config, out=Path(out), objective=Timed())
    return _answer(folder, starts, [loss for _, loss in result.curves["loss"]])


def peer(folder: Path, steps: int, precision: str) -> dict[str, Any]:
    """``Trainer`` with the same optimizer, schedule, clipping and batches; nothing of Holdfast is imported."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    starts: list[float] = []
    losses: list[Any] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            starts.append(time.perf_counter())

    class Kept(Trainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append(loss.detach())
            return loss

    pad_id = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["pad_id"]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        fillers = {"input_ids": pad_id, "labels": -100}
        return {
            key: torch.tensor([row[key] + [filler] * (width - len(row[key])) for row in rows])
            for key, filler in fillers.items()
        }

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        data = [json.loads(line) for line in file]
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.01,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=precision == "bf16",
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=SEED,
        )
        trainer = Kept(model, arguments, data_collator=collate, train_dataset=data, callbacks=[Clock()])
        trainer.train()
        trainer.save_model(out)
    return _answer(folder, starts, [float(loss) for loss in losses])


def _answer(folder: Path, starts: list[float], losses: list[float]) -> dict[str, Any]:
    """Speed from the start of step `WARM` to the start of the last one: fetching, padding and logging included."""
    tokens = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["tokens"]
    counted = sum(tokens[WARM:-1])
    return {"tokens_per_second": counted / (starts[-1] - starts[WARM]), "peak": peak_rss(), "losses": losses}


if __name__ == "__main__":
    role, where, count, *rest = sys.argv[1:]
    found = {"prepare": prepare, "ours": ours, "peer": peer}[role](Path(where), int(count), *rest)  # type: ignore[operator]
    print(json.dumps(found))
