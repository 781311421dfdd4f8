"""Trains the demo's small Llama on the text that every Python installation carries.

    python examples/train_demo_model.py --out model_dir --minutes 12

Writes a Hugging Face layout: config.json, model.safetensors (float16), tokenizer.json, tokenizer_config.json,
and training.json with what made it. The corpus is the standard library's doc strings, comments and pydoc
topics, so it differs from one Python version to the next. --steps frees the schedule of the clock.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import inspect
import io
import json
import math
import platform
import re
import sys
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import tokenizers
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

END_OF_TEXT = "<|endoftext|>"  # opens every document; the tokenizer puts it before a prompt as well
END_OF_TEXT_ID = 0
VOCAB_SIZE = 1024
MAX_POSITIONS = 4096
TOKENS_PER_STEP = 2048
WINDOWS = ((0.75, 256), (0.92, 1024), (1.0, 2048))  # up to this share of the run, windows of so many tokens
MUON_RATE = 0.04  # for matrices
ADAM_RATE = 0.01  # for the embedding and the norms
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings", "idlelib", "lib2to3"}
UNWANTED = re.compile(r"https?:|\S@\S|copyright|licen[sc]e|-\*-|(noqa|type:|pragma)|\d{5}", re.IGNORECASE)


# --- corpus: one document a module or topic, its paragraphs in the order of the source


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """Runs of whole-line comments with the line they begin at."""
    block: list[str] = []
    end = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not token.line.lstrip().startswith("#"):
            continue
        if block and token.start[0] != end + 1:
            yield end + 1 - len(block), "\n".join(block)
            block = []
        block.append(token.string.lstrip("#").removeprefix(" "))
        end = token.start[0]
    if block:
        yield end + 1 - len(block), "\n".join(block)


def doc_strings(source: str) -> Iterator[tuple[int, str]]:
    """Doc strings with the line of what they describe."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 0), ast.get_docstring(node) or ""


def source_documents() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(name.parts):
            source = path.read_text(encoding="utf-8")
            texts = sorted([*doc_strings(source), *comment_blocks(source)])
            yield name.as_posix(), "\n\n".join(text for _, text in texts)


def native_modules() -> Iterator[ModuleType]:
    """Modules without Python source: the built-in ones and those of lib-dynload."""
    shared = Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
    names = {path.name.partition(".")[0] for path in shared} | set(sys.builtin_module_names)
    for name in sorted(names):
        if not name.startswith(("_test", "_xx", "xx", "_ctypes_test", "_tkinter")):
            yield importlib.import_module(name)


def native_documents() -> Iterator[tuple[str, str]]:
    for module in native_modules():
        members = [module, *vars(module).values()]
        methods = [method for kind in members if inspect.isclass(kind) for method in vars(kind).values()]
        texts = (inspect.getdoc(member) for member in members + methods)
        yield module.__name__, "\n\n".join(text for text in texts if text)


def wanted_paragraphs(text: str, seen: set[str]) -> Iterator[str]:
    """Paragraphs of mostly words that no document had before, whatever their case, digits and punctuation."""
    for paragraph in re.split(r"\n\s*\n", text):
        stem = re.sub(r"[\W\d_]+", " ", paragraph).strip().lower()
        if len(stem) >= max(20, 0.65 * len(paragraph)) and stem not in seen and not UNWANTED.search(paragraph):
            seen.add(stem)
            yield paragraph.strip("\n").rstrip()


def read_corpus() -> tuple[list[str], list[str]]:
    """(documents to learn from, documents kept aside); whole modules and topics are kept aside, one in 25."""
    learned: list[str] = []
    kept_aside: list[str] = []
    seen: set[str] = set()
    for name, text in [*topics.items(), *native_documents(), *source_documents()]:
        aside = hashlib.sha256(name.encode()).digest()[0] < 256 // 25
        document = "\n\n".join(wanted_paragraphs(text, seen))
        if document:
            (kept_aside if aside else learned).append(document)
    return learned, kept_aside


# --- tokenizer


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Byte-level BPE that puts END_OF_TEXT before each text it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode_all(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    encodings = tokenizer.encode_batch(documents)
    return torch.tensor([token for encoding in encodings for token in encoding.ids])


# --- model: parameters are named as in LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


def rope_tables(length: int, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim]; the second half repeats the first."""
    exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.outer(torch.arange(length), shape.rope_theta**-exponents)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query_size = shape.num_attention_heads * shape.head_dim
        kv_size = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return torch.as_tensor(self.o_proj(mixed.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return torch.as_tensor(x + self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of tokens [batch, length]."""
        cos, sin = rope_tables(tokens.shape[1], self.shape)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def loss_sum(model: Decoder, windows: Tensor) -> Tensor:
    """Negative log likelihood in nats of windows [batch, length + 1], each token given those before it."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")


# --- training


@dataclass(frozen=True)
class Budget:
    """How long to train: by the clock, or by a number of steps where that is given."""

    seconds: float
    steps: int | None
    started: float

    def progress(self, step: int) -> float:
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - self.started) / self.seconds


def draw_windows(tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Random windows [TOKENS_PER_STEP / length, length + 1]; half open with END_OF_TEXT, as prompts do."""
    count = TOKENS_PER_STEP // length
    starts = torch.randint(len(tokens) - length - 1, (count, 1), generator=generator)
    windows = tokens[starts + torch.arange(length + 1)]
    opened = torch.rand(count, generator=generator) < 0.5
    windows[opened, 0] = END_OF_TEXT_ID
    return windows


def build_optimizers(model: Decoder) -> list[torch.optim.Optimizer]:
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], progress: float) -> None:
    """A short rise, a plateau, and a straight line down to zero over the second half."""
    factor = min(1.0, 0.02 + progress / 0.02, 2 * (1 - progress))
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def train(model: Decoder, tokens: Tensor, budget: Budget, seed: int) -> int:
    """Returns the number of steps taken."""
    generator = torch.Generator().manual_seed(seed)
    optimizers = build_optimizers(model)
    step = 0
    while (progress := budget.progress(step)) < 1:
        set_rates(optimizers, progress)
        length = next(length for share, length in WINDOWS if progress < share)
        loss = loss_sum(model, draw_windows(tokens, length, generator)) / TOKENS_PER_STEP
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5d}  {progress:4.0%}  window {length:4d}  loss {loss.item():.3f}", flush=True)
        step += 1
    return step


@torch.no_grad()
def bits_per_byte(model: Decoder, tokenizer: Tokenizer, documents: list[str]) -> float:
    windows = encode_all(tokenizer, documents).unfold(0, 1025, 1024)
    nats = sum(loss_sum(model, window[None]).item() for window in windows)
    predicted = tokenizer.decode(windows[:, 1:].flatten().tolist())
    return nats / math.log(2) / len(predicted.encode())


def round_to_float16(model: Decoder) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()


# --- files


def write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(out: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.half() for name, tensor in model.state_dict().items()}
    (out / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "chat_template": "{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_POSITIONS,
        },
    )
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(model.shape),
            "hidden_act": "silu",
            "max_position_embeddings": MAX_POSITIONS,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "torch_dtype": "float16",
        },
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=12.0, help="time to train (default: 12)")
    budget.add_argument("--steps", type=int, help="number of steps instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="faster steps, needs a C++ compiler")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    learned, kept_aside = read_corpus()
    tokenizer = train_tokenizer(learned)
    tokens = encode_all(tokenizer, learned)
    print(f"{len(learned)} documents, {sum(map(len, learned))} characters, {len(tokens)} tokens", flush=True)
    model = Decoder(Shape())
    if arguments.compile:
        model.compile(dynamic=False)
    started = time.monotonic()
    steps = train(model, tokens, Budget(arguments.minutes * 60, arguments.steps, started), arguments.seed)
    seconds = time.monotonic() - started
    round_to_float16(model)
    write_model(arguments.out, model, tokenizer)
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "seed": arguments.seed,
        "compiled": arguments.compile,
        "steps": steps,
        "minutes": round(seconds / 60, 1),
        "tokens_seen": steps * TOKENS_PER_STEP,
        "corpus_characters": sum(map(len, learned)),
        "corpus_tokens": len(tokens),
        "held_out_characters": sum(map(len, kept_aside)),
        "held_out_bits_per_byte": round(bits_per_byte(model, tokenizer, kept_aside), 3),
        "corpus": "doc strings, comments and pydoc topics of the standard library",
    }
    write_json(arguments.out / "training.json", facts)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
