"""The train recipe: one training run, contrastive or LLaVA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pairloom.schemas.recipes.load import StrictModel

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]


class RunRecipe(StrictModel):
    """Where the run lies and how long it is, counted in samples over all ranks."""

    dir: str
    seed: int = 0
    total_samples: Positive
    checkpoint_every_samples: Positive | None = None  # null: only at the end
    evaluate_every_samples: Positive | None = None  # null: only at the end
    keep_checkpoints: Positive = 3


class ContrastiveTask(StrictModel):
    """Image and text towers with a CLIP or SigLIP loss."""

    kind: Literal["contrastive"]
    loss: Literal["clip", "siglip"]
    initial_logit_scale: float | None = None  # null: ln(1/0.07) for clip, ln 10 for siglip
    initial_logit_bias: float = -10.0  # siglip only
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # part of a picture's patches that the tower never sees


class LlavaTask(StrictModel):
    """LLaVA: `align` trains the projector on captions, `instruct` projector and language model on dialogues."""

    kind: Literal["llava"]
    mode: Literal["align", "instruct"]
    template: Literal["plain", "vicuna_v1", "chatml", "tokenizer"] | None = None  # null: plain / vicuna_v1
    max_length: Positive = 2048  # tokens, image tokens included
    vision_learning_rate: Rate = 0.0  # instruct: 0 keeps the vision tower frozen
    blind: bool = False  # remove every image: the text-only twin that shows what the images are worth


class LlavaParts(StrictModel):
    """Folders (or presets) that a LLaVA is put together from."""

    vision: str
    language: str
    projector: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"
    feature_layer: int = -2  # hidden state of the vision tower that the projector reads


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
    overrides: dict[str, int | float | str | dict[str, int | float | str]] = {}  # of a preset's config
    image_size: Positive | None = (
        None  # px a side, contrastive: another one than the loaded model's; the table is resized
    )
    num_patches: list[Positive] = []  # NaFlex (SigLIP): pictures of any shape in at most so many patches; one of the
    # numbers is drawn for each step
    locked: list[Literal["vision", "text"]] = []  # contrastive: towers that stay as they are (LiT)
    activation_checkpointing: bool = False  # contrastive: make layers' activations again in the backward
    compile: bool = (
        False  # contrastive: the layers by torch.compile, which takes a minute or two at the start; not ZeRO 3
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelRecipe:
        given = [key for key in ("preset", "path", "dual", "llava") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of preset, path, dual, llava; got {given or 'none'}")
        return self


class TokenizerTraining(StrictModel):
    """A byte-level BPE tokenizer made from the data set's captions, once."""

    vocab_size: Annotated[int, Field(ge=300)] = 32_000
    max_captions: Positive = 1_000_000


class TokenizerRecipe(StrictModel):
    """A tokenizer folder, or one made from the captions; null both: the one in the model's folder."""

    path: str | None = None
    train: TokenizerTraining | None = None

    @model_validator(mode="after")
    def _not_both(self) -> TokenizerRecipe:
        if self.path is not None and self.train is not None:
            raise ValueError("give path or train, not both")
        return self


class DataSource(StrictModel):
    """One data set of the mixture."""

    path: str  # curated/<name>, selections/<name> (read where it lies in raw), or WebDataset tars (folder, glob,
    # braces); llava: or a LLaVA json/jsonl file
    images: str | None = None  # for a json/jsonl file: folder of its images, or a curated data set by uid
    weight: Annotated[float, Field(gt=0)] = 1.0
    hold_out_fold: tuple[int, int] | None = None  # [k, n]: leave out fold k of n, to score it later


class AugmentRecipe(StrictModel):
    """Random augmentation of training images, drawn from (seed, epoch, uid)."""

    random_resized_crop: tuple[float, float] | None = None  # range of the area that is kept


class DataRecipe(StrictModel):
    """What is trained on, in which order."""

    train: Annotated[list[DataSource], Field(min_length=1)]
    augment: AugmentRecipe = AugmentRecipe()
    num_lanes: Positive = 8
    num_workers: Annotated[int, Field(ge=0)] = 1  # decode processes a rank; never changes results
    cache_gb: Positive = 50  # of local disk, at most about, for tars that lie at a URL; never changes results


class BatchRecipe(StrictModel):
    """Samples an optimizer step over all ranks, and samples a forward on one rank."""

    global_batch_size: Positive
    micro_batch_size: Positive | None = None  # null: all of a rank's share at once


class OptimizerRecipe(StrictModel):
    """The optimizer and its schedule, in samples."""

    name: Literal["adamw", "lamb", "muon"] = "adamw"  # others than adamw: zero.stage 0, for they need whole parameters
    learning_rate: Rate
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    warmup_samples: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    decay_samples: Annotated[int, Field(ge=0)] = 0  # wsd: how many samples before the end the rate begins to fall
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: no clipping
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # contrastive: rate of a layer over that of the next one
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # a step, of a moving average of the weights

    @model_validator(mode="after")
    def _decay_fits_schedule(self) -> OptimizerRecipe:
        if (self.schedule == "wsd") != (self.decay_samples > 0):
            raise ValueError("optimizer.decay_samples belongs to optimizer.schedule: wsd, which needs it")
        return self


class ZeroRecipe(StrictModel):
    """DeepSpeed ZeRO stage."""

    stage: Literal[0, 1, 2, 3] = 1


class EvaluateRecipe(StrictModel):
    """One evaluation during and after training."""

    kind: Literal["zero-shot", "linear-probe", "retrieval", "vqa"]
    data: str
    num_patches: Positive | None = None  # NaFlex: at most so many of a picture; null: what the export says
    train_data: str | None = None  # linear-probe: images that the classifier is fitted to
    classes: str | None = None  # zero-shot, linear-probe: file of class names; null: what lies beside the data
    templates: str | None = None  # zero-shot: file of sentences with {} for the class name

    @model_validator(mode="after")
    def _fits_kind(self) -> EvaluateRecipe:
        if (self.train_data is not None) != (self.kind == "linear-probe"):
            raise ValueError("evaluate.train_data belongs to kind: linear-probe, which needs it")
        if (self.classes or self.templates) and self.kind not in ("zero-shot", "linear-probe"):
            raise ValueError(f"evaluate: {self.kind} has no classes and templates")
        if self.num_patches is not None and self.kind == "vqa":
            raise ValueError("evaluate: vqa takes pictures as the model does; it has no num_patches")
        return self


class TrainRecipe(StrictModel):
    """One run: `pairloom train RECIPE`."""

    run: RunRecipe
    task: Annotated[ContrastiveTask | LlavaTask, Field(discriminator="kind")]
    model: ModelRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: DataRecipe
    batch: BatchRecipe
    optimizer: OptimizerRecipe
    zero: ZeroRecipe = ZeroRecipe()
    precision: Literal["bf16", "fp32"] = "fp32"
    evaluate: list[EvaluateRecipe] = []
    init_from: str | None = None  # an export (the next round, or align -> instruct), a Hugging Face or open_clip folder

    @model_validator(mode="after")
    def _sizes_divide(self) -> TrainRecipe:
        batch, lanes = self.batch.global_batch_size, self.data.num_lanes
        if batch % lanes:
            raise ValueError(f"data.num_lanes {lanes} must divide batch.global_batch_size {batch}")
        micro = self.batch.micro_batch_size
        if micro is not None and batch % micro:
            raise ValueError(f"batch.micro_batch_size {micro} must divide batch.global_batch_size {batch}")
        return self

    @model_validator(mode="after")
    def _model_fits_task(self) -> TrainRecipe:
        if (self.task.kind == "contrastive") and self.model.llava is not None:
            raise ValueError("model.llava belongs to task.kind: llava")
        if self.task.kind == "llava" and (self.model.preset or self.model.dual or self.model.locked):
            raise ValueError("task.kind: llava takes model.llava or model.path")
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> TrainRecipe:
        is_contrastive_only = (
            self.model.activation_checkpointing or self.model.compile or self.optimizer.layer_decay != 1
        )
        if self.task.kind == "llava" and is_contrastive_only:
            raise ValueError(
                "model.activation_checkpointing, model.compile and optimizer.layer_decay belong to task.kind: "
                "contrastive"
            )
        if self.model.compile and self.zero.stage == 3:
            raise ValueError("model.compile: ZeRO 3 gathers weights in the midst of a layer; take zero.stage 2 at most")
        name, stage = self.optimizer.name, self.zero.stage
        if name != "adamw" and stage != 0:
            raise ValueError(f"optimizer.name: {name} needs whole parameters; zero.stage {stage} cuts them up")
        if name == "muon" and self.task.kind == "llava":
            raise ValueError("optimizer.name: muon belongs to task.kind: contrastive")
        is_loaded = self.task.kind == "contrastive" and (self.init_from or self.model.path or self.model.dual)
        if self.model.image_size is not None and not is_loaded:
            raise ValueError(
                "model.image_size resizes a contrastive model that is loaded (model.path, model.dual, init_from)"
            )
        if self.model.num_patches and (self.task.kind == "llava" or self.model.dual):
            raise ValueError("model.num_patches (NaFlex) belongs to a SigLIP: model.preset, model.path or init_from")
        if "vision" in self.model.locked and self.task.kind == "contrastive" and self.task.patch_dropout:
            raise ValueError("task.patch_dropout: the vision tower is locked")
        return self
