"""Models of `transformers` and `peft` from a config, with GradWatch added and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import trainer_in
from strangers.witness import train_twice
from torch.utils.data import DataLoader

pytestmark = pytest.mark.stranger
WORDS, LENGTH, STEPS = 32, 12, 120


def fit_in(lightning: Any, tmp_path: Any, make: Callable[[], Any], sample: Callable[[], Any], **optimizer: Any) -> Any:
    """Return what trains a model whose output carries its own loss, on batches of 16 samples."""

    class Wraps(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            wanted = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.optim.AdamW(wanted, lr=1e-3, **optimizer)

    def fit(callbacks: list[Any]) -> None:
        loader = DataLoader([sample() for _ in range(64)], batch_size=16, shuffle=True)
        trainer_in(lightning, tmp_path, *callbacks, max_steps=STEPS, max_epochs=-1, gradient_clip_val=1.0).fit(
            Wraps(), loader
        )

    return fit


def counting() -> dict[str, Any]:
    """Return words that count up from a random one, which a model can learn to go on with."""
    words = (torch.randint(0, WORDS, (1,)) + torch.arange(LENGTH)) % WORDS
    return {"input_ids": words, "labels": words}


@pytest.mark.supports("transformers: GPT-2")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gpt2(lightning, tmp_path, checkpointing):
    """GPT-2, whose output weights are tied to its embedding, trains the same, with gradient checkpointing too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make() -> Any:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=16, n_layer=3, n_head=2))
        if checkpointing:
            model.gradient_checkpointing_enable()
        return model.train()

    fit = fit_in(lightning, tmp_path, make, counting)
    watch = train_twice(fit, STEPS, package=lightning.__name__.partition(".")[0])
    assert watch.history.layers[:4] == (
        "model.transformer.wte",
        "model.transformer.wpe",
        "model.transformer.h.0.ln_1",
        "model.transformer.h.0.attn.c_attn",
    )
    assert "model.lm_head" not in watch.history.layers


@pytest.mark.supports("transformers: BERT")
def test_bert(pl, tmp_path):
    """BERT with a head that classifies trains the same."""
    from transformers import BertConfig, BertForSequenceClassification

    def sample() -> dict[str, Any]:
        words = torch.randint(0, WORDS, (LENGTH,))
        return {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": (words[0] > WORDS // 2).long()}

    def make() -> Any:
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
        )
        return BertForSequenceClassification(config).train()

    watch = train_twice(fit_in(pl, tmp_path, make, sample), STEPS, package="pytorch_lightning")
    assert "model.bert.embeddings.word_embeddings" in watch.history.layers
    assert "model.bert.encoder.layer.0.attention.self.query" in watch.history.layers
    assert "model.classifier" in watch.history.layers


@pytest.mark.supports("transformers: T5")
def test_t5(pl, tmp_path):
    """T5, an encoder and a decoder without a single bias, trains the same."""
    from transformers import T5Config, T5ForConditionalGeneration

    def make() -> Any:
        config = T5Config(
            vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        return T5ForConditionalGeneration(config).train()

    watch = train_twice(fit_in(pl, tmp_path, make, counting), STEPS, package="pytorch_lightning")
    assert "model.shared" in watch.history.layers
    assert "model.decoder.block.0.layer.1.EncDecAttention.q" in watch.history.layers


@pytest.mark.supports("transformers: ViT")
def test_vit(pl, tmp_path):
    """A vision transformer trains the same; its class token and positions belong to the embeddings."""
    from transformers import ViTConfig, ViTForImageClassification

    def sample() -> dict[str, Any]:
        label = torch.randint(0, 2, ())
        return {"pixel_values": torch.randn(3, 8, 8) + label, "labels": label}

    def make() -> Any:
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
        )
        return ViTForImageClassification(config).train()

    watch = train_twice(fit_in(pl, tmp_path, make, sample), STEPS, package="pytorch_lightning")
    assert "model.vit.embeddings" in watch.history.layers
    assert "model.classifier" in watch.history.layers


@pytest.mark.supports("peft: LoRA")
def test_lora(lightning, tmp_path):
    """LoRA on a Llama: the gradient of every lora_A is exactly 0 at first, and that is healthy."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def make() -> Any:
        config = LlamaConfig(
            vocab_size=WORDS,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
        )
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return get_peft_model(LlamaForCausalLM(config), lora).train()

    fit = fit_in(lightning, tmp_path, make, counting)
    watch = train_twice(fit, STEPS, package=lightning.__name__.partition(".")[0])
    layer = "model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default"
    column = watch.history.layers.index(layer)
    assert watch.history.norms[0, column] == 0
    assert watch.history.norms[-1, column] > 0
    assert watch.diagnoses == []
