"""diffusers' schedulers around a small UNet, and peft's LoRA, on the executor, against the local CPU."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import diffusers
import peft
import pytest
import torch

from remora.bench import models


def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()


SCHEDULERS = ("DDPM", "DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers with any device
@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_a_denoising_loop_is_that_of_the_cpu(connected: ModuleType, name: str) -> None:
    model = unet()

    def denoised(model: Any, device: str) -> torch.Tensor:
        scheduler = getattr(diffusers, f"{name}Scheduler")()
        scheduler.set_timesteps(5, device=device)
        torch.manual_seed(1)
        x = torch.randn(1, 3, 16, 16).to(device) * scheduler.init_noise_sigma
        torch.manual_seed(2)
        for step in scheduler.timesteps:
            noise = model(scheduler.scale_model_input(x, step), step).sample
            x = scheduler.step(noise, step, x).prev_sample
        return x.cpu()

    expected = denoised(model, "cpu")
    assert torch.equal(denoised(model.to("remora"), "remora"), expected)


def test_a_pipeline_makes_the_picture_of_the_cpu(connected: ModuleType) -> None:
    def picture(device: str) -> Any:
        pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).to(device)
        pipeline.set_progress_bar_config(disable=True)
        seeded = torch.Generator().manual_seed(0)
        return pipeline(num_inference_steps=3, output_type="np", generator=seeded).images

    assert (picture("remora") == picture("cpu")).all()


def test_a_unet_with_a_condition_trains_as_on_the_cpu(connected: ModuleType) -> None:
    def losses(device: str) -> list[float]:
        torch.manual_seed(0)
        model = diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            norm_num_groups=8,
            attention_head_dim=4,
        )
        image, noise, words = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
        image, noise, words, steps = (x.to(device) for x in (image, noise, words, torch.tensor([3, 700])))
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        scheduler, found = diffusers.DDPMScheduler(), []
        for _ in range(3):
            noisy = scheduler.add_noise(image, noise, steps)
            loss = torch.nn.functional.mse_loss(model(noisy, steps, words).sample, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        return [loss.item() for loss in found]

    assert losses("remora") == losses("cpu")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_an_adapter_trains_writes_and_merges_as_on_the_cpu(connected: ModuleType, options: Any) -> None:
    def adapted(device: str) -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
            init_lora_weights=False,
            **options,
        )
        model = peft.get_peft_model(models.llama(2, vocabulary=128), config).to(device)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, 1e-2)
        ids = models.prompt(8, 2, 128).to(device)
        losses = []
        for _ in range(3):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.eval()
        tokens = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        merged = copy.deepcopy(model).merge_and_unload()
        with torch.no_grad():
            made = [tokens, model(input_ids=ids).logits, merged(input_ids=ids).logits, *trained]
        return losses, [x.detach().cpu() for x in made]

    losses, made = adapted("remora")
    expected_losses, expected = adapted("cpu")
    assert losses == expected_losses
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
