"""Four templates of the shapes that real models have, each with a small BPE tokenizer that knows its control tokens."""

from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "user and assistant: the quick brown fox says hello, what is 12 + 30? It is 42.\n\nA system is a system.",
    "model [INST] hello hello the the user user data data text text between two marks instruction [/INST]",
    " You are a helpful assistant. Say X. Reverse the words of the text. The end of the data. ",
]

CHATML = """
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '' }}{%- endif -%}
{%- endif -%}
""".strip()

HEADERS = """
{%- for turn in messages -%}
{%- set body = '<|head|>' + turn['role'] + '<|/head|>\n\n' + (turn['content'] | trim) + '<|turn_end|>' -%}
{{ bos_token + body if loop.first else body }}
{%- endfor -%}
{{ '<|head|>assistant<|/head|>\n\n' if add_generation_prompt }}
""".strip()

NO_SYSTEM = """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ raise_exception('there is no system role') }}{%- endif -%}
{%- for turn in messages -%}
{%- set expected = 'user' if loop.index0 is even else 'assistant' -%}
{%- if turn.role != expected -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- set speaker = 'model' if turn.role == 'assistant' else turn.role -%}
{{- '<turn>' + speaker + '\n' + turn.content | trim + '</turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<turn>model\n' -}}{%- endif -%}
""".strip()

BRACKETS = """
{%- set has_system = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if has_system else messages -%}
{{- bos_token -}}
{%- for turn in turns -%}
{%- if (turn.role == 'user') != (loop.index0 is even) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- if turn.role == 'user' -%}
{{- ' [INST] ' + (messages[0].content + '\n\n' if loop.first and has_system else '') + turn.content + ' [/INST]' -}}
{%- else -%}
{{- ' ' + turn.content + eos_token -}}
{%- endif -%}
{%- endfor -%}
""".strip()


@dataclass(frozen=True)
class Shape:
    template: str
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    metaspace: bool = False
    adds_bos: bool = False
    end: str = ""
    """The text that ends an answer."""


SHAPES = {
    "chatml": Shape(CHATML, ("<|im_start|>", "<|im_end|>", "<|eot|>"), None, "<|im_end|>", end="<|im_end|>"),
    "headers": Shape(
        HEADERS,
        ("<|bos|>", "<|eos|>", "<|head|>", "<|/head|>", "<|turn_end|>"),
        "<|bos|>",
        "<|eos|>",
        adds_bos=True,
        end="<|turn_end|>",
    ),
    "no_system": Shape(
        NO_SYSTEM, ("<bos>", "<eos>", "<turn>", "</turn>"), "<bos>", "<eos>", adds_bos=True, end="</turn>"
    ),
    "brackets": Shape(BRACKETS, ("<s>", "</s>"), "<s>", "</s>", metaspace=True, adds_bos=True, end="</s>"),
}


@cache
def shaped_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the shape, trained on a few sentences."""
    shape = SHAPES[name]
    core = Tokenizer(models.BPE(byte_fallback=shape.metaspace))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [*shape.specials, "<pad>"]
    if shape.metaspace:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted({*"".join(TEXTS).replace(" ", "▁"), *map(chr, range(33, 127))})
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=specials, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    core.train_from_iterator(TEXTS * 3, trainer)
    if shape.metaspace:
        core = _bytes_as_ordinary_tokens(core)
    if shape.adds_bos and shape.bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{shape.bos} $A", special_tokens=[(shape.bos, core.token_to_id(shape.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=shape.bos,
        eos_token=shape.eos,
        pad_token="<pad>",
        additional_special_tokens=[t for t in shape.specials if t not in {shape.bos, shape.eos}],
        chat_template=shape.template,
        clean_up_tokenization_spaces=False,
    )


def _bytes_as_ordinary_tokens(core: Tokenizer) -> Tokenizer:
    """The 256 byte tokens belong to the vocabulary; only the control tokens stay added tokens."""
    import json

    state = json.loads(core.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
