"""LLaVA: building, what each stage trains, exactness of the loss, folders."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoConfig, AutoModelForCausalLM, LlavaForConditionalGeneration

from pairloom.schemas.conversation import Conversation, Turn
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.load import parse_recipe
from pairloom.schemas.recipes.train import TrainRecipe
from pairloom.trainers.deepspeed_engine.build_ops import build_ops
from pairloom.trainers.task import TrainSample
from pairloom.trainers.tasks.llava import LlavaTask, build_llava_task
from pairloom.trainers.text.chat import JINJA_TEMPLATES
from tests.support.stories260k import STORIES, write_stories260k
from tests.support.tiny_models import write_clip, write_siglip, write_tokenizer

needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="needs real data: set PAIRLOOM_SHARED")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`siglip`, `clip`, `tokenizer` below one folder."""
    root = tmp_path_factory.mktemp("models")
    write_siglip(root / "siglip")
    write_clip(root / "clip")
    write_tokenizer(root / "tokenizer")
    return root


def make_recipe(folders: Path, mode: str = "instruct", vision: str = "siglip", **changes: Any) -> TrainRecipe:
    parts = {"vision": str(folders / vision), "language": "llama-test-tiny", **changes.pop("parts", {})}
    settings = {
        "run": {"dir": "unused", "total_samples": 8, "seed": 3},
        "task": {"kind": "llava", "mode": mode, **changes.pop("task", {})},
        "model": {"llava": parts},
        "data": {"train": [{"path": "unused"}]},
        "batch": {"global_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.0},
        **changes,
    }
    return parse_recipe(settings, TrainRecipe, where="test")


def build(folders: Path, mode: str = "instruct", vision: str = "siglip", **changes: Any) -> LlavaTask:
    return build_llava_task(make_recipe(folders, mode, vision, **changes), str(folders / "tokenizer"))


def make_samples(count: int, with_images: bool = True) -> list[TrainSample]:
    """Conversations of several lengths; every third one is text only."""
    draw = np.random.default_rng(0)
    samples = []
    for index in range(count):
        has_image = with_images and index % 3 != 2
        mark = "<image>\n" if has_image else ""
        turns = (Turn("user", f"{mark}what is it?"), Turn("assistant", "a red circle " * (1 + index)))
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8) if has_image else None
        samples.append(TrainSample(str(index), pixels, "a ball", Conversation(str(index), None, turns)))
    return samples


def gradients(task: LlavaTask, micro_batches: list[list[TrainSample]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a global step that is cut into micro-batches."""
    task.model.zero_grad(set_to_none=True)
    batches = [task.collate(samples) for samples in micro_batches]
    counts = {"tokens": sum(task.counts(batch)["tokens"] for batch in batches)}
    total = 0.0
    for batch in batches:
        loss, _ = task.loss(task.model, batch, counts)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def model_of(task: LlavaTask) -> Any:
    """The transformers model, whose attributes torch types as tensors or modules."""
    return task.model


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-4, atol=1e-6, msg=name)


def test_stages_train_their_parameters_only(folders: Path) -> None:
    def trained(task: LlavaTask) -> set[str]:
        groups = [name for group in task.parameter_groups() for name in group.names]
        _, grads = gradients(task, [make_samples(2)])
        assert set(groups) == set(grads)
        return {name.removeprefix("model.").split(".")[0] for name in groups}

    assert trained(build(folders, "align")) == {"multi_modal_projector"}
    # The head of the tiny Llama is tied to its embeddings.
    assert trained(build(folders)) == {"multi_modal_projector", "language_model"}
    assert trained(build(folders, task={"blind": True})) == {"language_model"}


def test_vision_tower_with_its_own_learning_rate(folders: Path) -> None:
    task = build(folders, task={"vision_learning_rate": 1e-5})
    groups = task.parameter_groups()
    vision = [group for group in groups if group.learning_rate == 1e-5]
    names = [name for group in vision for name in group.names]
    assert names
    assert all(name.startswith("model.vision_tower.") for name in names)
    assert not any("layers.2." in name or "head." in name or "post_layernorm" in name for name in names)
    assert {group.weight_decay for group in groups} == {0.0, 0.1}
    _, grads = gradients(task, [make_samples(2)])
    assert set(names) <= set(grads)
    assert all(grads[name].abs().sum() > 0 for name in names if not name.endswith("k_proj.bias"))


def test_accumulation_is_exact(folders: Path) -> None:
    """Micro-batches of other lengths, one of them text only, give the loss and gradients of one batch."""
    task, samples = build(folders), make_samples(6)
    loss, grads = gradients(task, [samples])
    cut_loss, cut_grads = gradients(task, [samples[:2], samples[2:3], samples[3:]])
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    assert_same(cut_grads, grads)


def _rank_gradients(rank: int, folders: Path, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    samples = make_samples(6)
    task = build(folders)
    mine = task.collate([samples[:4], samples[4:]][rank])
    counted = torch.tensor(task.counts(mine)["tokens"])
    dist.all_reduce(counted)
    loss, _ = task.loss(task.model, mine, {"tokens": int(counted)})
    loss.backward()
    averaged = {}
    for name, parameter in task.model.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            averaged[name] = parameter.grad / 2
    if rank == 0:
        torch.save(averaged, out / "gradients.pt")
    dist.destroy_process_group()


def test_two_ranks_of_unequal_tokens_equal_one(folders: Path, tmp_path: Path) -> None:
    mp.spawn(_rank_gradients, args=(folders, tmp_path), nprocs=2)  # type: ignore[attr-defined]
    _, grads = gradients(build(folders), [make_samples(6)])
    assert_same(torch.load(tmp_path / "gradients.pt"), grads)


def make_optimizer(task: LlavaTask) -> torch.optim.Optimizer:
    groups = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in task.parameter_groups()
    ]
    return torch.optim.AdamW(groups)


def _zero_losses(rank: int, folders: Path, out: Path, stage: int) -> None:
    import deepspeed

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=(out / "port").read_text())
    torch.set_num_threads(1)
    build_ops()
    deepspeed.init_distributed("gloo")
    task = build(folders)
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=task.model, optimizer=make_optimizer(task), config=config)
    mine = zero_shares()[rank]
    batches = [task.collate(mine[:2]), task.collate(mine[2:])]
    num_targets = torch.tensor(sum(task.counts(batch)["tokens"] for batch in batches))
    dist.all_reduce(num_targets)
    losses = []
    for _ in range(2):
        total = torch.zeros(())
        for batch in batches:
            loss, _ = task.loss(engine, batch, {"tokens": int(num_targets)})
            total += loss.detach()
            engine.backward(loss * len(batches))  # DeepSpeed divides by the number of micro-batches
            engine.step()
        dist.all_reduce(total)
        losses.append(total.item() / 2)
    if rank == 0:
        (out / "losses.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


def zero_shares() -> list[list[TrainSample]]:
    """Four samples a rank; the first micro-batch of rank 1 is text only."""
    every = make_samples(12)
    images = [sample for sample in every if sample.pixels is not None]
    words = [sample for sample in every if sample.pixels is None]
    return [images[:4], words[:2] + images[4:6]]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_text_only_ranks_do_not_hang_zero(folders: Path, tmp_path: Path, stage: int) -> None:
    """A rank with images beside one without: ZeRO gives the losses of one process, step after step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    mp.spawn(_zero_losses, args=(folders, tmp_path, stage), nprocs=2)  # type: ignore[attr-defined]
    task = build(folders)
    optimizer = make_optimizer(task)
    expected = []
    for _ in range(2):
        loss, _ = gradients(task, [[*zero_shares()[0], *zero_shares()[1]]])
        optimizer.step()
        expected.append(loss)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(expected, rel=1e-5)


def test_bf16_is_near_fp32(folders: Path) -> None:
    task = build(folders)
    batch = task.collate(make_samples(3))
    exact, _ = task.loss(task.model, batch, {"tokens": 50})
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = task.loss(task.model, batch, {"tokens": 50})
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_text_only_batches_run_the_vision_tower_with_weight_zero(folders: Path) -> None:
    task = build(folders)
    runs: list[int] = []
    task.model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    samples = make_samples(2, with_images=False)
    loss, grads = gradients(task, [samples])
    assert runs
    projector = [grad for name, grad in grads.items() if "projector" in name]
    assert projector
    assert all(not grad.any() for grad in projector)
    blind_loss, blind_grads = gradients(build(folders, task={"blind": True}), [samples])
    assert blind_loss == pytest.approx(loss, rel=1e-6)
    assert_same({name: grad for name, grad in grads.items() if "projector" not in name}, blind_grads)


def test_blind_twin_sees_no_image(folders: Path) -> None:
    task = build(folders, task={"blind": True})
    batch = task.collate(make_samples(2))
    assert "pixel_values" not in batch
    assert model_of(task).config.image_token_id not in batch["input_ids"]


def test_a_sample_that_cannot_be_rendered_is_left_out(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, samples = build(folders), make_samples(2)
    silent = Conversation("bad", None, (Turn("user", "<image> what?"), Turn("assistant", " ")))
    batch = task.collate([samples[0], TrainSample("bad", samples[0].pixels, "", silent)])
    assert len(batch["input_ids"]) == 1
    assert "bad left out" in caplog.text
    nothing = task.collate([TrainSample("bad", samples[0].pixels, "", silent)])
    assert task.counts(nothing) == {"tokens": 0}
    loss, _ = task.loss(task.model, nothing, {"tokens": 5})
    assert loss.item() == 0


def test_captions_need_no_conversation(folders: Path) -> None:
    sample = make_samples(1)[0]
    task = build(folders, "align")
    batch = task.collate([TrainSample("u", sample.pixels, "two golf balls")])
    labels = batch["labels"][0]
    assert task._tokenizer.decode(labels[labels >= 0]) == "two golf balls</s>"


@pytest.mark.parametrize(("vision", "num_tokens"), [("siglip", 16), ("clip", 16)])
def test_features_of_every_tower_fit(folders: Path, vision: str, num_tokens: int) -> None:
    task = build(folders, vision=vision)
    batch = task.collate(make_samples(1))
    assert int((batch["input_ids"] == task.model.config.image_token_id).sum()) == num_tokens
    assert torch.isfinite(task.loss(task.model, batch, {"tokens": 5})[0])


def test_linear_projector_is_one_matrix(folders: Path) -> None:
    task = build(folders, "align", parts={"projector": "linear"})
    assert {name for group in task.parameter_groups() for name in group.names} == {
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.bias",
    }
    projector, features = model_of(task).model.multi_modal_projector, torch.randn(2, 4, 32)
    torch.testing.assert_close(projector(features), projector.linear_1(features))


def test_the_seed_decides_every_random_weight(folders: Path) -> None:
    torch.manual_seed(5)
    first = build(folders).model.state_dict()
    torch.manual_seed(6)
    second = build(folders).model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_align_folder_becomes_instruct(folders: Path, tmp_path: Path) -> None:
    """What align saves gives the same outputs in plain transformers, and instruct goes on from it."""
    align = build(folders, "align")
    with torch.no_grad():
        model_of(align).model.multi_modal_projector.linear_1.weight.add_(0.1)
    align.save_model(str(tmp_path), align.model.state_dict())
    batch = align.collate(make_samples(2))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(plain(**inputs).logits, align.model(**inputs).logits)
    for key in ("model", "init_from"):
        source: Any = {"model": {"path": str(tmp_path)}} if key == "model" else {"init_from": str(tmp_path)}
        instruct = build(folders, **source)
        assert torch.equal(instruct.model(**inputs).logits, plain(**inputs).logits)
        assert len(instruct.parameter_groups()) == 2


def test_language_model_of_a_llava(folders: Path, tmp_path: Path) -> None:
    """The demo trains its language model as a blind LLaVA and puts it behind another vision tower."""
    blind = build(folders, task={"blind": True})
    blind.save_model(str(tmp_path), blind.model.state_dict())
    task = build(folders, "align", "clip", parts={"language": str(tmp_path)})
    ours, theirs = task.model.model.language_model.state_dict(), blind.model.model.language_model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert task._tokenizer.chat_template == JINJA_TEMPLATES["vicuna_v1"]  # it can still be asked


def test_saving_reads_the_given_weights_only(folders: Path, tmp_path: Path) -> None:
    """Under ZeRO-3 the model's own parameters are empty while the whole state is saved."""
    task = build(folders)
    state = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    for parameter in task.model.parameters():
        parameter.data = torch.empty(0)
    task.save_model(str(tmp_path), state)
    saved = LlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())


@needs_stories
def test_a_real_language_model_keeps_its_outputs(folders: Path, tmp_path: Path) -> None:
    stories = str(write_stories260k(tmp_path))
    own = build(folders, "align", parts={"language": stories})
    ids = own._tokenizer("Once upon a time, there was", return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(stories)
    torch.testing.assert_close(model_of(own)(input_ids=ids).logits[..., :512], plain(input_ids=ids).logits)
    assert own.model.config.text_config.vocab_size == 513  # <image>
    rows = model_of(own).get_input_embeddings().weight
    torch.testing.assert_close(rows[512], rows[:512].mean(dim=0))


def test_mistakes_are_named(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="align"):
        build(folders, "align", task={"blind": True})
    with pytest.raises(RecipeError, match="brings its own"):
        build(folders, parts={"language": "some/folder"}, tokenizer={"path": "another"})
    with pytest.raises(RecipeError, match="feature_layer"):
        build(folders, parts={"feature_layer": -9})
    with pytest.raises(InputError, match="holds no LLaVA"):
        build(folders, init_from=str(folders / "siglip"))
    with pytest.raises(RecipeError, match="no causal language model"):
        build(folders, parts={"language": str(folders / "siglip")})
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.llava\.vision"):
        build(folders, vision=str(tmp_path))
