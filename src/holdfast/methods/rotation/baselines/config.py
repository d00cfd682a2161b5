"""The keys of the baselines; each default is the setting of the paper or of its authors' code."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from holdfast.core.config import Config
from holdfast.core.errors import ConfigError

ControlName = Literal["random_mask", "random_subspace", "unrotated", "rho0"]
"""What may stand beside a ``constraint``: another choice of equal size."""
ANY = ("full", "lora", "qlora")


class Baseline(Config):
    """What every baseline says about itself."""

    params: ClassVar[tuple[str, ...]] = ANY
    """Values of the training key ``params`` it is defined for."""
    uses_unaligned: ClassVar[bool] = False
    """Whether it compares with the model before its alignment."""

    @property
    def uses_safety(self) -> bool:
        """Whether it reads safety rows."""
        return False


class Plain(Baseline):
    """Plain fine-tuning: what everything else is compared with."""

    name: Literal["plain"]


class Control(Baseline):
    """A control of the training's ``constraint``, which says how much is frozen: see `rotation.controls.control`.

    What is random is drawn by the training's ``seed``.
    """

    name: ControlName


class Replay(Baseline):
    """Mix refusals into the task's rows.

    Reference:
        Qi et al., Fine-tuning aligned language models compromises safety, ICLR 2024 (2310.03693); Bianchi et al.,
        Safety-Tuned LLaMAs, ICLR 2024 (2309.07875): 100 to 2,000 safety rows (0.5 to 9 %) in 20,000 of Alpaca.
    """

    name: Literal["replay"]
    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of safety rows in the mixture."""

    @property
    def uses_safety(self) -> bool:
        """Always."""
        return True


class Lisa(Baseline):
    """Take turns between safety rows and the task's, each turn held near the weights it began with.

    Reference:
        Huang et al., Lisa: Lazy Safety Alignment, NeurIPS 2024 (2405.18641): 100 and 900 steps of batch 5, rho 1,
        20,000 steps, LoRA on Llama-2-7B.
    """

    name: Literal["lisa"]
    alignment_steps: int = Field(default=100, ge=0)
    """Steps of a turn on safety rows; 0 leaves these turns out."""
    task_steps: int = Field(default=900, ge=1)
    """Steps of a turn on the task's rows."""
    rho: float = Field(default=1.0, ge=0)
    """Strength of the proximal term ``rho / 2 ||w - w_switch||^2``."""
    proximal_from: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps that pass before the proximal term sets in, as in the authors' code."""

    @property
    def uses_safety(self) -> bool:
        """Where there are turns on safety rows."""
        return self.alignment_steps > 0


class SafeLora(Baseline):
    """After training, project changes that point away from the alignment of their layer.

    Reference:
        Hsu et al., Safe LoRA, NeurIPS 2024 (2405.16833): LoRA rank 8 on the attention of Llama-2-7B-Chat and
        Llama-3-8B-Instruct, threshold 0.35; the unaligned model is the base model.
    """

    params: ClassVar[tuple[str, ...]] = ("full", "lora")
    uses_unaligned: ClassVar[bool] = True

    name: Literal["safe_lora"]
    threshold: float = Field(default=0.35, ge=-1, le=1)
    """A layer whose similarity is at most this is projected; -1 projects none and 1 all."""
    count: int | None = Field(default=None, ge=1)
    """Project this many layers, those of the lowest similarity, instead of going by the threshold."""


class Asft(Baseline):
    """Penalise what a change writes outside the alignment of its layer.

    Reference:
        Yang et al., AsFT, AAAI 2026 (2506.08473): weight 1, LoRA on Llama-2-7B-Chat, 10 epochs of 1,000 rows, batch 8,
        learning rate 5e-5; the unaligned model is the base model.
    """

    params: ClassVar[tuple[str, ...]] = ("full", "lora")
    uses_unaligned: ClassVar[bool] = True

    name: Literal["asft"]
    weight: float = Field(default=1.0, ge=0)
    """Strength of the penalty (lambda)."""


class ConstrainedSft(Baseline):
    """Let the first tokens of an answer move away from the start model only a little.

    Reference:
        Qi et al., Safety Alignment Should Be Made More Than Just a Few Tokens Deep, ICLR 2025 (2406.05946): all
        parameters of Llama-2-7B-Chat and Gemma-1.1-7B-IT, AdamW with beta1 0.5, learning rate 2e-5, batch 64.
    """

    name: Literal["constrained_sft"]
    first_beta: float = Field(default=0.5, gt=0)
    """Constraint on the first token of an answer."""
    early_beta: float = Field(default=2.0, gt=0)
    """Constraint on the tokens after it, up to ``early_tokens``."""
    early_tokens: int = Field(default=5, ge=0)
    """How many tokens of an answer count as early, the first one included; 0 treats all alike."""
    late_beta: float = Field(default=0.1, gt=0)
    """Constraint on all later tokens."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises, in place of the training key ``warmup``."""


class Salora(Baseline):
    """LoRA that cannot write into the outputs that safety rows use, begun from what the task uses.

    Reference:
        Li et al., SaLoRA, ICLR 2025 (2501.01765): both ranks 32, 128 rows each, LoRA rank 16 and alpha 16 on
        Llama-2-7B-Chat, learning rate 1e-4, no weight decay.
    """

    params: ClassVar[tuple[str, ...]] = ("lora",)

    name: Literal["salora"]
    safety_rank: int = Field(default=32, ge=1)
    """Directions of a layer's outputs on safety rows that may not be written."""
    task_rank: int = Field(default=32, ge=1)
    """Directions of a layer's outputs on the task's rows that the start is taken from."""
    samples: int = Field(default=128, ge=1)
    """At most this many rows of each kind, the first ones, are looked at."""
    tokens: Literal["all", "prompt", "response"] = "response"
    """Tokens of these rows that count."""

    @property
    def uses_safety(self) -> bool:
        """Always."""
        return True


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


BaselineConfig = Annotated[
    Annotated[Plain | Control | Replay | Lisa | SafeLora | Asft | ConstrainedSft | Salora, Field(discriminator="name")],
    BeforeValidator(_by_name),
]
"""A baseline by its name, with the settings of its paper, or a mapping with other settings."""


def check_control(name: str, importance: str) -> None:
    """Refuse a control in other coordinates for a plan by gradients: they are not kept, and energies are.

    Raises:
        ValueError: naming what to do.
    """
    if name in ("random_subspace", "unrotated") and importance != "energy":
        space = "random" if name == "random_subspace" else "unrotated"
        raise ValueError(
            f"baseline {name} needs scores in other coordinates, and gradients (importance: {importance}) are known in "
            f"the plan's own alone. Do: plan once more from a basis step with space: {space}, and take that mask as "
            "the constraint"
        )


def check(config: BaselineConfig, params: str, *, safety: bool, unaligned: bool) -> None:
    """Refuse what does not fit a baseline, before any model is loaded.

    Args:
        params: The training key of that name.
        safety: Whether safety rows are given.
        unaligned: Whether an unaligned model is given.
    Raises:
        ConfigError: naming what to change.
    """
    name = config.name
    if params not in config.params:
        expected = " or ".join(config.params)
        raise ConfigError(
            f"baseline {name} is not defined for params: {params}: expected {expected}. Do: set params: "
            f"{config.params[-1]}."
        )
    for what, uses, given in (
        ("safety rows", config.uses_safety, safety),
        ("an unaligned model", config.uses_unaligned, unaligned),
    ):
        if uses and not given:
            raise ConfigError(f"baseline {name} needs {what}: got none. Do: give {what}.")
        if given and not uses:
            raise ConfigError(f"baseline {name} does not use {what}, which would have no effect. Do: leave it out.")
