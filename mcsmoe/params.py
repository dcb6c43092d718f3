"""`params.yaml` as frozen pydantic models, one per section; unknown keys are refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mcsmoe.errors import ConflictError, ParameterError
from mcsmoe.fields import (
    Bytes,
    Few,
    Fraction,
    HubId,
    Module,
    Name,
    Natural,
    Number,
    Positive,
    Rate,
    Section,
    Seed,
    Weight,
    find_directory,
)
from mcsmoe.reading import parse_yaml


class Launch(Section):
    """How many processes `accelerate launch` starts for training and collection; 1 runs in the stage's own process.

    With `fsdp` each process holds a share of the weights, gradients and optimiser states, and of the teacher.
    """

    processes: Few = 1
    fsdp: bool = False
    checkpoint_minutes: Weight | None = 10  # how often a training keeps its state; null: never

    @model_validator(mode="after")
    def _something_to_share(self) -> Self:
        if self.fsdp and self.processes == 1:
            raise ConflictError("launch.fsdp = true shares a model out among processes: set launch.processes, too")
        return self

    @property
    def shares(self) -> int:
        """How many processes one model is spread over."""
        return self.processes if self.fsdp else 1


class Methods(Section):
    """Recipes by step: each must be in `merge` to be in `distill`, and in `distill` to be in `compress`.

    `dense` is `[]`, or `[dense]` to train and distil the dense baseline too.
    """

    merge: list[Name]
    distill: list[Name]
    compress: list[Name]
    dense: list[Literal["dense"]]

    @model_validator(mode="after")
    def _each_step_feeds_the_next(self) -> Self:
        for step in ("merge", "distill", "compress"):
            if "dense" in getattr(self, step):
                raise ConflictError(f"methods.{step} has 'dense', which is no recipe: list it under methods.dense")
        for earlier, later in (("merge", "distill"), ("distill", "compress")):
            missing = set(getattr(self, later)) - set(getattr(self, earlier))
            if missing:
                raise ConflictError(f"methods.{later} has {sorted(missing)}, which methods.{earlier} lacks")
        return self


class TokenizerSection(Section):
    """The tokenizer to train on the task's text if the model starts from random weights."""

    kind: Literal["word", "bpe"]
    vocab_size: Positive


class ModelSection(Section):
    """The checkpoint to start from (directory `source` or `hub` id), or a `config` to start from random weights.

    If the full model starts from a checkpoint, the dense baseline starts from `dense_source` or `dense_hub`.
    """

    source: str | None
    hub: HubId | None
    revision: str | None
    dense_source: str | None
    dense_hub: HubId | None
    trust_remote_code: bool
    keep_mtp: bool = False
    config: dict[str, Any]
    tokenizer: TokenizerSection | None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        for directory in ("source", "dense_source"):
            hub = directory.replace("source", "hub")
            if getattr(self, directory) is not None and getattr(self, hub) is not None:
                raise ConflictError(f"model.{directory} and model.{hub} are both given: set one of them to null")
        if self.origin is None and (not self.config or self.tokenizer is None):
            raise ConflictError("model.config and model.tokenizer are needed when model.source and model.hub are null")
        return self

    @property
    def origin(self) -> Path | str | None:
        """The checkpoint to start from: a directory or a hub id; None for random weights."""
        return find_directory(self.source) if self.source is not None else self.hub

    @property
    def dense_origin(self) -> Path | str | None:
        """The checkpoint that the dense baseline starts from: a directory or a hub id; None if none is given."""
        return find_directory(self.dense_source) if self.dense_source is not None else self.dense_hub


class TaskSection(Section):
    """The task by name, and its data: directory `data` or `hub` id; the task's own data set if both are null.

    `subset` is the configuration of a hub data set, `column` the one that holds running text; null for the task's own.
    """

    name: str
    data: str | None
    hub: HubId | None
    subset: str | None
    column: str | None
    revision: str | None
    max_source_length: Positive
    max_target_length: Positive
    selection: Positive  # examples held out of train to choose the best checkpoint
    train_limit: Positive | None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.data is not None and self.hub is not None:
            raise ConflictError("task.data and task.hub are both given: set one of them to null")
        return self


class Training(Section):
    """Settings that all trainings share: passes over the data, batch size, AdamW and its schedule."""

    epochs: Rate
    batch_size: Positive
    learning_rate: Rate
    weight_decay: Weight
    warmup_steps: Natural
    max_grad_norm: Rate


class Finetune(Training):
    """Fine-tuning of the full model; router losses are computed per layer, on real tokens only.

    With `epochs` 0 the checkpoint of `model` is used unchanged.
    """

    epochs: Weight
    router_z_loss: Weight
    balance_loss: Weight
    evaluations: Positive  # how often the selection split is scored; the best checkpoint is kept


class Permute(Section):
    """Alignment of each layer's experts to one reference expert."""

    matching: Literal["weight", "activation"]
    reference: Literal["most-used", "first"]


class Calibration(Section):
    """The calibration sample: how many rows are drawn from the training split, and how many run at a time."""

    samples: Positive
    batch_size: Positive


class Collect(Section):
    """What is measured on the calibration sample besides the routing statistics.

    `also`: `input-gram`, the second moments of the inputs, `norms` of the selected experts' outputs, `outputs` of every
    expert on every token, `pair-errors` of averaged pairs, `correlation` of hidden neurons, `gradients` of the task
    loss with the empirical Fisher information, `exact-fisher`. The last two use `gradient_samples` rows.
    """

    also: list[Literal["input-gram", "norms", "outputs", "pair-errors", "correlation", "gradients", "exact-fisher"]]
    gradient_samples: Positive


class Exclude(Section):
    """Excluded layers, by index in their stack."""

    encoder: list[Natural]
    decoder: list[Natural]


class Merge(Section):
    """The budget: `groups` per layer, on average over the merged layers (global) or in each of them (uniform).

    `capacity` limits the members of a group, including its dominant expert; null for no limit.
    """

    groups: Annotated[Number, Field(ge=1)]
    budget: Literal["global", "uniform"]
    capacity: Positive | None
    exclude: Exclude


class Distillation(Section):
    """Weights and temperature T of the loss L = task·CE + kd·T²·KL + hidden·MSE (arXiv 2310.01334)."""

    task: Weight
    kd: Weight
    hidden: Weight
    temperature: Rate
    normalization: Literal["label-tokens", "reference"]


class Distill(Training):
    """Knowledge distillation of the merged model (the student) from the full model (the teacher)."""

    loss: Distillation


class Compress(Training):
    """Compression to low rank plus a sparse rest S, pruned on a cubic schedule during distillation.

    Give either `rank` or `rank_ratio`. Rank 0 means sparsity only, structure `none` means low rank only.
    """

    rank: Natural | None
    rank_ratio: Fraction | None  # parameters of U and V as a share of the weight's
    structure: Literal["row", "column", "element", "none"]  # the unit by which S is pruned
    final_ratio: Fraction  # share of the units of S that stays
    initial_warmup: Fraction  # share of steps before pruning starts
    final_warmup: Fraction  # share of steps after pruning ends
    interval: Positive  # steps between two updates of the mask
    importance: Literal["sensitivity", "magnitude"]
    beta: Annotated[Number, Field(ge=0, lt=1)]  # decay of the moving average of importance
    uncertainty: Annotated[Number, Field(ge=0, lt=1)] | None  # decay for deviations from it; null ignores deviations
    loss: Distillation

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        if (self.rank is None) == (self.rank_ratio is None):
            raise ConflictError("give compress.rank or compress.rank_ratio, and set the other to null")
        if self.structure == "none" and (self.rank == 0 or self.rank_ratio == 0):
            raise ConflictError("compress.structure = none with rank 0 would leave nothing of a weight")
        return self


class Evaluate(Section):
    """How quality is measured, on the first `limit` examples of the test split; null for all."""

    batch_size: Positive
    limit: Positive | None


class Params(Section):
    """A complete params file."""

    seed: Seed
    threads: Few
    launch: Launch
    memory_limit: Bytes  # per process; a stage streams the model if it must, and refuses what cannot fit
    plugins: list[Module]  # Python modules that register methods or tasks
    methods: Methods
    recipes: dict[Name, dict[str, Any]]
    model: ModelSection
    task: TaskSection
    finetune: Finetune
    permute: Permute
    calibration: Calibration
    collect: Collect
    merge: Merge
    distill: Distill
    compress: Compress
    evaluate: Evaluate

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Self:
        if self.finetune.epochs == 0 and self.model.origin is None:
            raise ConflictError("finetune.epochs = 0 takes the model as it is: give model.source or model.hub")
        if self.finetune.epochs == 0 and self.methods.dense:
            raise ConflictError("finetune.epochs = 0 trains no dense baseline: empty methods.dense")
        return self

    @classmethod
    def load(cls, path: Path | str = "params.yaml") -> Self:
        """Read and check a params file. Raises what `parse` raises; `ParameterError` if it is missing or not YAML."""
        path = Path(path)
        try:
            values = parse_yaml(path.read_bytes())
        except FileNotFoundError:
            raise ParameterError("file", str(path), "there is no such params file", str(path.parent)) from None
        except ValueError as error:
            raise ParameterError("file", str(path), str(error), str(path)) from None
        return cls.parse(values, str(path))
