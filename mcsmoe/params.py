"""`params.yaml` as frozen models, one a section. A key that no section knows is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mcsmoe.errors import ConflictError, ParameterError, UserError
from mcsmoe.fields import Bytes, Fraction, Name, Natural, Positive, Section, Weight, find_directory


class Launch(Section):
    """How many processes `accelerate launch` starts for training and collection; 1 runs in place.

    With `fsdp` each keeps a share of weights, gradients and optimiser states, and of the teacher.
    """

    processes: Positive = 1
    fsdp: bool = False

    @model_validator(mode="after")
    def _something_to_share(self) -> Self:
        if self.fsdp and self.processes == 1:
            raise ConflictError("launch.fsdp = true shares a model out among processes: set launch.processes, too")
        return self

    @property
    def shares(self) -> int:
        """Processes that one model is spread over."""
        return self.processes if self.fsdp else 1


class Methods(Section):
    """Recipes by how far they go: merged, then distilled, then compressed.

    `dense` is empty, or names the baseline that is trained and distilled beside the full model.
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


class Tokenizer(Section):
    """The tokenizer trained on the task's text when the model starts from nothing."""

    kind: Literal["word", "bpe"]
    vocab_size: Positive


class Model(Section):
    """A checkpoint to start from (directory `source`, or `hub` id), or a configuration to start from nothing.

    `dense_source` or `dense_hub` is what the dense baseline starts from where the full model starts from a checkpoint.
    """

    source: str | None
    hub: str | None
    revision: str | None
    dense_source: str | None
    dense_hub: str | None
    trust_remote_code: bool
    config: dict[str, Any]
    tokenizer: Tokenizer | None

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
        """The checkpoint to start from, a directory or a hub id; None: from nothing."""
        return find_directory(self.source) if self.source is not None else self.hub

    @property
    def dense_origin(self) -> Path | str | None:
        """The checkpoint that the dense baseline starts from."""
        return find_directory(self.dense_source) if self.dense_source is not None else self.dense_hub


class Task(Section):
    """The task by name, and its data: directory `data`, or `hub` id; the task's own data set where both are null.

    `subset` is a configuration of a hub data set, null for the task's own; `column` the one that running text is in,
    null for `text`.
    """

    name: str
    data: str | None
    hub: str | None
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
    """What every training has: passes over the data, batch, AdamW and its schedule."""

    epochs: Annotated[float, Field(gt=0)]
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Weight
    warmup_steps: Natural
    max_grad_norm: Annotated[float, Field(gt=0)]


class Finetune(Training):
    """Training of the full model; the router losses are computed layer by layer on real tokens.

    With `epochs` 0 the checkpoint of `model` is taken as it is.
    """

    epochs: Weight
    router_z_loss: Weight
    balance_loss: Weight
    evaluations: Positive  # times the selection split is scored; the best checkpoint is kept


class Permute(Section):
    """Alignment of each layer's experts to one reference expert."""

    matching: Literal["weight", "activation"]
    reference: Literal["most-used", "first"]


class Calibration(Section):
    """The calibration sample: rows drawn from the training split, and how many run at a time."""

    samples: Positive
    batch_size: Positive


class Collect(Section):
    """What is measured on the calibration sample beside the routing statistics.

    `also`: `norms` of the selected experts' outputs, `outputs` of every expert on every token, `pair-errors` of
    averaged pairs, `correlation` of hidden neurons, `gradients` of the task loss with the empirical Fisher
    information, `exact-fisher` (both on `gradient_samples` rows).
    """

    also: list[Literal["norms", "outputs", "pair-errors", "correlation", "gradients", "exact-fisher"]]
    gradient_samples: Positive


class Exclude(Section):
    """Layers left untouched, by index in their stack."""

    encoder: list[Natural]
    decoder: list[Natural]


class Merge(Section):
    """The budget: `groups` a layer, on average over the merged layers (global) or in each (uniform).

    `capacity` limits the members of a group, its dominant expert included; null: no limit.
    """

    groups: Annotated[float, Field(ge=1)]
    budget: Literal["global", "uniform"]
    capacity: Positive | None
    exclude: Exclude


class Distillation(Section):
    """Weights and temperature of the loss (method: L = task·CE + kd·T²·KL + hidden·MSE)."""

    task: Weight
    kd: Weight
    hidden: Weight
    temperature: Annotated[float, Field(gt=0)]
    normalization: Literal["label-tokens", "reference"]


class Distill(Training):
    """Recovery of the merged model by knowledge distillation from the full one."""

    loss: Distillation


class Compress(Training):
    """Low rank plus structured sparsity, pruned on a cubic schedule while distilling.

    Either `rank` or `rank_ratio` is given. Rank 0 leaves sparsity alone, structure `none` low rank alone.
    """

    rank: Natural | None
    rank_ratio: Fraction | None  # parameters of U and V as a share of the weight's
    structure: Literal["row", "column", "element", "none"]  # what S is pruned by
    final_ratio: Fraction  # share of the rows (columns, elements) of S kept
    initial_warmup: Fraction  # share of steps before pruning starts
    final_warmup: Fraction  # share of steps after pruning ends
    interval: Positive  # steps between two updates of the mask
    importance: Literal["sensitivity", "magnitude"]
    beta: Annotated[float, Field(ge=0, lt=1)]  # moving average of the importance
    uncertainty: Annotated[float, Field(ge=0, lt=1)] | None  # moving average of its deviations; null: they do not count
    loss: Distillation

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        if (self.rank is None) == (self.rank_ratio is None):
            raise ConflictError("give compress.rank or compress.rank_ratio, and set the other to null")
        if self.structure == "none" and (self.rank == 0 or self.rank_ratio == 0):
            raise ConflictError("compress.structure = none with rank 0 would leave nothing of a weight")
        return self


class Evaluate(Section):
    """How quality is measured; `limit` is how many examples of the test split count, null: all."""

    batch_size: Positive
    limit: Positive | None


class Params(Section):
    """A whole params file."""

    seed: Natural
    threads: Positive
    launch: Launch
    memory_limit: Bytes  # of each process; what fits only piece by piece is read so, what does not fit refused
    plugins: list[str]  # Python modules that register methods of their own
    methods: Methods
    recipes: dict[str, dict[str, Any]]
    model: Model
    task: Task
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
        """Read and check a params file.

        Raises a `UserError` of the first mistake: `ParameterError` for a value that cannot be used, `ConflictError`
        for values that do not go together.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise ParameterError("file", str(path), "there is no such params file", str(path.parent)) from None
        except yaml.YAMLError as error:
            raise ParameterError("file", str(path), f"not YAML: {error}", str(path)) from None
        return cls.parse(values, str(path))

    @classmethod
    def parse(cls, values: Any, where: str = "params.yaml") -> Self:
        """Check values read from `where`."""
        try:
            return cls.model_validate(values)
        except ConflictError as error:
            raise ConflictError(f"{where}: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            name, value = ".".join(str(part) for part in first["loc"]), first["input"]
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "missing":
                raise UserError(f"{where}: {name} is missing") from None
            raise ParameterError(name or "file", value, message, where) from None
