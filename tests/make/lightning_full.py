"""A run of lightning.Trainer without sharding: every step is one .ckpt file of torch.save.

pip install torch==2.13.0 transformers==5.23.0 lightning==2.6.6 safetensors
python tests/make/lightning_full.py OUT          # OUT/lightning_full/{run, truth.safetensors}
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {"hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 1, "vocab_size": 17, "head_dim": 4}


class Trained(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = Qwen3Config(**SIZES, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
        self.model = Qwen3ForCausalLM(config)
        self.save_hyperparameters({"lr": 0.01})

    def training_step(self, batch: Any, index: int) -> Any:
        return self.model(input_ids=batch[0], labels=batch[0]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    to = Path(sys.argv[1]) / "lightning_full"
    shutil.rmtree(to, ignore_errors=True)
    module = Trained()
    saves = ModelCheckpoint(save_top_k=-1, every_n_train_steps=2, save_last=True)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": True,
        "accelerator": "cpu",
    }
    trainer = lightning.Trainer(max_steps=10, default_root_dir=str(to / "run"), callbacks=[saves], **quiet)
    rows = torch.utils.data.TensorDataset(torch.arange(40).reshape(5, 8) % 17)
    trainer.fit(module, torch.utils.data.DataLoader(rows))
    for path in (to / "run").rglob("*.ckpt"):
        if "step=2." not in path.name and "step=10." not in path.name and path.name != "last.ckpt":
            path.unlink()
    module.model.config.save_pretrained(to / "run")
    save_file({k: v.detach().clone() for k, v in module.model.state_dict().items()}, to / "truth.safetensors")
    about = {"command": "lightning_full.py", "lightning": lightning.__version__, "torch": torch.__version__}
    (to / "about.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
