"""The train recipe: one training run. The task brings its own part; see `pairloom.schemas.recipes.task`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from pairloom.registry import EVALUATIONS, TASKS
from pairloom.schemas.recipes.evaluation import EvaluationPart
from pairloom.schemas.recipes.frozen_dict import FrozenDict
from pairloom.schemas.recipes.load import StrictModel
from pairloom.schemas.recipes.task import TaskPart

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Setting = int | float | str


class RunRecipe(StrictModel):
    """Where the run lies and how long it is, in samples over all ranks."""

    dir: str
    """Path or URL of the run folder."""
    seed: int = 0
    total_samples: Positive
    checkpoint_every_samples: Positive | None = None
    """null: only at the end."""
    evaluate_every_samples: Positive | None = None
    """null: only at the end."""
    keep_checkpoints: Positive = 3
    """Older checkpoints are removed."""


class LlavaParts(StrictModel):
    """Folders (or presets) of the parts of a LLaVA."""

    vision: str
    language: str
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    feature_layer: int = -2
    """Hidden state of the vision tower that the projector reads."""


class DualParts(StrictModel):
    """Folders of two pretrained towers that get projection heads (VisionTextDualEncoderModel)."""

    vision: str
    text: str
    projection_dim: Positive = 256


class ModelRecipe(StrictModel):
    """Exactly one of `preset`, `path`, `dual`, `llava`."""

    preset: str | None = None
    path: str | None = None
    dual: DualParts | None = None
    llava: LlavaParts | None = None
    overrides: Annotated[dict[str, Setting | dict[str, Setting]], AfterValidator(FrozenDict)] = FrozenDict({})
    """Fields of a preset's configuration."""
    image_size: Positive | None = None
    """contrastive: side of the image in px, where it differs from the loaded model's; the position table is resized."""
    num_patches: tuple[Positive, ...] = ()
    """NaFlex (SigLIP): largest number of patches of an image of any shape; each step draws one of these numbers."""
    locked: tuple[Literal["vision", "text"], ...] = ()
    """contrastive: towers that are not trained (LiT)."""
    activation_checkpointing: bool = False
    """contrastive: compute the activations of layers again in the backward, which saves memory."""
    compile: bool = False
    """contrastive: compile the layers with torch.compile, which takes a minute or two at the start; not with ZeRO 3."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelRecipe:
        given = [key for key in ("preset", "path", "dual", "llava") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of preset, path, dual, llava; got {given or 'none'}")
        return self

    def check(self, recipe: TrainRecipe) -> None:
        """Raise ValueError where other parts of the recipe do not fit."""
        if self.compile and recipe.zero.stage == 3:
            raise ValueError("model.compile: ZeRO 3 gathers weights in the midst of a layer; take zero.stage 2 at most")


class TokenizerTraining(StrictModel):
    """A byte-level BPE tokenizer, trained on the captions of the data sets once per run."""

    vocab_size: Annotated[int, Field(ge=300)] = 32_000
    max_captions: Positive = 1_000_000


class TokenizerRecipe(StrictModel):
    """A tokenizer folder, or one that is trained on the captions; null both: the one in the model's folder."""

    path: str | None = None
    train: TokenizerTraining | None = None

    @model_validator(mode="after")
    def _not_both(self) -> TokenizerRecipe:
        if self.path is not None and self.train is not None:
            raise ValueError("give path or train, not both")
        return self


class DataSource(StrictModel):
    """One data set of the mixture."""

    path: str
    """curated/<name>, selections/<name> (images are read from the raw shards), or WebDataset tars (folder, glob,
    braces); llava: also a LLaVA json or jsonl file.
    """
    images: str | None = None
    """For a json or jsonl file: folder of its images, or a curated data set that is read by uid."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    hold_out_fold: tuple[int, int] | None = None
    """[k, n]: leave out fold k of n, so that this model can score it later."""


class AugmentRecipe(StrictModel):
    """Random augmentation of training images, drawn from (seed, epoch, uid)."""

    random_resized_crop: tuple[float, float] | None = None
    """Range of the share of the image's area that is kept."""


class DataRecipe(StrictModel):
    """The training data and its order."""

    train: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    augment: AugmentRecipe = AugmentRecipe()
    num_lanes: Positive = 8
    """Sequences that the order of samples is cut into; the number of ranks must divide it."""
    num_workers: Annotated[int, Field(ge=0)] = 1
    """Decoding processes per rank; never changes results."""
    cache_gb: Positive = 50
    """Approximate limit of local disk for tars that lie at a URL; never changes results."""


class BatchRecipe(StrictModel):
    """Batch sizes."""

    global_batch_size: Positive
    """Samples per optimizer step over all ranks."""
    micro_batch_size: Positive | None = None
    """Samples per forward on one rank; null: the rank's whole share."""

    def check(self, recipe: TrainRecipe) -> None:
        """Raise ValueError where the sizes do not divide."""
        batch, lanes, micro = self.global_batch_size, recipe.data.num_lanes, self.micro_batch_size
        if batch % lanes:
            raise ValueError(f"data.num_lanes {lanes} must divide batch.global_batch_size {batch}")
        if micro is not None and batch % micro:
            raise ValueError(f"batch.micro_batch_size {micro} must divide batch.global_batch_size {batch}")


class OptimizerRecipe(StrictModel):
    """The optimizer and its schedule, in samples."""

    name: Literal["adamw", "lamb", "muon"] = "adamw"
    """lamb and muon need zero.stage 0, for they step whole parameters."""
    learning_rate: Rate
    """At the peak of the schedule."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    warmup_samples: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay_samples: Annotated[int, Field(ge=0)] = 0
    """wsd: the rate decays over this many samples at the end."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0: no clipping."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """contrastive: learning rate of a layer divided by that of the next one."""
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the weights; null: no average."""

    @model_validator(mode="after")
    def _decay_fits_schedule(self) -> OptimizerRecipe:
        if (self.schedule == "wsd") != (self.decay_samples > 0):
            raise ValueError("optimizer.decay_samples belongs to optimizer.schedule: wsd, which needs it")
        return self

    def check(self, recipe: TrainRecipe) -> None:
        """Raise ValueError where other parts of the recipe do not fit."""
        stage = recipe.zero.stage
        if self.name != "adamw" and stage != 0:
            raise ValueError(f"optimizer.name: {self.name} needs whole parameters; zero.stage {stage} cuts them up")


class ZeroRecipe(StrictModel):
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = 1
    """1: the optimizer's state is partitioned over the ranks; 2: gradients, too; 3: weights, too."""


class TrainRecipe(StrictModel):
    """One run: `pairloom train RECIPE`."""

    model_config = ConfigDict(defer_build=True)  # tasks of other packages are imported when a recipe is read

    run: RunRecipe
    task: TaskPart
    model: ModelRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: DataRecipe
    batch: BatchRecipe
    optimizer: OptimizerRecipe
    zero: ZeroRecipe = ZeroRecipe()
    precision: Literal["bf16", "fp32"] = "fp32"
    evaluate: tuple[EvaluationPart, ...] = ()
    init_from: str | None = None
    """An export (the next round, or align -> instruct), a Hugging Face folder or an open_clip folder."""

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainRecipe:
        for part in (self.batch, self.model, self.optimizer, self.task):
            part.check(self)
        return self


TASKS.used_by(TrainRecipe)
EVALUATIONS.used_by(TrainRecipe)
